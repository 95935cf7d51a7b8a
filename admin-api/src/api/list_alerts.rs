//! `GET /alerts`: what rules have found.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;
use serde::Deserialize;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
};
use crate::store::{
    alert_rules::Severity,
    alerts::{Alert, AlertFilter, AlertState},
};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AlertsQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    #[param(inline)]
    state: Option<AlertState>,
    #[param(inline)]
    severity: Option<Severity>,
    /// Only those of this tenant.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
}

/// Alerts, the newest first: those of the tenants that the operator may see, and for operators of all tenants the others
/// too.
#[utoipa::path(
    get, path = "/alerts", tag = "alerts", params(AlertsQuery),
    responses(
        (status = 200, description = "A page of alerts", body = Page<Alert>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_alerts(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<AlertsQuery>,
) -> Result<Json<Page<Alert>>, Problem> {
    if let Some(tenant) = &query.tenant {
        caller.may_touch(tenant)?;
    }
    let limit = page::limit(query.limit)?;
    let before = page::after(query.cursor.as_deref())?;
    let filter = AlertFilter {
        state: query.state,
        severity: query.severity,
        tenant: query.tenant,
        tenants: caller.operator.tenants,
    };
    let rows = state.store.alerts(&filter, before, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), |row| row)))
}
