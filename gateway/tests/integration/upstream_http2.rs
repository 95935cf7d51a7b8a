//! Upstreams on HTTP/2 that turn requests away: what they say of them decides what may be sent again.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    fixtures::{demo, open, tenants},
    policies::decoded,
    support::{
        Gateway,
        frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS},
        http2::Http2,
    },
};

const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Answered,
    /// With this JSON, and a trailer behind it.
    Json(&'static str),
    /// With 304 and the length of what is not sent; the stream ends with a frame of its own.
    NotModified,
    /// This stream is reset, for this reason.
    Reset(u32),
    /// The connection takes no more streams, and has not looked at this one.
    GoAway,
    /// The connection takes no more streams, and may have looked at this one; then it ends.
    GoAwayLate,
}

/// An upstream that does this with its first requests, and answers all further ones.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    fn start(first: &'static [Fate]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, accepted) = (asked.clone(), connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, counter) = (stream.unwrap(), counter.clone());
                accepted.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let fate = || first.get(counter.fetch_add(1, Ordering::Relaxed)).copied();
                    // The connection ends when the gateway has had enough of it.
                    let _ = serve(stream, &|| fate().unwrap_or(Fate::Answered));
                });
            }
        });
        Self { address, asked, connections }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, fate: &dyn Fn() -> Fate) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    send(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match head[3] {
            SETTINGS if head[4] == 0 => send(&mut stream, SETTINGS, 1, 0, &[])?,
            HEADERS => match fate() {
                // 0x88 is `:status: 200` (RFC 7541, appendix A).
                Fate::Answered => send(&mut stream, HEADERS, END_STREAM | END_HEADERS, id, &[0x88])?,
                Fate::Json(body) => {
                    // Beside it a literal `content-type` (number 31), then one with a name of its own (§6.2.2).
                    let head = [&[0x88, 0x0f, 0x10, 16][..], b"application/json"].concat();
                    send(&mut stream, HEADERS, END_HEADERS, id, &head)?;
                    send(&mut stream, DATA, 0, id, body.as_bytes())?;
                    send(&mut stream, HEADERS, END_STREAM | END_HEADERS, id, b"\x00\x05x-sum\x011")?;
                }
                Fate::NotModified => {
                    // Beside it a literal `content-length` (number 28).
                    send(&mut stream, HEADERS, END_HEADERS, id, b"\x8b\x0f\x0d\x0299")?;
                    send(&mut stream, DATA, END_STREAM, id, &[])?;
                }
                Fate::Reset(reason) => send(&mut stream, RST_STREAM, 0, id, &reason.to_be_bytes())?,
                Fate::GoAway => send(&mut stream, GOAWAY, 0, 0, &[0; 8])?,
                Fate::GoAwayLate => {
                    return send(&mut stream, GOAWAY, 0, 0, &[id.to_be_bytes(), [0; 4]].concat());
                }
            },
            // Bodies and windows are of no interest.
            _ => {}
        }
    }
}

fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    stream.write_all(&[&head[..], &id.to_be_bytes(), payload].concat())
}

fn gateway(upstream: &Upstream) -> Gateway {
    with_policies(upstream, "")
}

fn with_policies(upstream: &Upstream, policies: &str) -> Gateway {
    Gateway::start(&tenants(&demo(&[upstream.address], "protocol: http2"), "", &open(policies)))
}

fn post(body: &str) -> String {
    format!("POST /v1/x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_has_not_looked_at_is_sent_again_whatever_its_method() {
    for first in [&[Fate::Reset(REFUSED_STREAM)][..], &[Fate::GoAway], &[Fate::GoAway, Fate::Reset(REFUSED_STREAM)]] {
        for body in ["", "hello"] {
            let upstream = Upstream::start(first);
            let answer = gateway(&upstream).connect().request(&post(body));
            assert_eq!((answer.status, upstream.asked()), (200, first.len() + 1), "{first:?} {body:?}: {answer:?}");
            let upstream = Upstream::start(first);
            let gateway = gateway(&upstream);
            let client = Http2::plain(&gateway).await;
            let answer = client.send(client.request("POST", "acme.test", "/v1/x"), body.as_bytes()).await.unwrap();
            assert_eq!((answer.status, upstream.asked()), (200, first.len() + 1), "{first:?} {body:?}");
        }
    }
}

#[test]
fn what_it_may_have_looked_at_is_not_sent_again_unless_that_is_safe() {
    for fate in [&[Fate::Reset(INTERNAL_ERROR)][..], &[Fate::Reset(CANCEL)], &[Fate::GoAwayLate]] {
        let upstream = Upstream::start(fate);
        let answer = gateway(&upstream).connect().request(&post(""));
        assert_eq!((answer.status, upstream.asked()), (502, 1), "{fate:?}");
        assert_eq!(answer.problem(), "upstream-error");
        let upstream = Upstream::start(fate);
        let answer = gateway(&upstream).get("acme.test", "/v1/x", "");
        assert_eq!((answer.status, upstream.asked()), (200, 2), "{fate:?}");
    }
}

#[test]
fn an_upstream_that_takes_nothing_is_not_asked_without_end() {
    let upstream = Upstream::start(&[Fate::Reset(REFUSED_STREAM); 20]);
    let answer = gateway(&upstream).connect().request(&post("hello"));
    assert_eq!((answer.status, upstream.asked()), (502, 3), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_calls_at_once_share_one_connection() {
    let upstream = Upstream::start(&[]);
    let gateway = gateway(&upstream);
    // One connection is served by one worker, and each worker has upstream connections of its own.
    let client = Http2::plain(&gateway).await;
    let calls = (0..100).map(|_| client.send(client.request("GET", "acme.test", "/v1/x"), b""));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!((upstream.asked(), upstream.connections.load(Ordering::Relaxed)), (100, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_trailers_behind_it_is_changed_to_its_end() {
    const JSON: &str = r#"{"id":7,"secret":"s"}"#;
    const TRANSLATED: &str = r#"{"id":7}"#;
    for (policies, body, encoding) in [
        ("transform: { response_body: '{ id: .id }' }", TRANSLATED, None),
        ("compression: {}", JSON, Some("gzip")),
        ("transform: { response_body: '{ id: .id }' }, compression: {}", TRANSLATED, Some("gzip")),
        ("cache: { ttl: 1h }, transform: { response_body: '{ id: .id }' }", TRANSLATED, None),
    ] {
        let upstream = Upstream::start(&[Fate::Json(JSON); 10]);
        let gateway = with_policies(&upstream, policies);
        let client = Http2::plain(&gateway).await;
        for path in ["/v1/x", "/v1/y"] {
            let request = client.request("GET", "acme.test", path).header("accept-encoding", "gzip");
            let h2 = client.send(request, b"").await.unwrap();
            assert!(h2.trailers.is_none(), "they speak of another body: {h2:?}");
            for answer in [h2.plain(), gateway.get("acme.test", path, "Accept-Encoding: gzip\r\n")] {
                assert_eq!((answer.status, answer.header("content-encoding")), (200, encoding), "{policies}");
                assert_eq!(String::from_utf8(decoded(&answer)).unwrap(), body, "{policies}: {answer:?}");
            }
        }
    }
    let upstream = Upstream::start(&[Fate::Json(JSON)]);
    let answer = Http2::plain(&gateway(&upstream)).await.get("acme.test", "/v1/x").await;
    assert_eq!((answer.body.as_slice(), answer.trailers.unwrap().len()), (JSON.as_bytes(), 1), "nothing is changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_trailers_that_cannot_be_translated_is_never_taken_for_a_whole_one() {
    for answers in [&[Fate::Json(r#"["secret"]"#); 2], &[Fate::Json(r#"{"secret":"#); 2]] {
        let upstream = Upstream::start(answers);
        let gateway = with_policies(&upstream, "transform: { response_body: '.a.b' }");
        let answer = gateway.raw("GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nConnection: close\r\n\r\n");
        let answer = String::from_utf8(answer).unwrap();
        let is_problem = answer.starts_with("HTTP/1.1 502 ") && answer.contains("urn:seiketsu:problem:upstream-error");
        let broken_off = answer.starts_with("HTTP/1.1 200 ") && !answer.contains("\r\n0\r\n");
        assert!((is_problem || broken_off) && !answer.contains("secret"), "{answer}");
        let client = Http2::plain(&gateway).await;
        match client.send(client.request("GET", "acme.test", "/v1/x"), b"").await {
            Ok(answer) => assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-error")),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_no_body_is_whole_with_its_head() {
    let gateway = gateway(&Upstream::start(&[Fate::NotModified; 20]));
    let client = Http2::plain(&gateway).await;
    for _ in 0..5 {
        let answer = client.get("acme.test", "/v1/x").await;
        assert_eq!((answer.status, answer.header("content-length"), answer.head_only), (304, Some("99"), true));
        assert_eq!(gateway.ask("HEAD", "/v1/x", "", "").status, 304);
    }
}
