//! The node's own HTTP interface, for operators, orchestrators and Prometheus: on a listener and a thread
//! of its own, so that it answers also while the workers are busy. Keep it off the public network. Browsers get no
//! further than the one who sits at them says (`guard`).
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 when requests can be served, 503 otherwise, with what is missing |
//! | `GET /metrics` | Prometheus text |
//! | `GET /config` | the running revision; with `?tenant=…&route=…`, what applies and why |
//! | `GET /usage`, `POST /usage/taken` | what callers have used, and that it was taken over |
//! | `GET /cache` | what the response cache holds |
//! | `POST /cache/purge` | what is not to be served from it any more |
//! | `GET /cache/warm`, `POST /cache/warm`, `DELETE /cache/warm?id=…` | URLs that are fetched into it, and an end of that |
//! | `GET /log-level`, `PUT /log-level` | the filter of the node's log |

mod body;
mod cache;
pub(crate) mod cache_purge;
pub(crate) mod cache_warm;
mod config;
mod guard;
mod livez;
pub(crate) mod log_level;
mod mask;
mod metrics;
mod readyz;
mod respond;
mod server;
mod usage;
mod usage_taken;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::Value;

pub use self::{log_level::LogLevel, server::OperationsServer};
use crate::{
    cache::Cache,
    respond::problem::ProblemKind,
    telemetry::{metrics::Metrics, usage::Usage},
};

/// What the interface shows of the node.
#[derive(Clone)]
pub struct OperationsState {
    pub readiness: Arc<Readiness>,
    pub config: Arc<dyn ConfigView>,
    pub metrics: Arc<Metrics>,
    pub usage: Arc<Usage>,
    pub(crate) cache: Arc<Cache>,
    pub log_level: Arc<dyn LogLevel>,
}

impl fmt::Debug for OperationsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationsState").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// Whether the node can take requests, apart from its configuration.
#[derive(Debug, Default)]
pub struct Readiness {
    listening: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// All listeners are bound and accept.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether requests are taken, if there is a configuration.
    pub fn is_serving(&self) -> bool {
        self.listening.load(Ordering::Acquire) && !self.is_draining()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The node will stop; load balancers should send nothing more. There is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// The configuration, as far as it is shown.
pub trait ConfigView: Send + Sync {
    fn status(&self) -> ConfigStatus;

    /// The settings in force for a tenant, or for one of its routes, each with the layer it comes from.
    /// Secrets are masked by the caller.
    fn effective(&self, tenant: &str, route: Option<&str>) -> Result<Value, NotConfigured>;

    /// Whether requests to this host, in normal form, are the tenant's.
    fn serves(&self, tenant: &str, host: &str) -> bool;
}

/// How the configuration stands.
#[derive(Debug, Clone)]
pub struct ConfigStatus {
    /// The revision in force; none while there is no configuration.
    pub revision: Option<u64>,
    /// What came of the last reload, its errors among it.
    pub last_reload: Value,
    /// How the connection to the control plane stands, if there is one.
    pub control_plane: Option<Value>,
}

/// What [`ConfigView::effective`] was asked for and does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotConfigured {
    #[error("the running configuration has no such tenant")]
    Tenant,
    #[error("the tenant has no such route")]
    Route,
}

/// What an endpoint answers with.
type Answer = Response<Full<Bytes>>;

/// Finds the endpoint and asks it. A HEAD request is answered like GET; the server leaves the body out.
/// `loopback`: only this machine reaches the interface.
async fn answer(request: Request<Incoming>, state: &OperationsState, loopback: bool) -> Answer {
    const READ: &str = "GET, HEAD";
    const READ_AND_WRITE: &str = "GET, HEAD, PUT";
    if let Some(why) = guard::refuse(request.headers(), loopback) {
        return respond::problem(ProblemKind::Forbidden, why);
    }
    let query = request.uri().query();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/livez" if reads => livez::get(),
        "/readyz" if reads => readyz::get(state),
        "/metrics" if reads => metrics::get(state),
        "/config" if reads => config::get(state, query),
        "/usage" if reads => usage::get(state, query).await,
        "/usage/taken" if request.method() == Method::POST => usage_taken::post(state, query).await,
        "/cache" if reads => cache::get(state),
        "/cache/purge" if request.method() == Method::POST => cache_purge::post(state, request.into_body()).await,
        "/usage/taken" | "/cache/purge" => wrong_method("POST"),
        "/cache/warm" if reads => cache_warm::get(state),
        "/cache/warm" if request.method() == Method::POST => cache_warm::post(state, request.into_body()).await,
        "/cache/warm" if request.method() == Method::DELETE => cache_warm::delete(state, query),
        "/cache/warm" => wrong_method("GET, HEAD, POST, DELETE"),
        "/log-level" if reads => log_level::get(state),
        "/log-level" if request.method() == Method::PUT => log_level::put(state, request.into_body()).await,
        "/log-level" => wrong_method(READ_AND_WRITE),
        "/livez" | "/readyz" | "/metrics" | "/config" | "/usage" | "/cache" => wrong_method(READ),
        _ => respond::problem(
            ProblemKind::NoRoute,
            "There are /livez, /readyz, /metrics, /config, /usage, /usage/taken, /cache, /cache/purge, /cache/warm and /log-level.",
        ),
    }
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = respond::problem(ProblemKind::MethodNotAllowed, format!("Allowed here: {allowed}."));
    answer.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(allowed));
    answer
}
