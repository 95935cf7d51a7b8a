//! `POST /operators`: somebody who may call this API.

use std::collections::BTreeSet;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use seiketsu_config::values::Id;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    body::{self, Json},
    caller::Caller,
    etag,
    idempotency::{Key, again, kept},
    problem::ProblemDocument,
};
use crate::store::operators::{AnswerOf, ManageError, Operator, OperatorSettings, Role};

/// What of an operator can be chosen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OperatorBody {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    #[schema(value_type = String)]
    name: Id,
    role: Role,
    /// The tenants that the operator may see and change, at least one. Absent: all.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    tenants: Option<BTreeSet<Id>>,
}

impl OperatorBody {
    pub(super) fn checked(self) -> Result<OperatorSettings, Problem> {
        let Self { name, role, tenants } = self;
        Ok(OperatorSettings { name, role, tenants: body::some("tenants", tenants)? })
    }
}

/// An operator, without any token yet. Nobody can give a role above their own.
#[utoipa::path(
    post, path = "/operators", tag = "operators", params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = OperatorBody,
    responses(
        (status = 201, description = "It was added", body = Operator, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_operator(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<OperatorBody>,
) -> Result<Response, Problem> {
    let settings = value.checked()?;
    let once = key.once(&text);
    let answer = |operator: &Operator| kept(StatusCode::CREATED, operator);
    let once = once.as_ref().map(|once| (once, &answer as AnswerOf<'_, Operator>));
    match state.store.create_operator(&caller.author, caller.role(), settings, once).await {
        Ok(operator) => {
            let etag = etag::value(operator.revision);
            Ok((StatusCode::CREATED, [(header::ETAG, etag)], axum::Json(operator)).into_response())
        }
        Err(ManageError::Repeated(before)) => Ok(again(before)),
        Err(error) => Err(error.into()),
    }
}
