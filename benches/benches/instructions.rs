//! Instruction counts of what must not become slower, and their limits: what `baseline.json` says and
//! five per cent. `script/bench-instructions` runs them, and with `--update` writes the baseline anew.

// The macros write paths in full.
#![allow(unused_qualifications)]

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use gungraun::{
    Callgrind, EntryPoint, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use http::HeaderMap;
use pingora_http::RequestHeader;
use seiketsu_benches::{
    gateway::Running,
    policies::{CLIENT, Chain, request, response},
    tenancy::{Hosts, TARGETS, match_route, snapshot, tenant},
};
use seiketsu_gateway::tenancy::{Change, Router, Snapshot, TenantEntry, path::normalise, snapshot::HostConflict};

/// Fails the run when the benchmark takes five per cent more instructions than the baseline says under
/// its function and id, or is missing there.
fn limit(name: &str) -> LibraryBenchmarkConfig {
    with_limit(name, EntryPoint::Default)
}

/// Everything that the process does is counted, in all threads, origin and client included: those are a
/// few hundred instructions a request, and starting up is a small part of the whole.
fn limit_of_process(name: &str) -> LibraryBenchmarkConfig {
    with_limit(name, EntryPoint::None)
}

fn with_limit(name: &str, counted: EntryPoint) -> LibraryBenchmarkConfig {
    let baseline: BTreeMap<String, u64> =
        serde_json::from_str(include_str!("../baseline.json")).unwrap_or_else(|error| panic!("baseline.json: {error}"));
    let instructions = baseline.get(name).copied().unwrap_or_default();
    let mut callgrind = Callgrind::default();
    callgrind.entry_point(counted).hard_limits([(EventKind::Ir, instructions + instructions / 20)]);
    LibraryBenchmarkConfig::default().tool(callgrind).clone()
}

#[library_benchmark]
#[bench::normal(args = ("/v1/orders/2026-000042/items?expand=plan"), config = limit("normalise_path normal"))]
#[bench::escapes(args = ("/v1/users/caf%C3%A9%20bar/items"), config = limit("normalise_path escapes"))]
#[bench::rewritten(args = ("/v1//orders/./x/../%7e2026|000042/items"), config = limit("normalise_path rewritten"))]
fn normalise_path(target: &str) -> bool {
    black_box(normalise(black_box(target.as_bytes()))).is_ok()
}

/// A hundred requests to as many tenants: one would show how its host happens to lie in the table.
struct Requests {
    snapshot: Snapshot<Router>,
    hosts: Hosts,
    headers: HeaderMap,
}

fn requests(tenants: usize) -> Requests {
    Requests { snapshot: snapshot(tenants), hosts: Hosts::all(tenants), headers: HeaderMap::new() }
}

#[library_benchmark]
#[bench::of_10_tenants(args = (10), setup = requests, config = limit("match_100_routes of_10_tenants"))]
#[bench::of_10_000_tenants(args = (10_000), setup = requests, config = limit("match_100_routes of_10_000_tenants"))]
fn match_100_routes(mut requests: Requests) -> Requests {
    for target in TARGETS.into_iter().cycle().take(100) {
        let host = requests.hosts.next_host();
        black_box(match_route(&requests.snapshot, host, target, &requests.headers));
    }
    requests
}

/// A hundred replacements, of different tenants: what one costs depends on how the others lie in the table.
fn replacements(tenants: usize) -> (Snapshot<Router>, Vec<Arc<TenantEntry<Router>>>) {
    (snapshot(tenants), (0..100).map(|nth| tenant(nth * (tenants / 100))).collect())
}

type Replaced = (Snapshot<Router>, Vec<Result<Snapshot<Router>, Vec<HostConflict>>>);

#[library_benchmark]
#[bench::of_10_000(args = (10_000), setup = replacements, config = limit("replace_100_tenants of_10_000"))]
fn replace_100_tenants((snapshot, tenants): (Snapshot<Router>, Vec<Arc<TenantEntry<Router>>>)) -> Replaced {
    let next = tenants.into_iter().map(|tenant| snapshot.with_changes(2, [Change::Put(tenant)])).collect();
    (snapshot, next)
}

fn exchange() -> (Chain, RequestHeader, HeaderMap) {
    (Chain::compile(), request(), response())
}

#[library_benchmark]
#[bench::of_a_browser(setup = exchange, args = (), config = limit("policy_chain of_a_browser"))]
fn policy_chain((chain, request, mut response): (Chain, RequestHeader, HeaderMap)) -> HeaderMap {
    black_box(chain.pass(CLIENT, &request, &mut response));
    response
}

#[library_benchmark]
#[bench::of_5_000(args = (5_000), config = limit_of_process("request_path of_5_000"))]
fn request_path(requests: usize) -> bool {
    let mut running = Running::start();
    (0..requests).all(|_| running.exchange())
}

library_benchmark_group!(name = tenancy, benchmarks = [normalise_path, match_100_routes, replace_100_tenants]);
library_benchmark_group!(name = request_way, benchmarks = [policy_chain, request_path]);

main!(library_benchmark_groups = tenancy, request_way);
