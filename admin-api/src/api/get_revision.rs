//! `GET /revisions/{number}`: what a revision changed.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    changes::DocumentDifference,
    page::{self, PageQuery},
    problem::ProblemDocument,
};
use crate::store::revisions::RevisionRow;

/// A revision with a page of what it changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Revision {
    #[serde(flatten)]
    row: RevisionRow,
    changes: Vec<DocumentDifference>,
    /// Where the next page begins; none, if this is the last one.
    next: Option<String>,
}

/// Each changed document, as it was and as it became, in the order of names. Where documents are large, a page holds fewer than
/// `limit`.
#[utoipa::path(
    get, path = "/revisions/{number}", tag = "revisions", params(
        ("number" = u64, Path, description = "The revision"),
        PageQuery,
    ),
    responses(
        (status = 200, description = "The revision", body = Revision),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_revision(
    State(state): State<AppState>,
    PathOf(number): PathOf<u64>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Revision>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<String> = page::after(query.cursor.as_deref())?;
    let found = state.store.revision(number, after.as_deref(), limit).await?;
    let (row, page) = found.ok_or_else(|| Problem::not_found(&format!("revision {number}")))?;
    Ok(Json(Revision {
        row,
        changes: page.changes.into_iter().map(DocumentDifference::from).collect(),
        next: page.next.as_deref().map(page::cursor),
    }))
}
