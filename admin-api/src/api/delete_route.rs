//! `DELETE /tenants/{id}/routes/{route}`: a route that is no longer served.

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

/// The route is removed.
#[utoipa::path(
    delete, path = "/tenants/{id}/routes/{route}", tag = "routes", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("route" = String, Path, description = "The route's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    responses(
        (status = 200, description = "It is gone", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_route(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let edit = |mut tenant: Tenant| {
        let before = tenant.routes.len();
        tenant.routes.retain(|there| there.id != part.name);
        if tenant.routes.len() == before {
            return Err(part.missing("route"));
        }
        Ok(tenant)
    };
    let written = part.edit(&state, &caller, "route", expected, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(part.tenant), written.into()).await?))
}
