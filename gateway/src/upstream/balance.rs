//! Which of the usable endpoints a request goes to.
//!
//! Endpoints come in groups, the preferred first (priority, then distance). A request takes the first
//! group in which there is an endpoint it has not tried yet; within it the upstream's algorithm decides.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use seiketsu_config::tenant::Balance;

use super::clock::Nanos;

/// Identifies an endpoint within its pool, for as long as its address is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct EndpointId(pub(super) u32);

/// The most attempts one request can have: the first and five retries.
const MAX_ATTEMPTS: usize = 6;

/// The endpoints that one request has tried. Lives in the request's context and does not allocate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    ids: [Option<EndpointId>; MAX_ATTEMPTS],
}

impl Tried {
    /// Beyond six attempts the oldest is forgotten.
    pub fn add(&mut self, id: EndpointId) {
        if let Some(slot) = self.ids.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(id);
        } else {
            self.ids.rotate_left(1);
            self.ids[MAX_ATTEMPTS - 1] = Some(id);
        }
    }

    pub fn contains(&self, id: EndpointId) -> bool {
        self.ids.contains(&Some(id))
    }

    pub fn is_empty(&self) -> bool {
        self.ids[0].is_none()
    }
}

/// What balancing needs to know of an endpoint.
pub trait Candidate {
    fn id(&self) -> EndpointId;
    fn weight(&self) -> u16;
    /// The same on every gateway for the same endpoint.
    fn hash_seed(&self) -> u64;
    /// The lower the better; weight is already in it.
    fn cost(&self, now: Nanos) -> f64;
    /// The share of its traffic that it may take now, from 0.0 to 1.0 (slow start).
    fn ramp(&self, now: Nanos) -> f64;
}

/// Endpoints that are equally good to go to.
#[derive(Debug)]
pub struct Group<C> {
    members: Vec<C>,
    /// Positions in `members` in the order of weighted round robin, one whole round.
    schedule: Vec<usize>,
    same_weights: bool,
}

/// What one choice depends on beside the endpoints.
#[derive(Debug)]
pub struct Choice<'a> {
    pub balance: &'a Balance,
    pub hash_key: Option<u64>,
    pub tried: &'a Tried,
    /// Where round robin is; shared by all requests of the pool.
    pub cursor: &'a AtomicUsize,
    pub now: Nanos,
}

impl<C: Candidate> Group<C> {
    /// Members of weight 0 take no traffic; leave them out before.
    pub fn new(members: Vec<C>, balance: &Balance) -> Self {
        let weights: Vec<u16> = members.iter().map(Candidate::weight).collect();
        let schedule = match balance {
            Balance::RoundRobin => smooth_schedule(&weights),
            Balance::LeastLatency | Balance::ConsistentHash(_) => Vec::new(),
        };
        let same_weights = weights.windows(2).all(|pair| pair[0] == pair[1]);
        Self { members, schedule, same_weights }
    }

    pub fn members(&self) -> &[C] {
        &self.members
    }

    fn untried<'a>(&'a self, tried: &Tried) -> impl Iterator<Item = &'a C> {
        let tried = *tried;
        self.members.iter().filter(move |member| tried.is_empty() || !tried.contains(member.id()))
    }

    fn choose(&self, choice: &Choice<'_>) -> Option<&C> {
        match (choice.balance, choice.hash_key) {
            (Balance::RoundRobin, _) => self.next_in_turn(choice),
            (Balance::ConsistentHash(_), Some(key)) => self.by_hash(key, choice.tried),
            // A request without the header or cookie that is hashed may go anywhere.
            (Balance::LeastLatency | Balance::ConsistentHash(_), _) => self.better_of_two(choice),
        }
    }

    /// Power of two choices: nearly as good as the best of all, without a herd running to the best.
    fn better_of_two(&self, choice: &Choice<'_>) -> Option<&C> {
        let count = if choice.tried.is_empty() { self.members.len() } else { self.untried(choice.tried).count() };
        let nth = |n| if choice.tried.is_empty() { self.members.get(n) } else { self.untried(choice.tried).nth(n) };
        if count < 2 {
            return nth(0);
        }
        let first = fastrand::usize(..count);
        let mut second = fastrand::usize(..count - 1);
        if second >= first {
            second += 1;
        }
        let (first, second) = (nth(first)?, nth(second)?);
        if passes_slow_start(second, choice.now)
            && (!passes_slow_start(first, choice.now) || second.cost(choice.now) < first.cost(choice.now))
        {
            Some(second)
        } else {
            Some(first)
        }
    }

    fn next_in_turn(&self, choice: &Choice<'_>) -> Option<&C> {
        let start = choice.cursor.fetch_add(1, Relaxed);
        let length = self.schedule.len();
        let mut fallback = None;
        for step in 0..length {
            let position = self.schedule[start.wrapping_add(step) % length];
            let member = &self.members[position];
            if choice.tried.contains(member.id()) {
                continue;
            }
            if passes_slow_start(member, choice.now) {
                return Some(member);
            }
            fallback = fallback.or(Some(member));
        }
        fallback
    }

    /// Weighted rendezvous hashing: each endpoint draws a number from key and seed, the highest wins. An
    /// endpoint that goes hands over its own keys and no other; one that comes takes its share and
    /// nothing moves between the rest. Linear in the number of endpoints, some nanoseconds each.
    fn by_hash(&self, key: u64, tried: &Tried) -> Option<&C> {
        if self.same_weights {
            return self.untried(tried).max_by_key(|member| mix(key ^ member.hash_seed()));
        }
        let score = |member: &C| {
            let drawn = ((mix(key ^ member.hash_seed()) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -f64::from(member.weight()) / drawn.ln()
        };
        self.untried(tried)
            .map(|member| (score(member), member))
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, member)| member)
    }
}

/// Takes the best group that has an endpoint left which was not tried; when all were tried, the best
/// group once more.
pub fn choose<'a, C: Candidate>(groups: &'a [Group<C>], choice: &Choice<'_>) -> Option<&'a C> {
    groups.iter().find_map(|group| group.choose(choice)).or_else(|| {
        let anew = Choice { tried: &Tried::default(), ..*choice };
        groups.iter().find_map(|group| group.choose(&anew))
    })
}

/// The hash of a key for [`Choice::hash_key`]: the same on every gateway and in every release (FNV-1a,
/// then mixed, since FNV alone spreads short keys badly).
pub fn hash_key(bytes: &[u8]) -> u64 {
    let hash =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mix(hash)
}

fn passes_slow_start<C: Candidate>(member: &C, now: Nanos) -> bool {
    let ramp = member.ramp(now);
    ramp >= 1.0 || fastrand::f64() < ramp
}

/// The finaliser of `SplitMix64`: every input bit changes every output bit.
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Longer rounds are shortened by rounding the weights.
const LONGEST_ROUND: u64 = 1024;

/// One round of smooth weighted round robin (as in nginx): in each round every member comes as often as
/// its weight says, evenly spread instead of in a row.
fn smooth_schedule(weights: &[u16]) -> Vec<usize> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return (0..weights.len()).collect();
    }
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    if total.unsigned_abs() > LONGEST_ROUND {
        let longest = i64::try_from(LONGEST_ROUND).unwrap_or(i64::MAX);
        for weight in &mut weights {
            *weight = (*weight * longest / total).max(1);
        }
    }
    let total: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            current.iter_mut().zip(&weights).for_each(|(value, weight)| *value += weight);
            let (best, value) = current.iter_mut().enumerate().rev().max_by_key(|(_, value)| **value)?;
            *value -= total;
            Some(best)
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use proptest::prelude::*;
    use seiketsu_config::tenant::HashKey;

    use super::*;

    #[derive(Debug, Clone)]
    struct Fake {
        id: u32,
        weight: u16,
        cost: f64,
        ramp: f64,
    }

    impl Candidate for Fake {
        fn id(&self) -> EndpointId {
            EndpointId(self.id)
        }
        fn weight(&self) -> u16 {
            self.weight
        }
        fn hash_seed(&self) -> u64 {
            hash_key(&self.id.to_be_bytes())
        }
        fn cost(&self, _: Nanos) -> f64 {
            self.cost
        }
        fn ramp(&self, _: Nanos) -> f64 {
            self.ramp
        }
    }

    fn fakes(weights: &[u16]) -> Vec<Fake> {
        (0..).zip(weights).map(|(id, &weight)| Fake { id, weight, cost: 1.0, ramp: 1.0 }).collect()
    }

    fn hashed() -> Balance {
        Balance::ConsistentHash(HashKey::Path)
    }

    fn pick(
        groups: &[Group<Fake>],
        balance: &Balance,
        key: Option<u64>,
        tried: &Tried,
        cursor: &AtomicUsize,
    ) -> Option<u32> {
        let choice = Choice { balance, hash_key: key, tried, cursor, now: 0 };
        choose(groups, &choice).map(|fake| fake.id)
    }

    fn shares(members: Vec<Fake>, balance: &Balance, picks: u64) -> HashMap<u32, u64> {
        let groups = [Group::new(members, balance)];
        let cursor = AtomicUsize::new(0);
        let mut counts = HashMap::new();
        for n in 0..picks {
            let id = pick(&groups, balance, Some(hash_key(&n.to_be_bytes())), &Tried::default(), &cursor).unwrap();
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_cheaper_of_two_always_wins() {
        let mut members = fakes(&[1, 1]);
        members[0].cost = 2.0;
        let counts = shares(members, &Balance::LeastLatency, 1000);
        assert_eq!(counts.get(&0), None);
    }

    #[test]
    fn the_dearest_of_many_gets_nothing_and_equals_share_alike() {
        let mut members = fakes(&[1; 5]);
        members[4].cost = 9.0;
        let counts = shares(members, &Balance::LeastLatency, 20_000);
        assert_eq!(counts.get(&4), None);
        for id in 0..4 {
            assert!((4_000..6_000).contains(&counts[&id]), "{counts:?}");
        }
    }

    #[test]
    fn an_endpoint_in_slow_start_gets_its_share_only() {
        for balance in [Balance::LeastLatency, Balance::RoundRobin] {
            let mut members = fakes(&[1, 1]);
            members[1].cost = 0.0;
            members[1].ramp = 0.1;
            let taken = shares(members, &balance, 10_000)[&1];
            assert!((300..1_800).contains(&taken), "{balance:?}: {taken}");
        }
    }

    #[test]
    fn round_robin_spreads_a_heavy_endpoint_over_the_round() {
        assert_eq!(smooth_schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(smooth_schedule(&[10, 10]), [0, 1]);
        assert_eq!(smooth_schedule(&[4, 2]), [0, 1, 0]);
    }

    #[test]
    fn consistent_hash_shares_by_weight() {
        let counts = shares(fakes(&[1, 2, 5]), &hashed(), 80_000);
        for (id, expected) in [(0, 10_000), (1, 20_000), (2, 50_000)] {
            let got = counts[&id];
            assert!(got.abs_diff(expected) < expected / 20, "{id}: {got} instead of {expected}");
        }
    }

    proptest! {
        #[test]
        fn round_robin_gives_each_exactly_its_weight(weights in prop::collection::vec(1u16..40, 1..12)) {
            let divisor = weights.iter().copied().fold(0, gcd);
            let schedule = smooth_schedule(&weights);
            for (position, weight) in weights.iter().enumerate() {
                let times = schedule.iter().filter(|&&p| p == position).count();
                prop_assert_eq!(times, usize::from(weight / divisor));
            }
        }

        #[test]
        fn a_round_is_bounded_and_leaves_no_one_out(weights in prop::collection::vec(1u16.., 1..40)) {
            let schedule = smooth_schedule(&weights);
            prop_assert!(schedule.len() <= usize::try_from(LONGEST_ROUND).unwrap() + weights.len());
            for position in 0..weights.len() {
                prop_assert!(schedule.contains(&position));
            }
        }

        #[test]
        fn an_endpoint_that_goes_moves_no_keys_but_its_own(
            weights in prop::collection::vec(1u16..10, 2..12), gone: prop::sample::Index, keys in prop::collection::vec(any::<u64>(), 200)
        ) {
            let all = fakes(&weights);
            let gone = all[gone.index(all.len())].id;
            let rest: Vec<_> = all.iter().filter(|fake| fake.id != gone).cloned().collect();
            let (before, after) = ([Group::new(all, &hashed())], [Group::new(rest, &hashed())]);
            let cursor = AtomicUsize::new(0);
            for key in keys {
                let was = pick(&before, &hashed(), Some(key), &Tried::default(), &cursor).unwrap();
                let is = pick(&after, &hashed(), Some(key), &Tried::default(), &cursor).unwrap();
                prop_assert!(was == gone || was == is);
            }
        }

        #[test]
        fn none_is_tried_twice_while_another_is_left(
            sizes in prop::collection::vec(0usize..4, 1..4), balance in 0..3, key: Option<u64>, ramp in 0.0..=1.0f64
        ) {
            let balance = match balance {
                0 => Balance::LeastLatency,
                1 => Balance::RoundRobin,
                _ => hashed(),
            };
            let total = sizes.iter().sum::<usize>();
            let mut members = fakes(&vec![1; total]);
            for member in &mut members {
                member.ramp = ramp;
            }
            let mut members = members.into_iter();
            let groups: Vec<_> =
                sizes.iter().map(|&size| Group::new(members.by_ref().take(size).collect(), &balance)).collect();
            let cursor = AtomicUsize::new(fastrand::usize(..));
            let mut tried = Tried::default();
            let mut order = Vec::new();
            for _ in 0..total.min(MAX_ATTEMPTS) {
                let id = pick(&groups, &balance, key, &tried, &cursor).unwrap();
                prop_assert!(!order.contains(&id), "{:?} then {} again", order, id);
                order.push(id);
                tried.add(EndpointId(id));
            }
            // Better groups come first, and once all were tried there is still an answer.
            let in_best = sizes.iter().copied().find(|&size| size > 0).unwrap_or(0);
            prop_assert!(order.iter().take(in_best).all(|&id| (id as usize) < in_best));
            prop_assert_eq!(pick(&groups, &balance, key, &tried, &cursor).is_some(), total > 0);
        }
    }
}
