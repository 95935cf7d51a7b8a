//! Heads and framings that two parsers could understand differently: refused, closed, counted, and what
//! was hidden behind them is neither answered nor seen by the upstream.

use std::io::Read;

use crate::{
    fixtures::{comes_true, demo, open, tenants, with_policies},
    support::{Client, Gateway, Origin, wait_for},
};

const SMUGGLED: &str = "GET /v1/smuggled/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

fn gateway(origin: &Origin) -> Gateway {
    let node = "protection: { max_head: 2KiB, max_header_fields: 10 }\n";
    Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open("")), node)
}

/// One answer with this status, and then the end of the connection.
fn assert_refused(gateway: &Gateway, request: &str, status: u16) {
    let mut client = gateway.connect();
    client.send(request.as_bytes());
    client.send_what_fits(SMUGGLED.as_bytes());
    let answer = client.receive().unwrap_or_else(|| panic!("no answer to {request:?}"));
    assert_eq!(answer.status, status, "{request:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{request:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
    assert!(answer.header("x-request-id").is_some(), "{request:?}");
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{request:?} is followed by {}", String::from_utf8_lossy(&rest));
}

#[test]
fn heads_that_could_be_read_in_two_ways_are_refused_and_counted() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let get = |fields: &str| format!("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n");
    let post = |fields: &str| format!("POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\nhello");
    let cases = [
        (get("Host: acme.test\r\n"), 400, "host"),
        (get("Host: globex.test\r\n"), 400, "host"),
        ("GET /v1/echo HTTP/1.1\r\n\r\n".into(), 400, "host"),
        ("GET /v1/echo HTTP/1.1\r\nHost:\r\n\r\n".into(), 400, "host"),
        ("GET /v1/echo HTTP/1.1\r\nHost: acme.test/evil\r\n\r\n".into(), 400, "host"),
        ("GET /v1/echo HTTP/1.1\r\nHost: user@acme.test\r\n\r\n".into(), 400, "host"),
        ("GET /v1/echo HTTP/1.1\r\nHost: acme.test, globex.test\r\n\r\n".into(), 400, "host"),
        ("GET /v1/echo#/../x HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), 400, "target"),
        ("GET /v1/<echo> HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), 400, "target"),
        ("GET /v1/`echo` HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), 400, "target"),
        ("GET /v1/echo?a=\"b\" HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), 400, "target"),
        ("GET http://acme.test?<b> HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), 400, "target"),
        (get(": empty\r\n"), 400, "field_name"),
        (get("no colon\r\n"), 400, "field_name"),
        (get("a\0b: c\r\n"), 400, "field_name"),
        (get("a: b\0c\r\n"), 400, "field_value"),
        (get("a: b\x01c\r\n"), 400, "field_value"),
        (get("a: b\x7f\r\n"), 400, "field_value"),
        (get("a: b\x0bc\r\n"), 400, "field_value"),
        (post("Content-Length: +5\r\n"), 400, "content_length"),
        (post("Content-Length: 5, 5\r\n"), 400, "content_length"),
        (post("Content-Length: 0x5\r\n"), 400, "content_length"),
        (post("Content-Length: 5 5\r\n"), 400, "content_length"),
        (post("Content-Length:\r\n"), 400, "content_length"),
        (post("Content-Length: 99999999999999999999\r\n"), 400, "content_length"),
        (post("Transfer-Encoding: identity\r\n"), 501, "transfer_coding"),
        (post("Transfer-Encoding: chunked, chunked\r\n"), 501, "transfer_coding"),
        (post("Transfer-Encoding: xchunked\r\n"), 501, "transfer_coding"),
        (post("Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer_coding"),
        (post("Transfer-Encoding: \"chunked\"\r\n"), 501, "transfer_coding"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400, "transfer_encoding"),
        (
            "POST /v1/echo HTTP/1.0\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
            "transfer_encoding",
        ),
        (get(&format!("a: {}\r\n", "x".repeat(3000))), 431, "too_large"),
        (get(&"a: b\r\n".repeat(11)), 431, "too_many_fields"),
        (format!("GET /v1/{} HTTP/1.1\r\nHost: acme.test\r\n\r\n", "x".repeat(3000)), 414, "target_too_long"),
        (post("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n"), 400, "upgrade_with_body"),
    ];
    let mut counted = std::collections::BTreeMap::new();
    for (request, status, reason) in &cases {
        assert_refused(&gateway, request, *status);
        *counted.entry(*reason).or_insert(0_u32) += 1;
    }
    for (reason, times) in counted {
        let series = format!("seiketsu_early_errors_total{{reason=\"{reason}\"}}");
        assert!((gateway.metric(&series) - f64::from(times)).abs() < 0.5, "{series}: {}", gateway.metrics());
    }
    assert_eq!((origin.requests("/v1/echo"), origin.requests("/v1/smuggled/echo")), (0, 0));
}

#[test]
fn a_head_in_single_bytes_is_judged_as_in_one_piece() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    client.stream.get_ref().set_nodelay(true).unwrap();
    for byte in b"GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n" {
        client.send(&[*byte]);
    }
    assert_eq!(client.receive().unwrap().status, 200);
    for byte in b"GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nHost: acme.test\r\n" {
        client.send_what_fits(&[*byte]);
    }
    assert_eq!(client.receive().unwrap().status, 400);
    assert!(client.is_closed());
}

#[test]
fn chunks_that_could_be_measured_in_two_ways_are_refused() {
    let origin = Origin::start("a");
    let schema = "validation: { body_schema: { inline: { type: string } } }";
    for policies in ["", schema] {
        let gateway = with_policies(origin.address, policies);
        for chunks in [
            "xyz\r\nhello\r\n0\r\n\r\n".to_owned(),
            "+5\r\nhello\r\n0\r\n\r\n".into(),
            "0x5\r\nhello\r\n0\r\n\r\n".into(),
            " 5\r\nhello\r\n0\r\n\r\n".into(),
            "5 \r\nhello\r\n0\r\n\r\n".into(),
            "5\nhello\r\n0\r\n\r\n".into(),
            "5\r\nhello0\r\n\r\n".into(),
            "5\r\nhello\n0\r\n\r\n".into(),
            "10000000000000005\r\nhello\r\n0\r\n\r\n".into(),
            "-1\r\nhello\r\n0\r\n\r\n".into(),
            format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(70_000)),
            "5;a\nb\r\nhello\r\n0\r\n\r\n".into(),
            "0\r\nX: \0\r\n\r\n".into(),
        ] {
            let head = "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            assert_refused(&gateway, &format!("{head}{chunks}"), 400);
            // The same when the upstream has the head already.
            let mut client = gateway.connect();
            client.send(format!("{head}1\r\n\"\r\n").as_bytes());
            let seen = || policies == schema || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") > 0.5;
            assert!(comes_true(seen));
            client.send_what_fits(format!("{chunks}{SMUGGLED}").as_bytes());
            let answer = client.receive().unwrap_or_else(|| panic!("no answer to {chunks:?}"));
            assert_eq!(answer.status, 400, "{chunks:?}");
            assert!(client.is_closed(), "{chunks:?}");
        }
    }
    assert_eq!(origin.requests("/v1/smuggled/echo"), 0);
}

#[test]
fn a_body_that_ends_too_early_is_not_a_request() {
    let origin = Origin::start("a");
    let schema = "validation: { body_schema: { inline: { type: string } } }";
    for policies in ["", schema] {
        let gateway = with_policies(origin.address, policies);
        for part in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            let mut client = gateway.connect();
            let head = "POST /v1/upload HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\n";
            client.send(format!("{head}{part}").as_bytes());
            client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
            let answer = client.receive();
            assert!(answer.is_none_or(|answer| answer.status == 400), "{part:?}");
        }
        assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5));
        // Lines keep their order: once this one is there, those before it are.
        gateway.process.signal("-HUP");
        assert!(gateway.logs("HUP"));
        let log = gateway.log();
        assert!(!log.contains("failed in the gateway"), "the client's doing is not the gateway's failure: {log}");
    }
}

#[test]
fn http_1_0_is_answered_and_closed_unless_it_asks_to_be_kept() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut once = gateway.connect();
    let answer = once.request("GET /v1/echo HTTP/1.0\r\nHost: acme.test\r\n\r\n");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(once.is_closed());
    let mut kept = gateway.connect();
    for _ in 0..3 {
        let answer = kept.request("GET /v1/echo HTTP/1.0\r\nHost: acme.test\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
    // A body of unknown length ends with the connection, without chunks, whatever was asked for.
    for fields in ["", "Connection: keep-alive\r\n"] {
        let raw = gateway.raw(&format!("GET /v1/bytes/1000?chunked=true HTTP/1.0\r\nHost: acme.test\r\n{fields}\r\n"));
        let raw = String::from_utf8(raw).unwrap();
        let (head, body) = raw.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(!head.contains("transfer-encoding") && head.contains("connection: close"), "{head}");
        assert_eq!(body.len(), 1000);
    }
    // Without a host there is nobody to ask.
    assert_eq!(gateway.connect().request("GET /v1/echo HTTP/1.0\r\n\r\n").status, 400);
}

#[test]
fn the_last_answer_of_a_connection_says_that_it_closes() {
    let origin = Origin::start("a");
    let tenants = tenants(&demo(&[origin.address], ""), "", &open(""));
    let gateway = Gateway::start_with(&tenants, "protection: { keepalive_requests: 3 }\n");
    let mut client = gateway.connect();
    for expected in ["keep-alive", "keep-alive", "close"] {
        let answer = client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        assert_eq!((answer.status, answer.header("connection")), (200, Some(expected)));
    }
    assert!(client.is_closed());
}

#[test]
fn answers_without_a_body_leave_the_connection_in_step() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    let ask = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    for _ in 0..3 {
        client.send(ask("HEAD", "/v1/bytes/1000").as_bytes());
        let head = client.receive_head();
        assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
        client.send(ask("HEAD", "/nothing").as_bytes());
        let refused = client.receive_head();
        assert_eq!(refused.status, 404);
        assert!(refused.header("content-length").is_some());
        for status in [204, 304] {
            client.send(ask("GET", &format!("/v1/status/{status}")).as_bytes());
            let answer = client.receive_head();
            assert_eq!(answer.status, status);
            assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (None, None));
        }
        let options = client.request(&ask("OPTIONS", "/v1/echo"));
        assert_eq!((options.status, options.json()["method"].as_str()), (200, Some("OPTIONS")));
        assert_eq!(client.request(&ask("OPTIONS", "*")).status, 404);
    }
}

#[test]
fn a_go_ahead_comes_from_the_upstream_and_once() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    for _ in 0..3 {
        client.send(b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(client.receive_head().status, 100);
        client.send(b"hello");
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
    }
}

#[test]
fn a_body_that_is_read_first_gets_its_go_ahead_from_the_gateway() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "validation: { body_schema: { inline: { type: string } } }");
    let mut client = gateway.connect();
    for (body, status) in [("\"ok\"", 200), ("1234", 400), ("\"ok\"", 200)] {
        client.send(
            b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\n\
              Content-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(client.receive_head().status, 100);
        client.send(body.as_bytes());
        assert_eq!(client.receive().expect(body).status, status);
    }
    assert_eq!(origin.requests("/v1/echo"), 2);
}

#[test]
fn whoever_waits_for_a_go_ahead_and_is_refused_cannot_be_misread() {
    let origin = Origin::start("a");
    let policies = "request: { max_body: 1KiB }, auth: { accept: [api_key] }";
    let routes = format!(
        "{}- {{ id: large, match: {{ path: /v1/upload }}, upstream: demo, policies: {{ request: {{ max_body: 1KiB }} }} }}\n",
        open(policies)
    );
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &routes));
    for (target, length, status) in [("/v1/echo", 5, 401), ("/v1/upload", 100_000, 413), ("/v1/upload", 2000, 413)] {
        let mut client = gateway.connect();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: acme.test\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        );
        let answer = client.request(&request);
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{target}");
        // What comes now may be the body or another request: it is neither.
        client.send_what_fits(SMUGGLED.as_bytes());
        assert!(client.is_closed());
    }
    assert_eq!((origin.requests("/v1/smuggled/echo"), origin.requests("/v1/upload")), (0, 0));
    let strange = gateway.ask("GET", "/v1/echo", "Expect: a-pony\r\n", "");
    assert_eq!(strange.status, 417);
}

#[test]
fn a_chunked_upload_with_trailers_ends_where_it_ends() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let chunked = "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                   5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n";
    let plain = "GET /v1/echo?next HTTP/1.1\r\nHost: acme.test\r\n\r\n";
    // At once, in single bytes, and with the next request arriving while this one is under way.
    for size in [usize::MAX, 1, 7] {
        let mut client = gateway.connect();
        client.stream.get_ref().set_nodelay(true).unwrap();
        let both = [chunked, plain, chunked, plain].concat();
        for piece in both.as_bytes().chunks(size.min(both.len())) {
            client.send(piece);
        }
        for _ in 0..2 {
            let answer = client.receive().expect("an answer");
            assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello world")));
            let next = client.receive().expect("an answer to what came behind the chunks");
            assert_eq!((next.status, next.json()["query"].as_str()), (200, Some("next")));
        }
    }
}

#[test]
fn a_request_behind_a_chunked_one_waits_for_its_turn() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    client.send(b"POST /v1/delay/300 HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert!(comes_true(|| origin.requests("/v1/delay/300") == 1));
    client.send(b"GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!(client.receive().expect("the first answer").json()["delayed_ms"], 300);
    assert_eq!(client.receive().expect("the second answer").status, 200);
}

#[test]
fn a_pipeline_goes_on_over_refusals() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    let request = |target: &str| format!("POST {target} HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello");
    let targets = [("/v1/echo", 200), ("/nothing", 404), ("/v1/status/503", 503), ("/v1/%zz", 400), ("/v1/echo", 200)];
    let pipeline: String = (0..5).flat_map(|_| targets.map(|(target, _)| request(target))).collect();
    client.send(pipeline.as_bytes());
    for _ in 0..5 {
        for (target, status) in targets {
            assert_eq!(client.receive().expect(target).status, status, "{target}");
        }
    }
    assert_eq!(origin.requests("/v1/echo"), 10);
}

impl Client {
    /// Sends to somebody who may have closed already.
    pub fn send_what_fits(&mut self, bytes: &[u8]) {
        let _ = std::io::Write::write_all(self.stream.get_mut(), bytes);
    }
}

#[test]
fn what_is_refused_before_it_is_a_request_stands_in_the_access_log() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin);
    let long = "x".repeat(3000);
    for (request, reason) in [
        ("GET /v1/echo HTTP/1.1\nHost: acme.test\n\n".to_owned(), "line_ending"),
        (format!("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\na: {long}\r\n\r\n"), "too_large"),
        ("CONNECT acme.test:443 HTTP/1.1\r\nHost: acme.test\r\n\r\n".into(), ""),
    ] {
        let answer = gateway.connect().request(&request);
        let instance = answer.json()["instance"].as_str().unwrap().to_owned();
        let line = wait_for(&|| {
            let log = gateway.access_log();
            log.lines().find(|line| line.contains(&instance)).map(str::to_owned)
        });
        let line: serde_json::Value = serde_json::from_str(&line.expect("a line")).unwrap();
        assert_eq!((line["client"].as_str(), line["status"].as_u64()), (Some("127.0.0.1"), Some(answer.status.into())));
        let told = line["early_error"].as_str().unwrap();
        assert!(told == reason || reason.is_empty(), "{line}");
    }
}

#[test]
fn a_preface_and_a_silence_have_one_deadline() {
    let origin = Origin::start("a");
    let tenants = tenants(&demo(&[origin.address], ""), "", &open(""));
    let gateway = Gateway::start_with(&tenants, "protection: { head_timeout: 1s, keepalive: 2s }\n");
    // Silent from the start: closed after `keepalive`, and not after twice as long.
    let began = std::time::Instant::now();
    assert!(gateway.connect().is_closed());
    assert!(began.elapsed() < std::time::Duration::from_millis(3500), "{:?}", began.elapsed());
    // A byte now and then moves nothing.
    let mut slow = gateway.connect();
    let mut rest = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter();
    let began = std::time::Instant::now();
    let answer = loop {
        if let Some(byte) = rest.next() {
            slow.send_what_fits(&[*byte]);
        }
        let patience = std::time::Duration::from_millis(300);
        slow.stream.get_ref().set_read_timeout(Some(patience)).unwrap();
        if let Some(answer) = slow.receive() {
            break answer;
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(4), "still open");
    };
    assert_eq!(answer.status, 408);
}
