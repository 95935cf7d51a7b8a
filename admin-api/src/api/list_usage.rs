//! `GET /usage`: what tenants have used of their quotas.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;
use serde::Deserialize;
use time::OffsetDateTime;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
};
use crate::store::usage::QuotaUse;

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only this one.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// Only those that have used at least so many hundredths of a quota. Pages may hold fewer than `limit` then.
    #[param(minimum = 0, maximum = 4_294_967_295_u64, value_type = Option<u64>)]
    at_least: Option<u32>,
}

/// What tenants have used today and this month, beside their quotas, in the order of their names.
#[utoipa::path(
    get, path = "/usage", tag = "usage", params(UsageQuery),
    responses(
        (status = 200, description = "A page of tenants", body = Page<QuotaUse>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_usage(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<UsageQuery>,
) -> Result<Json<Page<QuotaUse>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Id> = page::after(query.cursor.as_deref())?;
    let only = caller.sees(query.tenant.as_ref())?;
    let tenants = state.store.tenants(after.as_ref(), limit + 1, None, only.as_ref()).await?;
    let Page { items, next } = Page::of(tenants, limit, |row| row.id.to_string(), |row| row.id.to_string());
    let mut items = state.store.quota_uses(&items, OffsetDateTime::now_utc()).await?;
    if let Some(least) = query.at_least.map(f64::from) {
        let reaches = |percent: Option<f64>| percent.is_some_and(|percent| percent >= least);
        items.retain(|of| reaches(of.day.percent()) || reaches(of.month.percent()));
    }
    Ok(Json(Page { items, next }))
}
