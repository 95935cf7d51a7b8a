//! `DELETE /tenants/{id}/services/{service}`: a service that nothing is sent to any more.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::tenant::Tenant;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    etag::IfMatch,
    part::PartOf,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};

/// The service is removed, if no route uses it.
#[utoipa::path(
    delete, path = "/tenants/{id}/services/{service}", tag = "services", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("service" = String, Path, description = "The service's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    responses(
        (status = 200, description = "It is gone", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_service(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let edit = |mut tenant: Tenant| {
        tenant.upstreams.remove(&part.name).ok_or_else(|| part.missing("service"))?;
        Ok(tenant)
    };
    let written = part.edit(&state, &caller, "service", expected, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(part.tenant), written.into()).await?))
}
