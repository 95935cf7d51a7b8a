//! `DELETE /siem/{id}`: the audit trail is sent there no more.

use axum::extract::State;
use http::StatusCode;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, etag::IfMatch, problem::ProblemDocument};

/// What was not taken yet is not sent either.
#[utoipa::path(
    delete, path = "/siem/{id}", tag = "siem", params(
        ("id" = Uuid, Path, description = "The sink's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    responses(
        (status = 204, description = "It was removed"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_siem_sink(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    state.store.delete_siem_sink(&caller.author, id, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}
