//! `POST /alerts/{id}/acknowledge`: somebody sees to it.

use axum::{Json, extract::State};
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument};
use crate::store::alerts::Alert;

/// The alert stays until it is not so any more. One that somebody has acknowledged stays theirs.
#[utoipa::path(
    post, path = "/alerts/{id}/acknowledge", tag = "alerts",
    params(("id" = Uuid, Path, description = "The alert's id")),
    responses(
        (status = 200, description = "It is acknowledged", body = Alert),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn acknowledge_alert(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<Json<Alert>, Problem> {
    let alert = state.store.alert(id).await?.ok_or_else(|| Problem::not_found("alert"))?;
    caller.may_touch_what_is_of(alert.tenant.as_ref())?;
    Ok(Json(state.store.acknowledge_alert(&caller.author, id).await?))
}
