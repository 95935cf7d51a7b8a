//! What the shedders of the workers have to say.

use std::sync::Arc;

use prometheus::proto::MetricFamily;
use seiketsu_limits::shedding::{Priority, Shedder};

use super::family::Family;
use crate::telemetry::names;

/// Nothing where load shedding is off.
pub(super) fn families(shedders: &[Arc<Shedder>]) -> Vec<MetricFamily> {
    if shedders.is_empty() {
        return Vec::new();
    }
    let mut lag = Family::gauge(names::WORKER_LAG);
    let mut limit = Family::gauge(names::SHEDDING_LIMIT);
    let mut in_flight = Family::gauge(names::SHEDDING_IN_FLIGHT);
    let mut shed = Family::counter(names::SHED);
    for (worker, shedder) in shedders.iter().enumerate() {
        let worker = worker.to_string();
        lag.add(&[&worker], shedder.lag().as_secs_f64());
        limit.add(&[&worker], shedder.limit().into());
    }
    for priority in Priority::ALL {
        let labels = [priority.name()];
        in_flight.add(&labels, shedders.iter().map(|shedder| f64::from(shedder.in_flight(priority))).sum());
        shed.add(&labels, shedders.iter().map(|shedder| shedder.shed(priority) as f64).sum());
    }
    [lag, limit, in_flight, shed].into_iter().filter_map(Family::finish).collect()
}
