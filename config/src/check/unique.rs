//! Ids and hosts that belong to one tenant only.

use std::collections::{HashMap, hash_map::Entry};

use super::{Problem, Rule};
use crate::{
    path::At,
    tenant::Tenant,
    values::{HostPattern, Id},
};

/// A tenant, and where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) file: usize,
    pub(crate) index: usize,
    pub(crate) tenant: &'a Tenant,
}

/// The tenants whose id, and those that have a host, that a tenant before them has already.
///
/// Patterns are compared as they are written: `api.example.com` may belong to another tenant than
/// `*.example.com`, since the exact name is looked up first.
pub(crate) fn duplicates<'a>(
    members: impl Iterator<Item = Member<'a>>,
    place: impl Fn(Member<'a>) -> String,
) -> Vec<(Member<'a>, Problem)> {
    let expected = members.size_hint().0;
    let mut ids: HashMap<&Id, Member<'a>> = HashMap::with_capacity(expected);
    let mut hosts: HashMap<&HostPattern, &Tenant> = HashMap::with_capacity(expected);
    let mut found = Vec::new();
    let tenants = At::ROOT.key("tenants");
    for member in members {
        let tenant = member.tenant;
        let at = tenants.index(member.index);
        match ids.entry(&tenant.id) {
            Entry::Vacant(free) => {
                free.insert(member);
            }
            Entry::Occupied(first) => {
                let rule = Rule::DuplicateTenant { id: tenant.id.clone(), first: place(*first.get()) };
                let path = at.key("id").to_path();
                found.push((member, Problem { path, value: Some(tenant.id.to_string()), rule }));
            }
        }
        let at = at.key("hosts");
        for (index, host) in tenant.hosts.iter().enumerate() {
            match hosts.entry(host) {
                Entry::Vacant(free) => {
                    free.insert(tenant);
                }
                // Twice in one tenant is found with the tenant itself.
                Entry::Occupied(first) if std::ptr::eq(*first.get(), tenant) => {}
                Entry::Occupied(first) => {
                    let rule = Rule::DuplicateHost { host: host.clone(), tenant: first.get().id.clone() };
                    found.push((
                        member,
                        Problem { path: at.index(index).to_path(), value: Some(host.to_string()), rule },
                    ));
                }
            }
        }
    }
    found
}
