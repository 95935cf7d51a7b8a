//! `GET /head`: what stands beside the tenants.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};

use super::{AppState, Problem, etag, openapi::HeadDocument, problem::ProblemDocument};

/// Defaults, plans and shared upstreams.
#[utoipa::path(
    get, path = "/head", tag = "head",
    responses(
        (status = 200, description = "The head", body = HeadDocument, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_head(State(state): State<AppState>) -> Result<Response, Problem> {
    let stored = state.store.head().await?;
    let json = HeaderValue::from_static("application/json");
    let headers = [(header::CONTENT_TYPE, json), (header::ETAG, etag::value(stored.revision))];
    Ok((headers, stored.content).into_response())
}
