//! RFC 9111 §4.4: what unsafe requests make invalid.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use super::{caching, wire};
use crate::{
    fixtures::{Stub, comes_true, demo, open, tenants},
    support::Gateway,
};

/// An origin whose answers to GET can be stored, and which gives these to everything else.
fn origin(to_others: &str) -> Stub {
    let (to_others, count) = (wire(to_others), AtomicUsize::new(0));
    Stub::start(move |seen| {
        if seen.head.starts_with("GET ") {
            let number = count.fetch_add(1, Ordering::SeqCst);
            return wire(&format!("200 OK\nCache-Control: max-age=3600\n\n{number}"));
        }
        to_others.clone()
    })
}

/// Which of these paths are still served from the cache after a request.
fn kept(to_others: &str, method: &str, target: &str) -> Vec<bool> {
    let paths = ["/v1/a", "/v1/b", "/v1/c?q"];
    let origin = origin(to_others);
    let gateway = caching(&origin, "");
    for path in paths {
        gateway.fetch(path, "");
    }
    gateway.ask(method, target, "", "");
    paths.map(|path| gateway.fetch(path, "").is_hit()).to_vec()
}

#[test]
fn unsafe_methods_invalidate_their_target() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
        assert_eq!(kept("200 OK\n", method, "/v1/a"), [false, true, true], "{method}");
    }
    for method in ["OPTIONS", "HEAD"] {
        assert_eq!(kept("200 OK\n", method, "/v1/a"), [true, true, true], "{method}");
    }
    // The query is part of it.
    assert_eq!(kept("200 OK\n", "POST", "/v1/a?x"), [true, true, true]);
    assert_eq!(kept("204 No Content\n", "POST", "/v1/c?q"), [true, true, false]);
}

#[test]
fn what_the_answer_names_is_invalid_as_well() {
    assert_eq!(kept("201 Created\nLocation: /v1/b\n", "POST", "/v1/a"), [false, false, true]);
    assert_eq!(kept("200 OK\nContent-Location: b\n", "POST", "/v1/a"), [false, false, true]);
    assert_eq!(kept("303 See Other\nLocation: http://acme.test/v1/c?q\n", "POST", "/v1/a"), [false, true, false]);
    // Of several the first counts.
    assert_eq!(kept("201 Created\nLocation: /v1/b\nLocation: /v1/c?q\n", "POST", "/v1/a"), [false, false, true]);
    // Not of another host.
    for location in
        ["http://other.test/v1/b", "//other.test/v1/b", "https://acme.test/v1/b", "http://acme.test:81/v1/b"]
    {
        let answer = format!("201 Created\nLocation: {location}\n");
        assert_eq!(kept(&answer, "POST", "/v1/a"), [false, true, true], "{location}");
    }
}

#[test]
fn whatever_the_port_the_dot_and_the_order_of_parameters_it_is_the_same_target() {
    let origin = origin("200 OK\n");
    let gateway = caching(&origin, "sort_query: true");
    let post = |host: &str, target: &str| {
        gateway.connect().request(&format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"))
    };
    for (stored, changed) in [
        (("acme.test:80", "/v1/a"), ("acme.test", "/v1/a")),
        (("acme.test", "/v1/a"), ("ACME.test.:81", "/v1/a")),
        (("acme.test", "/v1/a?x=1&y=2"), ("acme.test", "/v1/a?y=2&x=1")),
    ] {
        gateway.get(stored.0, stored.1, "");
        assert!(gateway.get(stored.0, stored.1, "").is_hit(), "{stored:?}");
        assert_eq!(post(changed.0, changed.1).status, 200);
        assert!(!gateway.get(stored.0, stored.1, "").is_hit(), "{stored:?} {changed:?}");
    }
}

#[test]
fn what_the_answer_names_is_found_however_it_is_written() {
    for location in ["/v1//b", "/v1/%62", "/v1/x/../b#top", "http://acme.test:80/v1/b", "http://ACME.test./v1/b"] {
        let answer = format!("201 Created\nLocation: {location}\n");
        assert_eq!(kept(&answer, "POST", "/v1/a"), [false, false, true], "{location}");
    }
    let origin = origin("201 Created\nLocation: /v1/d?x='a'\n");
    let gateway = caching(&origin, "");
    for target in ["/v1/d?x='a'", "/v1/d?x=%27a%27"] {
        gateway.fetch(target, "");
        assert!(gateway.fetch(target, "").is_hit());
        gateway.ask("POST", "/v1/a", "", "");
        assert!(!gateway.fetch(target, "").is_hit(), "{target}");
    }
}

#[test]
fn behind_a_proxy_that_ends_tls_the_origin_is_that_of_clients() {
    let node = "forwarding: { trusted_proxies: [127.0.0.0/8] }\n";
    let invalidates = |fields: &str, location: &str| {
        let origin = origin(&format!("201 Created\nLocation: {location}\n"));
        let gateway = Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open("cache: {}")), node);
        gateway.fetch("/v1/b", fields);
        assert!(gateway.fetch("/v1/b", fields).is_hit());
        gateway.ask("POST", "/v1/a", fields, "");
        !gateway.fetch("/v1/b", fields).is_hit()
    };
    let https = "X-Forwarded-Proto: https\r\n";
    assert!(invalidates(https, "https://acme.test/v1/b"));
    assert!(!invalidates(https, "http://acme.test/v1/b"));
    assert!(!invalidates("X-Forwarded-Proto: http\r\n", "https://acme.test/v1/b"));
}

#[test]
fn a_request_that_began_while_the_cache_was_off_invalidates_as_any_other() {
    let (go_on, wait) = mpsc::channel();
    let (wait, seen) = (Mutex::new(wait), AtomicUsize::new(0));
    let origin = Stub::start(move |seen_now| {
        if seen_now.head.starts_with("POST ") {
            wait.lock().unwrap().recv().unwrap();
            return wire("200 OK\n");
        }
        wire(&format!("200 OK\nCache-Control: max-age=3600\n\n{}", seen.fetch_add(1, Ordering::SeqCst)))
    });
    let configuration = |revision: u32, enabled: bool| {
        let text = tenants(&demo(&[origin.address], ""), "", &open(&format!("cache: {{ enabled: {enabled} }}")));
        text.replace("revision: 1", &format!("revision: {revision}"))
    };
    let gateway = Gateway::start(&configuration(1, true));
    let is_stored = || gateway.fetch("/v1/a", "").is_hit();
    assert!(comes_true(is_stored));
    gateway.write_tenants(&configuration(2, false));
    assert!(comes_true(|| gateway.fetch("/v1/a", "").cache_status().is_empty()));
    let mut client = gateway.connect();
    client.send(b"POST /v1/a HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 0\r\n\r\n");
    assert!(comes_true(|| origin.last().head.starts_with("POST ")));
    gateway.write_tenants(&configuration(3, true));
    assert!(comes_true(is_stored));
    go_on.send(()).unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    assert!(!is_stored());
}

#[test]
fn errors_invalidate_nothing() {
    for status in
        ["400 Bad Request", "404 Not Found", "409 Conflict", "500 Internal Server Error", "503 Service Unavailable"]
    {
        assert_eq!(kept(&format!("{status}\nLocation: /v1/b\n"), "POST", "/v1/a"), [true, true, true], "{status}");
    }
}

#[test]
fn all_variants_and_callers_are_concerned() {
    let count = AtomicUsize::new(0);
    let origin = Stub::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        wire(&format!("200 OK\nCache-Control: public, max-age=3600\nVary: Foo\n\n{number}"))
    });
    let gateway = caching(&origin, "");
    let requests = ["Foo: 1\r\n", "Foo: 2\r\n", "Cookie: a=b\r\n"];
    let hits = |gateway: &Gateway| requests.map(|fields| gateway.fetch("/v1/a", fields).is_hit());
    assert_eq!(hits(&gateway), [false; 3]);
    assert_eq!(hits(&gateway), [true; 3]);
    gateway.ask("POST", "/v1/a", "", "x");
    assert_eq!(hits(&gateway), [false; 3]);
}
