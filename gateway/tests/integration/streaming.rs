//! Bodies that come piece by piece, break off, or are large: nothing is held back, nothing is made whole
//! that is not, and memory stays where it is.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    fixtures::{comes_true, demo, open, tenants, with_policies},
    support::{Gateway, Origin, PATIENCE, tls::connect_tls},
};

const MIB: usize = 1 << 20;
const GET: &str = "GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n";

/// An upstream whose answer the test writes piece by piece; it ends when the pieces do.
pub struct Slow {
    pub address: SocketAddr,
    pub pieces: Sender<Vec<u8>>,
    /// The heads of requests, as they come.
    pub heads: Receiver<String>,
}

impl Slow {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (pieces, from_test) = channel::<Vec<u8>>();
        let (to_test, heads) = channel();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = to_test.send(read_head(&stream));
            while let Ok(piece) = from_test.recv() {
                (&stream).write_all(&piece).unwrap();
            }
        });
        Self { address, pieces, heads }
    }

    pub fn send(&self, piece: &str) {
        self.pieces.send(piece.as_bytes().to_vec()).unwrap();
    }
}

fn read_head(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
    head
}

fn read_exactly(from: &mut impl Read, length: usize) -> String {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn head_of(from: &mut impl Read) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push_str(&read_exactly(from, 1));
    }
    head
}

fn gateway_for(address: SocketAddr, policies: &str) -> Gateway {
    Gateway::start(&tenants(&demo(&[address], ""), "", &open(policies)))
}

#[test]
fn half_a_body_of_known_length_is_there_while_the_upstream_pauses() {
    for tls in [false, true] {
        let slow = Slow::start();
        let gateway = gateway_for(slow.address, "");
        slow.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "a".repeat(50)));
        let exchange = |client: &mut dyn ReadWrite| {
            client.write_all(GET.as_bytes()).unwrap();
            let mut client = client;
            assert!(head_of(&mut client).contains("100"));
            assert_eq!(read_exactly(&mut client, 50), "a".repeat(50));
            // Only now does the rest come.
            slow.send(&"b".repeat(50));
            assert_eq!(read_exactly(&mut client, 50), "b".repeat(50));
        };
        if tls {
            exchange(&mut connect_tls(gateway.https));
        } else {
            exchange(&mut plain(gateway.http));
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

fn plain(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_small_answer_leaves_in_one_piece() {
    let stub = crate::fixtures::Stub::answering("Content-Type: text/plain\r\n", "hello");
    let gateway = gateway_for(stub.address, "");
    let mut client = plain(gateway.http);
    for _ in 0..500 {
        client.write_all(GET.as_bytes()).unwrap();
        let mut space = [0; 4096];
        let received = client.read(&mut space).unwrap();
        let answer = String::from_utf8_lossy(&space[..received]);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"), "{answer:?}");
    }
}

#[test]
fn the_head_alone_is_there_while_the_upstream_makes_the_body() {
    let slow = Slow::start();
    let gateway = gateway_for(slow.address, "");
    slow.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let mut client = plain(gateway.http);
    client.write_all(GET.as_bytes()).unwrap();
    assert!(head_of(&mut client).starts_with("HTTP/1.1 200 "));
    slow.send("hello");
    assert_eq!(read_exactly(&mut client, 5), "hello");
}

#[test]
fn a_body_that_breaks_off_is_never_taken_for_a_whole_one() {
    // How the upstream ends what it has begun, and how the client is told that something is missing.
    for (version, framing, part) in [
        ("1.1", "Content-Length: 100\r\n", "half"),
        ("1.1", "Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n"),
        ("1.0", "Content-Length: 100\r\n", "half"),
        ("1.0", "Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n"),
    ] {
        for upstream_dies in [true, false] {
            let slow = Slow::start();
            let gateway = gateway_for(slow.address, "timeouts: { idle: 500ms }");
            slow.send(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n{part}"));
            let mut client = plain(gateway.http);
            client.write_all(format!("GET /v1/x HTTP/{version}\r\nHost: acme.test\r\n\r\n").as_bytes()).unwrap();
            let case = format!("HTTP/{version} {framing}{upstream_dies}");
            let head = head_of(&mut client).to_ascii_lowercase();
            let chunked = head.contains("transfer-encoding: chunked");
            assert_eq!(read_exactly(&mut client, if chunked { 9 } else { 4 }).replace("4\r\n", "").trim(), "half");
            if upstream_dies {
                drop(slow.pieces);
            }
            let began = Instant::now();
            let mut rest = Vec::new();
            let ended = client.read_to_end(&mut rest);
            assert!(rest.is_empty(), "{case}: {rest:?}");
            assert!(began.elapsed() < PATIENCE / 2, "{case}");
            let announced = chunked || head.contains("content-length: 100");
            assert!(announced || ended.is_err(), "{case}: the end of the connection is the end of this body");
            assert!(version == "1.1" || !chunked, "{case}: HTTP/1.0 has no chunks");
        }
    }
}

#[test]
fn each_event_is_there_before_the_next_one_is_made() {
    let slow = Slow::start();
    let gateway = gateway_for(slow.address, "compression: {}");
    slow.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut client = plain(gateway.http);
    let request = "GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nAccept: text/event-stream\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    assert!(head_of(&mut client).contains("text/event-stream"));
    for number in 0..20 {
        let event = format!("data: {number:02}\n\n");
        let chunk = format!("{:X}\r\n{event}\r\n", event.len());
        slow.send(&chunk);
        assert_eq!(read_exactly(&mut client, chunk.len()).to_uppercase(), chunk.to_uppercase());
    }
    slow.send("0\r\n\r\n");
    assert_eq!(read_exactly(&mut client, 5), "0\r\n\r\n");
}

#[test]
fn a_quiet_event_stream_outlives_the_idle_time() {
    let slow = Slow::start();
    let gateway = gateway_for(slow.address, "timeouts: { idle: 300ms, per_try: 300ms }");
    slow.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let mut client = plain(gateway.http);
    client.write_all(GET.as_bytes()).unwrap();
    head_of(&mut client);
    assert_eq!(read_exactly(&mut client, 6), "1\r\na\r\n");
    crate::fixtures::let_pass(Duration::from_secs(1));
    slow.send("1\r\nb\r\n");
    assert_eq!(read_exactly(&mut client, 6), "1\r\nb\r\n");
}

/// The most memory the process has had, in bytes.
fn peak_memory(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn large_bodies_pass_both_ways_in_constant_memory() {
    const LENGTH: usize = 64 * MIB;
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "request: { max_body: 128MiB }");
    assert_eq!(gateway.ask("GET", "/v1/bytes/1000", "", "").status, 200);
    let before = peak_memory(&gateway);
    for chunked in [false, true] {
        let answer = gateway.ask("GET", &format!("/v1/bytes/{LENGTH}?chunked={chunked}"), "", "");
        assert_eq!((answer.status, answer.body.len()), (200, LENGTH));

        let mut client = gateway.connect();
        let framing = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {LENGTH}") };
        client.send(format!("POST /v1/upload HTTP/1.1\r\nHost: acme.test\r\n{framing}\r\n\r\n").as_bytes());
        let piece = vec![b'x'; MIB];
        for _ in 0..LENGTH / MIB {
            if chunked {
                client.send(format!("{MIB:x}\r\n").as_bytes());
            }
            client.send(&piece);
            if chunked {
                client.send(b"\r\n");
            }
        }
        if chunked {
            client.send(b"0\r\n\r\n");
        }
        let uploaded: Value = client.receive().unwrap().json();
        assert_eq!(uploaded["length"], LENGTH);
    }
    let grown = peak_memory(&gateway) - before;
    assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
}

#[test]
fn a_download_over_tls_arrives_whole() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let mut client = connect_tls(gateway.https);
    write!(client, "GET /v1/bytes/{} HTTP/1.1\r\nHost: acme.test\r\n\r\n", 8 * MIB).unwrap();
    head_of(&mut client);
    let body = read_exactly(&mut client, 8 * MIB);
    assert!(body.as_bytes().chunks(64 << 10).all(|piece| piece.starts_with(b"abcdefghijklmnopqrstuvwxyz")));
}

#[test]
fn a_client_that_reads_nothing_is_cut_and_its_upstream_is_free_again() {
    let origin = Origin::start("a");
    let node = "protection: { write_timeout: 500ms }\n";
    let gateway = Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open("")), node);
    let mut downloads = gateway.connect();
    downloads.send(format!("GET /v1/bytes/{} HTTP/1.1\r\nHost: acme.test\r\n\r\n", 64 * MIB).as_bytes());
    // Answers without a body, one after the other, that nobody takes.
    let mut pipelines = gateway.connect();
    let pipeline = "GET /v1/status/204 HTTP/1.1\r\nHost: acme.test\r\n\r\n".repeat(1000);
    pipelines.stream.get_ref().set_nonblocking(true).unwrap();
    let cut = |stream: &mut TcpStream| {
        comes_true(|| {
            matches!(stream.try_clone().unwrap().write(pipeline.as_bytes()),
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock)
        })
    };
    assert!(cut(pipelines.stream.get_mut()), "{}", gateway.metrics());
    let mut all = Vec::new();
    assert!(downloads.stream.read_to_end(&mut all).is_err() || all.len() < 64 * MIB);
    assert!(
        comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5),
        "{}",
        gateway.metrics()
    );
}

#[test]
fn a_slow_reader_that_does_read_gets_everything() {
    let origin = Origin::start("a");
    let node = "protection: { write_timeout: 1s }\n";
    let gateway =
        Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open("timeouts: { idle: 1s }")), node);
    let mut client = gateway.connect();
    client.send(format!("GET /v1/bytes/{} HTTP/1.1\r\nHost: acme.test\r\n\r\n", 16 * MIB).as_bytes());
    let head = client.receive_head();
    assert_eq!(head.status, 200);
    let began = Instant::now();
    for _ in 0..16 {
        // Longer than the limit in all, never for one piece.
        crate::fixtures::let_pass(Duration::from_millis(100));
        let mut piece = vec![0; MIB];
        client.stream.read_exact(&mut piece).unwrap();
    }
    assert!(began.elapsed() > Duration::from_secs(1));
}

#[test]
fn a_body_that_trickles_is_cut_with_a_408() {
    let origin = Origin::start("a");
    let schema = "validation: { body_schema: { inline: { type: object } } }";
    for policies in ["", schema] {
        let gateway = with_policies(origin.address, policies);
        let mut client = gateway.connect();
        client.send(
            b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        );
        let answer = client.receive().expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"), "{policies}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.is_closed());
    }
}

#[test]
fn a_large_body_that_is_refused_leaves_the_client_its_answer() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "request: { max_body: 1KiB }");
    for framing in [format!("Content-Length: {}", 4 * MIB), "Transfer-Encoding: chunked".to_owned()] {
        let mut client = gateway.connect();
        client.send(format!("POST /v1/upload HTTP/1.1\r\nHost: acme.test\r\n{framing}\r\n\r\n").as_bytes());
        // All of it is sent before the answer is looked at, as simple clients do.
        if framing.starts_with("Transfer") {
            client.send(format!("{:x}\r\n", 4 * MIB).as_bytes());
        }
        client.send(&vec![b'x'; 4 * MIB]);
        let answer = client.receive().expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{framing}");
    }
}
