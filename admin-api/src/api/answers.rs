//! What can go wrong, in the description: operations say `default`, and each becomes the statuses that the operation can have
//! by what it takes, with the problems that have this status.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    BASE, Kind,
    operations::{self, Scope},
};
use crate::store::operators::Role;

/// Puts the statuses in the place of every `default`. What an operation says of a status by itself stays.
pub(super) fn describe(document: &mut Value) {
    for (path, item) in members(&mut document["paths"]) {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let statuses = statuses(path, method, operation);
            let Some(responses) = operation["responses"].as_object_mut() else { continue };
            if responses.remove("default").is_none() {
                continue;
            }
            for status in statuses {
                let reference = json!({ "$ref": format!("#/components/responses/{}", name(status)) });
                responses.entry(status.as_str()).or_insert(reference);
            }
        }
    }
    let mut responses = Map::new();
    for kind in Kind::ALL {
        responses.entry(name(kind.status())).or_insert_with(|| response(kind.status()));
    }
    document["components"]["responses"] = responses.into();
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flatten()
}

fn statuses(path: &str, method: &str, operation: &Value) -> Vec<StatusCode> {
    let parameters = || operation["parameters"].as_array().into_iter().flatten();
    let takes = |place: &str, name: &str| parameters().any(|one| one["in"] == place && one["name"] == name);
    let has_body = operation.get("requestBody").is_some();
    let in_table = operations::OPERATIONS.iter().find(|one| {
        one.method.as_str().eq_ignore_ascii_case(method) && path.strip_prefix(BASE).is_some_and(|path| path == one.path)
    });
    let writes = in_table.is_some_and(operations::Operation::writes);
    let for_everybody = in_table.is_some_and(|one| one.least == Role::Viewer && one.scope == Scope::None);
    let names_something = parameters().any(|one| one["in"] == "path" || one["name"] == "tenant");
    [
        (StatusCode::BAD_REQUEST, has_body || parameters().next().is_some()),
        (StatusCode::UNAUTHORIZED, true),
        (StatusCode::FORBIDDEN, !for_everybody),
        (StatusCode::NOT_FOUND, names_something || (writes && has_body)),
        (StatusCode::CONFLICT, writes),
        (StatusCode::PRECONDITION_FAILED, takes("header", "If-Match")),
        (StatusCode::PAYLOAD_TOO_LARGE, has_body),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, has_body),
        (StatusCode::UNPROCESSABLE_ENTITY, has_body || writes),
        (StatusCode::TOO_MANY_REQUESTS, true),
        (StatusCode::INTERNAL_SERVER_ERROR, true),
        (StatusCode::SERVICE_UNAVAILABLE, true),
        (StatusCode::GATEWAY_TIMEOUT, takes("query", "wait")),
    ]
    .into_iter()
    .filter_map(|(status, can_be)| can_be.then_some(status))
    .collect()
}

/// Under which the answer stands in the description, as in `UnprocessableEntity`.
fn name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("Problem").split(|c: char| !c.is_ascii_alphanumeric()).collect()
}

/// What an answer with this status holds: a problem of one of its kinds.
fn response(status: StatusCode) -> Value {
    let kinds = || Kind::ALL.iter().filter(move |kind| kind.status() == status);
    let titles: Vec<&str> = kinds().map(|kind| kind.title()).collect();
    let types: Vec<&str> = kinds().map(|kind| kind.type_uri()).collect();
    let mut properties = Map::new();
    properties.insert("status".to_owned(), json!({ "const": status.as_u16() }));
    properties.insert("type".to_owned(), json!({ "enum": types }));
    properties.extend(kinds().flat_map(|kind| further_members(*kind)));
    let schema = json!({
        "allOf": [{ "$ref": "#/components/schemas/Problem" }, { "type": "object", "properties": properties }],
    });
    let mut response = json!({
        "description": format!("{}.", titles.join("; or: ")),
        "content": { "application/problem+json": { "schema": schema } },
    });
    let header = match status {
        StatusCode::UNAUTHORIZED => Some(("WWW-Authenticate", json!({ "type": "string" }))),
        StatusCode::PRECONDITION_FAILED => Some(("ETag", json!({ "type": "string" }))),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Some(("Retry-After", json!({ "type": "integer", "minimum": 1 })))
        }
        _ => None,
    };
    if let Some((name, schema)) = header {
        response["headers"] = json!({ name: { "schema": schema } });
    }
    response
}

/// What a kind tells beyond what every problem has.
fn further_members(kind: Kind) -> Map<String, Value> {
    let members = match kind {
        Kind::PayloadTooLarge => json!({ "max-bytes": { "type": "integer", "minimum": 0 } }),
        Kind::Invalid => json!({
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["path", "detail"],
                    "properties": {
                        "path": { "type": "string", "description": "As in `routes[0].match.path`; empty: the whole" },
                        "detail": { "type": "string" },
                        "fix": { "type": ["string", "null"] },
                        "tenant": { "type": ["string", "null"] },
                        "line": { "type": ["integer", "null"], "minimum": 1 },
                        "column": { "type": ["integer", "null"], "minimum": 1 },
                    },
                },
            },
            "omitted": { "type": "integer", "minimum": 1, "description": "So many more errors there are" },
        }),
        Kind::Full => json!({ "most": { "type": "integer", "minimum": 1, "description": "So many there may be" } }),
        Kind::Changed => json!({
            "given": {
                "type": "object",
                "required": ["revision"],
                "properties": { "revision": { "type": "integer", "minimum": 0 } },
            },
            "current": { "type": ["object", "null"], "description": "As it is now; null: it was removed" },
        }),
        Kind::NotApplied => json!({
            "revision": { "type": "integer", "minimum": 0 },
            "changed": { "type": "array", "items": { "type": "string" } },
            "applied": { "$ref": "#/components/schemas/AppliedBy" },
        }),
        _ => json!({}),
    };
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::api::openapi;

    #[test]
    fn every_status_that_an_operation_can_have_is_described_and_none_is_left_to_guess() {
        let document = openapi::document();
        let mut operations = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let responses = operation["responses"].as_object().unwrap();
                assert!(!responses.contains_key("default"), "{method} {path}");
                // A WebSocket begins with 101.
                let is_success = |status: &String| status.starts_with('2') || status == "101";
                assert!(responses.keys().any(is_success), "{method} {path}");
                assert!(["401", "429", "500", "503"].iter().all(|status| responses.contains_key(*status)));
                operations += 1;
            }
        }
        assert!(operations > 30);
        let statuses = |path: &str, method: &str| {
            let responses =
                document["paths"][format!("/api/enterprise{path}")][method]["responses"].as_object().unwrap();
            responses.keys().map(|status| status.parse().unwrap()).collect::<Vec<u16>>()
        };
        assert_eq!(statuses("/nodes", "get"), [200, 400, 401, 403, 429, 500, 503]);
        assert_eq!(statuses("/nodes/{id}", "get"), [200, 400, 401, 403, 404, 429, 500, 503]);
        assert_eq!(statuses("/validate", "post"), [200, 400, 401, 413, 415, 422, 429, 500, 503]);
        assert_eq!(
            statuses("/tenants/{id}", "put"),
            [200, 400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 500, 503, 504]
        );
    }
}
