//! What several files may not both have: a tenant's id, a host. And what a file may not have after what is in
//! force: limits of a lower revision.
//!
//! The snapshot in force knows whose each of them is, so that only what has changed is looked at.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use seiketsu_config::{
    check::Member,
    error::{ConfigError, ConfigErrors},
    load,
    tenant::Tenant,
    values::{HostPattern, Id},
};

use super::compile::{Changes, Files};
use crate::tenancy::{Snapshot, compile::CompiledTenant};

/// Takes changes out that cannot go with the others or with what stays in force, until there is no such
/// left; gives what is wrong with them.
///
/// What is in force and unchanged comes first, then the files by name. A file that is taken out keeps its
/// former state, and with it ids and hosts that another may have hoped for.
pub(super) fn take_out(
    changes: &mut Changes,
    files: &Files,
    snapshot: &Snapshot<CompiledTenant>,
) -> BTreeMap<PathBuf, String> {
    let mut refused = below_those_in_force(changes, snapshot);
    loop {
        let found = Claims::of(changes, files, snapshot).find();
        if found.is_empty() {
            return refused;
        }
        for (path, errors) in found {
            changes.remove(&path);
            refused.insert(path, errors.to_string());
        }
    }
}

/// Takes files out whose tenants have limits that would not be held to, since those in force are of a higher
/// revision; gives what is wrong with them. A file that such a tenant was to leave for another keeps it.
fn below_those_in_force(changes: &mut Changes, snapshot: &Snapshot<CompiledTenant>) -> BTreeMap<PathBuf, String> {
    let (mut refused, mut stay) = (BTreeMap::new(), HashMap::new());
    for (path, change) in &*changes {
        let Some(next) = &change.next else { continue };
        let members = change.difference.put.iter().map(|number| Member { file: &next.parsed, number: *number });
        let errors: Vec<ConfigError> = members
            .zip(&change.entries)
            .filter_map(|(member, entry)| {
                let in_force = snapshot.tenant(entry.id().as_str())?.compiled().limits_since;
                let is_below = entry.compiled().limits_since.is_below(in_force);
                is_below.then(|| member.has_limits_below(in_force.revision))
            })
            .collect();
        if !errors.is_empty() {
            stay.extend(change.put().map(|tenant| (tenant.id.clone(), path.clone())));
            refused.insert(path.clone(), errors.into_iter().collect::<ConfigErrors>().to_string());
        }
    }
    changes.retain(|path, _| !refused.contains_key(path));
    if stay.is_empty() {
        return refused;
    }
    changes.retain(|path, change| {
        let put: HashSet<&Id> = change.put().map(|tenant| &tenant.id).collect();
        let mut left = change.difference.gone.iter().map(|tenant| &tenant.id).filter(|id| !put.contains(id));
        let Some((id, to)) = left.find_map(|id| stay.get_key_value(id)) else { return true };
        // One that is gone has nothing to put right.
        if change.next.is_some() {
            let error = format!("{}: the tenant {id} is to go to {}, which is refused", path.display(), to.display());
            refused.insert(path.clone(), error);
        }
        false
    });
    refused
}

/// What the changes claim and leave.
struct Claims<'a> {
    changes: &'a Changes,
    files: &'a Files,
    snapshot: &'a Snapshot<CompiledTenant>,
    left_ids: HashSet<&'a Id>,
    left_hosts: HashSet<&'a HostPattern>,
    ids: HashMap<&'a Id, Member<'a>>,
    hosts: HashMap<&'a HostPattern, &'a Tenant>,
}

impl<'a> Claims<'a> {
    fn of(changes: &'a Changes, files: &'a Files, snapshot: &'a Snapshot<CompiledTenant>) -> Self {
        let (mut left_ids, mut left_hosts) = (HashSet::new(), HashSet::new());
        for (path, change) in changes {
            let put: HashMap<&Id, &[HostPattern]> = change.put().map(|tenant| (&tenant.id, &*tenant.hosts)).collect();
            // A tenant that was left out when the node started has nothing to leave, and another may have it.
            let is_in_force = |gone: &Tenant| {
                let in_force = snapshot.tenant(gone.id.as_str());
                in_force.is_some_and(|in_force| *in_force.compiled().file == **path)
            };
            for gone in change.difference.gone.iter().filter(|gone| is_in_force(gone)) {
                let kept = put.get(&gone.id);
                if kept.is_none() {
                    left_ids.insert(&gone.id);
                }
                left_hosts.extend(gone.hosts.iter().filter(|host| !kept.is_some_and(|kept| kept.contains(host))));
            }
        }
        Self { changes, files, snapshot, left_ids, left_hosts, ids: HashMap::new(), hosts: HashMap::new() }
    }

    /// What is wrong with each file that claims what another has.
    fn find(mut self) -> Vec<(PathBuf, ConfigErrors)> {
        let mut found = Vec::new();
        for (path, change) in self.changes {
            let Some(next) = &change.next else { continue };
            let replaced: HashSet<&Id> = change.difference.gone.iter().map(|tenant| &tenant.id).collect();
            let members = || change.difference.put.iter().map(|number| Member { file: &next.parsed, number: *number });
            let mut errors = Vec::new();
            for member in members() {
                self.claim(member, &replaced, &mut errors);
            }
            if errors.is_empty() {
                continue;
            }
            // What it does not get is free for others.
            for member in members() {
                let tenant = &*member.file.tenants()[member.number];
                if self.ids.get(&tenant.id).is_some_and(|first| std::ptr::eq(first.file, member.file)) {
                    self.ids.remove(&tenant.id);
                }
                for host in &tenant.hosts {
                    if self.hosts.get(host).is_some_and(|holder| std::ptr::eq(*holder, tenant)) {
                        self.hosts.remove(host);
                    }
                }
            }
            // Within one file it can be said more precisely.
            let errors = load::clashes(&next.parsed).err().unwrap_or_else(|| errors.into_iter().collect());
            found.push((path.clone(), errors));
        }
        found
    }

    fn claim(&mut self, member: Member<'a>, replaced: &HashSet<&Id>, errors: &mut Vec<ConfigError>) {
        let tenant = &*member.file.tenants()[member.number];
        match self.first(&tenant.id, member, replaced) {
            Some((file, line)) => errors.push(member.has_id_of(file, line)),
            None => {
                self.ids.insert(&tenant.id, member);
            }
        }
        for (number, host) in tenant.hosts.iter().enumerate() {
            match self.holder(host, tenant) {
                Some(holder) => errors.push(member.has_host_of(number, holder)),
                None => {
                    self.hosts.insert(host, tenant);
                }
            }
        }
    }

    /// Where the tenant of this id stands already, other than as what `member` takes the place of.
    fn first(&self, id: &Id, member: Member<'_>, replaced: &HashSet<&Id>) -> Option<(&'a Path, u32)> {
        if let Some(first) = self.ids.get(id) {
            return Some((first.file.origin(), first.file.line(first.number)));
        }
        let in_force = self.snapshot.tenant(id.as_str()).filter(|_| !self.left_ids.contains(id))?;
        let file = &*in_force.compiled().file;
        if file == member.file.origin() && replaced.contains(id) {
            return None;
        }
        let parsed = self.files.get(file).map(|file| &file.parsed)?;
        let number = parsed.tenants().iter().position(|tenant| tenant.id == *id)?;
        Some((parsed.origin(), parsed.line(number)))
    }

    /// The tenant that has this host already.
    fn holder(&self, host: &HostPattern, claimant: &Tenant) -> Option<&'a Id> {
        if let Some(holder) = self.hosts.get(host) {
            return Some(&holder.id);
        }
        let in_force = self.snapshot.holder(host).filter(|_| !self.left_hosts.contains(host));
        in_force.map(|holder| holder.id()).filter(|id| **id != claimant.id)
    }
}
