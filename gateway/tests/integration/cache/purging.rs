//! Purges and warming, by operators.

use serde_json::{Value, json};

use super::{caching, counting};
use crate::{
    fixtures::{Stub, comes_true, demo, open, tenants},
    limits::Redis,
    support::{Client, Gateway, Response},
};

impl Gateway {
    fn post_operations(&self, target: &str, body: &Value) -> Response {
        let body = body.to_string();
        let length = body.len();
        let request = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        Client::connect(self.operations).request(&request)
    }

    fn purge(&self, what: &Value) {
        let answer = self.post_operations("/cache/purge", what);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

const TAGGED: &str = "Cache-Control: max-age=3600\r\nCache-Tag: products, sale\r\nSurrogate-Key: k1 k2\r\n";

/// Which of these are still served from the cache after a purge.
fn kept(what: &Value) -> Vec<bool> {
    let targets = ["/v1/a", "/v1/a?q", "/v1/a/b", "/v1/ab"];
    let origin = counting(TAGGED);
    let gateway = caching(&origin, "");
    for target in targets {
        gateway.fetch(target, "");
    }
    gateway.purge(what);
    targets.iter().map(|target| gateway.fetch(target, "").is_hit()).collect()
}

#[test]
fn by_url_prefix_tag_and_tenant() {
    let of = |key: &str, value: &str| {
        let mut what = json!({ "tenant": "acme" });
        what[key] = value.into();
        kept(&what)
    };
    assert_eq!(of("url", "https://acme.test/v1/a"), [false, true, true, true]);
    assert_eq!(of("url", "http://ACME.test/v1/./a?q"), [true, false, true, true]);
    assert_eq!(of("prefix", "/v1/a"), [false, false, false, true]);
    assert_eq!(of("prefix", "https://acme.test/v1/a/"), [false, false, false, true]);
    assert_eq!(of("prefix", "https://other.test/v1/a/"), [true; 4]);
    assert_eq!(of("tag", "sale"), [false; 4]);
    assert_eq!(of("tag", "k2"), [false; 4]);
    assert_eq!(of("tag", "sal"), [true; 4]);
    assert_eq!(kept(&json!({ "tenant": "acme", "all": true })), [false; 4]);
}

#[test]
fn what_is_wrong_purges_nothing() {
    let origin = counting(TAGGED);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    for (what, status) in [
        (json!({ "tenant": "acme" }), 400),
        (json!({ "tenant": "acme", "al": true }), 400),
        (json!({ "all": true }), 400),
        (json!([]), 400),
        (json!({ "tenant": "nobody", "all": true }), 404),
        (json!({ "tenant": "acme", "tag": "x".repeat(20_000) }), 413),
    ] {
        let answer = gateway.post_operations("/cache/purge", &what);
        assert_eq!(answer.status, status, "{what} {answer:?}");
    }
    assert_eq!(gateway.operations("/cache/purge").status, 405);
    assert!(gateway.fetch("/v1/a", "").is_hit());
}

#[test]
fn a_purge_reaches_all_nodes_that_share_a_redis() {
    let redis = Redis::start();
    let origin = counting(TAGGED);
    let tenants = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    let node = |number: u8| format!("id: node-{number}\nlimits: {{ redis: {{ url: '{}' }} }}\n", redis.url());
    let start = |number| {
        let text = node(number);
        let gateway = Gateway::start_with(&tenants, text.split_once('\n').unwrap().1);
        assert!(comes_true(|| gateway.metric("seiketsu_cache_purges_heard") > 0.0));
        gateway
    };
    let (one, other) = (start(1), start(2));
    for what in
        [json!({ "tenant": "acme", "tag": "sale" }), json!({ "tenant": "acme", "url": "http://acme.test/v1/a" })]
    {
        one.fetch("/v1/a", "");
        other.fetch("/v1/a", "");
        assert!(one.fetch("/v1/a", "").is_hit() && other.fetch("/v1/a", "").is_hit());
        one.purge(&what);
        assert!(!one.fetch("/v1/a", "").is_hit());
        assert!(comes_true(|| other.metric("seiketsu_cache_purges_total{by=\"other_node\"}") > 0.0));
        assert!(comes_true(|| !other.fetch("/v1/a", "").is_hit()), "{what}");
    }
    // What an unsafe request has changed is told as well.
    one.fetch("/v1/b", "");
    other.fetch("/v1/b", "");
    assert!(other.fetch("/v1/b", "").is_hit());
    one.ask("POST", "/v1/b", "", "x");
    assert!(comes_true(|| !other.fetch("/v1/b", "").is_hit()));
}

#[test]
fn a_node_that_was_cut_off_purges_what_it_may_have_missed() {
    let mut redis = Redis::start();
    let origin = counting(TAGGED);
    let tenants = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    let gateway = Gateway::start_with(&tenants, &format!("limits: {{ redis: {{ url: '{}' }} }}\n", redis.url()));
    let hears = || gateway.metric("seiketsu_cache_purges_heard") > 0.0;
    assert!(comes_true(hears));
    gateway.purge(&json!({ "tenant": "acme", "tag": "x" }));
    gateway.fetch("/v1/a", "");
    assert!(gateway.fetch("/v1/a", "").is_hit());
    redis.kill();
    assert!(comes_true(|| !hears()));
    // Nobody can be told, which is said; here it is purged all the same.
    gateway.fetch("/v1/b", "");
    let untold = gateway.post_operations("/cache/purge", &json!({ "tenant": "acme", "url": "http://acme.test/v1/b" }));
    assert_eq!(untold.status, 503, "{untold:?}");
    assert!(!gateway.fetch("/v1/b", "").is_hit());
    assert!(gateway.fetch("/v1/a", "").is_hit());
    // It comes back without its data: what was purged meanwhile is not known.
    redis.start_again();
    assert!(comes_true(hears));
    assert!(!gateway.fetch("/v1/a", "").is_hit());
}

#[test]
fn what_somebody_else_has_just_fetched_counts_as_warmed() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let gateway = caching(&origin, "");
    let urls = ["http://acme.test/v1/a"; 20];
    assert_eq!(gateway.fetch("/v1/a", "").status, 200);
    assert_eq!(gateway.post_operations("/cache/warm", &json!({ "urls": urls })).status, 202);
    let list = || gateway.operations("/cache/warm").json()["lists"][0].clone();
    assert!(comes_true(|| list()["done"] == true), "{}", list());
    assert_eq!(list(), json!({ "id": 1, "total": 20, "stored": 20, "not_stored": 0, "failed": 0, "done": true }));
}

#[test]
fn urls_are_warmed() {
    let origin = Stub::start(|seen| {
        let answer = match seen.target() {
            "/v1/private" => "200 OK\nCache-Control: private\n\nbody".to_owned(),
            "/v1/error" => "503 Service Unavailable\n\nbody".to_owned(),
            _ => format!(
                "200 OK\nCache-Control: max-age=3600\nVary: Accept\n\n{}",
                seen.header("accept").unwrap_or("none")
            ),
        };
        super::wire(&answer)
    });
    let gateway = caching(&origin, "");
    let urls: Vec<String> = (0..20).map(|number| format!("http://acme.test/v1/{number}?q")).collect();
    let more = [
        "http://acme.test/v1/private",
        "http://acme.test/v1/error",
        "http://nobody.test/v1/a",
        "http://acme.test/none",
    ];
    let urls: Vec<&str> = urls.iter().map(String::as_str).chain(more).collect();
    let begun = gateway.post_operations("/cache/warm", &json!({ "urls": urls, "headers": { "accept": "text/x" } }));
    assert_eq!((begun.status, &begun.json()["total"]), (202, &json!(24)));
    let list = || gateway.operations("/cache/warm").json()["lists"][0].clone();
    assert!(comes_true(|| list()["done"] == true), "{}", list());
    let mut warmed = list();
    let mut missing: Vec<Value> = serde_json::from_value(warmed["missing"].take()).unwrap();
    missing.sort_by_key(|missing| missing["url"].to_string());
    warmed.as_object_mut().unwrap().remove("missing");
    assert_eq!(warmed, json!({ "id": 1, "total": 24, "stored": 20, "not_stored": 1, "failed": 3, "done": true }));
    let expected = [
        json!({ "url": "http://acme.test/none" }),
        json!({ "url": "http://acme.test/v1/error", "status": 503, "reason": "status" }),
        json!({ "url": "http://acme.test/v1/private", "status": 200, "reason": "private" }),
        json!({ "url": "http://nobody.test/v1/a" }),
    ];
    assert_eq!(missing, expected);
    let asked = origin.asked();
    for number in 0..20 {
        let hit = gateway.fetch(&format!("/v1/{number}?q"), "Accept: text/x\r\n");
        assert!(hit.is_hit() && hit.text() == "text/x", "{hit:?}");
    }
    assert_eq!(origin.asked(), asked);
    let holds = gateway.operations("/cache").json();
    assert_eq!((&holds["largest"][0]["tenant"], &holds["largest"][0]["keys"]), (&json!("acme"), &json!(22)));
    // It is nobody's request.
    assert!(gateway.metric("seiketsu_requests_total{tenant=\"acme\",route=\"open\",class=\"2xx\"}") < 21.0);
    for wrong in [json!({}), json!({ "urls": [] }), json!({ "urls": ["/x"] })] {
        assert_eq!(gateway.post_operations("/cache/warm", &wrong).status, 400);
    }
}

#[test]
fn what_is_warmed_is_for_everybody() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let routes = "  - { id: closed, match: { path: '/closed/{*rest}' }, upstream: demo, policies: { auth: { accept: [api_key] } } }\n  - { id: open, match: { path: '/v1/{*rest}' }, upstream: demo }\n";
    let text = format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }}, cache: {{}} }}\nupstreams:\n  {}tenants:\n- id: acme\n  hosts: [acme.test]\n  routes:\n{routes}",
        demo(&[origin.address], "")
    );
    let gateway = Gateway::start(&text);
    for name in ["cookie", "Authorization", "proxy-authorization"] {
        let body = json!({ "urls": ["http://acme.test/v1/a"], "headers": { name: "session=admin" } });
        let refused = gateway.post_operations("/cache/warm", &body);
        assert_eq!(refused.status, 400);
        assert!(refused.json()["detail"].as_str().unwrap().contains(&name.to_lowercase()), "{refused:?}");
    }
    let warm = |body: Value| {
        assert_eq!(gateway.post_operations("/cache/warm", &body).status, 202);
        let list = || gateway.operations("/cache/warm").json()["lists"][0].clone();
        assert!(comes_true(|| list()["done"] == true), "{}", list());
        list()
    };
    // Who may be served on this route has said who it is, and this key may be somebody's.
    for (url, headers) in
        [("http://acme.test/closed/a", json!({})), ("http://acme.test/v1/a", json!({ "x-api-key": "sk_somebody" }))]
    {
        let warmed = warm(json!({ "urls": [url], "headers": headers }));
        assert_eq!((&warmed["stored"], &warmed["not_stored"]), (&json!(0), &json!(1)));
        assert_eq!(warmed["missing"], json!([{ "url": url, "reason": "credential" }]));
    }
    assert_eq!(origin.asked(), 0);
    // As clients ask for it, who leave out the default port.
    assert_eq!(warm(json!({ "urls": ["http://acme.test:80/v1/b"] }))["stored"], 1);
    assert!(gateway.fetch("/v1/b", "").is_hit());
}
