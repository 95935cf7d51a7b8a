//! `GET /tokens`: what operators and nodes prove themselves with.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::tokens::TokenRow;

/// Tokens, in the order they were made in, without what makes them tokens.
#[utoipa::path(
    get, path = "/tokens", tag = "tokens", params(PageQuery),
    responses(
        (status = 200, description = "A page of tokens", body = Page<TokenRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_tokens(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<TokenRow>>, Problem> {
    let limit = page::limit(query.limit)?;
    let rows = state.store.tokens(page::after(query.cursor.as_deref())?, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), |row| row)))
}
