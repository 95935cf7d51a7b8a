//! `DELETE /tenants/{id}`: a tenant that is to be no more.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    caller::Caller,
    etag::IfMatch,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{ChangeSet, Expected};

/// The tenant is no longer served. A rollback brings it back.
#[utoipa::path(
    delete, path = "/tenants/{id}", tag = "tenants", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
        WaitQuery,
    ),
    responses(
        (status = 200, description = "It was removed", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_tenant(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Id>,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<Json<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    caller.may_touch(&id)?;
    let expected = match expected {
        Some(revision) => Expected::Revision { tenant: Some(id.clone()), revision },
        None => Expected::Present(id.clone()),
    };
    let change = ChangeSet { remove: vec![id.clone()], ..ChangeSet::default() };
    let written = state.store.write(&caller.author, change, Some(expected)).await?;
    Ok(Json(wait.complete(&state, &About::Tenant(id), written.into()).await?))
}
