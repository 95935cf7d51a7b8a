//! An upstream's configuration, compiled: what its pool works from until the next one comes.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use seiketsu_config::tenant::{Balance, HashKey, HostHeader, Probe, Upstream, UpstreamProtocol, UpstreamTls};

use super::{
    connect::TlsTarget,
    egress::{Denied, EgressPolicy},
    outbound::HttpClient,
    tls::{SystemRoots, TlsError, TlsMaterial, server_name},
};

/// Why an upstream cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    #[error("endpoints: {0}")]
    Denied(#[from] Denied),
    #[error("protocol: http1 cannot carry a gRPC probe; use http2, or an http or tcp probe")]
    GrpcProbe,
}

/// Immutable; shared by the pool, its endpoints and their probes.
#[derive(Debug)]
pub struct Profile {
    pub config: Arc<Upstream>,
    pub tls: Option<TlsMaterial>,
    /// Made when the first request is mirrored here.
    pub(super) mirror: OnceLock<HttpClient>,
}

impl Profile {
    /// Checks what only the node can check, and reads the files. Blocks: call it off the request path.
    pub fn compile(config: &Arc<Upstream>, egress: EgressPolicy, roots: &SystemRoots) -> Result<Self, UpstreamError> {
        for endpoint in &config.endpoints {
            if let Ok(address) = endpoint.address.host().parse::<IpAddr>() {
                egress.check(address)?;
            }
        }
        let probes_grpc = config.health.as_ref().is_some_and(|health| matches!(health.probe, Probe::Grpc { .. }));
        if probes_grpc && config.protocol == UpstreamProtocol::Http1 {
            return Err(UpstreamError::GrpcProbe);
        }
        let tls = match &config.tls {
            None => None,
            Some(tls) => Some(Self::load_tls(config, tls, roots)?),
        };
        Ok(Self { config: Arc::clone(config), tls, mirror: OnceLock::new() })
    }

    fn load_tls(config: &Upstream, tls: &UpstreamTls, roots: &SystemRoots) -> Result<TlsMaterial, UpstreamError> {
        if tls.server_name.is_none() {
            for endpoint in &config.endpoints {
                server_name(endpoint.address.host())?;
            }
        }
        let alpn: &[&[u8]] = match config.protocol {
            UpstreamProtocol::Http1 => &[b"http/1.1"],
            UpstreamProtocol::Http2 => &[b"h2"],
            UpstreamProtocol::Auto => &[b"h2", b"http/1.1"],
        };
        Ok(TlsMaterial::load(tls, alpn, roots)?)
    }

    /// Whether nothing would change: the same settings, and the same content in the files they name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.config == other.config
            && self.tls.as_ref().map(|tls| tls.digest) == other.tls.as_ref().map(|tls| tls.digest)
    }

    /// Whether this is what `config` would compile to, as far as can be said without reading files.
    pub fn is_surely(&self, config: &Upstream) -> bool {
        config.tls.is_none() && *self.config == *config
    }

    /// What the consistent hash is made of, where the upstream is balanced by one.
    pub fn hash_key(&self) -> Option<&HashKey> {
        match &self.config.balance {
            Balance::ConsistentHash(key) => Some(key),
            Balance::LeastLatency | Balance::RoundRobin => None,
        }
    }

    pub fn host_header(&self) -> &HostHeader {
        &self.config.host_header
    }

    /// The name to be found in the certificate of an endpoint on `host`. `None`: there is no TLS.
    pub fn tls_name<'a>(&'a self, host: &'a str) -> Option<&'a str> {
        self.tls.as_ref().map(|tls| tls.server_name.as_deref().unwrap_or(host))
    }

    /// How probes and mirrored requests connect to an endpoint on `host`.
    pub fn tls_target(&self, host: &str) -> Result<Option<TlsTarget>, TlsError> {
        let (Some(tls), Some(name)) = (&self.tls, self.tls_name(host)) else { return Ok(None) };
        let server_name = server_name(name)?;
        Ok(Some(TlsTarget { config: Arc::clone(&tls.client_config), server_name }))
    }
}
