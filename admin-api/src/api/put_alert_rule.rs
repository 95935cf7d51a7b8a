//! `PUT /alerts/rules/{id}`: a rule as it is to be.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use uuid::Uuid;

use super::{
    AppState, Problem,
    alert_rule_body::AlertRuleBody,
    body::{Json, PathOf},
    caller::Caller,
    etag::{self, IfMatch},
    get_alert_rule::rule,
    problem::ProblemDocument,
};
use crate::store::alert_rules::AlertRule;

/// Alerts that it does not find any more are resolved in the next round.
#[utoipa::path(
    put, path = "/alerts/rules/{id}", tag = "alerts", params(
        ("id" = Uuid, Path, description = "The rule's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    request_body = AlertRuleBody,
    responses(
        (status = 200, description = "It is so", body = AlertRule, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_alert_rule(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
    Json { value, .. }: Json<AlertRuleBody>,
) -> Result<Response, Problem> {
    let before = rule(&state, &caller, id).await?;
    caller.may_touch_what_is_of(value.tenant.as_ref())?;
    // Also without an ETag: it is to be the one that the caller was found to be allowed to change.
    let expected = expected.or(Some(before.revision));
    let rule = state.store.update_alert_rule(&caller.author, id, expected, value.checked()?).await?;
    Ok(([(header::ETAG, etag::value(rule.revision))], axum::Json(rule)).into_response())
}
