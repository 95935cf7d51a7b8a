//! A node's own configuration.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use url::{Host, Url};

use super::{Findings, Rule, policies::networks};
use crate::{
    node::{ControlPlane, NodeConfig, Shedding},
    path::At,
    values::{ByteSize, Span},
};

/// More threads than this are a slip of the hand.
const MOST_THREADS: usize = 1024;

/// Less than this and not even the requests of a browser pass.
const LEAST_HEAD: ByteSize = ByteSize::new(1024);

/// Each connection may hold as much.
const MOST_HEAD: ByteSize = ByteSize::new(1 << 20);

/// More than this and ordinary clients are cut off.
const MOST_RATE: ByteSize = ByteSize::new(1 << 20);

/// Far more than a process may have open.
const MOST_POOLED: usize = 1_000_000;

/// Less than this and the usage of a busy second does not fit.
const LEAST_USAGE: ByteSize = ByteSize::new(64 << 10);
/// Timers are no more exact than a millisecond, and a system that is busy with something else is late as well.
const LEAST_LAG: Span = Span::from_millis(5);

pub(super) fn check(config: &NodeConfig, findings: &mut Findings) {
    let root = At::ROOT;
    listeners(root.key("listeners"), config, findings);
    let forwarding = root.key("forwarding");
    trusted(forwarding.key("trusted_proxies"), &config.forwarding.trusted_proxies, "X-Forwarded-For", findings);
    protection(root.key("protection"), config, findings);
    shedding(root.key("shedding"), &config.shedding, findings);
    if config.zone.is_some() && config.region.is_none() {
        findings.add_without_value(root.key("zone"), Rule::ZoneWithoutRegion);
    }
    if config.threads > MOST_THREADS {
        findings.add(
            root.key("threads"),
            config.threads,
            Rule::TooMuch { what: "the number of threads", most: "1024" },
        );
    }
    if config.upstream_pool_size > MOST_POOLED {
        let rule = Rule::TooMuch { what: "the number of idle connections", most: "1000000" };
        findings.add(root.key("upstream_pool_size"), config.upstream_pool_size, rule);
    }
    for (key, path) in [("tenants", config.tenants.as_ref()), ("state_dir", Some(&config.state_dir))] {
        not_empty(root.key(key), path, findings);
    }
    if let Some(settings) = &config.control_plane {
        let at = root.key("control_plane");
        if config.tenants.is_some() {
            findings.add_without_value(at, Rule::TwoSources);
        }
        control_plane(at, settings, findings);
    }
    if (1..LEAST_USAGE.get()).contains(&config.usage.retain.get()) {
        let rule = Rule::BadForm {
            what: "a size that usage can be kept in",
            form: "64KiB at least, or 0 to keep none; 256MiB is usual",
        };
        findings.add(root.key("usage").key("retain"), config.usage.retain, rule);
    }
    let dns = root.key("dns");
    if config.dns.max_refresh.get().is_zero() {
        let rule = Rule::Zero { what: "the longest time between two look-ups", least: "at least 1s" };
        findings.add(dns.key("max_refresh"), config.dns.max_refresh, rule);
    }
    if config.dns.min_refresh > config.dns.max_refresh {
        let rule = Rule::Reversed {
            low: "min_refresh",
            low_value: config.dns.min_refresh.to_string(),
            high: "max_refresh",
            high_value: config.dns.max_refresh.to_string(),
        };
        findings.add(dns.key("min_refresh"), config.dns.min_refresh, rule);
    }
    findings.duplicates(dns.key("servers"), "name server", &config.dns.servers);
    let identity = root.key("identity");
    if config.identity.lifetime.get().is_zero() {
        let rule = Rule::Zero { what: "the lifetime of an assertion", least: "at least 10s" };
        findings.add(identity.key("lifetime"), config.identity.lifetime, rule);
    }
    if config.identity.issuer.is_empty() {
        let rule = Rule::Empty { what: "the issuer", add: "a name that upstreams can check, or leave the key out" };
        findings.add_without_value(identity.key("issuer"), rule);
    }
}

fn not_empty(at: At<'_>, path: Option<&PathBuf>, findings: &mut Findings) {
    if path.is_some_and(|path| path.as_os_str().is_empty()) {
        findings.add_without_value(at, Rule::Empty { what: "the path", add: "one, or leave the key out" });
    }
}

fn control_plane(at: At<'_>, settings: &ControlPlane, findings: &mut Findings) {
    let (url, place) = (&settings.url, at.key("url"));
    let has_more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
    if !url.username().is_empty() || url.password().is_some() {
        findings.add_without_value(place, Rule::PasswordInUrl);
    } else if !matches!(url.scheme(), "http" | "https") || !url.has_host() || has_more {
        let rule = Rule::BadForm { what: "where a control plane is", form: "https://host:port, and nothing behind it" };
        findings.add(place, url, rule);
    } else if url.scheme() == "http" && !is_this_machine(url) && !settings.insecure_plain_http {
        findings.add(place, url, Rule::ControlPlaneNotSecure);
    }
    if settings.token.is_none() && settings.certificate.is_none() {
        let rule = Rule::Empty { what: "what the node shows", add: "a token, or a certificate" };
        findings.add_without_value(at.key("token"), rule);
    }
    for (key, path) in [("ca", &settings.ca), ("files", &settings.files)] {
        not_empty(at.key(key), path.as_ref(), findings);
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn listeners(at: At<'_>, config: &NodeConfig, findings: &mut Findings) {
    let listeners = &config.listeners;
    if listeners.http.is_empty() && listeners.https.is_empty() {
        findings.add_without_value(at, Rule::NoListener);
    }
    let mut taken: Vec<(SocketAddr, &'static str)> = vec![(listeners.operations, "the operations listener")];
    for (key, name, addresses) in
        [("http", "an http listener", &listeners.http), ("https", "an https listener", &listeners.https)]
    {
        for (index, address) in addresses.iter().enumerate() {
            if let Some((_, other)) = taken.iter().find(|(other, _)| clash(*other, *address)) {
                findings.add(at.key(key).index(index), address, Rule::AddressTaken { other });
            }
            taken.push((*address, name));
        }
    }
    trusted(at.key("proxy_protocol_from"), &listeners.proxy_protocol_from, "the PROXY protocol", findings);
}

/// Whether the second listener cannot be bound once the first is. Port 0 is any free one.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || same_family && (a.ip().is_unspecified() || b.ip().is_unspecified()))
}

fn trusted(at: At<'_>, peers: &[IpNet], what: &'static str, findings: &mut Findings) {
    networks(at, peers, findings);
    for (index, network) in peers.iter().enumerate().filter(|(_, network)| network.prefix_len() == 0) {
        findings.add(at.index(index), network, Rule::TrustsEveryone { what });
    }
}

fn protection(at: At<'_>, config: &NodeConfig, findings: &mut Findings) {
    let protection = &config.protection;
    let spans = [
        ("head_timeout", "the time for the head of a request", protection.head_timeout),
        ("handshake_timeout", "the time for a TLS handshake", protection.handshake_timeout),
        ("keepalive", "the time that a connection may stay idle", protection.keepalive),
    ];
    for (key, what, span) in spans {
        if span.get().is_zero() {
            findings.add(at.key(key), span, Rule::Zero { what, least: "at least 1s" });
        }
    }
    let counts = [
        ("keepalive_requests", "the number of requests on a connection", protection.keepalive_requests),
        ("max_header_fields", "the number of header fields", u32::from(protection.max_header_fields)),
        ("h2_streams", "the number of streams", protection.h2_streams),
        ("h2_resets", "the number of resets", protection.h2_resets),
    ];
    for (key, what, count) in counts {
        if count == 0 {
            findings.add(at.key(key), count, Rule::Zero { what, least: "at least 1" });
        }
    }
    if protection.max_head < LEAST_HEAD {
        let rule = Rule::BadForm {
            what: "a size that the head of any request fits in",
            form: "1KiB at least; 32KiB is usual",
        };
        findings.add(at.key("max_head"), protection.max_head, rule);
    }
    let bounds = [
        ("max_head", "the size of a head", protection.max_head, MOST_HEAD),
        ("min_body_rate", "the least pace of a body", protection.min_body_rate, MOST_RATE),
    ];
    for (key, what, size, _) in bounds.into_iter().filter(|(_, _, size, most)| size > most) {
        findings.add(at.key(key), size, Rule::TooMuch { what, most: "1MiB" });
    }
}

fn shedding(at: At<'_>, shedding: &Shedding, findings: &mut Findings) {
    if shedding.target_lag < LEAST_LAG {
        let rule =
            Rule::BadForm { what: "a lag that only an overloaded worker has", form: "5ms at least; 20ms is usual" };
        findings.add(at.key("target_lag"), shedding.target_lag, rule);
    }
    if shedding.min_limit == 0 {
        let rule = Rule::Zero { what: "the number of requests that are always served", least: "at least 1" };
        findings.add(at.key("min_limit"), shedding.min_limit, rule);
    }
    if shedding.min_limit > shedding.max_limit {
        let rule = Rule::Reversed {
            low: "min_limit",
            low_value: shedding.min_limit.to_string(),
            high: "max_limit",
            high_value: shedding.max_limit.to_string(),
        };
        findings.add(at.key("min_limit"), shedding.min_limit, rule);
    }
}
