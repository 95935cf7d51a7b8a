//! `GET /performance/objectives`: how tenants' promises are kept, and how fast their error budgets burn.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
};
use crate::store::performance::Burn;

/// A budget is for thirty days; the shorter ones show that it burns.
const WINDOWS: [(&str, Duration); 4] =
    [("1h", Duration::HOUR), ("6h", Duration::hours(6)), ("24h", Duration::hours(24)), ("30d", Duration::days(30))];

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ObjectivesQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only this one.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
}

/// How a tenant's promises are kept.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantObjectives)]
pub(super) struct Kept {
    #[schema(value_type = String)]
    tenant: Id,
    /// How many of 100 admitted requests may fail.
    errors_percent: f64,
    /// In how many milliseconds 99 of 100 are to be answered.
    latency_ms: u64,
    /// What is left of the budgets of thirty days, in hundredths; below 0, more was used than there is.
    errors_budget_left: f64,
    latency_budget_left: f64,
    /// The last hour, six hours, day and thirty days.
    windows: Vec<WindowKept>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ObjectivesWindow)]
pub(super) struct WindowKept {
    window: &'static str,
    errors: Burn,
    latency: Burn,
}

/// Tenants with their objectives and error budgets, in the order of their names.
#[utoipa::path(
    get, path = "/performance/objectives", tag = "usage", params(ObjectivesQuery),
    responses(
        (status = 200, description = "A page of tenants", body = Page<Kept>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_objectives(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ObjectivesQuery>,
) -> Result<Json<Page<Kept>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Id> = page::after(query.cursor.as_deref())?;
    let only = caller.sees(query.tenant.as_ref())?;
    let tenants = state.store.tenants(after.as_ref(), limit + 1, None, only.as_ref()).await?;
    let Page { items, next } = Page::of(tenants, limit, |row| row.id.to_string(), |row| row.id);
    let (now, objectives) = (OffsetDateTime::now_utc(), state.objectives);
    let nothing = Burn { requests: 0, bad: 0, burn: 0.0 };
    let mut kept: Vec<Kept> = items
        .iter()
        .map(|tenant| Kept {
            tenant: tenant.clone(),
            errors_percent: objectives.errors_percent,
            latency_ms: objectives.latency_ms,
            errors_budget_left: 100.0,
            latency_budget_left: 100.0,
            windows: Vec::new(),
        })
        .collect();
    for (name, window) in WINDOWS {
        let burns = state.store.burns(&objectives, &items, now - window).await?;
        for of in &mut kept {
            let burn = burns.get(&of.tenant);
            let (errors, latency) = burn.map_or((nothing, nothing), |burn| (burn.errors, burn.latency));
            // The longest comes last.
            of.errors_budget_left = 100.0 * (1.0 - errors.burn);
            of.latency_budget_left = 100.0 * (1.0 - latency.burn);
            of.windows.push(WindowKept { window: name, errors, latency });
        }
    }
    Ok(Json(Page { items: kept, next }))
}
