//! Configuration changes while long exchanges are under way: these go on as they began.

use std::{io::Read, net::TcpStream};

use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client::client, handshake::client::generate_key};

use crate::{
    fixtures::comes_true,
    support::{
        Gateway, Origin, PATIENCE,
        http2::{Http2, next, patiently},
    },
};

const BIDI: &str = "/seiketsu.demo.v1.Echo/Bidi";

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

fn configuration(revision: u32, origin: &Origin, with_acme: bool) -> String {
    let header = format!("headers: {{ response: {{ set: {{ x-revision: '{revision}' }} }} }}");
    let acme = format!(
        "- id: acme\n  hosts: [acme.test]\n  policies: {{ {header} }}\n  routes:\n\
         \x20 - {{ id: echo, match: {{ path: '/seiketsu.demo.v1.Echo/{{method}}' }}, upstream: grpc }}\n\
         \x20 - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n"
    );
    format!(
        "revision: {revision}\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\nupstreams:\n\
         \x20 demo: {{ endpoints: [{{ address: '{0}' }}] }}\n\
         \x20 grpc: {{ endpoints: [{{ address: '{0}' }}], protocol: http2 }}\n\
         tenants:\n{1}- id: globex\n  hosts: [globex.test]\n  policies: {{ {header} }}\n  routes:\n\
         \x20 - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n",
        origin.address,
        if with_acme { acme } else { String::new() },
    )
}

fn socket(gateway: &Gateway) -> WebSocket<TcpStream> {
    let request = http::Request::get("ws://acme.test/v1/ws")
        .header("host", "acme.test")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .body(())
        .unwrap();
    let stream = TcpStream::connect(gateway.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    client(request, stream).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_goes_on_when_its_tenant_changes_and_when_it_is_gone() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&configuration(1, &origin, true));
    let answers = |revision: u32| {
        comes_true(|| gateway.get("globex.test", "/v1/echo", "").header("x-revision") == Some(&*revision.to_string()))
    };
    let mut socket = socket(&gateway);
    let mut echo = |text: &str| {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    };
    let h2 = Http2::plain(&gateway).await;
    let request =
        h2.request("POST", "acme.test", BIDI).header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut send) = h2.open(request, false).await.unwrap();
    send.send_data(framed(b"first"), false).unwrap();
    let mut messages = patiently(response).await.unwrap().into_body();
    assert_eq!(next(&mut messages).await.unwrap().unwrap(), framed(b"first"));
    // Read only at the end: the gateway has neither all of it, nor lost any.
    let mut download = gateway.connect();
    download.send(b"GET /v1/bytes/50000000 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    let head = download.receive_head();
    assert_eq!((head.status, head.header("x-revision")), (200, Some("1")));
    echo("first");

    for revision in 2..30 {
        gateway.write_tenants(&configuration(revision, &origin, revision % 3 != 0));
        assert!(answers(revision), "{}", gateway.readyz().text());
        echo(&format!("revision {revision}"));
        let message = framed(&revision.to_be_bytes());
        send.send_data(message.clone(), false).unwrap();
        assert_eq!(next(&mut messages).await.unwrap().unwrap(), message);
        // A new request on the old connection sees what is new.
        let expected = if revision % 3 == 0 { 404 } else { 200 };
        assert_eq!(h2.get("acme.test", "/v1/echo").await.status, expected, "revision {revision}");
    }
    send.send_data(framed(b"last"), true).unwrap();
    assert_eq!(next(&mut messages).await.unwrap().unwrap(), framed(b"last"));
    assert!(next(&mut messages).await.is_none());
    assert_eq!(patiently(messages.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    let mut body = Vec::new();
    download.stream.by_ref().take(50_000_000).read_to_end(&mut body).unwrap();
    assert_eq!(body.len(), 50_000_000);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}

/// The most memory that the process ever had resident, in KiB.
fn peak_memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_a_bounded_part_of_their_bodies() {
    const STREAMS: usize = 64;
    let origin = Origin::start("a");
    for protocol in ["http1", "http2"] {
        let configuration =
            configuration(1, &origin, true).replace("}] }\n  grpc", &format!("}}], protocol: {protocol} }}\n  grpc"));
        let gateway = Gateway::start(&configuration);
        let client = Http2::plain(&gateway).await;
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
        let before = peak_memory(&gateway);
        let mut held = Vec::new();
        for _ in 0..STREAMS {
            let (response, _) =
                client.open(client.request("GET", "acme.test", "/v1/bytes/50000000"), true).await.unwrap();
            held.push(patiently(response).await.unwrap().into_body());
        }
        // Another stream is not held up, and by the time it is whole the others have had theirs.
        let other = Http2::plain(&gateway).await;
        assert_eq!(other.get("acme.test", "/v1/bytes/20000000").await.body.len(), 20_000_000);
        let grown = peak_memory(&gateway) - before;
        assert!(grown < 96 << 10, "{protocol}: {grown} KiB for {STREAMS} streams of 50 MB");
        // And what was held comes.
        let mut first = held.swap_remove(0);
        drop(held);
        let mut length = 0;
        while let Some(piece) = next(&mut first).await {
            length += piece.unwrap().len();
        }
        assert_eq!(length, 50_000_000, "{protocol}");
    }
}
