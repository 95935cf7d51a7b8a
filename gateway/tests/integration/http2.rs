//! HTTP/2: what passes, and what is refused before it reaches anybody.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue};
use serde_json::json;

use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, open, tenants, upstream},
    support::{
        Gateway, KEY, Origin, PATIENCE,
        frames::{
            self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, Frames, GOAWAY, HEADERS, PING, PREFACE,
            RST_STREAM, SETTINGS, WINDOW_UPDATE,
        },
        http2::{Http2, next, patiently, receive, send_all},
        two_tenants,
    },
};

fn gateway(origin: &Origin, upstream: &str, node: &str) -> Gateway {
    Gateway::start_with(&tenants(&demo(&[origin.address], upstream), "", &open("")), node)
}

async fn both(gateway: &Gateway) -> [Http2; 2] {
    [Http2::plain(gateway).await, Http2::tls(gateway, "acme.test").await]
}

fn in_flight(gateway: &Gateway) -> u64 {
    let metrics = gateway.metrics();
    let line = metrics.lines().find(|line| line.contains("in_flight{") && line.contains("acme"));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |count| count as u64)
}

fn get(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "acme.test")]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_passes_with_and_without_tls() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    for (client, scheme) in both(&gateway).await.into_iter().zip(["http", "https"]) {
        let answer = client.get("acme.test", "/v1/echo?a=1").await;
        assert_eq!(answer.status, 200);
        let seen = answer.json();
        assert_eq!((seen["method"].as_str(), seen["query"].as_str()), (Some("GET"), Some("a=1")));
        assert_eq!(answer.plain().echoed("host").as_deref(), Some("acme.test"));
        assert_eq!(answer.plain().echoed("x-forwarded-proto").as_deref(), Some(scheme));
        assert_eq!(answer.plain().echoed("x-forwarded-host").as_deref(), Some("acme.test"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("x-request-id").is_some());
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = client.send(client.request(method, "acme.test", "/v1/echo"), b"hello").await.unwrap();
            assert_eq!(answer.json()["method"].as_str(), Some(method));
            assert_eq!(answer.json()["body"].as_str(), Some("hello"));
        }
        let head = client.send(client.request("HEAD", "acme.test", "/v1/bytes/100"), b"").await.unwrap();
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("100"), 0));
        let empty = client.get("acme.test", "/v1/status/204").await;
        assert_eq!((empty.status, empty.body.len()), (204, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_of_one_connection_each_get_their_own_answer() {
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let gateway = gateway(&origin, protocol, "");
        for client in both(&gateway).await {
            let asked = (0..100).map(|n| {
                let request = client.request("POST", "acme.test", &format!("/v1/echo?n={n}"));
                let client = &client;
                async move {
                    let answer = client.send(request, format!("body {n}").as_bytes()).await.unwrap();
                    (n, answer.json())
                }
            });
            for (n, seen) in join_all(asked).await {
                assert_eq!(seen["query"].as_str(), Some(format!("n={n}").as_str()));
                assert_eq!(seen["body"].as_str(), Some(format!("body {n}").as_str()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_response_pass() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "protocol: http2", "");
    for client in both(&gateway).await {
        let answer = client.get("acme.test", "/v1/trailers").await;
        assert_eq!(answer.body, b"one\ntwo\nthree\n");
        assert!(answer.trailers.unwrap().contains_key("x-checksum"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_trailers_is_answered() {
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let gateway = gateway(&origin, protocol, "");
        let client = Http2::plain(&gateway).await;
        let (response, mut stream) =
            client.open(client.request("POST", "acme.test", "/v1/upload"), false).await.unwrap();
        send_all(&mut stream, Bytes::from_static(b"foobar"), false).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("1"));
        stream.send_trailers(trailers).unwrap();
        let answer = receive(response).await.unwrap();
        assert_eq!((answer.status, answer.json()["length"].as_u64()), (200, Some(6)), "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_as_the_other_side_has_room() {
    const SIZE: usize = 8 << 20;
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let gateway = gateway(&origin, protocol, "");
        for client in both(&gateway).await {
            let request = client.request("POST", "acme.test", "/v1/upload");
            let uploaded = client.send(request, &vec![b'x'; SIZE]).await.unwrap();
            assert_eq!(uploaded.json()["length"].as_u64(), Some(SIZE as u64));
            let downloaded = client.get("acme.test", &format!("/v1/bytes/{SIZE}")).await;
            assert_eq!(downloaded.body.len(), SIZE);
            assert!(downloaded.body.iter().enumerate().all(|(i, byte)| *byte == b'a' + (i % (64 << 10) % 26) as u8));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "protocol: http2", "");
    let client = Http2::plain(&gateway).await;
    let (response, _) = client.open(client.request("GET", "acme.test", "/v1/bytes/4000000"), true).await.unwrap();
    let mut stalled = patiently(response).await.unwrap().into_body();
    for _ in 0..20 {
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
    }
    let mut length = 0;
    while let Some(piece) = next(&mut stalled).await {
        length += piece.unwrap().len();
    }
    assert_eq!(length, 4_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_problems_with_what_every_answer_carries() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    for client in both(&gateway).await {
        for (target, status, kind) in [
            ("/nothing", 404, "no-route"),
            ("/v1/%zz", 400, "bad-request"),
            ("/v1/secure/echo", 401, "unauthenticated"),
        ] {
            let request = client.request("GET", "acme.test", target).header("origin", "https://app.acme.test");
            let answer = client.send(request, b"").await.unwrap();
            assert_eq!((answer.status, answer.problem().as_str()), (status, kind));
            assert_eq!(answer.json()["instance"].as_str(), answer.header("x-request-id"));
            assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.acme.test"), "{target}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        }
        let with_body = client.send(client.request("POST", "acme.test", "/nothing"), b"hello").await.unwrap();
        assert_eq!(with_body.problem(), "no-route");
        let head = client.send(client.request("HEAD", "acme.test", "/nothing"), b"").await.unwrap();
        assert_eq!((head.status, head.body.len()), (404, 0));
        let preflight = client
            .request("OPTIONS", "acme.test", "/v1/secure/echo")
            .header("origin", "https://app.acme.test")
            .header("access-control-request-method", "POST");
        let preflight = client.send(preflight, b"").await.unwrap();
        assert_eq!((preflight.status, preflight.header("access-control-allow-credentials")), (204, Some("true")));
    }
    let plain = Http2::plain(&gateway).await;
    assert_eq!(plain.get("nobody.test", "/v1/echo").await.problem(), "unknown-host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_stream_ends_its_exchange_with_the_upstream_and_no_other() {
    let (told, asked) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let quiet = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, told) = (stream.unwrap(), told.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                    head.push(byte[0]);
                }
                told.send("asked").unwrap();
                // Nothing more comes but the end.
                let left = !stream.read(&mut byte).is_ok_and(|read| read > 0);
                told.send(if left { "left" } else { "more" }).unwrap();
            });
        }
    });
    let origin = Origin::start("a");
    let upstreams = format!("{}quiet: {{ endpoints: [{{ address: '{quiet}' }}] }}\n", demo(&[origin.address], ""));
    let routes = format!("- {{ id: quiet, match: {{ path: /quiet }}, upstream: quiet }}\n{}", open(""));
    let gateway = Gateway::start(&tenants(&upstreams, "", &routes));
    let client = Http2::plain(&gateway).await;
    let (other, _) = client.open(client.request("GET", "acme.test", "/v1/delay/1500"), true).await.unwrap();
    let (response, mut stream) = client.open(client.request("GET", "acme.test", "/quiet"), true).await.unwrap();
    assert_eq!(asked.recv_timeout(PATIENCE), Ok("asked"));
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(asked.recv_timeout(PATIENCE), Ok("left"));
    drop(response);
    assert_eq!(receive(other).await.unwrap().status, 200);
    assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
    assert!(comes_true(|| in_flight(&gateway) == 0), "{}", gateway.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_all_its_exchanges() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "protocol: http2", "");
    let client = Http2::plain(&gateway).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(client.open(client.request("GET", "acme.test", "/v1/delay/600000"), true).await.unwrap());
    }
    assert!(comes_true(|| in_flight(&gateway) == 10), "{}", gateway.metrics());
    client.ended.abort();
    drop((open, client));
    assert!(comes_true(|| in_flight(&gateway) == 0), "{}", gateway.metrics());
}

#[test]
fn no_more_streams_are_served_at_once_than_announced() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { h2_streams: 4 }\n");
    let mut client = Frames::connect(gateway.http);
    let streams = [1, 3, 5, 7, 9];
    for stream in streams {
        client.send_headers(stream, &get("/v1/delay/600000"), true);
    }
    const REFUSED_STREAM: u32 = 7;
    assert_eq!(client.fate_of(9), Fate::Reset(REFUSED_STREAM));
    assert!(comes_true(|| in_flight(&gateway) == 4), "{}", gateway.metrics());
}

#[test]
fn streams_that_wait_to_be_read_are_bounded_for_each_address() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { connections_per_address: 4, h2_streams: 4 }\n");
    // There is room for 64 KiB of all of them together, and the client gives no more.
    let (mut one, mut other) = (Frames::connect(gateway.http), Frames::connect(gateway.http));
    for stream in [1, 3] {
        one.send_headers(stream, &get("/v1/bytes/4000000"), true);
        other.send_headers(stream, &get("/v1/bytes/4000000"), true);
    }
    assert!(comes_true(|| in_flight(&gateway) == 4), "{}", gateway.metrics());
    assert!(!is_reset(&mut one, 1) && !is_reset(&mut other, 1));
    let ended = || gateway.metric("seiketsu_requests_total{tenant=\"acme\",route=\"open\",class=\"2xx\"}");
    one.send_headers(5, &get("/v1/bytes/4000000"), true);
    assert!(comes_true(|| ended() > 0.0), "{}", gateway.metrics());
    assert_eq!((in_flight(&gateway), ended().to_string()), (4, "1".to_owned()));
    // Who leaves makes room for others.
    drop(one);
    assert!(comes_true(|| in_flight(&gateway) <= 2), "{}", gateway.metrics());
    let mut next = Frames::connect(gateway.http);
    // One or two of the other are left, and with these it is four in any case.
    for stream in [1, 3, 5] {
        next.send_headers(stream, &get("/v1/bytes/4000000"), true);
    }
    assert!(comes_true(|| origin.requests("/v1/bytes/4000000") == 8), "{}", gateway.metrics());
    // For longer than streams go uncounted.
    let_pass(Duration::from_millis(1500));
    assert!(comes_true(|| in_flight(&gateway) <= 4), "{}", gateway.metrics());
    assert_eq!(in_flight(&gateway), 4);
}

#[test]
fn small_answers_that_wait_to_be_read_count_too() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { connections_per_address: 8, h2_streams: 8 }\n");
    let mut clients = [with_open_windows(&gateway), with_open_windows(&gateway)];
    for client in &mut clients {
        // More than the kernel holds.
        client.send_headers(1, &get("/v1/bytes/16000000"), true);
    }
    assert!(comes_true(|| in_flight(&gateway) == 2), "{}", gateway.metrics());
    let_pass(Duration::from_millis(1500));
    for client in &mut clients {
        for stream in [3, 5, 7, 9, 11, 13, 15] {
            client.send_headers(stream, &get("/v1/bytes/32000"), true);
        }
    }
    assert!(comes_true(|| origin.requests("/v1/bytes/32000") == 14));
    assert!(comes_true(|| in_flight(&gateway) == 8), "{}", gateway.metrics());
    let_pass(Duration::from_millis(1500));
    assert_eq!(in_flight(&gateway), 8, "those that have a place keep it");
    // Whoever has no place is told, and whoever has one gets all of it.
    gateway.process.signal("-TERM");
    let [one, other] = clients.map(|client| std::thread::spawn(|| read_all(client)));
    let (one, other) = (one.join().unwrap(), other.join().unwrap());
    assert_eq!((one.0 + other.0, one.1 + other.1), (8, 8));
}

#[test]
fn a_client_that_takes_back_the_room_that_it_gave_is_not_waited_for_for_ever() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { write_timeout: 4s }\n");
    let mut client = with_open_windows(&gateway);
    // More than the kernel holds; behind it, what comes next waits in the node.
    client.send_headers(1, &get("/v1/bytes/16000000"), true);
    assert!(comes_true(|| in_flight(&gateway) == 1), "{}", gateway.metrics());
    let_pass(Duration::from_secs(1));
    for stream in [3, 5, 7, 9] {
        client.send_headers(stream, &get("/v1/bytes/30000"), true);
    }
    assert!(comes_true(|| origin.requests("/v1/bytes/30000") == 4));
    assert!(comes_true(|| in_flight(&gateway) == 5), "{}", gateway.metrics());
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    // It takes whatever comes.
    let (mut ended, mut reset) = (0, 0);
    while ended < 5 {
        let Some(frame) = client.receive() else { break };
        reset += u32::from(frame.kind == RST_STREAM);
        ended += u32::from(frame.kind == RST_STREAM || frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert_eq!((ended, reset), (5, 5));
    assert!(comes_true(|| in_flight(&gateway) == 0), "{}", gateway.metrics());
}

#[test]
fn nor_is_one_that_has_no_room_for_a_refusal() {
    let gateway = gateway(&Origin::start("a"), "", "protection: { write_timeout: 1s }\n");
    let mut client = Frames::connect(gateway.http);
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    client.send_headers(1, &[(":method", "CONNECT"), (":authority", "acme.test:443")], true);
    while client.receive().expect("the stream ends").kind != RST_STREAM {}
}

/// Asks for it, and takes a little of it again and again, until it ends.
fn take_slowly(gateway: &Gateway, path: &str) -> (usize, Fate) {
    const LITTLE: u32 = 16 << 10;
    let mut client = Frames::connect(gateway.http);
    client.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    client.send_headers(1, &get(path), true);
    let (mut taken, mut next) = (0, 65_535);
    loop {
        let Some(frame) = client.receive() else { return (taken, Fate::Closed) };
        match frame.kind {
            DATA => {
                taken += frame.payload.len();
                if frame.flags & END_STREAM != 0 {
                    return (taken, Fate::Answered(None));
                }
                if taken == next {
                    let_pass(Duration::from_millis(150));
                    next += LITTLE as usize;
                    client.send(WINDOW_UPDATE, 0, 1, &LITTLE.to_be_bytes());
                }
            }
            RST_STREAM => return (taken, Fate::Reset(0)),
            _ => {}
        }
    }
}

#[test]
fn a_client_has_time_for_a_large_answer_as_long_as_it_takes_some_of_it() {
    let origin = Origin::start("a");
    let node = "protection: { write_timeout: 2s }\n";
    for policies in ["", "cache: { ttl: 1h }"] {
        let gateway = Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open(policies)), node);
        let cached = gateway.get("acme.test", "/v1/bytes/600000", "").body.len();
        assert_eq!(take_slowly(&gateway, "/v1/bytes/600000"), (cached, Fate::Answered(None)), "{policies}");
        let mut nothing = Frames::connect(gateway.http);
        nothing.send_headers(1, &get("/v1/bytes/600000"), true);
        assert!(matches!(nothing.fate_of(1), Fate::Answered(_)));
        assert!(matches!(nothing.fate_of(1), Fate::Reset(_)), "{policies}");
        assert!(!is_reset(&mut nothing, 3), "the connection goes on");
    }
}

#[test]
fn resets_of_streams_that_were_only_just_opened_end_the_connection() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { h2_resets: 100 }\n");
    let mut client = Frames::connect(gateway.http);
    let mut stream = 1;
    let mut sent = 0;
    while sent < 200_000 {
        let open = client.send_headers(stream, &get("/v1/delay/600000"), true)
            && client.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        if !open {
            break;
        }
        stream += 2;
        sent += 1;
    }
    assert!(sent < 200_000, "cut off before that");
    assert!(comes_true(|| in_flight(&gateway) == 0), "{}", gateway.metrics());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_of_requests_that_are_being_served_end_the_connection_too() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { h2_resets: 20 }\n");
    let client = Http2::plain(&gateway).await;
    let mut resets = 0;
    while resets < 200 {
        let Ok((response, mut stream)) =
            client.open(client.request("GET", "acme.test", "/v1/delay/600000"), true).await
        else {
            break;
        };
        if client.send(client.request("GET", "acme.test", "/v1/bytes/1"), b"").await.is_err() {
            break;
        }
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        resets += 1;
    }
    assert!((20..200).contains(&resets), "cut off after {resets}");
    let error = patiently(client.ended).await.unwrap().expect_err("told why");
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    // Who merely gives up now and then is not cut off.
    let polite = Http2::plain(&gateway).await;
    for _ in 0..10 {
        let request = polite.request("GET", "acme.test", "/v1/delay/600000");
        let (_, mut stream) = polite.open(request, true).await.unwrap();
        stream.send_reset(h2::Reason::CANCEL);
        assert_eq!(polite.get("acme.test", "/v1/bytes/1").await.status, 200);
    }
}

#[test]
fn malformed_requests_are_refused_and_reach_nobody() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let head = |method, path, authority| {
        vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
    };
    let with = |name, value| [get("/v1/echo"), vec![(name, value)]].concat();
    let cases: Vec<Vec<(&str, &str)>> = vec![
        with("connection", "close"),
        with("connection", "x-mine"),
        with("keep-alive", "timeout=5"),
        with("proxy-connection", "close"),
        with("transfer-encoding", "chunked"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("transfer_encoding", "chunked"),
        with("content_length", "5"),
        head("TRACE", "/v1/echo", "acme.test"),
        with("X-Upper", "1"),
        with("x space", "1"),
        with("x-mine", "a\r\nx-forged: 1"),
        with("x-mine", "a\0b"),
        with("x-mine:", "1"),
        with("", "1"),
        with("host", "globex.test"),
        with("content-length", "x"),
        with("content-length", "-1"),
        [with("content-length", "5"), vec![("content-length", "6")]].concat(),
        with(":path", "/v1/other"),
        with(":status", "200"),
        with(":unknown", "1"),
        head("GET", "http://acme.test/v1/echo", "acme.test"),
        head("GET", "v1/echo", "acme.test"),
        head("GET", "", "acme.test"),
        head("GET", "/v1/ echo", "acme.test"),
        head("GET", "/v1/echo\r\nx: y", "acme.test"),
        head("GET", "/v1/\x01/echo", "acme.test"),
        head("GET", "*", "acme.test"),
        head("GET", "/v1/echo", "user@acme.test"),
        head("GET", "/v1/echo", "acme.test/x"),
        head("GET", "/v1/echo", "acme.test:x"),
        head("GET", "/v1/echo", ""),
        head("G ET", "/v1/echo", "acme.test"),
        head("", "/v1/echo", "acme.test"),
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/v1/echo")],
        vec![(":method", "GET"), (":scheme", "http"), (":authority", "acme.test")],
        vec![(":method", "GET"), (":path", "/v1/echo"), (":authority", "acme.test")],
        vec![(":scheme", "http"), (":path", "/v1/echo"), (":authority", "acme.test")],
        vec![(":method", "CONNECT"), (":authority", "acme.test:443")],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/v1/ws"),
            (":authority", "acme.test"),
        ],
        [vec![("x-first", "1")], get("/v1/echo")].concat(),
    ];
    for fields in cases {
        let mut client = Frames::connect(gateway.http);
        client.send_headers(1, &fields, true);
        let fate = client.fate_of(1);
        assert!(!matches!(fate, Fate::Answered(Some(200 | 204))), "{fields:?} got {fate:?}");
        assert!(!matches!(fate, Fate::Answered(Some(500))), "{fields:?} got {fate:?}");
    }
    for path in ["/v1/echo", "/v1/ws", "/v1/other"] {
        assert_eq!(origin.requests(path), 0, "{path}");
    }
    for fields in [with("te", "trailers"), with("host", "acme.test"), get("/v1/echo")] {
        let mut client = Frames::connect(gateway.http);
        client.send_headers(1, &fields, true);
        assert_eq!(client.fate_of(1), Fate::Answered(Some(200)), "{fields:?}");
    }
}

#[test]
fn a_connection_of_malformed_requests_is_closed() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    let fields = [get("/v1/echo"), vec![("host", "globex.test")]].concat();
    let mut sent = 0;
    while sent < 500 && client.send_headers(2 * sent + 1, &fields, true) {
        if matches!(client.fate_of(2 * sent + 1), Fate::Closed | Fate::GoAway(_)) {
            break;
        }
        sent += 1;
    }
    assert!(sent < 500, "never closed");
}

#[test]
fn a_header_list_has_a_bound_and_its_fields_a_number() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { max_head: 8KiB, max_header_fields: 50 }\n");
    let long = "x".repeat(5000);
    let large = [get("/v1/echo"), vec![("x-one", long.as_str()), ("x-two", long.as_str())]].concat();
    let many = [get("/v1/echo"), vec![("x-many", "1"); 60]].concat();
    for fields in [large, many] {
        let mut client = Frames::connect(gateway.http);
        client.send_headers(1, &fields, true);
        let fate = client.fate_of(1);
        assert!(!matches!(fate, Fate::Answered(Some(200))), "{fate:?}");
        client.send_headers(3, &get("/v1/echo"), true);
        let next = client.fate_of(3);
        assert!(fate != Fate::Answered(None) || next == Fate::Answered(Some(200)), "{next:?}");
    }
    assert_eq!(origin.requests("/v1/echo"), 2, "the good ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_fields_are_a_problem() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { max_header_fields: 50 }\n");
    let client = Http2::plain(&gateway).await;
    let request = (0..60)
        .fold(client.request("GET", "acme.test", "/v1/echo"), |request, n| request.header(format!("x-{n}"), "1"));
    let answer = client.send(request, b"").await.unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (431, "headers-too-large"));
    assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
}

#[test]
fn a_head_without_end_is_cut_off() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    for piece in [Vec::new(), frames::block(&[("x-flood", "1")]), vec![b'x'; 16 << 10]] {
        let mut client = Frames::connect(gateway.http);
        client.send(HEADERS, 0, 1, &frames::block(&get("/v1/echo")));
        let mut sent = 0;
        while sent < 100_000 && client.send(CONTINUATION, 0, 1, &piece) {
            sent += 1;
        }
        assert!(sent < 100_000, "{} bytes a frame", piece.len());
    }
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[test]
fn cookies_in_several_fields_reach_the_upstream_as_one() {
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let gateway = gateway(&origin, protocol, "");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = Http2::plain(&gateway).await;
            let request =
                client.request("GET", "acme.test", "/v1/echo").header("cookie", "a=1").header("cookie", "b=2");
            let seen = client.send(request, b"").await.unwrap().json();
            let cookies: Vec<_> = seen["headers"].as_array().unwrap().iter().filter(|f| f[0] == "cookie").collect();
            assert_eq!(cookies, [&json!(["cookie", "a=1; b=2"])], "{protocol}");
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_given_up() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { min_body_rate: 1KiB }\n");
    let client = Http2::plain(&gateway).await;
    let (response, mut stream) = client.open(client.request("POST", "acme.test", "/v1/upload"), false).await.unwrap();
    send_all(&mut stream, Bytes::from_static(b"a little"), false).await.unwrap();
    let answer = receive(response).await.unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
    assert!(comes_true(|| gateway.access_log().contains("408")), "{}", gateway.access_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_as_long_as_announced_is_no_request() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    for body in ["abc", "abcdefgh"] {
        let mut client = Frames::connect(gateway.http);
        let mut fields = get("/v1/echo");
        fields[0].1 = "POST";
        fields.push(("content-length", "5"));
        client.send_headers(1, &fields, false);
        client.send(DATA, END_STREAM, 1, body.as_bytes());
        let fate = client.fate_of(1);
        assert!(matches!(fate, Fate::Reset(_) | Fate::GoAway(_) | Fate::Answered(Some(400))), "{body}: {fate:?}");
    }
}

/// An upstream that takes a single request on each connection, answers where its body ends, and reads on to the end of
/// the connection. Tells of each that its head is there, and then all that came behind the head.
fn upstream_to_the_last_byte() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tell) = (stream.unwrap(), tell.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                tell.send("head".to_owned()).unwrap();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                let mut body = Vec::new();
                let is_whole = |body: &[u8]| length.map_or(body.ends_with(b"0\r\n\r\n"), |length| body.len() == length);
                while !is_whole(&body) && stream.read_exact(&mut byte).is_ok() {
                    body.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
                let _ = stream.read_to_end(&mut body);
                tell.send(String::from_utf8(body).unwrap()).unwrap();
            });
        }
    });
    (address, told)
}

fn post(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut head = get("/v1/upload");
    head[0].1 = "POST";
    [head, fields.to_vec()].concat()
}

#[test]
fn an_empty_last_frame_ends_the_body_once_for_an_upstream_that_speaks_http1() {
    let (address, told) = upstream_to_the_last_byte();
    let next = || told.recv_timeout(PATIENCE).unwrap();
    let gateway = Gateway::start(&tenants(&demo(&[address], ""), "", &open("")));
    for (pieces, expected) in [
        (&["abc", ""][..], "3\r\nabc\r\n0\r\n\r\n"),
        (&[""], "0\r\n\r\n"),
        (&["", ""], "0\r\n\r\n"),
        (&["abc", "", "defg"], "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"),
        (&["abc", "defg", ""], "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"),
    ] {
        let mut client = Frames::connect(gateway.http);
        client.send_headers(1, &post(&[]), false);
        assert_eq!(next(), "head");
        for (index, piece) in pieces.iter().enumerate() {
            client.send(DATA, if index + 1 == pieces.len() { END_STREAM } else { 0 }, 1, piece.as_bytes());
        }
        assert_eq!(client.fate_of(1), Fate::Answered(Some(200)), "{pieces:?}");
        assert_eq!(next(), expected, "{pieces:?}");
    }
}

#[test]
fn a_body_that_is_read_first_ends_once_however_it_ends() {
    let (address, told) = upstream_to_the_last_byte();
    let next = || told.recv_timeout(PATIENCE).unwrap();
    let body = "{\"n\":1}";
    for (policies, expected) in [
        ("validation: { body_schema: { inline: { type: object } } }", "7\r\n{\"n\":1}\r\n0\r\n\r\n"),
        ("transform: { request_body: '{ m: .n }' }", "{\"m\":1}"),
    ] {
        let gateway = Gateway::start(&tenants(&demo(&[address], ""), "", &open(policies)));
        for end in ["with the last piece", "with an empty piece", "with trailers"] {
            let mut client = Frames::connect(gateway.http);
            client.send_headers(1, &post(&[("content-type", "application/json")]), false);
            match end {
                "with the last piece" => client.send(DATA, END_STREAM, 1, body.as_bytes()),
                "with an empty piece" => {
                    client.send(DATA, 0, 1, body.as_bytes()) && client.send(DATA, END_STREAM, 1, b"")
                }
                _ => client.send(DATA, 0, 1, body.as_bytes()) && client.send_headers(1, &[("x-checksum", "1")], true),
            };
            assert_eq!(client.fate_of(1), Fate::Answered(Some(200)), "{policies} {end}");
            assert_eq!((next().as_str(), next().as_str()), ("head", expected), "{policies} {end}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_length_that_is_not_announced_is_not_held_up_where_it_need_not_be_read() {
    let origin = Origin::start("a");
    let shadow = Stub::answering("", "mirrored");
    let upstreams = demo(&[origin.address], "") + &upstream("shadow", &[shadow.address], "");
    let routes = "
- { id: watched, match: { path: /v1/echo }, upstream: demo, policies: { validation: { mode: report, body_schema: { inline: false } } } }
- { id: mirrored, match: { path: '/v1/{*rest}' }, upstream: demo, mirror: { upstream: shadow } }";
    let gateway = Gateway::start(&tenants(&upstreams, "", routes));
    let client = Http2::plain(&gateway).await;
    let large = vec![b'x'; 100 << 10];
    for path in ["/v1/echo", "/v1/upload"] {
        let answer = client.send(client.request("POST", "acme.test", path), &large).await.unwrap();
        assert_eq!((answer.status, answer.json()["length"].as_u64()), (200, Some(large.len() as u64)), "{path}");
    }
    assert_eq!(client.get("acme.test", "/v1/status/204").await.status, 204);
    assert!(comes_true(|| !shadow.seen().is_empty()), "what has no body is mirrored");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_answer_in_time_is_a_504_and_costs_no_other_stream() {
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let policies = "timeouts: { per_try: 300ms, total: 600ms }, retries: { attempts: 0 }";
        let gateway = Gateway::start(&tenants(&demo(&[origin.address], protocol), "", &open(policies)));
        let client = Http2::plain(&gateway).await;
        let late = client.get("acme.test", "/v1/delay/600000").await;
        assert_eq!((late.status, late.problem().as_str()), (504, "upstream-timeout"), "{protocol}");
        assert_eq!(late.json()["instance"].as_str(), late.header("x-request-id"));
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
        assert!(comes_true(|| gateway.access_log().contains("504")), "{}", gateway.access_log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_in_time_is_given_up_for_another() {
    let (slow, quick) = (Origin::start("slow"), Origin::start("quick"));
    slow.behave(&json!({ "delay_ms": 60_000 }));
    for protocol in ["protocol: http1", "protocol: http2"] {
        let policies = "timeouts: { per_try: 300ms, total: 30s }, retries: { on: [timeout] }";
        let upstream = demo(&[slow.address, quick.address], &format!("balance: round_robin, {protocol}"));
        let gateway = Gateway::start(&tenants(&upstream, "", &open(policies)));
        let client = Http2::plain(&gateway).await;
        for _ in 0..4 {
            let answer = client.get("acme.test", "/v1/echo").await;
            assert_eq!((answer.status, answer.header("x-origin-region")), (200, Some("quick")), "{protocol}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_read_before_it_goes_on_has_the_same_bounds() {
    let origin = Origin::start("a");
    let policies = "transform: { request_body: '.' }";
    let yaml = tenants(&demo(&[origin.address], ""), "", &open(policies));
    let gateway = Gateway::start_with(&yaml, "protection: { min_body_rate: 1KiB }\n");
    let client = Http2::plain(&gateway).await;
    let post = || client.request("POST", "acme.test", "/v1/echo").header("content-type", "application/json");
    let whole = client.send(post(), b"{\"a\":1}").await.unwrap();
    assert_eq!(whole.json()["body"].as_str(), Some("{\"a\":1}"));
    let large = client.send(post(), &[b' '; 70 << 10]).await.unwrap();
    assert_eq!((large.status, large.problem().as_str()), (413, "payload-too-large"));
    let (response, mut stream) = client.open(post(), false).await.unwrap();
    send_all(&mut stream, Bytes::from_static(b"{"), false).await.unwrap();
    let slow = receive(response).await.unwrap();
    assert_eq!((slow.status, slow.problem().as_str()), (408, "request-timeout"));
}

#[test]
fn an_upgrade_to_http2_is_not_passed_on() {
    let stub = Stub::answering("", "ok");
    let gateway = Gateway::start(&tenants(&demo(&[stub.address], ""), "", &open("")));
    let mut client = gateway.connect();
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    let answer = client.request(&format!("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n{upgrade}\r\n"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let seen = stub.seen();
    assert_eq!((seen[0].header("upgrade"), seen[0].header("http2-settings")), (None, None), "{}", seen[0].head);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_a_503_also_without_a_body() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    drop(origin);
    for client in both(&gateway).await {
        let head = client.send(client.request("HEAD", "acme.test", "/v1/echo"), b"").await.unwrap();
        assert_eq!((head.status, head.header("content-type")), (503, Some("application/problem+json")));
        assert_eq!(client.get("acme.test", "/v1/echo").await.problem(), "upstream-unavailable");
        let post = client.send(client.request("POST", "acme.test", "/v1/echo"), b"hello").await.unwrap();
        assert_eq!(post.problem(), "upstream-unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_is_no_slow_body() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "protocol: http2", "");
    for protocol in ["plain", "tls"] {
        let client = match protocol {
            "tls" => Http2::tls(&gateway, "acme.test").await,
            _ => Http2::plain(&gateway).await,
        };
        // Longer than bodies are measured.
        let late = client.get("acme.test", "/v1/delay/11000");
        assert_eq!(late.await.status, 200, "{protocol}");
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_may_be_quiet_for_longer_than_an_answer_may_take() {
    let origin = Origin::start("a");
    for protocol in ["protocol: http1", "protocol: http2"] {
        let policies = "timeouts: { per_try: 300ms, total: 600ms }";
        let gateway = Gateway::start(&tenants(&demo(&[origin.address], protocol), "", &open(policies)));
        let client = Http2::plain(&gateway).await;
        let answer = client.get("acme.test", "/v1/stream?count=2&interval_ms=1500").await;
        assert!(answer.plain().text().contains("\"number\":1"), "{protocol}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_says_goodbye_and_lets_streams_end() {
    let origin = Origin::start("a");
    let mut gateway = gateway(&origin, "", "");
    let clients = both(&gateway).await;
    let mut under_way = Vec::new();
    for client in &clients {
        let request = client.request("GET", "acme.test", "/v1/delay/1500");
        under_way.push(client.open(request, true).await.unwrap().0);
    }
    assert!(comes_true(|| in_flight(&gateway) == 2), "{}", gateway.metrics());
    gateway.process.signal("-TERM");
    for (client, response) in clients.into_iter().zip(under_way) {
        assert_eq!(receive(response).await.unwrap().status, 200);
        // GOAWAY without an error is a good end.
        patiently(client.ended).await.unwrap().unwrap();
    }
    assert!(comes_true(|| has_ended(&gateway)), "{}", gateway.log());
    assert!(gateway.process.0.wait().unwrap().success());
}

#[test]
fn who_has_just_connected_when_draining_begins_is_served() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let (whole, mut in_pieces) = (TcpStream::connect(gateway.http).unwrap(), TcpStream::connect(gateway.http).unwrap());
    let (first, rest) = PREFACE.split_at(6);
    in_pieces.write_all(first).unwrap();
    gateway.process.signal("-TERM");
    assert!(comes_true(|| TcpStream::connect(gateway.http).is_err()), "{}", gateway.log());
    let mut clients = [Frames::over(whole, PREFACE), Frames::over(in_pieces, rest)];
    for client in &mut clients {
        client.send_headers(1, &get("/v1/echo"), true);
    }
    for client in &mut clients {
        // The goodbye comes before the answer: it takes back nothing that is on its way.
        let fate = std::iter::repeat_with(|| client.fate_of(1)).find(|fate| *fate != Fate::GoAway(0));
        assert_eq!(fate, Some(Fate::Answered(Some(200))));
    }
}

#[test]
fn a_preface_that_has_begun_gets_no_more_time_when_draining_begins() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { head_timeout: 6s }\n");
    let mut client = gateway.connect();
    client.send(b"PRI * ");
    let_pass(Duration::from_secs(5));
    gateway.process.signal("-TERM");
    let began = Instant::now();
    assert_eq!(client.receive().expect("an answer").status, 408);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

/// Whether its process only waits to be asked how it ended.
fn has_ended(gateway: &Gateway) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.process.0.id())).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn a_client_that_ignores_the_goodbye_keeps_no_node_from_ending() {
    let origin = Origin::start("a");
    let mut gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    client.send_headers(1, &get("/v1/echo"), true);
    assert_eq!(client.fate_of(1), Fate::Answered(Some(200)));
    gateway.process.signal("-TERM");
    // Nothing is read any more, so nothing is acknowledged.
    assert!(comes_true(|| has_ended(&gateway)), "{}", gateway.log());
    assert!(gateway.process.0.wait().unwrap().success());
    drop(client);
}

/// A client that lets everything come, and reads of it what it likes.
fn with_open_windows(gateway: &Gateway) -> Frames {
    let mut client = Frames::connect(gateway.http);
    client.send(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    client.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    client
}

/// Reads to the end of the connection: how many streams came to their end, and how many were reset.
fn read_all(mut client: Frames) -> (usize, usize) {
    let frames: Vec<_> = std::iter::from_fn(|| client.receive()).collect();
    let ended = frames.iter().filter(|frame| matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0);
    (ended.count(), frames.iter().filter(|frame| frame.kind == RST_STREAM).count())
}

#[test]
fn answers_reach_the_client_whole_on_a_connection_that_is_to_end() {
    // More than the kernel holds.
    const STREAMS: u32 = 400;
    let origin = Origin::start("a");
    for terminated in [false, true] {
        let most = if terminated { 10_000 } else { STREAMS };
        let gateway =
            gateway(&origin, "", &format!("protection: {{ h2_streams: {STREAMS}, keepalive_requests: {most} }}\n"));
        let before = origin.requests("/v1/bytes/32000");
        let mut client = with_open_windows(&gateway);
        for number in 0..STREAMS {
            client.send_headers(2 * number + 1, &get("/v1/bytes/32000"), true);
        }
        assert!(comes_true(|| origin.requests("/v1/bytes/32000") - before == u64::from(STREAMS)));
        if terminated {
            gateway.process.signal("-TERM");
        }
        // Longer than a connection that has nothing to do is kept.
        let_pass(Duration::from_secs(5));
        assert_eq!(read_all(client), (STREAMS as usize, 0), "{terminated}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handing_over_says_goodbye_and_lets_streams_end() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let client = Http2::plain(&gateway).await;
    let (response, _) = client.open(client.request("GET", "acme.test", "/v1/delay/2000"), true).await.unwrap();
    assert!(comes_true(|| in_flight(&gateway) == 1), "{}", gateway.metrics());
    let folder = gateway.folder.path().to_owned();
    let next = Gateway::spawn(&folder, &["--upgrade"]);
    assert!(comes_true(|| folder.join("state/upgrade.sock").exists()));
    gateway.process.signal("-QUIT");
    let (http, ..) = Gateway::wait_until_ready(&folder, next.0.id());
    assert_eq!(receive(response).await.unwrap().status, 200);
    patiently(client.ended).await.unwrap().unwrap();
    assert!(comes_true(|| has_ended(&gateway)), "{}", gateway.log());
    let io = tokio::net::TcpStream::connect(http).await.unwrap();
    assert_eq!(Http2::over(io, "http").await.get("acme.test", "/v1/echo").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_with_a_goodbye() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { keepalive: 500ms }\n");
    for tls in [false, true] {
        let client = if tls { Http2::tls(&gateway, "acme.test").await } else { Http2::plain(&gateway).await };
        // Longer than an idle connection lives.
        assert_eq!(client.get("acme.test", "/v1/delay/1200").await.status, 200);
        patiently(client.ended).await.unwrap().unwrap();
    }
    let mut client = Frames::connect(gateway.http);
    assert_eq!(client.fate_of(1), Fate::GoAway(0));
}

#[test]
fn pings_do_not_keep_an_idle_connection_alive() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { keepalive: 500ms }\n");
    let mut client = Frames::connect(gateway.http);
    let began = Instant::now();
    // Each answer shows that a ping was heard.
    while client.send(PING, 0, 0, &[0; 8]) {
        match client.receive() {
            Some(frame) if frame.kind != GOAWAY => assert!(began.elapsed() < PATIENCE, "still open"),
            _ => break,
        }
    }
}

#[test]
fn a_preface_has_a_deadline() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { head_timeout: 300ms }\n");
    for part in ["P", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut client = gateway.connect();
        client.send(part.as_bytes());
        let mut rest = Vec::new();
        client.stream.get_mut().flush().unwrap();
        assert!(client.stream.read_to_end(&mut rest).is_ok(), "{part:?} is still waited for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_so_many_requests_a_connection_says_goodbye() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { keepalive_requests: 5 }\n");
    let client = Http2::plain(&gateway).await;
    let mut answered = 0;
    while let Ok(answer) = client.send(client.request("GET", "acme.test", "/v1/bytes/1"), b"").await {
        assert_eq!(answer.status, 200);
        answered += 1;
        assert!(answered < 100, "no end");
    }
    assert!(answered >= 5, "{answered}");
    patiently(client.ended).await.unwrap().unwrap();
}

#[test]
fn a_head_that_is_cut_into_frames_is_one_head() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    let block = frames::block(&get("/v1/echo"));
    let (first, rest) = block.split_at(7);
    client.send(HEADERS, END_STREAM, 1, first);
    client.send(CONTINUATION, END_HEADERS, 1, rest);
    assert_eq!(client.fate_of(1), Fate::Answered(Some(200)));
}

/// Whether the gateway resets this stream before it answers to a ping.
fn is_reset(client: &mut Frames, stream: u32) -> bool {
    client.send(PING, 0, 0, b"12345678");
    loop {
        let frame = client.receive().expect("an open connection");
        match frame.kind {
            RST_STREAM if frame.stream == stream => return true,
            PING if frame.flags & 1 == 1 => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_while_it_sends_is_read_from() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/nothing"), (":authority", "acme.test")];
    client.send_headers(1, &post, false);
    let mut ended = false;
    while !ended {
        let frame = client.receive().expect("an answer");
        ended = frame.stream == 1 && frame.kind == DATA && frame.flags & END_STREAM != 0;
        assert_ne!((frame.stream, frame.kind), (1, RST_STREAM));
    }
    assert!(!is_reset(&mut client, 1));
    client.send(DATA, 0, 1, b"hello");
    client.send(DATA, END_STREAM, 1, b" world");
    assert!(!is_reset(&mut client, 1));

    // Also more than a stream has room for at once, all of it after the answer.
    for client in both(&gateway).await {
        let (response, mut stream) = client.open(client.request("POST", "acme.test", "/nothing"), false).await.unwrap();
        assert_eq!(receive(response).await.unwrap().status, 404);
        send_all(&mut stream, Bytes::from(vec![b'x'; 2 << 20]), true).await.unwrap();
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
    }
}

#[test]
fn a_client_that_does_not_end_its_body_after_a_refusal_is_let_go() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/nothing"), (":authority", "acme.test")];
    client.send_headers(1, &post, false);
    assert!(matches!(client.fate_of(1), Fate::Answered(_)));
    assert_eq!(client.fate_of(1), Fate::Reset(0));
}

#[test]
fn a_head_has_one_deadline() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "protection: { head_timeout: 1s }\n");
    // One waits for more frames, the other for the rest of one.
    let (mut open, mut half) = (Frames::connect(gateway.http), Frames::connect(gateway.http));
    for client in [&mut open, &mut half] {
        // Settings are exchanged by then, and nothing else has to be said between the frames of a head.
        assert!(!is_reset(client, 1));
    }
    open.send(HEADERS, END_STREAM, 1, &frames::block(&get("/v1/echo")));
    half.send_bytes(&[0, 0, 200, HEADERS, END_HEADERS, 0, 0, 0, 1, 0x82]);
    for client in [&mut open, &mut half] {
        assert!(matches!(client.fate_of(1), Fate::Closed | Fate::GoAway(_)));
    }
    assert!(comes_true(|| gateway.access_log().matches("head_timeout").count() == 2), "{}", gateway.access_log());
    // One that comes in pieces and in time is served.
    let mut good = Frames::connect(gateway.http);
    let block = frames::block(&get("/v1/echo"));
    good.send(HEADERS, END_STREAM, 1, &block[..5]);
    good.send(CONTINUATION, END_HEADERS, 1, &block[5..]);
    assert_eq!(good.fate_of(1), Fate::Answered(Some(200)));
}

#[test]
fn connect_is_refused_as_everything_else_is() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "", "");
    let mut client = Frames::connect(gateway.http);
    client.send_headers(1, &[(":method", "CONNECT"), (":authority", "acme.test:443")], false);
    let body = loop {
        let frame = client.receive().expect("an answer");
        if frame.kind == DATA && frame.stream == 1 {
            break serde_json::from_slice::<serde_json::Value>(&frame.payload).unwrap();
        }
    };
    assert_eq!((&body["type"], &body["status"]), (&json!("urn:seiketsu:problem:method-not-allowed"), &json!(405)));
    let instance = body["instance"].as_str().unwrap();
    assert!(comes_true(|| gateway.access_log().contains(instance)), "{}", gateway.access_log());
}
