//! `--check-config`: everything a start would refuse, without starting.

use std::sync::Arc;

use seiketsu_cache::storage::Storage;
use seiketsu_config::{
    load,
    node::{ControlPlane, NodeConfig, Source},
};
use tokio::runtime::{Builder, Handle};

use super::{
    compile::{FileChange, FileCompiler, Files, Refresh},
    conflicts,
    head::Parts,
    pushed::subscription::{Credentials, EGRESS},
    tenant_files::{Scope, TenantFiles},
};
use crate::{
    limits::Limits,
    node::NO_CERTIFICATE,
    proxy,
    server::{tls::LiveTls, worker_count},
    telemetry::metrics::{Counters, DnsFailure, Metrics},
    tenancy::{Live, Snapshot},
    upstream::{outbound::OutboundClient, registry::UpstreamRegistry, resolver::Resolver, tls::SystemRoots},
};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigRefused(Vec<String>);

/// Reads, checks and compiles the tenant configuration; says how many tenants there are.
pub fn check_config(node: &NodeConfig) -> Result<String, ConfigRefused> {
    let refused = |error: &dyn std::fmt::Display| ConfigRefused(vec![error.to_string()]);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| refused(&error))?;
    let metrics = Metrics::new(worker_count(node), [].into()).map_err(|error| refused(&error))?;
    let failures = metrics.node.dns_failures.clone();
    let path = match node.source() {
        Source::Files(path) => path,
        Source::ControlPlane(settings) => return check_control_plane(node, settings, failures, runtime.handle()),
    };
    let resolver =
        Resolver::new(&node.dns, (&node.egress).into(), failures, runtime.handle().clone()).map_err(|e| refused(&e))?;
    let roots = SystemRoots::default();
    let outbound = OutboundClient::new(resolver.clone(), &roots, runtime.handle().clone()).map_err(|e| refused(&e))?;
    let identity = Arc::new(proxy::identity(&outbound));
    let upstreams = UpstreamRegistry::new(node, resolver, roots, runtime.handle().clone());
    let live = Arc::new(Live::new(Snapshot::empty()).map_err(|error| refused(&error))?);
    let limits = Limits::by_itself(None, "check", runtime.handle()).map_err(|error| refused(&error))?;
    let cache = Storage::new(node.cache.memory.get());
    let tls = LiveTls::new(&live).map_err(|error| refused(&error))?;
    let compiler = FileCompiler(Parts {
        upstreams: &upstreams,
        identity: &identity,
        metrics: &metrics,
        limits: &limits,
        cache: &cache,
        resolver: &tls.resolver(),
        coming: tls.coming(),
        snapshot: &live.load(),
    });
    let _inside = runtime.enter();

    let found = TenantFiles::new(path, false).look(&Scope::All).map_err(|error| refused(&error))?;
    let read = found.read.into_iter().map(|path| (load::tenants_file_with(None, &path), path));
    let read = read.map(|(parsed, path)| (path, parsed)).collect();
    let (mut changes, wrong) = compiler.files(&Files::new(), read, |_| Refresh::All);
    let conflicts = conflicts::take_out(&mut changes, &Files::new(), &live.load());
    let certificates = tls.load_node(&node.tls.certificates).err().map(|error| error.to_string());
    let errors: Vec<String> = wrong
        .into_values()
        .flat_map(|refused| refused.errors)
        .chain(conflicts.into_values())
        .chain(certificates)
        .collect();
    if errors.is_empty() {
        let tenants: Vec<_> = changes.values().flat_map(FileChange::put).collect();
        let warning = if node.lacks_certificates(tenants.iter().map(|tenant| &***tenant)) {
            format!("\nwarning: {NO_CERTIFICATE}")
        } else {
            String::new()
        };
        let (tenants, files) = (tenants.len(), changes.len());
        Ok(format!("The configuration is good: {tenants} tenants in {files} file(s).{warning}"))
    } else {
        Err(ConfigRefused(errors))
    }
}

/// What can be known of a node whose tenants come from the control plane, without asking that.
fn check_control_plane(
    node: &NodeConfig,
    settings: &ControlPlane,
    failures: Counters<DnsFailure>,
    runtime: &Handle,
) -> Result<String, ConfigRefused> {
    let refused = |error: &dyn std::fmt::Display| ConfigRefused(vec![error.to_string()]);
    let resolver = Resolver::new(&node.dns, EGRESS, failures, runtime.clone()).map_err(|error| refused(&error))?;
    Credentials::read(settings, &resolver, &SystemRoots::default()).map_err(|error| refused(&error))?;
    let live = Arc::new(Live::new(Snapshot::empty()).map_err(|error| refused(&error))?);
    let tls = LiveTls::new(&live).map_err(|error| refused(&error))?;
    tls.load_node(&node.tls.certificates).map_err(|error| refused(&error))?;
    Ok(format!("The configuration of the node is good; its tenants come from {}.", settings.url))
}
