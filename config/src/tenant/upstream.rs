//! Upstreams: the services that requests are sent to, and how their endpoints are chosen and watched.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CertificateFiles;
use crate::values::{HeaderName, HeaderValue, HostPort, Id, Percent, Span};

/// A service that requests are sent to.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    #[serde(default)]
    pub host_header: HostHeader,
    #[serde(default)]
    pub balance: Balance,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    #[serde(default)]
    pub outliers: Outliers,
    #[serde(default)]
    pub breaker: Breaker,
    /// While fewer endpoints than this share are healthy, health is ignored and all are used: better
    /// to try than to send everything to the few that are left. 0 switches this off.
    #[serde(default = "default_panic_threshold")]
    pub panic_threshold: Percent,
    /// An endpoint that comes (back) gets its full share of traffic only after this time.
    #[serde(default = "zero_span")]
    pub slow_start: Span,
    /// How long an idle connection is kept for reuse.
    #[serde(default = "default_pool_idle")]
    pub keepalive: Span,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// A host name stands for all its addresses; it is resolved in the background and kept up to date.
    pub address: HostPort,
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Endpoints with a higher number are used only while none with a lower one is healthy.
    #[serde(default)]
    pub priority: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Id>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1, with or without TLS.
    #[default]
    Http1,
    /// HTTP/2: over TLS by ALPN, without TLS by prior knowledge.
    Http2,
    /// Over TLS whatever ALPN agrees on; without TLS HTTP/2 for HTTP/2 clients, else HTTP/1.1.
    Auto,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// Name for SNI and for checking the certificate. Default: the endpoint's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM file of the authorities to trust. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// What the gateway shows when the upstream asks for a client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<CertificateFiles>,
    /// Accept any certificate. For trials only.
    pub insecure_skip_verify: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostHeader {
    /// The host that the client asked for.
    #[default]
    Client,
    /// The endpoint's own host and port.
    Endpoint,
    /// This one.
    Fixed(HeaderValue),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Balance {
    /// Two endpoints drawn at random, the one with the lower peak-EWMA latency × load wins.
    #[default]
    LeastLatency,
    /// In turn, by weight.
    RoundRobin,
    /// The same endpoint for the same key, with few moves when endpoints come and go.
    ConsistentHash(HashKey),
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HashKey {
    Address,
    Path,
    Header(HeaderName),
    Cookie(String),
}

/// Active health check, made by each gateway node.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub probe: Probe,
    #[serde(default = "default_health_interval")]
    pub interval: Span,
    #[serde(default = "default_health_timeout")]
    pub timeout: Span,
    /// Good answers in a row that make an endpoint healthy again.
    #[serde(default = "default_healthy_after")]
    pub healthy_after: u8,
    /// Bad answers in a row that make it unhealthy.
    #[serde(default = "default_unhealthy_after")]
    pub unhealthy_after: u8,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A connection comes about.
    Tcp,
    /// `GET` of this path answers 200 to 299.
    Http { path: String },
    /// `grpc.health.v1.Health/Check` answers SERVING; empty: the server as a whole.
    Grpc { service: String },
}

/// Passive health: endpoints that fail real requests are set aside for a while.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outliers {
    /// Failures in a row (no connection, reset, time-out, 502, 503, 504) until it is set aside; 0 never.
    pub consecutive_failures: u32,
    /// How long the first time; it grows by as much with each further time, up to `max_ejection`.
    pub base_ejection: Span,
    pub max_ejection: Span,
    /// At most this share of the endpoints is set aside at once (but always at least one may be).
    pub max_ejected: Percent,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection: Span::from_secs(10),
            max_ejection: Span::from_secs(300),
            max_ejected: Percent::new_const(50),
        }
    }
}

/// Circuit breaker of an upstream as a whole. While it is open, requests get 503 at once.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Requests in flight at most; more get 503. 0: no bound.
    pub max_concurrent: u32,
    /// Share of failures in the last ten seconds that opens it. 0: never opens by errors.
    pub error_rate: Percent,
    /// Fewer requests than this in ten seconds never open it.
    pub min_requests: u32,
    /// How long it stays open before a few trial requests pass.
    pub open_for: Span,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { max_concurrent: 0, error_rate: Percent::new_const(0), min_requests: 20, open_for: Span::from_secs(5) }
    }
}

fn default_panic_threshold() -> Percent {
    Percent::new_const(50)
}

fn zero_span() -> Span {
    Span::from_millis(0)
}

fn default_pool_idle() -> Span {
    Span::from_secs(60)
}

fn default_weight() -> u16 {
    1
}

fn default_health_interval() -> Span {
    Span::from_secs(5)
}

fn default_health_timeout() -> Span {
    Span::from_secs(2)
}

fn default_healthy_after() -> u8 {
    2
}

fn default_unhealthy_after() -> u8 {
    3
}
