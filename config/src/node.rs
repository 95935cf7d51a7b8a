//! What one gateway node reads once, at start.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    secret::SecretRef,
    tenant::{CertificateFiles, Tenant},
    values::{ByteSize, HostPort, Id, Percent, RedisUrl, Span, networks, socket, sockets, url},
};

/// Where tenants are looked for if nothing says where they come from.
pub const DEFAULT_TENANTS: &str = "tenants.yaml";

/// The node's bootstrap file. Flags and environment variables override it, see `seiketsu-gateway --help`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name of the node in logs and metrics.
    pub id: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Id>,
    pub listeners: Listeners,
    pub tls: NodeTls,
    /// Tenant configuration: a file, or a folder of `*.yaml` files. Default: `tenants.yaml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<PathBuf>,
    /// Or the control plane, which sends them. There is one source of tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlane>,
    /// Where the node keeps what must survive a restart: last known good configuration, usage, upgrade socket.
    pub state_dir: PathBuf,
    /// Worker threads; 0: one per core.
    pub threads: usize,
    pub protection: Protection,
    pub shedding: Shedding,
    pub forwarding: Forwarding,
    pub egress: Egress,
    pub dns: Dns,
    pub access_log: AccessLogOutput,
    pub usage: UsageLog,
    pub drain: Drain,
    pub identity: AssertionKey,
    pub limits: NodeLimits,
    pub cache: NodeCache,
    /// Idle upstream connections kept in all, per worker thread.
    pub upstream_pool_size: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            id: "gateway".parse().unwrap_or_else(|_| unreachable!("a constant name")),
            region: None,
            zone: None,
            listeners: Listeners::default(),
            tls: NodeTls::default(),
            tenants: None,
            control_plane: None,
            state_dir: PathBuf::from("var"),
            threads: 0,
            protection: Protection::default(),
            shedding: Shedding::default(),
            forwarding: Forwarding::default(),
            egress: Egress::default(),
            dns: Dns::default(),
            access_log: AccessLogOutput::default(),
            usage: UsageLog::default(),
            drain: Drain::default(),
            identity: AssertionKey::default(),
            limits: NodeLimits::default(),
            cache: NodeCache::default(),
            upstream_pool_size: 4096,
        }
    }
}

/// Where a node gets its tenants from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Source<'a> {
    /// A file, or a folder of files.
    Files(&'a Path),
    ControlPlane(&'a ControlPlane),
}

impl NodeConfig {
    pub fn source(&self) -> Source<'_> {
        match (&self.control_plane, &self.tenants) {
            (Some(control_plane), _) => Source::ControlPlane(control_plane),
            (None, Some(path)) => Source::Files(path),
            (None, None) => Source::Files(Path::new(DEFAULT_TENANTS)),
        }
    }

    /// Whether it listens for TLS though neither it nor any of these tenants has a certificate to show.
    pub fn lacks_certificates<'a>(&self, tenants: impl IntoIterator<Item = &'a Tenant>) -> bool {
        let of_node = self.tls.development_certificate || !self.tls.certificates.is_empty();
        let has_own = |tenant: &Tenant| tenant.tls.as_ref().is_some_and(|tls| !tls.certificates.is_empty());
        !self.listeners.https.is_empty() && !of_node && !tenants.into_iter().any(has_own)
    }
}

/// The control plane that the node connects to.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlPlane {
    /// Where it is, as in `https://admin.example:9080`.
    #[serde(deserialize_with = "url")]
    #[schemars(with = "String")]
    pub url: Url,
    /// What the node shows to be let in; it needs none with a certificate. Read anew for each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Or beside it: a client certificate that names the node's id, of an authority that the control plane knows. Read anew
    /// for each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFiles>,
    /// PEM file of the authorities that its certificate must come from. Default: those of the system. Read anew for
    /// each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Where `files/` is, with what it may name: certificates, keys and documents of a tenant in `files/<tenant>/`, those
    /// that all share in `files/_shared/`. Default: the folder of the node file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<PathBuf>,
    /// What is kept of it on disk is sealed with this key, 64 hexadecimal digits. Default: one made under `state_dir` at
    /// first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseal_key: Option<SecretRef>,
    /// Talk to another machine without TLS: whoever sits between reads the token, and decides what the node serves.
    #[serde(default)]
    pub insecure_plain_http: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listeners {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, without TLS.
    #[serde(deserialize_with = "sockets")]
    #[schemars(with = "Vec<String>")]
    pub http: Vec<SocketAddr>,
    /// HTTP/1.1 and HTTP/2 over TLS.
    #[serde(deserialize_with = "sockets")]
    #[schemars(with = "Vec<String>")]
    pub https: Vec<SocketAddr>,
    /// `/livez`, `/readyz`, `/metrics`, `/config`, `/usage`, `/cache`. Keep it off the public network.
    #[serde(deserialize_with = "socket")]
    #[schemars(with = "String")]
    pub operations: SocketAddr,
    /// Expect the PROXY protocol (versions 1 and 2) from these peers on `http` and `https`; from others
    /// a PROXY header is refused.
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub proxy_protocol_from: Vec<IpNet>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            http: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            https: Vec::new(),
            operations: SocketAddr::from(([127, 0, 0, 1], 9090)),
            proxy_protocol_from: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeTls {
    /// Certificates of the node, for hosts whose tenant brings none. Chosen by SNI.
    pub certificates: Vec<CertificateFiles>,
    /// Make a self-signed certificate for `localhost` and `*.localhost` under `state_dir` at first start.
    pub development_certificate: bool,
}

/// What a stranger may take from the node.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Protection {
    /// Connections from one address (IPv6: one /64) at most; more are closed at once. 0: no bound. Trusted
    /// proxies are exempt, since each carries the connections of many clients. Of HTTP/2 streams that wait
    /// to be read for longer than a second, there may be as many, or as many as one connection may have.
    pub connections_per_address: u32,
    /// Connections at most. 0: no bound.
    pub connections: u32,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Span,
    /// From a connection to the end of its TLS handshake.
    pub handshake_timeout: Span,
    /// A client that takes nothing of an answer for this long is cut off; in HTTP/2, from one answer alone where it
    /// takes others.
    pub write_timeout: Span,
    /// How long a connection may stay idle between requests.
    pub keepalive: Span,
    /// Requests on one connection, after which it is closed.
    pub keepalive_requests: u32,
    /// The largest head of a request in HTTP/1, and header list in HTTP/2.
    pub max_head: ByteSize,
    /// Header fields in one request.
    pub max_header_fields: u16,
    /// Request bodies slower than this for ten seconds in a row are cut off. 0: no bound.
    pub min_body_rate: ByteSize,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
    /// Streams that a client may reset within ten seconds before its connection is closed
    /// (CVE-2023-44487).
    pub h2_resets: u32,
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            connections_per_address: 1024,
            connections: 0,
            head_timeout: Span::from_secs(10),
            handshake_timeout: Span::from_secs(10),
            write_timeout: Span::from_secs(60),
            keepalive: Span::from_secs(75),
            keepalive_requests: 10_000,
            max_head: ByteSize::new(32 << 10),
            max_header_fields: 128,
            min_body_rate: ByteSize::new(256),
            h2_streams: 128,
            h2_resets: 200,
        }
    }
}

/// What a worker thread that is overloaded refuses with 503, routes of low `priority` first. Each worker finds
/// by itself how many requests it can have in flight. Those that are slow, since they wait for an upstream or
/// a client, are not counted after a fifth of a second, and neither are WebSockets and event streams.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shedding {
    pub enabled: bool,
    /// Whatever is ready to go on waits in the worker for this long at least: that is overload.
    pub target_lag: Span,
    /// So few requests in flight are never taken for the cause of overload. For one worker. Lower it where
    /// single requests cost much, by compression or transforms.
    pub min_limit: u32,
    /// The limit while there is no overload. For one worker.
    pub max_limit: u32,
}

impl Default for Shedding {
    fn default() -> Self {
        Self { enabled: true, target_lag: Span::from_millis(20), min_limit: 100, max_limit: 50_000 }
    }
}

/// What is believed of `X-Forwarded-*`, and what is sent on.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Forwarding {
    /// Peers whose `X-Forwarded-For`, `-Proto` and `-Host` are believed. Those of others are replaced, and
    /// what else speaks of the client or of another target is removed: `Forwarded`, `X-Real-IP`,
    /// `X-Client-IP`, `X-Cluster-Client-IP`, `X-Envoy-External-Address`, `True-Client-IP`,
    /// `CF-Connecting-IP`, `X-Original-URL`, `X-Rewrite-URL`.
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
}

/// Which addresses the node may connect to. Link-local and cloud metadata addresses are always refused.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    pub allow_loopback: bool,
    /// RFC 1918, RFC 4193 and RFC 6598 ranges.
    pub allow_private: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Name servers. Default: those of `/etc/resolv.conf`.
    pub servers: Vec<HostPort>,
    /// Names are looked up again after their TTL, but not more often than this.
    pub min_refresh: Span,
    /// And at least this often.
    pub max_refresh: Span,
}

impl Default for Dns {
    fn default() -> Self {
        Self { servers: Vec::new(), min_refresh: Span::from_secs(5), max_refresh: Span::from_secs(60) }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogOutput {
    pub output: LogOutput,
    /// Multiplied with the tenant's own share. Requests that end in 5xx are always logged.
    pub sample: Percent,
}

impl Default for AccessLogOutput {
    fn default() -> Self {
        Self { output: LogOutput::Stdout, sample: Percent::new_const(100) }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LogOutput {
    Off,
    Stdout,
    /// Appended to; reopened on SIGHUP.
    File(PathBuf),
}

/// What tenants, routes and consumers have used, kept under `state_dir` until it is taken over.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageLog {
    /// Disk space at most; beyond it the oldest goes first, taken over or not. 0: usage is not kept.
    pub retain: ByteSize,
}

impl Default for UsageLog {
    fn default() -> Self {
        Self { retain: ByteSize::new(256 << 20) }
    }
}

/// What happens between TERM or QUIT and the end.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// WebSockets and event streams may go on this long. The node ends at once when nothing is in flight.
    pub timeout: Span,
    /// How long `/readyz` says no before listeners close, for load balancers to notice.
    pub delay: Span,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: Span::from_secs(3600), delay: Span::from_millis(0) }
    }
}

/// The key that signs the caller's identity for upstreams.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AssertionKey {
    /// PEM file of a P-256 private key (PKCS #8), shared by all nodes. Default: one made under
    /// `state_dir` at first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// How long an assertion is valid.
    pub lifetime: Span,
    /// `iss` of the assertions.
    pub issuer: String,
}

impl Default for AssertionKey {
    fn default() -> Self {
        Self { key: None, lifetime: Span::from_secs(60), issuer: "seiketsu-gateway".to_owned() }
    }
}

/// Where rate limits, quotas and concurrency limits are counted.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeLimits {
    /// Shared by all nodes, so that limits hold for all of them together. Without it this node counts by
    /// itself, in its own process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub url: RedisUrl,
}

/// Responses that are kept, of all tenants together.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeCache {
    /// Memory that they may take. 0: none are kept.
    pub memory: ByteSize,
}

impl Default for NodeCache {
    fn default() -> Self {
        Self { memory: ByteSize::new(256 << 20) }
    }
}
