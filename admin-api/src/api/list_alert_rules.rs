//! `GET /alerts/rules`: what is watched.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::alert_rules::AlertRule;

/// Rules, in the order they were made in: those of the tenants that the operator may see, and for operators of all tenants
/// the others too.
#[utoipa::path(
    get, path = "/alerts/rules", tag = "alerts", params(PageQuery),
    responses(
        (status = 200, description = "A page of rules", body = Page<AlertRule>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_alert_rules(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<AlertRule>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after = page::after(query.cursor.as_deref())?;
    let rows = state.store.alert_rules(caller.operator.tenants.as_ref(), after, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), |row| row)))
}
