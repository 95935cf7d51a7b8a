//! What counts, for whom, and against which limit.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::json;

use super::{answers, limited, noon, passing, remaining, request, statuses, still, violated};
use crate::{
    fixtures::{Issuer, comes_true, demo, key_hash, open, tenants, upstream},
    support::{Client, Gateway, Origin, http2::Http2},
};

const KEY_A: &str = "sk_consumera_0123456789abcdefghijklmnopqrstuv";
const KEY_B: &str = "sk_consumerb_0123456789abcdefghijklmnopqrstuv";

fn key(key: &str) -> String {
    format!("X-API-Key: {key}\r\n")
}

/// Two consumers `a` and `b`; `of_a` is more of the first.
fn consumers(of_a: &str) -> String {
    format!(
        "consumers:\n- {{ id: a, keys: [{{ prefix: consumera, hash: '{}' }}]{of_a} }}\n\
         - {{ id: b, keys: [{{ prefix: consumerb, hash: '{}' }}] }}\n",
        key_hash(KEY_A),
        key_hash(KEY_B),
    )
}

/// One route that takes keys and anonymous callers, with these limits of the tenant.
fn with_consumers(origin: &Origin, of_a: &str, limits: &str) -> Gateway {
    let tenant = format!("{}policies: {{ limits: {{ {}, {limits} }} }}\n", consumers(of_a), noon());
    Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, &open("auth: { accept: [anonymous, api_key] }")))
}

#[test]
fn what_is_refused_before_anybody_is_known_does_not_count() {
    let origin = Origin::start("a");
    let routes = "- id: secure\n  match: { path: '/v1/secure/{*rest}' }\n  upstream: demo\n\
                  \x20 policies: { auth: { accept: [api_key] }, cors: { origins: ['https://app.test'] } }\n\
                  - { id: only-get, match: { path: /only, methods: [GET] }, upstream: demo }\n";
    let limits = format!("{}, quotas: {{ daily: 3 }}", still(3));
    let tenant = format!("{}policies: {{ limits: {{ {}, {limits} }} }}\n", consumers(""), noon());
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, routes));
    for _ in 0..5 {
        assert_eq!(gateway.get("acme.test", "/v1/secure/echo", "").status, 401);
        assert_eq!(gateway.get("acme.test", "/v1/secure/echo", &key("sk_consumera_wrong")).status, 401);
        let preflight = "Origin: https://app.test\r\nAccess-Control-Request-Method: GET\r\n";
        let preflight = gateway.ask("OPTIONS", "/v1/secure/echo", preflight, "");
        assert_eq!((preflight.status, preflight.header("ratelimit")), (204, None));
        assert_eq!(gateway.get("acme.test", "/nothing", "").status, 404);
        assert_eq!(gateway.ask("POST", "/only", "", "x").status, 405);
        assert_eq!(gateway.ask("TRACE", "/only", "", "").status, 405);
    }
    assert_eq!(statuses(&gateway, "/v1/secure/echo", &key(KEY_A), 5), [200, 200, 200, 429, 429]);
}

#[test]
fn a_request_that_one_limit_refuses_takes_nothing_from_the_others() {
    let origin = Origin::start("a");
    let routes = format!(
        "- id: narrow\n  match: {{ path: '/v1/status/200' }}\n  upstream: demo\n  policies: {{ limits: {{ {} }} }}\n\
         - id: wide\n  match: {{ path: '/v1/bytes/1' }}\n  upstream: demo\n  policies:\n    limits:\n      keyed:\n\
         \x20     - {{ id: each, by: address, {} }}\n      - {{ id: device, by: {{ header: x-device }}, {} }}\n",
        still(2),
        still(50),
        still(50),
    );
    let gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 10 }", &routes));
    // The route refuses, and the tenant's day has not changed.
    let answers = answers(&gateway, "/v1/status/200", "", 20);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 2);
    assert_eq!(violated(&answers[19]), ["narrow-rate"]);
    assert_eq!((remaining(&answers[19], "day"), remaining(&answers[19], "narrow-rate")), (8, 0));
    // The tenant refuses, and neither what is counted by address nor by header has changed.
    let device = "X-Device: 7\r\n";
    let answers = super::answers(&gateway, "/v1/bytes/1", device, 40);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 8);
    assert_eq!(violated(&answers[39]), ["day"]);
    assert_eq!((remaining(&answers[39], "each-rate"), remaining(&answers[39], "device-rate")), (42, 42));
    // And no slot is kept.
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5));
}

#[test]
fn a_quota_of_zero_admits_nothing_and_no_quota_everything() {
    let origin = Origin::start("a");
    for quota in ["daily: 0", "monthly: 0"] {
        let gateway = Gateway::start(&limited(origin.address, &format!("quotas: {{ {quota} }}"), ""));
        let refused = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!(violated(&refused), [if quota == "daily: 0" { "day" } else { "month" }]);
        assert_eq!(passing(&gateway, "/v1/echo", "", 10), 0, "{quota}");
    }
    // What the defaults forbid, a tenant may be allowed.
    let zero =
        "limits: { quotas: { daily: 0, monthly: 0 }, rate: { requests: 1, per: 1h }, concurrency: { requests: 0 } }";
    let lifted =
        "quotas: { daily: unlimited, monthly: unlimited }, rate: unlimited, concurrency: { requests: unlimited }";
    let tenants = limited(origin.address, lifted, "");
    let with_defaults = tenants.replace("accept: [anonymous] }", &format!("accept: [anonymous] }}, {zero}"));
    assert_ne!(tenants, with_defaults);
    let gateway = Gateway::start(&with_defaults);
    assert_eq!(passing(&gateway, "/v1/echo", "", 30), 30);
    let gateway = Gateway::start(&with_defaults.replace("quotas: { daily: unlimited, ", "quotas: { "));
    assert_eq!(violated(&gateway.get("acme.test", "/v1/echo", "")), ["day"], "what is not lifted holds");
}

#[test]
fn a_request_takes_what_its_route_says_it_weighs() {
    let origin = Origin::start("a");
    let routes =
        "- { id: heavy, match: { path: '/v1/status/200' }, upstream: demo, policies: { limits: { cost: 3 } } }\n";
    let limits = format!("{}, quotas: {{ daily: 20 }}", still(11));
    let gateway = Gateway::start(&limited(origin.address, &limits, routes));
    let heavy = answers(&gateway, "/v1/status/200", "", 5);
    let statuses: Vec<u16> = heavy.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!((remaining(&heavy[2], "rate"), remaining(&heavy[2], "day")), (2, 11));
    // What does not suffice for a heavy one does for light ones.
    assert_eq!(passing(&gateway, "/v1/echo", "", 5), 2);
}

#[test]
fn what_the_upstream_fails_is_given_back_where_it_does_not_count() {
    let origin = Origin::start("a");
    for (setting, counts) in [("count_failures: false", false), ("count_failures: true", true)] {
        let limits = format!("quotas: {{ daily: 4 }}, {setting}");
        let gateway = Gateway::start(&limited(origin.address, &limits, ""));
        // On one connection, on which the next request begins when the one before has been settled.
        let mut client = gateway.connect();
        for n in 0..6 {
            let status = client.request(&request("/v1/status/503", "")).status;
            assert_eq!(status, if counts && n >= 4 { 429 } else { 503 }, "request {n}, {setting}");
        }
        // What the client did wrong is no failure of the upstream.
        for n in 0..6 {
            let status = client.request(&request("/v1/status/404", "")).status;
            assert_eq!(status, if counts || n >= 4 { 429 } else { 404 }, "request {n}, {setting}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_that_fail_are_given_back_where_they_do_not_count() {
    const UNARY: &str = "/seiketsu.demo.v1.Echo/Unary";
    let origin = Origin::start("a");
    let routes = "- { id: echo, match: { path: '/seiketsu.demo.v1.Echo/{method}' }, upstream: demo }\n\
                  - { id: gone, match: { path: '/gone/{method}' }, upstream: gone }\n";
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstreams = ["demo", "gone"].into_iter().zip([origin.address, nobody]);
    let upstreams: String = upstreams.map(|(name, address)| upstream(name, &[address], "protocol: http2")).collect();
    // The one with nobody behind it is answered by the gateway, in gRPC's own way.
    let mut failures = vec![("/gone/Unary", "x-grpc-status", "14")];
    for status in ["2", "4", "13", "14", "15"] {
        failures.extend(["x-grpc-status", "x-grpc-status-after"].map(|name| (UNARY, name, status)));
    }
    for (setting, counts) in [("count_failures: false", false), ("count_failures: true", true)] {
        let limits = format!("policies: {{ limits: {{ {}, quotas: {{ daily: 4 }}, {setting} }} }}\n", noon());
        let gateway = Gateway::start(&tenants(&upstreams, &limits, routes));
        let client = Http2::plain(&gateway).await;
        let call = async |(target, name, status): (&str, &str, &str)| {
            let request = client.request("POST", "acme.test", target).header("content-type", "application/grpc");
            let request = request.header("te", "trailers").header(name, status);
            let answer = client.send(request, &[0, 0, 0, 0, 2, b'h', b'i']).await.unwrap();
            let told = answer.trailers.unwrap_or(answer.headers).remove("grpc-status").expect("a status");
            told.to_str().unwrap().to_owned()
        };
        for (n, failure) in failures.iter().enumerate() {
            assert_eq!(call(*failure).await, if counts && n >= 4 { "8" } else { failure.2 }, "{failure:?}, {setting}");
        }
        // What the client did wrong is no failure of the upstream.
        for (n, status) in ["0", "3", "5", "12", "0"].into_iter().enumerate() {
            let told = call((UNARY, "x-grpc-status-after", status)).await;
            assert_eq!(told, if counts || n >= 4 { "8" } else { status }, "{setting}");
        }
    }
}

#[test]
fn what_the_upstream_fails_still_counts_against_rates() {
    let origin = Origin::start("a");
    let limits = format!("{}, quotas: {{ daily: 100 }}, count_failures: false", still(4));
    let gateway = Gateway::start(&limited(origin.address, &limits, ""));
    let mut client = gateway.connect();
    for n in 0..6 {
        let status = client.request(&request("/v1/status/503", "")).status;
        assert_eq!(status, if n >= 4 { 429 } else { 503 }, "request {n}");
    }
}

/// Each of two callers has two requests, whatever the other one does.
fn assert_told_apart(gateway: &Gateway, one: &str, other: &str, limit: &str) {
    for fields in [one, other] {
        let answers = answers(gateway, "/v1/echo", fields, 3);
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 429], "{fields:?}");
        assert_eq!((remaining(&answers[0], limit), violated(&answers[2])), (1, vec![limit.to_owned()]));
    }
    assert_eq!(passing(gateway, "/v1/echo", one, 1), 0, "the other one has not changed that");
}

#[test]
fn callers_are_told_apart_by_header_and_those_without_it_are_not_counted() {
    let origin = Origin::start("a");
    let limits = format!("keyed: [{{ id: device, by: {{ header: x-device }}, {} }}]", still(2));
    let gateway = Gateway::start(&limited(origin.address, &limits, ""));
    assert_told_apart(&gateway, "X-Device: a\r\n", "X-Device: b\r\n", "device-rate");
    assert_eq!(passing(&gateway, "/v1/echo", "", 20), 20);
}

#[test]
fn callers_are_told_apart_by_who_they_are() {
    let origin = Origin::start("a");
    let limits = format!("keyed: [{{ id: each, by: consumer, {} }}]", still(2));
    let gateway = with_consumers(&origin, "", &limits);
    assert_told_apart(&gateway, &key(KEY_A), &key(KEY_B), "each-rate");
    assert_eq!(passing(&gateway, "/v1/echo", "", 20), 20, "nobody is no consumer");
}

#[test]
fn callers_are_told_apart_by_a_claim_of_their_tokens() {
    let origin = Origin::start("a");
    let (issuer, keys) = (Issuer::new("k"), tempfile::tempdir().unwrap());
    let file = keys.path().join("jwks.json");
    std::fs::write(&file, issuer.jwks()).unwrap();
    let limits = format!("keyed: [{{ id: org, by: {{ claim: org.id }}, {} }}]", still(2));
    let tenant = format!(
        "jwt_issuers: [{{ issuer: 'https://login.test', audiences: [api], jwks: {{ file: '{}' }} }}]\n\
         policies: {{ limits: {{ {limits} }} }}\n",
        file.display(),
    );
    let gateway =
        Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, &open("auth: { accept: [jwt, anonymous] }")));
    let token = |claims| format!("Authorization: Bearer {}\r\n", issuer.token(&claims));
    // The subject is the same, the organisation is not.
    let (a, b) = (token(json!({ "org": { "id": "a" } })), token(json!({ "org": { "id": "b" } })));
    assert_told_apart(&gateway, &a, &b, "org-rate");
    let of_another_subject = token(json!({ "sub": "bob", "org": { "id": "a" } }));
    assert_eq!(passing(&gateway, "/v1/echo", &of_another_subject, 3), 0, "one organisation is one account");
    assert_eq!(passing(&gateway, "/v1/echo", &token(json!({})), 10), 10, "without the claim");
}

#[test]
fn callers_are_told_apart_by_address_and_those_of_one_network_are_one() {
    let origin = Origin::start("a");
    let limits = format!("keyed: [{{ id: each, by: address, {} }}]", still(2));
    let tenants = limited(origin.address, &limits, "");
    let gateway = Gateway::start_with(&tenants, "forwarding: { trusted_proxies: [127.0.0.0/8] }\n");
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    assert_told_apart(&gateway, &from("192.0.2.1"), &from("192.0.2.2"), "each-rate");
    assert_eq!(statuses(&gateway, "/v1/echo", &from("2001:db8:1:2::1"), 1), [200]);
    assert_eq!(statuses(&gateway, "/v1/echo", &from("2001:db8:1:2:ffff::2"), 2), [200, 429], "a /64 is one caller");
    assert_eq!(statuses(&gateway, "/v1/echo", &from("2001:db8:1:3::1"), 1), [200]);
}

#[test]
fn whoever_tries_keys_pays_for_each_with_the_address() {
    let origin = Origin::start("a");
    let limits = format!("keyed: [{{ id: each, by: address, {} }}]", still(4));
    let tenant = format!("{}policies: {{ limits: {{ {}, {limits} }} }}\n", consumers(""), noon());
    let routes = open("auth: { accept: [api_key] }");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, &routes));
    let tried = answers(&gateway, "/v1/echo", &key("sk_consumera_wrong"), 2);
    assert_eq!(tried.iter().map(|answer| answer.status).collect::<Vec<_>>(), [401, 401]);
    assert_eq!(remaining(&tried[1], "each-rate"), 2);
    assert_eq!(statuses(&gateway, "/v1/echo", "", 10), [401, 401, 429, 429, 429, 429, 429, 429, 429, 429]);
    // With a key that is right, too.
    assert_eq!(violated(&gateway.get("acme.test", "/v1/echo", &key(KEY_A))), ["each-rate"]);
}

#[test]
fn a_slot_of_an_address_is_free_again_when_nobody_was_known() {
    let origin = Origin::start("a");
    let limits = "keyed: [{ id: each, by: address, concurrency: { requests: 1 } }]";
    let tenant = format!("{}policies: {{ limits: {{ {limits} }} }}\n", consumers(""));
    let routes = open("auth: { accept: [api_key] }");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, &routes));
    // On one connection: by the next request on it, the one before has ended.
    let mut client = gateway.connect();
    let mut status = |fields: &str| client.request(&request("/v1/echo", fields)).status;
    assert_eq!([(); 5].map(|()| status("")), [401; 5]);
    assert_eq!([(); 2].map(|()| status(&key(KEY_A))), [200, 200]);
}

#[test]
fn a_consumer_has_limits_of_its_own_beside_those_of_all() {
    let origin = Origin::start("a");
    let of_a = format!(", limits: {{ {}, quotas: {{ daily: 100 }} }}", still(3));
    let gateway = with_consumers(&origin, &of_a, &still(10));
    let of_a = answers(&gateway, "/v1/echo", &key(KEY_A), 5);
    assert_eq!(of_a.iter().filter(|answer| answer.status == 200).count(), 3);
    assert_eq!(violated(&of_a[4]), ["consumer-rate"]);
    assert_eq!((remaining(&of_a[4], "rate"), remaining(&of_a[4], "consumer-day")), (7, 97));
    let of_b = answers(&gateway, "/v1/echo", &key(KEY_B), 9);
    assert_eq!(of_b.iter().filter(|answer| answer.status == 200).count(), 7, "what is left for all");
    assert_eq!(violated(&of_b[8]), ["rate"]);
    assert!(of_b[0].header("ratelimit").is_some_and(|told| !told.contains("consumer")));
}

#[test]
fn who_makes_values_up_gains_no_more_than_as_many_accounts_as_are_kept() {
    // As `seiketsu_limits::registry::MOST_SUBJECTS` has it, and one for all others together.
    const ACCOUNTS: usize = 10_000;
    const MADE_UP: usize = 11_400;
    let origin = Origin::start("a");
    let limits = format!("keyed: [{{ id: device, by: {{ header: x-device }}, {} }}]", still(1));
    let gateway = Gateway::start(&limited(origin.address, &limits, ""));
    let (next, passed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::connect(gateway.http);
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= MADE_UP {
                        break;
                    }
                    match client.request(&request("/v1/echo", &format!("X-Device: {n}\r\n"))).status {
                        200 => passed.fetch_add(1, Relaxed),
                        429 => continue,
                        status => panic!("{status}"),
                    };
                }
            });
        }
    });
    let passed = passed.into_inner();
    assert!((ACCOUNTS * 97 / 100..=ACCOUNTS + 1).contains(&passed), "{passed} of {MADE_UP}");
    // Those that are known keep their accounts.
    assert_eq!(passing(&gateway, "/v1/echo", "X-Device: 0\r\n", 3), 0);
}
