//! Requests against an `OpenAPI` 3.1 description.
//!
//! What is looked at: `servers` (their base paths), `paths` with templates, methods, parameters in
//! path, query, header and cookie, and request bodies. `$ref`s to parameters, bodies and path items
//! are followed within the document. Schemas of bodies are applied to JSON media types; of others,
//! only the media type is checked.

mod parameter;
mod template;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue, Method, header::CONTENT_LENGTH};
use jsonschema::Registry;
use serde_json::{Map, Value};

use self::{
    parameter::{Parameter, Sources},
    template::Template,
};
use super::{
    Nonconformity, Part, Request, SchemaError, Violation, json_body, media_type,
    schema::{Schema, registry},
};

/// Schemas that all bodies and parameters together lead to, each counted for each that leads to it.
const MAX_SCHEMAS: usize = 200_000;
/// References that lead to references.
const MAX_REFERENCES: usize = 16;
const METHODS: [(&str, Method); 8] = [
    ("get", Method::GET),
    ("put", Method::PUT),
    ("post", Method::POST),
    ("delete", Method::DELETE),
    ("options", Method::OPTIONS),
    ("head", Method::HEAD),
    ("patch", Method::PATCH),
    ("trace", Method::TRACE),
];

/// Why an `OpenAPI` document is refused. The pointers are JSON pointers into it.
#[derive(Debug, thiserror::Error)]
pub enum OpenApiError {
    #[error("`openapi` is {found:?}: only 3.1 is supported; convert the document")]
    UnsupportedVersion { found: String },
    #[error("{pointer}: {expected} is missing or of another kind")]
    Malformed { pointer: String, expected: &'static str },
    #[error(
        "{pointer}: {reference:?} leads nowhere: refer to something in this document, as in #/components/parameters/limit"
    )]
    DanglingReference { pointer: String, reference: String },
    #[error("{pointer}: the path template {template:?} is not valid: {reason}")]
    InvalidTemplate { pointer: String, template: String, reason: &'static str },
    #[error(
        "{pointer}: the parameter {name:?} has {what}, which is not supported; use `style: simple` in path and header, `style: form` in query and cookie, for simple values and arrays, or `content` for others"
    )]
    UnsupportedParameter { pointer: String, name: String, what: String },
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(
        "{pointer}: with this one, the schemas of bodies and parameters lead to more than {MAX_SCHEMAS} others: split the document"
    )]
    TooLarge { pointer: String },
    #[error("the document cannot be read: {0}")]
    Unreadable(#[from] jsonschema::ReferencingError),
}

/// A compiled description.
#[derive(Debug)]
pub struct OpenApi {
    /// Without trailing slash, the longest first.
    base_paths: Box<[Box<str>]>,
    /// By number of segments; within one number, the more specific templates first.
    paths: BTreeMap<usize, Vec<Path>>,
}

#[derive(Debug)]
struct Path {
    template: Template,
    operations: Vec<(Method, Operation)>,
    allow: HeaderValue,
}

/// What one method of a path takes.
#[derive(Debug)]
pub(super) struct Operation {
    parameters: Box<[Parameter]>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    required: bool,
    /// Exact types first, then `type/*`, then `*/*`.
    content: Box<[Media]>,
}

#[derive(Debug)]
struct Media {
    /// In lower case, without parameters.
    range: Box<str>,
    schema: Option<Arc<Schema>>,
}

impl OpenApi {
    pub fn compile(document: &Value) -> Result<Self, OpenApiError> {
        Compiler::new(document)?.compile()
    }

    /// The operation of a request, and the values of its template's parameters as they stand in the path.
    pub(super) fn find<'p>(&self, method: &Method, path: &'p str) -> Result<(&Operation, Vec<&'p str>), Nonconformity> {
        let mut allow = None;
        for base in &self.base_paths {
            let Some(rest) = path.strip_prefix(&**base).filter(|rest| rest.starts_with('/')) else { continue };
            let segments: Vec<&str> = rest[1..].split('/').collect();
            for path in self.paths.get(&segments.len()).into_iter().flatten() {
                let Some(values) = path.template.matches(&segments) else { continue };
                match path.operation(method) {
                    Some(operation) => return Ok((operation, values)),
                    None => allow = allow.or(Some(&path.allow)),
                }
            }
        }
        Err(allow.map_or(Nonconformity::UnknownPath, |allow| Nonconformity::UnknownMethod(allow.clone())))
    }
}

impl Path {
    /// `HEAD` is `GET` without a body (RFC 9110 §9.3.2), so a description need not repeat it.
    fn operation(&self, method: &Method) -> Option<&Operation> {
        let of = |method: &Method| self.operations.iter().find(|(have, _)| have == method);
        let found = of(method).or_else(|| if *method == Method::HEAD { of(&Method::GET) } else { None });
        found.map(|(_, operation)| operation)
    }
}

impl Operation {
    pub(super) fn check_head(&self, request: &Request<'_>, path_values: &[&str], violations: &mut Vec<Violation>) {
        let sources = Sources::new(request, path_values);
        for parameter in &self.parameters {
            parameter.check(&sources, violations);
        }
    }

    /// Whether the head leaves open if the body is what it must be: its content has a schema, it must
    /// be there and may not be, or it is of a kind that is not taken and may not be there.
    pub(super) fn wants_body(&self, headers: &HeaderMap) -> bool {
        let Some(body) = &self.body else { return false };
        let is_announced = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
        match media_type(headers).and_then(|media_type| Some((body.media(&media_type)?, media_type))) {
            Some((media, media_type)) => {
                body.required && !is_announced || media.schema.is_some() && json_body::is_json(media_type.as_bytes())
            }
            None => true,
        }
    }

    pub(super) fn check_body(
        &self,
        headers: &HeaderMap,
        bytes: &[u8],
        violations: &mut Vec<Violation>,
    ) -> Result<(), Nonconformity> {
        let Some(body) = &self.body else { return Ok(()) };
        if bytes.is_empty() {
            if body.required {
                violations.push(Violation::new(Part::Body, None, "", "a body is required"));
            }
            return Ok(());
        }
        let media_type = media_type(headers).ok_or(Nonconformity::UnsupportedMediaType)?;
        let media = body.media(&media_type).ok_or(Nonconformity::UnsupportedMediaType)?;
        if let Some(schema) = &media.schema
            && json_body::is_json(media_type.as_bytes())
        {
            if !json_body::is_unambiguous(headers) {
                return Err(Nonconformity::NotPlainJson);
            }
            schema.check_body(bytes, violations);
        }
        Ok(())
    }
}

impl Body {
    /// `None` if the media type is not among those that are taken.
    fn media(&self, media_type: &str) -> Option<&Media> {
        self.content.iter().find(|media| in_range(media_type, &media.range))
    }
}

fn in_range(media_type: &str, range: &str) -> bool {
    match range.strip_suffix('*') {
        None => media_type == range,
        Some("*/") => true,
        Some(kind) => media_type.starts_with(kind),
    }
}

/// A document while it is compiled. Places in it are JSON pointers.
struct Compiler<'d> {
    document: &'d Value,
    registry: Registry<'d>,
    /// By place: many bodies and parameters refer to the same.
    schemas: RefCell<HashMap<String, Arc<Schema>>>,
    /// What those lead to, in all.
    lead_to: Cell<usize>,
}

impl<'d> Compiler<'d> {
    fn new(document: &'d Value) -> Result<Self, OpenApiError> {
        let version = document.get("openapi").and_then(Value::as_str).unwrap_or_default();
        if version != "3.1" && !version.starts_with("3.1.") {
            return Err(OpenApiError::UnsupportedVersion { found: version.to_owned() });
        }
        Ok(Self { document, registry: registry(document)?, schemas: RefCell::default(), lead_to: Cell::new(0) })
    }

    fn compile(&self) -> Result<OpenApi, OpenApiError> {
        let mut paths: BTreeMap<usize, Vec<Path>> = BTreeMap::new();
        for (text, _) in self.optional_map("", "paths")?.into_iter().flatten() {
            if text.starts_with("x-") {
                continue;
            }
            let pointer = format!("/paths/{}", escaped(text));
            let template = Template::parse(text).map_err(|reason| OpenApiError::InvalidTemplate {
                pointer: pointer.clone(),
                template: text.clone(),
                reason,
            })?;
            let path = self.path(&pointer, template)?;
            paths.entry(path.template.segments()).or_default().push(path);
        }
        for same_length in paths.values_mut() {
            same_length.sort_by(|a, b| a.template.cmp_specific(&b.template));
        }
        Ok(OpenApi { base_paths: self.base_paths()?, paths })
    }

    /// The paths of `servers`, their variables replaced by the defaults; the root if there are none.
    fn base_paths(&self) -> Result<Box<[Box<str>]>, OpenApiError> {
        let Some(servers) = self.document.get("servers").and_then(Value::as_array).filter(|s| !s.is_empty()) else {
            return Ok(["".into()].into());
        };
        let mut bases: Vec<Box<str>> = Vec::new();
        for (i, server) in servers.iter().enumerate() {
            let malformed = || OpenApiError::Malformed {
                pointer: format!("/servers/{i}/url"),
                expected: "a URL or path, whose variables have defaults,",
            };
            let mut url = server.get("url").and_then(Value::as_str).ok_or_else(malformed)?.to_owned();
            for (name, variable) in server.get("variables").and_then(Value::as_object).into_iter().flatten() {
                let default = variable.get("default").and_then(Value::as_str).ok_or_else(malformed)?;
                url = url.replace(&format!("{{{name}}}"), default);
            }
            let anchor = url::Url::parse("http://gateway.invalid/").ok();
            let parsed = url::Url::options().base_url(anchor.as_ref()).parse(&url).map_err(|_| malformed())?;
            bases.push(parsed.path().trim_end_matches('/').into());
        }
        bases.sort_by_key(|base| std::cmp::Reverse(base.len()));
        bases.dedup();
        Ok(bases.into())
    }

    fn path(&self, pointer: &str, template: Template) -> Result<Path, OpenApiError> {
        let place = self.resolve(pointer)?;
        let shared = self.parameters(&place, &template)?;
        let mut operations = Vec::new();
        for (key, method) in METHODS {
            let place = format!("{place}/{key}");
            if self.document.pointer(&place).is_none() {
                continue;
            }
            let mut parameters = self.parameters(&place, &template)?;
            // A parameter of the operation stands for the path's of the same name and place.
            let inherited = shared.iter().filter(|shared| !parameters.iter().any(|own| own.is_same(shared)));
            let inherited: Vec<Parameter> = inherited.cloned().collect();
            parameters.extend(inherited);
            operations.push((method, Operation { parameters: parameters.into(), body: self.body(&place)? }));
        }
        let allow = operations.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ");
        let allow = HeaderValue::try_from(allow).unwrap_or_else(|_| HeaderValue::from_static(""));
        Ok(Path { template, operations, allow })
    }

    fn parameters(&self, place: &str, template: &Template) -> Result<Vec<Parameter>, OpenApiError> {
        let list = format!("{place}/parameters");
        let count = match self.document.pointer(&list) {
            None => 0,
            Some(Value::Array(list)) => list.len(),
            Some(_) => return Err(OpenApiError::Malformed { pointer: list, expected: "a list of parameters" }),
        };
        let mut parameters = Vec::with_capacity(count);
        for i in 0..count {
            let place = self.resolve(&format!("{list}/{i}"))?;
            parameters.extend(Parameter::compile(self, &place, template)?);
        }
        Ok(parameters)
    }

    fn body(&self, operation: &str) -> Result<Option<Body>, OpenApiError> {
        let pointer = format!("{operation}/requestBody");
        if self.document.pointer(&pointer).is_none() {
            return Ok(None);
        }
        let place = self.resolve(&pointer)?;
        let required = self.document.pointer(&format!("{place}/required")) == Some(&Value::Bool(true));
        let mut content = Vec::new();
        for (range, media) in self.optional_map(&place, "content")?.into_iter().flatten() {
            let essence = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            let schema = match media.get("schema") {
                Some(_) => Some(self.schema(&format!("{place}/content/{}/schema", escaped(range)))?),
                None => None,
            };
            content.push(Media { range: essence.into(), schema });
        }
        content.sort_by_key(|media| match &*media.range {
            "*/*" => 2,
            range if range.ends_with("/*") => 1,
            _ => 0,
        });
        Ok(Some(Body { required, content: content.into() }))
    }

    fn schema(&self, pointer: &str) -> Result<Arc<Schema>, OpenApiError> {
        let place = self.refers_to(pointer);
        let mut schemas = self.schemas.borrow_mut();
        if let Some(known) = schemas.get(&place) {
            return Ok(Arc::clone(known));
        }
        let schema = Arc::new(Schema::compile_at(&self.registry, &place)?);
        self.lead_to.set(self.lead_to.get() + schema.schemas());
        if self.lead_to.get() > MAX_SCHEMAS {
            return Err(OpenApiError::TooLarge { pointer: place });
        }
        schemas.insert(place, Arc::clone(&schema));
        Ok(schema)
    }

    /// The place of a schema, or of the one that it stands for where it is nothing but a reference within the document.
    fn refers_to(&self, pointer: &str) -> String {
        let alone = self.document.pointer(pointer).and_then(Value::as_object).filter(|schema| schema.len() == 1);
        let reference = alone.and_then(|schema| schema.get("$ref")?.as_str()?.strip_prefix("#/components/schemas/"));
        match reference.filter(|name| !name.contains(['/', '~', '%'])) {
            Some(name) => format!("/components/schemas/{name}"),
            None => pointer.to_owned(),
        }
    }

    /// Follows `$ref`s of whatever stands at a place, to the place where it really stands.
    fn resolve(&self, pointer: &str) -> Result<String, OpenApiError> {
        let mut place = pointer.to_owned();
        for _ in 0..MAX_REFERENCES {
            let value = self.document.pointer(&place);
            let Some(reference) = value.and_then(|value| value.get("$ref")) else {
                return match value {
                    Some(Value::Object(_)) => Ok(place),
                    _ => Err(OpenApiError::Malformed { pointer: place, expected: "an object" }),
                };
            };
            let target = reference.as_str().and_then(|reference| reference.strip_prefix('#'));
            let target = target.and_then(|target| percent_encoding::percent_decode_str(target).decode_utf8().ok());
            place = if let Some(target) = target.filter(|target| self.document.pointer(target).is_some()) {
                target.into_owned()
            } else {
                let reference = reference.as_str().unwrap_or_default().to_owned();
                return Err(OpenApiError::DanglingReference { pointer: place, reference });
            };
        }
        Err(OpenApiError::DanglingReference { pointer: pointer.to_owned(), reference: "a circle".to_owned() })
    }

    fn optional_map(&self, place: &str, key: &str) -> Result<Option<&'d Map<String, Value>>, OpenApiError> {
        let pointer = format!("{place}/{key}");
        match self.document.pointer(&pointer) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(OpenApiError::Malformed { pointer, expected: "an object" }),
        }
    }
}

/// A key as a part of a JSON pointer (RFC 6901 §3).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderName;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::policy::validation::Validation;

    type Outcome = Result<(), Nonconformity>;

    fn document() -> Value {
        json!({
            "openapi": "3.1.0",
            "info": { "title": "calls", "version": "1" },
            "servers": [{ "url": "https://api.example.com/{stage}", "variables": { "stage": { "default": "v1" } } }],
            "paths": {
                "/calls": {
                    "parameters": [{ "name": "trace", "in": "header", "schema": { "type": "string", "maxLength": 8 } }],
                    "get": {
                        "parameters": [
                            { "$ref": "#/components/parameters/limit" },
                            { "name": "state", "in": "query", "schema": { "type": "array", "items": { "enum": ["on", "off"] } } },
                            { "name": "ids", "in": "query", "explode": false, "schema": { "type": "array", "items": { "type": "integer" }, "maxItems": 3 } },
                            { "name": "live", "in": "query", "schema": { "type": "boolean" } },
                            { "name": "filter", "in": "query", "content": { "application/json": { "schema": { "type": "object", "required": ["a"] } } } },
                            { "name": "session", "in": "cookie", "required": true, "schema": { "type": "string", "pattern": "^[a-f0-9]+$" } }
                        ]
                    },
                    "post": { "requestBody": { "$ref": "#/components/requestBodies/call" } }
                },
                "/calls/{id}": {
                    "get": { "parameters": [{ "name": "id", "in": "path", "required": true, "schema": { "$ref": "#/components/schemas/Id" } }] }
                },
                "/calls/latest": { "get": {} },
                "/files/{name}.{ext}": {
                    "get": { "parameters": [
                        { "name": "ext", "in": "path", "required": true, "schema": { "enum": ["wav", "mp3"] } },
                        { "name": "name", "in": "path", "required": true, "schema": { "type": "string" } }
                    ] }
                },
                "/batch/{ids}": {
                    "get": { "parameters": [{ "name": "ids", "in": "path", "required": true, "schema": { "type": "array", "items": { "type": "integer" } } }] }
                }
            },
            "components": {
                "parameters": { "limit": { "name": "limit", "in": "query", "schema": { "type": "integer", "minimum": 1, "maximum": 100 } } },
                "requestBodies": { "call": { "required": true, "content": {
                    "application/json": { "schema": { "$ref": "#/components/schemas/Call" } },
                    "audio/*": {}
                } } },
                "schemas": {
                    "Id": { "type": "integer" },
                    "Call": { "type": "object", "required": ["to"], "properties": { "to": { "type": "string" }, "parent": { "$ref": "#/components/schemas/Call" } } }
                }
            }
        })
    }

    fn compiled() -> Validation {
        let config = json!({ "openapi": { "inline": document() } });
        Validation::compile(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn check(method: &Method, target: &str, fields: &[(&'static str, &str)], body: Option<&str>) -> Outcome {
        let headers: HeaderMap =
            fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let request = Request { method, path, query, headers: &headers, body: body.unwrap_or_default().as_bytes() };
        if body.is_some() { compiled().check(&request) } else { compiled().check_head(&request) }
    }

    fn get(target: &str) -> Outcome {
        check(&Method::GET, target, &[("cookie", "theme=dark; session=0af1")], None)
    }

    fn names(outcome: Outcome) -> Vec<String> {
        match outcome {
            Err(Nonconformity::Violations(violations)) => violations
                .into_iter()
                .map(|v| format!("{:?} {}", v.r#in, v.name.as_deref().unwrap_or(&v.pointer)))
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_are_found_below_the_servers_base() {
        assert_eq!(get("/v1/calls"), Ok(()));
        assert_eq!(get("/calls"), Err(Nonconformity::UnknownPath));
        assert_eq!(get("/v1/other"), Err(Nonconformity::UnknownPath));
        assert_eq!(get("/v1/calls/1/2"), Err(Nonconformity::UnknownPath));
        assert_eq!(get("/v1calls"), Err(Nonconformity::UnknownPath));
        assert_eq!(get("/v1"), Err(Nonconformity::UnknownPath));
    }

    #[test]
    fn a_known_path_with_another_method_names_those_it_has() {
        let outcome = check(&Method::DELETE, "/v1/calls", &[], None);
        assert_eq!(outcome, Err(Nonconformity::UnknownMethod(HeaderValue::from_static("GET, POST"))));
    }

    #[test]
    fn head_is_allowed_where_get_is() {
        assert_eq!(check(&Method::HEAD, "/v1/calls/17", &[], None), Ok(()));
        assert_eq!(names(check(&Method::HEAD, "/v1/calls/x", &[], None)), ["Path id"]);
    }

    #[test]
    fn a_literal_path_goes_before_a_template() {
        assert_eq!(get("/v1/calls/latest"), Ok(()));
        assert_eq!(get("/v1/calls/17"), Ok(()));
        assert_eq!(names(get("/v1/calls/newest")), ["Path id"]);
        assert_eq!(names(get("/v1/calls/1e2x")), ["Path id"]);
    }

    #[test]
    fn several_parameters_of_one_segment_are_told_apart() {
        assert_eq!(get("/v1/files/hello.mp3"), Ok(()));
        assert_eq!(names(get("/v1/files/hello.exe")), ["Path ext"]);
        assert_eq!(get("/v1/files/hello"), Err(Nonconformity::UnknownPath));
    }

    #[test]
    fn query_values_are_read_as_what_their_schema_says() {
        for good in [
            "limit=5",
            "live=true",
            "state=on&state=off",
            "ids=1,2,3",
            "filter=%7B%22a%22:1%7D",
            "unknown=1",
            "l%69mit=5",
        ] {
            assert_eq!(get(&format!("/v1/calls?{good}")), Ok(()), "{good}");
        }
        for (wrong, name) in [
            ("limit=0", "limit"),
            ("limit=five", "limit"),
            ("limit=", "limit"),
            ("limit=5.5", "limit"),
            ("limit=%205", "limit"),
            ("l%69mit=0", "limit"),
            ("limit=5&limit=500", "limit"),
            ("live=yes", "live"),
            ("state=on&state=up", "state"),
            ("ids=1,x", "ids"),
            ("ids=1,2,3,4", "ids"),
            ("ids=1&ids=2", "ids"),
            ("filter=%7B%7D", "filter"),
            ("filter=x", "filter"),
        ] {
            assert_eq!(names(get(&format!("/v1/calls?{wrong}"))), [format!("Query {name}")], "{wrong}");
        }
    }

    #[test]
    fn header_cookie_and_path_lists_are_checked() {
        let outcome = |fields: &[(&'static str, &str)]| check(&Method::GET, "/v1/calls", fields, None);
        assert_eq!(outcome(&[("cookie", "session=ff"), ("trace", "12345678")]), Ok(()));
        assert_eq!(names(outcome(&[("cookie", "session=ff"), ("trace", "123456789")])), ["Header trace"]);
        assert_eq!(names(outcome(&[])), ["Cookie session"]);
        assert_eq!(names(outcome(&[("cookie", "session=XYZ")])), ["Cookie session"]);
        assert_eq!(get("/v1/batch/1,2,3"), Ok(()));
        assert_eq!(names(get("/v1/batch/1,b")), ["Path ids"]);
    }

    #[test]
    fn bodies_are_checked_by_media_type() {
        let post = |content_type: Option<&str>, body: &str| {
            let fields: Vec<_> = content_type.map(|value| ("content-type", value)).into_iter().collect();
            check(&Method::POST, "/v1/calls", &fields, Some(body))
        };
        assert_eq!(post(Some("application/json; charset=utf-8"), r#"{"to":"+49","parent":{"to":"x"}}"#), Ok(()));
        let wrong = r#"{"to":"+49","parent":{"to":1}}"#;
        assert_eq!(names(post(Some("Application/JSON"), wrong)), ["Body /parent/to"]);
        assert_eq!(names(post(Some("application/json"), "")), ["Body "]);
        for doubtful in ["application/json; charset=utf-7", "application/json; a=b, audio/wav"] {
            assert_eq!(post(Some(doubtful), wrong), Err(Nonconformity::NotPlainJson), "{doubtful}");
        }
        let coded = [("content-type", "application/json"), ("content-encoding", "gzip")];
        assert_eq!(check(&Method::POST, "/v1/calls", &coded, Some(wrong)), Err(Nonconformity::NotPlainJson));
        assert_eq!(post(Some("audio/wav; a=b, c"), "RIFF"), Ok(()), "nobody looks into it");
        assert_eq!(post(Some("audio/wav"), "RIFF"), Ok(()));
        assert_eq!(post(Some("text/plain"), "x"), Err(Nonconformity::UnsupportedMediaType));
        assert_eq!(post(None, "x"), Err(Nonconformity::UnsupportedMediaType));
    }

    #[test]
    fn a_body_is_wanted_only_where_it_is_looked_into() {
        let validation = compiled();
        let wants = |method: &Method, path: &str, content_type: &'static str, length: &'static str| {
            let headers = [("content-type", content_type), ("content-length", length)];
            let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let headers: HeaderMap = headers.into_iter().collect();
            validation.wants_body(&Request { method, path, query: None, headers: &headers, body: b"" })
        };
        assert!(wants(&Method::POST, "/v1/calls", "application/json", "7"));
        assert!(wants(&Method::POST, "/v1/calls", "audio/wav", "0"));
        assert!(!wants(&Method::POST, "/v1/calls", "audio/wav", "70000000"));
        // It is refused, if it comes at all.
        assert!(wants(&Method::POST, "/v1/calls", "text/plain", "7"));
        assert!(!wants(&Method::GET, "/v1/calls", "application/json", "7"));
        assert!(!wants(&Method::POST, "/v1/other", "application/json", "7"));
    }

    #[test]
    fn documents_that_cannot_be_enforced_are_refused() {
        let error = |change: Value, at: &str| {
            let mut document = document();
            *document.pointer_mut(at).unwrap() = change;
            OpenApi::compile(&document).unwrap_err()
        };
        assert!(matches!(error(json!("3.0.3"), "/openapi"), OpenApiError::UnsupportedVersion { .. }));
        assert!(matches!(error(json!([]), "/paths"), OpenApiError::Malformed { .. }));
        let parameter = "/paths/~1calls/get/parameters/0";
        for reference in ["#/components/parameters/other", "https://example.com/p.json", "p.json"] {
            assert!(matches!(error(json!({ "$ref": reference }), parameter), OpenApiError::DanglingReference { .. }));
        }
        let circle = error(json!({ "$ref": "#/paths/~1calls/get/parameters/0" }), parameter);
        assert!(matches!(circle, OpenApiError::DanglingReference { .. }));
        for schema in
            [json!({ "$ref": "https://example.com/s.json" }), json!({ "pattern": "(?=x)" }), json!({ "type": "text" })]
        {
            let place = "/components/schemas/Id";
            assert!(matches!(error(schema, place), OpenApiError::Schema(_)));
        }
        for change in [
            json!({ "name": "x", "in": "query", "style": "deepObject", "schema": {} }),
            json!({ "name": "x", "in": "query", "schema": { "type": "object" } }),
            json!({ "name": "x", "in": "path", "required": true, "style": "matrix", "schema": {} }),
            json!({ "name": "x", "in": "path", "required": true, "schema": {} }),
        ] {
            assert!(matches!(error(change.clone(), parameter), OpenApiError::UnsupportedParameter { .. }), "{change}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(path in "(/(v1|calls|files|[a-z.%0-9]{0,4})){0,4}", query in "[a-z0-9=&%,+\\[\\]]{0,30}", cookie in "[a-z0-9=; ]{0,20}") {
            let headers: HeaderMap = [(http::header::COOKIE, cookie.parse().unwrap())].into_iter().collect();
            let request = Request { method: &Method::GET, path: &path, query: Some(&query), headers: &headers, body: b"" };
            let _ = compiled().check(&request);
        }
    }
}
