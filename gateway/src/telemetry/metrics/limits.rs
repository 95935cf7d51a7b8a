//! What limits have to say.

use std::sync::atomic::Ordering::Relaxed;

use prometheus::proto::MetricFamily;
use seiketsu_limits::coordinator::redis::statistics::LATENCY_BOUNDS;

use super::family::Family;
use crate::{limits::Limits, telemetry::names};

pub(super) fn families(limits: &Limits) -> Vec<MetricFamily> {
    let mut decisions = Family::counter(names::LIMIT_DECISIONS);
    let mut refusals = Family::counter(names::LIMIT_REFUSALS);
    let mut exchanges = Family::counter(names::LIMIT_EXCHANGES);
    let mut duration = Family::histogram(names::LIMIT_EXCHANGE_DURATION);
    let mut unbacked = Family::counter(names::LIMIT_UNBACKED);
    let mut up = Family::gauge(names::LIMIT_COORDINATOR_UP);
    let mut gateways = Family::gauge(names::LIMIT_GATEWAYS);
    let (shared, local) = (&limits.shared.node().counters, &limits.local.node().counters);
    for (by, count) in [
        ("lease", shared.local.load(Relaxed) + local.local.load(Relaxed)),
        ("coordinator", shared.waited.load(Relaxed) + local.waited.load(Relaxed)),
        ("alone", shared.alone.load(Relaxed)),
    ] {
        decisions.add(&[by], count as f64);
    }
    for ((scope, limit), count) in limits.refusals.counts() {
        refusals.add_counted(&[scope, limit], count);
    }
    unbacked.add(&[], shared.unbacked.load(Relaxed) as f64);
    gateways.add(&[], limits.live() as f64);
    if let Some(redis) = &limits.redis {
        let statistics = redis.statistics();
        for (result, count) in [
            ("answered", statistics.answered),
            ("unreachable", statistics.unreachable),
            ("timed_out", statistics.timed_out),
            ("malformed", statistics.malformed),
        ] {
            exchanges.add(&[result], count as f64);
        }
        duration.add_counts(&LATENCY_BOUNDS, &statistics.latency, statistics.latency_sum);
    }
    if let Some(memory) = &limits.memory {
        let (answered, failed) = memory.exchanges();
        exchanges.add(&["answered"], answered as f64);
        exchanges.add(&["failed"], failed as f64);
    }
    up.add(&[], f64::from(u8::from(limits.is_up())));
    let all = [decisions, refusals, exchanges, duration, unbacked, up, gateways];
    all.into_iter().filter_map(Family::finish).collect()
}
