//! Time of what every request and every configuration change goes through:
//! `cargo bench -p seiketsu-benches --bench tenancy`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use seiketsu_benches::tenancy::{Hosts, TARGETS, match_route, snapshot, tenant};
use seiketsu_gateway::tenancy::{Change, path::normalise};

/// Host, path and route of one request: a tenant that is always the same, and any tenant.
fn match_route_of_tenants(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match_route");
    for tenants in [10, 100_000] {
        let snapshot = snapshot(tenants);
        let headers = HeaderMap::new();
        for (name, mut hosts) in [("hot tenant", Hosts::one(tenants / 2)), ("random tenant", Hosts::all(tenants))] {
            let mut targets = TARGETS.into_iter().cycle();
            group.bench_function(format!("{name} of {tenants}"), |bencher| {
                bencher.iter(|| match_route(&snapshot, hosts.next_host(), targets.next().unwrap_or("/"), &headers));
            });
        }
    }
}

fn normalise_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("normalise_path");
    for (name, target) in [
        ("normal", "/v1/orders/2026-000042/items?expand=plan"),
        ("normal with escapes", "/v1/users/caf%C3%A9%20bar/items"),
        ("rewritten", "/v1//orders/./x/../%7e2026|000042/items"),
    ] {
        group.bench_function(name, |bencher| bencher.iter(|| normalise(black_box(target.as_bytes())).is_ok()));
    }
}

/// The next snapshot with one tenant replaced, compiled before; what is dropped later is not counted.
fn replace_one_tenant(criterion: &mut Criterion) {
    let snapshot = snapshot(100_000);
    criterion.bench_function("replace_one_tenant_of_100_000", |bencher| {
        bencher.iter_batched(
            || tenant(50_000),
            |tenant| snapshot.with_changes(2, [Change::Put(tenant)]),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, match_route_of_tenants, normalise_path, replace_one_tenant);
criterion_main!(benches);
