//! `GET /keys`: the API keys of the tenants that the operator may see.

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
use crate::store::{
    Place, Seen,
    keys::{KeyFilter, KeyRow},
};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Only those of this tenant.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// Only those of this consumer.
    #[param(value_type = Option<String>)]
    consumer: Option<Id>,
    /// Only those that expire, or have expired, before this time.
    #[serde(with = "time::serde::rfc3339::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    expires_before: Option<OffsetDateTime>,
}

/// API keys, in the order of tenants and prefixes; never what would prove one.
#[utoipa::path(
    get, path = "/keys", tag = "keys", params(KeysQuery),
    responses(
        (status = 200, description = "A page of keys", body = Page<KeyRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_keys(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<KeysQuery>,
) -> Result<Json<Page<KeyRow>>, Problem> {
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
    let filter = KeyFilter { consumer: query.consumer, expires_before: query.expires_before };
    let rows = state.store.keys(seen, &filter).await?;
    Ok(Json(Page::of(rows, limit, |row| row.place().to_string(), |row| row)))
}
