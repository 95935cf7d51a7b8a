//! Versions of an API, and shares of its requests that go elsewhere: canaries and mirrors.

use std::time::Instant;

use serde_json::json;

use crate::{
    fixtures::{Stub, comes_true, demo, key_hash, ok, tenants, upstream, verified},
    support::{Gateway, KEY, Origin, http2::Http2},
};

const LIST: &str = "
    v1: { retired: true, link: 'https://docs.test/v1' }
    v2: { deprecated: 2027-01-01T00:00:00Z, sunset: 2027-07-01T00:00:00Z, link: 'https://docs.test/v3' }
    v3: {}";

fn versioned(by: &str, routes: &str) -> (Origin, Gateway) {
    let origin = Origin::start("a");
    let versions = format!("versions:\n  by: {by}\n  default: v3\n  list:{LIST}\n");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), &versions, routes));
    (origin, gateway)
}

const ROUTES: &str = "
- { id: old, match: { path: '/{*rest}', versions: [v2] }, upstream: demo, policies: { headers: { response: { set: { x-served: old } } } } }
- { id: all, match: { path: '/{*rest}' }, upstream: demo, policies: { headers: { response: { set: { x-served: all } } } } }";

#[test]
fn a_header_names_the_version() {
    let (_origin, gateway) = versioned("{ header: api-version }", ROUTES);
    let current = gateway.get("acme.test", "/v1/echo", "");
    assert_eq!((current.status, current.header("x-served"), current.header("deprecation")), (200, Some("all"), None));
    assert!(current.header("vary").unwrap().to_lowercase().contains("api-version"));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "Api-Version: v3\r\n").header("x-served"), Some("all"));

    let deprecated = gateway.get("acme.test", "/v1/echo", "API-VERSION: v2\r\n");
    assert_eq!((deprecated.status, deprecated.header("x-served")), (200, Some("old")));
    assert_eq!(deprecated.header("deprecation"), Some("@1798761600"));
    assert_eq!(deprecated.header("sunset"), Some("Thu, 01 Jul 2027 00:00:00 GMT"));
    assert_eq!(deprecated.header("link"), Some("<https://docs.test/v3>; rel=\"deprecation\""));

    let retired = gateway.get("acme.test", "/v1/echo", "Api-Version: v1\r\n");
    assert_eq!((retired.status, retired.problem().as_str()), (410, "version-retired"));
    assert_eq!(retired.json()["supported"], json!(["v2", "v3"]));
    assert!(retired.header("link").unwrap().contains("https://docs.test/v1"));

    for unknown in ["Api-Version: v9\r\n", "Api-Version: \r\n", "Api-Version: v2\r\nApi-Version: v3\r\n"] {
        let refused = gateway.get("acme.test", "/v1/echo", unknown);
        assert_eq!((refused.status, refused.problem().as_str()), (400, "unsupported-version"), "{unknown}");
    }
}

#[test]
fn the_first_segment_of_the_path_names_the_version() {
    let (_origin, gateway) = versioned("path_prefix", ROUTES);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 410);
    assert_eq!(gateway.get("acme.test", "/x/../v1/echo", "").status, 410);
    let deprecated = gateway.get("acme.test", "/v2/echo", "");
    assert_eq!((deprecated.header("x-served"), deprecated.header("deprecation")), (Some("old"), Some("@1798761600")));
    assert_eq!(gateway.get("acme.test", "/v3/echo", "").header("x-served"), Some("all"));
    assert_eq!(gateway.get("acme.test", "/v9/echo", "").status, 400);
    assert_eq!(gateway.get("acme.test", "/other/echo", "").header("x-served"), Some("all"));
}

#[test]
fn a_parameter_of_the_accepted_media_type_names_the_version() {
    let (_origin, gateway) = versioned("{ media_type: version }", ROUTES);
    for (accept, served) in [
        ("application/json", "all"),
        ("application/json;version=v2", "old"),
        ("application/json; Version=\"v2\"", "old"),
        ("application/json;version=v2;q=0.1, application/json;version=v3", "all"),
    ] {
        let answer = gateway.get("acme.test", "/v1/echo", &format!("Accept: {accept}\r\n"));
        assert_eq!(answer.header("x-served"), Some(served), "{accept}");
        assert!(answer.header("vary").unwrap().to_lowercase().contains("accept"));
    }
    let unknown = gateway.get("acme.test", "/v1/echo", "Accept: application/json;version=v9\r\n");
    assert_eq!((unknown.status, unknown.problem().as_str()), (406, "not-acceptable"));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "Accept: text/plain;version=v1\r\n").status, 410);
}

/// A gateway with the upstreams `demo` (region `stable`) and `next`, which takes a share.
fn canary(canary: &str) -> (Origin, Origin, Gateway) {
    let (stable, next) = (Origin::start("stable"), Origin::start("next"));
    let upstreams = demo(&[stable.address], "") + &upstream("next", &[next.address], "");
    let route = format!(
        "- {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo, canary: {{ upstream: next, {canary} }} }}"
    );
    let gateway = Gateway::start(&tenants(&upstreams, "", &route));
    (stable, next, gateway)
}

#[test]
fn a_canary_takes_its_share() {
    const REQUESTS: usize = 3000;
    let (_stable, _next, gateway) = canary("weight: 20");
    let mut client = gateway.connect();
    let taken = (0..REQUESTS)
        .filter(|_| {
            let answer = client.request("GET /v1/bytes/1 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
            answer.header("x-origin-region") == Some("next")
        })
        .count();
    // Five standard deviations either way.
    assert!((490..=710).contains(&taken), "{taken} of {REQUESTS} at 20 %");
}

#[test]
fn a_header_or_a_cookie_asks_for_the_canary() {
    let (_stable, _next, gateway) =
        canary("weight: 0, header: { name: x-release, value: next }, cookie: { name: release, value: next }");
    for (fields, region) in [
        ("", "stable"),
        ("X-Release: next\r\n", "next"),
        ("X-Release: other\r\n", "stable"),
        ("Cookie: a=b; release=next\r\n", "next"),
        ("Cookie: xrelease=next; release=no\r\n", "stable"),
    ] {
        for _ in 0..5 {
            let answer = gateway.get("acme.test", "/v1/echo", fields);
            assert_eq!(answer.header("x-origin-region"), Some(region), "{fields}");
        }
    }
}

#[test]
fn a_sticky_caller_stays_on_its_side() {
    let (_stable, _next, gateway) = canary("weight: 50, sticky_cookie: side");
    let mut sides = std::collections::HashSet::new();
    for _ in 0..40 {
        let first = gateway.get("acme.test", "/v1/echo", "");
        let cookie = first.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
        for _ in 0..5 {
            let again = gateway.get("acme.test", "/v1/echo", &format!("Cookie: {cookie}\r\n"));
            assert_eq!(again.header("x-origin-region"), first.header("x-origin-region"));
            assert_eq!(again.header("set-cookie"), None);
        }
        sides.insert(first.header("x-origin-region").unwrap().to_owned());
    }
    assert_eq!(sides.len(), 2);
    // A cookie that nobody gave is drawn anew.
    let forged = gateway.get("acme.test", "/v1/echo", "Cookie: side=99999\r\n");
    assert!(forged.header("set-cookie").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sticky_cookie_given_over_tls_does_not_leave_it() {
    let (_stable, _next, gateway) = canary("weight: 50, sticky_cookie: side");
    let secure = Http2::tls(&gateway, "acme.test").await.get("acme.test", "/v1/echo").await;
    assert!(secure.header("set-cookie").unwrap().ends_with("; Secure"));
    let plain = Http2::plain(&gateway).await.get("acme.test", "/v1/echo").await;
    assert!(!plain.header("set-cookie").unwrap().contains("Secure"));
}

fn mirrored(mirror: &Stub, tenant: &str, policies: &str) -> (Origin, Gateway) {
    let origin = Origin::start("primary");
    let upstreams = demo(&[origin.address], "") + &upstream("shadow", &[mirror.address], "");
    let route = format!(
        "- {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo, mirror: {{ upstream: shadow }}, \
         policies: {{ {policies} }} }}"
    );
    let gateway = Gateway::start(&tenants(&upstreams, tenant, &route));
    (origin, gateway)
}

#[test]
fn a_mirror_gets_a_copy_of_what_the_upstream_gets() {
    let mirror = Stub::answering("X-Mirror: yes\r\n", "mirrored");
    let consumers = format!("consumers:\n- {{ id: app, keys: [{{ prefix: testacme, hash: '{}' }}] }}\n", key_hash(KEY));
    let (_origin, gateway) = mirrored(
        &mirror,
        &consumers,
        "auth: { accept: [api_key] }, transform: { path: { replace: '/v1/new/{rest}' }, request_body: '{n: (.n + 1)}' }",
    );
    let fields = format!("X-API-Key: {KEY}\r\nX-Mine: 1\r\nContent-Type: application/json\r\n");
    let answer = gateway.ask("POST", "/v1/echo?q=1", &fields, r#"{"n":1}"#);
    assert_eq!((answer.status, answer.header("x-mirror")), (200, None));
    assert_eq!(answer.json()["body"], r#"{"n":2}"#);
    assert!(comes_true(|| !mirror.seen().is_empty()), "{}", gateway.metrics());
    assert!((gateway.metric("seiketsu_mirrored_requests_total{result=\"sent\"}") - 1.0).abs() < 0.5);
    let seen = mirror.seen().remove(0);
    assert_eq!((seen.target(), seen.body.as_slice()), ("/v1/new/echo?q=1", br#"{"n":2}"#.as_slice()));
    assert_eq!((seen.header("x-mine"), seen.header("host")), (Some("1"), Some("acme.test")));
    assert!(!seen.head.contains(KEY), "the mirror got the caller's credential");
    assert_eq!(seen.header("x-request-id").map(str::to_owned), answer.echoed("x-request-id"));
    // Who is calling is told to each of them alone: neither can speak to the other in the caller's name.
    let jwks = gateway.get("acme.test", "/.well-known/gateway-jwks.json", "").json();
    let of_upstream = verified(&answer.echoed("x-gateway-identity").unwrap(), &jwks);
    let of_mirror = verified(seen.header("x-gateway-identity").unwrap(), &jwks);
    assert_eq!((&of_upstream["aud"], &of_mirror["aud"]), (&json!("demo"), &json!("shadow")));
    assert_eq!((&of_upstream["sub"], &of_mirror["sub"]), (&json!("app"), &json!("app")));
    assert!(!seen.head.contains(&answer.echoed("x-gateway-identity").unwrap()));
}

#[test]
fn a_mirror_never_gets_the_callers_credential() {
    let mirror = Stub::answering("", "mirrored");
    let consumers = format!("consumers:\n- {{ id: app, keys: [{{ prefix: testacme, hash: '{}' }}] }}\n", key_hash(KEY));
    let (_origin, gateway) = mirrored(
        &mirror,
        &consumers,
        "auth: { accept: [api_key, anonymous], forward_credential: true }, \
         headers: { request: { rename: { x-api-key: x-upstream-key }, set: { x-set: '1' } } }",
    );
    let answer = gateway.get("acme.test", "/v1/echo", &format!("X-API-Key: {KEY}\r\n"));
    assert_eq!((answer.status, answer.echoed("x-upstream-key").as_deref()), (200, Some(KEY)), "the upstream gets it");
    let answer = gateway.get("acme.test", "/v1/echo", "Authorization: Basic c2VzYW1l\r\nX_API_Key: sesame\r\n");
    assert_eq!((answer.status, answer.echoed("authorization").as_deref()), (200, Some("Basic c2VzYW1l")));
    assert!(comes_true(|| mirror.seen().len() == 2), "{}", gateway.metrics());
    for seen in mirror.seen() {
        assert_eq!(seen.header("x-set"), Some("1"));
        for secret in [KEY, "c2VzYW1l", "sesame"] {
            assert!(!seen.head.contains(secret), "{}", seen.head);
        }
    }
}

#[test]
fn a_mirror_that_fails_or_hangs_is_not_noticed() {
    let failing = Stub::start(|_| b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec());
    let broken = Stub::start(|_| Vec::new());
    let hanging = Stub::start(|_| {
        loop {
            std::thread::park();
        }
    });
    for mirror in [failing, broken, hanging] {
        let (_origin, gateway) = mirrored(&mirror, "", "");
        let began = Instant::now();
        for _ in 0..50 {
            let answer = gateway.ask("POST", "/v1/echo", "", "hello");
            assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
        }
        assert!(began.elapsed().as_secs() < 10);
        assert!(comes_true(|| !mirror.seen().is_empty()));
    }
}

#[test]
fn a_mirror_gets_no_large_bodies() {
    let mirror = Stub::start(|_| ok("", b""));
    let (origin, gateway) = mirrored(&mirror, "", "");
    let large = "x".repeat(100 << 10);
    assert_eq!(gateway.ask("POST", "/v1/upload", "", &large).status, 200);
    assert_eq!(gateway.ask("GET", "/v1/echo", "", "").status, 200);
    assert!(comes_true(|| !mirror.seen().is_empty()));
    assert_eq!(origin.requests("/v1/upload"), 1);
    assert!(mirror.seen().iter().all(|seen| seen.target() == "/v1/echo"));
}
