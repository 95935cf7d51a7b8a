//! `PUT /tenants/{id}/routes/{route}`: a route as it is to be.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::tenant::{Route, Tenant};

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag::IfMatch,
    openapi::RouteDocument,
    part::PartOf,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};

/// The route is replaced, where it stands, or added as the last one.
#[utoipa::path(
    put, path = "/tenants/{id}/routes/{route}", tag = "routes", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("route" = String, Path, description = "The route's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    request_body = RouteDocument,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_route(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value: route, .. }: Json<Route>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    if route.id != part.name {
        let detail = format!("{:?} stands in the body, and {} in the path", route.id.as_str(), part.name);
        return Err(Problem::invalid_at("id", detail, Some("write the same name in both; routes are not renamed")));
    }
    let edit = |mut tenant: Tenant| {
        match tenant.routes.iter_mut().find(|there| there.id == route.id) {
            Some(there) => *there = route,
            None => tenant.routes.push(route),
        }
        Ok(tenant)
    };
    let written = part.edit(&state, &caller, "route", expected, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(part.tenant), written.into()).await?))
}
