//! How often listing what is wrong with a value may look at one part of it.
//!
//! Listing follows every way from a schema to its subschemas. Where ways part and meet again, and most of all where a
//! schema refers to itself, their number multiplies with each level of nesting, and a few hundred bytes of a client's
//! are enough to take all memory. So the ways are counted for each depth of nesting when a schema is compiled: a tree
//! has one to each of its leaves, an expression of `and` and `or` soon more than can be followed.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem, ptr,
};

use serde_json::Value;

/// JSON as it is read is not nested deeper.
const MAX_DEPTH: usize = 128;
/// Bytes of a schema, or of a name in it, that count as much as one more way: errors hold copies.
const BYTES_PER_WAY: usize = 64;

/// Ways to one part of a value, by the depth of the value: never less than are followed.
#[derive(Debug)]
pub(super) struct Ways(Box<[u64]>);

impl Ways {
    /// Of the schema at a JSON pointer of a document, and of all that its local references lead to. They are endless if
    /// there are references of other kinds: nobody looks where those lead.
    pub(super) fn of(document: &Value, pointer: &str) -> Self {
        let graph = document.pointer(pointer).and_then(|root| Graph::of(document, root));
        Self(graph.map(|graph| graph.ways().into()).unwrap_or_default())
    }

    /// Numbers, texts and what is empty have depth 0.
    pub(super) fn at(&self, depth: usize) -> u64 {
        self.0.get(depth).copied().unwrap_or(u64::MAX)
    }
}

struct Graph {
    schemas: Vec<Schema<usize>>,
    longest_name: usize,
}

/// How a schema refers to others.
struct Schema<T> {
    /// Errors about a value, or their size where that is more, that its own keywords may find.
    cost: u64,
    /// About the same value.
    same: Vec<T>,
    /// About its parts. Those of one list are about different parts.
    parts: Vec<Vec<T>>,
}

impl Graph {
    fn of<'d>(document: &'d Value, root: &'d Value) -> Option<Self> {
        let mut found = vec![root];
        let mut numbers = HashMap::from([(ptr::from_ref(root), 0)]);
        let mut graph = Self { schemas: Vec::new(), longest_name: 0 };
        while let Some(schema) = found.get(graph.schemas.len()).copied() {
            let mut number = |schema: &'d Value| match numbers.entry(ptr::from_ref(schema)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    found.push(schema);
                    *new.insert(found.len() - 1)
                }
            };
            let Schema { cost, same, parts } = subschemas(document, schema)?;
            let same = same.into_iter().map(&mut number).collect();
            let parts = parts.into_iter().map(|way| way.into_iter().map(&mut number).collect()).collect();
            graph.schemas.push(Schema { cost, same, parts });
            graph.longest_name = graph.longest_name.max(longest_name(schema));
        }
        Some(graph)
    }

    fn ways(&self) -> Vec<u64> {
        let order = self.innermost_first();
        let per_step = 1 + units(self.longest_name);
        let mut ways = Vec::new();
        // A value of depth 0 has no parts.
        let mut within = vec![0; self.schemas.len()];
        while ways.len() <= MAX_DEPTH {
            let mut counts = vec![u64::MAX; self.schemas.len()];
            for &number in &order {
                let schema = &self.schemas[number];
                let same = schema.same.iter().map(|to| counts[*to]);
                let parts = schema.parts.iter().filter_map(|list| list.iter().map(|to| within[*to]).max());
                counts[number] = same.chain(parts).fold(schema.cost, u64::saturating_add);
            }
            ways.push(counts[0].saturating_mul(per_step));
            if mem::replace(&mut within, counts) == within {
                ways.resize(MAX_DEPTH + 1, *ways.last().unwrap_or(&u64::MAX));
            }
        }
        ways
    }

    /// Each schema after those it refers to for the same value; without those that so come back to themselves.
    fn innermost_first(&self) -> Vec<usize> {
        let mut known = vec![false; self.schemas.len()];
        let mut order = Vec::new();
        loop {
            let before = order.len();
            for (number, schema) in self.schemas.iter().enumerate().rev() {
                if !known[number] && schema.same.iter().all(|to| known[*to]) {
                    known[number] = true;
                    order.push(number);
                }
            }
            if order.len() == before {
                return order;
            }
        }
    }
}

/// `None` where a reference may lead anywhere.
fn subschemas<'d>(document: &'d Value, schema: &'d Value) -> Option<Schema<&'d Value>> {
    let (mut cost, mut same, mut parts, mut apart) = (1, Vec::new(), Vec::new(), Vec::new());
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (keyword.as_str(), value) {
            ("$ref", Value::String(reference)) => same.push(local(document, reference)?),
            ("$dynamicRef" | "$recursiveRef", _) => return None,
            // From here on, references are about another document.
            ("$id", _) if !ptr::eq(schema, document) => return None,
            ("$defs" | "definitions" | "enum" | "const" | "default" | "example" | "examples", _) => {}
            ("properties", Value::Object(members)) => apart.extend(members.values()),
            ("prefixItems" | "items", Value::Array(items)) => apart.extend(items),
            ("items" | "additionalProperties", value) => apart.push(value),
            ("patternProperties", Value::Object(members)) => parts.extend(members.values().map(|it| vec![it])),
            (
                "contains" | "propertyNames" | "additionalItems" | "unevaluatedItems" | "unevaluatedProperties",
                value,
            ) => {
                parts.push(vec![value]);
            }
            ("dependentSchemas" | "dependencies", Value::Object(members)) => same.extend(members.values()),
            // What is not known here is looked at as a schema, and costs too much rather than too little.
            (_, Value::Array(items)) => {
                let is_schema = |item: &&Value| item.is_object() || item.is_boolean();
                same.extend(items.iter().filter(is_schema));
                // Of `required` names, each can be missing.
                cost += items.iter().filter(|item| !is_schema(item)).count() as u64;
            }
            (_, Value::Object(_)) => same.push(value),
            _ => {}
        }
        cost += 1;
        // The error holds the schema that was not to match.
        if keyword == "not" {
            cost += units(value.to_string().len());
        }
    }
    parts.push(apart);
    Some(Schema { cost, same, parts })
}

/// Of keywords, and of what stands directly in them.
fn longest_name(schema: &Value) -> usize {
    let keywords = schema.as_object().into_iter().flatten();
    let names = |(keyword, value): (&String, &Value)| {
        let within = value.as_object().into_iter().flatten().map(|(name, _)| name.len());
        within.fold(keyword.len(), usize::max)
    };
    keywords.map(names).max().unwrap_or(0)
}

fn units(bytes: usize) -> u64 {
    (bytes / BYTES_PER_WAY) as u64
}

fn local<'d>(document: &'d Value, reference: &str) -> Option<&'d Value> {
    let pointer = percent_encoding::percent_decode_str(reference.strip_prefix('#')?).decode_utf8().ok()?;
    // What stands within another document means that one by its references.
    let mut around = pointer.match_indices('/').skip(1).filter_map(|(end, _)| document.pointer(&pointer[..end]));
    if around.any(|value| value.get("$id").is_some_and(Value::is_string)) {
        return None;
    }
    document.pointer(&pointer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_ways_to_a_part_are_counted_for_each_depth() {
        let again = json!({ "$ref": "#" });
        for (schema, ways) in [
            (json!(true), [1; 4]),
            (json!({ "type": "string", "minLength": 1 }), [3; 4]),
            (json!({ "required": ["a", "b"], "anyOf": [{ "type": "string" }, true] }), [8; 4]),
            (json!({ "prefixItems": [true, { "items": true }], "items": { "allOf": [true, true] } }), [3, 7, 7, 7]),
            (json!({ "properties": { "left": again, "right": again }, "additionalProperties": again }), [3, 8, 13, 18]),
            (json!({ "patternProperties": { "^a": again, "b$": again } }), [2, 10, 26, 58]),
            (json!({ "items": { "anyOf": [again, again] } }), [2, 12, 32, 72]),
            (json!({ "properties": { "anyOf": again }, "enum": [{ "$ref": "x" }] }), [3, 8, 13, 18]),
            (json!({ "items": { "$ref": "#/$defs/a~1b" }, "$defs": { "a/b": { "$ref": "#" } } }), [3, 10, 17, 24]),
            (json!({ "not": { "const": "a".repeat(BYTES_PER_WAY) } }), [5; 4]),
            (json!({ "properties": { "a".repeat(BYTES_PER_WAY): true } }), [4, 6, 6, 6]),
        ] {
            let found = Ways::of(&schema, "");
            assert_eq!([0, 1, 2, 3].map(|depth| found.at(depth)), ways, "{schema}");
            assert!(found.at(MAX_DEPTH) >= ways[3] && found.at(MAX_DEPTH + 1) == u64::MAX, "{schema}");
        }
    }

    #[test]
    fn ways_that_nobody_can_count_are_endless() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "not": { "$ref": "#" } }] }),
            json!({ "anyOf": [{ "$ref": "#/$defs/%61" }], "$defs": { "a": { "if": { "$ref": "#/$defs/a" } } } }),
            json!({ "items": { "$dynamicRef": "#node" }, "$dynamicAnchor": "node" }),
            json!({ "$anchor": "node", "items": { "$ref": "#node" } }),
            json!({ "items": { "$id": "other", "items": { "$ref": "#" } } }),
            json!({ "items": { "$ref": "#/$defs/a/$defs/b" }, "$defs": { "a": { "$id": "a", "$defs": { "b": { "$ref": "#" } } } } }),
        ] {
            assert_eq!(Ways::of(&schema, "").at(1), u64::MAX, "{schema}");
        }
    }
}
