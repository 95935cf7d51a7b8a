//! `GET /tenants/{id}`: a tenant as it is.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use seiketsu_config::values::Id;

use super::{AppState, Problem, body::PathOf, caller::Caller, etag, openapi::TenantDocument, problem::ProblemDocument};

/// The tenant's document, to the letter.
#[utoipa::path(
    get, path = "/tenants/{id}", tag = "tenants", params(("id" = String, Path, description = "The tenant's name")),
    responses(
        (status = 200, description = "The tenant", body = TenantDocument, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_tenant(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Id>,
) -> Result<Response, Problem> {
    caller.may_touch(&id)?;
    let stored = state.store.tenant(&id).await?.ok_or_else(|| Problem::not_found(&format!("tenant {id}")))?;
    let json = HeaderValue::from_static("application/json");
    let headers = [(header::CONTENT_TYPE, json), (header::ETAG, etag::value(stored.revision))];
    Ok((headers, stored.content).into_response())
}
