//! What is answered where a key was made: the key itself, this once.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use seiketsu_config::{tenant::ApiKey, values::Id};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    problem::Kind,
    wait::{About, Wait, WriteAnswer},
};
use crate::store::{WriteError, Written, keys::KeyId};

/// A key that was made.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct MadeKey {
    #[schema(value_type = String)]
    pub(super) id: KeyId,
    /// Shown this once. None, if the request was repeated: only its hash is kept.
    pub(super) key: Option<String>,
    #[schema(value_type = String)]
    pub(super) tenant: Id,
    #[schema(value_type = String)]
    pub(super) consumer: Id,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) expires_at: Option<OffsetDateTime>,
    /// The key that it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replaces: Option<ReplacedKey>,
    #[serde(flatten)]
    pub(super) written: WriteAnswer,
}

/// A key that another one takes the place of.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct ReplacedKey {
    #[schema(value_type = String)]
    pub(super) id: KeyId,
    /// Until then both are accepted.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(super) expires_at: OffsetDateTime,
}

impl MadeKey {
    /// Answers when the nodes have it, if that is to be waited for. Whatever they do: whoever made the key gets it, since
    /// there is no other time to.
    pub(super) async fn respond(
        mut self,
        state: &AppState,
        wait: Wait,
        key: &SecretString,
    ) -> Result<Response, Problem> {
        match wait.complete(state, &About::Tenant(self.tenant.clone()), self.written.clone()).await {
            Ok(written) => {
                self.written = written;
                self.key = Some(key.expose_secret().to_owned());
                Ok((StatusCode::CREATED, axum::Json(self)).into_response())
            }
            Err(problem) => Err(problem.with("id", self.id.to_string()).with("key", key.expose_secret())),
        }
    }
}

/// What a key was made from is random: without randomness there is none.
pub(super) fn generate() -> Result<seiketsu_identity::api_key::NewKey, Problem> {
    seiketsu_identity::api_key::generate().map_err(|error| {
        tracing::error!(%error, "no key was made");
        Problem::new(Kind::Internal, "no key was made: the system gives no random numbers")
    })
}

pub(super) fn in_the_future(path: &str, at: Option<OffsetDateTime>) -> Result<(), Problem> {
    if at.is_some_and(|at| at <= OffsetDateTime::now_utc()) {
        return Err(Problem::invalid_at(path, "it lies in the past", Some("write a time to come")));
    }
    Ok(())
}

/// It is not there.
pub(super) fn missing(id: &KeyId) -> WriteError {
    WriteError::NotInTenant { tenant: id.tenant.clone(), what: "key", name: id.prefix.clone() }
}

pub(super) fn is(key: &ApiKey, id: &KeyId) -> bool {
    key.prefix == id.prefix
}

/// Before it is answered, without the key.
pub(super) fn answer(id: &KeyId, consumer: &Id, expires_at: Option<OffsetDateTime>, written: &Written) -> MadeKey {
    MadeKey {
        id: id.clone(),
        key: None,
        tenant: id.tenant.clone(),
        consumer: consumer.clone(),
        expires_at,
        replaces: None,
        written: WriteAnswer::from(written.clone()),
    }
}
