//! `DELETE /webhooks/{id}`: somebody who is told nothing any more.

use axum::extract::State;
use http::StatusCode;
use uuid::Uuid;

use super::{
    AppState, Problem, body::PathOf, caller::Caller, etag::IfMatch, problem::ProblemDocument, webhook_body::webhook,
};

/// What still waits for it goes with it.
#[utoipa::path(
    delete, path = "/webhooks/{id}", tag = "webhooks", params(
        ("id" = Uuid, Path, description = "The webhook's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    responses(
        (status = 204, description = "It was removed"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let before = webhook(&state, &caller, id).await?;
    state.store.delete_webhook(&caller.author, id, expected.or(Some(before.revision))).await?;
    Ok(StatusCode::NO_CONTENT)
}
