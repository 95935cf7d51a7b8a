//! `GET /events`: what happens, as it happens, as server-sent events.

use std::convert::Infallible;

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    live::{End, EventsQuery, Gone, Out, pump},
    problem::ProblemDocument,
};
use crate::{serve::HangUp, store::events::Event};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Events on their way to the connection.
const PIECES: usize = 64;

/// Server-sent events (HTML, section 9.2): `id` is the event's number, `event` its kind, `data` the event. What was
/// missed since `Last-Event-ID` comes first; what of it is not kept any more is told as an event `missed`. The stream
/// ends when the token does, and for whoever does not read.
#[utoipa::path(
    get, path = "/events", tag = "events", params(
        EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "The number of the last event that was seen; goes before `after`"),
    ),
    responses(
        (status = 200, description = "Events, one after the other", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn follow_events(
    State(state): State<AppState>,
    caller: Caller,
    hang_up: Option<Extension<HangUp>>,
    QueryOf(query): QueryOf<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = query.asked(&state, &caller, &headers, last_event_id(&headers)?)?;
    let following = state.store.follow(asked.after).await?;
    let (pieces, received) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut out = ServerSent(pieces);
        // Something at once, so that whoever is between passes on the head.
        let _ = out.beat(following.last()).await;
        match pump(state, asked, following, &mut out).await {
            End::All | End::Gone | End::Closing => {}
            end => {
                tracing::info!(%end, "a stream of events ended");
                if let (End::NotReading, Some(Extension(hang_up))) = (end, hang_up) {
                    hang_up.now();
                }
            }
        }
    });
    let body = futures::stream::unfold(received, |mut received| async {
        let piece: Bytes = received.recv().await?;
        Some((Ok::<_, Infallible>(piece), received))
    });
    let mut response = Body::from_stream(body).into_response();
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // For proxies that would rather collect the whole of it.
    fields.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Problem::bad_request("Last-Event-ID: send the number of an event"))
}

struct ServerSent(mpsc::Sender<Bytes>);

impl ServerSent {
    async fn send(&self, text: String) -> Result<(), Gone> {
        self.0.send(text.into()).await.map_err(|_| Gone)
    }
}

impl Out for ServerSent {
    async fn event(&mut self, event: &Event) -> Result<(), Gone> {
        let data = serde_json::to_string(event).unwrap_or_default();
        self.send(format!("id: {}\nevent: {}\ndata: {data}\n\n", event.number, event.kind.as_str())).await
    }

    async fn missed(&mut self, after: u64, next: u64) -> Result<(), Gone> {
        let data = json!({ "after": after, "next": next });
        self.send(format!("id: {}\nevent: missed\ndata: {data}\n\n", next - 1)).await
    }

    async fn beat(&mut self, last: u64) -> Result<(), Gone> {
        // Without data it is no event, and says where to go on.
        self.send(format!(":\nid: {last}\n\n")).await
    }

    async fn gone(&mut self) {
        self.0.closed().await;
    }
}
