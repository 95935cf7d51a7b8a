//! `GET /performance`: what was measured of tenants.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
    span,
};
use crate::store::performance::{MetricFilter, MetricRow, MetricStatus};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct PerformanceQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// As in `latency_p99_ms`.
    metric: Option<String>,
    #[param(inline)]
    status: Option<MetricStatus>,
    region: Option<String>,
    /// RFC 3339.
    from: Option<String>,
    /// RFC 3339.
    to: Option<String>,
}

/// Metrics, minute by minute, the newest first.
#[utoipa::path(
    get, path = "/performance", tag = "usage", params(PerformanceQuery),
    responses(
        (status = 200, description = "A page of metrics", body = Page<MetricRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_performance(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<PerformanceQuery>,
) -> Result<Json<Page<MetricRow>>, Problem> {
    let PerformanceQuery { cursor, limit, tenant, metric, status, region, from, to } = query;
    let limit = page::limit(limit)?;
    let after: Option<Place> = page::after(cursor.as_deref())?;
    let filter = MetricFilter {
        tenants: caller.sees(tenant.as_ref())?,
        metric,
        status,
        region,
        from: span::moment("from", from.as_deref())?,
        to: span::moment("to", to.as_deref())?,
    };
    let rows = state.store.metrics(&filter, after.map(|Place(at, id)| (at, id)), limit + 1).await?;
    let place = |row: &MetricRow| format!("{}:{}", row.recorded_at.unix_timestamp(), row.id);
    Ok(Json(Page::of(rows, limit, place, |row| row)))
}

/// Rows are of whole minutes.
struct Place(OffsetDateTime, Uuid);

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, id) = text.split_once(':').ok_or(())?;
        let at = at.parse().ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()).ok_or(())?;
        Ok(Self(at, id.parse().map_err(drop)?))
    }
}
