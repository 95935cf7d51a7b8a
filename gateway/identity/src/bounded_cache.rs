//! A cache of bounded size without a global lock.
//!
//! It is built like a processor's: a key belongs to one of many small sets, each with its own lock and
//! [`WAYS`] places. When a set is full, the entry that expires first makes room. There is nothing to
//! sweep, nothing grows, and no operation looks at more than one set.

use parking_lot::RwLock;

/// Two digests: what is remembered, and for what it is valid. Being digests, their bytes are evenly
/// spread, so a few of them choose the set.
pub(crate) type Key = ([u8; 32], [u8; 32]);

const WAYS: usize = 8;

pub(crate) struct BoundedCache<V> {
    sets: Box<[RwLock<Vec<Entry<V>>>]>,
}

struct Entry<V> {
    key: Key,
    expires: u64,
    value: V,
}

impl<V: Clone> BoundedCache<V> {
    /// For about `capacity` entries; rounded up to a power of two.
    pub(crate) fn new(capacity: usize) -> Self {
        let sets = capacity.div_ceil(WAYS).next_power_of_two();
        Self { sets: (0..sets).map(|_| RwLock::new(Vec::new())).collect() }
    }

    /// The value, unless `expires` (in the unit of `now`) is reached.
    pub(crate) fn get(&self, key: &Key, now: u64) -> Option<V> {
        let set = self.set(key).read();
        let entry = set.iter().find(|entry| entry.key == *key)?;
        (now < entry.expires).then(|| entry.value.clone())
    }

    pub(crate) fn insert(&self, key: Key, expires: u64, value: V) {
        let new = Entry { key, expires, value };
        let mut set = self.set(&key).write();
        let place = match set.iter().position(|entry| entry.key == key) {
            Some(own) => own,
            None if set.len() < WAYS => {
                set.push(new);
                return;
            }
            None => (0..set.len()).min_by_key(|i| set[*i].expires).unwrap_or(0),
        };
        let old = std::mem::replace(&mut set[place], new);
        drop(set);
        // Freed outside the lock.
        drop(old);
    }

    fn set(&self, key: &Key) -> &RwLock<Vec<Entry<V>>> {
        let low = |digest: &[u8; 32]| u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]) as usize;
        &self.sets[(low(&key.0) ^ low(&key.1)) & (self.sets.len() - 1)]
    }
}

impl<V> std::fmt::Debug for BoundedCache<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is in it is nobody's business.
        f.debug_struct("BoundedCache").field("sets", &self.sets.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sha256;

    fn key(n: u32) -> Key {
        (sha256(&n.to_le_bytes()), sha256(b"tenant"))
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        let cache = BoundedCache::new(64);
        for n in 0..10_000 {
            cache.insert(key(n), 100, n);
        }
        let held: usize = cache.sets.iter().map(|set| set.read().len()).sum();
        assert!(held <= 64, "{held} entries");
    }

    #[test]
    fn the_entry_that_expires_first_makes_room() {
        let cache = BoundedCache::new(1);
        for n in 0..8 {
            cache.insert(key(n), 100 + u64::from(n), n);
        }
        cache.insert(key(8), 200, 8);
        assert_eq!(cache.get(&key(0), 0), None);
        assert!((1..9).all(|n| cache.get(&key(n), 0) == Some(n)));
    }

    proptest! {
        #[test]
        fn it_returns_only_what_was_put_in_last_and_has_not_expired(
            steps in prop::collection::vec((0u32..40, 1u64..100, 0u64..100), 1..200)
        ) {
            let cache = BoundedCache::new(16);
            let mut model = HashMap::new();
            for (step, (n, expires, now)) in steps.into_iter().enumerate() {
                cache.insert(key(n), expires, step);
                model.insert(n, (expires, step));
                for n in 0..40 {
                    if let Some(value) = cache.get(&key(n), now) {
                        let (expires, expected) = model[&n];
                        prop_assert_eq!(value, expected);
                        prop_assert!(now < expires);
                    }
                }
            }
        }
    }
}
