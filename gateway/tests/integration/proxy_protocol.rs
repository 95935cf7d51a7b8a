//! Load balancers in front of the gateway: whom they speak for, and who may say so.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ppp::v2;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    fixtures::{comes_true, demo, tenants},
    support::{Client, Gateway, Origin, PATIENCE, Response, http2::Http2, pki},
};

const TRUSTED: &str = ", proxy_protocol_from: [127.0.0.1/32]";
const GET: &str = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

/// `/v1/…` is open to everyone, `/inside/…` to one network.
fn start(origin: &Origin, listeners: &str, node: &str) -> Gateway {
    let routes = "- { id: open, match: { path: '/v1/{*rest}' }, upstream: demo }\n\
                  - { id: inside, match: { path: /inside }, upstream: demo, policies: { access: { allow: [192.0.2.0/24, '2001:db8::/32'] } } }\n";
    Gateway::start_listening(&tenants(&demo(&[origin.address], ""), "", routes), listeners, node)
}

fn v1(client: &str) -> Vec<u8> {
    let client: IpAddr = client.parse().unwrap();
    let (family, here) = if client.is_ipv4() { ("TCP4", "192.0.2.254") } else { ("TCP6", "2001:db8::ff") };
    format!("PROXY {family} {client} {here} 4711 443\r\n").into_bytes()
}

fn v2(client: &str) -> Vec<u8> {
    let client: IpAddr = client.parse().unwrap();
    let here: IpAddr = if client.is_ipv4() { "192.0.2.254" } else { "2001:db8::ff" }.parse().unwrap();
    let addresses = (SocketAddr::from((client, 4711)), SocketAddr::from((here, 443)));
    let header = v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, v2::Protocol::Stream, addresses);
    header.write_tlv(v2::Type::Authority, b"acme.test").unwrap().build().unwrap()
}

fn ask(gateway: &Gateway, header: &[u8], request: &str) -> Option<Response> {
    let mut client = gateway.connect();
    client.send(&[header, request.as_bytes()].concat());
    client.receive()
}

#[test]
fn the_client_that_a_load_balancer_names_is_the_client() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    for (client, inside) in
        [("192.0.2.7", true), ("198.51.100.7", false), ("2001:db8::7", true), ("2001:db9::7", false)]
    {
        for header in [v1(client), v2(client)] {
            let answer = ask(&gateway, &header, GET).expect("an answer");
            assert_eq!(answer.echoed("x-forwarded-for").as_deref(), Some(client));
            let inside_answer = ask(&gateway, &header, &GET.replace("/v1/echo", "/inside")).unwrap();
            assert_eq!(inside_answer.status, if inside { 404 } else { 403 }, "{client}");
            let logged = || gateway.access_log().lines().any(|line| line.contains("/v1/echo") && line.contains(client));
            assert!(comes_true(logged), "{client}: {}", gateway.access_log());
        }
    }
}

#[test]
fn every_request_of_a_connection_has_that_client() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    let mut client = gateway.connect();
    client.send(&v2("192.0.2.7"));
    for _ in 0..5 {
        assert_eq!(client.request(GET).echoed("x-forwarded-for").as_deref(), Some("192.0.2.7"));
    }
    // One header for a connection: a second is no request.
    client.send(&v1("192.0.2.8"));
    assert_eq!(client.receive().unwrap().status, 400);
}

#[test]
fn a_load_balancer_may_speak_for_itself() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    let local = [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20, 0, 0, 0]].concat();
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), local] {
        let answer = ask(&gateway, &header, GET).expect("an answer");
        assert_eq!(answer.echoed("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    }
}

#[test]
fn without_a_good_header_a_load_balancer_gets_nothing() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "protection: { handshake_timeout: 500ms }\n");
    let v2 = v2("192.0.2.7");
    for header in [
        Vec::new(),
        b"PROXY TCP4 1.2.3 4.5.6.7 1 2\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 192.0.2.1 70000 443\r\n".to_vec(),
        b"PROXY TCP6 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(),
        b"PROXY UDP4 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(),
        b"proxy TCP4 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(),
        [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat(),
        // The version is neither one nor two, or the command is unknown.
        [&v2[..12], &[0x31], &v2[13..]].concat(),
        [&v2[..12], &[0x2f], &v2[13..]].concat(),
        // Shorter than the addresses that it announces.
        [&v2[..12], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat(),
        // Longer than anybody needs.
        [&v2[..12], &[0x21, 0x11, 0xff, 0xff]].concat(),
        // Slow: nothing comes behind it.
        b"PROXY TCP4 192.0.2.7".to_vec(),
        v2[..20].to_vec(),
    ] {
        let mut client = gateway.connect();
        let whole = !matches!(header.as_slice(), b"PROXY TCP4 192.0.2.7") && header != v2[..20];
        let request = if whole { GET } else { "" };
        // The other side may have closed before all was sent.
        let _ = client.stream.get_mut().write_all(&[&header, request.as_bytes()].concat());
        assert!(client.receive().is_none(), "{:?}", String::from_utf8_lossy(&header));
    }
    assert_eq!(origin.requests("/v1/echo"), 0);
    assert!(gateway.metrics().contains("proxy_protocol"), "{}", gateway.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_anybody_else_a_header_is_refused_and_none_is_needed() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    for header in [v1("192.0.2.7"), v2("192.0.2.7"), Vec::new()] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(gateway.http).await.unwrap();
        let request = GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        stream.write_all(&[&header, request.as_bytes()].concat()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        let answer = String::from_utf8_lossy(&answer);
        if header.is_empty() {
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("127.0.0.2"), "{answer}");
        } else {
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
    }
    assert_eq!(origin.requests("/v1/echo"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_http2_may_follow_the_header() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    for header in [v1("192.0.2.7"), v2("192.0.2.7")] {
        let mut plain = TcpStream::connect(gateway.http).await.unwrap();
        plain.write_all(&header).await.unwrap();
        let answer = Http2::over(plain, "http").await.get("acme.test", "/v1/echo").await;
        assert_eq!(answer.plain().echoed("x-forwarded-for").as_deref(), Some("192.0.2.7"));

        let mut tcp = TcpStream::connect(gateway.https).await.unwrap();
        tcp.write_all(&header).await.unwrap();
        let config = Arc::new(pki::client(&["h2"], pki::BOTH, None));
        let name = "acme.test".try_into().unwrap();
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let answer = Http2::over(tls, "https").await.get("acme.test", "/v1/echo").await;
        assert_eq!(answer.plain().echoed("x-forwarded-for").as_deref(), Some("192.0.2.7"));
        assert_eq!(answer.plain().echoed("x-forwarded-proto").as_deref(), Some("https"));
    }
}

#[test]
fn connections_are_counted_for_the_client_and_not_for_the_load_balancer() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "protection: { connections_per_address: 3 }\n");
    let connect = |address: &str| {
        let mut client = gateway.connect();
        client.send(&v2(address));
        client
    };
    let mut open: Vec<Client> = (1..=10).map(|n| connect(&format!("192.0.2.{n}"))).collect();
    assert!(open.iter_mut().all(|client| client.request(GET).status == 200));
    let mut greedy: Vec<Client> = (0..3).map(|_| connect("198.51.100.1")).collect();
    assert!(greedy.iter_mut().all(|client| client.request(GET).status == 200));
    assert!(connect("198.51.100.1").is_closed());
    greedy.pop();
    assert!(comes_true(|| {
        let mut client = connect("198.51.100.1");
        // It may be closed before all is sent.
        client.stream.get_mut().write_all(GET.as_bytes()).is_ok() && client.receive().is_some()
    }));
}

#[test]
fn what_the_named_client_says_of_itself_is_believed_only_of_trusted_proxies() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "forwarding: { trusted_proxies: [10.0.0.0/8] }\n");
    let request = GET.replace("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\n\r\n");
    let stranger = ask(&gateway, &v1("198.51.100.1"), &request).unwrap();
    assert_eq!(stranger.echoed("x-forwarded-for").as_deref(), Some("198.51.100.1"));
    assert_eq!(stranger.echoed("x-forwarded-proto").as_deref(), Some("http"));
    let proxy = ask(&gateway, &v1("10.1.1.1"), &request).unwrap();
    assert_eq!(proxy.echoed("x-forwarded-for").as_deref(), Some("192.0.2.9, 10.1.1.1"));
    assert_eq!(proxy.echoed("x-forwarded-proto").as_deref(), Some("https"));
    let inside = request.replace("/v1/echo", "/inside");
    assert_eq!(ask(&gateway, &v1("198.51.100.1"), &inside).unwrap().status, 403);
    assert_eq!(ask(&gateway, &v1("10.1.1.1"), &inside).unwrap().status, 404);
}

#[test]
fn a_connection_without_its_header_stands_in_the_access_log() {
    let origin = Origin::start("a");
    let gateway = start(&origin, TRUSTED, "");
    assert!(ask(&gateway, b"", GET).is_none());
    assert!(comes_true(|| gateway.access_log().contains(r#""early_error":"proxy_protocol""#)));
}
