//! `POST /webhooks/{id}/deliveries/{delivery}/replay`: told once more.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::StatusCode;
use uuid::Uuid;

use super::{AppState, Problem, caller::Caller, problem::ProblemDocument, webhook_body::webhook};
use crate::store::deliveries::Delivery;

/// The same, with the same `webhook-id`, as if it were new: also what was taken, and what was tried for the last time.
#[utoipa::path(
    post, path = "/webhooks/{id}/deliveries/{delivery}/replay", tag = "webhooks", params(
        ("id" = Uuid, Path, description = "The webhook's id"),
        ("delivery" = Uuid, Path, description = "The delivery's id"),
    ),
    responses(
        (status = 202, description = "It will be tried", body = Delivery),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn replay_delivery(
    State(state): State<AppState>,
    caller: Caller,
    path: Result<Path<(Uuid, Uuid)>, PathRejection>,
) -> Result<(StatusCode, Json<Delivery>), Problem> {
    let unread = |why: PathRejection| Problem::bad_request(format!("the path cannot be read: {}", why.body_text()));
    let Path((id, delivery)) = path.map_err(unread)?;
    webhook(&state, &caller, id).await?;
    let delivery = state.store.replay_delivery(&caller.author, id, delivery).await?;
    Ok((StatusCode::ACCEPTED, Json(delivery)))
}
