//! `GET /keys/{id}`: one API key.

use axum::{Json, extract::State};

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument};
use crate::store::keys::{KeyId, KeyRow};

/// One key; never what would prove it.
#[utoipa::path(
    get, path = "/keys/{id}", tag = "keys", params(("id" = String, Path, description = "<tenant>.<prefix>")),
    responses(
        (status = 200, description = "The key", body = KeyRow),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_key(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<KeyId>,
) -> Result<Json<KeyRow>, Problem> {
    caller.may_touch(&id.tenant)?;
    Ok(Json(state.store.key(&id).await?.ok_or_else(|| Problem::not_found("key"))?))
}
