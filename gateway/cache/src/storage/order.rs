//! In which order keys go, when room is needed.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    sync::Arc,
};

use foldhash::quality::RandomState;

/// What is new takes one of so many parts, before others go for it.
const YOUNG: u64 = 10;

/// What has gone is remembered until as much has gone after it as there is, and so many keys at least.
const LEAST_GONE: usize = 64;

/// The keys of one tenant, in two queues (S3-FIFO, SOSP 2023). What was used while it was new stays with those that were used
/// before; of what was not, most never is. So a scan goes through the queue of new keys, and leaves the others where they are.
/// What comes back soon after it has gone was taken for new too long, and is put with the others.
#[derive(Debug, Default)]
pub(super) struct Order {
    young: Queue,
    old: Queue,
    hasher: RandomState,
    gone: Gone,
}

/// Keys, each with what was stored under it when it came here.
#[derive(Debug, Default)]
struct Queue {
    keys: VecDeque<(Arc<[u8]>, u64)>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, key: Arc<[u8]>, bytes: u64) {
        self.keys.push_back((key, bytes));
        self.bytes += bytes;
    }

    fn pop(&mut self) -> Option<Arc<[u8]>> {
        let (key, bytes) = self.keys.pop_front()?;
        self.bytes -= bytes;
        Some(key)
    }
}

/// Keys that have gone, by their hashes: who stands for another is only taken for one that comes back.
#[derive(Debug, Default)]
struct Gone {
    /// When each went last, as a place in the row of all that ever went.
    places: HashMap<u64, u64, RandomState>,
    /// The end of that row: each with what was stored under it. Bytes and not keys are what bounds it, or a few large
    /// things would leave no time for small ones to come back.
    row: VecDeque<(u64, u64)>,
    bytes: u64,
    /// How many are no longer in it.
    forgotten: u64,
}

impl Gone {
    fn add(&mut self, hash: u64, bytes: u64) {
        self.places.insert(hash, self.forgotten + self.row.len() as u64);
        self.row.push_back((hash, bytes));
        self.bytes += bytes;
    }

    /// Whether it is remembered; it is no more.
    fn take(&mut self, hash: u64) -> bool {
        self.places.remove(&hash).is_some()
    }

    fn forget_beyond(&mut self, most: u64) {
        while self.bytes > most
            && self.row.len() > LEAST_GONE
            && let Some((hash, bytes)) = self.row.pop_front()
        {
            // It may have come back, and have gone once more.
            if self.places.get(&hash) == Some(&self.forgotten) {
                self.places.remove(&hash);
            }
            self.bytes -= bytes;
            self.forgotten += 1;
        }
        // There were many more once: what they took is in no budget.
        if self.row.capacity() > 4 * self.row.len().max(LEAST_GONE) {
            self.row.shrink_to(2 * self.row.len());
            self.places.shrink_to(2 * self.row.len());
        }
    }
}

impl Order {
    pub(super) fn len(&self) -> usize {
        self.young.keys.len() + self.old.keys.len()
    }

    /// A key that is new, under which so much is stored.
    pub(super) fn add(&mut self, key: Arc<[u8]>, bytes: u64) {
        let comes_back = self.gone.take(self.hasher.hash_one(&key));
        if comes_back { &mut self.old } else { &mut self.young }.push(key, bytes);
    }

    /// The key that goes next, unless it was used and is kept.
    pub(super) fn next(&mut self) -> Option<Arc<[u8]>> {
        let is_young = self.young.bytes * YOUNG > self.young.bytes + self.old.bytes || self.old.keys.is_empty();
        if is_young && !self.young.keys.is_empty() { self.young.pop() } else { self.old.pop() }
    }

    /// A key that was used, behind all others that were.
    pub(super) fn keep(&mut self, key: Arc<[u8]>, bytes: u64) {
        self.old.push(key, bytes);
    }

    /// A key that has gone, under which so much was stored.
    pub(super) fn let_go(&mut self, key: &[u8], bytes: u64) {
        self.gone.add(self.hasher.hash_one(key), bytes);
        self.gone.forget_beyond(self.young.bytes + self.old.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Arc<[u8]> {
        number.to_be_bytes().into()
    }

    #[test]
    fn new_keys_go_first_as_long_as_they_are_more_than_a_tenth() {
        let mut order = Order::default();
        (0..100).for_each(|number| order.keep(key(number), 1));
        (100..120).for_each(|number| order.add(key(number), 1));
        let next: Vec<_> = std::iter::repeat_with(|| order.next()).take(10).flatten().collect();
        // Of 120 keys twenty are new, of 112 twelve; of 111 eleven are less than a tenth no more.
        assert_eq!(next[..9], (100..109).map(key).collect::<Vec<_>>());
        assert_eq!((next[9].clone(), order.len()), (key(0), 110));
    }

    #[test]
    fn large_new_things_go_first_although_they_are_few() {
        let mut order = Order::default();
        (0..100).for_each(|number| order.keep(key(number), 1));
        order.add(key(100), 50);
        assert_eq!((order.next(), order.next()), (Some(key(100)), Some(key(0))));
    }

    #[test]
    fn what_comes_back_is_with_those_that_were_used() {
        let mut order = Order::default();
        order.add(key(1), 1);
        assert_eq!(order.next(), Some(key(1)));
        order.let_go(&key(1), 1);
        (2..50).for_each(|number| order.add(key(number), 1));
        order.add(key(1), 1);
        assert_eq!((order.old.keys.len(), order.gone.places.len()), (1, 0));
        // What has gone long ago is forgotten.
        (100..1000).for_each(|number| order.let_go(&key(number), 1));
        assert!(order.gone.places.len() <= LEAST_GONE && order.gone.row.len() <= LEAST_GONE);
        assert!(std::iter::from_fn(|| order.next()).count() == 49 && order.len() == 0);
        assert_eq!((order.young.bytes, order.old.bytes), (0, 0));
    }

    #[test]
    fn few_large_things_leave_many_small_ones_the_time_to_come_back() {
        let mut order = Order::default();
        (0..10).for_each(|number| order.keep(key(number), 1000));
        (100..1000).for_each(|number| order.let_go(&key(number), 10));
        (100..1000).for_each(|number| order.add(key(number), 10));
        assert_eq!((order.young.keys.len(), order.old.keys.len()), (0, 910));
    }

    #[test]
    fn what_goes_again_and_again_is_remembered_from_the_last_time() {
        let mut order = Order::default();
        for number in 0..LEAST_GONE {
            // In the middle it comes back, and goes once more.
            if number == LEAST_GONE / 2 {
                order.add(key(0), 0);
            }
            order.let_go(&key(if number == LEAST_GONE / 2 { 0 } else { number }), 1);
        }
        order.let_go(&key(1000), 1);
        order.add(key(0), 0);
        assert_eq!(order.old.keys.len(), 2);
        // And all of it is forgotten some time.
        (2000..3000).for_each(|number| order.let_go(&key(number), 1));
        assert_eq!((order.gone.row.len(), order.gone.bytes, order.gone.places.len()), (64, 64, 64));
        assert!(order.gone.row.capacity() <= 4 * LEAST_GONE && order.gone.places.capacity() <= 8 * LEAST_GONE);
    }
}
