//! Parameters of an `OpenAPI` operation (§4.8.12): where they stand, how they are written, and the
//! schema of what they mean.

use std::sync::Arc;

use http::{HeaderName, header};
use percent_encoding::percent_decode;
use serde_json::{Value, value::Number};

use super::{Compiler, MAX_REFERENCES, OpenApiError, Template, escaped};
use crate::policy::{
    json_body,
    validation::{Part, Request, Violation, schema::Schema},
};

#[derive(Debug, Clone)]
pub(super) struct Parameter {
    part: Part,
    name: Box<str>,
    required: bool,
    form: Form,
    schema: Option<Arc<Schema>>,
    /// Of a path parameter: which of the template's values it is.
    index: usize,
}

/// How a value is written as text.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// JSON, as `content` says.
    Json,
    One(Types),
    /// Items in one text, with commas between them.
    Commas(Types),
    /// One text for each item.
    Repeated(Types),
}

/// The types that a schema allows, as far as they matter for reading a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Types {
    text: bool,
    number: bool,
    boolean: bool,
    array: bool,
    object: bool,
}

impl Types {
    const UNKNOWN: Self = Self { text: true, number: true, boolean: true, array: false, object: false };

    fn or(self, other: Self) -> Self {
        Self {
            text: self.text || other.text,
            number: self.number || other.number,
            boolean: self.boolean || other.boolean,
            array: self.array || other.array,
            object: self.object || other.object,
        }
    }

    fn named(name: &str) -> Self {
        Self {
            text: matches!(name, "string" | "null"),
            number: matches!(name, "integer" | "number"),
            boolean: name == "boolean",
            array: name == "array",
            object: name == "object",
        }
    }
}

impl Parameter {
    /// `None` for headers that have rules of their own (`Accept`, `Content-Type`, `Authorization`).
    pub(super) fn compile(
        compiler: &Compiler<'_>,
        place: &str,
        template: &Template,
    ) -> Result<Option<Self>, OpenApiError> {
        let field = |key: &str| compiler.document.pointer(&format!("{place}/{key}"));
        let text = |key: &str| field(key).and_then(Value::as_str);
        let malformed = |expected| OpenApiError::Malformed { pointer: place.to_owned(), expected };
        let name = text("name").ok_or_else(|| malformed("the parameter's `name`"))?;
        let unsupported = |what: &str| OpenApiError::UnsupportedParameter {
            pointer: place.to_owned(),
            name: name.to_owned(),
            what: what.to_owned(),
        };
        let (part, style) = match text("in") {
            Some("path") => (Part::Path, "simple"),
            Some("header") => (Part::Header, "simple"),
            Some("query") => (Part::Query, "form"),
            Some("cookie") => (Part::Cookie, "form"),
            _ => return Err(malformed("`in` with path, query, header or cookie")),
        };
        if part == Part::Header {
            let header: HeaderName = name.parse().map_err(|_| malformed("the name of a header"))?;
            if [header::ACCEPT, header::CONTENT_TYPE, header::AUTHORIZATION].contains(&header) {
                return Ok(None);
            }
        }
        let index = match part {
            Part::Path => template.index_of(name).ok_or_else(|| unsupported("no place in the path's template"))?,
            _ => 0,
        };
        if let Some(other) = text("style").filter(|have| *have != style) {
            return Err(unsupported(&format!("`style: {other}`")));
        }
        let schema_pointer = format!("{place}/schema");
        let (form, schema) = if let Some(schema) = compiler.document.pointer(&schema_pointer) {
            let types = types_of(compiler.document, schema, 0);
            let items = schema_items(compiler.document, schema);
            let explode = field("explode").and_then(Value::as_bool).unwrap_or(style == "form");
            let form = match types {
                Types { array: true, .. } if style == "form" && explode => Form::Repeated(items),
                Types { array: true, .. } => Form::Commas(items),
                Types { object: true, .. } => return Err(unsupported("an object as its value")),
                types => Form::One(types),
            };
            (form, Some(compiler.schema(&schema_pointer)?))
        } else if let Some((media_type, media)) =
            compiler.optional_map(place, "content")?.and_then(|content| content.iter().next())
        {
            if !json_body::is_json(media_type.as_bytes()) {
                return Err(unsupported(&format!("`content` of type {media_type}")));
            }
            let pointer = format!("{place}/content/{}/schema", escaped(media_type));
            let schema = media.get("schema").map(|_| compiler.schema(&pointer)).transpose()?;
            (Form::Json, schema)
        } else {
            return Err(malformed("the parameter's `schema` or `content`"));
        };
        let required = part == Part::Path || field("required") == Some(&Value::Bool(true));
        Ok(Some(Self { part, name: name.into(), required, form, schema, index }))
    }

    /// Whether both mean the same part and name.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.part == other.part
            && match self.part {
                Part::Header => self.name.eq_ignore_ascii_case(&other.name),
                _ => self.name == other.name,
            }
    }

    /// Adds what is wrong with this parameter of a request.
    pub(super) fn check(&self, sources: &Sources<'_>, violations: &mut Vec<Violation>) {
        let texts = sources.texts(self.part, &self.name, self.index);
        if texts.is_empty() {
            if self.required {
                violations.push(self.violation("it is required"));
            }
            return;
        }
        // Of a repeated parameter, gateway and upstream might each look at another one.
        if texts.len() > 1 && !matches!(self.form, Form::Repeated(_)) {
            violations.push(self.violation("it is given more than once"));
            return;
        }
        match self.values(&texts) {
            Err(message) => violations.push(self.violation(message)),
            Ok(values) => {
                if let (Some(schema), Some(first)) = (&self.schema, values.first())
                    && !values.iter().any(|value| schema.is_valid(value))
                {
                    schema.check(first, self.part, Some(&self.name), violations);
                }
            }
        }
    }

    /// What the texts may mean, the most likely first: `1` is a number or, where the schema allows
    /// it, a text.
    fn values(&self, texts: &[&str]) -> Result<Vec<Value>, &'static str> {
        let decoded = |text: &str| self.decoded(text).ok_or("it is not valid UTF-8");
        let items = |texts: &mut dyn Iterator<Item = &str>, types: Types| {
            let items = texts.map(|text| Ok(meanings(&decoded(text)?, types).swap_remove(0)));
            items.collect::<Result<Vec<Value>, &'static str>>().map(|items| vec![Value::Array(items)])
        };
        match self.form {
            Form::Json => {
                let text = decoded(texts[0])?;
                serde_json::from_str(&text).map(|value| vec![value]).map_err(|_| "it is not JSON")
            }
            Form::One(types) => Ok(meanings(&decoded(texts[0])?, types)),
            Form::Commas(_) if texts[0].is_empty() => Ok(vec![Value::Array(Vec::new())]),
            Form::Commas(types) => items(&mut texts[0].split(',').map(str::trim), types),
            Form::Repeated(types) => items(&mut texts.iter().copied(), types),
        }
    }

    /// Headers are not escaped; in queries `+` is a space.
    fn decoded(&self, text: &str) -> Option<String> {
        match self.part {
            Part::Header => Some(text.to_owned()),
            Part::Query => decoded_form(text),
            _ => String::from_utf8(percent_decode(text.as_bytes()).collect()).ok(),
        }
    }

    fn violation(&self, message: &str) -> Violation {
        Violation::new(self.part, Some(&self.name), "", message)
    }
}

/// The places of one request in which parameters stand.
pub(super) struct Sources<'r> {
    request: &'r Request<'r>,
    path: &'r [&'r str],
    /// Names decoded, values as they stand.
    query: Vec<(Option<String>, &'r str)>,
    cookies: Vec<(&'r str, &'r str)>,
}

impl<'r> Sources<'r> {
    pub(super) fn new(request: &'r Request<'r>, path: &'r [&'r str]) -> Self {
        let query = request.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let cookies = request.headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        Self {
            request,
            path,
            query: query.map(|(name, value)| (decoded_form(name), value)).collect(),
            cookies: cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('=')).collect(),
        }
    }

    fn texts(&self, part: Part, name: &str, index: usize) -> Vec<&str> {
        match part {
            Part::Path => self.path.get(index).copied().into_iter().collect(),
            Part::Query => self.query.iter().filter(|(n, _)| n.as_deref() == Some(name)).map(|(_, v)| *v).collect(),
            Part::Cookie => self.cookies.iter().filter(|(n, _)| *n == name).map(|(_, v)| *v).collect(),
            // What is not ASCII is no value that a schema could be about.
            Part::Header => {
                self.request.headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}")).collect()
            }
            Part::Body => Vec::new(),
        }
    }
}

fn decoded_form(text: &str) -> Option<String> {
    let spaced: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    String::from_utf8(percent_decode(&spaced).collect()).ok()
}

/// At least one value; numbers are read by the rules of JSON.
fn meanings(text: &str, types: Types) -> Vec<Value> {
    let mut values = Vec::with_capacity(2);
    if types.number
        && !text.starts_with(|c: char| c.is_ascii_whitespace())
        && !text.ends_with(|c: char| c.is_ascii_whitespace())
        && let Ok(number) = serde_json::from_str::<Number>(text)
    {
        values.push(Value::Number(number));
    }
    if types.boolean
        && let Ok(boolean) = text.parse::<bool>()
    {
        values.push(Value::Bool(boolean));
    }
    if types.text || values.is_empty() {
        values.push(Value::String(text.to_owned()));
    }
    values
}

fn types_of(document: &Value, schema: &Value, depth: usize) -> Types {
    if depth == MAX_REFERENCES {
        return Types::UNKNOWN;
    }
    let of = |schema: &Value| types_of(document, schema, depth + 1);
    if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
        return document.pointer(target).map_or(Types::UNKNOWN, of);
    }
    match schema.get("type") {
        Some(Value::String(name)) => return Types::named(name),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str).map(Types::named);
            return names.reduce(Types::or).unwrap_or(Types::UNKNOWN);
        }
        _ => {}
    }
    let of_value = |value: &Value| match value {
        Value::Number(_) => Types::named("number"),
        Value::Bool(_) => Types::named("boolean"),
        _ => Types::named("string"),
    };
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.iter().map(of_value).reduce(Types::or).unwrap_or(Types::UNKNOWN);
    }
    if let Some(value) = schema.get("const") {
        return of_value(value);
    }
    let branches = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key).and_then(Value::as_array));
    branches.flatten().map(of).reduce(Types::or).unwrap_or(Types::UNKNOWN)
}

fn schema_items(document: &Value, schema: &Value) -> Types {
    let mut schema = schema;
    for _ in 0..MAX_REFERENCES {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        match target.and_then(|target| document.pointer(target)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema.get("items").map_or(Types::UNKNOWN, |items| types_of(document, items, 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_means_what_the_types_allow() {
        let one = |name: &str| Types::named(name);
        assert_eq!(meanings("12", one("integer")), [json!(12)]);
        assert_eq!(meanings("12", one("string")), [json!("12")]);
        assert_eq!(meanings("12", Types::UNKNOWN), [json!(12), json!("12")]);
        assert_eq!(meanings("true", one("boolean")), [json!(true)]);
        assert_eq!(meanings("1e3", one("number")), [json!(1e3)]);
        for no_number in ["", "+1", "0x1", "01", " 1", "1\n", "NaN", "Infinity", "1_000", "１"] {
            assert_eq!(meanings(no_number, one("integer")), [json!(no_number)], "{no_number:?}");
        }
        assert_eq!(meanings("True", one("boolean")), [json!("True")]);
    }

    #[test]
    fn types_are_found_through_references_and_branches() {
        let document = json!({
            "a": { "$ref": "#/b" }, "b": { "type": ["integer", "null"] }, "loop": { "$ref": "#/loop" },
            "any": { "anyOf": [{ "type": "array" }, { "const": true }] }, "enum": { "enum": [1, "x"] },
        });
        let of = |key: &str| types_of(&document, &document[key], 0);
        assert_eq!(of("a"), Types { number: true, text: true, ..Types::default() });
        assert_eq!(of("loop"), Types::UNKNOWN);
        assert_eq!(of("any"), Types { array: true, boolean: true, ..Types::default() });
        assert_eq!(of("enum"), Types { number: true, text: true, ..Types::default() });
    }
}
