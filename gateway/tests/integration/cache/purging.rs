//! Purges and warming, by operators.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use super::{caching, counting};
use crate::{
    fixtures::{Stub, comes_true, demo, open, tenants},
    limits::Redis,
    support::{Client, Gateway, Response},
};

impl Gateway {
    pub fn post_operations(&self, target: &str, body: &Value) -> Response {
        let body = body.to_string();
        let length = body.len();
        let request = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        Client::connect(self.operations).request(&request)
    }

    pub fn purge(&self, what: &Value) {
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
    assert_eq!(of("tag", "sale"), [false; 4]);
    assert_eq!(of("tag", "k2"), [false; 4]);
    assert_eq!(of("tag", "sal"), [true; 4]);
    assert_eq!(kept(&json!({ "tenant": "acme", "all": true })), [false; 4]);
}

#[test]
fn a_url_is_purged_however_it_was_written() {
    let origin = counting(TAGGED);
    let gateway = caching(&origin, "sort_query: true");
    for (host, target, url) in [
        ("acme.test:80", "/v1/a", "http://acme.test/v1/a"),
        ("acme.test.", "/v1/b", "http://acme.test/v1/b"),
        ("ACME.test.:12345", "/v1/c", "https://acme.test:8443/v1/c"),
        ("acme.test", "/v1/d?x='a'", "http://acme.test/v1/d?x='a'"),
        ("acme.test", "/v1/d?x='a'", "http://acme.test/v1/d?x=%27a%27"),
        ("acme.test", "/v1/d?x=%27a%27", "http://acme.test/v1/d?x='a'"),
        ("acme.test", "/v1/e?x=1&y=2", "http://acme.test/v1/e?y=2&x=1"),
        ("acme.test", "/v1/e?y=2&x=1", "http://acme.test/v1/e?x=1&y=2#top"),
        ("acme.test", "/v1/%66//f", "http://acme.test/v1/f/./f"),
    ] {
        gateway.get(host, target, "");
        assert!(gateway.get(host, target, "").is_hit(), "{host} {target}");
        gateway.purge(&json!({ "tenant": "acme", "url": url }));
        assert!(!gateway.get(host, target, "").is_hit(), "{host} {target}");
    }
    gateway.get("acme.test.:80", "/v1/p/q", "");
    gateway.purge(&json!({ "tenant": "acme", "prefix": "http://Acme.test:81/v1/p" }));
    assert!(!gateway.get("acme.test.:80", "/v1/p/q", "").is_hit());
}

#[test]
fn a_tenant_with_a_wildcard_purges_what_is_served_under_it() {
    let origin = counting(TAGGED);
    let tenants = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    let gateway = Gateway::start(&tenants.replace("hosts: [acme.test]", "hosts: ['*.acme.test']"));
    gateway.get("x.acme.test", "/v1/a", "");
    assert!(gateway.get("x.acme.test", "/v1/a", "").is_hit());
    gateway.purge(&json!({ "tenant": "acme", "url": "http://x.acme.test/v1/a" }));
    assert!(!gateway.get("x.acme.test", "/v1/a", "").is_hit());
    let other = gateway.post_operations("/cache/purge", &json!({ "tenant": "acme", "url": "http://acme.test/v1/a" }));
    assert_eq!(other.status, 400, "{other:?}");
}

#[test]
fn what_was_purged_and_what_was_not_stands_in_the_log() {
    let origin = counting(TAGGED);
    let gateway = caching(&origin, "");
    gateway.purge(&json!({ "tenant": "acme", "tag": "sale of the day" }));
    assert!(gateway.logs("sale of the day"));
    gateway.post_operations("/cache/purge", &json!({ "tenant": "nobody", "tag": "forgotten" }));
    assert!(gateway.logs("forgotten"));
    let secret = json!({ "tenant": "acme", "url": "http://user:secret@acme.test/v1/a" });
    assert_eq!(gateway.post_operations("/cache/purge", &secret).status, 400);
    assert!(gateway.logs("leave out user and password"));
    assert!(!gateway.log().contains("secret"));
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
        (json!({ "tenant": "acme", "url": "http://other.test/v1/a" }), 400),
        (json!({ "tenant": "acme", "url": "http://user:password@acme.test/v1/a" }), 400),
        (json!({ "tenant": "acme", "url": "http://acme.test/%zz" }), 400),
        (json!({ "tenant": "acme", "prefix": "https://other.test/v1/" }), 400),
        (json!({ "tenant": "acme", "prefix": "/v1/a?q" }), 400),
        (json!({ "tenant": "acme", "prefix": "/v1/*" }), 400),
        (json!({ "tenant": "acme", "prefix": "v1" }), 400),
        (json!({ "tenant": "acme", "tag": "products, sale" }), 400),
        (json!({ "tenant": "acme", "tag": " sale" }), 400),
        (json!({ "tenant": "acme", "tag": "sale\n" }), 400),
        (json!({ "tenant": "acme", "tag": "x".repeat(20_000) }), 413),
    ] {
        let answer = gateway.post_operations("/cache/purge", &what);
        assert_eq!(answer.status, status, "{what} {answer:?}");
    }
    assert_eq!(gateway.operations("/cache/purge").status, 405);
    assert!(gateway.fetch("/v1/a", "").is_hit());
}

/// Nodes in front of one origin that share a Redis, and hear what is purged.
fn sharing<const MANY: usize>(redis: &Redis, origin: &Stub) -> [Gateway; MANY] {
    sharing_with(redis, &tenants(&demo(&[origin.address], ""), "", &open("cache: {}")))
}

/// The same, for these tenants.
fn sharing_with<const MANY: usize>(redis: &Redis, tenants: &str) -> [Gateway; MANY] {
    let node = format!("limits: {{ redis: {{ url: '{}' }} }}\n", redis.url());
    let nodes = std::array::from_fn(|_| Gateway::start_with(tenants, &node));
    assert!(nodes.iter().all(|gateway: &Gateway| comes_true(|| gateway.hears())));
    nodes
}

impl Gateway {
    fn hears(&self) -> bool {
        self.metric("seiketsu_cache_purges_heard") > 0.0
    }

    fn purges(&self, by: &str) -> f64 {
        self.metric(&format!("seiketsu_cache_purges_total{{by=\"{by}\"}}"))
    }

    /// Stores it, if it is not stored already.
    fn holds(&self, target: &str) -> bool {
        self.fetch(target, "");
        self.fetch(target, "").is_hit()
    }
}

#[test]
fn a_purge_reaches_all_nodes_that_share_a_redis() {
    let redis = Redis::start();
    let origin = counting(TAGGED);
    let [one, other] = sharing(&redis, &origin);
    for (round, what) in [
        json!({ "tenant": "acme", "tag": "sale" }),
        json!({ "tenant": "acme", "url": "http://acme.test/v1/a" }),
        json!({ "tenant": "acme", "prefix": "http://acme.test/v1" }),
        json!({ "tenant": "acme", "all": true }),
    ]
    .iter()
    .enumerate()
    {
        assert!(one.holds("/v1/a") && other.holds("/v1/a"));
        one.purge(what);
        assert!(!one.fetch("/v1/a", "").is_hit());
        assert!(comes_true(|| other.purges("other_node") > round as f64), "{what}");
        assert!(!other.fetch("/v1/a", "").is_hit(), "{what}");
    }
    // What an unsafe request has changed is told as well.
    assert!(one.holds("/v1/b") && other.holds("/v1/b"));
    one.ask("POST", "/v1/b", "", "x");
    assert!(comes_true(|| other.purges("other_node") > 4.0));
    assert!(!other.fetch("/v1/b", "").is_hit());
    // Whoever has heard this has heard of its own purges too, which it made before.
    other.purge(&json!({ "tenant": "acme", "tag": "x" }));
    assert!(comes_true(|| one.purges("other_node") > 0.0));
    let counts = |node: &Gateway| ["this_node", "unsafe_request", "other_node"].map(|by| node.purges(by) as u32);
    assert_eq!((counts(&one), counts(&other)), ([4, 1, 1], [1, 0, 5]));
}

#[test]
fn a_node_that_was_cut_off_purges_what_it_may_have_missed() {
    let mut redis = Redis::start();
    let origin = counting(TAGGED);
    let [gateway] = sharing(&redis, &origin);
    let hears = || gateway.hears();
    assert_eq!(gateway.purges("missed") as u32, 0, "nothing was stored yet");
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
    let unknown = gateway.post_operations("/cache/purge", &json!({ "tenant": "nobody", "all": true }));
    assert_eq!(unknown.status, 404, "{unknown:?}");
    // It comes back without its data: what was purged meanwhile is not known.
    redis.start_again();
    assert!(comes_true(hears));
    assert!(!gateway.fetch("/v1/a", "").is_hit());
    assert!(gateway.purges("missed") > 0.0);
    assert!(gateway.logs("everything is purged"));
}

#[test]
fn what_redis_refuses_is_told_once_it_does_not() {
    let redis = Redis::start();
    let origin = counting(TAGGED);
    let [here, there] = sharing(&redis, &origin);
    assert!(there.holds("/v1/a"));
    command(&redis, "CONFIG SET maxmemory 1");
    let refused = here.post_operations("/cache/purge", &json!({ "tenant": "acme", "url": "http://acme.test/v1/a" }));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("Redis did not take it"), "{refused:?}");
    assert!(there.fetch("/v1/a", "").is_hit());
    command(&redis, "CONFIG SET maxmemory 0");
    assert!(comes_true(|| !there.fetch("/v1/a", "").is_hit()));
    assert_eq!(there.purges("other_node") as u32, 1);
}

#[test]
fn what_clients_change_while_redis_is_away_is_told_once_it_is_back() {
    // More than one tenant may have waiting.
    const CHANGED: usize = 1200;
    let mut redis = Redis::start();
    let origin = counting(TAGGED);
    let acme = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    let other = format!("- id: other\n  hosts: [other.test]\n  routes:\n  {}", open("cache: {}"));
    let [here, there] = sharing_with(&redis, &(acme + &other));
    let has = |host: &str, target: &str| there.get(host, target, "").is_hit();
    for host in ["acme.test", "other.test"] {
        for target in ["/v1/changed", "/v1/kept"] {
            assert!(!has(host, target) && has(host, target), "{host} {target}");
        }
    }
    command(&redis, "SAVE");
    redis.kill();
    let mut client = here.connect();
    let mut change = |host: &str, target: &str| {
        let post = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.request(&post).status, 200);
    };
    change("acme.test", "/v1/changed");
    for number in 0..CHANGED {
        change("acme.test", &format!("/v1/{number}"));
    }
    change("other.test", "/v1/changed");
    assert!(here.logs("they will purge all of this tenant"));
    assert!(has("other.test", "/v1/changed"), "it cannot know yet");
    redis.start_again();
    for (host, target) in [("acme.test", "/v1/changed"), ("acme.test", "/v1/kept"), ("other.test", "/v1/changed")] {
        assert!(comes_true(|| !has(host, target)), "{host} {target}");
    }
    assert!(has("other.test", "/v1/kept"));
    assert_eq!([&here, &there].map(|node| node.purges("missed") as u32), [0, 0]);
}

/// One command, without any of what makes clients comfortable.
fn command(redis: &Redis, command: &str) {
    let address = redis.url().trim_start_matches("redis://").to_owned();
    let mut stream = BufReader::new(TcpStream::connect(address).unwrap());
    stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
}

/// Two nodes, of which the second hears nothing for now, with something stored that is purged meanwhile.
struct Apart {
    redis: Redis,
    here: Gateway,
    away: Gateway,
    origin: Stub,
}

impl Apart {
    /// Redis saves its data before the second node goes: with what that has read last, or without.
    fn start(saved_with_the_last: bool) -> Self {
        let redis = Redis::start();
        let origin = counting(TAGGED);
        let [here, away] = sharing(&redis, &origin);
        let purge_tag = |tag: &str| here.purge(&json!({ "tenant": "acme", "tag": tag }));
        purge_tag("first");
        if !saved_with_the_last {
            command(&redis, "SAVE");
        }
        purge_tag("last");
        assert!(comes_true(|| away.purges("other_node") > 1.0));
        assert!(here.holds("/v1/a") && away.holds("/v1/a"));
        away.process.signal("-STOP");
        let state = format!("/proc/{}/stat", away.process.0.id());
        assert!(comes_true(|| std::fs::read_to_string(&state).unwrap().contains(") T ")));
        // It may have asked for what comes next before it stopped: this, and nothing behind it.
        purge_tag("next");
        if saved_with_the_last {
            command(&redis, "SAVE");
        }
        here.purge(&json!({ "tenant": "acme", "url": "http://acme.test/v1/a" }));
        Self { redis, here, away, origin }
    }

    fn come_back(&self) {
        self.away.process.signal("-CONT");
        assert!(comes_true(|| !self.away.fetch("/v1/a", "").is_hit()));
    }
}

#[test]
fn a_redis_that_comes_back_without_what_a_node_has_read_last_loses_no_purge() {
    let Apart { mut redis, here, away, origin } = Apart::start(false);
    drop(here);
    redis.kill();
    redis.start_again();
    // The stream goes on, beyond where the node was.
    command(&redis, "XADD seiketsu:cache:purges * beginning x");
    let [here] = sharing(&redis, &origin);
    Apart { redis, here, away, origin }.come_back();
}

#[test]
fn a_node_whose_purge_was_lost_by_redis_tells_those_that_may_not_have_heard_it() {
    // With something to tell, it may write before it reads.
    for has_more in [false, true] {
        let mut nodes = Apart::start(true);
        nodes.redis.kill();
        assert!(comes_true(|| !nodes.here.hears()));
        if has_more {
            nodes.here.ask("POST", "/v1/b", "", "x");
        }
        nodes.redis.start_again();
        assert!(comes_true(|| nodes.here.hears()));
        nodes.come_back();
    }
}

#[test]
fn a_node_looks_for_its_last_purge_when_it_writes_the_next_and_tells_all_if_it_was_lost() {
    let redis = Redis::start();
    let origin = counting(TAGGED);
    let [here, there] = sharing(&redis, &origin);
    let purge = || here.purge(&json!({ "tenant": "acme", "tag": "x" }));
    let another_purges = || {
        let message = json!({ "tenant": "acme", "what": { "tag": "x" } });
        command(&redis, &format!("XADD seiketsu:cache:purges * purge '{message}'"));
    };
    let heard = |here_has: u32, there_has: u32| {
        comes_true(|| here.purges("other_node") as u32 == here_has && there.purges("other_node") as u32 == there_has)
    };
    let missed = || [&here, &there].map(|node| node.purges("missed") as u32);
    assert!(here.holds("/v1/a") && there.holds("/v1/a"));
    // Others have written so many that its own was trimmed: it is not lost.
    purge();
    another_purges();
    assert!(heard(1, 2));
    command(&redis, "XTRIM seiketsu:cache:purges MAXLEN 1");
    purge();
    another_purges();
    assert!(heard(2, 4));
    assert_eq!(missed(), [0, 0]);
    assert!(here.fetch("/v1/a", "").is_hit() && there.fetch("/v1/a", "").is_hit());
    // The last but one, which is its own: what all have read last is still there.
    command(
        &redis,
        "EVAL \"return redis.call('XDEL', KEYS[1], redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 2)[2][1])\" 1 seiketsu:cache:purges",
    );
    purge();
    for node in [&here, &there] {
        assert!(comes_true(|| !node.fetch("/v1/a", "").is_hit()));
    }
    // Once is enough.
    purge();
    another_purges();
    assert!(heard(3, 7));
    assert_eq!(missed(), [1, 1]);
}

#[test]
fn a_node_that_follows_too_slowly_for_what_is_trimmed_loses_no_purge() {
    let nodes = Apart::start(true);
    nodes.here.purge(&json!({ "tenant": "acme", "tag": "x" }));
    command(&nodes.redis, "XTRIM seiketsu:cache:purges MAXLEN 1");
    nodes.come_back();
    assert_eq!(nodes.away.purges("missed") as u32, 1);
}

#[test]
fn a_stream_that_goes_while_a_node_follows_it_loses_no_purge() {
    let redis = Redis::start();
    let origin = counting(TAGGED);
    let [gateway] = sharing(&redis, &origin);
    for (round, goes) in (1..).zip(["DEL seiketsu:cache:purges", "XTRIM seiketsu:cache:purges MAXLEN 0", "FLUSHALL"]) {
        assert!(gateway.holds("/v1/a"));
        command(&redis, goes);
        assert!(comes_true(|| !gateway.fetch("/v1/a", "").is_hit()), "{goes}");
        gateway.purge(&json!({ "tenant": "acme", "tag": "x" }));
        assert_eq!(gateway.purges("missed") as u32, round, "{goes}");
    }
    assert!(gateway.hears());
}

#[test]
fn a_redis_that_comes_back_as_it_was_costs_nothing() {
    let mut redis = Redis::start();
    let origin = counting(TAGGED);
    let [gateway] = sharing(&redis, &origin);
    // With and without a purge in it.
    for _ in 0..2 {
        assert!(gateway.holds("/v1/a"));
        command(&redis, "SAVE");
        redis.kill();
        assert!(comes_true(|| !gateway.hears()));
        redis.start_again();
        assert!(comes_true(|| gateway.hears()));
        assert!(gateway.fetch("/v1/a", "").is_hit());
        gateway.purge(&json!({ "tenant": "acme", "tag": "x" }));
    }
}

#[test]
fn however_much_clients_change_little_else_is_asked_for_again() {
    const AT_ONCE: usize = 3;
    let origin = Stub::start(|seen| {
        if !seen.head.starts_with("POST ") {
            return super::wire("200 OK\nCache-Control: max-age=3600\n\nbody");
        }
        let first: usize = seen.target().rsplit('/').next().unwrap().parse().unwrap();
        super::wire(&format!("200 OK\nLocation: {}\nContent-Location: {}\n", first + 1, first + 2))
    });
    let gateway = caching(&origin, "");
    let kept: Vec<String> = (0..20).map(|number| format!("/v1/kept/{number}")).collect();
    for target in kept.iter().map(String::as_str).chain(["/v1/changed/0"]) {
        assert!(gateway.holds(target));
    }
    let mut client = gateway.connect();
    for first in (0..20_000).step_by(AT_ONCE) {
        client.request(&format!("POST /v1/changed/{first} HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 0\r\n\r\n"));
    }
    assert!(gateway.metric("seiketsu_cache_purges_folded_total") > 0.0);
    assert!(!gateway.fetch("/v1/changed/0", "").is_hit());
    let hits = kept.iter().filter(|target| gateway.fetch(target, "").is_hit()).count();
    assert!(hits > 10, "{hits} of 20");
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
            // Nothing, and the connection is closed.
            "/v1/closed" => return Vec::new(),
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
        "http://acme.test/v1/closed",
        "http://nobody.test/v1/a",
        "http://acme.test/none",
    ];
    let urls: Vec<&str> = urls.iter().map(String::as_str).chain(more).collect();
    let begun = gateway.post_operations("/cache/warm", &json!({ "urls": urls, "headers": { "accept": "text/x" } }));
    assert_eq!((begun.status, &begun.json()["total"]), (202, &json!(25)));
    let list = || gateway.operations("/cache/warm").json()["lists"][0].clone();
    assert!(comes_true(|| list()["done"] == true), "{}", list());
    let mut warmed = list();
    let mut missing: Vec<Value> = serde_json::from_value(warmed["missing"].take()).unwrap();
    missing.sort_by_key(|missing| missing["url"].to_string());
    warmed.as_object_mut().unwrap().remove("missing");
    assert_eq!(warmed, json!({ "id": 1, "total": 25, "stored": 20, "not_stored": 1, "failed": 4, "done": true }));
    let expected = [
        json!({ "url": "http://acme.test/none", "reason": "no-route" }),
        json!({ "url": "http://acme.test/v1/closed", "reason": "reset" }),
        json!({ "url": "http://acme.test/v1/error", "status": 503, "reason": "status" }),
        json!({ "url": "http://acme.test/v1/private", "status": 200, "reason": "private" }),
        json!({ "url": "http://nobody.test/v1/a", "reason": "no-route" }),
    ];
    assert_eq!(missing, expected);
    let asked = origin.asked();
    for number in 0..20 {
        let hit = gateway.fetch(&format!("/v1/{number}?q"), "Accept: text/x\r\n");
        assert!(hit.is_hit() && hit.text() == "text/x", "{hit:?}");
    }
    assert_eq!(origin.asked(), asked);
    let holds = gateway.operations("/cache").json();
    assert_eq!((&holds["largest"][0]["tenant"], &holds["largest"][0]["keys"]), (&json!("acme"), &json!(20)));
    // It is nobody's request.
    assert!(gateway.metric("seiketsu_requests_total{tenant=\"acme\",route=\"open\",class=\"2xx\"}") < 21.0);
    for wrong in [json!({}), json!({ "urls": [] }), json!({ "urls": ["/x"] })] {
        assert_eq!(gateway.post_operations("/cache/warm", &wrong).status, 400);
    }
}

#[test]
fn lists_are_few_at_once_and_each_can_be_stopped() {
    const LISTS: usize = 4;
    // Of each list.
    const AT_ONCE: usize = 8;
    let answers = Arc::new(AtomicBool::new(false));
    let may_answer = answers.clone();
    let origin = Stub::start(move |_| {
        assert!(comes_true(|| may_answer.load(Ordering::SeqCst)));
        super::wire("200 OK\nCache-Control: max-age=3600\n\nbody")
    });
    let gateway = caching(&origin, "");
    let warm = |list: usize| {
        let urls: Vec<String> = (0..20).map(|number| format!("http://acme.test/v1/{list}/{number}")).collect();
        gateway.post_operations("/cache/warm", &json!({ "urls": urls }))
    };
    let stop = |query: &str| {
        let request = format!("DELETE /cache/warm{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Client::connect(gateway.operations).request(&request)
    };
    assert!((1..=LISTS).all(|list| warm(list).status == 202));
    assert!(comes_true(|| origin.asked() == LISTS * AT_ONCE));
    let refused = warm(LISTS + 1);
    assert_eq!((refused.status, refused.problem().as_str()), (429, "quota-exceeded"));
    for (query, status) in [("?id=99", 404), ("?id=x", 400), ("?it=1", 400), ("", 400)] {
        assert_eq!(stop(query).status, status, "{query}");
    }
    let stopped = stop("?id=1");
    assert_eq!(
        (stopped.status, &stopped.json()["stopped"], &stopped.json()["done"]),
        (200, &json!(true), &json!(false))
    );
    // What is under way ends.
    answers.store(true, Ordering::SeqCst);
    let list = |id: usize| gateway.operations("/cache/warm").json()["lists"][LISTS - id].clone();
    assert!(comes_true(|| (1..=LISTS).all(|id| list(id)["done"] == true)), "{}", list(1));
    let ended =
        json!({ "id": 1, "total": 20, "stored": 8, "not_stored": 0, "failed": 0, "done": true, "stopped": true });
    assert_eq!(list(1), ended);
    assert_eq!(list(2)["stored"], 20);
    assert_eq!(warm(LISTS + 1).status, 202);
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
    for name in ["cookie", "Authorization", "proxy-authorization", "Host", "range"] {
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
