//! Nothing secret is shown, even where a secret stands in a setting that is not meant for one.
//!
//! Values that requests are given (`set` and `add` of request headers and of the query, what is put into the path), and
//! that they must have (of the header or cookie that leads to a canary, of what a route matches, and in schemas) are not
//! shown at all: what a name says is no proof of what stands there. Neither are queries of URLs and of paths that are
//! probed, and programs in which texts stand. Paths of URLs are shown.
//!
//! References to secrets (`${file:…}`, `${env:…}`) are shown: they say where, not what.

use serde_json::{Map, Value};

const MASK: &str = "***";

/// Names that contain or end in these have values that are not shown: settings, and header fields that
/// settings add.
const SECRET_PARTS: [&str; 6] = ["secret", "password", "passwd", "credential", "hash", "private-key"];
const SECRET_ENDS: [&str; 3] = ["token", "-key", "apikey"];
/// Header fields that hold credentials by their nature.
const SECRET_FIELDS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];

/// The same document, with secret texts, and user and query of URLs, replaced.
pub(super) fn masked(value: Value) -> Value {
    masked_below("", value, false)
}

/// `parent`: the name that the value stands under. `in_schema`: whether it is a part of a JSON Schema or an OpenAPI
/// description.
fn masked_below(parent: &str, value: Value, in_schema: bool) -> Value {
    match value {
        Value::Object(members) => {
            // What a field must be, as in `{ name: authorization, equals: … }`.
            let tells_field = members.get("name").and_then(Value::as_str).is_some_and(is_secret_field);
            let mask_member = |(name, value): (String, Value)| {
                let given = match name.as_str() {
                    "set" | "add" => matches!(parent, "request" | "query"),
                    "value" => matches!(parent, "header" | "cookie"),
                    "equals" | "prefix" | "suffix" | "contains" => matches!(parent, "headers" | "query"),
                    "replace" | "add_prefix" => parent == "path",
                    "request_body" | "response_body" => holds_text(&value),
                    // Below `properties` these are names of fields.
                    "const" | "enum" | "pattern" | "default" | "example" | "examples" => {
                        in_schema && parent != "properties"
                    }
                    _ => false,
                };
                let in_schema = in_schema || name == "inline";
                let secret = given || is_secret(&name, &value) || tells_field && name != "name";
                let value = if secret { masked_all(value) } else { masked_below(&name, value, in_schema) };
                (name, value)
            };
            Value::Object(members.into_iter().map(mask_member).collect::<Map<_, _>>())
        }
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| masked_below(parent, item, in_schema)).collect())
        }
        // Of a probe, as in `/healthz?token`.
        Value::String(text) if parent == "path" => Value::String(without_user_and_query(without_query(text, 0))),
        Value::String(text) => Value::String(without_user_and_query(text)),
        plain => plain,
    }
}

/// Whether this is a jq program with a text in it.
fn holds_text(value: &Value) -> bool {
    value.as_str().is_some_and(|program| program.contains('"'))
}

fn is_secret(name: &str, value: &Value) -> bool {
    // `cookie` is also the name of settings, which are neither texts nor texts with their layer.
    is_secret_name(name) || is_secret_field(name) && (value.is_string() || value.get("layer").is_some())
}

fn is_secret_field(name: &str) -> bool {
    is_secret_name(name) || SECRET_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field))
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    SECRET_PARTS.iter().any(|part| name.contains(part)) || SECRET_ENDS.iter().any(|end| name.ends_with(end))
}

/// Below a secret name every text is secret; switches and lists of none are not.
fn masked_all(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("${") && text.ends_with('}') => Value::String(text),
        Value::String(_) | Value::Number(_) => Value::String(MASK.to_owned()),
        Value::Array(items) => Value::Array(items.into_iter().map(masked_all).collect()),
        Value::Object(members) => {
            // The layer says where a setting comes from, not what it is.
            let has_layer = members.contains_key("value");
            let mask = |(name, value): (String, Value)| {
                let value = if name == "layer" && has_layer && value.is_string() { value } else { masked_all(value) };
                (name, value)
            };
            Value::Object(members.into_iter().map(mask).collect())
        }
        plain => plain,
    }
}

/// `https://user:password@host/?token` without what stands before the `@` and after the `?`.
fn without_user_and_query(text: String) -> String {
    let Some(start) = text.find("://").map(|at| at + 3) else { return text };
    let text = without_query(text, start);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    match text[start..end].rfind('@') {
        Some(at) => format!("{}{MASK}{}", &text[..start], &text[start + at..]),
        None => text,
    }
}

/// What stands behind the first `?` after `start` is not shown.
fn without_query(mut text: String, start: usize) -> String {
    if let Some(query) = text[start..].find('?') {
        text.truncate(start + query + 1);
        text.push_str(MASK);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let effective = json!({
            "keys": [{ "prefix": "abcd1234", "hash": "sha256:0011" }],
            "headers": { "request": { "set": { "authorization": "Bearer s3", "x-env": "s3", "X-Api-Key": "k" } },
                "response": { "set": { "x-env": "test" } } },
            "transform": { "layer": "route", "value": { "query": { "add": { "q": "s3" }, "remove": ["a"] },
                "path": { "replace": "/bot-s3/{id}" }, "request_body": r#". + { "key": "s3" }"#, "response_body": ".a | keys" } },
            "canary": { "header": { "name": "x-canary", "value": "s3" }, "cookie": { "name": "canary", "value": "s3" } },
            "added": { "authorization": { "layer": "route", "value": "Basic s3" } },
            "conditions": [{ "name": "X-Api-Key", "equals": "s3" }, { "name": "x-env", "equals": "test" }],
            "client_secret": "s3", "nested": { "password": { "value": "s3", "layers": ["s3"] } },
            "cookie": { "name": "session" }, "api_keys": { "header": "x-api-key" },
            "jwks": { "url": "https://user:s3@idp.example/keys?x=@" },
            "match": { "path": "/v1/{id}", "headers": [{ "name": "x-env", "equals": "s3" }, { "name": "x-a", "present": true }],
                "query": [{ "name": "a", "prefix": "s3" }, { "name": "b", "suffix": "s3" }, { "name": "c", "contains": "s3" }] },
            "health": { "probe": { "http": { "path": "/healthz?key=s3" } } }, "more": { "path": { "add_prefix": "/s3" } },
            "redis": { "token": "${env:REDIS_TOKEN}" },
            "validation": { "body_schema": { "inline": { "required": ["a"], "properties": { "a": { "const": "s3", "default": "s3" },
                "b": { "enum": ["s3", 3, null], "maxLength": 9 }, "const": { "type": "string", "pattern": "^s3$", "examples": ["s3"] } } } } },
            "versions": { "default": "v1" },
            "forward_credential": false,
        });
        assert_eq!(
            masked(effective),
            json!({
                "keys": [{ "prefix": "abcd1234", "hash": "***" }],
                "headers": { "request": { "set": { "authorization": "***", "x-env": "***", "X-Api-Key": "***" } },
                    "response": { "set": { "x-env": "test" } } },
                "transform": { "layer": "route", "value": { "query": { "add": { "q": "***" }, "remove": ["a"] },
                    "path": { "replace": "***" }, "request_body": "***", "response_body": ".a | keys" } },
                "canary": { "header": { "name": "x-canary", "value": "***" }, "cookie": { "name": "canary", "value": "***" } },
                "added": { "authorization": { "layer": "route", "value": "***" } },
                "conditions": [{ "name": "X-Api-Key", "equals": "***" }, { "name": "x-env", "equals": "test" }],
                "client_secret": "***", "nested": { "password": { "value": "***", "layers": ["***"] } },
                "cookie": { "name": "session" }, "api_keys": { "header": "x-api-key" },
                "jwks": { "url": "https://***@idp.example/keys?***" },
                "match": { "path": "/v1/{id}", "headers": [{ "name": "x-env", "equals": "***" }, { "name": "x-a", "present": true }],
                    "query": [{ "name": "a", "prefix": "***" }, { "name": "b", "suffix": "***" }, { "name": "c", "contains": "***" }] },
                "health": { "probe": { "http": { "path": "/healthz?***" } } }, "more": { "path": { "add_prefix": "***" } },
                "redis": { "token": "${env:REDIS_TOKEN}" },
                "validation": { "body_schema": { "inline": { "required": ["a"], "properties": { "a": { "const": "***", "default": "***" },
                    "b": { "enum": ["***", "***", null], "maxLength": 9 }, "const": { "type": "string", "pattern": "***", "examples": ["***"] } } } } },
                "versions": { "default": "v1" },
                "forward_credential": false,
            })
        );
    }

    proptest! {
        #[test]
        fn no_text_below_a_secret_name_is_shown(secret in "[a-z]{8,20}", name in "(x-|my_)?(secret|passwords|token|Api-Key)") {
            let document = json!({ "a": [{ name: { "b": [secret.clone()], "c": secret.clone() } }] });
            prop_assert!(!masked(document).to_string().contains(&secret));
        }

        #[test]
        fn any_text_is_masked_without_harm(text in "\\PC*") {
            masked(json!([text, format!("https://{text}")]));
        }
    }
}
