//! What stands within a tenant: found by the tenant's name and its own, and changed with the tenant's document.

use axum::{
    extract::{FromRequestParts, Path},
    response::{IntoResponse, Response},
};
use http::{header, request::Parts};
use seiketsu_config::{tenant::Tenant, values::Id};
use serde::Serialize;
use serde_json::{Map, json};

use super::{AppState, Problem, caller::Caller, etag};
use crate::store::{WriteError, Written};

/// The two names in the path: the tenant's, and that of something within it.
#[derive(Debug, Clone)]
pub(super) struct PartOf {
    pub(super) tenant: Id,
    pub(super) name: Id,
}

impl FromRequestParts<AppState> for PartOf {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((tenant, name)) =
            path.map_err(|_| Problem::bad_request("the path cannot be read: it is not UTF-8"))?;
        let read = |text: String| {
            text.parse::<Id>().map_err(|why| Problem::bad_request(format!("the path cannot be read: {why}")))
        };
        Ok(Self { tenant: read(tenant)?, name: read(name)? })
    }
}

impl PartOf {
    /// It is not there.
    pub(super) fn missing(&self, what: &'static str) -> WriteError {
        WriteError::NotInTenant { tenant: self.tenant.clone(), what, name: self.name.to_string() }
    }

    /// What `find` finds of it in the tenant's document, with the tenant's `ETag`.
    pub(super) async fn show<T: Serialize>(
        &self,
        state: &AppState,
        caller: &Caller,
        what: &'static str,
        find: impl FnOnce(&Tenant, &Id) -> Option<T>,
    ) -> Result<Response, Problem> {
        caller.may_touch(&self.tenant)?;
        let stored = state.store.tenant(&self.tenant).await?;
        let stored = stored.ok_or_else(|| WriteError::Missing(self.tenant.clone()))?;
        let part = find(&stored.parse()?, &self.name).ok_or_else(|| self.missing(what))?;
        Ok(([(header::ETAG, etag::value(stored.revision))], axum::Json(part)).into_response())
    }

    /// Changes the tenant's document. `what` stands in the audit trail, beside the name.
    pub(super) async fn edit(
        &self,
        state: &AppState,
        caller: &Caller,
        what: &'static str,
        expected: Option<u64>,
        edit: impl FnOnce(Tenant) -> Result<Tenant, WriteError> + Send,
    ) -> Result<Written, Problem> {
        caller.may_touch(&self.tenant)?;
        let note = Map::from_iter([(what.to_owned(), json!(self.name))]);
        Ok(state.store.edit_with_note(&caller.author, &self.tenant, expected, None, note, edit).await?)
    }
}
