//! What a tenant may decide about requests and answers: CORS, headers, addresses, bounds, compression.

use std::io::{BufRead, Read};

use crate::{
    fixtures::{Stub, demo, open, tenants, with_policies},
    support::{Client, Gateway, Origin, Response},
};

const CORS: &str = "cors: { origins: ['https://app.test', 'https://*.apps.test'], methods: [GET, POST], \
    request_headers: [x-one, content-type], expose_headers: [x-request-id], credentials: true, max_age: 5m }";

fn preflight(gateway: &Gateway, origin: &str, method: &str, headers: &str) -> Response {
    let headers =
        if headers.is_empty() { String::new() } else { format!("Access-Control-Request-Headers: {headers}\r\n") };
    let fields = format!("Origin: {origin}\r\nAccess-Control-Request-Method: {method}\r\n{headers}");
    gateway.ask("OPTIONS", "/v1/echo", &fields, "")
}

#[test]
fn scripts_of_listed_origins_may_read_answers() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, CORS);
    for (from, allowed) in [
        ("https://app.test", true),
        ("https://x.apps.test", true),
        ("https://x.y.apps.test", true),
        ("https://apps.test", false),
        ("http://app.test", false),
        ("https://app.test:8443", false),
        ("https://app.test.evil.test", false),
        ("https://evil.test?https://app.test", false),
        ("https://evilapps.test", false),
        ("null", false),
    ] {
        // On refusals as on answers.
        for target in ["/v1/echo", "/nothing", "/v1/status/500"] {
            let answer = gateway.get("acme.test", target, &format!("Origin: {from}\r\n"));
            let expected = (allowed && target != "/nothing").then_some(from);
            assert_eq!(answer.header("access-control-allow-origin"), expected, "{from} {target}");
            if target != "/nothing" {
                assert!(answer.all("vary").join(",").contains("Origin"), "{answer:?}");
            }
            if expected.is_some() {
                assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
                assert_eq!(answer.header("access-control-expose-headers"), Some("x-request-id"));
            }
        }
    }
    let without = gateway.get("acme.test", "/v1/echo", "");
    assert_eq!(without.header("access-control-allow-origin"), None);
    assert!(without.all("vary").join(",").contains("Origin"));
}

#[test]
fn a_preflight_is_answered_by_the_gateway() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, CORS);
    let allowed = preflight(&gateway, "https://app.test", "POST", "X-One, content-type");
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, Some("https://app.test")));
    assert_eq!(allowed.header("access-control-allow-methods"), Some("GET, POST"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("x-one, content-type"));
    assert_eq!(allowed.header("access-control-max-age"), Some("300"));
    assert_eq!(allowed.all("access-control-allow-origin").len(), 1);
    for (from, method, headers) in [
        ("https://evil.test", "POST", ""),
        ("https://app.test", "DELETE", ""),
        ("https://app.test", "post", ""),
        ("https://app.test", "POST", "x-two"),
        ("https://app.test", "POST", "x-one, x-two"),
    ] {
        let refused = preflight(&gateway, from, method, headers);
        assert_eq!(refused.status, 403, "{from} {method} {headers}");
        assert_eq!(refused.header("access-control-allow-methods"), None);
        assert!(refused.all("vary").join(",").contains("Origin"));
    }
    assert_eq!(origin.requests("/v1/echo"), 0);
    // Not a preflight: goes upstream like any other request.
    assert_eq!(gateway.ask("OPTIONS", "/v1/echo", "Origin: https://app.test\r\n", "").status, 200);
    assert_eq!(origin.requests("/v1/echo"), 1);
}

#[test]
fn a_preflight_needs_no_credential_and_errors_can_be_read() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, &format!("auth: {{ accept: [api_key] }}, {CORS}"));
    assert_eq!(preflight(&gateway, "https://app.test", "GET", "").status, 204);
    let refused = gateway.get("acme.test", "/v1/echo", "Origin: https://app.test\r\n");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.test")));
}

#[test]
fn the_upstreams_own_cors_headers_give_way() {
    let stub = Stub::answering(
        "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Origin: https://evil.test\r\nVary: Accept\r\n",
        "x",
    );
    let gateway = with_policies(stub.address, CORS);
    let answer = gateway.get("acme.test", "/v1/x", "Origin: https://app.test\r\n");
    assert_eq!(answer.all("access-control-allow-origin"), ["https://app.test"]);
    let vary = answer.all("vary").join(",");
    assert!(vary.contains("Accept") && vary.contains("Origin"), "{vary}");
    let other = gateway.get("acme.test", "/v1/x", "Origin: https://evil.test\r\n");
    assert_eq!(other.header("access-control-allow-origin"), None);

    let any = with_policies(stub.address, "cors: { origins: ['*'] }");
    let answer = any.get("acme.test", "/v1/x", "Origin: https://evil.test\r\n");
    assert_eq!(answer.all("access-control-allow-origin"), ["*"]);
    let off = with_policies(stub.address, "cors: { enabled: false }");
    assert_eq!(off.get("acme.test", "/v1/x", "").all("access-control-allow-origin").len(), 2);
}

#[test]
fn security_headers_stand_on_every_answer_and_can_be_changed_or_removed() {
    let stub = Stub::answering("Server: secret/1.0\r\nX-Powered-By: PHP\r\nX-Content-Type-Options: no\r\n", "x");
    let gateway = with_policies(stub.address, "");
    for target in ["/v1/x", "/nothing"] {
        let answer = gateway.get("acme.test", target, "");
        assert_eq!(answer.all("x-content-type-options"), ["nosniff"], "{target}");
        assert!(answer.header("referrer-policy").is_some(), "{target}");
        assert_eq!((answer.header("server"), answer.header("x-powered-by")), (None, None), "{target}");
        // Never where anybody could have changed it on the way.
        assert_eq!(answer.header("strict-transport-security"), None);
    }
    let unknown = gateway.get("nobody.test", "/", "");
    assert_eq!((unknown.status, unknown.header("x-content-type-options")), (404, Some("nosniff")));

    let changed = with_policies(
        stub.address,
        "security_headers: { referrer-policy: origin, x-content-type-options: null, x-extra: 'yes' }, \
         headers: { response: { set: { x-set: a, x-added: b }, remove: [x-gone] } }",
    );
    let answer = changed.get("acme.test", "/v1/x", "");
    assert_eq!(answer.all("referrer-policy"), ["origin"]);
    assert_eq!(answer.all("x-content-type-options"), ["no"], "left to the upstream");
    assert_eq!((answer.header("x-extra"), answer.header("x-set")), (Some("yes"), Some("a")));
}

#[test]
fn headers_are_renamed_removed_set_and_added_in_this_order() {
    let stub = Stub::answering("X-Old: 1\r\nX-Gone: 1\r\nX-Kept: upstream\r\nX-Replaced: upstream\r\n", "x");
    let gateway = with_policies(
        stub.address,
        "headers: { request: { rename: { x-old: x-new }, remove: [x-gone], set: { x-set: '1' }, add: { x-kept: gateway } }, \
         response: { rename: { x-old: x-new }, remove: [x-gone], set: { x-replaced: gateway }, add: { x-kept: gateway } } }",
    );
    let fields = "X-Old: c\r\nX-Gone: c\r\nX_Gone: c\r\nX-Set: c\r\nX_Set: c\r\nX_New: c\r\nX-Kept: client\r\n";
    let answer = gateway.get("acme.test", "/v1/x", fields);
    assert_eq!((answer.header("x-new"), answer.header("x-old"), answer.header("x-gone")), (Some("1"), None, None));
    assert_eq!((answer.all("x-replaced"), answer.all("x-kept")), (vec!["gateway"], vec!["upstream", "gateway"]));
    let seen = stub.seen().remove(0);
    assert_eq!((seen.header("x-new"), seen.header("x-old"), seen.header("x-gone")), (Some("c"), None, None));
    assert_eq!(seen.header("x-set"), Some("1"));
    // Servers that hand headers on as variables would take them for ours.
    let names = || seen.head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    assert!(!names().any(|name| name.contains('_')), "{}", seen.head);
    assert_eq!(seen.head.to_lowercase().matches("x-kept:").count(), 2);
}

#[test]
fn addresses_are_allowed_and_denied_by_what_is_known_of_them() {
    let origin = Origin::start("a");
    let routes = "
- { id: denied, match: { path: '/v1/denied/{*rest}' }, upstream: demo, policies: { access: { deny: [127.0.0.0/8] } } }
- { id: other, match: { path: '/v1/other/{*rest}' }, upstream: demo, policies: { access: { allow: [192.0.2.0/24, '2001:db8::/32'], deny: [192.0.2.7/32] } } }
- { id: open, match: { path: '/v1/{*rest}' }, upstream: demo }";
    let yaml = tenants(&demo(&[origin.address], ""), "", routes);
    let stranger = Gateway::start(&yaml);
    assert_eq!(stranger.get("acme.test", "/v1/denied/echo", "").status, 403);
    for claim in ["192.0.2.1", "127.0.0.1, 192.0.2.1"] {
        let answer = stranger.get("acme.test", "/v1/other/echo", &format!("X-Forwarded-For: {claim}\r\n"));
        assert_eq!(answer.status, 403, "anybody can write a header: {claim}");
        let answer = stranger.get("acme.test", "/v1/denied/echo", &format!("X-Forwarded-For: {claim}\r\n"));
        assert_eq!(answer.status, 403, "{claim}");
    }
    let open = stranger.get(
        "acme.test",
        "/v1/echo",
        "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=x\r\nX-Real-IP: 9.9.9.9\r\n",
    );
    assert_eq!(open.echoed("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(open.echoed("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!((open.echoed("forwarded"), open.echoed("x-real-ip")), (None, None));

    let behind = Gateway::start_with(&yaml, "forwarding: { trusted_proxies: [127.0.0.0/8, 10.0.0.0/8] }\n");
    for (claim, status) in [
        ("192.0.2.1", 200),
        ("192.0.2.1:4711", 200),
        ("2001:db8::1", 200),
        ("[2001:db8::1]:443", 200),
        ("192.0.2.7", 403),
        ("::ffff:192.0.2.7", 403),
        ("198.51.100.1", 403),
        // Only what a trusted proxy has seen itself counts: the last that is not one of ours.
        ("192.0.2.1, 198.51.100.1", 403),
        ("198.51.100.1, 192.0.2.1", 200),
        ("198.51.100.1, 192.0.2.1, 10.1.1.1", 200),
        ("unknown", 403),
    ] {
        let answer = behind.get("acme.test", "/v1/other/echo", &format!("X-Forwarded-For: {claim}\r\n"));
        assert_eq!(answer.status, status, "{claim}");
    }
    let list = behind.get("acme.test", "/v1/echo", "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n");
    assert_eq!(list.echoed("x-forwarded-for").as_deref(), Some("192.0.2.1, 127.0.0.1"));
    assert_eq!(list.echoed("x-forwarded-proto").as_deref(), Some("https"));
    // A proxy may write what it adds into a line of its own, behind what a stranger wrote.
    let lines = "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: \r\nX-Forwarded-For: 192.0.2.1, 10.1.1.1\r\n";
    let list = behind.get("acme.test", "/v1/other/echo", lines);
    assert_eq!(list.status, 200);
    assert_eq!(list.echoed("x-forwarded-for").as_deref(), Some("198.51.100.1, 192.0.2.1, 10.1.1.1, 127.0.0.1"));
    assert_eq!(list.text().matches("\"x-forwarded-for\"").count(), 1, "{}", list.text());
    assert_eq!(behind.get("acme.test", "/v1/denied/echo", "X-Forwarded-For: 192.0.2.1\r\n").status, 200);
}

#[test]
fn a_request_has_bounds() {
    let origin = Origin::start("a");
    let gateway = with_policies(
        origin.address,
        "request: { methods: [GET, POST], required_headers: [x-must], max_body: 1KiB, max_headers: 512, max_target: 100, websocket: false }",
    );
    let must = "X-Must: 1\r\n";
    assert_eq!(gateway.ask("GET", "/v1/echo", must, "").status, 200);
    let method = gateway.ask("DELETE", "/v1/echo", must, "");
    assert_eq!((method.status, method.header("allow")), (405, Some("GET, POST")));
    let missing = gateway.ask("GET", "/v1/echo", "", "");
    assert_eq!((missing.status, missing.problem().as_str()), (400, "bad-request"));
    let long = gateway.ask("GET", &format!("/v1/echo?{}", "q".repeat(100)), must, "");
    assert_eq!((long.status, long.problem().as_str()), (414, "uri-too-long"));
    let fat = gateway.ask("GET", "/v1/echo", &format!("{must}X-Fat: {}\r\n", "x".repeat(600)), "");
    assert_eq!((fat.status, fat.problem().as_str()), (431, "headers-too-large"));
    let upgrade = gateway.ask(
        "GET",
        "/v1/ws",
        &format!("{must}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        "",
    );
    assert_eq!((upgrade.status, upgrade.problem().as_str()), (403, "forbidden"));
    assert_eq!(gateway.ask("POST", "/v1/echo", must, &"x".repeat(1024)).status, 200);
    let large = gateway.ask("POST", "/v1/echo", must, &"x".repeat(1025));
    assert_eq!((large.status, large.problem().as_str()), (413, "payload-too-large"));
}

fn chunked(fields: &str, pieces: &[&str]) -> String {
    let body: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!("POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n{fields}\r\n{body}0\r\n\r\n")
}

#[test]
fn a_body_of_unknown_length_has_the_same_bound() {
    let origin = Origin::start("a");
    let piece = "x".repeat(512);
    let (fits, too_large) = ([piece.as_str(); 2], [piece.as_str(); 3]);
    for policies in [
        "request: { max_body: 1KiB }",
        // These read the body before the request goes on.
        "request: { max_body: 1KiB }, validation: { body_schema: { inline: { type: string } } }",
        "request: { max_body: 1KiB }, transform: { request_body: '.' }",
    ] {
        let gateway = with_policies(origin.address, policies);
        let json = |pieces: &[&str]| {
            let (first, last) = (format!("\"{}", &pieces[0][1..]), format!("{}\"", &pieces[0][1..]));
            let mut pieces = pieces.to_vec();
            let end = pieces.len() - 1;
            (pieces[0], pieces[end]) = (&first, &last);
            gateway.connect().request(&chunked("Content-Type: application/json\r\n", &pieces))
        };
        assert_eq!(json(&fits).status, 200, "{policies}");
        let refused = json(&too_large);
        assert_eq!((refused.status, refused.problem().as_str()), (413, "payload-too-large"), "{policies}");
        assert_eq!(refused.json()["max-bytes"], 1024, "{policies}: {}", refused.text());
    }
}

pub(crate) fn decoded(answer: &Response) -> Vec<u8> {
    let mut plain = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
        }
        Some("br") => {
            brotli::Decompressor::new(&answer.body[..], 4096).read_to_end(&mut plain).unwrap();
        }
        Some("zstd") => plain = zstd::decode_all(&answer.body[..]).unwrap(),
        None => plain.clone_from(&answer.body),
        other => panic!("{other:?}"),
    }
    plain
}

fn text() -> Vec<u8> {
    "the quick brown fox jumps over the lazy dog. ".repeat(200).into_bytes()
}

#[test]
fn answers_are_compressed_as_the_client_likes_it() {
    let stub =
        Stub::answering("Content-Type: text/plain; charset=utf-8\r\nETag: \"abc\"\r\nAccept-Ranges: bytes\r\n", text());
    let gateway = with_policies(stub.address, "compression: {}");
    let mut client = gateway.connect();
    for (accept, encoding) in [
        ("gzip", Some("gzip")),
        ("br", Some("br")),
        ("zstd", Some("zstd")),
        ("gzip, br, zstd", Some("zstd")),
        ("gzip;q=1.0, br;q=0.5, zstd;q=0.1", Some("gzip")),
        ("GZIP", Some("gzip")),
        ("*", Some("zstd")),
        ("*;q=0.5, zstd;q=0", Some("br")),
        ("gzip;q=0, identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("deflate", None),
        ("", None),
    ] {
        let answer =
            client.request(&format!("GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nAccept-Encoding: {accept}\r\n\r\n"));
        assert_eq!(answer.header("content-encoding"), encoding, "{accept}");
        assert_eq!(decoded(&answer), text(), "{accept}");
        assert!(answer.all("vary").join(",").contains("Accept-Encoding"), "{accept}");
        if encoding.is_some() {
            assert!(answer.body.len() < text().len() / 4);
            assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (Some("W/\"abc\""), None));
        } else {
            assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (Some("\"abc\""), Some("bytes")));
        }
    }
    let mut head = gateway.connect();
    head.send(b"HEAD /v1/x HTTP/1.1\r\nHost: acme.test\r\nAccept-Encoding: gzip\r\n\r\n");
    let answer = head.receive_head();
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    assert_eq!((answer.header("etag"), answer.header("content-length")), (Some("W/\"abc\""), None));
    assert!(answer.all("vary").join(",").contains("Accept-Encoding"));
    // Nothing came after the head: the connection still works.
    assert_eq!(head.request("GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
    // HTTP/1.0 knows no chunks: the connection's end ends the body.
    let old = gateway.raw("GET /v1/x HTTP/1.0\r\nHost: acme.test\r\nAccept-Encoding: gzip\r\n\r\n");
    let end = old.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&old[..end]).to_lowercase();
    assert!(head.contains("content-encoding: gzip") && !head.contains("chunked"), "{head}");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&old[end + 4..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, text());
}

#[test]
fn what_need_not_or_must_not_be_compressed_passes_as_it_is() {
    for (fields, length, why) in [
        ("Content-Type: text/plain\r\nContent-Encoding: gzip\r\n", 4096, "compressed already"),
        ("Content-Type: text/plain\r\n", 100, "small"),
        ("Content-Type: image/png\r\n", 4096, "not worth it"),
        ("Content-Type: text/plain\r\nCache-Control: public, no-transform\r\n", 4096, "forbidden"),
        ("", 4096, "of unknown type"),
    ] {
        let stub = Stub::answering(fields, vec![b'a'; length]);
        let gateway = with_policies(stub.address, "compression: {}");
        let answer = gateway.get("acme.test", "/v1/x", "Accept-Encoding: gzip, br, zstd\r\n");
        assert_eq!(answer.body, vec![b'a'; length], "{why}");
        assert_eq!(answer.header("content-length"), Some(length.to_string().as_str()), "{why}");
    }
    let part = Stub::start(|_| {
        b"HTTP/1.1 206 Partial Content\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-4/9000\r\nContent-Length: 5\r\n\r\nhello".to_vec()
    });
    let gateway = with_policies(part.address, "compression: { min_length: 1 }");
    let answer = gateway.get("acme.test", "/v1/x", "Range: bytes=0-4\r\nAccept-Encoding: gzip\r\n");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("content-encoding")), (206, "hello", None));
}

#[test]
fn events_arrive_when_they_happen() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "compression: { min_length: 1 }, timeouts: { idle: 1s }");
    let mut client = gateway.connect();
    // The second event comes only after ten minutes: whoever waits for more than the first sees nothing.
    client.send(
        b"GET /v1/stream?count=2&interval_ms=600000 HTTP/1.1\r\nHost: acme.test\r\nAccept-Encoding: gzip\r\n\r\n",
    );
    let mut seen = String::new();
    while !seen.contains("\"number\":0") {
        let mut line = String::new();
        assert!(client.stream.read_line(&mut line).unwrap() > 0, "{seen}");
        seen.push_str(&line);
    }
    assert!(!seen.to_lowercase().contains("content-encoding"), "{seen}");
}

#[test]
fn a_stream_of_text_is_compressed_piece_by_piece() {
    let stub = Stub::start(|_| {
        // One chunk, and then silence: what has come must reach the client all the same.
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n".to_vec()
    });
    let gateway = with_policies(stub.address, "compression: { min_length: 1 }");
    let mut client = gateway.connect();
    client.send(b"GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = client.receive_head();
    assert_eq!(head.header("content-encoding"), Some("gzip"));
    let mut unchunked = Dechunked(&mut client, 0);
    let mut plain = flate2::read::GzDecoder::new(&mut unchunked);
    let mut hello = [0; 6];
    plain.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello\n");
}

/// The content of chunks as they come.
struct Dechunked<'a>(&'a mut Client, usize);

impl Read for Dechunked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1 == 0 {
            let mut line = String::new();
            self.0.stream.read_line(&mut line)?;
            if line == "\r\n" {
                line.clear();
                self.0.stream.read_line(&mut line)?;
            }
            self.1 = usize::from_str_radix(line.trim(), 16).unwrap();
        }
        let room = buffer.len().min(self.1);
        let read = self.0.stream.read(&mut buffer[..room])?;
        self.1 -= read;
        Ok(read)
    }
}

#[test]
fn the_gateways_own_problems_do_not_reach_into_the_next_answer() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open("request: { max_body: 10 }")));
    let mut client = gateway.connect();
    for _ in 0..3 {
        let refused = client
            .request("POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 20\r\n\r\n01234567890123456789");
        assert_eq!(refused.status, 413);
        assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
    }
}
