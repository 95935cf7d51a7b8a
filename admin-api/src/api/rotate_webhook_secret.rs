//! `POST /webhooks/{id}/rotate-secret`: a new secret, beside the one before for a while.

use axum::extract::State;
use secrecy::ExposeSecret;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::{Json, PathOf},
    caller::Caller,
    etag::IfMatch,
    problem::ProblemDocument,
    webhook_body::{WebhookWithSecret, webhook},
};

/// A week.
const LONGEST_GRACE: u32 = 7 * 24 * 3600;

/// How long the secret before signs too.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateBody {
    /// Up to a week; usually a day.
    #[serde(default = "day")]
    #[schema(maximum = 604_800)]
    grace_seconds: u32,
}

fn day() -> u32 {
    24 * 3600
}

/// The new secret is shown this once. Until the grace time ends, what is sent has two signatures.
#[utoipa::path(
    post, path = "/webhooks/{id}/rotate-secret", tag = "webhooks", params(
        ("id" = Uuid, Path, description = "The webhook's id"),
        ("If-Match" = Option<String>, Header, description = "Only if it is still as it was with this ETag"),
    ),
    request_body = RotateBody,
    responses(
        (status = 200, description = "It has a new secret", body = WebhookWithSecret),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rotate_webhook_secret(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    IfMatch(expected): IfMatch,
    Json { value, .. }: Json<RotateBody>,
) -> Result<axum::Json<WebhookWithSecret>, Problem> {
    if value.grace_seconds > LONGEST_GRACE {
        return Err(Problem::invalid_at("grace_seconds", "it is more than a week", Some("write 0 to 604800")));
    }
    let before = webhook(&state, &caller, id).await?;
    let expected = expected.or(Some(before.revision));
    let grace = time::Duration::seconds(value.grace_seconds.into());
    let (webhook, secret) = state.store.rotate_webhook_secret(&caller.author, id, expected, grace).await?;
    Ok(axum::Json(WebhookWithSecret { webhook, secret: Some(secret.expose_secret().to_owned()) }))
}
