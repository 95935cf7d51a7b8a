//! The plainest requests are answered without a session of Pingora's. Nobody can tell that from the answers, but for
//! `Date`, which Pingora replaces, and for short compressed bodies, whose length is told; nor from counters or logs.

use std::io::{BufRead, BufReader, Read, Write};

use super::{at, caching, counting};
use crate::{
    fixtures::{Stub, comes_true, demo, ok, open, tenants},
    support::{Gateway, Response, http2::Http2, receive, tls::connect_tls},
};

/// What keeps a request off the fast path and changes nothing else.
const OTHER: &str = "Connection: keep-alive, te\r\n";

/// All that two answers to the same request have in common.
fn comparable(answer: &Response) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let of_this_one = ["x-request-id", "date", "age", "ratelimit"];
    let is_encoded = answer.header("content-encoding").is_some();
    let fields = answer.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let mut fields: Vec<(String, String)> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.split("; ttl=").next().unwrap_or_default().to_owned()))
        .filter(|(name, _)| !of_this_one.contains(&name.as_str()))
        .filter(|(name, _)| !is_encoded || name != "content-length" && name != "transfer-encoding")
        .collect();
    fields.sort();
    let mut body = String::from_utf8_lossy(&answer.body).into_owned();
    // Between parts stands a number drawn by lot.
    for (_, value) in &mut fields {
        if let Some((kind, boundary)) = value.split_once("; boundary=") {
            body = body.replace(boundary, "");
            *value = kind.to_owned();
        }
    }
    // A problem names the request that it is about.
    let body = body.split("\"instance\"").next().unwrap_or_default().as_bytes().to_vec();
    (answer.status, fields, body)
}

fn with_everything(origin: &Stub) -> Gateway {
    let policies = "cache: {}, cors: { origins: ['https://a.test'] }, compression: {}, \
        headers: { response: { set: { x-set: '1' } } }, \
        limits: { rate: { requests: 10000, per: 1h, burst: 10000 } }";
    let small = "- { id: closed, match: { path: '/closed/{*rest}' }, upstream: demo, \
        policies: { cache: {}, auth: { accept: [api_key] } } }\n\
        - { id: uncached, match: { path: '/uncached/{*rest}' }, upstream: demo }\n";
    Gateway::start(&tenants(&demo(&[origin.address], ""), "", &format!("{}{small}", open(policies))))
}

#[test]
fn answers_are_those_of_the_longer_way() {
    let text = "word ".repeat(400);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"1\"\r\nContent-Type: text/plain\r\nX-Own: 1\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let origin = Stub::start(move |_| answer.clone().into_bytes());
    let gateway = with_everything(&origin);
    gateway.fetch("/v1/a", "");
    let mut statuses = Vec::new();
    for (target, fields) in [
        ("/v1/a", ""),
        ("/v1/./a", ""),
        ("/v1/a", "Connection: keep-alive\r\n"),
        ("/v1/a", "Origin: https://a.test\r\n"),
        ("/v1/a", "Accept-Encoding: gzip\r\n"),
        ("/v1/a", "Accept-Encoding: gzip\r\nIf-None-Match: \"1\"\r\n"),
        ("/v1/a", "Accept-Encoding: gzip\r\nRange: bytes=1-3\r\n"),
        ("/v1/a", "Range: bytes=1-3\r\n"),
        ("/v1/a", "Range: bytes=1-3,7-9\r\n"),
        ("/v1/a", "Range: bytes=90000-\r\n"),
        ("/v1/a", "If-None-Match: \"1\"\r\n"),
        ("/v1/a", "If-None-Match: \"2\"\r\n"),
        ("/v1/a", "If-Modified-Since: Fri, 02 Jan 2026 00:00:00 GMT\r\n"),
        ("/v1/a", "Expect: 100-continue\r\n"),
        ("/v1/a", "Expect: wonders\r\n"),
        ("/v1/a", "Content-Length: 0\r\n"),
        ("/v1/a", "X-Forwarded-For: 1.2.3.4\r\nX_Real_Ip: 1.2.3.4\r\nX-Api-Version: 1\r\n"),
        ("/v1/none", "Cache-Control: only-if-cached\r\n"),
        ("/v1/%zz", ""),
        ("/v1/../..", ""),
        ("/nowhere", ""),
        ("/closed/a", ""),
        ("/closed/a", "X-Api-Key: wrong\r\n"),
        ("/uncached/a", ""),
    ] {
        let other = gateway.fetch(target, &format!("{OTHER}{}", fields.replace("Connection: keep-alive\r\n", "")));
        let plain = gateway.fetch(target, fields);
        assert_eq!(comparable(&plain), comparable(&other), "{target} {fields}");
        statuses.push(plain.status);
    }
    for status in [200, 206, 304, 400, 401, 404, 416, 417, 504] {
        assert!(statuses.contains(&status), "{status} in {statuses:?}");
    }
}

/// Few bytes when compressed, and much work.
fn long_text() -> String {
    let words = ["a word, ", "another word, ", "a third word, ", "and one more, "];
    let mut seed = 1_u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        words[(seed >> 30) as usize]
    };
    (0..400_000).map(|_| next()).collect()
}

fn unpacked(answer: &[u8]) -> String {
    let mut text = String::new();
    brotli::Decompressor::new(answer, 4096).read_to_string(&mut text).unwrap();
    text
}

fn with_long_text(text: &str) -> Gateway {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let origin = Stub::start(move |seen| match seen.target() {
        "/v1/long" => answer.clone().into_bytes(),
        _ => ok("Cache-Control: max-age=3600\r\n", b"short"),
    });
    let policies = "cache: {}, compression: { encodings: [br] }";
    let tenants = tenants(&demo(&[origin.address], ""), "", &open(policies));
    let gateway = Gateway::start_with(&tenants, "threads: 1\n");
    for target in ["/v1/long", "/v1/short"] {
        gateway.fetch(target, "");
        assert!(gateway.fetch(target, "").is_hit(), "{target}");
    }
    gateway
}

#[test]
fn a_long_body_is_compressed_while_it_is_sent_and_others_have_their_turn() {
    let text = long_text();
    let gateway = with_long_text(&text);
    for other in ["", OTHER] {
        // Whether somebody else was answered while the long one was on its way. Where this thread is kept waiting, the
        // long one may have ended meanwhile all the same.
        let attempt = || {
            let mut long = gateway.connect();
            let request = format!("GET /v1/long HTTP/1.1\r\nHost: acme.test\r\nAccept-Encoding: br\r\n{other}\r\n");
            long.send(request.as_bytes());
            long.stream.fill_buf().unwrap();
            assert_eq!(gateway.fetch("/v1/short", "").text(), "short");
            let mut by_now = Vec::new();
            long.stream.get_ref().set_nonblocking(true).unwrap();
            let _ = long.stream.read_to_end(&mut by_now);
            long.stream.get_ref().set_nonblocking(false).unwrap();
            let is_between = !by_now.ends_with(b"\r\n0\r\n\r\n");
            let answer = receive(&mut by_now.as_slice().chain(&mut long.stream)).unwrap();
            assert!(answer.is_hit() && answer.header("content-encoding") == Some("br"), "{}", answer.head);
            assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (Some("chunked"), None));
            assert!(unpacked(&answer.body) == text);
            // The connection goes on behind it.
            assert_eq!(long.request("GET /v1/short HTTP/1.1\r\nHost: acme.test\r\n\r\n").text(), "short");
            is_between
        };
        assert!(comes_true(attempt), "all of it is compressed before anybody else is answered");
    }
}

#[tokio::test]
async fn a_long_body_is_compressed_over_http2_too() {
    let text = long_text();
    let gateway = with_long_text(&text);
    let client = Http2::plain(&gateway).await;
    let request = client.request("GET", "acme.test", "/v1/long").header("accept-encoding", "br");
    let answer = client.send(request, b"").await.unwrap();
    assert!(answer.header("content-encoding") == Some("br") && unpacked(&answer.body) == text);
}

#[test]
fn each_request_is_counted_logged_and_taken_from_limits_once() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let policies = "cache: {}, limits: { rate: { requests: 1, per: 1h, burst: 6 } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(policies)));
    // A miss, a hit, a miss that is not stored, a hit, a part, something that is not there.
    for (target, fields, status) in [
        ("/v1/a", "", 200),
        ("/v1/a", "", 200),
        ("/v1/b", "Cache-Control: no-store\r\n", 200),
        ("/v1/a", "If-None-Match: *\r\n", 304),
        ("/v1/a", "Range: bytes=0-0\r\n", 206),
        ("/v1/c", "Cache-Control: only-if-cached\r\n", 504),
    ] {
        assert_eq!(gateway.fetch(target, fields).status, status, "{target} {fields}");
    }
    let refused = gateway.fetch("/v1/a", "");
    assert_eq!((refused.status, origin.asked()), (429, 2));
    let requests = |class| {
        let series = format!("seiketsu_requests_total{{tenant=\"acme\",route=\"open\",class=\"{class}\"}}");
        gateway.metric(&series) as u64
    };
    assert!(comes_true(|| [requests("2xx"), requests("3xx"), requests("4xx"), requests("5xx")] == [4, 1, 1, 1]));
    assert!(comes_true(|| gateway.access_log().lines().count() == 7), "{}", gateway.access_log());
    let log = gateway.access_log();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((line["tenant"].as_str(), line["method"].as_str()), (Some("acme"), Some("GET")), "{line}");
    }
    assert_eq!(gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as u64, 0);
}

#[test]
fn a_pipeline_over_both_ways_is_answered_in_order() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = with_everything(&origin);
    assert_eq!(gateway.fetch("/v1/a", "").text(), "0");
    let plain = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    let post = "POST /uncached/a HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 31\r\n\r\nGET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n";
    let pipeline = [
        plain("/v1/a"),
        plain("/v1/b"),
        post.to_owned(),
        plain("/v1/a"),
        format!("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n{OTHER}\r\n"),
        plain("/nowhere"),
        plain("/v1/b"),
        "GET /v1/a HTTP/1.1\r\nHost: acme.test\r\nConnection: close\r\n\r\n".to_owned(),
    ];
    let mut client = gateway.connect();
    client.send(pipeline.concat().as_bytes());
    let mut bodies = Vec::new();
    for _ in &pipeline {
        let answer = client.receive().expect("an answer");
        bodies.push(if answer.status == 200 { answer.text() } else { answer.status.to_string() });
    }
    assert_eq!(bodies, ["0", "1", "2", "0", "0", "404", "1", "0"]);
    assert!(client.is_closed());
}

#[test]
fn who_gets_the_last_request_of_a_connection_is_told_so() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let tenants = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    let gateway = Gateway::start_with(&tenants, "protection: { keepalive_requests: 3 }\n");
    let mut client = gateway.connect();
    for expected in ["keep-alive", "keep-alive", "close"] {
        let answer = client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        assert_eq!((answer.text().as_str(), answer.header("connection")), ("0", Some(expected)));
    }
    assert!(client.is_closed());
}

#[test]
fn the_date_of_what_is_stored_stays_and_what_is_none_is_replaced() {
    let made = at(-30);
    for (sent, stays) in [(format!("Date: {made}\r\n"), true), ("Date: x\r\n".to_owned(), false)] {
        let origin = counting(&format!("Cache-Control: max-age=60\r\n{sent}"));
        let gateway = caching(&origin, "");
        gateway.fetch("/v1/a", "");
        let hit = gateway.fetch("/v1/a", "");
        assert!(hit.is_hit(), "{hit:?}");
        let dates = hit.all("date");
        assert_eq!((dates.len(), dates[0] == made), (1, stays), "{hit:?}");
        assert!(httpdate::parse_http_date(dates[0]).is_ok(), "{hit:?}");
    }
}

#[test]
fn large_bodies_and_small_ones_follow_each_other_on_one_connection() {
    let large = "0123456789abcdef".repeat(20_000);
    let (whole, small) = (large.clone(), "Cache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok");
    let origin = Stub::start(move |seen| {
        let body = if seen.target().ends_with("large") {
            format!("Cache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n{whole}", whole.len())
        } else {
            small.to_owned()
        };
        format!("HTTP/1.1 200 OK\r\n{body}").into_bytes()
    });
    let gateway = caching(&origin, "");
    let mut client = gateway.connect();
    // From the second hit on, a large one comes from its file.
    for _ in 0..5 {
        for (target, fields, expected) in [
            ("large", "", large.as_str()),
            ("small", "", "ok"),
            ("large", "Range: bytes=16-40000\r\n", &large[16..=40_000]),
            ("small", OTHER, "ok"),
            ("large", OTHER, large.as_str()),
        ] {
            let answer = client.request(&format!("GET /v1/{target} HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n"));
            assert!(answer.text() == expected, "{target} {fields}");
        }
    }
    assert_eq!(origin.asked(), 2);
}

#[test]
fn what_takes_a_place_among_requests_at_the_same_time_gives_it_back() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let policies = "cache: {}, limits: { concurrency: { requests: 1 }, rate: { requests: 1, per: 1h, burst: 8 } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(policies)));
    let mut client = gateway.connect();
    let mut get = |fields: &str| client.request(&format!("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n"));
    for fields in ["", "", OTHER, "", "If-None-Match: *\r\n", "Range: bytes=0-0\r\n", OTHER, ""] {
        let answer = get(fields);
        assert!(answer.status < 400, "{answer:?}");
    }
    for fields in ["", OTHER, ""] {
        assert_eq!(get(fields).status, 429);
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn over_tls_it_is_the_same() {
    let origin = counting("Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    let mut client = connect_tls(gateway.https);
    for (fields, is_hit) in [("", false), ("", true), (OTHER, true), ("", true)] {
        client.write_all(format!("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n").as_bytes()).unwrap();
        let answer = receive(&mut BufReader::with_capacity(1, &mut client)).unwrap();
        assert!(answer.is_hit() == is_hit && answer.text() == "0", "{answer:?}");
        assert!(answer.header("strict-transport-security").is_some(), "{answer:?}");
    }
}
