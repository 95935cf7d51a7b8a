//! `DELETE /alerts/rules/{id}`: what is not watched any more.

use axum::extract::State;
use http::StatusCode;
use uuid::Uuid;

use super::{
    AppState, Problem, body::PathOf, caller::Caller, etag::IfMatch, get_alert_rule::rule, problem::ProblemDocument,
};

/// What it has found is resolved in the next round.
#[utoipa::path(
    delete, path = "/alerts/rules/{id}", tag = "alerts", params(
        ("id" = Uuid, Path, description = "The rule's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    responses(
        (status = 204, description = "It was removed"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete_alert_rule(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let before = rule(&state, &caller, id).await?;
    state.store.delete_alert_rule(&caller.author, id, expected.or(Some(before.revision))).await?;
    Ok(StatusCode::NO_CONTENT)
}
