//! `--check-config`: everything a start would refuse, without starting.

use seiketsu_config::{check, load, node::NodeConfig};
use tokio::runtime::Builder;

use super::compile::{FileCompiler, list};
use crate::{
    proxy,
    server::{tls, worker_count},
    telemetry::metrics::Metrics,
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
    let resolver =
        Resolver::new(&node.dns, (&node.egress).into(), runtime.handle().clone()).map_err(|e| refused(&e))?;
    let roots = SystemRoots::default();
    let outbound = OutboundClient::new(resolver.clone(), &roots, runtime.handle().clone()).map_err(|e| refused(&e))?;
    let identity = std::sync::Arc::new(proxy::identity(&outbound));
    let upstreams = UpstreamRegistry::new(node, resolver, roots, runtime.handle().clone());
    let metrics = Metrics::new(worker_count(node)).map_err(|error| refused(&error))?;
    let compiler = FileCompiler { upstreams: &upstreams, identity: &identity, metrics: &metrics };
    let _inside = runtime.enter();

    let mut errors = Vec::new();
    let mut files = Vec::new();
    for path in list(&node.tenants).map_err(|error| refused(&error))? {
        let parsed = load::tenants_file_with(None, &path).map_err(|errors| vec![errors.to_string()]);
        match parsed.and_then(|parsed| compiler.file(None, &path, parsed, true)) {
            Ok(ready) => files.push(ready.in_force.parsed),
            Err(found) => errors.extend(found),
        }
    }
    if let Err(conflicts) = check::across(&files) {
        errors.push(conflicts.to_string());
    }
    let tenants = || files.iter().flat_map(load::ParsedTenants::tenants);
    if let Err(error) = tls::Store::load(None, &node.tls.certificates, tenants().map(|tenant| &**tenant)) {
        errors.push(error.to_string());
    }
    if errors.is_empty() {
        Ok(format!("The configuration is good: {} tenants in {} file(s).", tenants().count(), files.len()))
    } else {
        Err(ConfigRefused(errors))
    }
}
