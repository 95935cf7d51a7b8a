//! `PUT /tenants/{id}`: a tenant as it is to be.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use seiketsu_config::{tenant::Tenant, values::Id};

use super::{
    AppState, Problem,
    body::{Json, PathOf, QueryOf},
    caller::Caller,
    etag::{self, IfMatch},
    openapi::TenantDocument,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{ChangeSet, Expected};

/// The tenant is replaced, or added if it is not there and no `If-Match` says that it is.
#[utoipa::path(
    put, path = "/tenants/{id}", tag = "tenants", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
        WaitQuery,
    ),
    request_body = TenantDocument,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_tenant(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Id>,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value: tenant, .. }: Json<Tenant>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    caller.may_touch(&id)?;
    if tenant.id != id {
        let detail = format!("{:?} stands in the body, and {id} in the path", tenant.id.as_str());
        return Err(Problem::invalid_at("id", detail, Some("write the same name in both; tenants are not renamed")));
    }
    let expected = expected.map(|revision| Expected::Revision { tenant: Some(id.clone()), revision });
    let change = ChangeSet { put: vec![tenant], own_hosts_only: caller.is_scoped(), ..ChangeSet::default() };
    let written = state.store.write(&caller.author, change, expected).await?;
    let revision = if written.is_change() {
        Some(written.revision)
    } else {
        state.store.tenant(&id).await?.map(|stored| stored.revision)
    };
    let answer: WriteAnswer = wait.complete(&state, &About::Tenant(id), written.into()).await?;
    let mut response = (StatusCode::OK, axum::Json(answer)).into_response();
    if let Some(revision) = revision {
        response.headers_mut().insert(header::ETAG, etag::value(revision));
    }
    Ok(response)
}
