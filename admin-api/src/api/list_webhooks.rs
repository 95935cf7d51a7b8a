//! `GET /webhooks`: whom to tell what happens.

use axum::{Json, extract::State};

use super::{AppState, Problem, caller::Caller, page::Page, problem::ProblemDocument, webhook_body::may_touch};
use crate::store::webhooks::Webhook;

/// Webhooks, in the order they were made in: those that are told of nothing but what the operator may see.
#[utoipa::path(
    get, path = "/webhooks", tag = "webhooks",
    responses(
        (status = 200, description = "The webhooks", body = Page<Webhook>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_webhooks(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<Page<Webhook>>, Problem> {
    let mut items = state.store.webhooks().await?;
    items.retain(|webhook| may_touch(&caller, webhook.tenants.as_ref()).is_ok());
    Ok(Json(Page { items, next: None }))
}
