//! Counting, and the Prometheus text that comes of it.
//!
//! The request path counts into memory of its own thread (`shard`) through a handle that the compiled
//! configuration holds ([`TenantMetrics`]): no lock, no look-up by name, no allocation. Everything is
//! summed when `/metrics` is read. What happens less than once per request lives in [`NodeMetrics`].

mod cache;
mod certificates;
mod family;
mod histogram;
mod labels;
mod limits;
mod node;
mod process;
mod shard;
mod shedding;
mod tenants;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

use prometheus::{Registry, TextEncoder, proto::MetricFamily};
use seiketsu_limits::shedding::Shedder;

use self::{
    family::Family,
    histogram::{BOUNDS, COARSE_BOUNDS},
    shard::{CLASSES, FIRST_NAMED, NO_ROUTE},
    tenants::{NamedSum, Tenants, TenantsSum},
};
pub use self::{
    labels::{Attempt, BreakerState, CacheResult, DnsFailure, Ejection, Label, LogDrop, Reload, Stage},
    node::{ConnectionMetrics, ControlPlaneMetrics, Counters, NodeMetrics, OpenConnection, UsageMetrics},
    shard::{InFlight, Outcome, RouteSlot},
    tenants::{RouteTable, TenantMetrics},
};
use super::names;
use crate::{cache::Cache, limits::Limits, respond::problem::ProblemKind, server::tls::LiveTls};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics of the node. Made once at start, first thing, since it also notes when that was.
pub struct Metrics {
    /// What is counted less than once per request.
    pub node: NodeMetrics,
    registry: Registry,
    tenants: Tenants,
    shedders: Arc<[Arc<Shedder>]>,
    limits: OnceLock<Arc<Limits>>,
    cache: OnceLock<Arc<Cache>>,
    tls: OnceLock<Arc<LiveTls>>,
    started: SystemTime,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Metrics {
    /// `workers`: how many threads will serve requests; `shedders`: theirs, if they shed load. Fails only if two
    /// metrics have one name.
    pub fn new(workers: usize, shedders: Arc<[Arc<Shedder>]>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let node = NodeMetrics::new(&registry)?;
        let tenants = Tenants::new(workers, Instant::now());
        Ok(Self {
            node,
            registry,
            tenants,
            shedders,
            limits: OnceLock::new(),
            cache: OnceLock::new(),
            tls: OnceLock::new(),
            started: SystemTime::now(),
        })
    }

    /// The counters of a tenant, the same for the same id over all configurations. Called when a
    /// configuration is compiled, not on the request path.
    pub fn tenant(&self, id: &str) -> Arc<TenantMetrics> {
        self.tenants.tenant(id)
    }

    /// The counters of requests that no tenant could be found for.
    pub fn no_tenant(&self) -> &Arc<TenantMetrics> {
        self.tenants.none()
    }

    /// Shows these limits too; the first ones that are given.
    pub(crate) fn show_limits(&self, limits: Arc<Limits>) {
        // A node has no others.
        let _ = self.limits.set(limits);
    }

    /// Shows this cache too; the first one that is given.
    pub(crate) fn show_cache(&self, cache: Arc<Cache>) {
        // A node has no other.
        let _ = self.cache.set(cache);
    }

    /// Shows these certificates too; the first ones that are given.
    pub(crate) fn show_certificates(&self, tls: Arc<LiveTls>) {
        // A node has no others.
        let _ = self.tls.set(tls);
    }

    /// What the accept loops count with.
    pub fn connections(&self) -> ConnectionMetrics {
        self.node.connections.clone()
    }

    /// A copy of a request for a mirror upstream was sent, or why not: a word in `snake_case`.
    pub fn mirrored(&self, result: &'static str) {
        self.node.mirrored.with_label_values(&[result]).inc();
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        let tenants = self.tenants.collect(Instant::now());
        families.extend(tenant_families(&tenants));
        families.extend(self.cache.get().map(|cache| cache::families(cache, &tenants)).unwrap_or_default());
        families.extend(self.tls.get().and_then(|tls| certificates::family(tls)));
        families.extend(shedding::families(&self.shedders));
        families.extend(self.limits.get().map(|limits| limits::families(limits)).unwrap_or_default());
        families.extend(process::families(self.started));
        let mut build = Family::gauge(names::BUILD_INFO);
        build.add(&[env!("CARGO_PKG_VERSION")], 1.0);
        families.extend(build.finish());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        // It can only refuse a family without a name or without samples, and there is none.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn tenant_families(sums: &TenantsSum) -> Vec<MetricFamily> {
    let mut requests = Family::counter(names::REQUESTS);
    let mut refusals = Family::counter(names::REFUSALS);
    let mut durations = Family::histogram(names::REQUEST_DURATION);
    let mut stages = Family::histogram(names::STAGE_DURATION);
    let mut in_flight = Family::gauge(names::IN_FLIGHT);
    let mut request_bytes = Family::counter(names::REQUEST_BYTES);
    let mut response_bytes = Family::counter(names::RESPONSE_BYTES);
    let mut attempts = Family::counter(names::UPSTREAM_ATTEMPTS);
    let mut retries = Family::counter(names::UPSTREAM_RETRIES);
    let mut nonconforming = Family::counter(names::NONCONFORMING);
    let mut tenants = Family::gauge(names::TENANTS);
    let mut cached = Family::counter(names::CACHE_REQUESTS);
    let mut cached_bytes = Family::counter(names::CACHE_SERVED_BYTES);

    for tenant in &sums.named {
        let (name, sum) = (&*tenant.name, &tenant.sum);
        add_requests(&mut requests, tenant);
        for (kind, count) in ProblemKind::ALL.iter().zip(sum.refusals) {
            refusals.add_counted(&[name, kind.name()], count);
        }
        durations.add_histogram(&[name], &sum.total, &COARSE_BOUNDS);
        in_flight.add(&[name], tenant.in_flight as f64);
        request_bytes.add(&[name], sum.bytes_in as f64);
        response_bytes.add(&[name], sum.bytes_out as f64);
        for (result, count) in Attempt::VALUES.iter().zip(sum.attempts) {
            attempts.add_counted(&[name, result], count);
        }
        retries.add_counted(&[name], sum.retries);
        nonconforming.add_counted(&[name], sum.nonconforming);
        for (result, count) in CacheResult::VALUES.iter().zip(sum.cached) {
            cached.add_counted(&[name, result], count);
        }
        cached_bytes.add_counted(&[name], sum.cached_bytes);
    }
    for (stage, sum) in Stage::VALUES.iter().zip(&sums.stages) {
        stages.add_histogram(&[stage], sum, &BOUNDS);
    }
    tenants.add(&[], sums.tenants as f64);

    let families = [
        requests,
        refusals,
        nonconforming,
        durations,
        stages,
        in_flight,
        request_bytes,
        response_bytes,
        attempts,
        retries,
        tenants,
        cached,
        cached_bytes,
    ];
    families.into_iter().filter_map(Family::finish).collect()
}

fn add_requests(requests: &mut Family, tenant: &NamedSum) {
    let Some(routes) = &tenant.routes else {
        let by_class = tenant.sum.requests_by_class();
        for (class, count) in CLASSES.iter().zip(by_class) {
            requests.add_counted(&[&tenant.name, names::OTHER, class], count);
        }
        return;
    };
    for (place, (row, route)) in tenant.sum.requests.iter().zip(routes).enumerate() {
        let route = match route {
            Some(name) => &**name,
            None if place == usize::from(NO_ROUTE) => names::NONE,
            None if place < FIRST_NAMED => names::OTHER,
            None => continue,
        };
        for (class, count) in CLASSES.iter().zip(row) {
            requests.add_counted(&[&tenant.name, route, class], *count);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::HashMap, path::Path, time::Duration};

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use seiketsu_cache::{
        directives::ResponseDirectives,
        freshness::Exchange,
        key::Resource,
        reuse::Rules,
        stored::{Parts, Stored},
        time::Timestamp,
        vary::Selection,
    };
    use seiketsu_config::node::{NodeConfig, NodeLimits, Redis};
    use seiketsu_limits::shedding::{Priority, Settings};

    use tokio::runtime::Runtime;

    use super::*;
    use crate::{
        limits::refusals::{Counts, Label, Scope},
        server::tls::development_certificate,
        tenancy::{Live, Snapshot},
    };

    /// For two workers, of which the first has had to shed a request.
    fn metrics() -> Metrics {
        let settings = Settings { target_lag: Duration::from_millis(20), min_limit: 1, max_limit: 2 };
        let shedders: Arc<[_]> = (0..2).map(|_| Arc::new(Shedder::new(settings))).collect();
        let _first = shedders[0].admit(Priority::Critical).unwrap();
        shedders[0].admit(Priority::Low).unwrap_err();
        Metrics::new(2, shedders).unwrap()
    }

    /// A strict reader of the text format: value by series, and type by family.
    fn parse(text: &str) -> (HashMap<String, f64>, HashMap<String, String>) {
        let (mut samples, mut types) = (HashMap::new(), HashMap::new());
        let mut family = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, text) = help.split_once(' ').unwrap();
                assert!(!text.is_empty());
                name.clone_into(&mut family);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family, "HELP and TYPE belong together");
                assert!(["counter", "gauge", "histogram"].contains(&kind));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} stands twice");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                assert!(name == family || base == Some(&family), "{name} within {family}");
                if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                    let labels = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).unwrap();
                    for label in labels.split(',') {
                        let (key, value) = label.split_once("=\"").unwrap();
                        assert!(key.bytes().all(|b| b.is_ascii_lowercase()), "{line}");
                        assert!(value.ends_with('"') && !value[..value.len() - 1].contains('"'), "{line}");
                    }
                }
                assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
            }
        }
        (samples, types)
    }

    /// Of a node whose Redis is not there.
    fn limits(state_dir: &Path) -> (Runtime, Arc<Limits>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = "redis://127.0.0.1:1".parse().unwrap();
        let node = NodeConfig {
            state_dir: state_dir.to_owned(),
            limits: NodeLimits { redis: Some(Redis { url }) },
            ..NodeConfig::default()
        };
        let limits = Arc::new(Limits::start(&node, runtime.handle()).unwrap());
        (runtime, limits)
    }

    fn serve(metrics: &Metrics) -> Arc<RouteTable> {
        let tenant = metrics.tenant("acme");
        let routes = tenant.routes(["echo"]);
        let mut outcome = Outcome {
            route: routes.slot(0),
            status: 200,
            refusal: None,
            total: Duration::from_millis(100),
            upstream: Some(Duration::from_millis(80)),
            bytes_in: 5,
            bytes_out: 1024,
        };
        let request = tenant.begin();
        request.attempt(Attempt::ConnectFailure);
        request.retry();
        request.nonconforming();
        request.attempt(Attempt::Answered);
        request.finish(&outcome);
        outcome.status = 429;
        outcome.refusal = Some(ProblemKind::QuotaExceeded);
        outcome.upstream = None;
        tenant.begin().finish(&outcome);
        outcome.route = RouteSlot::NONE;
        outcome.refusal = Some(ProblemKind::UnknownHost);
        outcome.status = 404;
        metrics.no_tenant().begin().finish(&outcome);
        let connections = metrics.connections();
        connections.tls_handshake("timeout");
        connections.refused("address");
        connections.early_error("head_timeout");
        metrics.mirrored("sent");
        let _connection = connections.accepted();
        metrics.node.config_reloaded(Reload::Applied, 7, 1.5);
        metrics.node.config_reloaded(Reload::Refused, 7, 9.0);
        let _still_open = tenant.begin();
        let (samples, _) = parse(&metrics.render());
        assert!((samples["seiketsu_connections_open"] - 1.0).abs() < 1e-9);
        assert!((samples["seiketsu_requests_in_flight{tenant=\"acme\"}"] - 1.0).abs() < 1e-9);
        routes
    }

    #[test]
    fn the_text_says_what_was_counted() {
        let metrics = metrics();
        let _in_use = serve(&metrics);
        let folder = tempfile::tempdir().unwrap();
        let (_runtime, limits) = limits(folder.path());
        limits.refusals.count(Label { scope: Scope::Tenant, counts: Counts::Rate });
        metrics.show_limits(limits);
        metrics.tenant("acme").begin().cached(CacheResult::Hit, 70);
        let runtime = Runtime::new().unwrap();
        let cache = Arc::new(Cache::start(&NodeConfig::default(), 1, runtime.handle()).unwrap());
        let partition = cache.storage.partition("acme", 1 << 20);
        let at = Timestamp::from_unix(1);
        let stored = Stored::new(Parts {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            rules: Rules::new(&ResponseDirectives::default(), 60, 0, Exchange { requested: at, answered: at }),
            selection: Selection::default(),
            since: partition.purges().latest(),
        });
        assert!(partition.store(b"key", &Resource::new(b"a.test", "/", None), stored));
        metrics.show_cache(cache);
        let live = Arc::new(Live::new(Snapshot::empty()).unwrap());
        let tls = Arc::new(LiveTls::new(&live).unwrap());
        tls.load_node(&[development_certificate(folder.path()).unwrap()]).unwrap();
        metrics.show_certificates(tls);
        let (samples, types) = parse(&metrics.render());
        let expected = [
            (r#"seiketsu_requests_total{tenant="acme",route="echo",class="2xx"}"#, 1.0),
            (r#"seiketsu_requests_total{tenant="_none",route="_other",class="4xx"}"#, 1.0),
            (r#"seiketsu_refusals_total{tenant="acme",reason="quota-exceeded"}"#, 1.0),
            (r#"seiketsu_refusals_total{tenant="_none",reason="unknown-host"}"#, 1.0),
            (r#"seiketsu_request_duration_seconds_bucket{tenant="acme",le="0.1"}"#, 2.0),
            (r#"seiketsu_request_duration_seconds_bucket{tenant="acme",le="0.07"}"#, 0.0),
            (r#"seiketsu_request_duration_seconds_bucket{tenant="acme",le="+Inf"}"#, 2.0),
            (r#"seiketsu_request_duration_seconds_sum{tenant="acme"}"#, 0.2),
            (r#"seiketsu_stage_duration_seconds_count{stage="total"}"#, 3.0),
            (r#"seiketsu_stage_duration_seconds_bucket{stage="upstream",le="0.08"}"#, 1.0),
            (r#"seiketsu_stage_duration_seconds_sum{stage="gateway"}"#, 0.22),
            (r#"seiketsu_requests_in_flight{tenant="acme"}"#, 0.0),
            (r#"seiketsu_response_bytes_total{tenant="acme"}"#, 2048.0),
            (r#"seiketsu_upstream_attempts_total{tenant="acme",result="connect_failure"}"#, 1.0),
            (r#"seiketsu_upstream_retries_total{tenant="acme"}"#, 1.0),
            (r#"seiketsu_tls_handshakes_total{result="timeout"}"#, 1.0),
            ("seiketsu_connections_accepted_total", 1.0),
            ("seiketsu_connections_open", 0.0),
            (r#"seiketsu_breaker_transitions_total{state="half_open"}"#, 0.0),
            (r#"seiketsu_config_reloads_total{result="refused"}"#, 1.0),
            ("seiketsu_config_revision", 7.0),
            ("seiketsu_config_last_success_timestamp_seconds", 1.5),
            ("seiketsu_tenants", 1.0),
            (r#"seiketsu_worker_lag_seconds{worker="1"}"#, 0.0),
            (r#"seiketsu_shedding_limit{worker="0"}"#, 2.0),
            (r#"seiketsu_shedding_requests_in_flight{priority="critical"}"#, 0.0),
            (r#"seiketsu_shed_requests_total{priority="low"}"#, 1.0),
            (r#"seiketsu_limit_refusals_total{scope="tenant",limit="rate"}"#, 1.0),
            ("seiketsu_limit_coordinator_up", 0.0),
            (r#"seiketsu_cache_requests_total{tenant="acme",result="hit"}"#, 1.0),
            (r#"seiketsu_cache_served_bytes_total{tenant="acme"}"#, 70.0),
            (r#"seiketsu_cache_stored_keys{tenant="acme"}"#, 1.0),
            (r#"seiketsu_cache_purges_total{by="missed"}"#, 0.0),
            ("seiketsu_cache_purges_heard", 1.0),
            // rcgen's last moment: the beginning of the year 4096.
            (r#"seiketsu_certificate_not_after_timestamp_seconds{tenant="_none",host="localhost"}"#, 67_090_118_400.0),
        ];
        for (series, value) in expected {
            let found = samples.get(series).copied();
            assert!(found.is_some_and(|found| (found - value).abs() < 1e-9), "{series}: {found:?}, not {value}");
        }
        for metric in names::ALL {
            assert!(types.contains_key(metric.name), "{} is never shown", metric.name);
        }
    }

    #[test]
    fn the_text_stays_bounded_with_many_tenants_and_routes() {
        let metrics = metrics();
        let ids: Vec<String> = (0..200).map(|n| format!("r{n}")).collect();
        let mut held = Vec::new();
        for n in 0..2_000 {
            let tenant = metrics.tenant(&format!("t{n}"));
            let routes = tenant.routes(ids.iter().map(String::as_str));
            tenant.begin();
            held.push(routes);
        }
        let (samples, _) = parse(&metrics.render());
        assert!(samples.keys().filter(|series| series.contains("tenant=")).count() < 101 * 50);
    }
}
