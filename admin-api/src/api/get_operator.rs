//! `GET /operators/{id}`: one operator.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, etag, problem::ProblemDocument};
use crate::store::operators::Operator;

/// An operator.
#[utoipa::path(
    get, path = "/operators/{id}", tag = "operators", params(("id" = Uuid, Path, description = "The operator's id")),
    responses(
        (status = 200, description = "The operator", body = Operator, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_operator(State(state): State<AppState>, PathOf(id): PathOf<Uuid>) -> Result<Response, Problem> {
    let operator = state.store.operator(id).await?.ok_or_else(|| Problem::not_found("operator"))?;
    Ok(([(header::ETAG, etag::value(operator.revision))], axum::Json(operator)).into_response())
}
