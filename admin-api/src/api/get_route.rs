//! `GET /tenants/{id}/routes/{route}`: one route of a tenant.

use axum::{extract::State, response::Response};
use seiketsu_config::{tenant::Route, values::Id};

use super::{AppState, Problem, caller::Caller, openapi::RouteDocument, part::PartOf, problem::ProblemDocument};

/// One route of a tenant, as it stands in the tenant's document.
#[utoipa::path(
    get, path = "/tenants/{id}/routes/{route}", tag = "routes", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("route" = String, Path, description = "The route's name"),
    ),
    responses(
        (status = 200, description = "The route", body = RouteDocument, headers(("ETag" = String, description = "The tenant's"))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_route(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
) -> Result<Response, Problem> {
    let find = |id: &Id, routes: &[Route]| routes.iter().find(|route| route.id == *id).cloned();
    part.show(&state, &caller, "route", |tenant, id| find(id, &tenant.routes)).await
}
