//! What changes live: tenants, their upstreams, routes and callers.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    policy::{Plans, Policies},
    values::{HeaderName, HeaderValue, HostPattern, HostPort, Id, Method, PathPattern, Percent, Span},
};

/// One file of tenant configuration.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantFile {
    /// Number of this configuration: a change gets a higher one.
    pub revision: u64,
    /// Policies for all tenants of the file, below plan, tenant and route.
    #[serde(default)]
    pub defaults: Policies,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: Plans,
    /// Upstreams that every tenant of the file may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
    #[serde(default)]
    pub tenants: Vec<Tenant>,
}

/// One tenant: the unit that is accepted or refused whole.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub id: Id,
    /// Host names the tenant is served under; no other tenant may have them.
    pub hosts: Vec<HostPattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TenantTls>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumers: Vec<Consumer>,
    #[serde(default)]
    pub api_keys: ApiKeyPlacement,
    /// Issuers whose JWTs are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_issuers: Vec<JwtIssuer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// The tenant's own upstreams; a name that the file's `upstreams` also has means this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
    #[serde(default)]
    pub policies: Policies,
    pub routes: Vec<Route>,
}

/// Certificates for the tenant's hosts, and the authority that signs its clients' certificates.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantTls {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateFiles>,
    /// PEM file of the authorities that client certificates must come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Refuse connections to this tenant's hosts that show no valid client certificate.
    pub require_client_certificate: bool,
}

/// PEM files of a certificate chain and its key. Re-read when they change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A caller that the tenant knows by name: an application, a partner, a device.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    pub id: Id,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateIdentity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
}

/// An API key. Only a hash of it is ever stored.
///
/// A key is written `sk_<prefix>_<secret>`: the prefix finds the entry, the secret has at least 128
/// bits of entropy. A consumer has several, so that keys can be rotated.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The part between `sk_` and the second `_`: 8 to 32 letters and digits, unique within the tenant.
    pub prefix: String,
    /// `sha256:` and the hexadecimal SHA-256 of the whole key.
    pub hash: String,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires: Option<OffsetDateTime>,
    /// Fewer scopes than the consumer has; absent: all of the consumer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
}

/// How a client certificate names a consumer. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CertificateIdentity {
    /// Hexadecimal SHA-256 of the certificate in DER.
    Sha256(String),
    /// A DNS name or URI among its subject alternative names.
    San(String),
    /// The common name of its subject.
    CommonName(String),
}

/// Where clients put their API key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiKeyPlacement {
    pub header: HeaderName,
    /// Also accept `Authorization: Bearer sk_…`.
    pub bearer: bool,
}

impl Default for ApiKeyPlacement {
    fn default() -> Self {
        Self { header: HeaderName::from(http::HeaderName::from_static("x-api-key")), bearer: true }
    }
}

/// An issuer whose JWTs (RFC 7519) are accepted as bearer tokens (RFC 6750).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuer {
    /// Must equal the token's `iss`.
    pub issuer: String,
    /// The token's `aud` must contain one of these.
    pub audiences: Vec<String>,
    pub jwks: JwksSource,
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Clock difference that is tolerated; 30s at most.
    #[serde(default = "default_leeway")]
    pub leeway: Span,
    /// The claim that holds scopes: a string with spaces, or a list.
    #[serde(default = "default_scope_claim")]
    pub scope_claim: String,
    /// The claim that holds roles; `.` goes into objects, as in `realm_access.roles`.
    #[serde(default = "default_roles_claim")]
    pub roles_claim: String,
}

/// Where an issuer's public keys come from (RFC 7517). Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JwksSource {
    File(PathBuf),
    #[schemars(with = "String")]
    Url(url::Url),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// The API's versions, and how a request says which it wants.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    pub by: VersionSource,
    /// The version of requests that name none.
    pub default: Id,
    pub list: BTreeMap<Id, Version>,
}

/// Where a request names its version. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VersionSource {
    /// The first segment of the path, as in `/v2/users`. Routes are written with it.
    PathPrefix,
    /// The value of this header.
    Header(HeaderName),
    /// A parameter of the `Accept` header's media type: `version` reads `application/json;version=v2`.
    MediaType(String),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Version {
    /// Since when it is, or from when it will be, deprecated: sent as `Deprecation` (RFC 9745).
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deprecated: Option<OffsetDateTime>,
    /// When it will stop working: sent as `Sunset` (RFC 8594).
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub sunset: Option<OffsetDateTime>,
    /// Where to read more: sent as `Link` with `rel="deprecation"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub link: Option<url::Url>,
    /// It no longer works: requests get 410.
    pub retired: bool,
}

/// One route: which requests, and where they go.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Unique within the tenant.
    pub id: Id,
    pub r#match: RouteMatch,
    pub upstream: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    #[serde(default)]
    pub policies: Policies,
}

/// All conditions must hold. Of several routes that match, the one with the more specific path wins
/// (static before parameter before tail, from the left), then the one with more conditions, then the
/// one that stands first.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    pub path: PathPattern,
    /// Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// API versions this route serves; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<Id>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderCondition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryCondition>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct HeaderCondition {
    pub name: HeaderName,
    #[serde(flatten)]
    pub test: TextTest,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct QueryCondition {
    pub name: String,
    #[serde(flatten)]
    pub test: TextTest,
}

/// What a header or query value must be. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TextTest {
    Equals(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Whether it is there at all.
    Present(bool),
}

/// A share of a route's requests that goes to another upstream.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    pub upstream: Id,
    /// Share of the requests that no header or cookie decides.
    #[serde(default = "no_share")]
    pub weight: Percent,
    /// Requests with this header and value always go to the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderIs>,
    /// Requests with this cookie and value always go to the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<CookieIs>,
    /// Keep each caller on one side while the weight stays: by a cookie of this name that the gateway sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_cookie: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderIs {
    pub name: HeaderName,
    pub value: HeaderValue,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CookieIs {
    pub name: String,
    pub value: String,
}

/// A share of a route's requests that is sent to a second upstream too; its answers are dropped.
/// Requests with a body of more than 64 KiB are not mirrored.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    pub upstream: Id,
    #[serde(default = "whole_share")]
    pub share: Percent,
}

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
        Self {
            max_concurrent: 0,
            error_rate: Percent::new_const(0),
            min_requests: 20,
            open_for: Span::from_secs(5),
        }
    }
}

fn default_algorithms() -> Vec<JwtAlgorithm> {
    vec![JwtAlgorithm::RS256, JwtAlgorithm::PS256, JwtAlgorithm::ES256, JwtAlgorithm::EdDSA]
}

fn default_leeway() -> Span {
    Span::from_secs(30)
}

fn default_scope_claim() -> String {
    "scope".to_owned()
}

fn default_roles_claim() -> String {
    "roles".to_owned()
}

fn no_share() -> Percent {
    Percent::new_const(0)
}

fn whole_share() -> Percent {
    Percent::new_const(100)
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

