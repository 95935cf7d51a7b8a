//! What only shows when several values are seen together.
//!
//! [`tenant`] and [`head`] check one tenant file, [`node`] a node's file. Each gives all that it finds.
//! [`Member`] tells of what two tenants may not both have.

mod cache;
mod confinement;
mod forms;
mod limits;
mod node;
mod policies;
mod route;
mod rule;
mod tenant;
mod unique;
mod upstream;

pub(crate) use self::unique::duplicates;
pub use self::{
    confinement::{confined_head, confined_tenant, files_for, variables_for},
    rule::Rule,
    unique::Member,
};
use crate::{
    node::NodeConfig,
    path::{At, ConfigPath},
    tenant::{Tenant, TenantHead},
};

/// A rule that is broken, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// From the root of the file, or of the tenant if only that was checked.
    pub path: ConfigPath,
    /// What stands there, if it is one value and cannot be a secret.
    pub value: Option<String>,
    pub rule: Rule,
}

/// Checks a node's configuration.
pub fn node(config: &NodeConfig) -> Vec<Problem> {
    let mut findings = Findings::default();
    node::check(config, &mut findings);
    findings.problems
}

/// Checks what stands beside the tenants of a file: defaults, plans, shared upstreams.
pub fn head(head: &TenantHead) -> Vec<Problem> {
    let mut findings = Findings::default();
    let root = At::ROOT;
    policies::check(root.key("defaults"), &head.defaults, policies::Place::Shared, &mut findings);
    let plans = root.key("plans");
    for (id, plan) in &head.plans {
        policies::check(plans.key(id.as_str()), plan, policies::Place::Shared, &mut findings);
    }
    let upstreams = root.key("upstreams");
    for (id, upstream) in &head.upstreams {
        upstream::check(upstreams.key(id.as_str()), upstream, &mut findings);
    }
    findings.problems
}

/// Checks one tenant, and that the plans, upstreams and versions exist that it refers to. Paths begin
/// at the tenant.
pub fn tenant(tenant: &Tenant, head: &TenantHead) -> Vec<Problem> {
    let mut findings = Findings::default();
    tenant::check(At::ROOT, tenant, head, &mut findings);
    findings.problems
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    /// A broken rule at a place whose value may be shown.
    #[allow(clippy::needless_pass_by_value)] // Numbers as well as references are passed.
    fn add(&mut self, at: At<'_>, value: impl ToString, rule: Rule) {
        self.problems.push(Problem { path: at.to_path(), value: Some(value.to_string()), rule });
    }

    /// A broken rule at a place that has no single value, or one that may be a secret.
    fn add_without_value(&mut self, at: At<'_>, rule: Rule) {
        self.problems.push(Problem { path: at.to_path(), value: None, rule });
    }

    /// Every item of a short list that stands in it before.
    fn duplicates<T: PartialEq + ToString>(&mut self, at: At<'_>, what: &'static str, items: &[T]) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.add(at.index(index), item.to_string(), Rule::Duplicate { what, name: item.to_string() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::{error::suggestion, load, tenant::TenantFile};

    /// A file that no rule refuses, with something for most rules to look at.
    fn good() -> Value {
        json!({
            "revision": 1,
            "plans": { "gold": {} },
            "upstreams": { "shared": { "endpoints": [{ "address": "10.0.0.1:80" }] } },
            "tenants": [{
                "id": "acme",
                "hosts": ["acme.example"],
                "plan": "gold",
                "tls": { "client_ca": "ca.pem" },
                "consumers": [{
                    "id": "app",
                    "scopes": ["read"],
                    "keys": [{ "prefix": "abcdefgh", "hash": format!("sha256:{}", "0".repeat(64)) }],
                    "certificates": [{ "san": "app.example" }],
                }],
                "jwt_issuers": [{
                    "issuer": "https://login.example", "audiences": ["api"], "jwks": { "url": "https://login.example/keys" },
                }],
                "versions": { "by": "path_prefix", "default": "v2", "list": { "v1": {}, "v2": {} } },
                "upstreams": { "own": { "endpoints": [{ "address": "10.0.0.2:80" }] } },
                "policies": {},
                "routes": [
                    { "id": "user", "match": { "path": "/v2/users/{id}" }, "upstream": "own" },
                    { "id": "all", "match": { "path": "/{*rest}" }, "upstream": "shared" },
                ],
            }],
        })
    }

    fn problems(document: &Value) -> Vec<Problem> {
        let (head, tenants) = serde_json::from_value::<TenantFile>(document.clone()).unwrap().into_parts();
        let mut found = super::head(&head);
        found.extend(tenants.iter().flat_map(|one| tenant(one, &head)));
        found
    }

    /// What the rules say when the value at this place of the good file is another one.
    fn with(pointer: &str, value: Value) -> Vec<(String, &'static str)> {
        let mut document = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        match parent {
            Value::Array(items) => match key.parse::<usize>() {
                Ok(index) => items[index] = value,
                Err(_) => items.push(value),
            },
            parent => parent[key] = value,
        }
        let found = problems(&document);
        for problem in &found {
            assert!(!problem.rule.to_string().is_empty() && !problem.rule.fix().is_empty());
        }
        found.into_iter().map(|problem| (problem.path.to_string(), problem.rule.code())).collect()
    }

    #[test]
    fn a_good_file_has_no_problems() {
        assert_eq!(problems(&good()), []);
        assert_eq!(node(&NodeConfig::default()), []);
    }

    #[test]
    fn each_rule_of_tenants_finds_its_fault() {
        for (pointer, value, path, code) in [
            ("/tenants/0/hosts", json!([]), "hosts", "empty"),
            ("/tenants/0/hosts", json!(["a.example", "A.example."]), "hosts[1]", "duplicate"),
            ("/tenants/0/plan", json!("golden"), "plan", "unknown_reference"),
            ("/tenants/0/tls", json!(null), "consumers[0].certificates", "no_client_ca"),
            ("/tenants/0/consumers/-", json!({ "id": "app" }), "consumers[1].id", "duplicate"),
            ("/tenants/0/consumers/0/scopes", json!(["two words"]), "consumers[0].scopes[0]", "bad_form"),
            ("/tenants/0/consumers/0/roles", json!(["a,b"]), "consumers[0].roles[0]", "bad_form"),
            ("/tenants/0/consumers/0/keys/0/prefix", json!("short"), "consumers[0].keys[0].prefix", "key_prefix_form"),
            (
                "/tenants/0/consumers/0/keys/0/prefix",
                json!("sk_abcdefgh_rest"),
                "consumers[0].keys[0].prefix",
                "key_prefix_form",
            ),
            (
                "/tenants/0/consumers/0/keys/-",
                json!({ "prefix": "abcdefgh", "key": "${env:KEY}" }),
                "consumers[0].keys[1].prefix",
                "key_prefix_taken",
            ),
            ("/tenants/0/consumers/0/keys/0/scopes", json!(["write"]), "consumers[0].keys[0].scopes[0]", "key_scope"),
            (
                "/tenants/0/consumers/0/certificates/-",
                json!({ "sha256": "ab:cd" }),
                "consumers[0].certificates[1].sha256",
                "bad_form",
            ),
            (
                "/tenants/0/consumers/0/certificates/-",
                json!({ "common_name": "" }),
                "consumers[0].certificates[1].common_name",
                "empty",
            ),
            (
                "/tenants/0/consumers/-",
                json!({ "id": "b", "certificates": [{ "san": "app.example" }] }),
                "consumers[1].certificates[0]",
                "certificate_taken",
            ),
            ("/tenants/0/jwt_issuers/0/issuer", json!(""), "jwt_issuers[0].issuer", "empty"),
            ("/tenants/0/jwt_issuers/0/audiences", json!([]), "jwt_issuers[0].audiences", "empty"),
            ("/tenants/0/jwt_issuers/0/audiences", json!([""]), "jwt_issuers[0].audiences[0]", "empty"),
            ("/tenants/0/jwt_issuers/0/algorithms", json!([]), "jwt_issuers[0].algorithms", "empty"),
            ("/tenants/0/jwt_issuers/0/leeway", json!("31s"), "jwt_issuers[0].leeway", "leeway_too_long"),
            ("/tenants/0/jwt_issuers/0/roles_claim", json!("a..b"), "jwt_issuers[0].roles_claim", "bad_form"),
            (
                "/tenants/0/jwt_issuers/0/jwks",
                json!({ "url": "http://login.example/keys" }),
                "jwt_issuers[0].jwks.url",
                "url_not_secure",
            ),
            (
                "/tenants/0/jwt_issuers/0/jwks",
                json!({ "url": "https://u:p@login.example/keys" }),
                "jwt_issuers[0].jwks.url",
                "password_in_url",
            ),
            (
                "/tenants/0/jwt_issuers/0/jwks",
                json!({ "url": "ftp://login.example/keys" }),
                "jwt_issuers[0].jwks.url",
                "bad_form",
            ),
            ("/tenants/0/versions/default", json!("v9"), "versions.default", "unknown_reference"),
            ("/tenants/0/versions/list/v2", json!({ "retired": true }), "versions.default", "default_version_retired"),
            ("/tenants/0/versions/by", json!({ "media_type": "no token" }), "versions.by.media_type", "bad_form"),
            (
                "/tenants/0/versions/list/v1",
                json!({ "deprecated": "2027-02-01T00:00:00Z", "sunset": "2027-01-01T00:00:00Z" }),
                "versions.list.v1.sunset",
                "sunset_before_deprecation",
            ),
            (
                "/tenants/0/versions/list/v1",
                json!({ "link": "mailto:a@b.example" }),
                "versions.list.v1.link",
                "bad_form",
            ),
        ] {
            assert_eq!(with(pointer, value), [(path.to_owned(), code)], "{pointer}");
        }
    }

    #[test]
    fn certificates_are_required_of_those_only_who_can_be_verified() {
        let mut document = good();
        document["tenants"][0]["consumers"] = json!([]);
        document["tenants"][0]["tls"] = json!({ "require_client_certificate": true });
        let found = problems(&document);
        assert_eq!(found[0].path.to_string(), "tls.require_client_certificate");
        assert_eq!(found[0].rule.code(), "no_client_ca");
        document["tenants"][0]["tls"]["client_ca"] = json!("ca.pem");
        assert_eq!(problems(&document), []);
    }

    #[test]
    fn each_rule_of_routes_finds_its_fault() {
        let route = |extra: Value| {
            let mut route = json!({ "id": "new", "match": { "path": "/v2/new" }, "upstream": "own" });
            route.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            route
        };
        for (extra, path, code) in [
            (json!({ "id": "all" }), "id", "duplicate"),
            (json!({ "upstream": "owm" }), "upstream", "unknown_reference"),
            (json!({ "match": { "path": "/v2/users/{other}" } }), "match", "shadowed"),
            (json!({ "match": { "path": "/new", "versions": ["v9"] } }), "match.versions[0]", "unknown_reference"),
            (json!({ "match": { "path": "/v3/new" } }), "match.path", "path_version_unknown"),
            (json!({ "match": { "path": "/v2/new", "versions": ["v1"] } }), "match.versions", "path_version_excluded"),
            (json!({ "match": { "path": "/v2/new", "methods": ["GET", "GET"] } }), "match.methods[1]", "duplicate"),
            (
                json!({ "match": { "path": "/v2/new", "headers": [{ "name": "a", "prefix": "" }] } }),
                "match.headers[0].prefix",
                "always_true",
            ),
            (
                json!({ "match": { "path": "/v2/new", "query": [{ "name": "", "present": true }] } }),
                "match.query[0].name",
                "empty",
            ),
            (json!({ "canary": { "upstream": "own", "weight": 5 } }), "canary.upstream", "to_itself"),
            (json!({ "canary": { "upstream": "shared" } }), "canary", "never"),
            (json!({ "canary": { "upstream": "none", "weight": 5 } }), "canary.upstream", "unknown_reference"),
            (
                json!({ "canary": { "upstream": "shared", "weight": 5, "sticky_cookie": "a b" } }),
                "canary.sticky_cookie",
                "bad_form",
            ),
            (
                json!({ "canary": { "upstream": "shared", "cookie": { "name": "c", "value": "a;b" } } }),
                "canary.cookie.value",
                "bad_form",
            ),
            (json!({ "mirror": { "upstream": "own" } }), "mirror.upstream", "to_itself"),
            (json!({ "mirror": { "upstream": "shared", "share": 0 } }), "mirror.share", "never"),
            (
                json!({ "policies": { "transform": { "path": { "replace": "/x/{id}" } } } }),
                "policies.transform.path.replace",
                "unknown_parameter",
            ),
            (
                json!({ "policies": { "transform": { "path": { "strip_prefix": "/v1" } } } }),
                "policies.transform.path.strip_prefix",
                "strip_never_applies",
            ),
        ] {
            let expected = [(format!("routes[2].{path}"), code)];
            assert_eq!(with("/tenants/0/routes/-", route(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn each_rule_of_upstreams_finds_its_fault() {
        let endpoints = json!([{ "address": "10.0.0.2:80" }]);
        let upstream = |extra: Value| {
            let mut upstream = json!({ "endpoints": endpoints });
            upstream.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            upstream
        };
        for (extra, path, code) in [
            (json!({ "endpoints": [] }), "endpoints", "empty"),
            (json!({ "endpoints": [{ "address": "a.example:80", "weight": 0 }] }), "endpoints", "no_weight"),
            (
                json!({ "endpoints": [{ "address": "a.example:80" }, { "address": "a.example:80" }] }),
                "endpoints[1].address",
                "duplicate",
            ),
            (json!({ "endpoints": [{ "address": "a.example:80", "zone": "a" }] }), "endpoints[0]", "empty"),
            (json!({ "health": { "probe": { "http": { "path": "healthz" } } } }), "health.probe.http.path", "bad_form"),
            (json!({ "health": { "probe": { "grpc": { "service": "" } } } }), "health.probe.grpc", "grpc_needs_http2"),
            (json!({ "health": { "probe": "tcp", "interval": "0s" } }), "health.interval", "zero"),
            (json!({ "health": { "probe": "tcp", "healthy_after": 0 } }), "health.healthy_after", "zero"),
            (json!({ "tls": { "ca": "a.pem", "insecure_skip_verify": true } }), "tls.ca", "insecure_with_ca"),
            (json!({ "tls": { "server_name": "*.example" } }), "tls.server_name", "bad_form"),
            (json!({ "host_header": { "fixed": "http://a.example" } }), "host_header.fixed", "bad_form"),
            (
                json!({ "balance": { "consistent_hash": { "cookie": "a=b" } } }),
                "balance.consistent_hash.cookie",
                "bad_form",
            ),
            (json!({ "outliers": { "base_ejection": "0s" } }), "outliers.base_ejection", "zero"),
            (json!({ "outliers": { "base_ejection": "10m" } }), "outliers.base_ejection", "reversed"),
            (json!({ "breaker": { "error_rate": 50, "open_for": "0s" } }), "breaker.open_for", "zero"),
        ] {
            let expected = [(format!("upstreams.own.{path}"), code)];
            assert_eq!(with("/tenants/0/upstreams/own", upstream(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn each_rule_of_policies_finds_its_fault() {
        for (policies, path, code) in [
            (json!({ "auth": { "accept": ["jwt", "jwt"] } }), "auth.accept[1]", "duplicate"),
            (json!({ "auth": { "accept": ["anonymous"], "scopes": ["a"] } }), "auth.accept", "anonymous_with_rights"),
            (json!({ "cors": {} }), "cors.origins", "empty"),
            (
                json!({ "cors": { "origins": ["*"], "credentials": true } }),
                "cors.origins[0]",
                "cors_any_with_credentials",
            ),
            (json!({ "cors": { "origins": ["https://a.example", "*"] } }), "cors.origins[1]", "cors_any_among_others"),
            (json!({ "cors": { "origins": ["https://a.example/"] } }), "cors.origins[0]", "bad_form"),
            (json!({ "cors": { "origins": ["https://*.com"] } }), "cors.origins[0]", "cors_too_wide"),
            (
                json!({ "cors": { "origins": ["https://a.example"], "request_headers": ["*"] } }),
                "cors.request_headers[0]",
                "cors_any_header",
            ),
            (json!({ "security_headers": { "Connection": "close" } }), "security_headers.connection", "owned_header"),
            (
                json!({ "headers": { "request": { "set": { "host": "a" } } } }),
                "headers.request.set.host",
                "owned_header",
            ),
            (
                json!({ "headers": { "request": { "set": { "content_length": "1" } } } }),
                "headers.request.set.content_length",
                "owned_header",
            ),
            (
                json!({ "headers": { "response": { "rename": { "a": "Transfer_Encoding" } } } }),
                "headers.response.rename.a",
                "owned_header",
            ),
            (
                json!({ "headers": { "request": { "rename": { "a": "a" } } } }),
                "headers.request.rename.a",
                "rename_to_itself",
            ),
            (
                json!({ "headers": { "response": { "rename": { "a": "c", "b": "c" } } } }),
                "headers.response.rename.b",
                "rename_clash",
            ),
            (json!({ "access": { "allow": ["10.0.0.7/8"] } }), "access.allow[0]", "host_bits"),
            (
                json!({ "access": { "allow": ["10.1.0.0/16"], "deny": ["10.0.0.0/8"] } }),
                "access.allow[0]",
                "allowed_and_denied",
            ),
            (json!({ "request": { "max_headers": 0 } }), "request.max_headers", "zero"),
            (
                json!({ "transform": { "path": { "replace": "/{id}" } } }),
                "transform.path.replace",
                "parameter_outside_route",
            ),
            (json!({ "transform": { "path": { "replace": "/{" } } }), "transform.path.replace", "bad_form"),
            (json!({ "transform": { "path": { "add_prefix": "api" } } }), "transform.path.add_prefix", "bad_form"),
            (json!({ "transform": { "query": { "set": { "": "a" } } } }), "transform.query.set", "empty"),
            (json!({ "transform": { "request_body": " " } }), "transform.request_body", "empty"),
            (json!({ "validation": {} }), "validation", "no_document"),
            (json!({ "validation": { "body_schema": { "inline": 1 } } }), "validation.body_schema.inline", "bad_form"),
            (
                json!({ "validation": { "openapi": { "inline": { "openapi": "3.0.3" } } } }),
                "validation.openapi.inline",
                "openapi_version",
            ),
            (
                json!({ "cache": { "targeted_fields": ["cdn-cache-control", "CDN-Cache-Control"] } }),
                "cache.targeted_fields[1]",
                "duplicate",
            ),
            (json!({ "cache": { "max_object": 0 } }), "cache.max_object", "zero"),
            (json!({ "cache": { "memory": "1MiB" } }), "cache.memory", "reversed"),
            (json!({ "compression": { "encodings": [] } }), "compression.encodings", "empty"),
            (json!({ "compression": { "encodings": ["br", "br"] } }), "compression.encodings[1]", "duplicate"),
            (json!({ "compression": { "media_types": ["json"] } }), "compression.media_types[0]", "bad_form"),
            (json!({ "timeouts": { "idle": "0ms" } }), "timeouts.idle", "zero"),
            (json!({ "timeouts": { "per_try": "1m" } }), "timeouts.per_try", "reversed"),
            (json!({ "retries": { "attempts": 6 } }), "retries.attempts", "too_much"),
            (json!({ "retries": { "on": [] } }), "retries.on", "never"),
        ] {
            let expected = [(format!("policies.{path}"), code)];
            assert_eq!(with("/tenants/0/policies", policies.clone()), expected, "{policies}");
            // The same holds for what many inherit.
            assert_eq!(with("/defaults", policies.clone()), [(format!("defaults.{path}"), code)], "{policies}");
        }
    }

    #[test]
    fn each_rule_of_limits_finds_its_fault() {
        let keyed = |extra: Value| {
            let mut limit = json!({ "id": "each", "by": "consumer" });
            limit.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({ "keyed": [limit] })
        };
        let rate = json!({ "requests": 10, "per": "1s" });
        let many: Vec<_> = (0..9).map(|i| json!({ "id": format!("k{i}"), "by": "consumer", "rate": rate })).collect();
        for (limits, path, code) in [
            (json!({ "keyed": many }), "keyed", "too_much"),
            (json!({ "keyed": [many[0], many[1], many[0]] }), "keyed[2].id", "duplicate"),
            (keyed(json!({})), "keyed[0]", "no_limit"),
            (keyed(json!({ "by": "address", "quotas": { "daily": 5 } })), "keyed[0].quotas", "not_by_address"),
            (
                keyed(json!({ "by": "address", "concurrency": { "websockets": 5 } })),
                "keyed[0].concurrency.websockets",
                "not_by_address",
            ),
            (keyed(json!({ "by": { "claim": "a..b" }, "rate": rate })), "keyed[0].by.claim", "bad_form"),
        ] {
            let found = with("/tenants/0/policies", json!({ "limits": limits }));
            assert_eq!(found, [(format!("policies.limits.{path}"), code)], "{limits}");
            let found = with("/plans/gold", json!({ "limits": limits }));
            assert_eq!(found, [(format!("plans.gold.limits.{path}"), code)], "{limits}");
            let found = with("/tenants/0/routes/0/policies", json!({ "limits": limits }));
            assert_eq!(found, [(format!("routes[0].policies.limits.{path}"), code)], "{limits}");
        }
        let fine = keyed(json!({ "by": "address", "rate": rate, "concurrency": { "requests": 5 } }));
        assert_eq!(with("/tenants/0/policies", json!({ "limits": fine })), []);
    }

    #[test]
    fn limits_stand_at_their_layer() {
        for (limits, code) in [
            (json!({ "calendar": {} }), "not_for_routes"),
            (json!({ "unreachable": "allow" }), "not_for_routes"),
            (json!({ "cost": 2 }), "for_routes_only"),
            (json!({ "count_failures": false }), ""),
        ] {
            let key = limits.as_object().unwrap().keys().next().unwrap();
            let policies = json!({ "limits": limits });
            for (pointer, path, is_route) in [
                ("/defaults", "defaults", false),
                ("/plans/gold", "plans.gold", false),
                ("/tenants/0/policies", "policies", false),
                ("/tenants/0/routes/1/policies", "routes[1].policies", true),
            ] {
                let refused = match code {
                    "not_for_routes" => is_route,
                    "for_routes_only" => !is_route,
                    _ => false,
                };
                let expected = refused.then(|| (format!("{path}.limits.{key}"), code));
                assert_eq!(with(pointer, policies.clone()), Vec::from_iter(expected), "{pointer} {limits}");
            }
        }
    }

    #[test]
    fn a_request_fits_into_every_burst_that_it_must_pay_from() {
        let rate = |burst: u64| json!({ "requests": 1000, "per": "1m", "burst": burst });
        let whose = |put: &dyn Fn(&mut Value)| {
            let mut document = good();
            document["tenants"][0]["routes"][1]["policies"] = json!({ "limits": { "cost": 20 } });
            put(&mut document);
            let mut found = problems(&document).into_iter().map(|problem| {
                assert_eq!(problem.path.to_string(), "routes[1].policies.limits.cost");
                let Rule::CostAboveBurst { cost: 20, burst: 19, limit } = problem.rule else { panic!("{problem:?}") };
                limit
            });
            let first = found.next();
            assert_eq!(found.next(), None);
            first
        };
        let limits = |rate: Value| json!({ "limits": { "rate": rate } });
        assert_eq!(whose(&|_| {}), None);
        assert_eq!(whose(&|d| d["tenants"][0]["policies"] = limits(rate(20))), None);
        assert_eq!(whose(&|d| d["tenants"][0]["policies"] = limits(rate(19))).as_deref(), Some("the tenant"));
        assert_eq!(whose(&|d| d["plans"]["gold"] = limits(rate(19))).as_deref(), Some("the tenant"));
        assert_eq!(whose(&|d| d["defaults"] = limits(rate(19))).as_deref(), Some("the tenant"));
        // What a more specific layer replaces does not count.
        let replaced = |d: &mut Value| {
            d["plans"]["gold"] = limits(rate(19));
            d["tenants"][0]["policies"] = limits(json!("unlimited"));
        };
        assert_eq!(whose(&replaced), None);
        let own = |d: &mut Value| d["tenants"][0]["routes"][1]["policies"]["limits"]["rate"] = rate(19);
        assert_eq!(whose(&own).as_deref(), Some("the route"));
        // Limits of other routes do not hold here.
        assert_eq!(whose(&|d| d["tenants"][0]["routes"][0]["policies"] = limits(rate(19))), None);
        let consumer = |d: &mut Value| d["tenants"][0]["consumers"][0]["limits"] = json!({ "rate": rate(19) });
        assert_eq!(whose(&consumer).as_deref(), Some("the consumer app"));
        let keyed = |d: &mut Value| {
            d["defaults"] = json!({ "limits": { "keyed": [{ "id": "each", "by": "address", "rate": rate(19) }] } });
        };
        assert_eq!(whose(&keyed).as_deref(), Some("the keyed limit each"));
    }

    #[test]
    fn a_request_fits_into_every_quota_that_it_must_pay_from() {
        type Put = fn(&mut Value, Value);
        let told = |limits: Value, put: &dyn Fn(&mut Value, Value)| {
            let mut document = good();
            document["tenants"][0]["routes"][1]["policies"] = json!({ "limits": { "cost": 20 } });
            put(&mut document, limits);
            let mut found = problems(&document).into_iter().map(|problem| {
                assert_eq!(problem.path.to_string(), "routes[1].policies.limits.cost");
                let Rule::CostAboveQuota { cost: 20, quota: 19, period, limit } = problem.rule else {
                    panic!("{problem:?}")
                };
                format!("{period} of {limit}")
            });
            let first = found.next();
            assert_eq!(found.next(), None);
            first
        };
        let places: [(Put, &str); 6] = [
            (|d, limits| d["tenants"][0]["policies"] = json!({ "limits": limits }), "the tenant"),
            (|d, limits| d["plans"]["gold"] = json!({ "limits": limits }), "the tenant"),
            (|d, limits| d["defaults"] = json!({ "limits": limits }), "the tenant"),
            (|d, limits| d["tenants"][0]["consumers"][0]["limits"] = limits, "the consumer app"),
            (
                |d, limits| {
                    d["tenants"][0]["routes"][1]["policies"]["limits"]["quotas"] = limits["quotas"].clone();
                },
                "the route",
            ),
            (
                |d, limits| {
                    let keyed = json!({ "id": "each", "by": "consumer", "quotas": limits["quotas"] });
                    d["defaults"] = json!({ "limits": { "keyed": [keyed] } });
                },
                "the keyed limit each",
            ),
        ];
        for (put, whose) in places {
            for period in ["daily", "monthly"] {
                let quota = |quota: Value| told(json!({ "quotas": { period: quota } }), &put);
                assert_eq!(quota(json!(19)), Some(format!("{period} of {whose}")));
                assert_eq!(quota(json!(20)), None, "{whose}");
                assert_eq!(quota(json!("unlimited")), None, "{whose}");
                // It is meant to admit nothing.
                assert_eq!(quota(json!(0)), None, "{whose}");
            }
        }
    }

    #[test]
    fn credentials_that_a_tenant_does_not_have_are_only_accepted_by_layers_that_many_share() {
        let jwt = json!({ "auth": { "accept": ["jwt"] } });
        let mut document = good();
        document["tenants"][0]["jwt_issuers"] = json!([]);
        document["defaults"] = jwt.clone();
        assert_eq!(problems(&document), []);
        document["tenants"][0]["policies"] = jwt;
        assert_eq!(problems(&document)[0].rule, Rule::NoJwtIssuer);
    }

    #[test]
    fn what_is_only_spelled_like_a_field_of_the_gateway_may_be_removed() {
        let changes = json!({ "remove": ["content_length"], "rename": { "x_gateway_identity": "x-told" } });
        assert_eq!(with("/tenants/0/policies", json!({ "headers": { "request": changes } })), []);
    }

    #[test]
    fn a_short_total_need_not_be_repeated() {
        assert_eq!(with("/tenants/0/policies", json!({ "timeouts": { "total": "1s" } })), []);
    }

    #[test]
    fn a_more_specific_match_is_not_hidden() {
        for matched in [
            json!({ "path": "/{*rest}", "methods": ["GET"] }),
            json!({ "path": "/{*rest}", "headers": [{ "name": "a", "present": true }] }),
            json!({ "path": "/{*rest}", "query": [{ "name": "a", "present": true }] }),
            json!({ "path": "/{*rest}", "versions": ["v1"] }),
            json!({ "path": "/{rest}" }),
        ] {
            let route = json!({ "id": "new", "match": matched, "upstream": "own" });
            assert_eq!(with("/tenants/0/routes/-", route), [], "{matched}");
        }
    }

    #[test]
    fn each_rule_of_nodes_finds_its_fault() {
        let control_plane = |url: &str| json!({ "url": url, "token": "${env:TOKEN}" });
        for (document, path, code) in [
            (json!({ "listeners": { "http": [] } }), "listeners", "no_listener"),
            (json!({ "listeners": { "https": ["0.0.0.0:8080"] } }), "listeners.https[0]", "address_taken"),
            (json!({ "listeners": { "http": ["127.0.0.1:9090"] } }), "listeners.http[0]", "address_taken"),
            (
                json!({ "listeners": { "proxy_protocol_from": ["0.0.0.0/0"] } }),
                "listeners.proxy_protocol_from[0]",
                "trusts_everyone",
            ),
            (
                json!({ "forwarding": { "trusted_proxies": ["::/0"] } }),
                "forwarding.trusted_proxies[0]",
                "trusts_everyone",
            ),
            (
                json!({ "forwarding": { "trusted_proxies": ["10.0.0.1/24"] } }),
                "forwarding.trusted_proxies[0]",
                "host_bits",
            ),
            (json!({ "zone": "a" }), "zone", "zone_without_region"),
            (json!({ "threads": 8080 }), "threads", "too_much"),
            (json!({ "tenants": "" }), "tenants", "empty"),
            (json!({ "tenants": "a", "control_plane": control_plane("https://a") }), "control_plane", "two_sources"),
            (json!({ "control_plane": control_plane("ftp://a") }), "control_plane.url", "bad_form"),
            (json!({ "control_plane": control_plane("https://a/b") }), "control_plane.url", "bad_form"),
            (json!({ "control_plane": control_plane("https://u:p@a") }), "control_plane.url", "password_in_url"),
            (
                json!({ "control_plane": control_plane("http://a:9080") }),
                "control_plane.url",
                "control_plane_not_secure",
            ),
            (json!({ "dns": { "min_refresh": "2m" } }), "dns.min_refresh", "reversed"),
            (json!({ "identity": { "lifetime": "0s" } }), "identity.lifetime", "zero"),
            (json!({ "identity": { "issuer": "" } }), "identity.issuer", "empty"),
            (json!({ "protection": { "head_timeout": "0s" } }), "protection.head_timeout", "zero"),
            (json!({ "protection": { "h2_streams": 0 } }), "protection.h2_streams", "zero"),
            (json!({ "protection": { "max_head": "100" } }), "protection.max_head", "bad_form"),
            (json!({ "protection": { "max_head": "10GiB" } }), "protection.max_head", "too_much"),
            (json!({ "protection": { "min_body_rate": "1GB" } }), "protection.min_body_rate", "too_much"),
            (json!({ "upstream_pool_size": 10_000_000 }), "upstream_pool_size", "too_much"),
            (json!({ "usage": { "retain": "1KiB" } }), "usage.retain", "bad_form"),
            (json!({ "shedding": { "target_lag": "2ms" } }), "shedding.target_lag", "bad_form"),
            (json!({ "shedding": { "min_limit": 0 } }), "shedding.min_limit", "zero"),
            (json!({ "shedding": { "max_limit": 99 } }), "shedding.min_limit", "reversed"),
        ] {
            let found = node(&serde_json::from_value(document.clone()).unwrap());
            let found: Vec<_> = found.iter().map(|problem| (problem.path.to_string(), problem.rule.code())).collect();
            assert_eq!(found, [(path.to_owned(), code)], "{document}");
        }
        let any_port = json!({ "listeners": { "http": ["127.0.0.1:0", "127.0.0.1:0"], "operations": "127.0.0.1:0" } });
        assert_eq!(node(&serde_json::from_value(any_port).unwrap()), []);
        for url in ["http://127.0.0.1:9080", "http://[::1]", "http://admin.localhost:1/", "https://admin.example:9080"]
        {
            let there = json!({ "control_plane": control_plane(url) });
            assert_eq!(node(&serde_json::from_value(there).unwrap()), [], "{url}");
        }
        let mut insecure = json!({ "control_plane": control_plane("http://admin:9080") });
        insecure["control_plane"]["insecure_plain_http"] = json!(true);
        assert_eq!(node(&serde_json::from_value(insecure).unwrap()), []);
    }

    #[test]
    fn a_key_that_was_put_in_the_wrong_place_is_not_repeated() {
        let key = "sk_abcdefgh_0123456789abcdef0123456789abcdef";
        let mut document = good();
        document["tenants"][0]["consumers"][0]["keys"][0]["prefix"] = json!(key);
        let problem = problems(&document).remove(0);
        assert_eq!(problem.value, None);
        assert!(!format!("{problem:?}").contains(key));
    }

    #[test]
    fn a_near_miss_is_suggested() {
        let known = ["shared".to_owned(), "own".to_owned()];
        assert_eq!(suggestion("shred", &known, "defined are"), "did you mean shared? defined are shared, own");
    }

    #[test]
    fn what_two_files_both_have_is_told_with_its_place() {
        let text = "revision: 1\ntenants:\n  - id: two\n    hosts: ['*.ONE.example']\n    routes: []\n";
        let file = load::tenants_with(None, text, Path::new("b.yaml")).unwrap();
        let two = Member { file: &file, number: 0 };
        assert_eq!(
            two.has_host_of(0, &"one".parse().unwrap()).to_string(),
            "b.yaml:3:1: tenants[0].hosts[0] (tenant two): the host *.one.example is served by the tenant one already\n    fix: a host belongs to one tenant: remove it from one of them"
        );
        let error = two.has_id_of(Path::new("a.yaml"), 7);
        assert!(error.to_string().contains("the tenant two stands in a.yaml:7 already"), "{error}");
    }
}
