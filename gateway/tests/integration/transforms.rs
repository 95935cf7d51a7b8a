//! Requests and answers that are translated on the way.

use std::time::Instant;

use serde_json::json;

use crate::{
    fixtures::{Stub, comes_true, demo, ok, open, tenants, with_policies},
    support::{Gateway, Origin, Response},
};

#[test]
fn paths_are_stripped_extended_and_replaced() {
    let origin = Origin::start("a");
    let routes = "
- { id: strip, match: { path: '/api/{*rest}' }, upstream: demo, policies: { transform: { path: { strip_prefix: /api } } } }
- { id: extend, match: { path: '/echo' }, upstream: demo, policies: { transform: { path: { add_prefix: /v1 } } } }
- { id: replace, match: { path: '/users/{id}/calls/{*rest}' }, upstream: demo, policies: { transform: { path: { replace: '/v1/{rest}/of/{id}/echo' } } } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", routes));
    for (sent, received) in [
        ("/api/v1/echo?a=%2F", "/v1/echo"),
        ("/api/v1/x/../echo", "/v1/echo"),
        ("/echo", "/v1/echo"),
        ("/users/7/calls/a/b", "/v1/a/b/of/7/echo"),
        ("/users/a%20b/calls/c", "/v1/c/of/a%20b/echo"),
    ] {
        let answer = gateway.get("acme.test", sent, "");
        assert_eq!(answer.status, 200, "{sent}: {answer:?}");
        assert_eq!(answer.json()["path"], received, "{sent}");
    }
    assert_eq!(gateway.get("acme.test", "/api/v1/echo?a=%2F", "").json()["query"], "a=%2F");
}

#[test]
fn query_parameters_are_renamed_removed_set_and_added() {
    let origin = Origin::start("a");
    let gateway = with_policies(
        origin.address,
        "transform: { query: { rename: { lang: locale }, remove: [debug], set: { source: 'a&b' }, add: { limit: '50' } } }",
    );
    for (sent, received) in [
        ("/v1/echo?lang=de&x=%41&debug=1&x=2", "locale=de&x=%41&x=2&source=a%26b&limit=50"),
        ("/v1/echo?source=client&limit=1", "source=a%26b&limit=1&limit=50"),
        ("/v1/echo", "source=a%26b&limit=50"),
        ("/v1/echo?d%65bug=1&debugger=1", "debugger=1&source=a%26b&limit=50"),
    ] {
        assert_eq!(gateway.get("acme.test", sent, "").json()["query"], received, "{sent}");
    }
}

#[test]
fn a_jq_program_translates_the_request() {
    let origin = Origin::start("a");
    let gateway =
        with_policies(origin.address, "transform: { request_body: '{ name: .n, length: (.items | length) }' }");
    let expected = json!({ "name": "x", "length": 2 });
    let translated = |answer: Response| -> serde_json::Value {
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = answer.json();
        assert_eq!(answer.echoed("content-length"), Some(seen["length"].to_string()));
        serde_json::from_str(seen["body"].as_str().unwrap()).unwrap()
    };
    let body = r#"{"n":"x","items":[1,2]}"#;
    assert_eq!(translated(gateway.post_json("/v1/echo", body)), expected);
    let chunks = format!(
        "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/vnd.x+json\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &body[..5],
        body.len() - 5,
        &body[5..],
    );
    let mut client = gateway.connect();
    assert_eq!(translated(client.request(&chunks)), expected);
    assert_eq!(translated(client.request(&chunks)), expected, "the connection stays in step");
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[test]
fn what_passes_for_json_where_bodies_are_validated_does_where_they_are_translated() {
    let origin = Origin::start("a");
    let gateway = with_policies(
        origin.address,
        "validation: { body_schema: { inline: { type: object } } }, transform: { request_body: '{ name: .n }' }",
    );
    for kind in ["application/json", "text/json", "Text/JSON; charset=utf-8", "application/vnd.x+json"] {
        let answer = gateway.ask("POST", "/v1/echo", &format!("Content-Type: {kind}\r\n"), r#"{"n":"x"}"#);
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(r#"{"name":"x"}"#)), "{kind}");
    }
}

#[test]
fn a_body_cannot_get_past_its_translation_under_another_name() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "transform: { request_body: '{ name: .n }' }");
    let body = r#"{"n":"x","admin":true}"#;
    for fields in [
        "Content-Type: text/plain\r\n",
        "Content-Type: text/jsonx\r\n",
        "Content-Type: application/json, text/plain\r\n",
        "Content-Type: application/jsonx\r\n",
        "Content-Type: application/json; charset=utf-7\r\n",
        "Content-Type: application/json; a=b, text/plain\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "",
    ] {
        let refused = gateway.ask("POST", "/v1/echo", fields, body);
        assert_eq!((refused.status, refused.problem().as_str()), (415, "unsupported-media-type"), "{fields}");
        let chunked = format!("{fields}Transfer-Encoding: chunked\r\n");
        let refused = gateway.connect().request(&format!(
            "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\n{chunked}\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ));
        assert_eq!(refused.status, 415, "{fields}");
    }
    let twice = "Content-Type: text/plain\r\nContent-Type: application/json\r\n";
    let refused = gateway.ask("POST", "/v1/echo", twice, body);
    assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-request"));
    assert_eq!(origin.requests("/v1/echo"), 0);
    let told = "Content-Type: application/json\r\nConnection: content-type\r\ncontent_type: text/plain\r\n";
    let answer = gateway.ask("POST", "/v1/echo", told, body);
    assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(r#"{"name":"x"}"#)));
    let types = (answer.echoed("content-type"), answer.echoed("content_type"));
    assert_eq!(types, (Some("application/json".to_owned()), None));
    // Where there is no body there is nothing to translate.
    for (method, fields) in
        [("GET", ""), ("DELETE", ""), ("POST", "Content-Length: 0\r\n"), ("GET", "Content-Type: text/plain\r\n")]
    {
        assert_eq!(gateway.ask(method, "/v1/echo", fields, "").status, 200, "{method} {fields}");
    }
}

#[test]
fn a_path_that_would_lead_out_of_its_new_place_is_a_400() {
    let origin = Origin::start("a");
    let routes = "- { id: in, match: { path: '/users/{id}' }, upstream: demo, policies: { transform: { path: { replace: '/v1/in/{id}/echo' } } } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", routes));
    for id in ["%252e%252e", "%25252e%25252e", "x%253b%252f..", "..%252f"] {
        let refused = gateway.get("acme.test", &format!("/users/{id}"), "");
        assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-request"), "{id}");
    }
    assert!(!gateway.log().contains("ERROR"), "{}", gateway.log());
    assert_eq!(gateway.get("acme.test", "/users/7", "").json()["path"], "/v1/in/7/echo");
}

#[test]
fn a_request_that_cannot_be_translated_is_a_400_and_reaches_nobody() {
    let origin = Origin::start("a");
    for (program, body, status) in [
        (".a.b", "[1]", 400),
        ("error(\"secret reason\")", "{}", 400),
        (".", "{\"a\":", 400),
        ("empty", "{}", 400),
        ("1, 2", "{}", 400),
        ("def f: f; f", "{}", 400),
        ("[range(1e9)]", "{}", 400),
        ("\"a\" * 1e10", "{}", 400),
        ("def f: 1 + f; f", "{}", 400),
        ("reduce range(60) as $i ([1]; . + .)", "{}", 400),
    ] {
        let gateway = with_policies(origin.address, &format!("transform: {{ request_body: '{program}' }}"));
        let began = Instant::now();
        let answer = gateway.post_json("/v1/echo", body);
        assert_eq!((answer.status, answer.problem().as_str()), (status, "validation-failed"), "{program}");
        assert!(!answer.text().contains("secret"), "{program}");
        assert!(began.elapsed().as_secs() < 10, "{program}");
        // Nobody else notices.
        assert_eq!(gateway.post_json("/v1/status/204", "").status, 204, "{program}");
    }
    assert_eq!(origin.requests("/v1/echo"), 0);
}

#[test]
fn a_body_that_is_too_large_to_be_translated_is_a_413() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "transform: { request_body: '.' }");
    let large = format!("\"{}\"", "x".repeat(70 << 10));
    let announced = gateway.post_json("/v1/echo", &large);
    assert_eq!((announced.status, announced.problem().as_str()), (413, "payload-too-large"));
    let chunked = gateway.connect().request(&format!(
        "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    ));
    assert_eq!((chunked.status, chunked.problem().as_str()), (413, "payload-too-large"));
    assert_eq!(origin.requests("/v1/echo"), 0);
}

#[test]
fn a_jq_program_translates_the_answer() {
    let stub = Stub::answering(
        "Content-Type: application/json\r\nETag: \"1\"\r\n",
        r#"{"CUST_NO":7,"CUST_NM":"x","SECRET":"s"}"#,
    );
    let gateway = with_policies(stub.address, "transform: { response_body: '{ id: .CUST_NO, name: .CUST_NM }' }");
    let mut client = gateway.connect();
    for _ in 0..3 {
        let answer = client.request("GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"id":7,"name":"x"}"#));
        assert_eq!(answer.header("etag"), None, "it named other bytes");
    }
    // The answer to HEAD has the fields of the answer to GET, and must not tell another length.
    let head = gateway.ask("HEAD", "/v1/x", "", "");
    assert_eq!((head.status, head.header("content-length"), head.header("etag")), (200, None, None));

    let compressed =
        with_policies(stub.address, "compression: { min_length: 1 }, transform: { response_body: '{ id: .CUST_NO }' }");
    let answer = compressed.get("acme.test", "/v1/x", "Accept-Encoding: gzip\r\n");
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut plain).unwrap();
    assert_eq!(plain, r#"{"id":7}"#);

    let text = Stub::answering("Content-Type: text/plain\r\n", "as it is");
    let gateway = with_policies(text.address, "transform: { response_body: '{ id: 1 }' }");
    assert_eq!(gateway.get("acme.test", "/v1/x", "").text(), "as it is");
}

fn packed(plain: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_client_does_not_decide_whether_an_answer_is_translated() {
    const JSON: &str = r#"{"id":7,"secret":"s"}"#;
    // Does whatever the client would like.
    let stub = Stub::start(|seen| {
        if seen.header("accept-encoding").is_some_and(|accepted| accepted.contains("gzip")) {
            ok("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", &packed(JSON))
        } else if seen.header("range").is_some() {
            let part = "Content-Type: application/json\r\nContent-Range: bytes 0-6/21\r\nContent-Length: 7\r\n";
            format!("HTTP/1.1 206 Partial Content\r\n{part}\r\n{}", &JSON[..7]).into_bytes()
        } else {
            ok("Content-Type: application/json\r\nContent-Encoding: identity\r\n", JSON.as_bytes())
        }
    });
    for policies in ["", "cache: { ttl: 1h }, "] {
        let gateway =
            with_policies(stub.address, &format!("{policies}transform: {{ response_body: '{{ id: .id }}' }}"));
        for (i, fields) in [
            "Accept-Encoding: gzip\r\n",
            "Accept-Encoding: br\r\nAccept-Encoding: x, gzip\r\n",
            "Range: bytes=0-6\r\n",
            "Range: bytes=0-6\r\nIf-Range: \"a\"\r\n",
            "",
        ]
        .into_iter()
        .enumerate()
        {
            for path in [format!("/v1/{i}"), "/v1/same".to_owned()] {
                let answer = gateway.get("acme.test", &path, fields);
                assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"id":7}"#), "{policies}{fields}");
                assert_eq!((answer.header("content-encoding"), answer.header("content-range")), (None, None));
            }
        }
    }
    for seen in stub.seen() {
        assert_eq!(seen.head.to_lowercase().matches("accept-encoding: identity").count(), 1, "{}", seen.head);
        assert_eq!((seen.header("range"), seen.header("if-range")), (None, None));
    }
}

#[test]
fn an_answer_that_comes_encoded_or_in_part_unasked_is_a_502() {
    let packed_json = packed(r#"{"secret":"s"}"#);
    let of = |status: &str, fields: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let part = b"{\"secret\"";
    for answer in [
        of("200 OK", "Content-Encoding: gzip\r\n", &packed_json),
        of("200 OK", "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", &packed_json),
        of("404 Not Found", "Content-Encoding: gzip\r\n", &packed_json),
        of("206 Partial Content", "Content-Range: bytes 0-8/14\r\n", part),
    ] {
        let stub = Stub::start(move |_| answer.clone());
        for policies in ["", "cache: { ttl: 1h }, "] {
            let gateway =
                with_policies(stub.address, &format!("{policies}transform: {{ response_body: '{{ id: .id }}' }}"));
            for _ in 0..2 {
                let answer = gateway.get("acme.test", "/v1/x", "Accept-Encoding: gzip\r\nRange: bytes=0-8\r\n");
                assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-error"), "{answer:?}");
            }
            assert_eq!(gateway.ask("HEAD", "/v1/x", "", "").status, 502);
        }
    }
    // What has no body has nothing to be translated.
    let unchanged = Stub::start(|_| {
        b"HTTP/1.1 304 Not Modified\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n".to_vec()
    });
    let gateway = with_policies(unchanged.address, "transform: { response_body: '{ id: .id }' }");
    assert_eq!(gateway.get("acme.test", "/v1/x", "If-None-Match: \"a\"\r\n").status, 304);
}

#[test]
fn what_was_stored_before_a_route_had_a_translation_is_not_served_as_it_is() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let stub = Stub::start(move |_| {
        let fields = "Content-Type: application/json\r\nCache-Control: max-age=3600\r\n";
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            ok(&format!("{fields}Content-Encoding: gzip\r\n"), &packed(r#"{"id":7,"secret":"s"}"#))
        } else {
            ok(fields, br#"{"id":7,"secret":"s"}"#)
        }
    });
    let yaml =
        |policies: &str| tenants(&demo(&[stub.address], ""), "", &open(&format!("cache: {{ ttl: 1h }}{policies}")));
    let gateway = Gateway::start(&yaml(""));
    assert_eq!(gateway.get("acme.test", "/v1/x", "").header("content-encoding"), Some("gzip"));
    let with = yaml(", transform: { response_body: '{ id: .id }' }, headers: { response: { set: { x-new: '1' } } }");
    gateway.write_tenants(&with.replace("revision: 1", "revision: 2"));
    assert!(comes_true(|| gateway.get("acme.test", "/v1/y", "").header("x-new").is_some()));
    for _ in 0..2 {
        let answer = gateway.get("acme.test", "/v1/x", "");
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"id":7}"#));
    }
}

#[test]
fn an_answer_that_cannot_be_translated_is_never_taken_for_a_whole_one() {
    for (program, body) in [
        (".a.b", "[\"secret\"]".to_owned()),
        (".", "{\"secret\":".to_owned()),
        ("def f: f; f", "\"secret\"".to_owned()),
        ("[range(1e9)]", "\"secret\"".to_owned()),
        ("empty", "\"secret\"".to_owned()),
        (".", format!("\"secret{}\"", "x".repeat(2 << 20))),
    ] {
        let stub = Stub::answering("Content-Type: application/json\r\n", body);
        let gateway = with_policies(stub.address, &format!("transform: {{ response_body: '{program}' }}"));
        let request = "GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nConnection: close\r\n\r\n";
        let answer = String::from_utf8_lossy(&gateway.raw(request)).into_owned();
        let is_problem = answer.starts_with("HTTP/1.1 502 ") && answer.contains("urn:seiketsu:problem:upstream-error");
        let broken_off =
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("chunked") && !answer.contains("\r\n0\r\n");
        assert!(is_problem || broken_off, "{program}: {answer}");
        assert!(!answer.contains("secret"), "{program}: {answer}");
        let log = gateway.access_log();
        assert!(!log.contains("secret"), "{log}");
    }
}

#[test]
fn a_route_has_transforms_of_its_own_and_the_tenants_otherwise() {
    let origin = Origin::start("a");
    let tenant = "policies: { transform: { query: { set: { from: tenant } } } }\n";
    let routes = "- { id: own, match: { path: '/v1/own/echo' }, upstream: demo, policies: { transform: { query: { set: { from: route } } } } }\n".to_owned() + &open("");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), tenant, &routes));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").json()["query"], "from=tenant");
    assert_eq!(gateway.get("acme.test", "/v1/own/echo", "").json()["query"], "from=route");
}
