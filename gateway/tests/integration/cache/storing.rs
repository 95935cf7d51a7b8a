//! RFC 9111 §3, §5.2.2, §7.3: what is stored, and what is not.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use super::{breaking_off, caching, caching_from, counting, in_turn, wire};
use crate::{
    fixtures::{Stub, demo, let_pass, open, tenants},
    support::{
        Gateway,
        http2::{Http2, receive, send_all},
    },
};

const FRESH: &str = "Cache-Control: max-age=3600\r\n";

/// Whether the answer to a request with these fields is served to the same request again.
fn is_stored(answer: &str, request: &str) -> bool {
    let origin = counting(answer);
    let gateway = caching(&origin, "");
    let bodies = gateway.bodies("/v1/a", request, 2);
    bodies[0] == bodies[1]
}

#[test]
fn what_the_origin_forbids_to_store_is_not_stored() {
    for forbidding in [
        "Cache-Control: no-store, max-age=3600\r\n",
        "Cache-Control: No-Store\r\nExpires: Thu, 18 Aug 2050 02:01:18 GMT\r\n",
        "Cache-Control: private, max-age=3600\r\n",
        "Cache-Control: PRIVATE, max-age=3600\r\n",
        "Cache-Control: private, s-maxage=3600\r\n",
        "Cache-Control: max-age=3600\r\nCache-Control: no-store\r\n",
        // What forbids it is not overlooked where it stands beside what cannot be read.
        "Cache-Control: no-store; max-age=3600\r\nETag: \"1\"\r\n",
        "Cache-Control: private; max-age=0\r\nExpires: Thu, 18 Aug 2050 02:01:18 GMT\r\n",
        "Cache-Control: max-age=3600, no-store =1\r\n",
        "Cache-Control: max-age=3600, \"no-store\"\r\n",
        "Cache-Control: max-age=3600, private =\"x\"\r\n",
        "Cache-Control: max-age=3600, must-revalidate; private\r\n",
        "Cache-Control: max-age=3600, foo=\"bar, no-store\r\n",
    ] {
        assert!(!is_stored(forbidding, ""), "{forbidding}");
    }
    // Nor is what was stored before served on.
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=3600\nAge: 3600\nETag: \"1\"\n\nold",
        "200 OK\nCache-Control: no-store\n\nnew",
        "200 OK\nCache-Control: no-store\n\nnewer",
    ]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.bodies("/v1/a", "", 3), ["old", "new", "newer"]);
    assert_eq!(origin.last().header("if-none-match"), None);
}

#[test]
fn no_cache_is_stored_and_validated_each_time() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: no-cache, max-age=3600\nETag: \"1\"\n\nbody",
        "304 Not Modified\nETag: \"1\"",
    ]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.bodies("/v1/a", "", 3), ["body"; 3]);
    assert_eq!(origin.asked(), 3);
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""));
}

#[test]
fn fields_that_no_cache_or_private_name_are_not_stored() {
    let origin = counting(
        "Cache-Control: max-age=3600, no-cache=\"x-a\", private=\"x-b, X-C\"\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\nX-D: 4\r\n",
    );
    let gateway = caching(&origin, "");
    let first = gateway.fetch("/v1/a", "");
    assert_eq!(
        ["x-a", "x-b", "x-c", "x-d"].map(|name| first.header(name)),
        [Some("1"), Some("2"), Some("3"), Some("4")]
    );
    let hit = gateway.fetch("/v1/a", "");
    assert!(hit.is_hit());
    assert_eq!(["x-a", "x-b", "x-c", "x-d"].map(|name| hit.header(name)), [None, None, None, Some("4")]);
}

#[test]
fn what_the_cache_goes_by_is_not_left_out_of_what_is_stored() {
    // The first answers would be served to each other's clients once a 304 came for one of them.
    for directive in ["no-cache", "private"] {
        let origin = Stub::start(move |seen| {
            let language = seen.header("accept-language").unwrap_or("none").to_owned();
            let (status, body) = match seen.header("if-none-match") {
                Some(_) => ("304 Not Modified", ""),
                None => ("200 OK", &*language),
            };
            let cache_control = format!("max-age=0, stale-if-error=60, {directive}=\"vary\"");
            wire(&format!(
                "{status}\nCache-Control: {cache_control}\nVary: Accept-Language\nETag: \"{language}\"\n\n{body}"
            ))
        });
        let gateway = caching(&origin, "");
        for language in ["de", "en", "de", "en"] {
            let answer = gateway.fetch("/v1/a", &format!("Accept-Language: {language}\r\n"));
            let expected = (language, "seiketsu; fwd=uri-miss; detail=named-field");
            assert_eq!((answer.text().as_str(), answer.cache_status()), expected, "{directive}");
        }
    }
}

#[test]
fn private_for_some_fields_allows_no_status_to_be_stored() {
    for (status, stored) in [(200, true), (201, false)] {
        let answer = format!("{status} Some\nCache-Control: private=\"x-a\"\nETag: \"1\"\n\nbody");
        let origin = in_turn(&[&answer]);
        let gateway = caching(&origin, "");
        gateway.fetch("/v1/a", "");
        gateway.fetch("/v1/a", "");
        assert_eq!(origin.last().header("if-none-match"), stored.then_some("\"1\""), "{status}");
    }
}

#[test]
fn credentials_need_the_word_of_the_origin() {
    for credential in ["Authorization: Basic Zm9vOmJhcg==\r\n", "Cookie: session=1\r\n"] {
        assert!(!is_stored(FRESH, credential), "{credential}");
        for allowing in [
            "Cache-Control: public, max-age=3600\r\n",
            "Cache-Control: s-maxage=3600\r\n",
            "Cache-Control: must-revalidate, max-age=3600\r\n",
        ] {
            assert!(is_stored(allowing, credential), "{allowing} {credential}");
        }
    }
    // What was stored for nobody in particular is not served to somebody, whom the origin may answer otherwise.
    let origin = counting(FRESH);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "0");
    assert_eq!(gateway.fetch("/v1/a", "Cookie: session=1\r\n").text(), "1");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "0");
}

#[test]
fn cookies_are_never_served_from_the_cache() {
    assert!(!is_stored("Cache-Control: max-age=3600\r\nSet-Cookie: a=b\r\n", ""));
    let origin = counting("Cache-Control: public, max-age=3600\r\nSet-Cookie: a=b\r\n");
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").header("set-cookie"), Some("a=b"));
    let hit = gateway.fetch("/v1/a", "");
    assert!(hit.is_hit() && hit.header("set-cookie").is_none(), "{hit:?}");
}

#[test]
fn must_understand_counts_more_than_no_store_where_the_status_is_known() {
    assert!(is_stored("Cache-Control: max-age=3600, no-store, must-understand\r\n", ""));
    for (status, stored) in [(200, true), (404, true), (299, false), (499, false)] {
        for also in ["", ", no-store"] {
            let answer = format!("{status} Some\nCache-Control: max-age=3600, must-understand{also}\n\nbody");
            let origin = in_turn(&[&answer]);
            let gateway = caching(&origin, "");
            gateway.fetch("/v1/a", "");
            assert_eq!(gateway.fetch("/v1/a", "").is_hit(), stored, "{status}{also}");
        }
    }
}

#[test]
fn statuses_that_must_not_be_stored_are_not() {
    for status in [206, 304, 412, 416, 417, 428, 429, 431, 511] {
        let body = if status == 304 { "" } else { "body" };
        let answer = format!("{status} Some\nCache-Control: max-age=3600\n\n{body}");
        let origin = in_turn(&[&answer]);
        let gateway = caching(&origin, "");
        gateway.fetch("/v1/a", "");
        assert!(!gateway.fetch("/v1/a", "").is_hit(), "{status}");
    }
}

#[test]
fn answers_to_other_methods_are_not_stored() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"] {
        let origin = counting(FRESH);
        let gateway = caching(&origin, "");
        for _ in 0..2 {
            let answer = gateway.ask(method, "/v1/a", "", "");
            assert_eq!(answer.cache_status(), "seiketsu; fwd=method", "{method}");
        }
        assert_eq!(gateway.fetch("/v1/a", "").text(), "2", "{method}");
    }
}

#[test]
fn a_request_with_a_body_is_not_answered_from_the_cache() {
    let origin = counting(FRESH);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let answer = gateway.ask("GET", "/v1/a", "", "query");
    assert_eq!((answer.text().as_str(), answer.cache_status()), ("1", "seiketsu; fwd=bypass"));
    assert_eq!(origin.last().body, b"query");
}

#[tokio::test]
async fn over_http2_a_body_is_one_although_no_field_tells_of_it() {
    let origin = Stub::start(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        wire(&format!("200 OK\nCache-Control: max-age=3600\n\n<{body}>"))
    });
    let gateway = caching(&origin, "");
    let client = Http2::plain(&gateway).await;
    for (method, body) in [("GET", "query"), ("GET", ""), ("HEAD", "query")] {
        let target = format!("/v1/{method}/{body}");
        let (response, mut stream) = client.open(client.request(method, "acme.test", &target), false).await.unwrap();
        send_all(&mut stream, Bytes::from_static(body.as_bytes()), false).await.unwrap();
        // Nobody waits for its end.
        let plain = client.get("acme.test", &target).await.plain();
        assert_eq!((plain.text().as_str(), plain.cache_status()), ("<>", "seiketsu; fwd=uri-miss; stored"));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("1"));
        stream.send_trailers(trailers).unwrap();
        let answer = receive(response).await.unwrap().plain();
        assert_eq!(answer.cache_status(), "seiketsu; fwd=bypass", "{target}");
        assert_eq!(origin.last().body, body.as_bytes());
        let plain = client.get("acme.test", &target).await.plain();
        assert!(plain.is_hit() && plain.text() == "<>", "{target} {plain:?}");
    }
}

#[test]
fn incomplete_responses_are_not_stored() {
    let short = "Cache-Control: max-age=3600\r\nContent-Length: 100\r\n\r\nhalf";
    let chunked = "Cache-Control: max-age=3600\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    for answer in [short, chunked] {
        let origin = breaking_off(&format!("HTTP/1.1 200 OK\r\n{answer}"));
        let gateway = caching_from(origin.address, "");
        for number in 1..3 {
            let bytes = gateway.raw("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\nConnection: close\r\n\r\n");
            assert!(!String::from_utf8_lossy(&bytes).contains("; hit"));
            assert!(origin.asked() >= number);
        }
    }
}

#[test]
fn what_comes_in_chunks_is_stored_with_its_length() {
    let origin = Stub::start(|_| {
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n4\r\nhalf\r\n0\r\n\r\n".to_vec()
    });
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "halfhalf");
    let hit = gateway.fetch("/v1/a", "");
    assert_eq!(
        (hit.text().as_str(), hit.header("content-length"), hit.header("transfer-encoding")),
        ("halfhalf", Some("8"), None)
    );
    assert!(hit.is_hit());
}

#[test]
fn what_has_another_transfer_coding_is_passed_on_and_not_stored() {
    let origin = Stub::start(|_| {
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n".to_vec()
    });
    let gateway = caching(&origin, "");
    for number in 1..3 {
        let answer = gateway.fetch("/v1/a", "");
        assert_eq!((answer.status, answer.is_hit(), origin.asked()), (200, false, number), "{answer:?}");
    }
}

#[test]
fn large_bodies_pass_without_being_stored() {
    let body = "x".repeat(100_000);
    for answer in [
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nContent-Length: 100000\r\n\r\n{body}"),
        format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n{body}\r\n0\r\n\r\n"
        ),
    ] {
        let origin = Stub::start(move |_| answer.clone().into_bytes());
        let gateway = caching(&origin, "max_object: 64KiB");
        for _ in 0..3 {
            let answer = gateway.fetch("/v1/a", "");
            assert!(answer.body.len() == 100_000 && !answer.is_hit());
        }
    }
}

#[test]
fn fields_of_one_connection_are_not_stored_and_all_others_are() {
    let origin = counting(
        "Cache-Control: max-age=3600\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-A: 1\r\nX-A: 2\r\n\
         Content-Type: text/x\r\nContent-Language: en\r\nETag: \"1\"\r\nProxy-Authenticate: Basic\r\n",
    );
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let hit = gateway.fetch("/v1/a", "");
    assert!(hit.is_hit());
    for gone in ["x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(hit.header(gone), None, "{gone}");
    }
    assert_eq!((hit.all("x-a"), hit.header("content-type")), (vec!["1", "2"], Some("text/x")));
    assert_eq!((hit.header("content-language"), hit.header("etag")), (Some("en"), Some("\"1\"")));
}

#[test]
fn interim_responses_are_passed_on_and_not_stored() {
    let origin = Stub::start(|_| {
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nContent-Length: 4\r\n\r\nbody".to_vec()
    });
    let gateway = caching(&origin, "");
    let mut client = gateway.connect();
    client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!(client.receive_head().status, 103);
    assert_eq!(client.receive().unwrap().text(), "body");
    let hit = client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(hit.is_hit() && hit.text() == "body" && origin.asked() == 1, "{hit:?}");
}

#[test]
fn what_is_malformed_is_no_reason_to_fail() {
    for fields in [
        "Cache-Control: ,,,=,\"\r\nExpires: \"\r\n",
        "Cache-Control: max-age=\"1\\\r\nAge: ,\r\n",
        "Vary: ,(\r\nCache-Control: max-age=60\r\n",
        "Cache-Control: max-age=60\r\nDate: \u{fc}\r\nLast-Modified: ,\r\nETag: \"\r\n",
        "Cache-Control: max-age=60\r\nCache-Tag: ,,\r\nSurrogate-Key:    \r\n",
    ] {
        let origin = counting(fields);
        let gateway = caching(&origin, "");
        for _ in 0..2 {
            let answer =
                gateway.fetch("/v1/a", "Cache-Control: max-age=,\"\r\nRange: bytes=\"\r\nIf-None-Match: ,\"\r\n");
            assert_eq!(answer.status, 200, "{fields:?} {answer:?}");
        }
    }
}

#[test]
fn what_has_no_date_is_stored_with_that_of_its_coming() {
    for date in ["", "Date: nonsense\r\n"] {
        let origin = counting(&format!("Cache-Control: max-age=3600\r\n{date}"));
        let gateway = caching(&origin, "");
        let before = std::time::SystemTime::now() - Duration::from_secs(1);
        gateway.fetch("/v1/a", "");
        let after = std::time::SystemTime::now();
        // It is not that of the answer.
        let_pass(Duration::from_secs(2));
        let hit = gateway.fetch("/v1/a", "");
        let date = httpdate::parse_http_date(hit.header("date").unwrap()).unwrap();
        assert!(hit.is_hit() && (before..=after).contains(&date), "{hit:?}");
    }
}

#[test]
fn keys_that_reach_the_origin_are_credentials_whoever_judges_them() {
    for (forward, stored) in [("true", false), ("false", true)] {
        let origin = counting(FRESH);
        let auth = format!("auth: {{ accept: [anonymous], forward_credential: {forward} }}, cache: {{}}");
        let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(&auth)));
        let bodies = gateway.bodies("/v1/a", "X-API-Key: of-the-origin\r\n", 2);
        assert_eq!(bodies[0] == bodies[1], stored, "{forward}: {bodies:?}");
        let bodies = gateway.bodies("/v1/b", "", 2);
        assert_eq!(bodies[0], bodies[1]);
    }
}

#[test]
fn what_some_servers_take_for_another_request_is_not_answered_from_the_cache() {
    let origin = counting(FRESH);
    let yaml = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    for node in ["", "forwarding: { trusted_proxies: [127.0.0.0/8] }\n"] {
        let gateway = Gateway::start_with(&yaml, node);
        let first = gateway.fetch("/v1/a", "").text();
        for name in ["X-HTTP-Method-Override", "X_HTTP_Method_Override", "X_Method-Override", "X-Method"] {
            let other = gateway.fetch("/v1/a", &format!("{name}: POST\r\n"));
            assert_eq!(other.cache_status(), "seiketsu; fwd=bypass", "{name}");
        }
        // What a proxy that is believed tells of the target is a part of the key.
        for name in ["X-Original-Host", "X-Host-Override", "X-Original-URI", "X-Envoy-Original-Path", "X-Scheme"] {
            let other = gateway.fetch("/v1/a", &format!("{name}: b\r\n"));
            let status = if node.is_empty() { "seiketsu; fwd=bypass" } else { "seiketsu; fwd=uri-miss; stored" };
            assert_eq!((other.cache_status(), other.text() == first), (status, false), "{name}");
        }
        for field in ["X-Original-URL: /v1/b\r\n", "X-Rewrite-URL: /v1/b\r\n"] {
            let is_first = gateway.fetch("/v1/a", field).text() == first;
            assert_eq!(is_first, node.is_empty(), "{field} of a stranger is removed");
        }
        assert_eq!(gateway.fetch("/v1/a", "").text(), first);
    }
}

#[test]
fn what_is_not_stored_still_gets_conditions_and_ranges_of_clients() {
    let origin = counting("Cache-Control: private\r\nETag: \"1\"\r\n");
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    gateway.fetch("/v1/a", "If-None-Match: \"1\"\r\n");
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""));
    gateway.fetch("/v1/a", "Range: bytes=0-0\r\n");
    assert_eq!(origin.last().header("range"), Some("bytes=0-0"));
}

#[test]
fn event_streams_are_passed_on_as_they_come() {
    // The origin may write the media type as it likes.
    let origin = Stub::start(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
            .to_vec()
    });
    let gateway = caching(&origin, "ttl: 1h");
    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\nAccept: text/event-stream\r\n\r\n");
        let head = client.receive_head();
        assert_eq!((head.status, head.cache_status()), (200, "seiketsu; fwd=uri-miss; detail=stream"));
        let mut event = [0; 14];
        std::io::Read::read_exact(&mut client.stream, &mut event).unwrap();
        assert!(String::from_utf8_lossy(&event).contains("data: 1"));
    }
}

#[test]
fn an_origin_hides_nothing_from_the_cache_with_connection() {
    for (name, value) in [("Vary", "*"), ("CDN-Cache-Control", "no-store")] {
        let origin = counting(&format!("Cache-Control: max-age=3600\r\n{name}: {value}\r\nConnection: {name}\r\n"));
        let gateway = caching(&origin, "");
        assert_eq!(gateway.bodies("/v1/a", "", 2), ["0", "1"], "{name}");
    }
    // Nor from purges by tag.
    for name in ["Cache-Tag", "Surrogate-Key"] {
        let origin = counting(&format!("Cache-Control: max-age=3600\r\n{name}: one\r\nConnection: {name}\r\n"));
        let gateway = caching(&origin, "");
        assert_eq!(gateway.fetch("/v1/a", "").text(), "0");
        let hit = gateway.fetch("/v1/a", "");
        assert_eq!((hit.is_hit(), hit.header(name)), (true, Some("one")));
    }
}

#[test]
fn once_a_response_must_not_be_stored_no_older_one_comes_up_again() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=3600\n\nfirst",
        "200 OK\nCache-Control: max-age=0\nETag: \"2\"\nVary: X-A\n\nsecond",
        "200 OK\nCache-Control: no-store\n\nthird",
    ]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "first");
    assert_eq!(gateway.fetch("/v1/a", "Cache-Control: no-cache\r\n").text(), "second");
    assert_eq!(gateway.bodies("/v1/a", "", 2), ["third", "third"]);
}

#[test]
fn nobody_is_told_that_something_is_stored_which_is_larger_than_what_the_node_stores() {
    let origin = Stub::answering(FRESH, "x".repeat(300 << 10));
    let tenants = tenants(&demo(&[origin.address], ""), "", &open("cache: {}"));
    // Of which a body may have a sixteenth.
    let gateway = Gateway::start_with(&tenants, "cache: { memory: 4MiB }\n");
    for _ in 0..2 {
        let answer = gateway.fetch("/v1/a", "");
        let told = answer.cache_status();
        assert!(told.ends_with("; detail=too-large") && !told.contains("stored"), "{told}");
    }
}
