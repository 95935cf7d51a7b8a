//! `GET /tenants/{id}/services/{service}`: one service of a tenant.

use axum::{extract::State, response::Response};

use super::{AppState, Problem, caller::Caller, openapi::UpstreamDocument, part::PartOf, problem::ProblemDocument};

/// One service of a tenant, as it stands in the tenant's document.
#[utoipa::path(
    get, path = "/tenants/{id}/services/{service}", tag = "services", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("service" = String, Path, description = "The service's name"),
    ),
    responses(
        (status = 200, description = "The service", body = UpstreamDocument, headers(("ETag" = String, description = "The tenant's"))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_service(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
) -> Result<Response, Problem> {
    part.show(&state, &caller, "service", |tenant, id| tenant.upstreams.get(id).cloned()).await
}
