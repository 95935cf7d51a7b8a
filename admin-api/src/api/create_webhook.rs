//! `POST /webhooks`: somebody more to tell what happens.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use secrecy::ExposeSecret;

use super::{
    AppState, Problem,
    body::Json,
    caller::Caller,
    etag,
    idempotency::{Key, again, kept},
    problem::ProblemDocument,
    webhook_body::{WebhookBody, WebhookWithSecret},
};
use crate::store::{keeping::KeepError, operators::AnswerOf, webhooks::Webhook};

/// Its secret is shown this once. What is sent is signed with it, as Standard Webhooks has it.
#[utoipa::path(
    post, path = "/webhooks", tag = "webhooks", params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = WebhookBody,
    responses(
        (status = 201, description = "It was added", body = WebhookWithSecret, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_webhook(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<WebhookBody>,
) -> Result<Response, Problem> {
    let settings = value.checked(&state, &caller)?;
    let once = key.once(&text);
    let answer =
        |webhook: &Webhook| kept(StatusCode::CREATED, &WebhookWithSecret { webhook: webhook.clone(), secret: None });
    let once = once.as_ref().map(|once| (once, &answer as AnswerOf<'_, Webhook>));
    match state.store.create_webhook(&caller.author, settings, once).await {
        Ok((webhook, secret)) => {
            let etag = etag::value(webhook.revision);
            let secret = Some(secret.expose_secret().to_owned());
            let answer = axum::Json(WebhookWithSecret { webhook, secret });
            Ok((StatusCode::CREATED, [(header::ETAG, etag)], answer).into_response())
        }
        Err(KeepError::Repeated(before)) => Ok(again(before)),
        Err(error) => Err(error.into()),
    }
}
