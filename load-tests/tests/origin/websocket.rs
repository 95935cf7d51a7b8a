//! The WebSocket echo, with an ordinary client.

use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::support::Running;

#[tokio::test]
async fn messages_come_back_pings_are_answered_and_closing_is_confirmed() {
    let origin = Running::start().await;
    let url = format!("ws://{}/v1/ws", origin.address);
    let (mut socket, response) = tokio_tungstenite::client_async(url, origin.connect().await).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);

    for message in [Message::text("grüß dich"), Message::binary(vec![0; 200_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
    socket.close(None).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
}

#[tokio::test]
async fn the_first_subprotocol_offered_is_taken() {
    let origin = Running::start().await;
    let mut request = format!("ws://{}/v1/ws", origin.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat, superchat".parse().unwrap());
    let (_, response) = tokio_tungstenite::client_async(request, origin.connect().await).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
}

#[tokio::test]
async fn a_plain_request_is_told_to_upgrade() {
    let origin = Running::start().await;
    let answer = origin.send(Request::get("/v1/ws").body(Full::default()).unwrap()).await;
    assert_eq!((answer.status(), answer.header("upgrade")), (StatusCode::UPGRADE_REQUIRED, Some("websocket")));
}
