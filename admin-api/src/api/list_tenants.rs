//! `GET /tenants`: the tenants that the operator may see.

use axum::{Json, extract::State};
use seiketsu_config::values::{HostPattern, Id};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
};
use crate::store::tenants::TenantRow;

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only the tenant that is served under this host.
    host: Option<String>,
}

/// A tenant in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantSummary)]
pub(super) struct Summary {
    #[schema(value_type = String)]
    id: Id,
    /// The revision that it was last changed in; its `ETag`.
    revision: u64,
    hosts: Vec<String>,
    plan: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: OffsetDateTime,
}

/// The tenants, in the order of their names.
#[utoipa::path(
    get, path = "/tenants", tag = "tenants", params(ListQuery),
    responses(
        (status = 200, description = "A page of tenants", body = Page<Summary>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_tenants(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Summary>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Id> = page::after(query.cursor.as_deref())?;
    let host = query.host.as_deref().map(str::parse::<HostPattern>).transpose();
    let host = host.map_err(|why| Problem::bad_request(format!("host: {why}")))?;
    let only = caller.operator.tenants.as_ref();
    let rows = state.store.tenants(after.as_ref(), limit + 1, host.as_ref(), only).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), Summary::from)))
}

impl From<TenantRow> for Summary {
    fn from(row: TenantRow) -> Self {
        let TenantRow { id, revision, hosts, plan, updated_at } = row;
        Self { id, revision, hosts, plan, updated_at }
    }
}
