//! `GET /gateway/configure`: the columns of `api_gateway_config` of one tenant.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AppState, Problem, body::QueryOf, caller::Caller, etag, problem::ProblemDocument};
use crate::store::gateway_config::{self, GatewayConfig, Note};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TenantQuery {
    /// The tenant's name.
    #[param(value_type = String)]
    tenant: Id,
}

/// What the columns show of a tenant. `null` is unlimited.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GatewayColumns {
    #[schema(value_type = String)]
    tenant: Id,
    #[serde(flatten)]
    columns: GatewayConfig,
    /// Columns that do not tell all, and why.
    notes: Vec<Note>,
}

/// The columns of a tenant.
#[utoipa::path(
    get, path = "/gateway/configure", tag = "gateway", params(TenantQuery),
    responses(
        (status = 200, description = "The columns", body = GatewayColumns, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_gateway_configuration(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(TenantQuery { tenant }): QueryOf<TenantQuery>,
) -> Result<Response, Problem> {
    caller.may_touch(&tenant)?;
    let stored = state.store.tenant(&tenant).await?.ok_or_else(|| Problem::not_found(&format!("tenant {tenant}")))?;
    let document = stored.parse()?;
    let columns = GatewayConfig::of(&document);
    let answer = GatewayColumns { tenant, columns, notes: gateway_config::notes(&document) };
    Ok(([(header::ETAG, etag::value(stored.revision))], axum::Json(answer)).into_response())
}
