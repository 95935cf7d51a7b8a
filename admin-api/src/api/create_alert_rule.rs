//! `POST /alerts/rules`: something more that is watched.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::{
    AppState, Problem,
    alert_rule_body::AlertRuleBody,
    body::Json,
    caller::Caller,
    etag,
    idempotency::{Key, again, kept},
    problem::ProblemDocument,
};
use crate::store::{alert_rules::AlertRule, keeping::KeepError, operators::AnswerOf};

/// A rule for one tenant, or, of operators of all tenants, for all.
#[utoipa::path(
    post, path = "/alerts/rules", tag = "alerts", params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = AlertRuleBody,
    responses(
        (status = 201, description = "It was added", body = AlertRule, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_alert_rule(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<AlertRuleBody>,
) -> Result<Response, Problem> {
    caller.may_touch_what_is_of(value.tenant.as_ref())?;
    let settings = value.checked()?;
    let once = key.once(&text);
    let answer = |rule: &AlertRule| kept(StatusCode::CREATED, rule);
    let once = once.as_ref().map(|once| (once, &answer as AnswerOf<'_, AlertRule>));
    match state.store.create_alert_rule(&caller.author, settings, once).await {
        Ok(rule) => {
            let etag = etag::value(rule.revision);
            Ok((StatusCode::CREATED, [(header::ETAG, etag)], axum::Json(rule)).into_response())
        }
        Err(KeepError::Repeated(before)) => Ok(again(before)),
        Err(error) => Err(error.into()),
    }
}
