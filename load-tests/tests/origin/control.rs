//! Switches and counters.

use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::support::Running;

#[tokio::test]
async fn health_is_switched_off_and_on() {
    let origin = Running::start().await;
    assert_eq!(origin.get("/healthz").await.status(), StatusCode::OK);
    origin.post("/control/health", r#"{"healthy": false}"#).await;
    assert_eq!(origin.get("/healthz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(origin.get("/v1/echo").await.status(), StatusCode::OK, "only the health check fails");
    origin.post("/control/health", r#"{"healthy": true}"#).await;
    assert_eq!(origin.get("/healthz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn misbehaviour_is_for_v1_only_and_ends_with_an_empty_object() {
    let origin = Running::start().await;
    origin.post("/control/behaviour", r#"{"status": 503}"#).await;
    assert_eq!(origin.get("/v1/echo").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(origin.get("/healthz").await.status(), StatusCode::OK);

    origin.post("/control/behaviour", r#"{"reset_share": 1.0}"#).await;
    let request = Request::get("/v1/echo").body(Full::default()).unwrap();
    let error = origin.try_send(request).await.unwrap_err();
    assert!(error.is_incomplete_message(), "{error:?}");

    origin.post("/control/behaviour", r#"{"delay_ms": 40}"#).await;
    let began = std::time::Instant::now();
    assert_eq!(origin.get("/v1/echo").await.status(), StatusCode::OK);
    assert!(began.elapsed().as_millis() >= 40);

    origin.post("/control/behaviour", "{}").await;
    assert_eq!(origin.get("/v1/echo").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_and_changes_nothing() {
    let origin = Running::start().await;
    for body in [r#"{"reset_share": 2}"#, r#"{"status": 99}"#, r#"{"statu": 503}"#, "no JSON"] {
        let answer = origin.post("/control/behaviour", body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(origin.get("/control/behaviour").await.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(origin.get("/v1/echo").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn requests_are_counted_by_path() {
    let origin = Running::start().await;
    origin.get("/v1/echo?a").await;
    origin.get("/v1/echo?b").await;
    let stats = origin.get("/control/stats").await.json();
    assert_eq!(stats["requests"], json!({ "/v1/echo": 2, "/control/stats": 1 }));
    assert_eq!(stats["connections_accepted"], 3);
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_end() {
    let origin = Running::start().await;
    let address = origin.address;
    origin.post("/control/behaviour", r#"{"delay_ms": 200}"#).await;
    let request = Request::get("/v1/echo").header("host", "origin.test").body(Full::<bytes::Bytes>::default()).unwrap();
    let stream = origin.connect().await;
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = client.send_request(request);
    let counted = async {
        while origin.get("/control/stats").await.json()["requests"]["/v1/echo"] != 1 {}
        origin.stop().await;
    };
    let (answer, ()) = tokio::join!(answer, counted);
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is closed");
}
