//! What is done to a request and its response, apart from where it goes.
//!
//! A [`Policies`] stands at each layer: defaults, plan, tenant, route. The most specific layer that
//! sets a policy wins, and wins whole, so that one place answers "what applies and why".
//! `security_headers`, `headers` and `limits` are the exception: they are merged entry by entry.

use std::{collections::BTreeMap, path::PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cache::Cache,
    limits::Limits,
    values::{ByteSize, HeaderName, HeaderValue, Id, Method, Percent, Span, networks, unique_map},
};

/// The policies of one layer. What is absent is inherited.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// Who may call, and how they prove who they are. Nobody may, where no layer says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Security headers set on every response: name to value, `null` removes an inherited one.
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub security_headers: BTreeMap<HeaderName, Option<HeaderValue>>,
    #[serde(skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Responses that are kept and served again. None are, where no layer says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Rates, quotas, and how many requests at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

impl Policies {
    /// Whether this layer sets nothing at all.
    pub fn is_empty(&self) -> bool {
        let Self {
            auth,
            cors,
            security_headers,
            headers,
            access,
            request,
            transform,
            validation,
            compression,
            timeouts,
            retries,
            access_log,
            cache,
            limits,
        } = self;
        security_headers.is_empty()
            && headers.is_empty()
            && auth.is_none()
            && cors.is_none()
            && access.is_none()
            && request.is_none()
            && transform.is_none()
            && validation.is_none()
            && compression.is_none()
            && timeouts.is_none()
            && retries.is_none()
            && access_log.is_none()
            && cache.is_none()
            && limits.is_none()
    }
}

/// How callers prove who they are, and what they need.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The kinds of credential that are accepted. With `anonymous` among them, callers without any
    /// credential pass; a wrong credential is refused all the same. With `anonymous` alone, credentials
    /// are not looked at: with `forward_credential` they are the upstream's to judge.
    pub accept: Vec<CredentialKind>,
    /// Scopes that the caller must have, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Roles of which the caller must have at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Send the verified caller upstream as a signed JWT in `X-Gateway-Identity`.
    #[serde(default = "yes")]
    pub forward_assertion: bool,
    /// Also send plain headers: `X-Gateway-Consumer`, `X-Gateway-Scopes`, `X-Gateway-Roles`.
    #[serde(default)]
    pub forward_headers: bool,
    /// Let the client's own credential through to the upstream. Otherwise it is removed.
    #[serde(default)]
    pub forward_credential: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    Anonymous,
    ApiKey,
    Jwt,
    ClientCertificate,
}

/// Cross-origin resource sharing (the Fetch standard, §3.2).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// `false` switches an inherited policy off: no CORS header is added, preflights go upstream.
    pub enabled: bool,
    /// Origins that may read answers: `https://app.example.com`, `https://*.example.com` (one or more
    /// labels in place of the star), or `*` for any, which excludes `credentials`.
    pub origins: Vec<String>,
    /// Methods allowed in a preflight. Default: GET, HEAD, POST, PUT, PATCH, DELETE.
    pub methods: Vec<Method>,
    /// Request headers allowed in a preflight. Empty: those that the preflight asks for.
    pub request_headers: Vec<HeaderName>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<HeaderName>,
    pub credentials: bool,
    /// How long a browser may remember a preflight's answer.
    pub max_age: Span,
}

impl Default for Cors {
    fn default() -> Self {
        use http::Method as M;
        Self {
            enabled: true,
            origins: Vec::new(),
            methods: [M::GET, M::HEAD, M::POST, M::PUT, M::PATCH, M::DELETE].map(Method::from).to_vec(),
            request_headers: Vec::new(),
            expose_headers: Vec::new(),
            credentials: false,
            max_age: Span::from_secs(600),
        }
    }
}

/// Header fields to change on the way to the upstream and on the way back.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    pub request: HeaderChanges,
    pub response: HeaderChanges,
}

impl Headers {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Carried out in this order: rename, remove, set, add.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderChanges {
    /// From the present name to the new one.
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<HeaderName, HeaderName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<HeaderName>,
    /// Replaces what is there.
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<HeaderName, HeaderValue>,
    /// Leaves what is there.
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<HeaderName, HeaderValue>,
}

/// Which client addresses may call. `deny` is looked at first; an empty `allow` allows all others.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub allow: Vec<IpNet>,
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub deny: Vec<IpNet>,
}

/// What a request may look like at all.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequestLimits {
    /// Methods that are allowed; empty allows all. Refused with 405.
    pub methods: Vec<Method>,
    /// Headers that must be present. Refused with 400.
    pub required_headers: Vec<HeaderName>,
    /// The largest body. Refused with 413.
    pub max_body: ByteSize,
    /// The largest sum of header names and values. Refused with 431.
    pub max_headers: ByteSize,
    /// The longest path and query. Refused with 414.
    pub max_target: ByteSize,
    /// Whether `Upgrade: websocket` passes. Refused with 403.
    pub websocket: bool,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            required_headers: Vec::new(),
            max_body: ByteSize::new(10 << 20),
            max_headers: ByteSize::new(32 << 10),
            max_target: ByteSize::new(8 << 10),
            websocket: true,
        }
    }
}

/// Changes to path, query and JSON bodies. Headers change under `headers`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Transform {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathTransform>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<QueryChanges>,
    /// A jq program that turns the request's JSON body into the one that is sent. Bodies of any other
    /// type than `application/json` and `…+json` are refused (415).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_body: Option<String>,
    /// A jq program that turns the response's JSON body into the one that the client receives. The
    /// upstream is asked for whole responses without a content coding; if it sends others, the client
    /// gets 502. Bodies of other types pass as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_body: Option<String>,
}

/// How the upstream's path comes from the client's. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PathTransform {
    /// Take this prefix away: `/api` turns `/api/v1/users` into `/v1/users`.
    StripPrefix(String),
    /// Put this in front.
    AddPrefix(String),
    /// A whole new path; `{name}` stands for the route's parameter or tail of that name.
    Replace(String),
}

/// Carried out in this order: rename, remove, set, add. Untouched parameters keep their bytes and order.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueryChanges {
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    #[serde(deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
}

/// What a request must look like before the upstream sees it. At least one of the two documents.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    #[serde(default)]
    pub mode: ValidationMode,
    /// JSON Schema (2020-12) of the request's JSON body. A name that stands twice in an object does not
    /// conform either, whatever the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_schema: Option<JsonDocument>,
    /// OpenAPI 3.1 description: path, method, parameters and body are checked against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openapi: Option<JsonDocument>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationMode {
    /// Refuse what does not conform, with 400 and the reasons.
    #[default]
    Enforce,
    /// Let it pass; count and log it. Bodies of more than 64 KiB, or of a length that is not announced,
    /// pass unread.
    Report,
}

/// A JSON or YAML document, in a file of its own or written in place.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JsonDocument {
    /// Relative to the file that names it.
    File(PathBuf),
    Inline(serde_json::Value),
}

/// Compression of responses that come uncompressed (RFC 9110 §12.5.3).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    pub enabled: bool,
    /// In order of preference where the client has none.
    pub encodings: Vec<Encoding>,
    /// Media types that are compressed; `text/*` means all of a kind.
    pub media_types: Vec<String>,
    /// Shorter bodies are sent as they are.
    pub min_length: ByteSize,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            enabled: true,
            encodings: vec![Encoding::Zstd, Encoding::Br, Encoding::Gzip],
            media_types: [
                "text/*",
                "application/json",
                "application/javascript",
                "application/xml",
                "application/problem+json",
                "image/svg+xml",
            ]
            .map(str::to_owned)
            .to_vec(),
            min_length: ByteSize::new(1024),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    Gzip,
    Br,
    Zstd,
}

/// How long the gateway waits for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To a connection, TLS included.
    pub connect: Span,
    /// To the head of the response of one attempt.
    pub per_try: Span,
    /// To the head of the response, all attempts together.
    pub total: Span,
    /// Between two pieces of a body, either way. Event streams and WebSockets are exempt.
    pub idle: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Span::from_secs(2),
            per_try: Span::from_secs(15),
            total: Span::from_secs(30),
            idle: Span::from_secs(60),
        }
    }
}

/// When an attempt that failed is made again on another endpoint. A request that may have reached the
/// upstream is repeated only if its method is idempotent (RFC 9110 §9.2.2).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// Attempts beyond the first; 0 switches retries off, 5 at most.
    pub attempts: u8,
    pub on: Vec<RetryOn>,
    /// Retries as a share of the upstream's requests in the last ten seconds; above it none is made,
    /// so that a sick upstream does not get a storm on top. Ten retries are always allowed.
    pub budget: Percent,
    /// The first pause before a repetition; doubled each time, with full jitter.
    pub backoff: Span,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: vec![RetryOn::ConnectFailure, RetryOn::Reset],
            budget: Percent::new_const(20),
            backoff: Span::from_millis(10),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// No connection came about: safe for every method.
    ConnectFailure,
    /// The connection broke before the head of a response.
    Reset,
    /// `timeouts.per_try` ran out before the head of a response.
    Timeout,
    /// The upstream answered 502, 503 or 504.
    GatewayError,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// Share of requests that are logged. Those that end in 5xx always are.
    pub sample: Percent,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { sample: Percent::new_const(100) }
    }
}

/// A plan: policies under a name, for tenants to refer to.
pub type Plans = BTreeMap<Id, Policies>;

fn yes() -> bool {
    true
}
