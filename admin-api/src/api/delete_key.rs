//! `DELETE /keys/{id}`: a key that opens nothing any more.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::tenant::Tenant;
use serde_json::{Map, json};

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    caller::Caller,
    made_key,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::keys::KeyId;

/// The key is revoked: it leaves its tenant, and nodes refuse it from the moment that they have applied that.
#[utoipa::path(
    delete, path = "/keys/{id}", tag = "keys", params(
        ("id" = String, Path, description = "<tenant>.<prefix>"),
        WaitQuery,
    ),
    responses(
        (status = 200, description = "It is gone", body = WriteAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_key(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<KeyId>,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<JsonAnswer<WriteAnswer>, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    caller.may_touch(&id.tenant)?;
    let edit = |mut tenant: Tenant| {
        let mut keys = tenant.consumers.iter_mut().map(|consumer| &mut consumer.keys);
        let of = keys.find(|keys| keys.iter().any(|key| made_key::is(key, &id)));
        of.ok_or_else(|| made_key::missing(&id))?.retain(|key| !made_key::is(key, &id));
        Ok(tenant)
    };
    let note = Map::from_iter([("key".to_owned(), json!(id))]);
    let written = state.store.edit_with_note(&caller.author, &id.tenant, None, None, note, edit).await?;
    Ok(JsonAnswer(wait.complete(&state, &About::Tenant(id.tenant), written.into()).await?))
}
