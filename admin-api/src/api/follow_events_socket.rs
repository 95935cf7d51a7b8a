//! `GET /events/ws`: what happens, as it happens, over WebSocket.

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::HeaderMap;
use serde_json::json;
use tokio::time::timeout;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    live::{End, EventsQuery, Gone, Out, WRITE_TIMEOUT, pump},
    problem::ProblemDocument,
};
use crate::store::events::Event;

/// Nothing of what clients say is looked at.
const MOST_RECEIVED_BYTES: usize = 4096;

/// The same as `GET /events`, one event as JSON in each text message. After an interruption, `after` is the number of
/// the last event that was seen. What is not kept any more is told as `{"missed": {"after": …, "next": …}}`.
#[utoipa::path(
    get, path = "/events/ws", tag = "events", params(EventsQuery),
    responses(
        (status = 101, description = "Messages follow"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn follow_events_socket(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<EventsQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let asked = query.asked(&state, &caller, &headers, None)?;
    let upgrade = upgrade.map_err(|why| Problem::bad_request(format!("this is a WebSocket: {}", why.body_text())))?;
    let following = state.store.follow(asked.after).await?;
    let upgrade = upgrade.max_message_size(MOST_RECEIVED_BYTES).max_frame_size(MOST_RECEIVED_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let (sink, stream) = socket.split();
        let mut out = Socket { sink, stream };
        let end = pump(state, asked, following, &mut out).await;
        if matches!(end, End::Gone | End::NotReading) {
            return;
        }
        let code = match &end {
            End::All => close_code::NORMAL,
            End::Closing => close_code::AWAY,
            End::Store(_) => close_code::AGAIN,
            _ => close_code::POLICY,
        };
        let frame = CloseFrame { code, reason: end.to_string().into() };
        let _ = timeout(WRITE_TIMEOUT, out.sink.send(Message::Close(Some(frame)))).await;
    }))
}

struct Socket {
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
}

impl Socket {
    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        self.sink.send(message).await.map_err(|_| Gone)
    }
}

impl Out for Socket {
    async fn event(&mut self, event: &Event) -> Result<(), Gone> {
        self.send(Message::Text(serde_json::to_string(event).unwrap_or_default().into())).await
    }

    async fn missed(&mut self, after: u64, next: u64) -> Result<(), Gone> {
        self.send(Message::Text(json!({ "missed": { "after": after, "next": next } }).to_string().into())).await
    }

    async fn beat(&mut self, _: u64) -> Result<(), Gone> {
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn gone(&mut self) {
        // Pings are answered by reading them.
        while let Some(Ok(message)) = self.stream.next().await {
            if let Message::Close(_) = message {
                return;
            }
        }
    }
}
