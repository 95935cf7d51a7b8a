//! `Idempotency-Key`: a POST that is repeated because its answer was lost is carried out once, and answered the same.

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};

use super::{AppState, Problem};
use crate::store::{Once, Remembered};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const LONGEST: usize = 255;

/// The key, if one was sent, and what the request is about beside its body.
#[derive(Debug, Clone)]
pub(super) struct Key {
    key: Option<String>,
    request: String,
}

impl Key {
    /// What tells the request from others with the same key.
    pub(super) fn once(&self, body: &[u8]) -> Option<Once> {
        let key = self.key.clone()?;
        Some(Once::new(key, &[self.request.as_bytes(), body]))
    }
}

impl FromRequestParts<AppState> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let request = format!("{} {}", parts.method, parts.uri);
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(read(value).ok_or_else(|| {
                Problem::bad_request(format!("Idempotency-Key: send 1 to {LONGEST} visible characters, once"))
            })?),
            _ => return Err(Problem::bad_request("Idempotency-Key: send it once")),
        };
        Ok(Self { key, request })
    }
}

fn read(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    (1..=LONGEST).contains(&text.len()).then(|| text.to_owned())
}

/// The answer that was given before.
pub(super) fn again(before: Remembered) -> Response {
    let status = StatusCode::from_u16(before.status).unwrap_or(StatusCode::OK);
    (status, [(header::CONTENT_TYPE, "application/json")], before.answer).into_response()
}

/// An answer, to be kept.
pub(super) fn kept(status: StatusCode, answer: &impl serde::Serialize) -> Remembered {
    Remembered { status: status.as_u16(), answer: serde_json::to_string(answer).unwrap_or_default() }
}
