//! Metrics of the node as a whole: connections, TLS, upstream health, configuration, logs.

use std::{fmt, marker::PhantomData};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};

use super::labels::{BreakerState, DnsFailure, Ejection, Label, LogDrop, Reload};
use crate::telemetry::names::{self, Metric};

/// A counter for each value of a label, all of them found beforehand. Clones count together.
#[derive(Clone)]
pub struct Counters<L> {
    by_value: Box<[IntCounter]>,
    label: PhantomData<L>,
}

impl<L> fmt::Debug for Counters<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_value.iter().map(IntCounter::get)).finish()
    }
}

impl<L: Label> Counters<L> {
    pub fn count(&self, value: L) {
        self.by_value[value.index()].inc();
    }

    pub fn add(&self, value: L, many: u64) {
        self.by_value[value.index()].inc_by(many);
    }

    pub fn get(&self, value: L) -> u64 {
        self.by_value[value.index()].get()
    }
}

/// What becomes of client connections. Reasons and results are words from our own source, in
/// `snake_case`; that they are `'static` keeps anything a client sent out of the labels.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    accepted: IntCounter,
    open: IntGauge,
    refused: IntCounterVec,
    handshakes: IntCounterVec,
    early_errors: IntCounterVec,
}

impl ConnectionMetrics {
    /// A connection was accepted. It counts as open while the result is held.
    #[must_use = "the connection counts as open while this is held"]
    pub fn accepted(&self) -> OpenConnection {
        self.accepted.inc();
        self.open.inc();
        OpenConnection(self.open.clone())
    }

    /// A connection was closed before its first request.
    pub fn refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub fn tls_handshake(&self, result: &'static str) {
        self.handshakes.with_label_values(&[result]).inc();
    }

    /// The head of a request could not be accepted.
    pub fn early_error(&self, reason: &'static str) {
        self.early_errors.with_label_values(&[reason]).inc();
    }
}

/// See [`ConnectionMetrics::accepted`].
#[derive(Debug)]
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What becomes of records of usage.
#[derive(Debug, Clone)]
pub struct UsageMetrics {
    pub written: IntCounter,
    pub lost: IntCounter,
    pub write_failures: IntCounter,
    pub bytes: IntGauge,
    pub oldest: IntGauge,
}

/// How the control plane stands, and what becomes of what it sends.
#[derive(Debug, Clone)]
pub struct ControlPlaneMetrics {
    pub connected: IntGauge,
    pub failures: IntCounter,
    pub updates: Counters<Reload>,
    pub refused: IntGauge,
}

/// One field for each metric. Counting is one atomic addition.
#[derive(Debug)]
pub struct NodeMetrics {
    pub connections: ConnectionMetrics,
    pub retries_denied: IntCounter,
    pub dns_failures: Counters<DnsFailure>,
    pub ejections: Counters<Ejection>,
    pub endpoints_ejected: IntGauge,
    pub(super) mirrored: IntCounterVec,
    pub breaker_transitions: Counters<BreakerState>,
    pub breakers_open: IntGauge,
    pub access_log_dropped: Counters<LogDrop>,
    pub spans_dropped: IntCounter,
    pub usage: UsageMetrics,
    pub last_known_good_outdated: IntGauge,
    pub control_plane: ControlPlaneMetrics,
    config_reloads: Counters<Reload>,
    config_revision: IntGauge,
    config_last_success: Gauge,
    config_files_read: IntCounter,
    config_tenants_compiled: IntCounter,
}

impl NodeMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connections: ConnectionMetrics {
                accepted: counter(registry, names::CONNECTIONS_ACCEPTED)?,
                open: gauge(registry, names::CONNECTIONS_OPEN)?,
                refused: counter_vec(registry, names::CONNECTIONS_REFUSED)?,
                handshakes: counter_vec(registry, names::TLS_HANDSHAKES)?,
                early_errors: counter_vec(registry, names::EARLY_ERRORS)?,
            },
            retries_denied: counter(registry, names::RETRIES_DENIED)?,
            dns_failures: counters(registry, names::DNS_FAILURES)?,
            ejections: counters(registry, names::EJECTIONS)?,
            endpoints_ejected: gauge(registry, names::ENDPOINTS_EJECTED)?,
            mirrored: counter_vec(registry, names::MIRRORED)?,
            breaker_transitions: counters(registry, names::BREAKER_TRANSITIONS)?,
            breakers_open: gauge(registry, names::BREAKERS_OPEN)?,
            access_log_dropped: counters(registry, names::ACCESS_LOG_DROPPED)?,
            spans_dropped: counter(registry, names::SPANS_DROPPED)?,
            usage: UsageMetrics {
                written: counter(registry, names::USAGE_WRITTEN)?,
                lost: counter(registry, names::USAGE_LOST)?,
                write_failures: counter(registry, names::USAGE_WRITE_FAILURES)?,
                bytes: gauge(registry, names::USAGE_BYTES)?,
                oldest: gauge(registry, names::USAGE_OLDEST)?,
            },
            last_known_good_outdated: gauge(registry, names::LAST_KNOWN_GOOD_OUTDATED)?,
            control_plane: ControlPlaneMetrics {
                connected: gauge(registry, names::CONTROL_PLANE_CONNECTED)?,
                failures: counter(registry, names::CONTROL_PLANE_FAILURES)?,
                updates: counters(registry, names::CONTROL_PLANE_UPDATES)?,
                refused: gauge(registry, names::CONTROL_PLANE_REFUSED)?,
            },
            config_reloads: counters(registry, names::CONFIG_RELOADS)?,
            config_revision: gauge(registry, names::CONFIG_REVISION)?,
            config_last_success: register(registry, Gauge::with_opts(opts(names::CONFIG_LAST_SUCCESS))?)?,
            config_files_read: counter(registry, names::CONFIG_FILES_READ)?,
            config_tenants_compiled: counter(registry, names::CONFIG_TENANTS_COMPILED)?,
        })
    }

    /// A reload has read so many files, and found so many tenants new or changed.
    pub fn config_read(&self, files: usize, tenants: usize) {
        self.config_files_read.inc_by(files as u64);
        self.config_tenants_compiled.inc_by(tenants as u64);
    }

    /// A configuration was read; `revision` is the one that is running now, and `unix_seconds` the
    /// present time.
    pub fn config_reloaded(&self, result: Reload, revision: u64, unix_seconds: f64) {
        self.config_reloads.count(result);
        if result != Reload::Refused {
            self.config_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
            self.config_last_success.set(unix_seconds);
        }
    }
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, metric: Metric) -> Result<IntCounter, prometheus::Error> {
    register(registry, IntCounter::with_opts(opts(metric))?)
}

fn gauge(registry: &Registry, metric: Metric) -> Result<IntGauge, prometheus::Error> {
    register(registry, IntGauge::with_opts(opts(metric))?)
}

fn counter_vec(registry: &Registry, metric: Metric) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(opts(metric), metric.labels)?)
}

fn counters<L: Label>(registry: &Registry, metric: Metric) -> Result<Counters<L>, prometheus::Error> {
    let by_label = counter_vec(registry, metric)?;
    let by_value = L::VALUES.iter().map(|value| by_label.get_metric_with_label_values(&[*value]));
    Ok(Counters { by_value: by_value.collect::<Result<_, _>>()?, label: PhantomData })
}
