//! `GET /consumers`: the callers of the tenants that the operator may see.

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
use crate::store::{Place, Seen, consumers::ConsumerRow};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsumersQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only those of this tenant.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// Only those with this name.
    #[param(value_type = Option<String>)]
    id: Option<Id>,
}

/// Callers that tenants know by name, in the order of tenants and names.
#[utoipa::path(
    get, path = "/consumers", tag = "consumers", params(ConsumersQuery),
    responses(
        (status = 200, description = "A page of consumers", body = Page<ConsumerRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_consumers(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ConsumersQuery>,
) -> Result<Json<Page<ConsumerRow>>, Problem> {
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
    let rows = state.store.consumers(seen, query.id.as_ref()).await?;
    Ok(Json(Page::of(rows, limit, |row| row.place().to_string(), |row| row)))
}
