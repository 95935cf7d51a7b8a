//! RFC 9110 §14, RFC 9111 §3.3: parts of what is stored.

use super::{at, caching, in_turn};
use crate::{
    fixtures::{Stub, comes_true},
    support::{Gateway, Response},
};

fn origin() -> Stub {
    let date = at(0);
    let modified = at(-3600);
    in_turn(&[&format!(
        "200 OK\nCache-Control: max-age=3600\nETag: \"1\"\nLast-Modified: {modified}\nDate: {date}\nContent-Type: text/x\n\n0123456789"
    )])
}

fn check(gateway: &Gateway, target: &str) {
    for (range, status, content_range, body) in [
        ("bytes=0-3", 206, Some("bytes 0-3/10"), "0123"),
        ("bytes=4-", 206, Some("bytes 4-9/10"), "456789"),
        ("bytes=-2", 206, Some("bytes 8-9/10"), "89"),
        ("bytes=8-99", 206, Some("bytes 8-9/10"), "89"),
        ("bytes=10-", 416, Some("bytes */10"), ""),
        ("items=0-3", 200, None, "0123456789"),
        ("bytes=a-b", 200, None, "0123456789"),
    ] {
        let answer = gateway.fetch(target, &format!("Range: {range}\r\n"));
        assert_eq!(
            (answer.status, answer.header("content-range"), answer.text().as_str()),
            (status, content_range, body),
            "{range}"
        );
    }
}

#[test]
fn parts_of_what_is_stored() {
    let origin = origin();
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    check(&gateway, "/v1/a");
    let parts = gateway.fetch("/v1/a", "Range: bytes=0-1, 8-9\r\n");
    assert_eq!(parts.status, 206);
    assert!(parts.header("content-type").unwrap().starts_with("multipart/byteranges; boundary="));
    let text = parts.text();
    assert!(
        text.contains("Content-Range: bytes 0-1/10\r\n\r\n01\r\n")
            && text.contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n")
    );
    assert_eq!(origin.asked(), 1);
    // Of a head there are no parts.
    assert_eq!(gateway.ask("HEAD", "/v1/a", "Range: bytes=0-3\r\n", "").status, 200);
}

#[test]
fn a_request_for_a_part_fetches_the_whole() {
    let origin = origin();
    let gateway = caching(&origin, "");
    for target in ["/v1/a", "/v1/b"] {
        let part = gateway.fetch(target, "Range: bytes=2-3\r\n");
        assert_eq!(
            (part.status, part.text().as_str(), part.header("content-range")),
            (206, "23", Some("bytes 2-3/10"))
        );
        assert_eq!(origin.last().header("range"), None);
        let whole = gateway.fetch(target, "");
        assert!(whole.is_hit() && whole.text() == "0123456789", "{whole:?}");
    }
    check(&gateway, "/v1/a");
    assert_eq!(origin.asked(), 2);
}

#[test]
fn if_range_needs_the_same_strong_validator() {
    let origin = origin();
    let gateway = caching(&origin, "");
    let modified = gateway.fetch("/v1/a", "").header("last-modified").unwrap().to_owned();
    for (condition, status) in [("\"1\"", 206), ("\"2\"", 200), ("W/\"1\"", 200), (&*modified, 206), (&*at(-10), 200)] {
        for target in ["/v1/a", "/v1/other"] {
            let target = format!("{target}?{status}");
            let answer = gateway.fetch(&target, &format!("Range: bytes=0-3\r\nIf-Range: {condition}\r\n"));
            assert_eq!(answer.status, status, "{condition} {target}");
        }
    }
}

#[test]
fn conditions_come_before_parts() {
    let origin = origin();
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    assert_eq!(gateway.ask("HEAD", "/v1/a", "Range: bytes=0-3\r\nIf-None-Match: \"1\"\r\n", "").status, 304);
}

#[test]
fn partial_answers_of_the_origin_are_passed_on_and_not_stored() {
    let origin = in_turn(&["206 Partial Content\nCache-Control: max-age=3600\nContent-Range: bytes 0-3/10\n\n0123"]);
    let gateway = caching(&origin, "");
    for _ in 0..2 {
        let answer = gateway.fetch("/v1/a", "");
        assert_eq!((answer.status, answer.is_hit()), (206, false));
    }
}

#[test]
fn a_part_of_what_was_just_validated() {
    let origin =
        in_turn(&["200 OK\nCache-Control: max-age=0\nETag: \"1\"\n\n0123456789", "304 Not Modified\nETag: \"1\""]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let part = gateway.fetch("/v1/a", "Range: bytes=2-3\r\n");
    assert_eq!((part.status, part.text().as_str()), (206, "23"));
}

#[test]
fn parts_mean_the_same_of_what_is_stored_and_of_what_is_fetched() {
    let origin = origin();
    let gateway = caching(&origin, "");
    let asked = [
        "bytes=-0",
        "bytes=5-2",
        "bytes=0-3,0-3",
        "bytes=-18446744073709551616",
        "bytes=10-",
        "bytes=2-3",
        "bytes=",
        "bytes=5-,0-1",
        "bytes=0-1,,3-4",
        "bytes = 0-1 , 3-4",
        "bytes=0-1,3-4,20-,-0",
    ];
    for (number, range) in asked.into_iter().enumerate() {
        let ask = || gateway.fetch(&format!("/v1/{number}"), &format!("Range: {range}\r\n"));
        let (fetched, stored) = (ask(), ask());
        assert!(!fetched.is_hit() && stored.is_hit(), "{range}");
        assert_eq!(fetched.status, stored.status, "{range}");
        assert_eq!(fetched.header("content-range"), stored.header("content-range"), "{range}");
        assert_eq!(without_boundary(&fetched), without_boundary(&stored), "{range}");
    }
}

/// Between several parts stands a number drawn by lot.
fn without_boundary(answer: &Response) -> String {
    let boundary = answer.header("content-type").and_then(|kind| kind.split_once("; boundary="));
    boundary.map_or_else(|| answer.text(), |(_, boundary)| answer.text().replace(boundary, ""))
}

#[test]
fn many_bytes_in_several_parts_are_sent_as_the_whole() {
    let whole = "0123456789".repeat(20_000);
    let origin = in_turn(&[&format!("200 OK\nCache-Control: max-age=3600\nContent-Type: text/x\n\n{whole}")]);
    let gateway = caching(&origin, "");
    for (number, range, status) in
        [(0, "bytes=0-39999,50000-89999", 200), (1, "bytes=0-9,50000-50009", 206), (2, "bytes=10-99999", 206)]
    {
        let ask = || {
            let answer = gateway.fetch(&format!("/v1/{number}"), &format!("Range: {range}\r\n"));
            assert_eq!(answer.status, status, "{range}");
            assert!(status == 206 || answer.text() == whole, "{range}");
            answer.is_hit()
        };
        // Of what was not stored, and then, once the whole has come, of what is.
        assert!(!ask() && comes_true(ask), "{range}");
    }
}

#[test]
fn a_head_has_no_parts() {
    // Fetched, and stored or not; the last one passes by the cache from the second time on.
    for fields in ["Cache-Control: max-age=3600\r\n", "Cache-Control: no-store\r\n"] {
        let origin = Stub::answering(fields, "0123456789");
        let gateway = caching(&origin, "");
        for range in ["bytes=2-3", "bytes=0-1,8-9", "bytes=10-"] {
            let head = gateway.ask("HEAD", "/v1/a", &format!("Range: {range}\r\n"), "");
            assert_eq!(
                (head.status, head.header("content-length"), head.header("content-range")),
                (200, Some("10"), None),
                "{fields} {range}"
            );
        }
    }
}

#[test]
fn parts_of_what_is_not_stored_are_made_once() {
    // Of one request the gateway has asked for the whole; of the next it leaves the part to the origin.
    let origin = Stub::start(|seen| {
        let (status, more, body) = match seen.header("range") {
            Some(_) => ("206 Partial Content", "Content-Range: bytes 2-3/10\n", "23"),
            None => ("200 OK", "", "0123456789"),
        };
        super::wire(&format!("{status}\nCache-Control: no-store\n{more}\n{body}"))
    });
    let gateway = caching(&origin, "");
    for passed_on in [None, Some("bytes=2-3")] {
        let part = gateway.fetch("/v1/a", "Range: bytes=2-3\r\n");
        assert_eq!(
            (part.status, part.text().as_str(), part.header("content-range")),
            (206, "23", Some("bytes 2-3/10"))
        );
        assert_eq!(origin.last().header("range"), passed_on);
    }
}
