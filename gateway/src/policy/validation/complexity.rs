//! How much there is to a schema, looked at before it is compiled.
//!
//! A schema of a few hundred bytes can be endless work: where its parts refer to each other so that ways part and meet
//! again, their number multiplies. What they say of the *parts* of a value is bounded when it is looked at ([`meter`]).
//! What they say of one and the same value is bounded here, since it costs without anything being looked at, and it costs
//! when the schema is compiled, too.
//!
//! [`meter`]: super::meter

use std::{
    collections::{HashMap, hash_map::Entry},
    ptr,
};

use jsonschema::Draft;
use petgraph::graph::{DiGraph, NodeIndex};
use referencing::{Resolved, Resolver};
use serde_json::Value;

/// Schemas that one leads to, itself and those within it included. Each takes some KiB.
const MAX_SCHEMAS: usize = 50_000;
/// Ways from a schema to others that are about the same value.
const MAX_WAYS: u64 = 1 << 16;
/// References between schemas that are about the same value.
const MAX_REFERENCES: usize = 1 << 20;
/// Values of a document that are looked through in the time and room of one more schema.
const VALUES_PER_SCHEMA: usize = 100;
/// Schemas in a row on such a way: each takes stack.
const MAX_LEVELS: usize = 1000;

/// What of a schema bounds the work that it makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Complexity {
    /// Schemas that it leads to, and what finding them takes besides, in schemas.
    pub(super) schemas: usize,
    /// Bytes of the longest text that errors may hold copies of.
    pub(super) longest_text: usize,
}

/// Why a schema is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooComplex {
    #[error("it leads to more than {MAX_SCHEMAS} schemas: split it, or leave out what need not be checked here")]
    Large,
    #[error(
        "its parts refer to each other in more than {MAX_WAYS} ways that are about the same value: let fewer of `allOf`, `anyOf`, `oneOf`, `if`, `$ref` and `unevaluated…` lead to the same schemas"
    )]
    Entangled,
    #[error("more than {MAX_LEVELS} schemas in a row are about the same value: refer to the last ones directly")]
    Deep,
}

impl Complexity {
    pub(super) fn of(root: &Resolved<'_>) -> Result<Self, TooComplex> {
        let (schemas, values) = reachable(root)?;
        let longest_text = schemas.iter().map(|schema| schema.longest_text).max().unwrap_or(0);
        most_ways(&schemas)?;
        Ok(Self { schemas: schemas.len() + values / VALUES_PER_SCHEMA, longest_text })
    }
}

/// A schema, and those that are about the same value.
struct Schema {
    same: Vec<usize>,
    /// Those are gone through once more, to find out what they have evaluated.
    is_unevaluated: bool,
    longest_text: usize,
}

/// All schemas that one leads to; that one first. And how many values of the document had to be looked through.
fn reachable<'r>(root: &Resolved<'r>) -> Result<(Vec<Schema>, usize), TooComplex> {
    let mut found = vec![(root.contents(), root.resolver().clone())];
    let mut numbers = HashMap::from([(ptr::from_ref(root.contents()), 0)]);
    let mut anchored = None;
    let (mut schemas, mut references) = (Vec::new(), 0);
    while let Some((schema, resolver)) = found.get(schemas.len()).cloned() {
        // If it has a name of its own, its references start there. Those that lead nowhere are refused by the compiler.
        let resolver = resolver.in_subresource(Draft::Draft202012.create_resource_ref(schema)).unwrap_or(resolver);
        let mut number = |schema: &'r Value, resolver: &Resolver<'r>| match numbers.entry(ptr::from_ref(schema)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                found.push((schema, resolver.clone()));
                *new.insert(found.len() - 1)
            }
        };
        let mut same = Vec::new();
        let mut is_unevaluated = false;
        for (keyword, value) in schema.as_object().into_iter().flatten() {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    same.extend(resolver.lookup(reference).map(|to| number(to.contents(), to.resolver())));
                }
                // Which of them it will be depends on where validation came from.
                ("$dynamicRef" | "$recursiveRef", _) => {
                    let (anchored, _) = anchored.get_or_insert_with(|| anchored_in(root));
                    same.extend(anchored.iter().map(|(schema, resolver)| number(schema, resolver)));
                    let to = value.as_str().and_then(|reference| resolver.lookup(reference).ok());
                    same.extend(to.map(|to| number(to.contents(), to.resolver())));
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => {
                    same.extend(all.iter().map(|schema| number(schema, &resolver)));
                }
                ("not" | "if" | "then" | "else", schema) => same.push(number(schema, &resolver)),
                ("dependentSchemas" | "dependencies", Value::Object(all)) => {
                    same.extend(all.values().map(|schema| number(schema, &resolver)));
                }
                ("properties" | "patternProperties", Value::Object(all)) => {
                    for schema in all.values() {
                        number(schema, &resolver);
                    }
                }
                ("prefixItems" | "items", Value::Array(all)) => {
                    for schema in all {
                        number(schema, &resolver);
                    }
                }
                ("items" | "additionalItems" | "additionalProperties" | "contains" | "propertyNames", schema) => {
                    number(schema, &resolver);
                }
                ("unevaluatedItems" | "unevaluatedProperties", schema) => {
                    is_unevaluated = true;
                    number(schema, &resolver);
                }
                _ => {}
            }
        }
        references += same.len();
        schemas.push(Schema { same, is_unevaluated, longest_text: longest_text(schema) });
        if found.len() > MAX_SCHEMAS {
            return Err(TooComplex::Large);
        }
        if references > MAX_REFERENCES {
            return Err(TooComplex::Entangled);
        }
    }
    Ok((schemas, anchored.map_or(0, |(_, values)| values)))
}

/// Everything in a schema's document that has a dynamic anchor, and how many values there are.
fn anchored_in<'d>(root: &Resolved<'d>) -> (Vec<(&'d Value, Resolver<'d>)>, usize) {
    let (mut anchored, mut values) = (Vec::new(), 0);
    let document = root.resolver().lookup("").ok();
    let mut left: Vec<_> = document.iter().map(|all| (all.contents(), all.resolver().clone())).collect();
    while let Some((value, resolver)) = left.pop() {
        values += 1;
        match value {
            Value::Object(members) => {
                let resolver =
                    resolver.in_subresource(Draft::Draft202012.create_resource_ref(value)).unwrap_or(resolver);
                left.extend(members.values().map(|member| (member, resolver.clone())));
                if members.contains_key("$dynamicAnchor") || members.contains_key("$recursiveAnchor") {
                    anchored.push((value, resolver));
                }
            }
            Value::Array(items) => left.extend(items.iter().map(|item| (item, resolver.clone()))),
            _ => {}
        }
    }
    (anchored, values)
}

/// What stands directly in a schema. An error holds the schema that was not to match.
fn longest_text(schema: &Value) -> usize {
    let of = |(keyword, value): (&String, &Value)| {
        let within = match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0),
            _ if keyword == "not" => value.to_string().len(),
            Value::Object(members) => members.keys().map(String::len).max().unwrap_or(0),
            _ => 0,
        };
        within.max(keyword.len())
    };
    schema.as_object().into_iter().flatten().map(of).max().unwrap_or(0)
}

/// What leads on from one schema to others that are about the same value.
#[derive(Debug, Clone, Copy, Default)]
struct Onward {
    ways: u64,
    /// When it is gone through once more: all that lie on the way are asked again whether they hold, and gone through.
    again: u64,
    levels: usize,
}

/// The most ways from any of the schemas to others.
fn most_ways(schemas: &[Schema]) -> Result<u64, TooComplex> {
    let mut graph = DiGraph::<(), (), usize>::with_capacity(schemas.len(), 0);
    for _ in schemas {
        graph.add_node(());
    }
    for (from, schema) in schemas.iter().enumerate() {
        for to in &schema.same {
            graph.add_edge(from.into(), (*to).into(), ());
        }
    }
    // Those that lead back to each other together, and after those that they lead to.
    let circles = petgraph::algo::kosaraju_scc(&graph);
    let mut circle_of = vec![0; schemas.len()];
    for (circle, numbers) in circles.iter().enumerate() {
        for number in numbers {
            circle_of[number.index()] = circle;
        }
    }
    let mut onward: Vec<Onward> = Vec::with_capacity(circles.len());
    for circle in &circles {
        let next = of_circle(schemas, circle, &circle_of, &onward);
        if next.ways > MAX_WAYS {
            return Err(TooComplex::Entangled);
        }
        if next.levels > MAX_LEVELS {
            return Err(TooComplex::Deep);
        }
        onward.push(next);
    }
    Ok(onward.iter().map(|onward| onward.ways).max().unwrap_or(0))
}

/// Of schemas that lead back to each other; mostly that is one. Validation of a value never comes to one of them twice on
/// the same way, so that there are no more ways through them than choices of what each leads to.
fn of_circle(schemas: &[Schema], circle: &[NodeIndex<usize>], circle_of: &[usize], onward: &[Onward]) -> Onward {
    let mut all = Onward { ways: 0, again: 0, levels: 0 };
    let (mut choices, mut back, mut unevaluated) = (1_u64, 0_u64, 0_u64);
    for number in circle {
        let schema = &schemas[number.index()];
        let mut own_back = 0;
        all.ways = all.ways.saturating_add(1);
        for to in &schema.same {
            // Those that are not known yet are in this circle.
            let Some(to) = onward.get(circle_of[*to]) else {
                own_back += 1;
                continue;
            };
            all.ways = all.ways.saturating_add(to.ways);
            all.again = all.again.saturating_add(to.ways).saturating_add(to.again);
            all.levels = all.levels.max(to.levels);
        }
        choices = choices.saturating_mul(own_back.max(1));
        back += own_back;
        unevaluated += u64::from(schema.is_unevaluated);
    }
    all.ways = all.ways.saturating_mul(choices);
    all.again = all.again.saturating_add(back.saturating_mul(all.ways)).saturating_mul(choices);
    all.ways = all.ways.saturating_add(unevaluated.saturating_mul(all.again));
    all.levels += circle.len();
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jsonschema::Registry;
    use serde_json::json;

    use super::*;

    fn of(schema: &Value) -> Result<(Complexity, u64), TooComplex> {
        let registry = Registry::new().draft(Draft::Draft202012).add("test:///a", schema).unwrap().prepare().unwrap();
        let root = registry.resolver(jsonschema::uri::from_str("test:///a").unwrap()).lookup("").unwrap();
        let of = Complexity::of(&root)?;
        Ok((of, most_ways(&reachable(&root)?.0)?))
    }

    /// Schemas of which each leads to the next.
    fn in_a_row(count: usize, schema: impl Fn(Value) -> Value) -> Value {
        let to = |number| json!({ "$ref": format!("#/$defs/{number}") });
        let mut all: serde_json::Map<_, _> = (0..count).map(|n| (n.to_string(), schema(to(n + 1)))).collect();
        all.insert(count.to_string(), json!({ "type": "string" }));
        json!({ "$ref": "#/$defs/0", "$defs": all })
    }

    #[test]
    fn ways_are_counted_that_are_about_the_same_value() {
        let again = json!({ "$ref": "#" });
        for (schema, schemas, ways) in [
            (json!(true), 1, 1),
            (json!({ "type": "string", "minLength": 1, "enum": [{ "$ref": "#" }] }), 1, 1),
            (json!({ "anyOf": [{ "type": "string" }, true], "not": { "const": 1 } }), 4, 4),
            (json!({ "properties": { "a": again, "b": { "items": again } } }), 4, 2),
            (
                json!({ "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }], "$defs": { "a": { "oneOf": [true, true] } } }),
                6,
                9,
            ),
            (json!({ "anyOf": [{ "properties": { "a": true } }], "unevaluatedProperties": false }), 4, 3),
            (
                json!({ "$id": "http://a/b", "items": { "$ref": "b#/$defs/c" }, "$defs": { "c": { "$anchor": "d", "items": { "$ref": "#d" } } } }),
                4,
                2,
            ),
            (json!({ "$dynamicAnchor": "n", "items": { "anyOf": [{ "$dynamicRef": "#n" }] } }), 3, 4),
            // A kind and its kinds.
            (json!({ "oneOf": [{ "allOf": [again] }, { "allOf": [again] }] }), 5, 10),
        ] {
            let (found, most) = of(&schema).unwrap();
            assert_eq!((found.schemas, most), (schemas, ways), "{schema}");
        }
    }

    #[test]
    fn what_multiplies_is_refused() {
        for (schema, why) in [
            (in_a_row(40, |next| json!({ "allOf": [next, next] })), TooComplex::Entangled),
            (in_a_row(40, |next| json!({ "dependentSchemas": { "a": next, "b": next } })), TooComplex::Entangled),
            (in_a_row(20, |next| json!({ "if": next, "unevaluatedProperties": false })), TooComplex::Entangled),
            (
                in_a_row(20, |next| json!({ "items": { "anyOf": [{ "not": next }, next] }, "allOf": [next, next] })),
                TooComplex::Entangled,
            ),
            (in_a_row(600, |next| json!({ "not": next })), TooComplex::Deep),
            (in_a_row(30_000, |next| json!({ "items": next })), TooComplex::Large),
            (json!({ "items": { "$ref": "named" }, "$defs": { "b": in_a_named_row(20) } }), TooComplex::Entangled),
        ] {
            assert_eq!(of(&schema).unwrap_err(), why);
        }
        // Each may be any of the others.
        let many: Vec<_> = (0..1100).map(|n| json!({ "$dynamicAnchor": n.to_string(), "$dynamicRef": "#0" })).collect();
        assert_eq!(of(&json!({ "prefixItems": many })).unwrap_err(), TooComplex::Entangled);
        // Each of twelve leads to all: nobody goes through their orders.
        let all: Vec<_> = (0..12).map(|n| json!({ "$ref": format!("#/$defs/{n}") })).collect();
        let defs: serde_json::Map<_, _> = (0..12).map(|n| (n.to_string(), json!({ "allOf": all }))).collect();
        assert_eq!(of(&json!({ "$ref": "#/$defs/0", "$defs": defs })).unwrap_err(), TooComplex::Entangled);
    }

    /// By names of their own.
    fn in_a_named_row(count: usize) -> Value {
        let defs = (0..count).map(|n| {
            let next = if n == 0 { json!(true) } else { json!({ "$ref": format!("#n{}", n - 1) }) };
            let anchor = if n + 1 == count { json!("top") } else { json!(format!("n{n}")) };
            json!({ "$anchor": anchor, "allOf": [next, next] })
        });
        json!({ "$id": "named", "$ref": "#top", "$defs": { "all": { "prefixItems": defs.collect::<Vec<_>>() } } })
    }

    #[test]
    fn texts_that_errors_hold_are_measured() {
        let long = "a".repeat(100);
        for schema in [
            json!({ "pattern": long }),
            json!({ "items": { "required": ["a", long] } }),
            json!({ "properties": { "a": { "not": { "const": long } } } }),
            json!({ "properties": { (&*long): true } }),
        ] {
            assert!((100..200).contains(&of(&schema).unwrap().0.longest_text), "{schema}");
        }
    }
}
