//! `PUT /operators/{id}`: an operator as it is to be.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::{Json, PathOf},
    caller::Caller,
    create_operator::OperatorBody,
    etag::{self, IfMatch},
    problem::ProblemDocument,
};
use crate::store::operators::Operator;

/// Name, role and tenants of an operator. Its tokens keep holding. One owner of all tenants must remain.
#[utoipa::path(
    put, path = "/operators/{id}", tag = "operators", params(
        ("id" = Uuid, Path, description = "The operator's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    request_body = OperatorBody,
    responses(
        (status = 200, description = "It is so", body = Operator, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_operator(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
    Json { value, .. }: Json<OperatorBody>,
) -> Result<Response, Problem> {
    let operator = state.store.update_operator(&caller.author, caller.role(), id, expected, value.checked()?).await?;
    Ok(([(header::ETAG, etag::value(operator.revision))], axum::Json(operator)).into_response())
}
