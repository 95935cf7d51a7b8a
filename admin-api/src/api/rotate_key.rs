//! `POST /keys/{id}/rotate`: another key in the place of one, which is accepted a while longer.

use std::sync::OnceLock;

use axum::{extract::State, response::Response};
use http::StatusCode;
use seiketsu_config::{
    tenant::{ApiKey, KeySource, Tenant},
    values::{Id, Span},
};
use serde::Deserialize;
use serde_json::{Map, json};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{Json, PathOf, QueryOf},
    caller::Caller,
    idempotency::{Key, kept},
    made_key::{self, MadeKey, ReplacedKey},
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery},
};
use crate::store::{Answer, WriteError, Written, keys::KeyId};

/// How a key is replaced.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Rotation)]
pub(super) struct Rotation {
    /// For how long the old key is accepted beside the new one, as in `24h`; `0s` ends it at once.
    #[schema(value_type = String)]
    grace: Span,
    /// Until when the new key is accepted. Absent: until it is revoked.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
}

/// The new key has the scopes of the old one. It is shown in this answer and never again. Where not all nodes have
/// applied it in time, the problem that says so shows it.
#[utoipa::path(
    post, path = "/keys/{id}/rotate", tag = "keys", params(
        ("id" = String, Path, description = "<tenant>.<prefix>"),
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = Rotation,
    responses(
        (status = 201, description = "It was made", body = MadeKey),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rotate_key(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(old): PathOf<KeyId>,
    key: Key,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value, text }: Json<Rotation>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let Rotation { grace, expires_at } = value;
    caller.may_touch(&old.tenant)?;
    made_key::in_the_future("expires_at", expires_at)?;
    let ends = OffsetDateTime::now_utc() + grace.get();
    let ends = ends.replace_nanosecond(0).unwrap_or(ends);
    let new = made_key::generate()?;
    let id = KeyId { tenant: old.tenant.clone(), prefix: new.prefix };
    // Whose the old one is, and when it ends, is known when the document has been read.
    let found: OnceLock<(Id, OffsetDateTime)> = OnceLock::new();
    let made = |written: &Written| {
        let (consumer, expires) = found.get().cloned().unwrap_or_else(|| (old.tenant.clone(), ends));
        let replaces = Some(ReplacedKey { id: old.clone(), expires_at: expires });
        MadeKey { replaces, ..made_key::answer(&id, &consumer, expires_at, written) }
    };
    let once = key.once(&text);
    let answer = |written: &Written| kept(StatusCode::CREATED, &made(written));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let edit = |mut tenant: Tenant| {
        let consumers = tenant.consumers.iter_mut();
        let mut of = consumers.filter(|consumer| consumer.keys.iter().any(|key| made_key::is(key, &old)));
        let consumer = of.next().ok_or_else(|| made_key::missing(&old))?;
        let mut keys = consumer.keys.iter_mut();
        let before = keys.find(|key| made_key::is(key, &old)).ok_or_else(|| made_key::missing(&old))?;
        // It never lives longer than it would have.
        let expires = before.expires.map_or(ends, |expires| expires.min(ends));
        before.expires = Some(expires);
        let scopes = before.scopes.clone();
        let _ = found.set((consumer.id.clone(), expires));
        let source = KeySource::Hash(new.hash);
        consumer.keys.push(ApiKey { prefix: id.prefix.clone(), source, expires: expires_at, scopes });
        Ok(tenant)
    };
    let note = Map::from_iter([("key".to_owned(), json!(id)), ("replaces".to_owned(), json!(old))]);
    let written = match state.store.edit_with_note(&caller.author, &old.tenant, None, once, note, edit).await {
        Ok(written) => written,
        Err(WriteError::Repeated(before)) => return wait.again(&state, &About::Tenant(old.tenant), before).await,
        Err(error) => return Err(error.into()),
    };
    made(&written).respond(&state, wait, &new.key).await
}
