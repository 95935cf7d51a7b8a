//! How a document differs between two states, for people: each place that differs, with what stood and stands there.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::store::revisions::DocumentChange;

/// How a document differs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DocumentDifference {
    /// None: what stands beside the tenants.
    tenant: Option<String>,
    /// None, if there was none.
    #[schema(value_type = Option<Object>)]
    before: Option<Value>,
    /// None, if it was removed.
    #[schema(value_type = Option<Object>)]
    after: Option<Value>,
    /// The places that differ, if it was there before and after.
    places: Vec<PlaceDifference>,
}

/// A place within a document.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct PlaceDifference {
    /// As in `routes[0].match.path`.
    path: String,
    #[schema(value_type = Option<Value>)]
    before: Option<Value>,
    #[schema(value_type = Option<Value>)]
    after: Option<Value>,
}

impl From<DocumentChange> for DocumentDifference {
    fn from(change: DocumentChange) -> Self {
        let parse = |text: Option<String>| text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let (before, after) = (parse(change.before), parse(change.after));
        let mut places = Vec::new();
        if let (Some(before), Some(after)) = (&before, &after) {
            compare("", Some(before), Some(after), &mut places);
        }
        Self { tenant: change.tenant.map(|tenant| tenant.to_string()), before, after, places }
    }
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, places: &mut Vec<PlaceDifference>) {
    if before == after {
        return;
    }
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let added = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, before.get(key), after.get(key), places);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                compare(&format!("{path}[{index}]"), before.get(index), after.get(index), places);
            }
        }
        _ => places.push(PlaceDifference { path: path.to_owned(), before: before.cloned(), after: after.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_place_that_differs_is_named() {
        let before = json!({ "a": 1, "b": { "c": [1, 2], "d": 0 }, "same": null });
        let after = json!({ "a": 2, "b": { "c": [1, 3, 4] }, "same": null, "new": true });
        let mut places = Vec::new();
        compare("", Some(&before), Some(&after), &mut places);
        let paths: Vec<&str> = places.iter().map(|place| &*place.path).collect();
        assert_eq!(paths, ["a", "b.c[1]", "b.c[2]", "b.d", "new"]);
        assert_eq!(places[2], PlaceDifference { path: "b.c[2]".to_owned(), before: None, after: Some(json!(4)) });
    }
}
