//! `GET /siem`: where the audit trail is sent to.

use axum::{Json, extract::State};

use super::{AppState, Problem, page::Page, problem::ProblemDocument};
use crate::store::siem::SiemSink;

/// Sinks, in the order of their names, and how far each has come.
#[utoipa::path(
    get, path = "/siem", tag = "siem",
    responses(
        (status = 200, description = "The sinks", body = Page<SiemSink>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_siem_sinks(State(state): State<AppState>) -> Result<Json<Page<SiemSink>>, Problem> {
    Ok(Json(Page { items: state.store.siem_sinks().await?, next: None }))
}
