//! `DELETE /operators/{id}`: somebody who may no longer call this API.

use axum::extract::State;
use http::StatusCode;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, etag::IfMatch, problem::ProblemDocument};

/// The operator and all its tokens. One owner of all tenants must remain.
#[utoipa::path(
    delete, path = "/operators/{id}", tag = "operators", params(
        ("id" = Uuid, Path, description = "The operator's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    responses(
        (status = 204, description = "It was removed"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_operator(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    state.store.delete_operator(&caller.author, caller.role(), id, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}
