//! Whether a request conforms to what was published about the API: a JSON Schema (2020-12) of its
//! body, an OpenAPI 3.1 description, or both.
//!
//! Everything is compiled once. No document of a tenant can make the gateway fetch another (remote
//! `$ref`s are refused), and patterns run on an engine whose time is linear in the input. What is
//! reported names places and rules, never the values that a client sent.

mod openapi;
mod schema;

use http::{HeaderMap, HeaderValue, header};
use pingora::http::RequestHeader;
use seiketsu_config::policy::ValidationMode;
use serde::Serialize;
use serde_json::Value;

use self::{openapi::Operation, schema::Schema};
pub use self::{
    openapi::{OpenApi, OpenApiError},
    schema::SchemaError,
};

/// Violations that are reported of one request at most.
pub const MAX_VIOLATIONS: usize = 20;
/// Bytes of one violation's pointer, and of its message, at most.
const MAX_TEXT: usize = 200;

/// Why a validation policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    #[error("`body_schema`: {0}")]
    BodySchema(#[source] SchemaError),
    #[error("`openapi`: {0}")]
    OpenApi(#[from] OpenApiError),
    #[error("validation has neither `body_schema` nor `openapi`: give at least one document")]
    NoDocument,
}

/// A compiled validation policy.
#[derive(Debug)]
pub struct Validator {
    mode: ValidationMode,
    body_schema: Option<Schema>,
    openapi: Option<OpenApi>,
}

/// One way in which a request does not conform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub r#in: Part,
    /// The name of the parameter; none for a body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// JSON pointer (RFC 6901) into the body or parameter; empty for the whole.
    pub pointer: String,
    pub message: String,
}

/// The part of a request that a violation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Path,
    Query,
    Header,
    Cookie,
    Body,
}

/// What validation finds. In report mode the caller lets all of them pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Valid,
    /// 400. From one to [`MAX_VIOLATIONS`].
    Invalid(Vec<Violation>),
    /// 404: the description has no such path.
    UnknownPath,
    /// 405: the description has the path, not with this method. Holds the value of `Allow`.
    UnknownMethod(HeaderValue),
    /// 415: the description has no such request body.
    UnsupportedMediaType,
}

impl Outcome {
    fn of(mut violations: Vec<Violation>) -> Self {
        violations.truncate(MAX_VIOLATIONS);
        if violations.is_empty() { Self::Valid } else { Self::Invalid(violations) }
    }
}

impl Validator {
    /// `body_schema` and `openapi` are the documents, read and parsed. Compiling a large description
    /// takes milliseconds to seconds: not for an async worker.
    pub fn compile(
        mode: ValidationMode,
        body_schema: Option<&Value>,
        openapi: Option<&Value>,
    ) -> Result<Self, ValidationError> {
        if body_schema.is_none() && openapi.is_none() {
            return Err(ValidationError::NoDocument);
        }
        let body_schema = body_schema.map(Schema::compile).transpose().map_err(ValidationError::BodySchema)?;
        let openapi = openapi.map(OpenApi::compile).transpose()?;
        Ok(Self { mode, body_schema, openapi })
    }

    /// Whether the caller refuses what does not conform, or only counts it.
    pub fn mode(&self) -> ValidationMode {
        self.mode
    }

    /// Checks path, method, parameters and the body's media type: all that needs no body.
    pub fn check_head(&self, request: &RequestHeader) -> Outcome {
        match &self.openapi {
            None => Outcome::Valid,
            Some(openapi) => match openapi.find(&request.method, request.uri.path()) {
                Ok((operation, path_values)) => operation.check_head(request, &path_values),
                Err(outcome) => outcome,
            },
        }
    }

    /// Whether [`Self::check_body`] has anything to look at for this request. If not, the body need
    /// not be read ahead.
    pub fn wants_body(&self, request: &RequestHeader) -> bool {
        self.body_schema.is_some() || self.operation(request).is_some_and(Operation::wants_body)
    }

    /// Checks the whole body; empty means that there is none.
    pub fn check_body(&self, request: &RequestHeader, body: &[u8]) -> Outcome {
        let mut violations = Vec::new();
        if let Some(operation) = self.operation(request) {
            match operation.check_body(&request.headers, body) {
                Outcome::Valid => {}
                Outcome::Invalid(found) => violations = found,
                other => return other,
            }
        }
        if let Some(schema) = &self.body_schema {
            schema.check_body(body, &mut violations);
        }
        Outcome::of(violations)
    }

    fn operation(&self, request: &RequestHeader) -> Option<&Operation> {
        let found = self.openapi.as_ref()?.find(&request.method, request.uri.path());
        found.ok().map(|(operation, _)| operation)
    }
}

impl Violation {
    fn new(part: Part, name: Option<&str>, pointer: &str, message: impl Into<String>) -> Self {
        Self {
            r#in: part,
            name: name.map(Into::into),
            pointer: shortened(pointer.to_owned()),
            message: shortened(message.into()),
        }
    }
}

/// Cut after [`MAX_TEXT`] bytes, at a character.
fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The media type of a message in lower case, without parameters. `None` if there is none, or two.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

/// `application/json`, and what is written `+json` (RFC 6839 §3.1).
fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || media_type == "text/json" || media_type.ends_with("+json")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn post(body_type: &'static str) -> RequestHeader {
        let mut request = RequestHeader::build("POST", b"/", None).unwrap();
        request.append_header("content-type", body_type).unwrap();
        request
    }

    fn validator(schema: Value) -> Validator {
        Validator::compile(ValidationMode::Enforce, Some(&schema), None).unwrap()
    }

    fn violations(outcome: Outcome) -> Vec<Violation> {
        match outcome {
            Outcome::Invalid(violations) => violations,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_is_checked_against_its_schema() {
        let validator = validator(json!({
            "type": "object", "required": ["name"],
            "properties": { "name": { "type": "string" }, "age": { "type": "integer", "minimum": 0 } },
        }));
        let request = post("application/json");
        assert!(validator.wants_body(&request));
        assert_eq!(validator.check_body(&request, br#"{"name":"a","age":3}"#), Outcome::Valid);
        let found = violations(validator.check_body(&request, br#"{"age":-1}"#));
        let places: Vec<_> = found.iter().map(|v| (v.r#in, v.pointer.as_str())).collect();
        assert!(places.contains(&(Part::Body, "/age")) && places.contains(&(Part::Body, "")), "{found:?}");
    }

    #[test]
    fn what_is_not_json_is_a_violation_and_not_an_error() {
        let validator = validator(json!({ "type": "object" }));
        let deep = "[".repeat(100_000);
        for body in ["", "{", "nul", "{} {}", "\u{feff}{}", "{\"a\":1e999999999999}x", deep.as_str()] {
            assert_eq!(
                violations(validator.check_body(&post("application/json"), body.as_bytes())).len(),
                1,
                "{body:.20}"
            );
        }
        assert_eq!(violations(validator.check_body(&post("application/json"), b"\xff")).len(), 1);
    }

    #[test]
    fn values_are_not_echoed_and_texts_stay_short() {
        let validator = validator(json!({
            "additionalProperties": false,
            "properties": { "pin": { "type": "integer" }, "kind": { "enum": ["a"] }, "id": { "pattern": "^x$" } },
        }));
        let long = "k".repeat(5000);
        let body = json!({ "pin": "hunter2", "kind": "hunter2", "id": "hunter2", (long): 1 }).to_string();
        let found = violations(validator.check_body(&post("application/json"), body.as_bytes()));
        assert!(found.len() >= 4, "{found:?}");
        for violation in found {
            let text = serde_json::to_string(&violation).unwrap();
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.len() < 600, "{text}");
        }
    }

    #[test]
    fn at_most_twenty_violations_are_reported() {
        let validator = validator(json!({ "items": { "type": "string" } }));
        let body = serde_json::to_vec(&vec![1; 1000]).unwrap();
        assert_eq!(violations(validator.check_body(&post("application/json"), &body)).len(), MAX_VIOLATIONS);
    }

    #[test]
    fn a_policy_without_a_document_is_refused() {
        assert!(matches!(Validator::compile(ValidationMode::Report, None, None), Err(ValidationError::NoDocument)));
    }

    #[test]
    fn a_text_is_cut_at_a_character() {
        let text = shortened("é".repeat(150));
        assert_eq!(text.chars().filter(|c| *c == 'é').count(), 100);
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
