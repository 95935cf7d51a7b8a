//! RFC 9111 §4.4: what unsafe requests make invalid.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{caching, wire};
use crate::{fixtures::Stub, support::Gateway};

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
    // Not of another host.
    for location in
        ["http://other.test/v1/b", "//other.test/v1/b", "https://acme.test/v1/b", "http://acme.test:81/v1/b"]
    {
        let answer = format!("201 Created\nLocation: {location}\n");
        assert_eq!(kept(&answer, "POST", "/v1/a"), [false, true, true], "{location}");
    }
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
