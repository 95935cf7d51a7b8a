//! Upstreams: endpoints, health checks, breakers.

use super::{
    Findings, Rule,
    forms::{is_authority, is_origin_form, is_token},
};
use crate::{
    path::At,
    tenant::{Balance, HashKey, HealthCheck, HostHeader, Probe, Upstream, UpstreamProtocol},
    values::HostPattern,
};

pub(super) fn check(at: At<'_>, upstream: &Upstream, findings: &mut Findings) {
    endpoints(at.key("endpoints"), upstream, findings);
    if let Some(health) = &upstream.health {
        check_health(at.key("health"), health, upstream.protocol, findings);
    }
    if let Some(tls) = &upstream.tls {
        let at = at.key("tls");
        if tls.insecure_skip_verify && tls.ca.is_some() {
            findings.add_without_value(at.key("ca"), Rule::InsecureWithCa);
        }
        if let Some(name) = &tls.server_name
            && !name.parse::<HostPattern>().is_ok_and(|name| !name.is_wildcard())
        {
            findings.add(
                at.key("server_name"),
                name,
                Rule::BadForm { what: "a host name", form: "api.example.com, without port" },
            );
        }
    }
    if let HostHeader::Fixed(host) = &upstream.host_header
        && !is_authority(&host.to_string())
    {
        let rule = Rule::BadForm { what: "a host", form: "api.example.com or api.example.com:8443" };
        findings.add(at.key("host_header").key("fixed"), host, rule);
    }
    if let Balance::ConsistentHash(HashKey::Cookie(name)) = &upstream.balance
        && !is_token(name)
    {
        let rule = Rule::BadForm { what: "the name of a cookie", form: "letters, digits, - and _" };
        findings.add(at.key("balance").key("consistent_hash").key("cookie"), name, rule);
    }
    outliers(at.key("outliers"), upstream, findings);
    let breaker = &upstream.breaker;
    if breaker.error_rate.get() > 0.0 && breaker.open_for.get().is_zero() {
        let rule = Rule::Zero { what: "the time that an open breaker stays open", least: "at least 1s" };
        findings.add(at.key("breaker").key("open_for"), breaker.open_for, rule);
    }
}

fn endpoints(at: At<'_>, upstream: &Upstream, findings: &mut Findings) {
    let endpoints = &upstream.endpoints;
    if endpoints.is_empty() {
        let rule = Rule::Empty { what: "the list of endpoints", add: "at least one, as in - address: 10.0.0.7:8080" };
        findings.add_without_value(at, rule);
    } else if endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        findings.add_without_value(at, Rule::NoWeight);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].iter().any(|before| before.address == endpoint.address) {
            let rule = Rule::Duplicate { what: "endpoint", name: endpoint.address.to_string() };
            findings.add(at.index(index).key("address"), &endpoint.address, rule);
        }
        if endpoint.zone.is_some() && endpoint.region.is_none() {
            let rule = Rule::Empty { what: "the region of an endpoint with a zone", add: "region" };
            findings.add_without_value(at.index(index), rule);
        }
    }
}

fn check_health(at: At<'_>, health: &HealthCheck, protocol: UpstreamProtocol, findings: &mut Findings) {
    for (key, span) in [("interval", health.interval), ("timeout", health.timeout)] {
        if span.get().is_zero() {
            let what = if key == "interval" { "the time between two probes" } else { "the time that a probe may take" };
            findings.add(at.key(key), span, Rule::Zero { what, least: "at least 100ms" });
        }
    }
    let counts = [
        ("healthy_after", "the number of good answers", health.healthy_after),
        ("unhealthy_after", "the number of bad answers", health.unhealthy_after),
    ];
    for (key, what, count) in counts {
        if count == 0 {
            findings.add(at.key(key), count, Rule::Zero { what, least: "at least 1" });
        }
    }
    match &health.probe {
        Probe::Http { path } if !is_origin_form(path) => {
            let rule = Rule::BadForm { what: "the path of a probe", form: "a path that begins with /, as in /healthz" };
            findings.add(at.key("probe").key("http").key("path"), path, rule);
        }
        Probe::Grpc { .. } if protocol == UpstreamProtocol::Http1 => {
            findings.add_without_value(at.key("probe").key("grpc"), Rule::GrpcNeedsHttp2);
        }
        _ => {}
    }
}

fn outliers(at: At<'_>, upstream: &Upstream, findings: &mut Findings) {
    let outliers = &upstream.outliers;
    if outliers.consecutive_failures == 0 {
        return;
    }
    if outliers.base_ejection.get().is_zero() {
        let rule = Rule::Zero {
            what: "the time that an endpoint is set aside",
            least: "at least 1s, or consecutive_failures: 0 to switch this off",
        };
        findings.add(at.key("base_ejection"), outliers.base_ejection, rule);
    }
    if outliers.base_ejection > outliers.max_ejection {
        let rule = Rule::Reversed {
            low: "base_ejection",
            low_value: outliers.base_ejection.to_string(),
            high: "max_ejection",
            high_value: outliers.max_ejection.to_string(),
        };
        findings.add(at.key("base_ejection"), outliers.base_ejection, rule);
    }
}
