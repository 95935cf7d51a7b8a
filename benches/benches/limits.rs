//! What limits cost: `cargo bench -p seiketsu-benches --bench limits`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use seiketsu_benches::limits::Tenants;

/// The one that the gateway itself has.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TENANTS: usize = 100_000;

/// A decision over four limits: of a tenant that is always the same, and of any of 100,000.
fn decide_over_four_limits(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let before = resident_bytes();
    let tenants = Tenants::idle(TENANTS, runtime.handle());
    // Not a time, but it belongs here: bound 1 KiB.
    #[allow(clippy::print_stdout)]
    {
        println!("an idle tenant with four limits: {} bytes", (resident_bytes() - before) / TENANTS);
    }
    tenants.warm();
    let mut group = criterion.benchmark_group("decide_over_four_limits");
    let now = tenants.now();
    group.bench_function("hot tenant", |bencher| bencher.iter(|| tenants.decide(black_box(TENANTS / 2), now)));
    let mut next = 0;
    group.bench_function("random tenant of 100000", |bencher| {
        bencher.iter(|| {
            next = if next + 1 == TENANTS { 0 } else { next + 1 };
            tenants.decide(next, now)
        });
    });
    group.bench_function("reading the clock, which is not part of it", |bencher| bencher.iter(|| tenants.now()));
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096
}

criterion_group!(benches, decide_over_four_limits);
criterion_main!(benches);
