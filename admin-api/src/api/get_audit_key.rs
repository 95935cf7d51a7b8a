//! `GET /audit/key`: what an exported trail is verified with.

use axum::{Json, extract::State};

use super::{AppState, Problem, problem::ProblemDocument};
use crate::store::seals::SealKey;

/// The public key of the seals. Keep it where the trail is exported to: one that is fetched later proves less.
#[utoipa::path(
    get, path = "/audit/key", tag = "audit",
    responses(
        (status = 200, description = "The key", body = SealKey),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_audit_key(State(state): State<AppState>) -> Result<Json<SealKey>, Problem> {
    Ok(Json(state.store.seal_key()))
}
