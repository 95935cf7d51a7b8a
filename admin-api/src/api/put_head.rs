//! `PUT /head`: what is to stand beside the tenants.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    etag::{self, IfMatch},
    openapi,
    problem::ProblemDocument,
    wait::{About, Wait, WaitQuery, WriteAnswer},
};
use crate::store::{ChangeSet, Expected, HeadDocument};

/// Defaults, plans and shared upstreams are replaced. All tenants are checked against them.
#[utoipa::path(
    put, path = "/head", tag = "head", params(
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
        WaitQuery,
    ),
    request_body = openapi::HeadDocument,
    responses(
        (status = 200, description = "It is so", body = WriteAnswer, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_head(
    State(state): State<AppState>,
    caller: Caller,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<WaitQuery>,
    Json { value: head, .. }: Json<HeadDocument>,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let expected = expected.map(|revision| Expected::Revision { tenant: None, revision });
    let change = ChangeSet { head: Some(head), ..ChangeSet::default() };
    let written = state.store.write(&caller.author, change, expected).await?;
    let revision = if written.is_change() { written.revision } else { state.store.head().await?.revision };
    let answer: WriteAnswer = wait.complete(&state, &About::Everything, written.into()).await?;
    let mut response = (StatusCode::OK, axum::Json(answer)).into_response();
    response.headers_mut().insert(header::ETAG, etag::value(revision));
    Ok(response)
}
