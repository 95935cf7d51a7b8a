//! Errors as callers see them: problem details for HTTP APIs (RFC 9457).
//!
//! A [`Kind`] is a promise: its type and status stay what they are; `docs/admin-problems.md` lists every one. What the caller
//! is told and what the log is told are two things: nothing of the store, and no stack, is ever in an answer.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use seiketsu_config::{
    error::ConfigErrors,
    problem::{Details, MEDIA_TYPE},
};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::etag;
use crate::store::{Invalid, StoreError, StoredDocument, WriteError, keeping::KeepError, operators::ManageError};

pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static(MEDIA_TYPE);

seiketsu_config::problem_kinds! {
    /// What went wrong, with one type, title and status each.
    pub enum Kind;

    /// It cannot be read.
    BadRequest = BAD_REQUEST, "urn:seiketsu:problem:bad-request", "The request is malformed",
        "Correct the request; `detail` says which part cannot be read.";
    Unauthenticated = UNAUTHORIZED, "urn:seiketsu:problem:unauthenticated", "Authentication is required",
        "Send a token that holds: `Authorization: Bearer sa_…`.";
    Forbidden = FORBIDDEN, "urn:seiketsu:problem:forbidden", "The caller may not do this",
        "Ask an administrator for the role or the tenant that `detail` names.";
    NotFound = NOT_FOUND, "urn:seiketsu:problem:not-found", "There is no such thing",
        "Check the path; lists say what there is.";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "urn:seiketsu:problem:method-not-allowed",
        "The method is not allowed here", "Use one of the methods that `Allow` lists.";
    Conflict = CONFLICT, "urn:seiketsu:problem:conflict", "It is in the way of what there is",
        "Look at what there is, and change that or choose another name.";
    Full = CONFLICT, "urn:seiketsu:problem:limit-reached", "There are as many as there may be",
        "Remove what is not needed any more; `most` says how many there may be.";
    /// Somebody else was first.
    Changed = PRECONDITION_FAILED, "urn:seiketsu:problem:changed-meanwhile",
        "It was changed in the meantime", "Look at `current`, decide what is to be, and send it with the new `ETag`.";
    PayloadTooLarge = PAYLOAD_TOO_LARGE, "urn:seiketsu:problem:payload-too-large",
        "The request body is too large", "Send a body of at most `max-bytes` bytes.";
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "urn:seiketsu:problem:unsupported-media-type",
        "The media type of the body is not supported", "Send one of the media types that `detail` names.";
    /// It can be read, and cannot be meant.
    Invalid = UNPROCESSABLE_ENTITY, "urn:seiketsu:problem:invalid", "What was sent is not valid",
        "Correct what `errors` lists: each entry names the place, what is wrong there, and what to do.";
    KeyUsed = UNPROCESSABLE_ENTITY, "urn:seiketsu:problem:idempotency-key-used",
        "The idempotency key was used for another request", "Take a new key for each request.";
    TooMany = TOO_MANY_REQUESTS, "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "The request exceeds a limit or quota", "Wait as long as `Retry-After` says.";
    Internal = INTERNAL_SERVER_ERROR, "urn:seiketsu:problem:internal-error", "The control plane failed",
        "Try again later; report `instance` if it stays.";
    /// The store is there.
    Damaged = INTERNAL_SERVER_ERROR, "urn:seiketsu:problem:store-damaged",
        "What stands in the store cannot be read",
        "`gatewayctl audit verify` names table and row: restore them from a backup. The log says more under `instance`.";
    /// Others have all that there is of something.
    Busy = SERVICE_UNAVAILABLE, "urn:seiketsu:problem:busy", "The control plane has its hands full",
        "Try again when `Retry-After` says.";
    /// The store is away.
    Unavailable = SERVICE_UNAVAILABLE, "urn:seiketsu:problem:store-unavailable",
        "The store gives no answer",
        "Try again. Of a change it is not known whether it was made: look, or repeat it with its `Idempotency-Key`.";
    /// The change stands.
    NotApplied = GATEWAY_TIMEOUT, "urn:seiketsu:problem:not-applied-everywhere",
        "Not all nodes have applied the change",
        "The change stands. `missing` names the nodes that have not applied it, and what they refused.";
}

/// An error for the caller. It is completed with the request's id on its way out.
#[derive(Debug, Clone)]
pub struct Problem {
    pub kind: Kind,
    pub detail: Cow<'static, str>,
    members: Map<String, Value>,
    etag: Option<u64>,
    retry_after: Option<u64>,
}

/// The shape of every error (RFC 9457). Further members belong to the type.
#[derive(Debug, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemDocument {
    /// Decide by this: it stays the same from release to release.
    #[schema(example = "urn:seiketsu:problem:invalid")]
    r#type: &'static str,
    title: &'static str,
    #[schema(value_type = u16)]
    status: u16,
    detail: Cow<'static, str>,
    /// The request's id, as in `X-Request-Id`.
    instance: String,
    #[schema(ignore)]
    members: Map<String, Value>,
}

impl Serialize for ProblemDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { r#type: type_uri, title, status, detail, instance, members } = self;
        let details = Details { type_uri, title, status: *status, detail, instance: Some(instance) };
        details.serialize(serializer, members.iter().map(|(name, value)| (name.as_str(), value)))
    }
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), members: Map::new(), etag: None, retry_after: None }
    }

    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(Kind::NotFound, format!("there is no such {what}"))
    }

    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    /// One or more places that are wrong.
    pub fn invalid(errors: impl IntoIterator<Item = Value>) -> Self {
        let errors: Vec<Value> = errors.into_iter().collect();
        let first = errors.first().and_then(|first| first["detail"].as_str()).unwrap_or_default();
        let path = errors.first().and_then(|first| first["path"].as_str()).unwrap_or_default();
        let detail = match (errors.len(), path) {
            (0 | 1, "") => first.to_owned(),
            (0 | 1, _) => format!("{path}: {first}"),
            (more, _) => format!("{path}: {first}; and {} more", more - 1),
        };
        Self::new(Kind::Invalid, detail).with("errors", errors)
    }

    pub fn invalid_at(path: &str, detail: impl Into<String>, fix: Option<&str>) -> Self {
        Self::invalid([json!({ "path": path, "detail": detail.into(), "fix": fix })])
    }

    pub(super) fn into_document(self, instance: String) -> (ProblemDocument, Option<u64>, Option<u64>) {
        let Self { kind, detail, members, etag, retry_after } = self;
        let status = kind.status().as_u16();
        let document =
            ProblemDocument { r#type: kind.type_uri(), title: kind.title(), status, detail, instance, members };
        (document, etag, retry_after)
    }
}

/// Rendered by the outermost layer, which knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// What the outermost layer makes of a problem.
pub(super) fn render(response: &mut Response, request: &str) {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return };
    let (document, etag, retry_after) = problem.into_document(request.to_owned());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.remove(header::CONTENT_LENGTH);
    if let Some(etag) = etag {
        headers.insert(header::ETAG, etag::value(etag));
    }
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if document.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"seiketsu\""));
    }
    *response.body_mut() = serde_json::to_vec_pretty(&document).unwrap_or_default().into();
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.is_passing() {
            tracing::warn!(%error, "a request could not be answered");
            return Self::new(Kind::Unavailable, "the store cannot be reached, or is busy").retry_after(1);
        }
        if matches!(error, StoreError::Revoked) {
            let detail =
                "the token or the rights of the caller were changed before it was their turn: nothing was changed";
            return Self::new(Kind::Forbidden, detail);
        }
        tracing::error!(%error, "a request could not be answered");
        if error.is_damage() {
            return Self::new(Kind::Damaged, "a row of the store was altered, or damaged");
        }
        Self::new(Kind::Internal, "the log of the control plane says more under the request's id")
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => error.into(),
            WriteError::Invalid(errors) => Self::invalid(errors.iter().map(place)),
            WriteError::Changed { expected, current } => {
                let mut problem = Self::new(
                    Kind::Changed,
                    format!(
                        "it was to be changed as it was in revision {expected}, and has been changed or removed since"
                    ),
                )
                .with("given", json!({ "revision": expected }));
                problem.etag = current.as_ref().map(|current| current.revision);
                problem.with("current", current.map_or(Value::Null, |current| version(&current)))
            }
            WriteError::ChangedSince { expected, newest } => {
                let detail = format!("nothing was to be changed since revision {expected}, and the newest is {newest}");
                let mut problem = Self::new(Kind::Changed, detail).with("given", json!({ "revision": expected }));
                problem.etag = Some(newest);
                problem.with("current", json!({ "revision": newest }))
            }
            WriteError::HostOfOthers { host, pattern } => {
                let detail = format!(
                    "the host {host} and {pattern} of another tenant reach into each other: an operator of all tenants may \
                     decide that"
                );
                Self::new(Kind::Conflict, detail).with("host", host).with("pattern", pattern)
            }
            WriteError::Exists(id) => Self::new(Kind::Conflict, format!("there is a tenant {id} already")),
            WriteError::Missing(id) => Self::new(Kind::NotFound, format!("there is no tenant {id}")),
            error @ WriteError::NotInTenant { .. } => Self::new(Kind::NotFound, error.to_string()),
            error @ WriteError::InTenant { .. } => Self::new(Kind::Conflict, error.to_string()),
            WriteError::NoRevision(number) => Self::new(Kind::NotFound, format!("there is no revision {number} yet")),
            // Where keys are taken, what is repeated is answered as it was before.
            WriteError::KeyUsed | WriteError::Repeated(_) => Self::key_used(),
        }
    }
}

impl From<ManageError> for Problem {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::Store(error) => error.into(),
            ManageError::Missing(what) => Self::not_found(what),
            error @ (ManageError::Exists(_) | ManageError::LastOwner | ManageError::NodeIsLive(_)) => {
                Self::new(Kind::Conflict, error.to_string())
            }
            ManageError::Changed { expected, current } => {
                let detail =
                    format!("it was to be changed as it was in revision {expected}, and has been changed since");
                let mut problem = Self::new(Kind::Changed, detail).with("given", json!({ "revision": expected }));
                problem.etag = Some(current.revision);
                problem.with("current", serde_json::to_value(&current).unwrap_or_default())
            }
            error @ ManageError::Orders(_) => Self::new(Kind::TooMany, error.to_string()).retry_after(60),
            error @ ManageError::Above(_) => Self::new(Kind::Forbidden, error.to_string()),
            ManageError::KeyUsed | ManageError::Repeated(_) => Self::key_used(),
        }
    }
}

impl From<KeepError> for Problem {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Store(error) => error.into(),
            KeepError::Missing(what) => Self::not_found(what),
            error @ (KeepError::Exists(_) | KeepError::State(_)) => Self::new(Kind::Conflict, error.to_string()),
            KeepError::Changed { expected, revision, current } => {
                let detail =
                    format!("it was to be changed as it was in revision {expected}, and has been changed since");
                let mut problem = Self::new(Kind::Changed, detail).with("given", json!({ "revision": expected }));
                problem.etag = Some(revision);
                problem.with("current", current)
            }
            KeepError::OfOther(secret) => {
                let fix = format!("send the {secret} for the new address, or an empty one for none");
                Self::invalid_at(secret, error.to_string(), Some(&fix))
            }
            KeepError::Full { most, .. } => Self::new(Kind::Full, error.to_string()).with("most", most),
            KeepError::KeyUsed | KeepError::Repeated(_) => Self::key_used(),
        }
    }
}

impl Problem {
    fn key_used() -> Self {
        Self::new(Kind::KeyUsed, "the same Idempotency-Key came with another request")
    }
}

impl From<ConfigErrors> for Problem {
    fn from(errors: ConfigErrors) -> Self {
        let omitted = errors.omitted();
        let places = errors.iter().map(|error| {
            json!({
                "path": error.path.to_string(),
                "detail": match &error.value {
                    Some(value) => format!("{value:?}: {}", error.cause),
                    None => error.cause.to_string(),
                },
                "fix": error.cause.fix(),
                "line": error.position.map(|position| position.line),
                "column": error.position.map(|position| position.column),
                "tenant": error.tenant,
            })
        });
        let problem = Self::invalid(places);
        if omitted > 0 { problem.with("omitted", omitted) } else { problem }
    }
}

fn place(invalid: &Invalid) -> Value {
    json!({ "path": invalid.path, "detail": invalid.detail, "fix": invalid.fix, "tenant": invalid.tenant })
}

/// A document with its revision, for those who have to decide between two.
fn version(document: &StoredDocument) -> Value {
    let content: Value = serde_json::from_str(&document.content).unwrap_or_default();
    json!({ "revision": document.revision, "document": content })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/admin-problems.md");

    #[test]
    fn every_problem_is_documented() {
        let expected: Vec<String> = Kind::ALL
            .iter()
            .map(|kind| {
                let (uri, status, title) = (kind.type_uri(), kind.status().as_u16(), kind.title());
                format!("| `{uri}` | {status} | {title} | {} |", kind.remedy())
            })
            .collect();
        let written: Vec<&str> = DOCUMENT.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(written, expected, "docs/admin-problems.md should have these rows:\n{}", expected.join("\n"));
    }
}
