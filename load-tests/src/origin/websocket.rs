//! `/v1/ws`: WebSocket echo (RFC 6455) over the HTTP/1.1 upgrade.

use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::body::{Response, problem, status_only};

/// Text and binary messages come back as they are; pings are answered and closing is confirmed by the
/// protocol's own rules. The first subprotocol the client offers is taken.
pub(super) fn echo(mut request: Request<Incoming>) -> Response {
    let headers = request.headers();
    let key = match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key)
            if names(headers, &header::UPGRADE, "websocket") && names(headers, &header::CONNECTION, "upgrade") =>
        {
            derive_accept_key(key.as_bytes())
        }
        _ => {
            let mut response = problem(StatusCode::UPGRADE_REQUIRED, "open this path as a WebSocket over HTTP/1.1");
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            return response;
        }
    };
    let subprotocol = headers
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|offered| offered.to_str().ok()?.split(',').next()?.trim().parse::<HeaderValue>().ok());

    tokio::spawn(serve(hyper::upgrade::on(&mut request)));

    let mut response = status_only(StatusCode::SWITCHING_PROTOCOLS);
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(key) = HeaderValue::from_str(&key) {
        fields.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    if let Some(subprotocol) = subprotocol {
        fields.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    response
}

/// Whether a list of tokens (RFC 9110 §5.6.1) has this one, in any case.
fn names(headers: &HeaderMap, field: &HeaderName, token: &str) -> bool {
    headers
        .get_all(field)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

async fn serve(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    // Pongs and the confirmation of a close are sent by the protocol while the next message is read.
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            break;
        }
    }
}
