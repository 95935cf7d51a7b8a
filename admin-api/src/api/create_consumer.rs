//! `POST /consumers`: a caller that a tenant is to know.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use seiketsu_config::{
    limits::ConsumerLimits,
    tenant::{CertificateIdentity, Consumer, Tenant},
    values::Id,
};
use serde::Deserialize;
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{
    AppState, BASE, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    idempotency::{Key, kept},
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{Answer, WriteError, Written};

/// A caller that is to be known. Keys are made for it afterwards.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewConsumer {
    #[schema(value_type = String)]
    tenant: Id,
    #[schema(value_type = String)]
    id: Id,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
    /// How client certificates name it.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    certificates: Vec<CertificateIdentity>,
    /// Its own, beside those of the tenant and the route.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    limits: Option<ConsumerLimits>,
}

/// A caller that the tenant does not know yet.
#[utoipa::path(
    post, path = "/consumers", tag = "consumers", params(
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = NewConsumer,
    responses(
        (status = 201, description = "It was added", body = WriteAnswer, headers(("Location" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_consumer(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value, text }: Json<NewConsumer>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let NewConsumer { tenant, id, scopes, roles, certificates, limits } = value;
    caller.may_touch(&tenant)?;
    let once = key.once(&text);
    let answer = |written: &Written| kept(StatusCode::CREATED, &WriteAnswer::from(written.clone()));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let consumer = Consumer { id: id.clone(), keys: Vec::new(), certificates, scopes, roles, limits };
    let edit = |mut tenant: Tenant| {
        if tenant.consumers.iter().any(|there| there.id == consumer.id) {
            let name = consumer.id.to_string();
            return Err(WriteError::InTenant { tenant: tenant.id, what: "consumer", name });
        }
        tenant.consumers.push(consumer);
        Ok(tenant)
    };
    let note = Map::from_iter([("consumer".to_owned(), json!(id))]);
    let about = About::Tenant(tenant.clone());
    let written = match state.store.edit_with_note(&caller.author, &tenant, None, once, note, edit).await {
        Ok(written) => written,
        Err(WriteError::Repeated(before)) => return wait.again(&state, &about, before).await,
        Err(error) => return Err(error.into()),
    };
    let answer = wait.complete(&state, &about, written.into()).await?;
    let mut response = (StatusCode::CREATED, axum::Json(&answer)).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("{BASE}/tenants/{tenant}/consumers/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
