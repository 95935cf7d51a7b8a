//! What is measured of the push.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub(super) struct Metrics {
    pub(super) nodes: IntGauge,
    pub(super) changes: IntCounter,
    pub(super) whole: IntCounter,
    pub(super) prepared: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) acknowledgement: Histogram,
    pub(super) ended: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let updates = IntCounterVec::new(
            Opts::new("seiketsu_push_updates_total", "Updates sent to nodes: changes, or the whole configuration."),
            &["kind"],
        )?;
        let metrics = Self {
            nodes: IntGauge::new("seiketsu_push_nodes", "Nodes that are connected to this replica.")?,
            changes: updates.with_label_values(&["changes"]),
            whole: updates.with_label_values(&["whole"]),
            prepared: IntCounter::new(
                "seiketsu_push_updates_prepared_total",
                "Updates read from the store and written; nodes that lack the same share one.",
            )?,
            bytes: IntCounter::new("seiketsu_push_bytes_total", "Bytes of updates sent to nodes, as compressed.")?,
            acknowledgement: Histogram::with_opts(
                HistogramOpts::new(
                    "seiketsu_push_acknowledgement_seconds",
                    "From the first byte of an update to the node's word that it is in force.",
                )
                .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]),
            )?,
            ended: IntCounterVec::new(
                Opts::new("seiketsu_push_connections_ended_total", "Connections of nodes that ended, by reason."),
                &["reason"],
            )?,
        };
        registry.register(Box::new(metrics.nodes.clone()))?;
        registry.register(Box::new(updates))?;
        registry.register(Box::new(metrics.prepared.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.acknowledgement.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        Ok(metrics)
    }
}
