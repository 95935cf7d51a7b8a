//! One address of an upstream: what is configured about it, and what has been learnt about it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use http::{HeaderValue, StatusCode};
use seiketsu_config::values::{HostPort, Id};

use super::{
    balance::{Candidate, EndpointId},
    breaker::{Breaker, Epoch, Permit},
    clock::{Clock, Nanos, nanos},
    ewma::PeakEwma,
    health::Health,
    outlier::Outlier,
    peer::PeerTemplates,
    pool::UpstreamPool,
    profile::Profile,
};
use crate::telemetry::silence::Silence;

/// What is learnt about an address. It outlives configurations and new DNS answers.
#[derive(Debug)]
pub struct EndpointState {
    pub id: EndpointId,
    pub latency: PeakEwma,
    pub outlier: Outlier,
    pub health: Health,
    pub in_flight: AtomicU32,
    pub attempts: AtomicU64,
    pub failures: AtomicU64,
    /// Since when it takes traffic (again): the beginning of its slow start. 0: it needs none.
    pub up_since: AtomicU64,
    /// Since it was last told that TLS with it fails.
    tls_told: Silence,
}

impl EndpointState {
    pub fn new(id: EndpointId, up_since: Nanos) -> Self {
        Self {
            id,
            latency: PeakEwma::default(),
            outlier: Outlier::default(),
            health: Health::default(),
            in_flight: AtomicU32::new(0),
            attempts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            up_since: AtomicU64::new(up_since),
            tls_told: Silence::new(),
        }
    }

    pub fn is_usable(&self, now: Nanos) -> bool {
        self.health.is_healthy() && !self.outlier.is_ejected(now)
    }
}

/// An address as configured now. Replaced, never changed, when the configuration or DNS changes.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Host and port as configured.
    pub authority: HostPort,
    pub weight: u16,
    pub priority: u8,
    pub region: Option<Id>,
    pub zone: Option<Id>,
    /// 0: own zone, 1: own region or none given, 2: another region.
    pub distance: u8,
    /// What `Host` becomes. `None`: what the client sent stays.
    pub host_header: Option<HeaderValue>,
    pub(super) hash_seed: u64,
    pub(super) peers: PeerTemplates,
    pub(super) state: Arc<EndpointState>,
    pub(super) profile: Arc<Profile>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) pool: Weak<UpstreamPool>,
    pub(super) clock: Clock,
}

/// How an attempt ended, as far as the upstream is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    ConnectFailed,
    /// The connection broke before the response was complete.
    Reset,
    Timeout,
    /// A response came, with this status.
    Status(StatusCode),
}

impl Outcome {
    /// 502, 503 and 504 tell of an endpoint that cannot do its work; other errors are its answer.
    pub fn is_failure(self) -> bool {
        match self {
            Self::ConnectFailed | Self::Reset | Self::Timeout => true,
            Self::Status(status) => matches!(
                status,
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            ),
        }
    }
}

impl Endpoint {
    pub fn id(&self) -> EndpointId {
        self.state.id
    }

    /// Tells the log that TLS with it fails, once in a while: it concerns every request, and whoever runs the gateway.
    pub fn warn_of_tls(&self, cause: &str, error: &pingora_core::Error) {
        if self.state.tls_told.is_over(SystemTime::now()) {
            let upstream = self.pool.upgrade().map(|pool| pool.key().to_string()).unwrap_or_default();
            tracing::warn!(upstream, address = %self.address, cause, %error, "no secure connection to an upstream");
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Relaxed)
    }

    /// An attempt on this endpoint begins, for the request that holds `permit`.
    pub fn begin(self: &Arc<Self>, permit: &Permit) -> AttemptGuard {
        self.state.in_flight.fetch_add(1, Relaxed);
        AttemptGuard { endpoint: Arc::clone(self), epoch: permit.epoch(), began: self.clock.now(), observed: false }
    }

    fn observe(&self, outcome: Outcome, latency: Nanos, epoch: Epoch, now: Nanos) {
        let failed = outcome.is_failure();
        let state = &*self.state;
        state.attempts.fetch_add(1, Relaxed);
        if failed {
            state.failures.fetch_add(1, Relaxed);
            state.latency.observe_failure(latency, now);
            if state.outlier.failed(&self.profile.config.outliers, now)
                && let Some(pool) = self.pool.upgrade()
            {
                pool.eject(self, now);
            }
        } else {
            state.latency.observe(latency, now);
            state.outlier.succeeded();
        }
        let transition = self.breaker.record(&self.profile.config.breaker, epoch, failed, now);
        if let (Some(transition), Some(pool)) = (transition, transition.and_then(|_| self.pool.upgrade())) {
            pool.breaker_changed(transition);
        }
    }
}

impl Candidate for Arc<Endpoint> {
    fn id(&self) -> EndpointId {
        self.state.id
    }

    fn weight(&self) -> u16 {
        self.weight
    }

    fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    fn cost(&self, now: Nanos) -> f64 {
        self.state.latency.cost(self.in_flight(), now) / f64::from(self.weight.max(1))
    }

    fn ramp(&self, now: Nanos) -> f64 {
        let slow_start = nanos(self.profile.config.slow_start.get());
        let up_since = self.state.up_since.load(Relaxed);
        if slow_start == 0 || up_since == 0 {
            return 1.0;
        }
        (now.saturating_sub(up_since) as f64 / slow_start as f64).min(1.0)
    }
}

/// An attempt that is under way. Its load counts until this is dropped, which should be at the end of
/// the response's body; how it went is known earlier, with its head.
#[derive(Debug)]
#[must_use = "the attempt counts as in flight only while its guard lives"]
pub struct AttemptGuard {
    endpoint: Arc<Endpoint>,
    epoch: Epoch,
    began: Nanos,
    observed: bool,
}

impl AttemptGuard {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Says how the attempt went, with the time since [`Endpoint::begin`] as its latency. Only the first
    /// call counts. An attempt that ends without one (the client went away) teaches nothing.
    pub fn observe(&mut self, outcome: Outcome) {
        if !self.observed {
            self.observed = true;
            let now = self.endpoint.clock.now();
            self.endpoint.observe(outcome, now.saturating_sub(self.began), self.epoch, now);
        }
    }

    /// [`Self::observe`], and the end of the attempt.
    pub fn finish(mut self, outcome: Outcome) {
        self.observe(outcome);
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.endpoint.state.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transport_errors_and_gateway_statuses_are_failures() {
        for outcome in [Outcome::ConnectFailed, Outcome::Reset, Outcome::Timeout] {
            assert!(outcome.is_failure());
        }
        for (status, failure) in
            [(200, false), (404, false), (429, false), (500, false), (502, true), (503, true), (504, true)]
        {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(Outcome::Status(status).is_failure(), failure, "{status}");
        }
    }
}
