//! Whether a request conforms to what was published about the API: a JSON Schema (2020-12) of its
//! body, an OpenAPI 3.1 description, or both.
//!
//! Everything is compiled once. No document of a tenant can make the gateway fetch another (remote
//! `$ref`s are refused), and patterns run on an engine whose time is linear in the input. What is
//! reported names places and rules, never the values that a client sent.

mod complexity;
mod json;
mod meter;
mod openapi;
mod schema;

use std::fmt;

use http::{HeaderMap, HeaderValue, Method, header};
use seiketsu_config::policy::{self, JsonDocument, ValidationMode};
use serde::Serialize;
use serde_json::Value;

use self::schema::Schema;
pub use self::{
    complexity::TooComplex,
    openapi::{OpenApi, OpenApiError},
    schema::SchemaError,
};
use super::{Refusal, json_body};
use crate::respond::problem::ProblemKind;

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
    #[error("the document {} has not been read: it is put in place of its name when the configuration is loaded", .0.display())]
    NotRead(std::path::PathBuf),
}

/// A compiled validation policy.
#[derive(Debug)]
pub struct Validation {
    mode: ValidationMode,
    body_schema: Option<Schema>,
    openapi: Option<OpenApi>,
}

/// A request as far as validation looks at it. What it sees is what the client sent.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    pub method: &'r Method,
    /// Percent-encoded, normalised.
    pub path: &'r str,
    pub query: Option<&'r str>,
    pub headers: &'r HeaderMap,
    /// The whole body; empty if there is none.
    pub body: &'r [u8],
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

/// Why a request does not conform. In report mode the caller counts it and lets the request pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nonconformity {
    /// 400. From one to [`MAX_VIOLATIONS`].
    Violations(Vec<Violation>),
    /// 404: the description has no such path.
    UnknownPath,
    /// 405: the description has the path, not with this method. Holds the value of `Allow`.
    UnknownMethod(HeaderValue),
    /// 415: the description has no such request body.
    UnsupportedMediaType,
    /// 415: what was checked as JSON may be read as something else.
    NotPlainJson,
}

impl Validation {
    /// Compiling a large description takes milliseconds to seconds: not for an async worker.
    pub fn compile(config: &policy::Validation) -> Result<Self, ValidationError> {
        if config.body_schema.is_none() && config.openapi.is_none() {
            return Err(ValidationError::NoDocument);
        }
        let body_schema = match &config.body_schema {
            Some(document) => Some(Schema::compile(inline(document)?).map_err(ValidationError::BodySchema)?),
            None => None,
        };
        let openapi = match &config.openapi {
            Some(document) => Some(OpenApi::compile(inline(document)?)?),
            None => None,
        };
        Ok(Self { mode: config.mode, body_schema, openapi })
    }

    /// Whether the caller refuses what does not conform, or only counts it.
    pub fn mode(&self) -> ValidationMode {
        self.mode
    }

    /// Checks path, method, parameters and the body's media type and content.
    pub fn check(&self, request: &Request<'_>) -> Result<(), Nonconformity> {
        meter::timed(|| self.check_all(request))
    }

    fn check_all(&self, request: &Request<'_>) -> Result<(), Nonconformity> {
        let mut violations = Vec::new();
        if let Some(openapi) = &self.openapi {
            let (operation, path_values) = openapi.find(request.method, request.path)?;
            operation.check_head(request, &path_values, &mut violations);
            operation.check_body(request.headers, request.body, &mut violations)?;
        }
        if let Some(schema) = &self.body_schema {
            if !request.body.is_empty() && !is_plain_json(request.headers) {
                return Err(Nonconformity::NotPlainJson);
            }
            schema.check_body(request.body, &mut violations);
        }
        conforms(violations)
    }

    /// Checks path, method and parameters: all that needs no body. The body of `request` is not looked at.
    pub fn check_head(&self, request: &Request<'_>) -> Result<(), Nonconformity> {
        let mut violations = Vec::new();
        if let Some(openapi) = &self.openapi {
            let (operation, path_values) = openapi.find(request.method, request.path)?;
            meter::timed(|| operation.check_head(request, &path_values, &mut violations));
        }
        conforms(violations)
    }

    /// Whether [`Self::check`] looks at the content of this request's body. If not, it need not be read
    /// before the request goes on, and [`Self::check_head`] says all there is to say.
    pub fn wants_body(&self, request: &Request<'_>) -> bool {
        let of_operation = || {
            let found = self.openapi.as_ref()?.find(request.method, request.path);
            found.ok().map(|(operation, _)| operation.wants_body(request.headers))
        };
        self.body_schema.is_some() || of_operation().unwrap_or(false)
    }
}

fn inline(document: &JsonDocument) -> Result<&Value, ValidationError> {
    match document {
        JsonDocument::Inline(value) => Ok(value),
        JsonDocument::File(path) => Err(ValidationError::NotRead(path.clone())),
    }
}

fn conforms(mut violations: Vec<Violation>) -> Result<(), Nonconformity> {
    violations.truncate(MAX_VIOLATIONS);
    if violations.is_empty() { Ok(()) } else { Err(Nonconformity::Violations(violations)) }
}

impl fmt::Display for Nonconformity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violations(violations) => {
                for (i, violation) in violations.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    let name = violation.name.as_deref().unwrap_or(&violation.pointer);
                    write!(f, "{separator}{:?} {name:?}: {}", violation.r#in, violation.message)?;
                }
                Ok(())
            }
            Self::UnknownPath => f.write_str("the API description has no such path"),
            Self::UnknownMethod(_) => f.write_str("the API description has the path, but not with this method"),
            Self::UnsupportedMediaType => f.write_str("the API description has no body of this media type"),
            Self::NotPlainJson => f.write_str("the body is not announced as JSON in UTF-8 without a coding"),
        }
    }
}

impl From<Nonconformity> for Refusal {
    fn from(nonconformity: Nonconformity) -> Self {
        match nonconformity {
            Nonconformity::Violations(violations) => {
                let errors = serde_json::to_value(violations).unwrap_or_default();
                Self::new(ProblemKind::ValidationFailed, "The request does not conform; see `errors`.")
                    .with_extension("errors", errors)
            }
            Nonconformity::UnknownPath => Self::new(ProblemKind::NoRoute, "The API has no such path."),
            Nonconformity::UnknownMethod(allow) => {
                Self::new(ProblemKind::MethodNotAllowed, "This method is not allowed here; see the Allow header.")
                    .with_header(header::ALLOW, allow)
            }
            Nonconformity::UnsupportedMediaType => {
                Self::new(ProblemKind::UnsupportedMediaType, "The API takes no body of this media type here.")
            }
            Nonconformity::NotPlainJson => Self::new(
                ProblemKind::UnsupportedMediaType,
                "Bodies are taken here as JSON in UTF-8, without a content coding; Content-Type must say so.",
            ),
        }
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

fn is_plain_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|it| json_body::is_json(it.as_bytes())) && json_body::is_unambiguous(headers)
}

#[cfg(test)]
mod tests {
    // Tests hand over what `json!` makes.
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use serde_json::json;

    use super::*;

    fn compiled(config: Value) -> Result<Validation, ValidationError> {
        Validation::compile(&serde_json::from_value(config).unwrap())
    }

    fn with_schema(schema: Value) -> Validation {
        compiled(json!({ "body_schema": { "inline": schema } })).unwrap()
    }

    fn check(validation: &Validation, body: &[u8]) -> Result<(), Nonconformity> {
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))].into_iter().collect();
        validation.check(&Request { method: &Method::POST, path: "/", query: None, headers: &headers, body })
    }

    fn violations(outcome: Result<(), Nonconformity>) -> Vec<Violation> {
        match outcome {
            Err(Nonconformity::Violations(violations)) => violations,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_is_checked_against_its_schema() {
        let validation = with_schema(json!({
            "type": "object", "required": ["name"],
            "properties": { "name": { "type": "string" }, "age": { "type": "integer", "minimum": 0 } },
        }));
        assert_eq!(check(&validation, br#"{"name":"a","age":3}"#), Ok(()));
        let found = violations(check(&validation, br#"{"age":-1}"#));
        let places: Vec<_> = found.iter().map(|v| (v.r#in, v.pointer.as_str())).collect();
        assert!(places.contains(&(Part::Body, "/age")) && places.contains(&(Part::Body, "")), "{found:?}");
    }

    #[test]
    fn what_is_not_json_is_a_violation_and_not_an_error() {
        let validation = with_schema(json!({ "type": "object" }));
        let deep = "[".repeat(100_000);
        for body in ["", "{", "nul", "{} {}", "\u{feff}{}", "{\"a\":1e999999999999}x", deep.as_str()] {
            assert_eq!(violations(check(&validation, body.as_bytes())).len(), 1, "{body:.20}");
        }
        assert_eq!(violations(check(&validation, b"\xff")).len(), 1);
    }

    #[test]
    fn a_name_that_stands_twice_is_a_violation_wherever_it_does() {
        let validation = with_schema(json!({ "properties": { "email": { "maxLength": 9 } } }));
        for (body, pointers) in [
            (r#"{"email":"much-too-long","email":"b"}"#, vec!["/email"]),
            (r#"{"email":"b","em\u0061il":"b"}"#, vec!["/email"]),
            (r#"{"a":[0,{"b/c":{"x":1,"x":1}}]}"#, vec!["/a/1/b~1c/x"]),
            (r#"{"a":1,"a":1,"b":2,"a":1,"b":2}"#, vec!["/a", "/b"]),
            (r#"[{"a":1},{"a":1},{"b":{"a":1},"a":1}]"#, vec![]),
        ] {
            let found = match check(&validation, body.as_bytes()) {
                Ok(()) => Vec::new(),
                Err(nonconformity) => violations(Err(nonconformity)),
            };
            assert_eq!(found.iter().map(|v| v.pointer.as_str()).collect::<Vec<_>>(), pointers, "{body}");
        }
        let many: Vec<String> = (0..1000).map(|n| format!("\"{n}\":0,\"{n}\":0")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(violations(check(&validation, many.as_bytes())).len(), MAX_VIOLATIONS);
    }

    #[test]
    fn values_are_not_echoed_and_texts_stay_short() {
        let validation = with_schema(json!({
            "additionalProperties": false,
            "properties": { "pin": { "type": "integer" }, "kind": { "enum": ["a"] }, "id": { "pattern": "^x$" } },
        }));
        let long = "k".repeat(5000);
        let body = json!({ "pin": "hunter2", "kind": "hunter2", "id": "hunter2", (long): 1 }).to_string();
        let found = violations(check(&validation, body.as_bytes()));
        assert!(found.len() >= 4, "{found:?}");
        for violation in found {
            let text = serde_json::to_string(&violation).unwrap();
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.len() < 600, "{text}");
        }
    }

    #[test]
    fn at_most_twenty_violations_are_reported() {
        let validation = with_schema(json!({ "items": { "type": "string" } }));
        let body = serde_json::to_vec(&vec![1; 1000]).unwrap();
        assert_eq!(violations(check(&validation, &body)).len(), MAX_VIOLATIONS);
    }

    #[test]
    fn the_refusal_lists_place_and_rule() {
        let validation = with_schema(json!({ "properties": { "n": { "type": "integer" } } }));
        let refusal = Refusal::from(check(&validation, br#"{"n":"x"}"#).unwrap_err());
        assert_eq!(refusal.status(), 400);
        let (name, errors) = refusal.extensions().next().unwrap();
        assert_eq!((name, &errors[0]["in"], &errors[0]["pointer"]), ("errors", &json!("body"), &json!("/n")));
        let described = Refusal::from(Nonconformity::UnknownMethod(HeaderValue::from_static("GET")));
        assert_eq!((described.status().as_u16(), described.headers.len()), (405, 1));
        assert_eq!(Refusal::from(Nonconformity::UnknownPath).status(), 404);
        assert_eq!(Refusal::from(Nonconformity::UnsupportedMediaType).status(), 415);
    }

    #[test]
    fn a_policy_without_a_document_or_with_one_not_read_is_refused() {
        assert!(matches!(compiled(json!({})), Err(ValidationError::NoDocument)));
        let unread = compiled(json!({ "openapi": { "file": "api.yaml" } }));
        assert!(matches!(unread, Err(ValidationError::NotRead(_))));
    }

    #[test]
    fn the_mode_is_the_callers_to_heed() {
        let validation = compiled(json!({ "mode": "report", "body_schema": { "inline": false } })).unwrap();
        assert_eq!(validation.mode(), ValidationMode::Report);
        assert!(check(&validation, b"1").is_err());
    }

    #[test]
    fn a_text_is_cut_at_a_character() {
        let text = shortened("é".repeat(150));
        assert_eq!(text.chars().filter(|c| *c == 'é').count(), 100);
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
