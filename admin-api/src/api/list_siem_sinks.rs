//! `GET /siem`: where the audit trail is sent to.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::siem::SiemSink;

/// Sinks, in the order of their names, and how far each has come.
#[utoipa::path(
    get, path = "/siem", tag = "siem", params(PageQuery),
    responses(
        (status = 200, description = "A page of sinks", body = Page<SiemSink>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_siem_sinks(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<SiemSink>>, Problem> {
    let limit = page::limit(query.limit)?;
    let rows = state.store.siem_sinks_after(page::after(query.cursor.as_deref())?.as_ref(), limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.name.to_string(), |row| row)))
}
