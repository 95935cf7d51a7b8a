//! What is stored is served, with the headers that belong to it.

use std::{
    io::{BufReader, Write},
    net::TcpListener,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::json;

use super::{at, caching, caching_from, counting, in_turn};
use crate::{
    fixtures::{Stub, comes_true, demo, open, read_request, tenants},
    support::{Gateway, http2::Http2},
};

#[test]
fn what_is_fresh_is_served_from_the_cache() {
    let origin = counting("Cache-Control: max-age=60\r\nX-Own: 1\r\n");
    let gateway = caching(&origin, "");
    let first = gateway.fetch("/v1/a", "");
    assert_eq!((first.status, first.text().as_str(), first.header("age")), (200, "0", None));
    assert_eq!(first.cache_status(), "seiketsu; fwd=uri-miss; stored");
    let second = gateway.fetch("/v1/a", "");
    assert_eq!((second.status, second.text().as_str(), second.header("x-own")), (200, "0", Some("1")));
    assert!(second.is_hit() && second.age().unwrap() <= 5, "{second:?}");
    assert!(second.cache_status().starts_with("seiketsu; hit; ttl="));
    assert_eq!(second.header("content-length"), Some("1"));
    assert!(second.header("date").is_some());
    assert_eq!(origin.asked(), 1);
    // Another path or query is another response.
    for target in ["/v1/b", "/v1/a?", "/v1/a?b", "/v1/A"] {
        assert!(!gateway.fetch(target, "").is_hit(), "{target}");
        assert!(gateway.fetch(target, "").is_hit(), "{target}");
    }
}

#[test]
fn connections_stay_open_over_hits_and_misses() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    let mut client = gateway.connect();
    for number in 0..3 {
        for _ in 0..3 {
            let answer = client.request(&format!("GET /v1/{number} HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
            assert_eq!(answer.text(), number.to_string());
        }
    }
    assert_eq!(origin.asked(), 3);
}

#[test]
fn without_the_setting_nothing_is_cached() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    for policies in ["", "cache: { enabled: false }"] {
        let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(policies)));
        for _ in 0..2 {
            let answer = gateway.fetch("/v1/a", "");
            assert_eq!(answer.header("cache-status"), None);
        }
    }
    assert_eq!(origin.asked(), 4);
}

#[test]
fn head_is_answered_from_what_get_has_stored_and_the_other_way_round() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let head = gateway.ask("HEAD", "/v1/a", "", "");
    assert!(head.is_hit() && head.header("content-length") == Some("1"), "{head:?}");
    // The body is fetched for whoever wants it later.
    let mut client = gateway.connect();
    client.send(b"HEAD /v1/b HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    let head = client.receive_head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1")));
    let get = client.request("GET /v1/b HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(get.is_hit() && get.text() == "1", "{get:?}");
    assert_eq!(origin.asked(), 2);
}

#[test]
fn a_stale_response_is_validated_and_served_on() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=60\nAge: 100\nETag: \"1\"\nX-A: old\n\nbody",
        "304 Not Modified\nCache-Control: max-age=60\nX-A: new\nX-B: b",
    ]);
    let gateway = caching(&origin, "");
    let mut client = gateway.connect();
    let mut fetch = || client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!(fetch().text(), "body");
    let validated = fetch();
    assert_eq!((validated.status, validated.text().as_str()), (200, "body"));
    assert_eq!(validated.cache_status(), "seiketsu; fwd=stale; fwd-status=304; stored");
    assert_eq!((validated.header("x-a"), validated.header("x-b")), (Some("new"), Some("b")));
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""));
    let hit = fetch();
    assert!(hit.is_hit() && hit.text() == "body" && hit.header("x-a") == Some("new"), "{hit:?}");
    assert_eq!(origin.asked(), 2);
    // And the connection was kept.
    assert!(origin.seen().iter().all(|seen| seen.connection == 0));
}

#[test]
fn policies_apply_to_hits_and_are_not_stored() {
    let origin = counting("Cache-Control: public, max-age=60\r\nX-Secret: s\r\n");
    let policies = "cache: {}, cors: { origins: ['https://a.test', 'https://b.test'] }, \
        headers: { response: { remove: [x-secret], set: { x-set: '1' } } }, \
        limits: { rate: { requests: 1, per: 1h, burst: 3 } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(policies)));
    let mut ids = Vec::new();
    for (from, left) in [("https://a.test", "r=2"), ("https://b.test", "r=1"), ("https://c.test", "r=0")] {
        let answer = gateway.fetch("/v1/a", &format!("Origin: {from}\r\n"));
        let expected = (from != "https://c.test").then_some(from);
        assert_eq!(answer.header("access-control-allow-origin"), expected);
        assert_eq!((answer.header("x-secret"), answer.header("x-set")), (None, Some("1")));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("ratelimit").unwrap().contains(left), "{answer:?}");
        ids.push(answer.header("x-request-id").unwrap().to_owned());
        assert_eq!(answer.text(), "0");
    }
    ids.dedup();
    assert_eq!((ids.len(), origin.asked()), (3, 1));
    // Hits count against limits, which are looked at first.
    assert_eq!(gateway.fetch("/v1/a", "").status, 429);
}

#[test]
fn transforms_and_compression_apply_to_hits() {
    let body = format!("{{\"a\": \"{}\"}}", "x".repeat(2000));
    let answer = format!("200 OK\nCache-Control: max-age=60\nContent-Type: application/json\n\n{body}");
    let origin = in_turn(&[&answer]);
    let policies = "cache: {}, compression: {}, transform: { response_body: '.a' }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(policies)));
    for hit in [false, true] {
        let plain = gateway.fetch("/v1/a", "");
        assert_eq!(plain.text().trim(), format!("\"{}\"", "x".repeat(2000)));
        assert_eq!(plain.is_hit(), hit);
        let packed = gateway.fetch("/v1/a", "Accept-Encoding: gzip\r\n");
        assert!(packed.is_hit() && packed.header("content-encoding") == Some("gzip"), "{:?}", packed.head);
        assert!(packed.body.len() < 500);
        assert_eq!(gateway.fetch("/v1/a", "Range: bytes=0-3\r\n").status, 200);
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn a_response_without_a_date_gets_one() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let date = gateway.fetch("/v1/a", "").header("date").unwrap().to_owned();
    assert!(httpdate::parse_http_date(&date).is_ok());
    let dated = counting(&format!("Cache-Control: max-age=600\r\nDate: {}\r\n", at(-100)));
    let gateway = caching(&dated, "");
    gateway.fetch("/v1/a", "");
    let hit = gateway.fetch("/v1/a", "");
    assert!(hit.is_hit() && (100..110).contains(&hit.age().unwrap()), "{hit:?}");
}

#[tokio::test]
async fn over_http2_it_is_the_same() {
    let origin = in_turn(&["200 OK\nCache-Control: max-age=3600\nETag: \"1\"\n\n0123456789"]);
    let gateway = caching(&origin, "");
    for client in [Http2::plain(&gateway).await, Http2::tls(&gateway, "acme.test").await] {
        let ask = async |method: &str, target: &str, name: &str, value: &str| {
            client.send(client.request(method, "acme.test", target).header(name, value), b"").await.unwrap()
        };
        for target in ["/v1/head", "/v1/not-modified", "/v1/part", "/v1/whole"] {
            // The first has to be fetched, the second is stored.
            for _ in 0..2 {
                match target {
                    "/v1/head" => {
                        let head = ask("HEAD", target, "x-a", "1").await;
                        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
                    }
                    "/v1/not-modified" => {
                        let answer = ask("GET", target, "if-none-match", "\"1\"").await;
                        assert_eq!((answer.status, answer.body.len()), (304, 0));
                    }
                    "/v1/part" => {
                        let part = ask("GET", target, "range", "bytes=2-3").await;
                        assert_eq!(
                            (part.status, &*part.body, part.header("content-length")),
                            (206, &b"23"[..], Some("2"))
                        );
                    }
                    _ => {
                        let whole = ask("GET", target, "x-a", "1").await;
                        assert_eq!((whole.status, &*whole.body), (200, &b"0123456789"[..]));
                        assert!(whole.header("transfer-encoding").is_none());
                    }
                }
            }
        }
    }
    // For each scheme what it is asked for.
    assert_eq!(origin.asked(), 8);
}

#[tokio::test]
async fn a_large_body_that_the_kernel_sends_from_a_file_is_the_same_for_everybody() {
    // No two pieces of it are equal.
    let body: String = (0..120_000).map(|number| format!("{number:07} ")).collect();
    let origin = in_turn(&[&format!("200 OK\nCache-Control: max-age=3600\n\n{body}")]);
    let gateway = caching(&origin, "max_object: 2MiB");
    let files = || gateway.metric("seiketsu_cache_file_bytes");
    let get = "GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n";
    let mut client = gateway.connect();
    for asked_before in 0..4 {
        assert!(client.request(get).text() == body, "{asked_before}");
        // Only what is asked for again is worth it.
        assert_eq!(files() > 0.0, asked_before >= 2, "{asked_before}");
    }
    // Many at once, of clients that take all of it some time later.
    let mut clients: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get.repeat(3).as_bytes());
    }
    for client in &mut clients {
        for _ in 0..3 {
            let answer = client.receive().unwrap();
            assert!(answer.is_hit() && answer.text() == body, "{:?}", answer.head);
        }
    }
    let part = client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\nRange: bytes=400000-400015\r\n\r\n");
    assert_eq!((part.status, part.text().as_str()), (206, "0050000 0050001 "));
    let head = gateway.ask("HEAD", "/v1/a", "", "");
    assert_eq!((head.header("content-length"), head.body.len()), (Some(&*body.len().to_string()), 0));
    // What is sent next over the same connection is not what was sent from the file.
    assert_eq!(client.request("GET /v1/nowhere HTTP/1.1\r\nHost: other.test\r\n\r\n").status, 404);
    for client in [Http2::plain(&gateway).await, Http2::tls(&gateway, "acme.test").await] {
        for _ in 0..3 {
            let answer = client.send(client.request("GET", "acme.test", "/v1/a"), b"").await.unwrap();
            assert!(answer.body == body.as_bytes());
        }
    }
}

#[test]
fn bodies_in_files_leave_descriptors_for_clients() {
    let body = "x".repeat(33_000);
    let origin = in_turn(&[&format!("200 OK\nCache-Control: max-age=3600\n\n{body}")]);
    let mut gateway = caching(&origin, "");
    gateway.restart_with_open_files(256);
    let mut client = gateway.connect();
    for round in 0..3 {
        for number in 0..300 {
            let answer = client.request(&format!("GET /v1/{number} HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
            assert_eq!((answer.status, answer.is_hit()), (200, round > 0), "{number}");
        }
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.process.0.id())).unwrap();
    let names = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let files = names.filter(|name| name.to_string_lossy().contains("cached-body")).count();
    assert!((1..=32).contains(&files), "{files}");
    let clients: Vec<_> = (0..50).map(|_| gateway.connect()).collect();
    assert_eq!(gateway.fetch("/v1/new", "").status, 200);
    drop(clients);
}

#[test]
fn a_bound_on_the_size_of_files_takes_no_answer_and_no_node_away() {
    let body = "x".repeat(100_000);
    let origin = in_turn(&[&format!("200 OK\nCache-Control: max-age=3600\n\n{body}")]);
    let gateway = caching(&origin, "");
    let pid = gateway.process.0.id().to_string();
    let bounded = Command::new("prlimit").args(["--pid", &pid, "--fsize=40960:40960"]).status().unwrap();
    assert!(bounded.success());
    for _ in 0..5 {
        assert!(gateway.fetch("/v1/a", "").text() == body);
    }
    assert_eq!(gateway.metric("seiketsu_cache_file_bytes").to_string(), "0");
}

#[test]
fn http_1_0_gets_whole_bodies() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    for _ in 0..2 {
        let bytes = gateway.raw("GET /v1/a HTTP/1.0\r\nHost: acme.test\r\n\r\n");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.ends_with("\r\n\r\n0") && !text.contains("chunked"), "{text}");
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn empty_bodies_are_stored_as_well() {
    for answer in [
        "200 OK\nCache-Control: max-age=60",
        "204 No Content\nCache-Control: max-age=60",
        "404 Not Found\nCache-Control: max-age=60",
    ] {
        let origin = in_turn(&[answer]);
        let gateway = caching(&origin, "");
        let mut client = gateway.connect();
        for hit in [false, true, true] {
            let got = client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
            assert_eq!((got.status, got.is_hit(), got.body.len()), (answer[..3].parse().unwrap(), hit, 0), "{got:?}");
        }
    }
}

#[test]
fn what_is_large_is_stored_although_the_client_wants_less_of_it() {
    let large = "x".repeat(1 << 20);
    let origin = Stub::answering("Cache-Control: max-age=3600\r\nETag: \"1\"\r\n", large.clone());
    let gateway = caching(&origin, "");
    for (method, fields, status) in [
        ("HEAD", "", 200),
        ("GET", "If-None-Match: \"1\"\r\n", 304),
        ("GET", "Range: bytes=0-9\r\n", 206),
        ("GET", "Range: bytes=9999999-\r\n", 416),
    ] {
        let target = format!("/v1/{method}/{status}");
        assert_eq!(gateway.ask(method, &target, fields, "").status, status);
        // Whoever comes next does not wait for it.
        let whole = gateway.fetch(&target, "");
        assert_eq!((whole.status, whole.body.len()), (200, large.len()), "{method} {status}");
        assert!(comes_true(|| gateway.fetch(&target, "").is_hit()), "{method} {status}");
    }
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
}

#[test]
fn what_may_have_no_end_is_not_fetched_behind_a_client_that_wants_its_head() {
    let (listener, asked) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicUsize::new(0)));
    let (address, count) = (listener.local_addr().unwrap(), asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                if read_request(0, &mut BufReader::new(&stream)).is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    let head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nTransfer-Encoding: chunked\r\n\r\n";
                    let mut sent = stream.write_all(head);
                    while sent.is_ok() {
                        sent = stream.write_all(b"10\r\n0123456789abcdef\r\n");
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let gateway = caching_from(address, "");
    for number in 0..5 {
        assert_eq!(gateway.ask("HEAD", &format!("/v1/{number}"), "", "").status, 200);
    }
    assert!(comes_true(|| asked.load(Ordering::SeqCst) == 0));
    // Nor is it read to no end where the cache itself has asked for it.
    let answer = gateway.post_operations("/cache/warm", &json!({ "urls": ["http://acme.test/v1/a"] }));
    assert_eq!(answer.status, 202);
    let list = || gateway.operations("/cache/warm").json()["lists"][0].clone();
    assert!(comes_true(|| list()["done"] == true), "{}", list());
    assert_eq!(list()["stored"], 0, "{}", list());
    assert!(comes_true(|| asked.load(Ordering::SeqCst) == 0));
}
