//! Upstreams as operators see them: for `/config` and for metrics.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{breaker::BreakerState, clock::Nanos, endpoint::Endpoint};

/// A pool as operators see it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PoolStatus {
    pub upstream: String,
    pub breaker: BreakerState,
    /// Requests in flight.
    pub in_flight: u32,
    /// Too few endpoints are healthy, so health is being ignored.
    pub panic: bool,
    pub endpoints: Vec<EndpointStatus>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct EndpointStatus {
    pub host: String,
    pub address: SocketAddr,
    pub priority: u8,
    pub weight: u16,
    /// By its active health check.
    pub healthy: bool,
    /// How long it is still set aside; absent: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_for_seconds: Option<f64>,
    pub latency_seconds: f64,
    /// Attempts in flight.
    pub in_flight: u32,
    pub attempts: u64,
    pub failures: u64,
}

impl EndpointStatus {
    pub(super) fn new(endpoint: &Endpoint, now: Nanos) -> Self {
        let state = &endpoint.state;
        let ejected = state.outlier.ejected_until().saturating_sub(now);
        Self {
            host: endpoint.authority.to_string(),
            address: endpoint.address,
            priority: endpoint.priority,
            weight: endpoint.weight,
            healthy: state.health.is_healthy(),
            ejected_for_seconds: (ejected > 0).then(|| Duration::from_nanos(ejected).as_secs_f64()),
            latency_seconds: f64::from(state.latency.estimate(now)) / 1e9,
            in_flight: endpoint.in_flight(),
            attempts: state.attempts.load(Relaxed),
            failures: state.failures.load(Relaxed),
        }
    }
}
