//! `DELETE /nodes/{id}`: a node that will not come back.

use axum::extract::State;
use http::StatusCode;
use seiketsu_config::values::Id;

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument};

/// The node is known no longer, and no change waits for it. One that is connected has to end first; one that connects
/// again is known again, if its token still holds.
#[utoipa::path(
    delete, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The node's name")),
    responses(
        (status = 204, description = "It is known no longer"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_node(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Id>,
) -> Result<StatusCode, Problem> {
    state.store.delete_node(&caller.author, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
