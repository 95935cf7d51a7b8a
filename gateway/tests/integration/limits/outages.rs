//! Nodes without their Redis: what each tenant has chosen applies, and nobody waits for it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    Flood, REQUEST, flood, limited,
    nodes::{Redis, knows},
};
use crate::{
    fixtures::comes_true,
    support::{Client, Gateway, Origin, wait_for},
};

/// Twenty tokens a second, full in two seconds.
const RATE: &str = "rate: { requests: 1200, per: 1m, burst: 40 }";
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 40.0;

/// What two nodes admit together, both flooded for so long.
fn flood_both(nodes: &[Gateway], time: Duration) -> [Flood; 2] {
    std::thread::scope(|scope| {
        let floods = [&nodes[0], &nodes[1]].map(|gateway| scope.spawn(move || flood(gateway.http, time)));
        floods.map(|flood| flood.join().unwrap())
    })
}

/// For how long requests waited for limits at most.
fn longest_wait(gateway: &Gateway) -> f64 {
    let log = gateway.access_log();
    let waits = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["limit"]["wait_ms"].as_f64().unwrap_or_default()
    });
    waits.fold(0.0, f64::max)
}

struct Outage {
    redis: Redis,
    nodes: Vec<Gateway>,
    _origin: Origin,
}

/// Two nodes whose bucket is empty when their Redis dies.
fn outage(unreachable: &str) -> Outage {
    let origin = Origin::start("a");
    let mut redis = Redis::start();
    let nodes = redis.nodes(&limited(origin.address, &format!("{RATE}, unreachable: {unreachable}"), ""), 2);
    redis.let_buckets_fill(Duration::from_secs(2));
    let began = Instant::now();
    let before = flood_both(&nodes, Duration::from_secs(1));
    let passed = (before[0].passed + before[1].passed) as f64;
    let ideal = BURST + PER_SECOND * began.elapsed().as_secs_f64();
    assert!(passed <= ideal && passed >= BURST, "{passed} of {ideal} with Redis");
    redis.kill();
    Outage { redis, nodes, _origin: origin }
}

/// That no request waited for Redis longer than it may, leaving room for a machine that is busy.
fn assert_nobody_waits(outage: &Outage) {
    for gateway in &outage.nodes {
        let longest = longest_wait(gateway);
        assert!(longest < 100.0, "{longest} ms");
    }
}

/// Redis comes back without its data: at no time is more admitted than by one bucket, and after a while as much.
fn assert_exact_again(outage: &mut Outage) {
    outage.redis.start_again();
    let back = |gateway: &Gateway| knows(gateway, 2);
    assert!(comes_true(|| outage.nodes.iter().all(back)), "{}", outage.nodes[0].metrics());
    outage.redis.let_buckets_fill(Duration::ZERO);
    // The first who ask learn that it gives again.
    flood_both(&outage.nodes, Duration::from_millis(500));
    // Where all pass without Redis, a single answer that is late on a busy machine shows: until none is.
    let unbacked = || outage.nodes.iter().map(|node| node.metric("seiketsu_limit_unbacked_tokens_total")).sum::<f64>();
    let exact = wait_for(&|| {
        let (began, before) = (Instant::now(), unbacked());
        let after = flood_both(&outage.nodes, Duration::from_secs(2));
        let passed = (after[0].passed + after[1].passed) as f64;
        let (ideal, unbacked) = (PER_SECOND * began.elapsed().as_secs_f64(), unbacked() - before);
        assert!(passed <= BURST + ideal + unbacked, "{passed}, and {ideal} have come; {unbacked} without Redis");
        let is_exact = unbacked < 0.5 && passed >= 0.8 * ideal - 2.0;
        is_exact.then_some(())
    });
    assert!(exact.is_some(), "{}", outage.nodes[0].metrics());
}

#[test]
fn each_goes_on_with_its_share() {
    let mut outage = outage("share");
    let floods = flood_both(&outage.nodes, Duration::from_secs(3));
    for flood in floods {
        let share = PER_SECOND / 2.0 * flood.took.as_secs_f64();
        // Beside its part of the rate: what its lease still held, and half of its part of the burst.
        let most = share + BURST / 2.0 + 1.0;
        let passed = flood.passed as f64;
        assert!(passed <= most && passed >= 0.8 * share - 2.0, "{flood:?}: a share is {share}");
        assert_eq!(flood.unavailable, 0, "{flood:?}");
    }
    let unbacked = outage.nodes[0].metric("seiketsu_limit_unbacked_tokens_total");
    assert!(unbacked > 0.5 && outage.nodes[0].metric("seiketsu_limit_coordinator_up") < 0.5, "{unbacked}");
    assert!(outage.nodes[0].metric("seiketsu_limit_decisions_total{by=\"alone\"}") > 0.5);
    assert_nobody_waits(&outage);
    assert_exact_again(&mut outage);
}

#[test]
fn all_pass_where_that_is_chosen() {
    let mut outage = outage("allow");
    // Until the loss is noticed, what was refused before stays refused.
    let mut client = Client::connect(outage.nodes[0].http);
    assert!(comes_true(|| outage.nodes.iter().all(|gateway| gateway.metric("seiketsu_limit_coordinator_up") < 0.5)));
    let first = std::cell::RefCell::new(&mut client);
    assert!(comes_true(|| first.borrow_mut().request(REQUEST).status == 200));
    let flood = flood(outage.nodes[0].http, Duration::from_secs(1));
    assert_eq!((flood.refused, flood.unavailable), (0, 0), "{flood:?}");
    assert!(flood.passed as f64 > 2.0 * PER_SECOND, "{flood:?}");
    assert_nobody_waits(&outage);
    assert_exact_again(&mut outage);
}

#[test]
fn none_passes_where_that_is_chosen() {
    let mut outage = outage("deny");
    let floods = flood_both(&outage.nodes, Duration::from_secs(2));
    for flood in floods {
        // What it held before the loss was its own.
        assert!(flood.passed as f64 <= BURST / 4.0 + 1.0 && flood.unavailable > 10, "{flood:?}");
    }
    let refused = outage.nodes[0].get("acme.test", "/v1/echo", "");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "temporary-reduced-capacity"));
    assert_eq!((refused.header("retry-after"), refused.header("cache-control")), (Some("2"), Some("no-store")));
    assert_nobody_waits(&outage);
    assert_exact_again(&mut outage);
}

#[test]
fn a_node_that_has_never_seen_its_redis_serves_with_its_share() {
    let origin = Origin::start("a");
    let mut redis = Redis::start();
    let nothing = redis.url();
    redis.kill();
    let tenants = limited(origin.address, RATE, "");
    let gateway = Gateway::start_with(&tenants, &format!("limits: {{ redis: {{ url: '{nothing}' }} }}\n"));
    let flood = flood(gateway.http, Duration::from_secs(2));
    // It is the only one that it knows of.
    let ideal = PER_SECOND * flood.took.as_secs_f64();
    assert!(flood.passed as f64 <= BURST + ideal && flood.passed as f64 >= 0.8 * ideal - 2.0, "{flood:?}");
    assert_eq!(flood.unavailable, 0, "{flood:?}");
    let longest = longest_wait(&gateway);
    assert!(longest < 100.0, "{longest} ms");
}
