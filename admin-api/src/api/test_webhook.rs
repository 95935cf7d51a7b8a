//! `POST /webhooks/{id}/test`: something to take that nothing has caused.

use axum::{Json, extract::State};
use http::StatusCode;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument, webhook_body::webhook};
use crate::store::deliveries::Delivery;

/// Of the type `webhook.test`. How it went stands among the deliveries.
#[utoipa::path(
    post, path = "/webhooks/{id}/test", tag = "webhooks", params(("id" = Uuid, Path, description = "The webhook's id")),
    responses(
        (status = 202, description = "It will be tried", body = Delivery),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn test_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<(StatusCode, Json<Delivery>), Problem> {
    webhook(&state, &caller, id).await?;
    Ok((StatusCode::ACCEPTED, Json(state.store.test_webhook(&caller.author, id).await?)))
}
