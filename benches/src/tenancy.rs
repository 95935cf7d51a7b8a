//! Tenants with the five routes that most have, and the way of a request through host, path and route.

use std::sync::Arc;

use http::{HeaderMap, Method};
use seiketsu_config::{
    tenant::RouteMatch,
    values::{HostPattern, Id},
};
use seiketsu_gateway::tenancy::{
    Change, Router, Snapshot, TenantEntry,
    path::normalise,
    router::{Outcome, RouteRequest},
    snapshot::ContentHash,
};

const ROUTES: [(&str, &[&str]); 5] = [
    ("/v1/users", &["GET", "POST"]),
    ("/v1/users/{id}", &["GET", "PATCH", "DELETE"]),
    ("/v1/orders/{id}/items", &["GET"]),
    ("/v1/recordings/{*path}", &["GET"]),
    ("/{*rest}", &[]),
];

/// Targets that take each of the routes, with and without a query.
pub const TARGETS: [&str; 6] = [
    "/v1/users",
    "/v1/users/4711",
    "/v1/users/4711?expand=plan",
    "/v1/orders/2026-000042/items",
    "/v1/recordings/2026/11/23/call-4711.opus",
    "/healthz",
];

/// A snapshot of this many tenants.
pub fn snapshot(tenants: usize) -> Snapshot<Router> {
    let changes = (0..tenants).map(|index| Change::Put(tenant(index)));
    Snapshot::empty().with_changes(1, changes).unwrap_or_else(|conflicts| panic!("{conflicts:?}"))
}

/// One of these tenants, compiled anew.
pub fn tenant(index: usize) -> Arc<TenantEntry<Router>> {
    let routes: Vec<RouteMatch> = ROUTES.into_iter().map(|(path, methods)| route(path, methods)).collect();
    let id: Id = parse(&format!("tenant-{index:06}"));
    let host: HostPattern = parse(&host(index));
    TenantEntry::new(id, [host], ContentHash::of(&index.to_be_bytes()), Router::new(&routes))
}

fn host(index: usize) -> String {
    format!("tenant-{index:06}.example.com")
}

fn route(path: &str, methods: &[&str]) -> RouteMatch {
    RouteMatch {
        path: parse(path),
        methods: methods.iter().map(|method| parse(method)).collect(),
        versions: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error:?}"))
}

/// Hosts in an order that no cache can guess, the same in each run; side by side in memory, so that
/// reading them costs next to nothing itself.
#[derive(Debug, Clone)]
pub struct Hosts {
    text: Vec<u8>,
    host_len: usize,
    next: usize,
}

impl Hosts {
    /// Every host of a snapshot of this many tenants, once in each round.
    pub fn all(tenants: usize) -> Self {
        let mut order: Vec<usize> = (0..tenants).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut order);
        let text: Vec<u8> = order.into_iter().flat_map(|index| host(index).into_bytes()).collect();
        Self { host_len: text.len() / tenants, text, next: 0 }
    }

    /// One and the same host.
    pub fn one(index: usize) -> Self {
        let text = host(index).into_bytes();
        Self { host_len: text.len(), text, next: 0 }
    }

    pub fn next_host(&mut self) -> &[u8] {
        if self.next == self.text.len() {
            self.next = 0;
        }
        let start = self.next;
        self.next += self.host_len;
        &self.text[start..self.next]
    }
}

/// Finds tenant and route of a request, as the proxy does.
pub fn match_route(snapshot: &Snapshot<Router>, host: &[u8], target: &str, headers: &HeaderMap) -> Option<usize> {
    let tenant = snapshot.find(host).ok()??;
    let path = normalise(target.as_bytes()).ok()?;
    let request =
        RouteRequest { method: &Method::GET, path: path.as_str(), query: path.query(), headers, version: None };
    match tenant.compiled().find(&request) {
        Outcome::Route(index) => Some(index),
        Outcome::MethodNotAllowed(_) | Outcome::NotFound => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_takes_its_route_for_every_host() {
        let snapshot = snapshot(10);
        let mut hosts = Hosts::all(10);
        for _ in 0..20 {
            let host = hosts.next_host();
            let taken = TARGETS.map(|target| match_route(&snapshot, host, target, &HeaderMap::new()));
            assert_eq!(taken, [0, 1, 1, 2, 3, 4].map(Some));
        }
    }
}
