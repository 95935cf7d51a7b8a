//! `POST /gateway/configure`: all columns of `api_gateway_config` of one tenant.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use seiketsu_config::values::Id;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag::IfMatch,
    idempotency::{Key, kept},
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{Answer, WriteError, Written, gateway_config::GatewayConfig};

/// A tenant, and its columns. What is absent becomes the column's default; a limit of `null` is unlimited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GatewayConfiguration)]
pub(super) struct Configure {
    #[schema(value_type = String)]
    pub(super) tenant: Id,
    /// Requests per minute.
    #[serde(default = "defaults::rate_limit_rpm")]
    #[schema(default = 1000, minimum = 1, maximum = 1_000_000_000)]
    rate_limit_rpm: Option<u64>,
    /// How many may come at once. Without a rate there is none.
    #[serde(default = "defaults::burst_limit")]
    #[schema(default = 100, minimum = 1, maximum = 1_000_000)]
    burst_limit: Option<u64>,
    /// Requests in a day; 0 admits none.
    #[serde(default = "defaults::quota_daily")]
    #[schema(default = 100_000)]
    quota_daily: Option<u64>,
    /// Requests in a month; 0 admits none.
    #[serde(default = "defaults::quota_monthly")]
    #[schema(default = 1_000_000)]
    quota_monthly: Option<u64>,
    /// Set on every response: name to value.
    #[serde(default)]
    #[schema(value_type = Object)]
    custom_headers:
        std::collections::BTreeMap<seiketsu_config::values::HeaderName, seiketsu_config::values::HeaderValue>,
    /// As `policies.cors` of a tenant; `{}` is what plan and defaults say.
    #[serde(default)]
    #[schema(value_type = Object)]
    cors_config: Option<seiketsu_config::policy::Cors>,
    #[serde(default = "defaults::caching_enabled")]
    #[schema(default = true)]
    caching_enabled: bool,
    /// For responses that do not say it themselves.
    #[serde(default = "defaults::cache_ttl_seconds")]
    #[schema(default = 300)]
    cache_ttl_seconds: Option<u64>,
}

mod defaults {
    use crate::store::gateway_config::GatewayConfig;

    pub(super) fn rate_limit_rpm() -> Option<u64> {
        GatewayConfig::default().rate_limit_rpm
    }

    pub(super) fn burst_limit() -> Option<u64> {
        GatewayConfig::default().burst_limit
    }

    pub(super) fn quota_daily() -> Option<u64> {
        GatewayConfig::default().quota_daily
    }

    pub(super) fn quota_monthly() -> Option<u64> {
        GatewayConfig::default().quota_monthly
    }

    pub(super) fn caching_enabled() -> bool {
        GatewayConfig::default().caching_enabled
    }

    pub(super) fn cache_ttl_seconds() -> Option<u64> {
        GatewayConfig::default().cache_ttl_seconds
    }
}

/// All columns of a tenant that is there already.
#[utoipa::path(
    post, path = "/gateway/configure", tag = "gateway", params(
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
        WaitQuery,
    ),
    request_body = Configure,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn configure_gateway(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value, text }: Json<Configure>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    caller.may_touch(&value.tenant)?;
    let once = key.once(&text);
    let answer = |written: &Written| kept(StatusCode::OK, &WriteAnswer::from(written.clone()));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let (tenant, columns) = value.into_columns();
    let about = About::Tenant(tenant.clone());
    match state.store.edit(&caller.author, &tenant, expected, once, |tenant| columns.apply(tenant)).await {
        Ok(written) => Ok(axum::Json(wait.complete(&state, &about, written.into()).await?).into_response()),
        Err(WriteError::Repeated(before)) => wait.again(&state, &about, before).await,
        Err(error) => Err(error.into()),
    }
}

impl Configure {
    fn into_columns(self) -> (Id, GatewayConfig) {
        let Self {
            tenant,
            rate_limit_rpm,
            burst_limit,
            quota_daily,
            quota_monthly,
            custom_headers,
            cors_config,
            caching_enabled,
            cache_ttl_seconds,
        } = self;
        let columns = GatewayConfig {
            rate_limit_rpm,
            burst_limit,
            quota_daily,
            quota_monthly,
            custom_headers,
            cors_config,
            caching_enabled,
            cache_ttl_seconds,
        };
        (tenant, columns)
    }
}
