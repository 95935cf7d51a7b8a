//! `POST /secrets/rotate`: a new data key.

use axum::{Json, extract::State};

use super::{AppState, Problem, caller::Caller, problem::ProblemDocument};
use crate::store::secrets::Rotated;

/// Makes a data key, and seals every secret in the store with it. If that is interrupted, every secret can still be opened,
/// and rotating again finishes it.
#[utoipa::path(
    post, path = "/secrets/rotate", tag = "secrets",
    responses(
        (status = 200, description = "Everything is sealed with the new key", body = Rotated),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rotate_secrets(State(state): State<AppState>, caller: Caller) -> Result<Json<Rotated>, Problem> {
    Ok(Json(state.store.rotate_keys(&caller.author).await?))
}
