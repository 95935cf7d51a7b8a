//! `POST /revisions/{number}/rollback`: everything as it was.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Deserialize;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    caller::Caller,
    etag::{self, IfMatch},
    idempotency::{Key, kept},
    problem::ProblemDocument,
    wait::{About, Wait, WaitFor, WriteAnswer},
};
use crate::store::{Answer, WriteError, Written};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct RollbackQuery {
    /// Kept with the revision.
    reason: Option<String>,
    /// `applied`: answer when all nodes have applied the change that are live or were a moment ago.
    #[param(inline)]
    wait: Option<WaitFor>,
    /// For how long: `500ms` to `60s`, usually `5s`.
    timeout: Option<String>,
}

/// Every document is made what it was in the revision. That is a revision of its own, so that it can be undone too.
#[utoipa::path(
    post, path = "/revisions/{number}/rollback", tag = "revisions", params(
        ("number" = u64, Path, description = "The revision; 0 is the empty store"),
        RollbackQuery,
        ("If-Match" = Option<String>, Header, description = "Only if nothing was changed since the revision of this ETag"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    responses(
        (status = 200, description = "It is so", body = WriteAnswer, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rollback(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    IfMatch(expected): IfMatch,
    PathOf(number): PathOf<u64>,
    QueryOf(query): QueryOf<RollbackQuery>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let once = key.once(&[]);
    let answer = |written: &Written| kept(StatusCode::OK, &WriteAnswer::from(written.clone()));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    match state.store.rollback(&caller.author, number, expected, query.reason, once).await {
        Ok(written) => {
            let answer = wait.complete(&state, &About::Everything, written.into()).await?;
            Ok(([(header::ETAG, etag::value(answer.revision))], axum::Json(answer)).into_response())
        }
        Err(WriteError::Repeated(before)) => wait.again(&state, &About::Everything, before).await,
        Err(error) => Err(error.into()),
    }
}
