//! `POST /keys`: an API key for a consumer.

use axum::{extract::State, response::Response};
use http::StatusCode;
use seiketsu_config::{
    tenant::{ApiKey, KeySource, Tenant},
    values::Id,
};
use serde::Deserialize;
use serde_json::{Map, json};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    idempotency::{Key, kept},
    made_key::{self, MadeKey},
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery},
};
use crate::store::{Answer, WriteError, Written, keys::KeyId};

/// A key that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyBody)]
pub(super) struct KeyBody {
    #[schema(value_type = String)]
    tenant: Id,
    /// Whose it is.
    #[schema(value_type = String)]
    consumer: Id,
    /// Until when it is accepted. Absent: until it is revoked.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
    /// Fewer scopes than the consumer has. Absent: all of the consumer's.
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

/// The key is shown in this answer and never again: the store keeps its hash. Where not all nodes have
/// applied it in time, the problem that says so shows it.
#[utoipa::path(
    post, path = "/keys", tag = "keys", params(
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = KeyBody,
    responses(
        (status = 201, description = "It was made", body = MadeKey),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_key(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value, text }: Json<KeyBody>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let KeyBody { tenant, consumer, expires_at, scopes } = value;
    caller.may_touch(&tenant)?;
    made_key::in_the_future("expires_at", expires_at)?;
    let new = made_key::generate()?;
    let id = KeyId { tenant: tenant.clone(), prefix: new.prefix };
    let once = key.once(&text);
    let made = |written: &Written| made_key::answer(&id, &consumer, expires_at, written);
    let answer = |written: &Written| kept(StatusCode::CREATED, &made(written));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let entry = ApiKey { prefix: id.prefix.clone(), source: KeySource::Hash(new.hash), expires: expires_at, scopes };
    let edit = |mut tenant: Tenant| {
        let Some(of) = tenant.consumers.iter_mut().find(|there| there.id == consumer) else {
            let name = consumer.to_string();
            return Err(WriteError::NotInTenant { tenant: tenant.id, what: "consumer", name });
        };
        of.keys.push(entry);
        Ok(tenant)
    };
    let note = Map::from_iter([("key".to_owned(), json!(id)), ("consumer".to_owned(), json!(consumer))]);
    let written = match state.store.edit_with_note(&caller.author, &tenant, None, once, note, edit).await {
        Ok(written) => written,
        Err(WriteError::Repeated(before)) => return wait.again(&state, &About::Tenant(tenant), before).await,
        Err(error) => return Err(error.into()),
    };
    made(&written).respond(&state, wait, &new.key).await
}
