//! `GET /webhooks/{id}`: one webhook.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, etag, problem::ProblemDocument, webhook_body::webhook};
use crate::store::webhooks::Webhook;

/// The webhook without its secret, with its `ETag`.
#[utoipa::path(
    get, path = "/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path, description = "The webhook's id")),
    responses(
        (status = 200, description = "The webhook", body = Webhook, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<Response, Problem> {
    let webhook = webhook(&state, &caller, id).await?;
    Ok(([(header::ETAG, etag::value(webhook.revision))], axum::Json(webhook)).into_response())
}
