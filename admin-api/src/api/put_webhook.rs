//! `PUT /webhooks/{id}`: a webhook as it is to be.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::{Json, PathOf},
    caller::Caller,
    etag::{self, IfMatch},
    problem::ProblemDocument,
    webhook_body::{WebhookBody, webhook},
};
use crate::store::webhooks::Webhook;

/// Its secret stays. One that was disabled and is enabled again is sent what still waits for it.
#[utoipa::path(
    put, path = "/webhooks/{id}", tag = "webhooks", params(
        ("id" = Uuid, Path, description = "The webhook's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    request_body = WebhookBody,
    responses(
        (status = 200, description = "It is so", body = Webhook, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
    Json { value, .. }: Json<WebhookBody>,
) -> Result<Response, Problem> {
    let before = webhook(&state, &caller, id).await?;
    let settings = value.checked(&state, &caller)?;
    let expected = expected.or(Some(before.revision));
    let webhook = state.store.update_webhook(&caller.author, id, expected, settings).await?;
    Ok(([(header::ETAG, etag::value(webhook.revision))], axum::Json(webhook)).into_response())
}
