//! RFC 9111 §4.3, §3.2, RFC 9110 §13: conditions of clients, and what the origin answers to the cache's own.

use super::{at, caching, counting, in_turn};

#[test]
fn clients_that_have_it_get_304_from_the_cache() {
    let modified = at(-3600);
    let origin = counting(&format!(
        "Cache-Control: max-age=3600\r\nETag: \"1\"\r\nLast-Modified: {modified}\r\nContent-Type: text/x\r\nX-A: 1\r\n"
    ));
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let (before, after) = (at(-7200), at(-10));
    for (condition, status) in [
        ("If-None-Match: \"1\"\r\n".to_owned(), 304),
        ("If-None-Match: W/\"1\"\r\n".to_owned(), 304),
        ("If-None-Match: \"0\", \"1\"\r\n".to_owned(), 304),
        ("If-None-Match: \"0\"\r\nIf-None-Match: \"1\"\r\n".to_owned(), 304),
        ("If-None-Match: *\r\n".to_owned(), 304),
        ("If-None-Match: \"2\"\r\n".to_owned(), 200),
        ("If-None-Match: 1\r\n".to_owned(), 200),
        (format!("If-Modified-Since: {modified}\r\n"), 304),
        (format!("If-Modified-Since: {after}\r\n"), 304),
        (format!("If-Modified-Since: {before}\r\n"), 200),
        ("If-Modified-Since: yesterday\r\n".to_owned(), 200),
        (format!("If-None-Match: \"2\"\r\nIf-Modified-Since: {after}\r\n"), 200),
        (format!("If-None-Match: \"1\"\r\nIf-Modified-Since: {before}\r\n"), 304),
    ] {
        let mut client = gateway.connect();
        client.send(format!("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n{condition}\r\n").as_bytes());
        let answer = client.receive_head();
        assert!(answer.status == status && answer.is_hit(), "{condition} {answer:?}");
        if status == 304 {
            assert_eq!((answer.header("etag"), answer.header("x-a")), (Some("\"1\""), Some("1")));
            assert_eq!((answer.header("content-length"), answer.header("content-type")), (None, None));
            assert!(answer.header("date").is_some() && answer.header("cache-control").is_some());
            // Nothing follows it.
            assert_eq!(client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n").text(), "0");
        }
    }
    assert_eq!(origin.asked(), 1);
}

#[test]
fn without_last_modified_the_date_counts() {
    let origin = counting(&format!("Cache-Control: max-age=3600\r\nDate: {}\r\n", at(-100)));
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let ask = |since| gateway.ask("HEAD", "/v1/a", &format!("If-Modified-Since: {}\r\n", at(since)), "").status;
    assert_eq!((ask(-50), ask(-200)), (304, 200));
}

#[test]
fn a_client_that_has_it_is_told_so_also_when_it_has_to_be_fetched() {
    let origin = counting("Cache-Control: max-age=3600\r\nETag: \"1\"\r\n");
    let gateway = caching(&origin, "");
    let mut client = gateway.connect();
    client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\nIf-None-Match: \"1\"\r\n\r\n");
    assert_eq!(client.receive_head().status, 304);
    // The condition is not for the origin: the cache wants the whole.
    assert_eq!(origin.last().header("if-none-match"), None);
    let hit = client.request("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(hit.is_hit() && hit.text() == "0", "{hit:?}");
}

#[test]
fn only_success_is_not_modified() {
    let origin = in_turn(&["404 Not Found\nCache-Control: max-age=3600\nETag: \"1\"\n\nnothing"]);
    let gateway = caching(&origin, "");
    for _ in 0..2 {
        assert_eq!(gateway.fetch("/v1/a", "If-None-Match: \"1\"\r\n").status, 404);
    }
}

#[test]
fn conditions_for_the_origin_go_to_it() {
    let origin = counting("Cache-Control: max-age=3600\r\nETag: \"1\"\r\n");
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    for condition in ["If-Match: \"1\"\r\n".to_owned(), format!("If-Unmodified-Since: {}\r\n", at(0))] {
        let answer = gateway.fetch("/v1/a", &condition);
        assert_eq!(answer.cache_status(), "seiketsu; fwd=bypass", "{condition}");
        let name = condition.split(':').next().unwrap();
        assert!(origin.last().header(name).is_some());
    }
    assert_eq!(origin.asked(), 3);
}

#[test]
fn both_validators_are_sent() {
    let modified = at(-3600);
    let first = format!("200 OK\nCache-Control: max-age=0\nETag: W/\"1\"\nLast-Modified: {modified}\n\nbody");
    let origin = in_turn(&[&first, "304 Not Modified"]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.bodies("/v1/a", "", 2), ["body", "body"]);
    let seen = origin.last();
    assert_eq!((seen.header("if-none-match"), seen.header("if-modified-since")), (Some("W/\"1\""), Some(&*modified)));
}

#[test]
fn a_304_updates_what_is_stored() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\nX-A: 1\nX-A: 2\nX-B: 3\nContent-Type: text/x\n\nbody",
        "304 Not Modified\nCache-Control: max-age=3600\nETag: \"1\"\nX-A: 4\nX-C: 5\nContent-Length: 99\nContent-Encoding: gzip\nContent-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==\nSet-Cookie: a=b",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    for answer in [gateway.fetch("/v1/a", ""), gateway.fetch("/v1/a", "")] {
        assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
        assert_eq!((answer.all("x-a"), answer.header("x-b"), answer.header("x-c")), (vec!["4"], Some("3"), Some("5")));
        assert_eq!((answer.header("content-length"), answer.header("content-encoding")), (Some("4"), None));
        assert_eq!((answer.header("content-type"), answer.header("set-cookie")), (Some("text/x"), None));
        assert_eq!(answer.header("content-md5"), None);
        assert_eq!(answer.header("cache-control"), Some("max-age=3600"));
    }
    assert_eq!(origin.asked(), 2);
}

#[test]
fn a_304_makes_it_young_again() {
    let old = at(-5000);
    let first = format!("200 OK\nCache-Control: max-age=3600\nDate: {old}\nETag: \"1\"\n\nbody");
    let origin = in_turn(&[&first, "304 Not Modified\nETag: \"1\""]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    gateway.fetch("/v1/a", "");
    let hit = gateway.fetch("/v1/a", "");
    assert!(hit.is_hit() && hit.age().unwrap() < 10, "{hit:?}");
}

#[test]
fn the_age_of_a_304_counts() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nbody",
        "304 Not Modified\nCache-Control: max-age=60\nAge: 50\nETag: \"1\"",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    for answer in [gateway.fetch("/v1/a", ""), gateway.fetch("/v1/a", "")] {
        assert!(answer.age().unwrap() >= 50 && answer.all("age").len() == 1, "{answer:?}");
    }
    let hit = gateway.fetch("/v1/a", "");
    let ttl: u64 = hit.cache_status().strip_prefix("seiketsu; hit; ttl=").unwrap().parse().unwrap();
    assert!(ttl <= 10, "{hit:?}");
    // Its own is no longer there once another has none.
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nbody",
        "304 Not Modified\nCache-Control: max-age=60\nAge: 60\nETag: \"1\"",
        "304 Not Modified\nCache-Control: max-age=3600\nETag: \"1\"",
    ]);
    let gateway = caching(&origin, "");
    for age in [0, 60, 0] {
        let answer = gateway.fetch("/v1/a", "");
        assert!((age..age + 10).contains(&answer.age().unwrap_or(0)), "{answer:?}");
    }
}

#[test]
fn a_304_may_forbid_to_store_it_any_longer() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nbody",
        "304 Not Modified\nCache-Control: no-store\nETag: \"1\"",
        "200 OK\nCache-Control: no-store\n\nnew",
    ]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.bodies("/v1/a", "", 3), ["body", "body", "new"]);
    assert_eq!(origin.last().header("if-none-match"), None);
}

#[test]
fn a_304_about_something_else_is_not_believed_for_long() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nbody",
        "304 Not Modified\nCache-Control: max-age=3600\nETag: \"2\"",
        "200 OK\nCache-Control: max-age=3600\nETag: \"2\"\n\nnew",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    // The client must not take these bytes for what has the other tag.
    let answer = gateway.fetch("/v1/a", "");
    assert_eq!((answer.text().as_str(), answer.all("etag")), ("body", vec!["\"1\""]));
    assert_eq!(gateway.fetch("/v1/a", "").text(), "new");
}

#[test]
fn another_answer_replaces_what_was_stored() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nold",
        "200 OK\nCache-Control: max-age=3600\nETag: \"2\"\n\nnew",
    ]);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.bodies("/v1/a", "", 3), ["old", "new", "new"]);
}

#[test]
fn a_condition_of_the_client_is_judged_by_what_was_validated() {
    let origin = in_turn(&["200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\nbody", "304 Not Modified\nETag: \"1\""]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    assert_eq!(gateway.ask("HEAD", "/v1/a", "If-None-Match: \"1\"\r\n", "").status, 304);
    let other = gateway.fetch("/v1/a", "If-None-Match: \"0\"\r\n");
    assert_eq!((other.status, other.text().as_str()), (200, "body"));
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""));
}
