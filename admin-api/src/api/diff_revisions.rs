//! `GET /revisions/{number}/diff`: how two states differ.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    changes::DocumentDifference,
    problem::ProblemDocument,
};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ToQuery {
    /// The revision to compare with, usually the newest.
    to: Option<u64>,
}

/// How two states differ.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Difference {
    from: u64,
    to: u64,
    changes: Vec<DocumentDifference>,
}

/// Each document that differs between two revisions; revision 0 is the empty store.
#[utoipa::path(
    get, path = "/revisions/{number}/diff", tag = "revisions", params(
        ("number" = u64, Path, description = "The revision"),
        ToQuery,
    ),
    responses(
        (status = 200, description = "The difference", body = Difference),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn diff_revisions(
    State(state): State<AppState>,
    PathOf(from): PathOf<u64>,
    QueryOf(query): QueryOf<ToQuery>,
) -> Result<Json<Difference>, Problem> {
    let to = query.to.unwrap_or_else(|| *state.store.newest().borrow());
    let changes = state.store.difference(from, to).await?;
    let changes = changes.ok_or_else(|| Problem::not_found(&format!("revision {}", from.max(to))))?;
    Ok(Json(Difference { from, to, changes: changes.into_iter().map(DocumentDifference::from).collect() }))
}
