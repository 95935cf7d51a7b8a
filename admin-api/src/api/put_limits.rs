//! `PUT /gateway/limits`: the limits of one tenant that are to change.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::values::Id;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag::IfMatch,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::gateway_config::{LimitsChange, given};

/// A tenant, and what is to change. What is absent stays; `null` is unlimited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LimitsChange)]
#[allow(clippy::option_option)] // Absent is not `null`.
pub(super) struct Limits {
    #[schema(value_type = String)]
    tenant: Id,
    /// Requests per minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000)]
    rate_limit_rpm: Option<Option<u64>>,
    /// How many may come at once; `null` is as many as the rate.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000)]
    burst_limit: Option<Option<u64>>,
    /// Requests in a day; 0 admits none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    quota_daily: Option<Option<u64>>,
    /// Requests in a month; 0 admits none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    quota_monthly: Option<Option<u64>>,
}

/// Limits of a tenant.
#[utoipa::path(
    put, path = "/gateway/limits", tag = "gateway", params(
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    request_body = Limits,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_limits(
    State(state): State<AppState>,
    caller: Caller,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value, .. }: Json<Limits>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    caller.may_touch(&value.tenant)?;
    let Limits { tenant, rate_limit_rpm, burst_limit, quota_daily, quota_monthly } = value;
    let change = LimitsChange { rate_limit_rpm, burst_limit, quota_daily, quota_monthly };
    if change.is_empty() {
        let fix = "give at least one of rate_limit_rpm, burst_limit, quota_daily, quota_monthly";
        return Err(Problem::invalid_at("", "no limit is given", Some(fix)));
    }
    let written = state.store.edit(&caller.author, &tenant, expected, None, |tenant| change.apply(tenant)).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(tenant), written.into()).await?))
}
