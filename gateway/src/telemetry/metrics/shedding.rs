//! What the shedders of the workers have to say.

use std::sync::Arc;

use prometheus::proto::MetricFamily;
use seiketsu_limits::shedding::{Priority, Shedder};

use super::family::Family;
use crate::telemetry::names;

/// Nothing where load shedding is off.
pub(super) fn families(shedders: &[Arc<Shedder>]) -> impl Iterator<Item = MetricFamily> + use<> {
    let mut lag = Family::gauge(names::WORKER_LAG);
    let mut limit = Family::gauge(names::SHEDDING_LIMIT);
    let mut in_flight = Family::gauge(names::SHEDDING_IN_FLIGHT);
    let mut shed = Family::counter(names::SHED);
    for (worker, shedder) in shedders.iter().enumerate() {
        let worker = worker.to_string();
        lag.add(&[&worker], shedder.lag().as_secs_f64());
        limit.add(&[&worker], shedder.limit().into());
    }
    for priority in Priority::ALL.into_iter().filter(|_| !shedders.is_empty()) {
        let of_all =
            |value: fn(&Shedder, Priority) -> f64| shedders.iter().map(|shedder| value(shedder, priority)).sum();
        in_flight.add(&[priority.name()], of_all(|shedder, priority| shedder.in_flight(priority).into()));
        shed.add(&[priority.name()], of_all(|shedder, priority| shedder.shed(priority) as f64));
    }
    [lag, limit, in_flight, shed].into_iter().filter_map(Family::finish)
}
