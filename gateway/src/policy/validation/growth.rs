//! Whether all that is wrong with a value can be listed in time that grows as the value does.
//!
//! Listing follows every way from a schema to its subschemas. Where two ways from one schema lead back to it for the
//! same part of a value, the work doubles with each level of nesting, and a few hundred bytes of a client's are enough
//! to take all memory. A schema of a tree has one way back; one of `and` and `or` of expressions has two.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem, ptr,
};

use serde_json::Value;

/// The schema at a JSON pointer of a document, and all that its local references lead to. `false` also if it has
/// references of other kinds: nobody looks where they lead.
pub(super) fn is_bounded(document: &Value, pointer: &str) -> bool {
    let graph = document.pointer(pointer).and_then(|root| Graph::of(document, root));
    graph.is_some_and(|graph| !graph.doubles())
}

/// Ways from each schema to its subschemas. Subschemas on one way are about different parts of a value.
struct Graph(Vec<Vec<Vec<usize>>>);

impl Graph {
    fn of<'d>(document: &'d Value, root: &'d Value) -> Option<Self> {
        let mut schemas = vec![root];
        let mut numbers = HashMap::from([(ptr::from_ref(root), 0)]);
        let mut graph = Vec::new();
        while let Some(schema) = schemas.get(graph.len()).copied() {
            let mut number = |schema: &'d Value| match numbers.entry(ptr::from_ref(schema)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    schemas.push(schema);
                    *new.insert(schemas.len() - 1)
                }
            };
            let ways = ways(document, schema)?;
            graph.push(ways.into_iter().map(|way| way.into_iter().map(&mut number).collect()).collect());
        }
        Some(Self(graph))
    }

    fn doubles(&self) -> bool {
        let endless = self.endless();
        let is_endless = |way: &&Vec<usize>| way.iter().any(|to| endless[*to]);
        self.0.iter().enumerate().any(|(schema, ways)| {
            let open: Vec<_> = ways.iter().filter(is_endless).collect();
            open.len() > 1 && open.into_iter().filter(|way| self.leads_to(way, schema)).nth(1).is_some()
        })
    }

    /// Which schemas lead into a circle: the few that have to be looked at.
    fn endless(&self) -> Vec<bool> {
        let mut endless = vec![true; self.0.len()];
        loop {
            let mut changed = false;
            for (schema, ways) in self.0.iter().enumerate().rev() {
                let goes_on = ways.iter().flatten().any(|to| endless[*to]);
                changed |= mem::replace(&mut endless[schema], goes_on) != goes_on;
            }
            if !changed {
                return endless;
            }
        }
    }

    fn leads_to(&self, way: &[usize], schema: usize) -> bool {
        let mut seen = vec![false; self.0.len()];
        let mut open = way.to_vec();
        while let Some(at) = open.pop() {
            if at == schema {
                return true;
            }
            if !mem::replace(&mut seen[at], true) {
                open.extend(self.0[at].iter().flatten());
            }
        }
        false
    }
}

/// `None` where a reference may lead anywhere.
fn ways<'d>(document: &'d Value, schema: &'d Value) -> Option<Vec<Vec<&'d Value>>> {
    let mut ways = Vec::new();
    let mut apart = Vec::new();
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (keyword.as_str(), value) {
            ("$ref", Value::String(reference)) => ways.push(vec![local(document, reference)?]),
            ("$dynamicRef" | "$recursiveRef", _) => return None,
            // From here on, references are about another document.
            ("$id", _) if !ptr::eq(schema, document) => return None,
            ("$defs" | "definitions" | "enum" | "const" | "default" | "example" | "examples", _) => {}
            ("properties", Value::Object(members)) => apart.extend(members.values()),
            ("prefixItems" | "items", Value::Array(items)) => apart.extend(items),
            ("items" | "additionalProperties", value) => apart.push(value),
            ("patternProperties" | "dependentSchemas" | "dependencies", Value::Object(members)) => {
                ways.extend(members.values().map(|member| vec![member]));
            }
            (_, Value::Array(items)) => ways.extend(items.iter().map(|item| vec![item])),
            (_, Value::Object(_)) => ways.push(vec![value]),
            _ => {}
        }
    }
    ways.push(apart);
    Some(ways)
}

fn local<'d>(document: &'d Value, reference: &str) -> Option<&'d Value> {
    let pointer = percent_encoding::percent_decode_str(reference.strip_prefix('#')?).decode_utf8().ok()?;
    document.pointer(&pointer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_with_one_way_back_to_itself_is_bounded() {
        for schema in [
            json!(true),
            json!({ "anyOf": [{ "type": "string" }, { "items": { "oneOf": [{ "type": "null" }, { "type": "object" }] } }] }),
            json!({ "properties": { "left": { "$ref": "#" }, "right": { "$ref": "#" } }, "additionalProperties": { "$ref": "#" } }),
            json!({ "properties": { "parent": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } }, "anyOf": [{ "required": ["a"] }, { "required": ["b"] }] }),
            json!({ "$id": "https://a.test/tree", "items": { "allOf": [{ "$ref": "#" }, { "maxItems": 3 }] } }),
            // Twice into a circle, once around it.
            json!({ "anyOf": [{ "$ref": "#/$defs/a~1b" }, { "$ref": "#/$defs/a~1b" }], "$defs": { "a/b": { "items": { "$ref": "#/$defs/a~1b" } } } }),
            json!({ "properties": { "anyOf": { "$ref": "#" }, "oneOf": { "$ref": "#" } }, "enum": [{ "$ref": "x" }] }),
        ] {
            assert!(is_bounded(&schema, ""), "{schema}");
        }
    }

    #[test]
    fn a_schema_with_two_ways_back_to_itself_is_not() {
        for schema in [
            json!({ "properties": { "n": { "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] } } }),
            json!({ "allOf": [{ "items": { "$ref": "#" } }, { "items": { "$ref": "#" } }] }),
            json!({ "properties": { "n": { "$ref": "#" } }, "patternProperties": { "^n": { "$ref": "#" } } }),
            json!({ "patternProperties": { "properties": { "$ref": "#" }, "items": { "$ref": "#" } } }),
            json!({ "items": { "$ref": "#/$defs/%61" }, "if": {}, "then": { "items": { "$ref": "#" } }, "$defs": { "a": { "$ref": "#" } } }),
            json!({ "dependentSchemas": { "items": { "items": { "$ref": "#" } } }, "unevaluatedItems": { "$ref": "#" } }),
            json!({ "items": { "$dynamicRef": "#node" }, "$dynamicAnchor": "node" }),
            json!({ "$anchor": "node", "items": { "$ref": "#node" } }),
            json!({ "items": { "$id": "other", "items": { "$ref": "#" } } }),
        ] {
            assert!(!is_bounded(&schema, ""), "{schema}");
        }
    }
}
