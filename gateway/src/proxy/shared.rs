//! What all workers share.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use ipnet::IpNet;
use seiketsu_config::{
    node::{NodeConfig, Shedding},
    tenant::CertificateFiles,
};
use seiketsu_identity::{
    assertion::AssertionSigner,
    clock::SystemClock,
    jwks::{FetchError, Fetched, HttpFetch},
    signing_key::SigningKeyError,
    state::IdentityState,
};
use seiketsu_limits::shedding::{Settings as SheddingSettings, Shedder};
use tokio::runtime::Handle;
use url::Url;

use crate::{
    cache::{Cache, purging::PurgingError},
    limits::{self, LimitsError},
    server::{
        tls::{self, TlsError},
        worker_count,
    },
    telemetry::{
        access_log::{AccessLog, AccessLogError},
        metrics::Metrics,
        trace::{TraceSettings, TraceSettingsError, Tracer, TracerError},
        usage::{Usage, UsageError},
    },
    tenancy::{Live, Snapshot, compile::CompiledTenant},
    upstream::{
        outbound::{Limits, OutboundClient, OutboundError},
        registry::UpstreamRegistry,
        resolver::{Resolver, ResolverError},
        tls::{SystemRoots, TlsError as UpstreamTlsError},
    },
};

/// Verified credentials that are remembered.
const REMEMBERED_CREDENTIALS: usize = 100_000;

/// The state of a node that requests use. Made once at start; what changes does so inside it.
pub(crate) struct Shared {
    pub(crate) live: Arc<Live<CompiledTenant>>,
    pub(crate) upstreams: UpstreamRegistry,
    pub(crate) outbound: OutboundClient,
    pub(crate) identity: Arc<IdentityState>,
    pub(crate) assertions: AssertionSigner,
    pub(crate) metrics: Arc<Metrics>,
    /// One for each worker; none where load shedding is off.
    pub(crate) shedders: Arc<[Arc<Shedder>]>,
    pub(crate) limits: Arc<limits::Limits>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) access_log: AccessLog,
    pub(crate) usage: Arc<Usage>,
    pub(crate) tracer: Tracer,
    pub(crate) node: Arc<NodeConfig>,
    pub(crate) development_certificate: Option<CertificateFiles>,
}

/// Why a node cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    #[error("outbound TLS: {0}")]
    UpstreamTls(#[from] UpstreamTlsError),
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(transparent)]
    TraceSettings(#[from] TraceSettingsError),
    #[error(transparent)]
    Tracer(#[from] TracerError),
    #[error(transparent)]
    SigningKey(#[from] SigningKeyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Limits(#[from] LimitsError),
    #[error(transparent)]
    Purging(#[from] PurgingError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Shared {
    /// Builds the state of a node. Background work runs on `runtime`.
    pub(crate) fn new(node: NodeConfig, runtime: &Handle) -> Result<Self, SharedError> {
        let workers = worker_count(&node);
        let shedders = shedders(&node.shedding, workers);
        let metrics = Arc::new(Metrics::new(workers, shedders.clone())?);
        let limits = Arc::new(limits::Limits::start(&node, runtime)?);
        metrics.show_limits(limits.clone());
        let cache = Arc::new(Cache::start(&node, workers, runtime)?);
        metrics.show_cache(cache.clone());
        let resolver =
            Resolver::new(&node.dns, (&node.egress).into(), metrics.node.dns_failures.clone(), runtime.clone())?;
        let roots = SystemRoots::default();
        let outbound = OutboundClient::new(resolver.clone(), &roots, runtime.clone())?;
        let id = node.id.as_str();
        let dropped = metrics.node.access_log_dropped.clone();
        let tracer = match TraceSettings::from_environment(|name| std::env::var(name).ok())? {
            Some(settings) => Tracer::start(&settings, id, metrics.node.spans_dropped.clone())?,
            None => Tracer::off(),
        };
        let usage = Usage::open(&node.usage, &node.state_dir, workers, metrics.node.usage.clone())?;
        let development_certificate =
            node.tls.development_certificate.then(|| tls::development_certificate(&node.state_dir)).transpose()?;
        Ok(Self {
            live: Arc::new(Live::new(Snapshot::empty())?),
            upstreams: UpstreamRegistry::new(&node, resolver, roots, runtime.clone()),
            identity: Arc::new(identity(&outbound)),
            outbound,
            assertions: AssertionSigner::open(&node.identity, &node.state_dir, Arc::new(SystemClock))?,
            access_log: AccessLog::open(&node.access_log, id, workers, dropped)?,
            metrics,
            limits,
            cache,
            usage: Arc::new(usage),
            shedders,
            tracer,
            development_certificate,
            node: Arc::new(node),
        })
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let trusted: &[IpNet] = &self.node.forwarding.trusted_proxies;
        trusted.iter().any(|network| network.contains(&address))
    }
}

fn shedders(shedding: &Shedding, workers: usize) -> Arc<[Arc<Shedder>]> {
    let settings = SheddingSettings {
        target_lag: shedding.target_lag.get(),
        min_limit: shedding.min_limit,
        max_limit: shedding.max_limit,
    };
    let workers = if shedding.enabled { workers } else { 0 };
    (0..workers).map(|_| Arc::new(Shedder::new(settings))).collect()
}

/// What identity keeps over changes of configuration.
pub(crate) fn identity(outbound: &OutboundClient) -> IdentityState {
    IdentityState::new(Arc::new(SystemClock), Arc::new(KeyFetch(outbound.clone())), REMEMBERED_CREDENTIALS)
}

/// Issuers' keys come over the gateway's one outbound client, under its egress policy.
#[derive(Debug)]
struct KeyFetch(OutboundClient);

#[async_trait]
impl HttpFetch for KeyFetch {
    async fn get(&self, url: &Url, max_bytes: usize) -> Result<Fetched, FetchError> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let request = http::Request::get(url.as_str()).body(Full::new(Bytes::new()));
        let request = request.map_err(|error| FetchError::Failed(Box::new(error)))?;
        let limits = Limits { timeout: TIMEOUT, max_body: max_bytes };
        let response = self.0.send(request, limits).await.map_err(|error| match error {
            OutboundError::Timeout(after) => FetchError::TimedOut(after),
            OutboundError::TooLong(bytes) => FetchError::TooLarge(bytes),
            error => FetchError::Failed(Box::new(error)),
        })?;
        if response.status() != http::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let max_age = response.headers().get(http::header::CACHE_CONTROL).and_then(max_age);
        Ok(Fetched { body: response.into_body(), max_age })
    }
}

fn max_age(value: &http::HeaderValue) -> Option<Duration> {
    let mut directives = value.to_str().ok()?.split(',').filter_map(|directive| directive.trim().split_once('='));
    let seconds = directives.find(|(name, _)| name.eq_ignore_ascii_case("max-age"))?.1;
    seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
}
