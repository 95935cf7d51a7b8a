//! Requests and WebSockets at the same time.

use std::net::TcpStream;

use tokio_tungstenite::tungstenite::{Message, WebSocket, client::client, handshake::client::generate_key};

use super::{limited, violated};
use crate::{
    fixtures::comes_true,
    support::{Client, Gateway, Origin, PATIENCE, wait_for},
    websocket::assert_echo,
};

const SLOW: &str = "GET /v1/delay/15000 HTTP/1.1\r\nHost: acme.test\r\n\r\n";

/// So many requests that last, each with its slot.
fn in_flight(gateway: &Gateway, many: usize) -> Vec<Client> {
    let metric = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize;
    let before = metric();
    let clients = (0..many).map(|_| {
        let mut client = gateway.connect();
        client.send(SLOW.as_bytes());
        client
    });
    let clients: Vec<Client> = clients.collect();
    assert!(comes_true(|| metric() == before + many), "{}", gateway.metrics());
    clients
}

#[test]
fn no_more_requests_than_allowed_run_at_the_same_time() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "concurrency: { requests: 3 }", ""));
    let passes = || gateway.get("acme.test", "/v1/echo", "").status == 200;
    for _ in 0..20 {
        assert!(passes(), "one after the other");
    }
    let clients = in_flight(&gateway, 3);
    for _ in 0..5 {
        let refused = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!(violated(&refused), ["concurrency"]);
        // A slot may come free at any moment; a second, and a little more so that clients do not come together.
        assert_eq!(refused.header("retry-after"), Some("2"));
        assert_eq!(refused.header("ratelimit"), None, "it is nothing that comes anew with time");
    }
    // Clients that break off leave their slots, well before the answers would have come.
    drop(clients);
    assert!(comes_true(passes), "{}", gateway.metrics());
    // All three have ended before others are counted.
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5));
    let clients = in_flight(&gateway, 2);
    assert!(comes_true(passes), "one is free");
    drop(clients);
}

#[test]
fn a_request_that_fails_leaves_its_slot() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "concurrency: { requests: 1 }", ""));
    for _ in 0..5 {
        assert_eq!(gateway.get("acme.test", "/v1/status/500", "").status, 500);
        // What comes next may come before the end of what failed.
        assert!(comes_true(|| gateway.get("acme.test", "/v1/echo", "").status == 200));
        assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5));
    }
}

#[test]
fn no_more_sockets_than_allowed_are_open() {
    let origin = Origin::start("a");
    let limits = "concurrency: { requests: 1, websockets: 2 }";
    let gateway = Gateway::start(&limited(origin.address, limits, ""));
    let mut sockets = [try_open(&gateway).unwrap(), try_open(&gateway).unwrap()];
    assert!(try_open(&gateway).is_err_and(|error| error.contains("429")), "a third one");
    let mut plain = gateway.connect();
    for _ in 0..5 {
        let answer = plain.request(super::REQUEST);
        assert_eq!(answer.status, 200, "sockets are no requests: {answer:?}");
    }
    for socket in &mut sockets {
        assert_echo(socket, Message::text("still here"));
    }
    let [mut first, second] = sockets;
    first.close(None).unwrap();
    while first.read().is_ok() {}
    let third = wait_for(&|| try_open(&gateway).ok()).expect("the slot of the one that was closed");
    // Who breaks off says nothing.
    drop(second);
    let fourth = wait_for(&|| try_open(&gateway).ok()).expect("the slot of the one that broke off");
    assert!(try_open(&gateway).is_err(), "and no more than these");
    drop((third, fourth));
}

#[test]
fn a_request_for_a_socket_is_a_request_until_there_is_one() {
    let asking = |target: &str| super::request(target, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "concurrency: { requests: 1, websockets: 9 }", ""));
    let mut slow = gateway.connect();
    slow.send(asking("/v1/delay/15000").as_bytes());
    let in_flight = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize;
    assert!(comes_true(|| in_flight() == 1), "{}", gateway.metrics());
    for _ in 0..5 {
        assert_eq!(violated(&gateway.connect().request(&asking("/v1/echo"))), ["concurrency"]);
        assert_eq!(violated(&gateway.get("acme.test", "/v1/echo", "")), ["concurrency"]);
    }
    drop(slow);
    let socket = wait_for(&|| try_open(&gateway).ok()).expect("the slot of the one that broke off");
    let other = try_open(&gateway).expect("the slot of the one that is a socket");
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200, "and that of the other one");
    drop((socket, other));
}

fn try_open(gateway: &Gateway) -> Result<WebSocket<TcpStream>, String> {
    let request = http::Request::get("ws://acme.test/v1/ws")
        .header("host", "acme.test")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    let stream = TcpStream::connect(gateway.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    client(request.body(()).unwrap(), stream).map(|(socket, _)| socket).map_err(|error| error.to_string())
}
