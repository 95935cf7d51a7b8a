//! WebSockets (RFC 6455) through the gateway.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use tokio_tungstenite::tungstenite::{
    Error, Message, WebSocket,
    client::client,
    handshake::client::generate_key,
    protocol::{CloseFrame, Role, frame::coding::CloseCode},
};

use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, ok, open, tenants, with_policies},
    support::{Gateway, KEY, Origin, PATIENCE, tls::connect_tls, two_tenants},
};

fn upgrade(path: &str, fields: &[(&str, &str)]) -> http::Request<()> {
    let mut request = http::Request::get(format!("ws://acme.test{path}"))
        .header("host", "acme.test")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// A WebSocket to the echo of the demo origin, in the clear.
pub fn open_socket(gateway: &Gateway) -> WebSocket<TcpStream> {
    open_on(gateway, "/v1/ws", &[])
}

fn open_on(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(gateway.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    client(upgrade(path, fields), stream).unwrap().0
}

#[allow(clippy::needless_pass_by_value)] // Tests hand over what they make.
pub fn assert_echo<S: Read + Write>(socket: &mut WebSocket<S>, message: Message) {
    socket.send(message.clone()).unwrap();
    assert!(socket.read().unwrap() == message, "another message");
}

fn assert_echoes_everything<S: Read + Write>(mut socket: WebSocket<S>) {
    for round in 0..10 {
        assert_echo(&mut socket, Message::text(format!("round {round}")));
        assert_echo(&mut socket, Message::binary(vec![round; 1000]));
    }
    assert_echo(&mut socket, Message::binary(vec![7; 4 << 20]));
    socket.send(Message::Ping("are you there".into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong("are you there".into()));
    // The origin confirms with the same code (RFC 6455 §5.5.1), and the connection ends in order.
    let close = CloseFrame { code: CloseCode::Library(4001), reason: "enough".into() };
    socket.close(Some(close.clone())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Close(Some(close)));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
}

#[test]
fn messages_of_all_kinds_and_sizes_come_back_in_the_clear_and_over_tls() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    assert_echoes_everything(open_socket(&gateway));
    assert_echoes_everything(client(upgrade("/v1/ws", &[]), connect_tls(gateway.https)).unwrap().0);
}

#[test]
fn a_close_code_of_the_upstream_reaches_the_client() {
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = origin.local_addr().unwrap();
    let upstream = std::thread::spawn(move || {
        let mut socket = tokio_tungstenite::tungstenite::accept(origin.accept().unwrap().0).unwrap();
        socket.close(Some(CloseFrame { code: CloseCode::Restart, reason: "later".into() })).unwrap();
        while socket.read().is_ok() {}
    });
    let gateway = with_policies(address, "");
    let mut socket = open_socket(&gateway);
    let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not a close") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Restart, "later"));
    while socket.read().is_ok() {}
    upstream.join().unwrap();
}

#[test]
fn the_end_of_one_side_is_the_end_of_the_other() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let mut left = open_socket(&gateway);
    assert_echo(&mut left, Message::text("here"));
    let in_flight = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}");
    assert!(in_flight() > 0.5);
    drop(left);
    assert!(comes_true(|| in_flight() < 0.5), "the gateway does not see that the client left");
    let mut socket = open_socket(&gateway);
    assert_echo(&mut socket, Message::text("here"));
    drop(origin);
    assert!(socket.read().is_err());
}

#[test]
fn a_socket_needs_its_key_before_it_is_one() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let stream = TcpStream::connect(gateway.http).unwrap();
    let refused = client(upgrade("/v1/secure/ws", &[]), stream).unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
    assert_eq!(origin.requests("/v1/secure/ws"), 0);
    // The connection of a refused upgrade is an ordinary one.
    let mut client = gateway.connect();
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answer = client.request(&format!("GET /v1/secure/ws HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n"));
    assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthenticated"));
    assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
}

#[test]
fn the_upstream_may_refuse_the_upgrade() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let mut client = gateway.connect();
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let answer = client.request(&format!("GET /v1/status/403 HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n"));
    assert_eq!(answer.status, 403);
    assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
}

#[test]
fn what_is_no_handshake_is_an_ordinary_request() {
    // It would switch to anything.
    let switches = Stub::start(|seen| match seen.header("upgrade") {
        Some(_) => b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec(),
        None => ok("", b"an answer"),
    });
    let gateway = with_policies(switches.address, "");
    for (method, fields) in [
        ("GET", "Upgrade: websocket\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
        ("POST", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        ("POST", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n"),
    ] {
        let request = format!("{method} /v1/x HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n");
        // Both of a pipeline: where the first ends is no question.
        let mut client = gateway.connect();
        client.send(request.repeat(2).as_bytes());
        for _ in 0..2 {
            let answer = client.receive().expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "an answer"), "{method} {fields}");
        }
    }
    assert!(switches.seen().iter().all(|seen| seen.header("upgrade").is_none()));
}

#[test]
fn a_quiet_socket_outlives_the_times_of_ordinary_requests() {
    let origin = Origin::start("a");
    let policies = "timeouts: { idle: 200ms, per_try: 300ms, total: 300ms }";
    let node = "protection: { keepalive: 300ms, head_timeout: 300ms, write_timeout: 300ms }\n";
    let gateway = Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open(policies)), node);
    let mut socket = open_socket(&gateway);
    assert_echo(&mut socket, Message::text("before"));
    let_pass(Duration::from_millis(1500));
    assert_echo(&mut socket, Message::text("after"));
}

#[test]
fn frames_sent_with_the_request_are_not_lost() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let mut stream = TcpStream::connect(gateway.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // An empty mask leaves the text readable: "hi".
    let frame = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
    let head = "GET /v1/ws HTTP/1.1\r\nHost: acme.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(&[head.as_bytes(), &frame].concat()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let mut socket = WebSocket::from_raw_socket(stream, Role::Client, None);
    assert_eq!(socket.read().unwrap(), Message::text("hi"));
}
