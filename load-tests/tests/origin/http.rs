//! Echo, bodies, late and bad answers, caching; over HTTP/1.1, HTTP/2 and TLS.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seiketsu_load_tests::origin::tls;
use serde_json::json;

use super::support::{Answer, Running};

#[tokio::test]
async fn echo_shows_what_arrived() {
    let origin = Running::start().await;
    let request = Request::put("/v1/orders/echo?a=1&a=2")
        .header("x-twice", "one")
        .header("x-twice", "two")
        .body(Full::from("hello"))
        .unwrap();
    let answer = origin.send(request).await;
    assert_eq!(answer.header("x-origin-region"), Some("eu-west"));
    let echo = answer.json();
    for (key, value) in [
        ("method", json!("PUT")),
        ("path", json!("/v1/orders/echo")),
        ("query", json!("a=1&a=2")),
        ("http_version", json!("HTTP/1.1")),
        ("body", json!("hello")),
        ("body_encoding", json!("text")),
        ("length", json!(5)),
        ("region", json!("eu-west")),
        ("tls", json!(false)),
    ] {
        assert_eq!(echo[key], value, "{key}");
    }
    let twice: Vec<_> = echo["headers"].as_array().unwrap().iter().filter(|pair| pair[0] == "x-twice").collect();
    assert_eq!(twice, [&json!(["x-twice", "one"]), &json!(["x-twice", "two"])]);
    assert!(echo["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn a_body_that_is_not_text_is_echoed_in_base64() {
    let echo = Running::start().await.post("/v1/echo", vec![0xff, 0x00]).await.json();
    assert_eq!((&echo["body"], &echo["body_encoding"], &echo["length"]), (&json!("/wA="), &json!("base64"), &json!(2)));
}

#[tokio::test]
async fn http_2_with_prior_knowledge_shares_the_port() {
    let origin = Running::start().await;
    let request = Request::get(format!("http://{}/v1/secure/echo", origin.address)).body(Full::default()).unwrap();
    let answer = origin.send_h2(request).await;
    assert_eq!(answer.json()["http_version"], "HTTP/2.0");
    assert_eq!(origin.get("/v1/echo").await.json()["http_version"], "HTTP/1.1");
}

#[tokio::test]
async fn tls_agrees_on_http_2_by_alpn() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let origin = Running::start_with(Some(tls::acceptor(&certificate, &key).unwrap())).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), origin.connect().await).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/v1/echo").body(Full::<Bytes>::default()).unwrap();
    let echo = Answer::read(client.send_request(request).await.unwrap()).await.json();
    assert_eq!((&echo["http_version"], &echo["tls"]), (&json!("HTTP/2.0"), &json!(true)));
}

#[tokio::test]
async fn bytes_come_in_the_length_asked_for() {
    let origin = Running::start().await;
    for length in [0, 1, 1024, 65_536, 65_537, 3_000_000] {
        let answer = origin.get(&format!("/v1/bytes/{length}")).await;
        assert_eq!(answer.header("content-length"), Some(length.to_string().as_str()));
        assert_eq!(answer.body.len(), length);
        let chunked = origin.get(&format!("/v1/bytes/{length}?chunked=true")).await;
        assert_eq!(chunked.header("content-length"), None);
        assert_eq!(chunked.body, answer.body);
    }
    assert_eq!(origin.get("/v1/bytes/many").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_upload_is_counted_and_hashed() {
    let origin = Running::start().await;
    let uploaded = origin.post("/v1/upload", "foobar").await.json();
    assert_eq!(uploaded, json!({ "length": 6, "checksum": "85944171f73967e8", "trailers": false }));

    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(origin.connect().await)).await.unwrap();
    tokio::spawn(connection);
    let pieces = (0..1000).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(&[b'x'; 10_000]))));
    let body = StreamBody::new(futures::stream::iter(pieces));
    let request = Request::post("/v1/upload").header("host", "origin.test").body(body.boxed()).unwrap();
    let answer = Answer::read(client.send_request(request).await.unwrap()).await;
    assert_eq!(answer.json()["length"], 10_000_000);
}

#[tokio::test]
async fn trailers_follow_the_body() {
    let origin = Running::start().await;
    let h1 = origin.send(Request::get("/v1/trailers").header("te", "trailers").body(Full::default()).unwrap()).await;
    let target = format!("http://{}/v1/trailers", origin.address);
    let h2 = origin.send_h2(Request::get(target).body(Full::default()).unwrap()).await;
    for answer in [h1, h2] {
        assert_eq!(answer.body, "one\ntwo\nthree\n");
        assert_eq!(answer.header("trailer"), Some("x-checksum"));
        assert_eq!(answer.trailers["x-checksum"], checksum(&answer.body));
    }
}

fn checksum(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[tokio::test]
async fn an_answer_can_be_asked_for_late_or_bad() {
    let origin = Running::start().await;
    let began = std::time::Instant::now();
    assert_eq!(origin.get("/v1/delay/50").await.status(), StatusCode::OK);
    assert!(began.elapsed().as_millis() >= 50);

    let answer = origin.get("/v1/status/503?retry_after=7").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("7")));
    assert!(origin.get("/v1/status/204").await.body.is_empty());
    assert_eq!(origin.get("/v1/status/101").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(origin.get("/v2/nothing").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn each_event_is_sent_when_it_is_due() {
    let origin = Running::start().await;
    // With an hour between events, the first arrives only if it is not held back for the second.
    let request = Request::get("/v1/stream?count=2&interval_ms=3600000").body(Full::default()).unwrap();
    let mut response = origin.try_send(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "id: 0\nevent: tick\ndata: {\"number\":0,\"of\":2}\n\n");

    let all = origin.get("/v1/stream?count=3&interval_ms=0").await;
    assert_eq!(std::str::from_utf8(&all.body).unwrap().matches("event: tick").count(), 3);
}

#[tokio::test]
async fn a_cacheable_answer_counts_how_often_it_was_made() {
    let origin = Running::start().await;
    let first = origin.get("/v1/cache/60").await;
    assert_eq!(first.header("cache-control"), Some("max-age=60"));
    assert_eq!(first.json()["origin_hits"], 1);
    assert_eq!(origin.get("/v1/cache/60").await.json()["origin_hits"], 2);
    assert_eq!(origin.get("/v1/cache/60?other").await.json()["origin_hits"], 1);

    for (field, validator) in [("if-none-match", "etag"), ("if-modified-since", "last-modified")] {
        let request =
            Request::get("/v1/cache/60").header(field, first.header(validator).unwrap()).body(Full::default());
        let answer = origin.send(request.unwrap()).await;
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{field}");
        assert!(answer.body.is_empty());
    }
    let changed = origin.get("/v1/cache/60?cache_control=no-store&vary=accept&bytes=5000").await;
    assert_eq!((changed.header("cache-control"), changed.header("vary")), (Some("no-store"), Some("accept")));
    assert!(changed.body.len() > 5000);
}
