//! `GET /metrics`: what is counted, as Prometheus text. The names are here, and nowhere else.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::{AppState, BASE, Kind, Problem, operations};

const REQUESTS: &str = "seiketsu_admin_requests_total";
const SECONDS: &str = "seiketsu_admin_request_duration_seconds";
const REVISION: &str = "seiketsu_admin_revision";

#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// None of them: the registry refused the name, which a test would show.
    requests: Option<IntCounterVec>,
    seconds: Option<HistogramVec>,
    revision: Option<IntGauge>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        let requests = Opts::new(REQUESTS, "Requests that were answered.");
        let requests = IntCounterVec::new(requests, &["operation", "status"]).ok();
        let seconds = HistogramOpts::new(SECONDS, "From a request's head to the head of its answer.")
            .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 60.0]);
        let seconds = HistogramVec::new(seconds, &["operation"]).ok();
        let revision = IntGauge::new(REVISION, "The newest revision that this process knows of.").ok();
        let metrics = Self { registry, requests, seconds, revision };
        if let Some(requests) = &metrics.requests {
            let _ = metrics.registry.register(Box::new(requests.clone()));
        }
        if let Some(seconds) = &metrics.seconds {
            let _ = metrics.registry.register(Box::new(seconds.clone()));
        }
        if let Some(revision) = &metrics.revision {
            let _ = metrics.registry.register(Box::new(revision.clone()));
        }
        metrics
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn observe(&self, operation: &'static str, status: StatusCode, took: Duration) {
        if let Some(requests) = &self.requests {
            requests.with_label_values(&[operation, status.as_str()]).inc();
        }
        if let Some(seconds) = &self.seconds {
            seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
        }
    }
}

/// The operation that a request is counted for.
pub(super) fn operation(request: &Request) -> &'static str {
    let path = request.extensions().get::<MatchedPath>().and_then(|path| path.as_str().strip_prefix(BASE));
    path.and_then(|path| operations::find(request.method(), path)).map_or("other", |operation| operation.id)
}

pub(super) async fn get(State(state): State<AppState>) -> Result<String, Problem> {
    if let Some(revision) = &state.metrics.revision {
        revision.set(i64::try_from(*state.store.newest().borrow()).unwrap_or(i64::MAX));
    }
    TextEncoder::new()
        .encode_to_string(&state.metrics.registry.gather())
        .map_err(|_| Problem::new(Kind::Internal, "the metrics cannot be written"))
}
