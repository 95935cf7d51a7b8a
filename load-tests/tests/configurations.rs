//! The gateway configurations that the load test and the comparison write are ones the gateway accepts.
#![allow(clippy::unwrap_used)]

use std::fs;

use seiketsu_config::{node::NodeConfig, tenant::TenantFile};
use seiketsu_load_tests::load::gateway::fill;

/// What the runs fill in, with values of the right kind.
fn filled(name: &str) -> String {
    let ports = ["plain", "policies", "tls", "origin"].map(|name| (name, "8080".to_owned()));
    let addresses = ["http", "west", "east"].map(|name| (name, "127.0.0.1:8080".to_owned()));
    let operations = if name.starts_with("peers") { "9090" } else { "127.0.0.1:9090" };
    let others = [
        ("operations", operations),
        ("folder", "/tmp/run"),
        ("tenants", "\"/tmp/run/tenants.yaml\""),
        ("state_dir", "\"/tmp/run/state\""),
        ("threads", "0"),
        ("tenant", "umbrella"),
        ("redis", "127.0.0.1:6379"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let template = fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    fill(&template, &[ports.as_slice(), &addresses, &others].concat())
}

#[test]
fn nodes_are_accepted() {
    for name in ["scenarios/node.yaml", "peers/seiketsu-node.yaml"] {
        let node: NodeConfig = serde_saphyr::from_str(&filled(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(node.egress.allow_loopback, "{name}: the origins are on the loopback address");
        assert_eq!(node.protection.connections_per_address, 0, "{name}: all connections come from one address");
    }
}

#[test]
fn tenants_are_accepted() {
    for (name, hosts) in [
        ("scenarios/tenants.yaml", vec!["umbrella.localhost"]),
        ("peers/seiketsu-tenants.yaml", vec!["plain.localhost", "localhost", "cached.localhost", "policies.localhost"]),
    ] {
        let file: TenantFile = serde_saphyr::from_str(&filled(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let named: Vec<_> = file.tenants.iter().flat_map(|tenant| &tenant.hosts).map(ToString::to_string).collect();
        assert_eq!(named, hosts, "{name}");
    }
}
