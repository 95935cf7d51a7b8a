//! `PUT /tenants/{id}/services/{service}`: a service as it is to be.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::tenant::{Tenant, Upstream};

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag::IfMatch,
    openapi::UpstreamDocument,
    part::PartOf,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};

/// The service is replaced, or added.
#[utoipa::path(
    put, path = "/tenants/{id}/services/{service}", tag = "services", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("service" = String, Path, description = "The service's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    request_body = UpstreamDocument,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_service(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value: service, .. }: Json<Upstream>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let name = part.name.clone();
    let edit = |mut tenant: Tenant| {
        tenant.upstreams.insert(name, service);
        Ok(tenant)
    };
    let written = part.edit(&state, &caller, "service", expected, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(part.tenant), written.into()).await?))
}
