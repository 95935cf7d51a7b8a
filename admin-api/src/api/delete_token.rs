//! `DELETE /tokens/{id}`: what no longer proves anything.

use axum::extract::State;
use http::StatusCode;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument};

/// The token stops to hold at once.
#[utoipa::path(
    delete, path = "/tokens/{id}", tag = "tokens", params(("id" = Uuid, Path, description = "The token's id")),
    responses(
        (status = 204, description = "It was removed"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_token(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<StatusCode, Problem> {
    state.store.delete_token(&caller.author, caller.role(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}
