//! Hosts that several tenants ask for. The control plane sees to it that there are none; a node believes what it sees.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use seiketsu_config::values::{HostPattern, Id};

use crate::tenancy::{Snapshot, TenantEntry};

/// A tenant that is to be put in force.
pub(super) trait Claimant<T> {
    fn entry(&self) -> &TenantEntry<T>;
    /// The revision that the tenant was last changed in.
    fn revision(&self) -> u64;
}

/// Takes those out who ask for a host that another has, until there is none left; gives what is wrong with them.
///
/// What is in force and stays comes first, then the older document: so all nodes decide alike. Whoever is taken out
/// keeps the hosts it had, which another may have hoped for.
pub(super) fn take_out<T, C: Claimant<T>>(
    ready: &mut BTreeMap<Id, C>,
    gone: &BTreeSet<Id>,
    snapshot: &Snapshot<T>,
) -> BTreeMap<Id, Vec<String>> {
    let mut refused: BTreeMap<Id, Vec<String>> = BTreeMap::new();
    loop {
        let found = find(ready, gone, snapshot);
        if found.is_empty() {
            return refused;
        }
        ready.retain(|id, _| !found.contains_key(id));
        refused.extend(found);
    }
}

fn find<T, C: Claimant<T>>(
    ready: &BTreeMap<Id, C>,
    gone: &BTreeSet<Id>,
    snapshot: &Snapshot<T>,
) -> BTreeMap<Id, Vec<String>> {
    let mut by_age: Vec<&C> = ready.values().collect();
    by_age.sort_by_key(|claimant| claimant.revision());
    let stays = |holder: &Id, host: &HostPattern| match ready.get(holder) {
        Some(next) => next.entry().hosts().any(|kept| kept == host),
        None => !gone.contains(holder),
    };
    let mut taken: HashMap<&HostPattern, &Id> = HashMap::new();
    let mut found: BTreeMap<Id, Vec<String>> = BTreeMap::new();
    for claimant in by_age {
        let (id, mut claimed) = (claimant.entry().id(), HashSet::new());
        for host in claimant.entry().hosts() {
            let in_force = snapshot.holder(host).map(|holder| holder.id()).filter(|holder| *holder != id);
            let holder = in_force.filter(|holder| stays(holder, host)).or_else(|| taken.get(host).copied());
            match holder {
                Some(holder) => {
                    let error = format!(
                        "tenant {id}: the host {host} is served by the tenant {holder} already\n    fix: a host belongs to one tenant: remove it from one of them"
                    );
                    found.entry(id.clone()).or_default().push(error);
                }
                None => {
                    claimed.insert(host);
                }
            }
        }
        // What is taken out takes nothing from others.
        if !found.contains_key(id) {
            taken.extend(claimed.into_iter().map(|host| (host, id)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::tenancy::{Change, snapshot::ContentHash};

    struct Put(u64, Arc<TenantEntry<()>>);

    impl Claimant<()> for Put {
        fn entry(&self) -> &TenantEntry<()> {
            &self.1
        }

        fn revision(&self) -> u64 {
            self.0
        }
    }

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn put(tenant: &str, revision: u64, hosts: &[&str]) -> (Id, Put) {
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| format!("{host}.example").parse().unwrap()).collect();
        (id(tenant), Put(revision, TenantEntry::new(id(tenant), hosts, ContentHash::of(b""), ())))
    }

    fn snapshot(tenants: Vec<(Id, Put)>) -> Snapshot<()> {
        Snapshot::empty().with_changes(1, tenants.into_iter().map(|(_, put)| Change::Put(put.1))).unwrap()
    }

    fn refused(ready: Vec<(Id, Put)>, gone: &[&str], snapshot: &Snapshot<()>) -> Vec<String> {
        let mut ready = ready.into_iter().collect();
        let refused = take_out(&mut ready, &gone.iter().map(|tenant| id(tenant)).collect(), snapshot);
        refused.into_keys().map(|id| id.to_string()).collect()
    }

    #[test]
    fn what_is_in_force_and_stays_comes_first_then_the_older() {
        let in_force = snapshot(vec![put("a", 1, &["x"]), put("b", 1, &["y"])]);
        assert_eq!(refused(vec![put("c", 2, &["x"])], &[], &in_force), ["c"]);
        assert_eq!(refused(vec![put("c", 2, &["x"])], &["a"], &in_force), [""; 0]);
        assert_eq!(refused(vec![put("c", 2, &["x"]), put("a", 3, &["z"])], &[], &in_force), [""; 0]);
        assert_eq!(refused(vec![put("c", 2, &["x"]), put("a", 3, &["z", "x"])], &[], &in_force), ["c"]);
        assert_eq!(refused(vec![put("c", 5, &["n"]), put("d", 4, &["n"])], &[], &in_force), ["c"]);
        // Hosts are exchanged.
        assert_eq!(refused(vec![put("a", 2, &["y"]), put("b", 2, &["x"])], &[], &in_force), [""; 0]);
        // `a` gets nothing, so that `x` stays with it, and `c` gets nothing either.
        assert_eq!(refused(vec![put("a", 2, &["y"]), put("c", 2, &["x"])], &[], &in_force), ["a", "c"]);
    }

    proptest! {
        #[test]
        fn what_is_left_can_be_put_in_force(
            before in prop::collection::btree_map("[a-e]", prop::collection::btree_set("[u-z]", 0..3), 0..5),
            ready in prop::collection::btree_map("[a-e]", (1..4_u64, prop::collection::btree_set("[u-z]", 0..3)), 0..5),
            gone in prop::collection::btree_set("[a-e]", 0..3),
        ) {
            let mut taken = BTreeSet::new();
            let before = before.iter().map(|(id, hosts)| {
                let hosts: Vec<&str> = hosts.iter().filter(|host| taken.insert((*host).clone())).map(String::as_str).collect();
                put(id, 1, &hosts)
            });
            let snapshot = snapshot(before.collect());
            let gone: BTreeSet<Id> = gone.iter().filter(|tenant| !ready.contains_key(*tenant)).map(|tenant| id(tenant)).collect();
            let mut ready: BTreeMap<Id, Put> = ready.iter().map(|(id, (revision, hosts))| {
                put(id, *revision, &hosts.iter().map(String::as_str).collect::<Vec<_>>())
            }).collect();
            take_out(&mut ready, &gone, &snapshot);
            let removals = gone.into_iter().map(Change::Remove);
            prop_assert!(snapshot.with_changes(2, removals.chain(ready.into_values().map(|put| Change::Put(put.1)))).is_ok());
        }
    }
}
