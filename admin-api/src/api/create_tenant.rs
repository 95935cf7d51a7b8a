//! `POST /tenants`: a new tenant.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use seiketsu_config::tenant::Tenant;

use super::{
    AppState, BASE, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag,
    idempotency::{Key, kept},
    openapi::TenantDocument,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{Answer, ChangeSet, Expected, WriteError, Written};

/// A tenant that is not there yet.
#[utoipa::path(
    post, path = "/tenants", tag = "tenants", params(
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = TenantDocument,
    responses(
        (status = 201, description = "It was added", body = WriteAnswer, headers(("ETag" = String), ("Location" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_tenant(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value: tenant, text }: Json<Tenant>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let id = tenant.id.clone();
    caller.may_touch(&id)?;
    let once = key.once(&text);
    let answer = |written: &Written| kept(StatusCode::CREATED, &WriteAnswer::from(written.clone()));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let change = ChangeSet { put: vec![tenant], own_hosts_only: caller.is_scoped(), ..ChangeSet::default() };
    let about = About::Tenant(id.clone());
    let written = match state.store.write_once(&caller.author, change, Some(Expected::Absent(id.clone())), once).await {
        Ok(written) => written,
        Err(WriteError::Repeated(before)) => return wait.again(&state, &about, before).await,
        Err(error) => return Err(error.into()),
    };
    let answer = wait.complete(&state, &about, written.into()).await?;
    let mut response = (StatusCode::CREATED, axum::Json(&answer)).into_response();
    response.headers_mut().insert(header::ETAG, etag::value(answer.revision));
    if let Ok(location) = HeaderValue::try_from(format!("{BASE}/tenants/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
