//! `GET /webhooks`: whom to tell what happens.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
    webhook_body::may_touch,
};
use crate::store::webhooks::Webhook;

/// Webhooks, in the order they were made in: those that are told of nothing but what the operator may see. Pages
/// may hold fewer than `limit`.
#[utoipa::path(
    get, path = "/webhooks", tag = "webhooks", params(PageQuery),
    responses(
        (status = 200, description = "A page of webhooks", body = Page<Webhook>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_webhooks(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<Webhook>>, Problem> {
    let limit = page::limit(query.limit)?;
    let rows = state.store.webhooks_after(page::after(query.cursor.as_deref())?, limit + 1).await?;
    let mut page = Page::of(rows, limit, |row| row.id.to_string(), |row| row);
    page.items.retain(|webhook| may_touch(&caller, webhook.tenants.as_ref()).is_ok());
    Ok(Json(page))
}
