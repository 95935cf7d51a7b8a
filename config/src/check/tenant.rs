//! One tenant: its hosts, callers, issuers and versions.

use std::collections::{HashMap, HashSet};

use super::{
    Findings, Rule,
    forms::{is_claim, is_role, is_scope, is_sha256, is_token},
    limits,
    policies::{self, Place},
    route, upstream,
};
use crate::{
    path::At,
    tenant::{
        ApiKey, CertificateIdentity, Consumer, JwksSource, JwtIssuer, Tenant, TenantHead, VersionSource, Versions,
    },
    values::{Id, Span},
};

const MOST_LEEWAY: Span = Span::from_secs(30);

pub(super) fn check(at: At<'_>, tenant: &Tenant, head: &TenantHead, findings: &mut Findings) {
    if tenant.hosts.is_empty() {
        findings.add_without_value(
            at.key("hosts"),
            Rule::Empty { what: "the list of hosts", add: "a host; without one no request reaches the tenant" },
        );
    }
    findings.duplicates(at.key("hosts"), "host", &tenant.hosts);
    if let Some(plan) = &tenant.plan
        && !head.plans.contains_key(plan)
    {
        let known = head.plans.keys().map(Id::to_string).collect();
        findings.add(at.key("plan"), plan, Rule::UnknownReference { what: "plan", name: plan.clone(), known });
    }
    if let Some(tls) = &tenant.tls
        && tls.require_client_certificate
        && tls.client_ca.is_none()
    {
        let rule = Rule::NoClientCa { what: "client certificates are required" };
        findings.add_without_value(at.key("tls").key("require_client_certificate"), rule);
    }
    consumers(at.key("consumers"), tenant, findings);
    issuers(at.key("jwt_issuers"), &tenant.jwt_issuers, findings);
    if let Some(list) = &tenant.versions {
        versions(at.key("versions"), list, findings);
    }
    let upstreams = at.key("upstreams");
    for (id, upstream) in &tenant.upstreams {
        upstream::check(upstreams.key(id.as_str()), upstream, findings);
    }
    policies::check(at.key("policies"), &tenant.policies, Place::Tenant(tenant), findings);
    route::check_all(at.key("routes"), tenant, head, findings);
    limits::costs(at.key("routes"), tenant, head, findings);
}

fn consumers(at: At<'_>, tenant: &Tenant, findings: &mut Findings) {
    let mut prefixes: HashMap<&str, &Id> = HashMap::new();
    let mut certificates: HashMap<&CertificateIdentity, &Id> = HashMap::new();
    let mut ids: HashSet<&Id> = HashSet::new();
    for (index, consumer) in tenant.consumers.iter().enumerate() {
        let at = at.index(index);
        if !ids.insert(&consumer.id) {
            let rule = Rule::Duplicate { what: "consumer", name: consumer.id.to_string() };
            findings.add(at.key("id"), &consumer.id, rule);
        }
        scopes(at.key("scopes"), &consumer.scopes, findings);
        roles(at.key("roles"), &consumer.roles, findings);
        let keys = at.key("keys");
        for (index, api_key) in consumer.keys.iter().enumerate() {
            let at = keys.index(index);
            key(at, api_key, consumer, findings);
            if let Some(taken) = prefixes.insert(&api_key.prefix, &consumer.id) {
                findings.add_without_value(at.key("prefix"), Rule::KeyPrefixTaken { consumer: taken.clone() });
            }
        }
        let at = at.key("certificates");
        for (index, certificate) in consumer.certificates.iter().enumerate() {
            certificate_form(at.index(index), certificate, findings);
            if let Some(taken) = certificates.insert(certificate, &consumer.id) {
                findings.add_without_value(at.index(index), Rule::CertificateTaken { consumer: taken.clone() });
            }
        }
        if !consumer.certificates.is_empty() && !trusts_client_certificates(tenant) {
            findings.add_without_value(at, Rule::NoClientCa { what: "the consumer is known by a certificate" });
        }
    }
}

/// Whether client certificates of the tenant's callers can be verified at all.
pub(super) fn trusts_client_certificates(tenant: &Tenant) -> bool {
    tenant.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
}

fn key(at: At<'_>, key: &ApiKey, consumer: &Consumer, findings: &mut Findings) {
    if !(8..=32).contains(&key.prefix.len()) || !key.prefix.bytes().all(|b| b.is_ascii_alphanumeric()) {
        findings.add_without_value(at.key("prefix"), Rule::KeyPrefixForm);
    }
    let Some(narrowed) = &key.scopes else { return };
    scopes(at.key("scopes"), narrowed, findings);
    for (index, scope) in narrowed.iter().enumerate() {
        if !consumer.scopes.contains(scope) {
            let rule = Rule::KeyScope { scope: scope.clone(), consumer: consumer.id.clone() };
            findings.add(at.key("scopes").index(index), scope, rule);
        }
    }
}

fn certificate_form(at: At<'_>, certificate: &CertificateIdentity, findings: &mut Findings) {
    match certificate {
        CertificateIdentity::Sha256(digits) if !is_sha256(digits) => findings.add(
            at.key("sha256"),
            digits,
            Rule::BadForm { what: "the SHA-256 of a certificate", form: "its 64 hexadecimal digits, without colons" },
        ),
        CertificateIdentity::San(name) if name.is_empty() => {
            let rule = Rule::Empty { what: "the alternative name", add: "a DNS name or URI of the certificate" };
            findings.add_without_value(at.key("san"), rule);
        }
        CertificateIdentity::CommonName(name) if name.is_empty() => {
            let rule = Rule::Empty { what: "the common name", add: "the common name of the certificate" };
            findings.add_without_value(at.key("common_name"), rule);
        }
        _ => {}
    }
}

pub(super) fn scopes(at: At<'_>, scopes: &[String], findings: &mut Findings) {
    findings.duplicates(at, "scope", scopes);
    for (index, scope) in scopes.iter().enumerate().filter(|(_, scope)| !is_scope(scope)) {
        let rule = Rule::BadForm { what: "a scope", form: "visible ASCII characters without spaces, quotes and \\" };
        findings.add(at.index(index), scope, rule);
    }
}

pub(super) fn roles(at: At<'_>, roles: &[String], findings: &mut Findings) {
    findings.duplicates(at, "role", roles);
    for (index, role) in roles.iter().enumerate().filter(|(_, role)| !is_role(role)) {
        let rule =
            Rule::BadForm { what: "a role", form: "visible ASCII characters without spaces, commas, quotes and \\" };
        findings.add(at.index(index), role, rule);
    }
}

fn issuers(at: At<'_>, issuers: &[JwtIssuer], findings: &mut Findings) {
    for (index, issuer) in issuers.iter().enumerate() {
        let at = at.index(index);
        if issuer.issuer.is_empty() {
            let rule = Rule::Empty { what: "the issuer", add: "what the tokens have as iss" };
            findings.add_without_value(at.key("issuer"), rule);
        }
        if issuers[..index].iter().any(|before| before.issuer == issuer.issuer) {
            let rule = Rule::Duplicate { what: "issuer", name: issuer.issuer.clone() };
            findings.add(at.key("issuer"), &issuer.issuer, rule);
        }
        let at_audiences = at.key("audiences");
        if issuer.audiences.is_empty() {
            let rule = Rule::Empty {
                what: "the list of audiences",
                add: "the aud of tokens that are meant for this API; tokens for others must not open it",
            };
            findings.add_without_value(at_audiences, rule);
        }
        for (index, _) in issuer.audiences.iter().enumerate().filter(|(_, audience)| audience.is_empty()) {
            let rule = Rule::Empty { what: "the audience", add: "the aud of tokens that are meant for this API" };
            findings.add_without_value(at_audiences.index(index), rule);
        }
        if issuer.algorithms.is_empty() {
            let rule = Rule::Empty { what: "the list of algorithms", add: "one, or leave the key out" };
            findings.add_without_value(at.key("algorithms"), rule);
        }
        if issuer.leeway > MOST_LEEWAY {
            findings.add(at.key("leeway"), issuer.leeway, Rule::LeewayTooLong { leeway: issuer.leeway });
        }
        for (name, claim) in [("scope_claim", &issuer.scope_claim), ("roles_claim", &issuer.roles_claim)] {
            if !is_claim(claim) {
                let rule = Rule::BadForm { what: "the name of a claim", form: "a name, or names with dots between" };
                findings.add(at.key(name), claim, rule);
            }
        }
        if let JwksSource::Url(url) = &issuer.jwks {
            key_set_url(at.key("jwks").key("url"), url, findings);
        }
    }
}

/// The keys decide whom the gateway believes: they come over TLS, or from this very machine.
fn key_set_url(at: At<'_>, url: &url::Url, findings: &mut Findings) {
    if !url.username().is_empty() || url.password().is_some() {
        findings.add_without_value(at, Rule::PasswordInUrl);
        return;
    }
    let local = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if local => {}
        "http" => findings.add(at, url, Rule::UrlNotSecure),
        _ => findings.add(at, url, Rule::BadForm { what: "a web address", form: "https://…" }),
    }
}

fn versions(at: At<'_>, versions: &Versions, findings: &mut Findings) {
    if versions.list.is_empty() {
        let rule = Rule::Empty { what: "the list of versions", add: "each version, as in v1: {}" };
        findings.add_without_value(at.key("list"), rule);
    }
    match versions.list.get(&versions.default) {
        None => {
            let known = versions.list.keys().map(Id::to_string).collect();
            let rule = Rule::UnknownReference { what: "version", name: versions.default.clone(), known };
            findings.add(at.key("default"), &versions.default, rule);
        }
        Some(version) if version.retired => {
            let rule = Rule::DefaultVersionRetired { version: versions.default.clone() };
            findings.add(at.key("default"), &versions.default, rule);
        }
        Some(_) => {}
    }
    if let VersionSource::MediaType(parameter) = &versions.by
        && !is_token(parameter)
    {
        let rule = Rule::BadForm { what: "the name of a media-type parameter", form: "a word, as in version" };
        findings.add(at.key("by").key("media_type"), parameter, rule);
    }
    let list = at.key("list");
    for (id, version) in &versions.list {
        let at = list.key(id.as_str());
        if let (Some(deprecated), Some(sunset)) = (version.deprecated, version.sunset)
            && sunset < deprecated
        {
            findings.add_without_value(at.key("sunset"), Rule::SunsetBeforeDeprecation);
        }
        if let Some(link) = &version.link
            && !matches!(link.scheme(), "http" | "https")
        {
            findings.add(at.key("link"), link, Rule::BadForm { what: "a web address", form: "https://…" });
        }
    }
}
