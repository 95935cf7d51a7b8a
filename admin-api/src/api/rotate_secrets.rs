//! `POST /secrets/rotate`: a new data key.

use axum::{Json, extract::State};

use super::{AppState, Problem, caller::Caller, problem::ProblemDocument};
use crate::store::secrets::Rotated;

/// Makes a data key, and seals every secret in the store with it that opens; those that do not are named, and stay as they
/// are. If that is interrupted, every secret can still be opened, and rotating again within an hour finishes it.
#[utoipa::path(
    post, path = "/secrets/rotate", tag = "secrets",
    responses(
        (status = 200, description = "Everything that opens is sealed with the new key", body = Rotated),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rotate_secrets(State(state): State<AppState>, caller: Caller) -> Result<Json<Rotated>, Problem> {
    Ok(Json(state.store.rotate_keys(&caller.author).await?))
}
