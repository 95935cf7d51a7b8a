//! What is known of a tenant only beside others: ids and hosts that belong to one of them, limits that it had before.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    sync::Arc,
};

use super::{Problem, Rule};
use crate::{
    error::{Cause, ConfigError, Position},
    load::ParsedTenants,
    path::At,
    tenant::Tenant,
    values::{HostPattern, Id},
};

/// The tenants of a file whose id, and those that have a host, that a tenant before them has already.
/// `place` says where the tenant of a number stands.
///
/// Patterns are compared as they are written: `api.example.com` may belong to another tenant than
/// `*.example.com`, since the exact name is looked up first.
pub(crate) fn duplicates(tenants: &[Arc<Tenant>], place: impl Fn(usize) -> String) -> Vec<Problem> {
    let mut ids: HashMap<&Id, usize> = HashMap::with_capacity(tenants.len());
    let mut hosts: HashMap<&HostPattern, usize> = HashMap::with_capacity(tenants.len());
    let mut found = Vec::new();
    for (number, tenant) in tenants.iter().enumerate() {
        match ids.entry(&tenant.id) {
            Entry::Vacant(free) => {
                free.insert(number);
            }
            Entry::Occupied(first) => found.push(duplicate_id(number, tenant, place(*first.get()))),
        }
        for (index, host) in tenant.hosts.iter().enumerate() {
            match hosts.entry(host) {
                Entry::Vacant(free) => {
                    free.insert(number);
                }
                // Twice in one tenant is found with the tenant itself.
                Entry::Occupied(first) if *first.get() == number => {}
                Entry::Occupied(first) => {
                    found.push(duplicate_host(number, index, host, &tenants[*first.get()].id));
                }
            }
        }
    }
    found
}

fn duplicate_id(number: usize, tenant: &Tenant, first: String) -> Problem {
    let rule = Rule::DuplicateTenant { id: tenant.id.clone(), first };
    let path = At::ROOT.key("tenants").index(number).key("id").to_path();
    Problem { path, value: Some(tenant.id.to_string()), rule }
}

fn duplicate_host(number: usize, index: usize, host: &HostPattern, holder: &Id) -> Problem {
    let rule = Rule::DuplicateHost { host: host.clone(), tenant: holder.clone() };
    let path = At::ROOT.key("tenants").index(number).key("hosts").index(index).to_path();
    Problem { path, value: Some(host.to_string()), rule }
}

/// One of the tenants of a file.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    pub file: &'a ParsedTenants,
    pub number: usize,
}

impl Member<'_> {
    /// The tenant has the id of one that stands in another file, or in another line of this one.
    pub fn has_id_of(self, file: &Path, line: u32) -> ConfigError {
        let tenant = &self.file.tenants()[self.number];
        self.error(duplicate_id(self.number, tenant, format!("{}:{line}", file.display())))
    }

    /// The host of this number belongs to another tenant already.
    pub fn has_host_of(self, host: usize, holder: &Id) -> ConfigError {
        let tenant = &self.file.tenants()[self.number];
        self.error(duplicate_host(self.number, host, &tenant.hosts[host], holder))
    }

    /// The tenant's limits differ from those in force, which are of a higher revision than its file.
    pub fn has_limits_below(self, in_force: u64) -> ConfigError {
        let rule = Rule::LowerRevision { in_force, revision: self.file.head().revision };
        let path = At::ROOT.key("tenants").index(self.number).to_path();
        self.error(Problem { path, value: None, rule })
    }

    fn error(self, problem: Problem) -> ConfigError {
        ConfigError {
            position: Some(Position { line: self.file.line(self.number), column: 1 }),
            path: problem.path,
            tenant: Some(self.file.tenants()[self.number].id.to_string()),
            value: problem.value,
            ..ConfigError::of_file(self.file.origin(), Cause::Rule(problem.rule))
        }
    }
}
