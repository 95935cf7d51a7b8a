//! `GET /siem/{id}`: one sink.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, etag, problem::ProblemDocument};
use crate::store::siem::SiemSink;

/// The sink without its secrets, with its `ETag`.
#[utoipa::path(
    get, path = "/siem/{id}", tag = "siem", params(("id" = Uuid, Path, description = "The sink's id")),
    responses(
        (status = 200, description = "The sink", body = SiemSink, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_siem_sink(
    State(state): State<AppState>,
    PathOf(id): PathOf<Uuid>,
) -> Result<Response, Problem> {
    let sink = state.store.siem_sink(id).await?.ok_or_else(|| Problem::not_found("sink"))?;
    Ok(([(header::ETAG, etag::value(sink.revision))], axum::Json(sink)).into_response())
}
