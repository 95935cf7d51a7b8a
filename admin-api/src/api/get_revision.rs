//! `GET /revisions/{number}`: what a revision changed.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{AppState, Problem, body::PathOf, changes::DocumentDifference, problem::ProblemDocument};
use crate::store::revisions::RevisionRow;

/// A revision with what it changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Revision {
    #[serde(flatten)]
    revision: RevisionRow,
    changes: Vec<DocumentDifference>,
}

/// Each changed document, as it was and as it became.
#[utoipa::path(
    get, path = "/revisions/{number}", tag = "revisions", params(("number" = u64, Path, description = "The revision")),
    responses(
        (status = 200, description = "The revision", body = Revision),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_revision(
    State(state): State<AppState>,
    PathOf(number): PathOf<u64>,
) -> Result<Json<Revision>, Problem> {
    let found = state.store.revision(number).await?;
    let (revision, changes) = found.ok_or_else(|| Problem::not_found(&format!("revision {number}")))?;
    Ok(Json(Revision { revision, changes: changes.into_iter().map(DocumentDifference::from).collect() }))
}
