//! `POST /siem`: somewhere more that the audit trail is sent to.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::{
    AppState, Problem,
    body::Json,
    caller::Caller,
    etag,
    idempotency::{Key, again, kept},
    problem::ProblemDocument,
    siem_sink_body::SiemSinkBody,
};
use crate::store::{keeping::KeepError, operators::AnswerOf, siem::SiemSink};

/// What is written into the trail is sent within seconds, at least once, and the head of its chain every ten minutes.
#[utoipa::path(
    post, path = "/siem", tag = "siem", params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = SiemSinkBody,
    responses(
        (status = 201, description = "It was added", body = SiemSink, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_siem_sink(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<SiemSinkBody>,
) -> Result<Response, Problem> {
    let after = value.after;
    let settings = value.checked(&state)?;
    let once = key.once(&text);
    let answer = |sink: &SiemSink| kept(StatusCode::CREATED, sink);
    let once = once.as_ref().map(|once| (once, &answer as AnswerOf<'_, SiemSink>));
    match state.store.create_siem_sink(&caller.author, settings, after, once).await {
        Ok(sink) => {
            let etag = etag::value(sink.revision);
            Ok((StatusCode::CREATED, [(header::ETAG, etag)], axum::Json(sink)).into_response())
        }
        Err(KeepError::Repeated(before)) => Ok(again(before)),
        Err(error) => Err(error.into()),
    }
}
