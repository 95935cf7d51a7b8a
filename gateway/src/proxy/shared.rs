//! What all workers share.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use seiketsu_config::node::NodeConfig;
use seiketsu_identity::{assertion::AssertionSigner, state::IdentityState};

use crate::{
    telemetry::{access_log::AccessLog, metrics::Metrics, trace::Tracer},
    tenancy::{compile::CompiledTenant, live::Live},
    upstream::{outbound::OutboundClient, registry::UpstreamRegistry},
};

/// The state of a node that requests use. Made once at start; what changes does so inside it.
pub(crate) struct Shared {
    pub(crate) live: Live<CompiledTenant>,
    pub(crate) upstreams: UpstreamRegistry,
    pub(crate) outbound: OutboundClient,
    pub(crate) identity: Arc<IdentityState>,
    pub(crate) assertions: AssertionSigner,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    pub(crate) tracer: Tracer,
    pub(crate) trusted_proxies: Box<[IpNet]>,
    /// The node's share of requests that are logged, between 0 and 1.
    pub(crate) log_sample: f64,
    pub(crate) node: Arc<NodeConfig>,
}

impl Shared {
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}
