//! `GET /routes`: the routes of the tenants that the operator may see.

use axum::{Json, extract::State};
use seiketsu_config::values::{HostPattern, Id};
use serde::Deserialize;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
};
use crate::store::{
    Place, Seen,
    routes::{RouteFilter, RouteRow},
};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct RoutesQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only those of this tenant.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// Only those that send requests, a share of them, or copies to this service.
    #[param(value_type = Option<String>)]
    upstream: Option<Id>,
    /// Only those of the tenant that is served under this host.
    host: Option<String>,
    /// Only those whose path, as it is written, begins with this.
    path: Option<String>,
}

/// Routes, in the order of tenants and names.
#[utoipa::path(
    get, path = "/routes", tag = "routes", params(RoutesQuery),
    responses(
        (status = 200, description = "A page of routes", body = Page<RouteRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_routes(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<RoutesQuery>,
) -> Result<Json<Page<RouteRow>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Place> = page::after(query.cursor.as_deref())?;
    if let Some(tenant) = &query.tenant {
        caller.may_touch(tenant)?;
    }
    let seen = Seen {
        after: after.as_ref(),
        most: limit + 1,
        tenant: query.tenant.as_ref(),
        only: caller.operator.tenants.as_ref(),
    };
    let host = query.host.as_deref().map(str::parse::<HostPattern>).transpose();
    let host = host.map_err(|why| Problem::bad_request(format!("host: {why}")))?;
    let filter = RouteFilter { upstream: query.upstream, host, path: query.path };
    let rows = state.store.routes(seen, &filter).await?;
    Ok(Json(Page::of(rows, limit, |row| row.place().to_string(), |row| row)))
}
