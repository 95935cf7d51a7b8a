//! All tenants of one configuration revision, as one immutable value.
//!
//! A snapshot is never changed: [`Snapshot::with_changes`] makes the next one, which shares everything
//! but the changed tenants and a few kilobytes of tables with the one before.

use std::{fmt, sync::Arc};

use seiketsu_config::values::{HostPattern, Id};
use sha2::{Digest, Sha256};

use super::{
    hosts::{self, HostBuffer, HostError, HostTable},
    shards::ShardedMap,
};

/// The tenants of one revision. `T` is what a tenant was compiled into.
#[derive(Debug)]
pub struct Snapshot<T> {
    revision: u64,
    tenants: ShardedMap<Arc<TenantEntry<T>>>,
    hosts: HostTable<Arc<TenantEntry<T>>>,
}

/// One tenant of a snapshot.
#[derive(Debug)]
pub struct TenantEntry<T> {
    id: Id,
    /// Sorted, without duplicates.
    hosts: Box<[HostPattern]>,
    content_hash: ContentHash,
    compiled: T,
}

/// One tenant's part of a change of configuration.
#[derive(Debug)]
pub enum Change<T> {
    /// Add the tenant, or replace the one of the same id.
    Put(Arc<TenantEntry<T>>),
    /// Take it out; nothing happens if there is none of this id.
    Remove(Id),
}

/// Two tenants want the same host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the host {host} of tenant {claimant} belongs to tenant {holder}: take it out of one of them")]
pub struct HostConflict {
    pub host: HostPattern,
    pub holder: Id,
    /// The tenant of the change that has to give way.
    pub claimant: Id,
}

impl<T> Snapshot<T> {
    /// A snapshot without tenants, of revision 0.
    pub fn empty() -> Self {
        Self { revision: 0, tenants: ShardedMap::default(), hosts: HostTable::default() }
    }

    /// The number of the configuration that this snapshot was made from.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The tenant of a raw `Host` or `:authority` value.
    pub fn find(&self, raw_host: &[u8]) -> Result<Option<&Arc<TenantEntry<T>>>, HostError> {
        Ok(self.find_normalised(hosts::normalise(raw_host, &mut HostBuffer::default())?))
    }

    /// The tenant of a host as [`hosts::normalise`] returns it.
    pub fn find_normalised(&self, host: &str) -> Option<&Arc<TenantEntry<T>>> {
        self.hosts.find(host)
    }

    /// The tenant of a host as [`hosts::normalise`] returns it, and those that it would belong to if that one had it not, the closest first.
    pub(crate) fn matches<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Arc<TenantEntry<T>>> {
        self.hosts.matches(host)
    }

    /// The tenant that has this very pattern.
    pub fn holder(&self, pattern: &HostPattern) -> Option<&Arc<TenantEntry<T>>> {
        self.hosts.get(pattern)
    }

    /// The tenant of this id.
    pub fn tenant(&self, id: &str) -> Option<&Arc<TenantEntry<T>>> {
        self.tenants.get(id)
    }

    /// All tenants, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<TenantEntry<T>>> {
        self.tenants.values()
    }

    pub fn tenant_count(&self) -> usize {
        self.tenants.len()
    }

    /// The next snapshot, with all of `changes` or none: a host may move from one changed tenant to
    /// another. Of several changes to one tenant the last holds.
    ///
    /// Costs some microseconds for each change, however many tenants there are.
    ///
    /// # Errors
    /// All the hosts that a changed tenant cannot have. Whoever wants to go on with the other changes
    /// leaves out those of the claimants and calls again, until there is no conflict: a tenant that was
    /// left out keeps its former state, and with it hosts that another may have hoped for.
    pub fn with_changes(
        &self,
        revision: u64,
        changes: impl IntoIterator<Item = Change<T>>,
    ) -> Result<Self, Vec<HostConflict>> {
        let mut next = Self { revision, tenants: self.tenants.clone(), hosts: self.hosts.clone() };
        let mut added: Vec<Arc<TenantEntry<T>>> = Vec::new();
        // First everything goes that is replaced, so that the order of changes does not matter.
        for change in changes {
            match change {
                Change::Put(tenant) => {
                    next.take_out(tenant.id.as_str());
                    next.tenants.insert(tenant.id.as_str(), Arc::clone(&tenant));
                    added.push(tenant);
                }
                Change::Remove(id) => next.take_out(id.as_str()),
            }
        }
        let mut conflicts = Vec::new();
        for tenant in added {
            let is_the_last_change = next.tenant(tenant.id.as_str()).is_some_and(|last| Arc::ptr_eq(last, &tenant));
            if is_the_last_change {
                next.claim_hosts(&tenant, &mut conflicts);
            }
        }
        if conflicts.is_empty() { Ok(next) } else { Err(conflicts) }
    }

    fn take_out(&mut self, id: &str) {
        let Some(former) = self.tenants.remove(id) else { return };
        for host in &former.hosts {
            // A tenant that was put by the same set of changes has no hosts yet.
            if self.hosts.get(host).is_some_and(|holder| Arc::ptr_eq(holder, &former)) {
                self.hosts.remove(host);
            }
        }
    }

    fn claim_hosts(&mut self, tenant: &Arc<TenantEntry<T>>, conflicts: &mut Vec<HostConflict>) {
        for host in &tenant.hosts {
            match self.hosts.get(host) {
                Some(holder) if holder.id != tenant.id => conflicts.push(HostConflict {
                    host: host.clone(),
                    holder: holder.id.clone(),
                    claimant: tenant.id.clone(),
                }),
                _ => {
                    self.hosts.insert(host, Arc::clone(tenant));
                }
            }
        }
    }
}

impl<T> TenantEntry<T> {
    /// Shared from the start: there may be a hundred thousand at once, and they are large.
    pub fn new(
        id: Id,
        hosts: impl IntoIterator<Item = HostPattern>,
        content_hash: ContentHash,
        compiled: T,
    ) -> Arc<Self> {
        let mut hosts: Vec<HostPattern> = hosts.into_iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        Arc::new(Self { id, hosts: hosts.into(), content_hash, compiled })
    }

    pub fn id(&self) -> &Id {
        &self.id
    }

    /// The hosts that the tenant is served under, sorted.
    pub fn hosts(&self) -> impl Iterator<Item = &HostPattern> {
        self.hosts.iter()
    }

    /// Of the configuration that the tenant was compiled from.
    pub fn content_hash(&self) -> ContentHash {
        self.content_hash
    }

    pub fn compiled(&self) -> &T {
        &self.compiled
    }
}

/// SHA-256 of a tenant's configuration: equal hashes, equal behaviour. With it a reload leaves
/// unchanged tenants as they are, and a node proves what it runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In hexadecimal.
impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn tenant(id: &str, hosts: &[&str]) -> Arc<TenantEntry<u32>> {
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        TenantEntry::new(id.parse().unwrap(), hosts, ContentHash::of(id.as_bytes()), 0)
    }

    fn put(id: &str, hosts: &[&str]) -> Change<u32> {
        Change::Put(tenant(id, hosts))
    }

    fn remove(id: &str) -> Change<u32> {
        Change::Remove(id.parse().unwrap())
    }

    fn owner<'a>(snapshot: &'a Snapshot<u32>, host: &str) -> Option<&'a str> {
        snapshot.find(host.as_bytes()).unwrap().map(|tenant| tenant.id().as_str())
    }

    #[test]
    fn a_change_shows_in_the_next_snapshot_only() {
        let first = Snapshot::empty().with_changes(1, [put("acme", &["acme.example", "*.acme.example"])]).unwrap();
        let second =
            first.with_changes(2, [put("acme", &["acme.example"]), put("globex", &["globex.example"])]).unwrap();
        assert_eq!((first.revision(), second.revision()), (1, 2));
        assert_eq!((first.tenant_count(), second.tenant_count()), (1, 2));
        assert_eq!(owner(&first, "ACME.example:443"), Some("acme"));
        assert_eq!(owner(&first, "x.acme.example"), Some("acme"));
        assert_eq!(owner(&first, "globex.example"), None);
        assert_eq!(owner(&second, "acme.example"), Some("acme"));
        assert_eq!(owner(&second, "x.acme.example"), None);
        assert_eq!(owner(&second, "globex.example"), Some("globex"));
    }

    #[test]
    fn an_unchanged_tenant_is_the_same_object_in_the_next_snapshot() {
        let first =
            Snapshot::empty().with_changes(1, [put("acme", &["a.example"]), put("globex", &["g.example"])]).unwrap();
        let second = first.with_changes(2, [put("globex", &["g.example"])]).unwrap();
        assert!(Arc::ptr_eq(first.tenant("acme").unwrap(), second.tenant("acme").unwrap()));
        assert!(!Arc::ptr_eq(first.tenant("globex").unwrap(), second.tenant("globex").unwrap()));
        assert!(Arc::ptr_eq(second.tenant("acme").unwrap(), second.find(b"a.example").unwrap().unwrap()));
    }

    #[test]
    fn a_host_of_two_tenants_is_refused_and_both_are_named() {
        let first = Snapshot::empty().with_changes(1, [put("acme", &["a.example", "*.example"])]).unwrap();
        let conflicts = first
            .with_changes(2, [put("globex", &["g.example", "a.example", "*.example"]), put("initech", &["g.example"])])
            .unwrap_err();
        let named: Vec<_> =
            conflicts.iter().map(|c| (c.host.to_string(), c.holder.as_str(), c.claimant.as_str())).collect();
        assert_eq!(
            named,
            [
                ("a.example".to_owned(), "acme", "globex"),
                ("*.example".to_owned(), "acme", "globex"),
                ("g.example".to_owned(), "globex", "initech"),
            ]
        );
        assert_eq!(
            conflicts[0].to_string(),
            "the host a.example of tenant globex belongs to tenant acme: take it out of one of them"
        );
        assert_eq!(owner(&first, "a.example"), Some("acme"));
    }

    #[test]
    fn an_exact_host_and_a_wildcard_above_it_may_belong_to_different_tenants() {
        let snapshot =
            Snapshot::empty().with_changes(1, [put("acme", &["a.example"]), put("globex", &["*.example"])]).unwrap();
        assert_eq!(owner(&snapshot, "a.example"), Some("acme"));
        assert_eq!(owner(&snapshot, "b.example"), Some("globex"));
    }

    #[test]
    fn two_ways_of_writing_one_ipv6_host_are_one_host() {
        let conflicts = Snapshot::empty()
            .with_changes(1, [put("acme", &["[::1]", "[0::1]"]), put("globex", &["[0:0::1]"])])
            .unwrap_err();
        assert_eq!(conflicts.len(), 1);
    }

    #[test]
    fn hosts_move_between_tenants_in_one_change_whatever_the_order() {
        let first =
            Snapshot::empty().with_changes(1, [put("acme", &["a.example"]), put("globex", &["g.example"])]).unwrap();
        for changes in [
            [put("acme", &["g.example"]), put("globex", &["a.example"])],
            [put("globex", &["a.example"]), put("acme", &["g.example"])],
        ] {
            let next = first.with_changes(2, changes).unwrap();
            assert_eq!(owner(&next, "a.example"), Some("globex"));
            assert_eq!(owner(&next, "g.example"), Some("acme"));
        }
        let next = first.with_changes(2, [put("initech", &["a.example"]), remove("acme")]).unwrap();
        assert_eq!(owner(&next, "a.example"), Some("initech"));
        assert!(next.tenant("acme").is_none());
    }

    #[test]
    fn of_several_changes_to_one_tenant_the_last_holds() {
        let changes = [put("acme", &["old.example"]), put("acme", &["new.example"]), remove("globex")];
        let next = Snapshot::empty().with_changes(1, changes).unwrap();
        assert_eq!(owner(&next, "old.example"), None);
        assert_eq!(owner(&next, "new.example"), Some("acme"));
        assert_eq!(next.tenant_count(), 1);
        let gone = next.with_changes(2, [put("acme", &["x.example"]), remove("acme")]).unwrap();
        assert_eq!((gone.tenant_count(), owner(&gone, "x.example"), owner(&gone, "new.example")), (0, None, None));
    }

    #[test]
    fn a_wrong_host_is_an_error_and_not_an_unknown_tenant() {
        let snapshot = Snapshot::<u32>::empty();
        assert_eq!(snapshot.find(b"a@b").map(|_| ()), Err(HostError::UserInfo));
        assert!(snapshot.find(b"unknown.example").unwrap().is_none());
    }

    #[test]
    fn equal_configurations_have_equal_hashes() {
        assert_eq!(ContentHash::of(b"a"), ContentHash::of(b"a"));
        assert_ne!(ContentHash::of(b"a"), ContentHash::of(b"b"));
        assert_eq!(
            ContentHash::of(b"").to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    proptest! {
        /// The reference: a plain map from tenant to hosts, changed by plain replacing.
        #[test]
        fn any_sequence_of_changes_gives_what_a_plain_map_gives(
            rounds in prop::collection::vec(
                prop::collection::vec(
                    ("[a-e]", prop::option::of(prop::collection::btree_set("(\\*\\.)?[xyz]\\.(e|f)", 0..4))),
                    1..4,
                ),
                0..8,
            ),
        ) {
            let mut snapshot = Snapshot::empty();
            let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (revision, changes) in rounds.into_iter().enumerate() {
                let mut attempt = expected.clone();
                for (id, hosts) in &changes {
                    match hosts {
                        Some(hosts) => attempt.insert(id.clone(), hosts.clone()),
                        None => attempt.remove(id),
                    };
                }
                let all: Vec<_> = attempt.values().flatten().collect();
                let is_unique = all.len() == all.iter().collect::<BTreeSet<_>>().len();
                let changes = changes.iter().map(|(id, hosts)| match hosts {
                    Some(hosts) => put(id, &hosts.iter().map(String::as_str).collect::<Vec<_>>()),
                    None => remove(id),
                });
                match snapshot.with_changes(revision as u64, changes) {
                    Ok(next) => {
                        prop_assert!(is_unique);
                        (snapshot, expected) = (next, attempt);
                    }
                    Err(conflicts) => {
                        prop_assert!(!is_unique);
                        prop_assert!(!conflicts.is_empty());
                    }
                }
                prop_assert_eq!(snapshot.tenant_count(), expected.len());
                for (id, hosts) in &expected {
                    let entry = snapshot.tenant(id).unwrap();
                    prop_assert_eq!(&entry.hosts().map(ToString::to_string).collect::<BTreeSet<_>>(), hosts);
                    for host in hosts {
                        prop_assert_eq!(owner(&snapshot, &host.replace('*', "never-exact")), Some(id.as_str()));
                    }
                }
                let hosts: BTreeSet<_> = expected.values().flatten().collect();
                for host in ["x.e", "y.e", "z.e", "x.f", "y.f", "z.f"] {
                    prop_assert_eq!(owner(&snapshot, host).is_some(), hosts.contains(&host.to_owned()));
                }
            }
        }
    }
}
