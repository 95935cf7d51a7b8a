//! JSON Schema (2020-12), compiled once and bounded.
//!
//! Whether a value conforms is bounded by its size times the ways through the schema, however it nests: what a schema
//! that refers to itself says of a part of the value is remembered. What is wrong with it is listed only where the list
//! is short for all the ways that lead to each part.

use jsonschema::{Draft, PatternOptions, Registry};
use serde_json::Value;

use super::{MAX_VIOLATIONS, Part, Violation, growth::Ways, json, shortened};

/// Bytes that one compiled pattern may take.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Bytes that a list of what is wrong may take: all of it is held at once, however little of it is reported.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// What an error takes, and what a value in it takes, besides texts.
const ERROR_BYTES: usize = 512;
const VALUE_BYTES: usize = 128;

/// Why a schema is refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "the schema at {pointer:?} cannot be compiled: {reason}. References to other documents are not fetched, and patterns may use no look-around or back-references"
)]
pub struct SchemaError {
    /// JSON pointer into the document.
    pub pointer: String,
    pub reason: String,
}

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    validator: jsonschema::Validator,
    ways: Ways,
}

impl Schema {
    /// A document that is a schema as a whole.
    pub(super) fn compile(schema: &Value) -> Result<Self, SchemaError> {
        Self::build(schema, None, "", Ways::of(schema, ""))
    }

    /// The schema at a JSON pointer of a document, whose local references mean that document.
    pub(super) fn compile_at(
        registry: &Registry<'_>,
        uri: &str,
        document: &Value,
        pointer: &str,
    ) -> Result<Self, SchemaError> {
        let reference = Value::String(format!("{uri}#{}", as_fragment(pointer)));
        let schema = Value::Object([("$ref".to_owned(), reference)].into_iter().collect());
        Self::build(&schema, Some(registry), pointer, Ways::of(document, pointer))
    }

    fn build(schema: &Value, registry: Option<&Registry<'_>>, pointer: &str, ways: Ways) -> Result<Self, SchemaError> {
        let mut options = jsonschema::options()
            .offline()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            // A pattern that comes with a request would be compiled for it: never do that.
            .with_format("regex", |_: &str| true)
            .with_pattern_options(
                PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES),
            );
        if let Some(registry) = registry {
            options = options.with_registry(registry);
        }
        let validator = options.build(schema).map_err(|error| SchemaError {
            pointer: format!("{pointer}{}", error.instance_path()),
            reason: shortened(error.to_string()),
        })?;
        Ok(Self { validator, ways })
    }

    pub(super) fn is_valid(&self, value: &Value) -> bool {
        self.validator.is_valid(value)
    }

    /// Adds what is wrong with a value, up to the bound of violations.
    pub(super) fn check(&self, value: &Value, part: Part, name: Option<&str>, violations: &mut Vec<Violation>) {
        if self.is_valid(value) {
            return;
        }
        let known = violations.len();
        if self.may_list(value) {
            let found = self.validator.iter_errors(value).take(MAX_VIOLATIONS.saturating_sub(known));
            // Masked: the message names the rule, and "value" stands for what the client sent.
            violations.extend(
                found.map(|error| {
                    Violation::new(part, name, error.instance_path().as_str(), error.masked().to_string())
                }),
            );
        }
        if violations.len() == known {
            violations.push(Violation::new(part, name, "", "it does not conform to its schema"));
        }
    }

    fn may_list(&self, value: &Value) -> bool {
        let size = Size::of(value, 0, 0, 0);
        self.ways.at(size.depth).saturating_mul(size.bytes as u64) <= MAX_LIST_BYTES
    }

    /// Adds what is wrong with a JSON body, also if it is no JSON at all.
    pub(super) fn check_body(&self, body: &[u8], violations: &mut Vec<Violation>) {
        match json::parse(body) {
            Ok((value, repeated)) => {
                for pointer in repeated {
                    let violation =
                        Violation::new(Part::Body, None, &pointer, "the name stands more than once in its object");
                    // Two documents may look at the same body.
                    if !violations.contains(&violation) {
                        violations.push(violation);
                    }
                }
                self.check(&value, Part::Body, None, violations);
            }
            Err(error) => violations.push(Violation::new(
                Part::Body,
                None,
                "",
                format!("the body is not JSON: see line {}, column {}", error.line(), error.column()),
            )),
        }
    }
}

/// What listing takes that looks at each part of a value once, and how deep the value is.
struct Size {
    bytes: usize,
    depth: usize,
}

impl Size {
    /// An error holds the pointer to a part and a copy of the part, and so of whatever is in it: each part stands in
    /// as many copies as there are values around it.
    fn of(value: &Value, name_bytes: usize, pointer_bytes: usize, level: usize) -> Self {
        let pointer_bytes = pointer_bytes + name_bytes;
        let text_bytes = value.as_str().map_or(0, str::len);
        let copies = (level + 1) * (VALUE_BYTES + name_bytes + text_bytes);
        let mut size = Self { bytes: ERROR_BYTES + pointer_bytes + copies, depth: 0 };
        let mut add = |part: &Value, name_bytes: usize| {
            let part = Self::of(part, name_bytes, pointer_bytes, level + 1);
            size = Self { bytes: size.bytes + part.bytes, depth: size.depth.max(part.depth + 1) };
        };
        match value {
            Value::Array(items) => items.iter().for_each(|item| add(item, 0)),
            Value::Object(members) => members.iter().for_each(|(name, member)| add(member, name.len())),
            _ => {}
        }
        size
    }
}

/// A JSON pointer in a URI fragment (RFC 6901 §6).
fn as_fragment(pointer: &str) -> impl std::fmt::Display + '_ {
    const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'#')
        .add(b'%')
        .add(b'<')
        .add(b'>')
        .add(b'[')
        .add(b'\\')
        .add(b']')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    percent_encoding::utf8_percent_encode(pointer, ESCAPED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn remote_references_are_refused_and_never_fetched() {
        for reference in ["https://example.com/schema.json", "http://127.0.0.1:1/x", "file:///etc/passwd", "other.json"]
        {
            let error = Schema::compile(&json!({ "properties": { "a": { "$ref": reference } } })).unwrap_err();
            assert!(error.to_string().contains("not fetched"), "{error}");
        }
    }

    #[test]
    fn patterns_that_can_blow_up_are_refused_or_linear() {
        assert!(Schema::compile(&json!({ "pattern": "(?=a)b" })).is_err());
        assert!(Schema::compile(&json!({ "pattern": "(a)\\1" })).is_err());
        assert!(Schema::compile(&json!({ "pattern": "((a{1000}){1000}){1000}" })).is_err());
        // Catastrophic for a backtracking engine; here the test simply ends.
        let schema = Schema::compile(&json!({ "pattern": "^(a+)+$" })).unwrap();
        assert!(!schema.is_valid(&json!(format!("{}!", "a".repeat(50_000)))));
    }

    #[test]
    fn a_pattern_in_a_request_is_not_compiled() {
        let schema = Schema::compile(&json!({ "format": "regex" })).unwrap();
        assert!(schema.is_valid(&json!("((((a{1000}){1000}){1000}){1000})")));
    }

    #[test]
    fn formats_are_asserted() {
        let schema = Schema::compile(&json!({ "format": "date-time" })).unwrap();
        assert!(schema.is_valid(&json!("2026-01-01T00:00:00Z")));
        assert!(!schema.is_valid(&json!("yesterday")));
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] }),
            json!({ "anyOf": [{ "$ref": "#/$defs/a" }], "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            json!({ "not": { "$ref": "#" } }),
        ] {
            // Refused or compiled; if compiled, validation must come to an end.
            if let Ok(schema) = Schema::compile(&schema) {
                schema.is_valid(&json!({ "a": [1, 2, 3] }));
                schema.check(&json!({ "a": [1, 2, 3] }), Part::Body, None, &mut Vec::new());
            }
        }
    }

    #[test]
    fn nesting_costs_no_more_where_a_schema_refers_to_itself_more_than_once() {
        // If the work doubled with each level, this test would not end.
        const DEPTH: usize = 120;
        let again = json!({ "$ref": "#" });
        let twice = json!([again, again]);
        for keywords in [
            json!({ "properties": { "n": { "anyOf": twice } }, "type": "object" }),
            json!({ "properties": { "n": { "oneOf": twice } }, "type": "object" }),
            json!({ "properties": { "n": { "allOf": twice } }, "type": "object" }),
            json!({ "properties": { "n": { "if": again, "then": again, "else": again } }, "type": "object" }),
            json!({ "properties": { "n": { "not": { "anyOf": twice } } }, "type": "object" }),
            json!({ "properties": { "n": again }, "patternProperties": { "^n": again }, "type": "object" }),
            json!({ "properties": { "n": again }, "dependentSchemas": { "n": { "properties": { "n": again } } }, "type": "object" }),
            json!({ "anyOf": [{ "properties": { "n": again } }, { "properties": { "n": again } }], "unevaluatedProperties": false, "type": "object" }),
            json!({ "unevaluatedProperties": again, "patternProperties": { "^m": again }, "type": "object" }),
            json!({ "properties": { "n": again }, "type": "object" }),
            in_a_row(2, |again, next| json!({ "anyOf": [{ "properties": { "n": again }, "type": "object" }, next] })),
            in_a_row(3, |again, next| json!({ "oneOf": [{ "properties": { "n": again }, "type": "object" }, next] })),
            in_a_row(9, |again, next| json!({ "allOf": [{ "properties": { "n": again }, "type": "object" }, next] })),
            json!({ "$dynamicAnchor": "n", "properties": { "n": { "anyOf": [{ "$dynamicRef": "#n" }, { "$dynamicRef": "#n" }] } }, "type": "object" }),
        ] {
            let schema = Schema::compile(&keywords).unwrap();
            for (innermost, alike) in [("{}", false), ("1", false), ("{\"n\":1,\"x\":1}", false), ("{}", true)] {
                let level = if alike { "{\"m\":1,\"n\":" } else { "{\"n\":" };
                let body = format!("{}{innermost}{}", level.repeat(DEPTH), "}".repeat(DEPTH));
                let (value, _) = json::parse(body.as_bytes()).unwrap();
                let mut violations = Vec::new();
                schema.check(&value, Part::Body, None, &mut violations);
                assert_eq!(violations.is_empty(), schema.is_valid(&value), "{keywords}: {violations:?}");
            }
        }
    }

    /// Schemas of which each refers to itself and to the next.
    fn in_a_row(count: usize, schema: impl Fn(Value, Value) -> Value) -> Value {
        let to = |number| json!({ "$ref": format!("#/$defs/{number}") });
        let mut all: serde_json::Map<_, _> = (0..count).map(|n| (n.to_string(), schema(to(n), to(n + 1)))).collect();
        all.insert(count.to_string(), json!({ "type": "string" }));
        json!({ "$ref": "#/$defs/0", "$defs": all })
    }

    #[test]
    fn ways_that_part_and_meet_again_are_not_followed_many_times() {
        let schema = in_a_row(16, |_, next| json!({ "anyOf": [next, next] }));
        let schema = Schema::compile(&schema).unwrap();
        let mut violations = Vec::new();
        schema.check(&json!({ "a": 1 }), Part::Body, None, &mut violations);
        assert_eq!(violations.iter().map(|v| &*v.message).collect::<Vec<_>>(), ["it does not conform to its schema"]);
    }

    #[test]
    fn long_names_around_many_values_are_not_copied_for_each() {
        let schema =
            json!({ "additionalProperties": { "items": { "anyOf": [{ "type": "string" }, { "type": "null" }] } } });
        let schema = Schema::compile(&schema).unwrap();
        for (name_bytes, found) in [(8, MAX_VIOLATIONS), (1 << 17, 1)] {
            let mut violations = Vec::new();
            schema.check(&json!({ ("a".repeat(name_bytes)): vec![1; 1000] }), Part::Body, None, &mut violations);
            assert_eq!(violations.len(), found, "{name_bytes}");
        }
    }

    #[test]
    fn places_are_told_in_rich_text_of_some_length() {
        let block = json!({ "oneOf": [{ "required": ["children"], "properties": { "children": { "items": { "$ref": "#/$defs/block" } } } }, { "$ref": "#/$defs/inline" }] });
        let inline = json!({ "oneOf": [{ "required": ["children"], "properties": { "children": { "items": { "$ref": "#/$defs/inline" } } } }, { "required": ["text"], "properties": { "text": { "type": "string" } } }] });
        let schema = json!({ "items": { "$ref": "#/$defs/block" }, "$defs": { "block": block, "inline": inline } });
        let schema = Schema::compile(&schema).unwrap();
        let paragraph = json!({ "children": [{ "text": "a" }, { "children": [{ "text": "b" }] }] });
        let mut value = Value::Array(vec![paragraph; 20]);
        value[7]["children"][1] = json!({ "text": 1 });
        let mut violations = Vec::new();
        schema.check(&value, Part::Body, None, &mut violations);
        assert_eq!(violations.iter().map(|v| v.pointer.as_str()).collect::<Vec<_>>(), ["/7"]);
    }

    #[test]
    fn of_very_many_values_none_is_listed() {
        let schema = Schema::compile(&json!({ "items": { "type": "string" } })).unwrap();
        for (count, pointer) in [(4096, "/0"), (100_000, "")] {
            let mut violations = Vec::new();
            schema.check(&json!(vec![1; count]), Part::Body, None, &mut violations);
            assert_eq!(violations.first().map(|v| v.pointer.as_str()), Some(pointer), "{count}");
        }
    }

    #[test]
    fn the_place_is_told_where_a_schema_refers_to_itself_once() {
        let tree = json!({ "properties": { "name": { "type": "string" }, "children": { "items": { "$ref": "#" } } } });
        let mut violations = Vec::new();
        let value = json!({ "children": [{ "name": "a" }, { "name": 1 }] });
        Schema::compile(&tree).unwrap().check(&value, Part::Body, None, &mut violations);
        assert_eq!(violations.iter().map(|v| v.pointer.as_str()).collect::<Vec<_>>(), ["/children/1/name"]);
    }

    #[test]
    fn what_is_no_schema_is_refused_with_its_place() {
        let error = Schema::compile(&json!({ "properties": { "a": { "type": "text" } } })).unwrap_err();
        assert_eq!(error.pointer, "/properties/a/type");
    }
}
