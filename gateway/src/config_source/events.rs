//! What happens to upstreams by itself goes to the log and the metrics.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;

use crate::{
    proxy::Shared,
    telemetry::metrics::{BreakerState, Ejection},
    upstream::{breaker::Transition, registry::EventKind},
};

/// Follows events until the node ends.
pub(crate) async fn log_upstream_events(shared: Arc<Shared>) {
    let mut events = shared.upstreams.events();
    let metrics = &shared.metrics.node;
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "more upstream events than could be logged");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let upstream = event.pool;
        match event.kind {
            EventKind::Health { address, healthy: true, .. } => {
                tracing::info!(%upstream, %address, "endpoint is healthy");
            }
            EventKind::Health { address, healthy: false, reason } => {
                metrics.ejections.count(Ejection::HealthCheck);
                let reason = reason.unwrap_or_default();
                tracing::warn!(%upstream, %address, %reason, "endpoint is unhealthy");
            }
            EventKind::Ejected { address, duration } => {
                metrics.ejections.count(Ejection::ConsecutiveErrors);
                metrics.endpoints_ejected.inc();
                tracing::warn!(%upstream, %address, ?duration, "endpoint is set aside for failing requests");
            }
            EventKind::Returned { address } => {
                metrics.endpoints_ejected.dec();
                tracing::info!(%upstream, %address, "endpoint is back");
            }
            EventKind::Breaker(transition) => {
                let state = match transition {
                    Transition::Opened => {
                        metrics.breakers_open.inc();
                        BreakerState::Open
                    }
                    Transition::HalfOpened => {
                        metrics.breakers_open.dec();
                        BreakerState::HalfOpen
                    }
                    Transition::Closed => BreakerState::Closed,
                };
                metrics.breaker_transitions.count(state);
                tracing::warn!(%upstream, ?transition, "breaker");
            }
            EventKind::Panic(on) => {
                tracing::warn!(%upstream, on, "too few endpoints are healthy: health is ignored while this is on");
            }
        }
    }
}
