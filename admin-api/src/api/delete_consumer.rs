//! `DELETE /tenants/{id}/consumers/{consumer}`: a caller that is no longer known.

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

/// The consumer is removed, and all its keys with it.
#[utoipa::path(
    delete, path = "/tenants/{id}/consumers/{consumer}", tag = "consumers", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("consumer" = String, Path, description = "The consumer's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the tenant is still as it was with this ETag"),
        WaitQuery,
    ),
    responses(
        (status = 200, description = "It is gone", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_consumer(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let edit = |mut tenant: Tenant| {
        let before = tenant.consumers.len();
        tenant.consumers.retain(|there| there.id != part.name);
        if tenant.consumers.len() == before {
            return Err(part.missing("consumer"));
        }
        Ok(tenant)
    };
    let written = part.edit(&state, &caller, "consumer", expected, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(part.tenant), written.into()).await?))
}
