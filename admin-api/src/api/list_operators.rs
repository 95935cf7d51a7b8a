//! `GET /operators`: who may call this API.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;

use super::{
    AppState, Problem,
    body::QueryOf,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::operators::Operator;

/// Operators, in the order of their names.
#[utoipa::path(
    get, path = "/operators", tag = "operators", params(PageQuery),
    responses(
        (status = 200, description = "A page of operators", body = Page<Operator>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_operators(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<Operator>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Id> = page::after(query.cursor.as_deref())?;
    let rows = state.store.operators(after.as_ref().map(Id::as_str), limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.name.to_string(), |row| row)))
}
