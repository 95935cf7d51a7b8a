//! `GET /metrics`: the Prometheus text format.

use super::{Answer, OperationsState, respond};
use crate::telemetry::metrics::CONTENT_TYPE;

pub(super) fn get(state: &OperationsState) -> Answer {
    respond::text(CONTENT_TYPE, state.metrics.render())
}
