//! Time of a request's way through the policies, and through the whole gateway over loopback:
//! `cargo bench -p seiketsu-benches --bench request`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use seiketsu_benches::{
    gateway::Running,
    policies::{CLIENT, Chain, request, response},
};

fn policy_chain(criterion: &mut Criterion) {
    let (chain, request) = (Chain::compile(), request());
    criterion.bench_function("policy_chain", |bencher| {
        bencher.iter_batched(
            response,
            |mut response| {
                black_box(chain.pass(CLIENT, &request, &mut response));
                response
            },
            BatchSize::SmallInput,
        );
    });
}

fn request_path(criterion: &mut Criterion) {
    let mut running = Running::start();
    criterion.bench_function("request_path", |bencher| bencher.iter(|| running.exchange()));
}

criterion_group!(benches, policy_chain, request_path);
criterion_main!(benches);
