//! RFC 9111 §4.1: `Vary`.

use super::{caching, counting, in_turn};
use crate::{fixtures::Stub, support::http2::Http2};

/// Whether a response that varies like this, stored for the first request, answers the second.
fn matches(vary: &str, first: &str, second: &str) -> bool {
    let origin = counting(&format!("Cache-Control: max-age=3600\r\n{vary}"));
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", first).text(), "0");
    gateway.fetch("/v1/a", second).text() == "0"
}

#[test]
fn the_named_fields_must_be_the_same() {
    assert!(matches("Vary: Foo\r\n", "Foo: 1\r\n", "Foo: 1\r\n"));
    assert!(!matches("Vary: Foo\r\n", "Foo: 1\r\n", "Foo: 2\r\n"));
    assert!(!matches("Vary: Foo\r\n", "Foo: 1\r\n", ""));
    assert!(!matches("Vary: Foo\r\n", "", "Foo: 1\r\n"));
    assert!(matches("Vary: Foo\r\n", "", ""));
    assert!(matches("", "Foo: 1\r\n", "Foo: 2\r\n"));
    assert!(matches("Vary: Foo\r\n", "Bar: 1\r\n", "Bar: 2\r\n"));
}

#[test]
fn several_fields_over_several_lines() {
    for vary in ["Vary: Foo, Bar\r\n", "Vary: Foo\r\nVary: Bar\r\n", "Vary: ,foo ,BAR,,\r\n"] {
        assert!(matches(vary, "Foo: 1\r\nBar: 2\r\n", "Bar: 2\r\nFoo: 1\r\n"));
        assert!(!matches(vary, "Foo: 1\r\nBar: 2\r\n", "Foo: 1\r\nBar: 3\r\n"));
        assert!(!matches(vary, "Foo: 1\r\nBar: 2\r\n", "Foo: 1\r\n"));
    }
}

#[test]
fn a_star_matches_nothing() {
    for vary in ["Vary: *\r\n", "Vary: Foo, *\r\n", "Vary: Foo\r\nVary: *\r\n"] {
        assert!(!matches(vary, "Foo: 1\r\n", "Foo: 1\r\n"), "{vary}");
    }
}

#[test]
fn too_many_fields_match_nothing() {
    let list = |count: usize| (0..count).map(|number| format!("X-{number}")).collect::<Vec<_>>().join(", ");
    assert!(matches(&format!("Vary: {}\r\n", list(32)), "X-1: 1\r\n", "X-1: 1\r\n"));
    assert!(!matches(&format!("Vary: {}\r\n", list(33)), "X-1: 1\r\n", "X-1: 1\r\n"));
}

#[test]
fn whitespace_and_lines_make_no_difference() {
    assert!(matches("Vary: Foo\r\n", "Foo: 1, 2\r\n", "Foo: 1,2\r\n"));
    assert!(matches("Vary: Foo\r\n", "Foo: 1\r\nFoo: 2\r\n", "Foo: 1, 2\r\n"));
    assert!(!matches("Vary: Foo\r\n", "Foo: 1, 2\r\n", "Foo: 2, 1\r\n"));
    assert!(!matches("Vary: Foo\r\n", "Foo: a\r\n", "Foo: A\r\n"));
    assert!(matches("Vary: Accept-Encoding\r\n", "Accept-Encoding: gzip, br\r\n", "Accept-Encoding: BR,gzip\r\n"));
    assert!(matches(
        "Vary: Accept-Language\r\n",
        "Accept-Language: en;q=0.5, de\r\n",
        "Accept-Language: de, en; q=0.5\r\n"
    ));
}

#[tokio::test]
async fn cookies_are_compared_as_the_origin_gets_them() {
    let origin = Stub::start(|seen| {
        let cookie = seen.header("cookie").unwrap_or("none").to_owned();
        super::wire(&format!("200 OK\nCache-Control: public, max-age=3600\nVary: Cookie\n\n{cookie}"))
    });
    let gateway = caching(&origin, "");
    let client = Http2::plain(&gateway).await;
    let crumbs = client.request("GET", "acme.test", "/v1/a").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(client.send(crumbs, b"").await.unwrap().body, b"a=1; b=2");
    for cookie in ["a=1,b=2", "a=1, b=2", "a=1;b=2"] {
        assert_eq!(gateway.fetch("/v1/a", &format!("Cookie: {cookie}\r\n")).text(), cookie);
    }
    let same = gateway.fetch("/v1/a", "Cookie: a=1; b=2\r\n");
    assert!(same.is_hit() && same.text() == "a=1; b=2", "{same:?}");
}

#[test]
fn variants_stand_beside_each_other() {
    let origin = Stub::start(|seen| {
        let body = seen.header("foo").unwrap_or("none").to_owned();
        super::wire(&format!("200 OK\nCache-Control: max-age=3600\nVary: Foo\n\n{body}"))
    });
    let gateway = caching(&origin, "");
    for round in 0..3 {
        for value in ["a", "b", "c"] {
            let answer = gateway.fetch("/v1/a", &format!("Foo: {value}\r\n"));
            assert_eq!((answer.text().as_str(), answer.is_hit()), (value, round > 0));
            if round == 0 {
                let expected =
                    if value == "a" { "seiketsu; fwd=uri-miss; stored" } else { "seiketsu; fwd=vary-miss; stored" };
                assert_eq!(answer.cache_status(), expected);
            }
        }
    }
    assert_eq!(origin.asked(), 3);
}

#[test]
fn a_change_of_vary_is_heeded() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=3600\nVary: Foo\n\nfoo",
        "200 OK\nCache-Control: max-age=3600\nVary: Bar\n\nbar",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "Foo: 1\r\nBar: 1\r\n");
    assert_eq!(gateway.fetch("/v1/a", "Foo: 2\r\nBar: 2\r\n").text(), "bar");
    assert_eq!(gateway.fetch("/v1/a", "Foo: 1\r\nBar: 3\r\n").text(), "foo");
    assert_eq!(gateway.fetch("/v1/a", "Foo: 3\r\nBar: 2\r\n").text(), "bar");
    // Both match: the newer one is served.
    assert_eq!(gateway.fetch("/v1/a", "Foo: 1\r\nBar: 2\r\n").text(), "bar");
    assert_eq!(origin.asked(), 2);
}

#[test]
fn a_variant_is_validated_alone() {
    let origin = Stub::start(|seen| {
        let value = seen.header("foo").unwrap();
        let etag = format!("\"{value}\"");
        let answer = if seen.header("if-none-match") == Some(&etag) { "304 Not Modified" } else { "200 OK" };
        super::wire(&format!(
            "{answer}\nCache-Control: max-age=0\nVary: Foo\nETag: {etag}\n\n{}",
            if answer.starts_with("200") { value } else { "" }
        ))
    });
    let gateway = caching(&origin, "");
    for round in 0..2 {
        for value in ["a", "b"] {
            let answer = gateway.fetch("/v1/a", &format!("Foo: {value}\r\n"));
            assert_eq!(answer.text(), value);
            assert_eq!(answer.cache_status().contains("fwd-status=304"), round == 1, "{answer:?}");
        }
    }
}

#[test]
fn a_variant_that_is_used_outlives_those_that_are_not() {
    let origin = counting("Cache-Control: max-age=3600\r\nVary: Foo\r\n");
    let gateway = caching(&origin, "");
    for number in 0..100 {
        gateway.fetch("/v1/a", &format!("Foo: {number}\r\n"));
        assert_eq!(gateway.fetch("/v1/a", "Foo: 0\r\n").text(), "0", "after {number}");
    }
    assert!(!gateway.fetch("/v1/a", "Foo: 1\r\n").is_hit());
}
