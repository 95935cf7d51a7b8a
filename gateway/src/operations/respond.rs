//! Answers in the few forms that the interface has.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::Answer;
use crate::respond::problem::{self, Problem, ProblemKind};

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    // Pretty: people read it with curl.
    let mut text = serde_json::to_vec_pretty(body).unwrap_or_default();
    text.push(b'\n');
    answer(status, HeaderValue::from_static("application/json"), text)
}

pub(super) fn text(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    answer(StatusCode::OK, HeaderValue::from_static(content_type), body)
}

pub(super) fn problem(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Answer {
    answer(kind.status(), problem::CONTENT_TYPE, Problem::new(kind, detail).body())
}

fn answer(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
