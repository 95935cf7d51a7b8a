//! `GET /alerts/rules/{id}`: one rule.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, etag, problem::ProblemDocument};
use crate::store::alert_rules::AlertRule;

/// The rule, with its `ETag`.
#[utoipa::path(
    get, path = "/alerts/rules/{id}", tag = "alerts", params(("id" = Uuid, Path, description = "The rule's id")),
    responses(
        (status = 200, description = "The rule", body = AlertRule, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_alert_rule(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<Response, Problem> {
    let rule = rule(&state, &caller, id).await?;
    Ok(([(header::ETAG, etag::value(rule.revision))], axum::Json(rule)).into_response())
}

/// The rule, if the caller may touch it.
pub(super) async fn rule(state: &AppState, caller: &Caller, id: Uuid) -> Result<AlertRule, Problem> {
    let rule = state.store.alert_rule(id).await?.ok_or_else(|| Problem::not_found("rule"))?;
    caller.may_touch_what_is_of(rule.tenant.as_ref())?;
    Ok(rule)
}
