//! A map from text that is never changed in place: a changed copy shares all but a handful of blocks
//! with the original.
//!
//! It is a hash trie of two fixed levels, 128 × 128 leaves. Replacing one entry of 100,000 copies the
//! root, one branch and one leaf: 256 pointers and about six entries. Looking one up hashes the key
//! once and follows three pointers, of which the root and, mostly, the branch are in the processor's
//! cache. A leaf is one block of memory that is searched from its start, because it is short.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use foldhash::fast::RandomState;

/// Children of the root and of each branch.
const FANOUT: usize = 128;
const FANOUT_BITS: u32 = FANOUT.trailing_zeros();

type Branch<V> = Arc<[Leaf<V>]>;
type Leaf<V> = Arc<[Slot<V>]>;

#[derive(Debug, Clone)]
struct Slot<V> {
    hash: u64,
    key: Box<str>,
    value: V,
}

#[derive(Debug, Clone)]
pub(super) struct ShardedMap<V> {
    root: Arc<[Branch<V>]>,
    len: usize,
    /// Drawn anew for each first map, so that nobody can prepare keys that fall into one leaf; copies
    /// keep it.
    hasher: RandomState,
}

impl<V: Clone> Default for ShardedMap<V> {
    fn default() -> Self {
        let leaf: Leaf<V> = Arc::default();
        let branch: Branch<V> = vec![leaf; FANOUT].into();
        Self { root: vec![branch; FANOUT].into(), len: 0, hasher: RandomState::default() }
    }
}

impl<V: Clone> ShardedMap<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        let hash = self.hash(key);
        let (branch, leaf) = position(hash);
        let slots = &self.root[branch][leaf];
        slots.iter().find(|slot| slot.hash == hash && *slot.key == *key).map(|slot| &slot.value)
    }

    /// Adds or replaces an entry, and returns the value that it replaced.
    pub(super) fn insert(&mut self, key: &str, value: V) -> Option<V> {
        let former = self.remove(key);
        let hash = self.hash(key);
        let leaf = self.leaf_mut(hash);
        let added = Slot { hash, key: key.into(), value };
        *leaf = leaf.iter().cloned().chain([added]).collect();
        self.len += 1;
        former
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<V> {
        let former = self.get(key)?.clone();
        let hash = self.hash(key);
        let leaf = self.leaf_mut(hash);
        *leaf = leaf.iter().filter(|slot| *slot.key != *key).cloned().collect();
        self.len -= 1;
        Some(former)
    }

    /// All values, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.root.iter().flat_map(|branch| branch.iter()).flat_map(|leaf| leaf.iter()).map(|slot| &slot.value)
    }

    /// The leaf of this hash, in a branch that no other map shares.
    fn leaf_mut(&mut self, hash: u64) -> &mut Leaf<V> {
        let (branch, leaf) = position(hash);
        &mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[branch])[leaf]
    }

    fn hash(&self, key: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.finish()
    }
}

/// Which branch of the root and which leaf of that branch a hash belongs to.
fn position(hash: u64) -> (usize, usize) {
    let index = |bits: u64| usize::try_from(bits).unwrap_or_default() % FANOUT;
    (index(hash >> (64 - FANOUT_BITS)), index(hash >> (64 - 2 * FANOUT_BITS)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_any_map_and_copies_do_not_change(
            steps in prop::collection::vec((0_u16..300, any::<Option<u8>>()), 0..400),
            copy_at in 0_usize..400,
        ) {
            let mut map = ShardedMap::default();
            let mut expected = BTreeMap::new();
            let mut copies = None;
            for (i, (key, value)) in steps.into_iter().enumerate() {
                if i == copy_at {
                    copies = Some((map.clone(), expected.clone()));
                }
                let key = key.to_string();
                let (former, expected_former) = match value {
                    Some(value) => (map.insert(&key, value), expected.insert(key, value)),
                    None => (map.remove(&key), expected.remove(&key)),
                };
                prop_assert_eq!(former, expected_former);
            }
            for (map, expected) in copies.iter().chain([&(map, expected)]) {
                prop_assert_eq!(map.len(), expected.len());
                let mut values: Vec<u8> = map.values().copied().collect();
                let mut expected_values: Vec<u8> = expected.values().copied().collect();
                values.sort_unstable();
                expected_values.sort_unstable();
                prop_assert_eq!(values, expected_values);
                for key in 0..300 {
                    let key = key.to_string();
                    prop_assert_eq!(map.get(&key), expected.get(&key));
                }
            }
        }
    }

    #[test]
    fn a_changed_copy_shares_all_other_branches_and_leaves() {
        let mut original = ShardedMap::default();
        for i in 0..10_000 {
            original.insert(&format!("tenant-{i}"), i);
        }
        let mut changed = original.clone();
        changed.insert("tenant-5000", 0);
        let branches = original.root.iter().zip(changed.root.iter());
        let copied: Vec<_> = branches.filter(|(a, b)| !Arc::ptr_eq(a, b)).collect();
        assert_eq!(copied.len(), 1);
        let leaves = copied[0].0.iter().zip(copied[0].1.iter());
        assert_eq!(leaves.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
    }

    #[test]
    fn keys_spread_over_the_leaves() {
        let mut map = ShardedMap::default();
        for i in 0..100_000 {
            map.insert(&format!("tenant-{i:06}.example.com"), ());
        }
        let longest = map.root.iter().flat_map(|branch| branch.iter()).map(|leaf| leaf.len()).max();
        assert!(longest.is_some_and(|len| len < 32), "a leaf holds {longest:?} of 100,000 keys, 6 are expected");
    }
}
