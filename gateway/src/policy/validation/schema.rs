//! JSON Schema (2020-12), compiled once and bounded.
//!
//! A schema is refused where it is endless work by itself ([`complexity`](super::complexity)); where it is that for some
//! value, the value does not conform ([`meter`](super::meter)). What is wrong is listed only where the list is short for
//! all the errors that there may be.

use std::thread;

use jsonschema::{Draft, PatternOptions, Registry, Uri};
use referencing::Resolved;
use serde_json::Value;

use super::{
    MAX_VIOLATIONS, Part, TooComplex, Violation,
    complexity::Complexity,
    json,
    meter::{Metered, Seen, within},
    shortened,
};

/// Bytes that one compiled pattern may take: what a match takes at worst is so much for each byte of the text.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Bytes that a list of what is wrong may take: all of it is held at once, however little of it is reported.
const MAX_LIST_BYTES: usize = 32 << 20;
/// What an error takes besides texts, and what each name in it does.
const ERROR_BYTES: usize = 512;
const NAME_BYTES: usize = 32;
/// Digits of an index.
const INDEX_BYTES: usize = 8;
/// Stack on which schemas are compiled and dropped: a schema leads to the next, through all of them at worst. What is not
/// touched costs address space only.
const STACK_BYTES: usize = 256 << 20;
/// So many schemas are dropped on any stack.
const FEW_SCHEMAS: usize = 500;

/// Why a schema is refused.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// `pointer` is a JSON pointer into the document.
    #[error(
        "the schema at {pointer:?} cannot be compiled: {reason}. References to other documents are not fetched, and patterns may use no look-around or back-references"
    )]
    Invalid { pointer: String, reason: String },
    #[error("the schema at {pointer:?} is too complex: {reason}")]
    TooComplex { pointer: String, reason: TooComplex },
}

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    /// `None` only while it is dropped.
    validator: Option<jsonschema::Validator<Metered>>,
    complexity: Complexity,
}

impl Schema {
    /// A document that is a schema as a whole.
    pub(super) fn compile(schema: &Value) -> Result<Self, SchemaError> {
        let registry = registry(schema).map_err(|error| SchemaError::invalid("", &error))?;
        Self::build(schema, &registry, "")
    }

    /// The schema at a JSON pointer of a document, whose local references mean that document.
    pub(super) fn compile_at(registry: &Registry<'_>, pointer: &str) -> Result<Self, SchemaError> {
        let reference = Value::String(format!("{DOCUMENT_URI}#{}", as_fragment(pointer)));
        let schema = Value::Object([("$ref".to_owned(), reference)].into_iter().collect());
        Self::build(&schema, registry, pointer)
    }

    fn build(schema: &Value, registry: &Registry<'_>, pointer: &str) -> Result<Self, SchemaError> {
        let root = resolve(registry, pointer).map_err(|error| SchemaError::invalid(pointer, &error))?;
        let complexity =
            Complexity::of(&root).map_err(|reason| SchemaError::TooComplex { pointer: pointer.to_owned(), reason })?;
        let options = jsonschema::options_for::<Metered>()
            .offline()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            // A pattern that comes with a request would be compiled for it: never do that.
            .with_format("regex", |_: &str| true)
            .with_pattern_options(
                PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES),
            )
            .with_registry(registry);
        let built = with_much_stack(|| options.build(schema));
        let built = built.map_err(|error| SchemaError::invalid(pointer, &error))?;
        let validator = built.map_err(|error| SchemaError::Invalid {
            pointer: format!("{pointer}{}", error.instance_path()),
            reason: shortened(error.to_string()),
        })?;
        Ok(Self { validator: Some(validator), complexity })
    }

    /// Schemas that it leads to, itself included: each takes memory.
    pub(super) fn schemas(&self) -> usize {
        self.complexity.schemas
    }

    pub(super) fn is_valid(&self, value: &Value) -> bool {
        self.conforms(value) == Some(true)
    }

    /// `None` if it takes too long to find out.
    fn conforms(&self, value: &Value) -> Option<bool> {
        let validator = self.validator.as_ref()?;
        within(u64::MAX, || validator.is_valid(Seen(value)))
    }

    /// Adds what is wrong with a value, up to the bound of violations.
    pub(super) fn check(&self, value: &Value, part: Part, name: Option<&str>, violations: &mut Vec<Violation>) {
        let (message, found) = match self.conforms(value) {
            Some(true) => return,
            Some(false) => {
                let most = MAX_VIOLATIONS.saturating_sub(violations.len());
                ("it does not conform to its schema", self.list(value, most))
            }
            None => ("to check it against its schema takes too much", None),
        };
        if let Some(found) = found.filter(|found| !found.is_empty()) {
            violations.extend(found.into_iter().map(|(place, message)| Violation::new(part, name, &place, message)));
        } else {
            violations.push(Violation::new(part, name, "", message));
        }
    }

    /// Places in a value and what is wrong there; `None` if there may be too many.
    fn list(&self, value: &Value, most: usize) -> Option<Vec<(String, String)>> {
        let validator = self.validator.as_ref()?;
        let (pointer, names) = longest(value);
        let bytes_each = ERROR_BYTES + pointer + names + self.complexity.longest_text;
        within((MAX_LIST_BYTES / bytes_each) as u64, || {
            let found = validator.iter_errors(Seen(value)).take(most);
            // Masked: the message names the rule, and "value" stands for what the client sent.
            found.map(|error| (error.instance_path().as_str().to_owned(), error.masked().to_string())).collect()
        })
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

impl Drop for Schema {
    fn drop(&mut self) {
        let validator = self.validator.take();
        if self.complexity.schemas <= FEW_SCHEMAS {
            return;
        }
        // Without a thread it is dropped here: that there is none for it is rarer yet than such a schema.
        let _ = with_much_stack(|| drop(validator));
    }
}

impl SchemaError {
    fn invalid(pointer: &str, error: &dyn std::fmt::Display) -> Self {
        Self::Invalid { pointer: pointer.to_owned(), reason: shortened(error.to_string()) }
    }
}

/// A document for references within it, by a name that is never looked up anywhere.
pub(super) fn registry(document: &Value) -> Result<Registry<'_>, jsonschema::ReferencingError> {
    Registry::new().retriever(Offline).draft(Draft::Draft202012).add(DOCUMENT_URI, document)?.prepare()
}

const DOCUMENT_URI: &str = "seiketsu:///document";

fn resolve<'r>(registry: &'r Registry<'_>, pointer: &str) -> Result<Resolved<'r>, jsonschema::ReferencingError> {
    registry.resolver(jsonschema::uri::from_str(DOCUMENT_URI)?).lookup(&format!("#{}", as_fragment(pointer)))
}

/// Refuses to fetch anything.
struct Offline;

impl jsonschema::Retrieve for Offline {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} is another document, and those are not fetched").into())
    }
}

fn with_much_stack<T: Send>(run: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)?;
        thread.join().map_err(|_| std::io::Error::other("the thread for it has ended"))
    })
}

/// Bytes of the longest JSON pointer into a value, and of the names of the object that has the most.
fn longest(value: &Value) -> (usize, usize) {
    let of_members = |members: &serde_json::Map<String, Value>| {
        let within = members.iter().map(|(name, member)| (name.len(), longest(member)));
        within.fold((0, 0), |(pointer, names), (name, within)| (pointer.max(1 + name + within.0), names.max(within.1)))
    };
    match value {
        Value::Array(items) => items
            .iter()
            .map(longest)
            .fold((0, 0), |(pointer, names), within| (pointer.max(1 + INDEX_BYTES + within.0), names.max(within.1))),
        Value::Object(members) => {
            let own = members.keys().map(|name| NAME_BYTES + name.len()).sum();
            let (pointer, names) = of_members(members);
            (pointer, names.max(own))
        }
        _ => (0, 0),
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
    fn what_takes_too_long_for_a_value_is_given_up() {
        // Ways that part and meet again, in a circle: for each level of the value, all of them.
        let mut schema = in_a_row(14, |_, next| json!({ "allOf": [next, next] }));
        schema["$defs"]["14"] = json!({ "items": { "$ref": "#/$defs/0" } });
        let schema = Schema::compile(&schema).unwrap();
        assert!(schema.is_valid(&json!([])));
        let mut violations = Vec::new();
        schema.check(&json!([[]]), Part::Body, None, &mut violations);
        assert_eq!(messages(&violations), ["to check it against its schema takes too much"]);
    }

    #[test]
    fn long_ways_through_deep_values_leave_stack() {
        let nots = |next: Value, count| (0..count).fold(next, |inner, _| json!({ "not": inner }));
        let mut schema = in_a_row(20, |_, next| nots(next, 40));
        schema["$defs"]["20"] = json!({ "properties": { "n": { "$ref": "#/$defs/0" } } });
        let schema = Schema::compile(&schema).unwrap();
        let body = format!("{}1{}", "{\"n\":".repeat(120), "}".repeat(120));
        let (value, _) = json::parse(body.as_bytes()).unwrap();
        let worker = thread::Builder::new().stack_size(crate::policy::body_transform::STACK_BYTES);
        let violations = worker.spawn(move || {
            let mut violations = Vec::new();
            schema.check(&value, Part::Body, None, &mut violations);
            violations
        });
        let violations = violations.unwrap().join().unwrap();
        assert_eq!(messages(&violations), ["to check it against its schema takes too much"]);
    }

    #[test]
    fn schemas_in_a_long_row_are_compiled_and_dropped() {
        let schema = Schema::compile(&in_a_row(10_000, |_, next| json!({ "items": next }))).unwrap();
        assert!(schema.is_valid(&json!([[[]]])));
    }

    #[test]
    fn long_texts_of_a_schema_are_not_copied_for_each_value() {
        let long = "a".repeat(10_000);
        for schema in [json!({ "items": { "pattern": long } }), json!({ "items": { "required": [long] } })] {
            let schema = Schema::compile(&schema).unwrap();
            for value in [json!(vec![""; 4096]), json!(vec![json!({}); 4096])] {
                let mut violations = Vec::new();
                schema.check(&value, Part::Body, None, &mut violations);
                assert!(violations.is_empty() || messages(&violations) == ["it does not conform to its schema"]);
            }
        }
    }

    fn messages(violations: &[Violation]) -> Vec<&str> {
        violations.iter().map(|violation| &*violation.message).collect()
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
        assert!(matches!(&error, SchemaError::Invalid { pointer, .. } if pointer == "/properties/a/type"), "{error}");
    }
}
