//! Conditions on header and query values.
//!
//! They are written flat, `{ name: x-client, equals: ios }`. Serde cannot flatten an enum and refuse
//! unknown keys at once, so they are read through a raw form with one optional key for each test.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::values::{HeaderName, InvalidValue};

/// What a header of the request must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "RawCondition<HeaderName>", into = "RawCondition<HeaderName>")]
pub struct HeaderCondition {
    pub name: HeaderName,
    pub test: TextTest,
}

/// What a parameter of the request's query must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "RawCondition<String>", into = "RawCondition<String>")]
pub struct QueryCondition {
    pub name: String,
    pub test: TextTest,
}

/// What a header or query value must be. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextTest {
    Equals(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Whether it is there at all.
    Present(bool),
}

/// A condition as it is written: a name and exactly one test.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawCondition<N> {
    name: N,
    /// The value is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    equals: Option<String>,
    /// The value begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// The value ends with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suffix: Option<String>,
    /// The value has this in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contains: Option<String>,
    /// Whether it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<bool>,
}

const TESTS: [&str; 5] = ["equals", "prefix", "suffix", "contains", "present"];

impl<N> RawCondition<N> {
    fn new(name: N, test: TextTest) -> Self {
        let mut raw = Self { name, equals: None, prefix: None, suffix: None, contains: None, present: None };
        match test {
            TextTest::Equals(text) => raw.equals = Some(text),
            TextTest::Prefix(text) => raw.prefix = Some(text),
            TextTest::Suffix(text) => raw.suffix = Some(text),
            TextTest::Contains(text) => raw.contains = Some(text),
            TextTest::Present(present) => raw.present = Some(present),
        }
        raw
    }

    fn into_parts(self) -> Result<(N, TextTest), InvalidValue> {
        let tests = [
            self.equals.map(TextTest::Equals),
            self.prefix.map(TextTest::Prefix),
            self.suffix.map(TextTest::Suffix),
            self.contains.map(TextTest::Contains),
            self.present.map(TextTest::Present),
        ];
        let mut given = tests.into_iter().flatten();
        match (given.next(), given.count()) {
            (Some(test), 0) => Ok((self.name, test)),
            (first, others) => Err(InvalidValue::new(format!(
                "a condition has exactly one test, this one has {}: write one of {}",
                usize::from(first.is_some()) + others,
                TESTS.join(", ")
            ))),
        }
    }
}

impl TryFrom<RawCondition<HeaderName>> for HeaderCondition {
    type Error = InvalidValue;

    fn try_from(raw: RawCondition<HeaderName>) -> Result<Self, Self::Error> {
        raw.into_parts().map(|(name, test)| Self { name, test })
    }
}

impl From<HeaderCondition> for RawCondition<HeaderName> {
    fn from(condition: HeaderCondition) -> Self {
        Self::new(condition.name, condition.test)
    }
}

impl TryFrom<RawCondition<String>> for QueryCondition {
    type Error = InvalidValue;

    fn try_from(raw: RawCondition<String>) -> Result<Self, Self::Error> {
        raw.into_parts().map(|(name, test)| Self { name, test })
    }
}

impl From<QueryCondition> for RawCondition<String> {
    fn from(condition: QueryCondition) -> Self {
        Self::new(condition.name, condition.test)
    }
}

impl JsonSchema for HeaderCondition {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HeaderCondition".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        with_one_test(RawCondition::<HeaderName>::json_schema(generator), "What a header of the request must be.")
    }
}

impl JsonSchema for QueryCondition {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "QueryCondition".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        with_one_test(
            RawCondition::<String>::json_schema(generator),
            "What a parameter of the request's query must be.",
        )
    }
}

fn with_one_test(mut schema: Schema, description: &str) -> Schema {
    let alternatives: Vec<_> = TESTS.iter().map(|test| serde_json::json!({ "required": [test] })).collect();
    schema.insert("oneOf".into(), alternatives.into());
    schema.insert("description".into(), description.into());
    schema
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_condition_is_written_flat() {
        let condition: HeaderCondition = serde_json::from_str(r#"{"name": "X-A", "equals": "foo"}"#).unwrap();
        assert_eq!(
            (condition.name.to_string(), &condition.test),
            ("x-a".to_owned(), &TextTest::Equals("foo".to_owned()))
        );
        assert_eq!(serde_json::to_string(&condition).unwrap(), r#"{"name":"x-a","equals":"foo"}"#);
        let condition: QueryCondition = serde_json::from_str(r#"{"name": "q", "present": false}"#).unwrap();
        assert_eq!(condition.test, TextTest::Present(false));
    }

    #[test]
    fn a_condition_has_exactly_one_test() {
        for (text, tests) in
            [(r#"{"name": "a"}"#, "0"), (r#"{"name": "a", "equals": "b", "prefix": "c", "suffix": "d"}"#, "3")]
        {
            let error = serde_json::from_str::<QueryCondition>(text).unwrap_err().to_string();
            assert!(error.contains(&format!("this one has {tests}:")), "{error}");
        }
        let error = serde_json::from_str::<HeaderCondition>(r#"{"name": "a", "is": "b"}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `is`"), "{error}");
    }
}
