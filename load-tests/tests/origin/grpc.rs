//! gRPC as it is on the wire: frames of a five-byte prefix and a message, the status in trailers.

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::Full;

use super::support::{Answer, Running};

fn framed(messages: &[&[u8]]) -> Bytes {
    let mut body = BytesMut::new();
    for message in messages {
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap());
        body.put_slice(message);
    }
    body.freeze()
}

async fn call(origin: &Running, method: &str, metadata: &[(&str, &str)], body: Bytes) -> Answer {
    let mut request = Request::post(format!("http://{}{method}", origin.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    origin.send_h2(request.body(Full::new(body)).unwrap()).await
}

#[tokio::test]
async fn each_method_answers_in_its_manner() {
    let origin = Running::start().await;
    for (method, sent, received) in [
        ("Unary", vec![b"hi".as_slice()], vec![b"hi".as_slice()]),
        ("ServerStream", vec![b"hi"], vec![b"hi", b"hi"]),
        ("ClientStream", vec![b"a", b"", b"bc"], vec![b"abc"]),
        ("Bidi", vec![b"a", b"", b"bc"], vec![b"a", b"", b"bc"]),
    ] {
        let answer =
            call(&origin, &format!("/seiketsu.demo.v1.Echo/{method}"), &[("x-repeat", "2")], framed(&sent)).await;
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        assert_eq!(answer.body, framed(&received), "{method}");
        assert_eq!(answer.trailers["grpc-status"], "0", "{method}");
    }
}

#[tokio::test]
async fn bidirectional_messages_come_back_before_the_last_is_sent() {
    let origin = Running::start().await;
    let (client, connection) = h2::client::handshake(origin.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/seiketsu.demo.v1.Echo/Bidi", origin.address)).body(()).unwrap();
    let (response, mut send) = client.ready().await.unwrap().send_request(request, false).unwrap();
    send.send_data(framed(&[b"one"]), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), framed(&[b"one"]));
    send.send_data(framed(&[b"two"]), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), framed(&[b"two"]));
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_refusal_is_a_status_without_a_message() {
    let origin = Running::start().await;
    for (method, metadata, body, status) in [
        ("/seiketsu.demo.v1.Echo/Unary", vec![("x-grpc-status", "14")], framed(&[b"x"]), "14"),
        ("/seiketsu.demo.v1.Echo/Unary", vec![], framed(&[b"x", b"y"]), "3"),
        ("/seiketsu.demo.v1.Echo/Unary", vec![], Bytes::from_static(&[1, 0, 0, 0, 0]), "12"),
        ("/seiketsu.demo.v1.Echo/Nothing", vec![], framed(&[b"x"]), "12"),
        ("/grpc.health.v1.Health/Check", vec![], framed(&[b"\x0a\x07unknown"]), "5"),
    ] {
        let answer = call(&origin, method, &metadata, body).await;
        assert_eq!(answer.header("grpc-status"), Some(status), "{method} {metadata:?}");
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn the_health_service_follows_the_switch() {
    let origin = Running::start().await;
    let check = async || call(&origin, "/grpc.health.v1.Health/Check", &[], framed(&[b""])).await.body;
    assert_eq!(check().await, framed(&[&[0x08, 1]]));
    origin.post("/control/health", r#"{"healthy": false}"#).await;
    assert_eq!(check().await, framed(&[&[0x08, 2]]));
}
