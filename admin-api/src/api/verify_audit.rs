//! `GET /audit/verify`: whether the trail is what it was when it was written.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{AppState, Problem, problem::ProblemDocument};
use crate::store::audit::Verdict;

/// What verifying came to.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Verification {
    /// Whether no entry was altered, taken out or put elsewhere.
    intact: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Goes through every entry, and through what they tell of: revisions, documents, operators and tokens, seals and keys.
#[utoipa::path(
    get, path = "/audit/verify", tag = "audit",
    responses(
        (status = 200, description = "What it came to", body = Verification),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn verify_audit(State(state): State<AppState>) -> Result<Json<Verification>, Problem> {
    let verdict = state.store.verify_audit().await?;
    Ok(Json(Verification { intact: verdict.faults.is_empty(), verdict }))
}
