//! `GET /revisions`: what was changed, when and by whom.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::revisions::RevisionRow;

/// Revisions, the newest first.
#[utoipa::path(
    get, path = "/revisions", tag = "revisions", params(PageQuery),
    responses(
        (status = 200, description = "A page of revisions", body = Page<RevisionRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_revisions(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<RevisionRow>>, Problem> {
    let limit = page::limit(query.limit)?;
    let rows = state.store.revisions(page::after(query.cursor.as_deref())?, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.revision.to_string(), |row| row)))
}
