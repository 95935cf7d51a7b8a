//! `PUT /siem/{id}`: a sink as it is to be.

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
    etag::{self, IfMatch},
    problem::ProblemDocument,
    siem_sink_body::SiemSinkBody,
};
use crate::store::siem::SiemSink;

/// It goes on where it was. A token that is not sent stays; for another scheme, host or port it has to be sent again.
#[utoipa::path(
    put, path = "/siem/{id}", tag = "siem", params(
        ("id" = Uuid, Path, description = "The sink's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    request_body = SiemSinkBody,
    responses(
        (status = 200, description = "It is so", body = SiemSink, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_siem_sink(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
    Json { value, .. }: Json<SiemSinkBody>,
) -> Result<Response, Problem> {
    if value.after.is_some() {
        let fix = Some("leave it out, or make another sink");
        return Err(Problem::invalid_at("after", "a sink goes on where it was", fix));
    }
    let sink = state.store.update_siem_sink(&caller.author, id, expected, value.checked(&state)?).await?;
    Ok(([(header::ETAG, etag::value(sink.revision))], axum::Json(sink)).into_response())
}
