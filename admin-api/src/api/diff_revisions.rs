//! `GET /revisions/{number}/diff`: how two states differ.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    changes::DocumentDifference,
    page,
    problem::ProblemDocument,
};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffQuery {
    /// The revision to compare with, usually the newest. With a `cursor`: the one that the page before was compared with.
    to: Option<u64>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
}

/// How two states differ.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Difference {
    from: u64,
    to: u64,
    changes: Vec<DocumentDifference>,
    /// Where the next page begins; none, if this is the last one.
    next: Option<String>,
}

/// Each document that differs between two revisions, in the order of names; revision 0 is the empty store. Pages may hold fewer
/// than `limit`.
#[utoipa::path(
    get, path = "/revisions/{number}/diff", tag = "revisions", params(
        ("number" = u64, Path, description = "The revision"),
        DiffQuery,
    ),
    responses(
        (status = 200, description = "The difference", body = Difference),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn diff_revisions(
    State(state): State<AppState>,
    PathOf(from): PathOf<u64>,
    QueryOf(query): QueryOf<DiffQuery>,
) -> Result<Json<Difference>, Problem> {
    let to = query.to.unwrap_or_else(|| *state.store.newest().borrow());
    let limit = page::limit(query.limit)?;
    let after: Option<String> = page::after(query.cursor.as_deref())?;
    let page = state.store.difference(from, to, after.as_deref(), limit).await?;
    let page = page.ok_or_else(|| Problem::not_found(&format!("revision {}", from.max(to))))?;
    let changes = page.changes.into_iter().map(DocumentDifference::from).collect();
    Ok(Json(Difference { from, to, changes, next: page.next.as_deref().map(page::cursor) }))
}
