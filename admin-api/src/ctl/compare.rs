//! `gatewayctl diff`, and how two documents differ.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use seiketsu_config::{load, tenant::TenantFile};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, printable},
    transfer::{read_input, text_of},
};

/// What is written in these places is shown by its beginning only.
const MASKED: [&str; 2] = ["hash", "key"];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As a gateway reads it; - is standard input.
    file: PathBuf,
}

/// What is different at one place.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    path: String,
    before: Value,
    after: Value,
}

/// What is in the control plane is before, what is in the file is after: as an import would change it.
pub(super) async fn run(arguments: Arguments, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let written = read(&arguments.file)?;
    let kept = client.ask(Ask::get("/export")).await?;
    let kept = load::tenants(&text_of(&kept.body, Path::new("(export)"))?, Path::new("(export)"))?;
    let (mut before, mut after) = (documents(kept)?, documents(written)?);
    let mut differences = BTreeMap::new();
    let names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    for name in names {
        let take = |side: &mut BTreeMap<String, Value>| side.remove(&name).unwrap_or_default();
        let found = difference(&take(&mut before), &take(&mut after));
        if !found.is_empty() {
            differences.insert(name, found);
        }
    }
    let shown = json!({ "drift": !differences.is_empty(), "documents": differences });
    output.show(&shown, |_| differences.iter().map(|(name, found)| told(name, found)).collect())?;
    Ok(if differences.is_empty() { Outcome::Done } else { Outcome::Drift })
}

fn read(path: &Path) -> Result<TenantFile, Failure> {
    // Paths in it are compared as they are written: they begin nowhere.
    let origin = path.file_name().map_or(Path::new("(input)"), Path::new);
    Ok(load::tenants(&text_of(&read_input(path)?, path)?, origin)?)
}

/// The head and each tenant, by name.
fn documents(file: TenantFile) -> Result<BTreeMap<String, Value>, Failure> {
    let TenantFile { defaults, plans, upstreams, tenants, .. } = file;
    let head = json!({ "defaults": defaults, "plans": plans, "upstreams": upstreams });
    let mut documents = BTreeMap::from([("(head)".to_owned(), head)]);
    for tenant in tenants {
        documents.insert(tenant.id.to_string(), serde_json::to_value(&tenant)?);
    }
    Ok(documents)
}

/// For people: one line for each place.
pub(super) fn told(name: &str, differences: &[Difference]) -> String {
    let mut told = String::new();
    for Difference { path, before, after } in differences {
        let place = if path.is_empty() { name.to_owned() } else { format!("{name}: {path}") };
        let line = match (before, after) {
            (Value::Null, after) => format!("+ {place}: {after}"),
            (before, Value::Null) => format!("- {place}: {before}"),
            (before, after) => format!("~ {place}: {before} -> {after}"),
        };
        told.push_str(&printable(&line));
        told.push('\n');
    }
    told
}

pub(super) fn difference(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", before, after, &mut found);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    if let (Some(before), Some(after)) = (members(before), members(after)) {
        let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            let dot = if path.is_empty() || name.starts_with('[') { "" } else { "." };
            let path = format!("{path}{dot}{name}");
            let side = |side: &BTreeMap<String, &Value>| side.get(name).map_or(Value::Null, |value| (*value).clone());
            compare(&path, &side(&before), &side(&after), found);
        }
    } else {
        let last = path.rsplit('.').next().unwrap_or_default();
        let shown = |value: &Value| if MASKED.contains(&last) { masked(value) } else { without_secrets(value) };
        found.push(Difference { path: path.to_owned(), before: shown(before), after: shown(after) });
    }
}

/// What can be compared one by one: the members of an object, and of a list whose items have an id or are keys.
fn members(value: &Value) -> Option<BTreeMap<String, &Value>> {
    match value {
        Value::Object(members) => Some(members.iter().map(|(name, value)| (name.clone(), value)).collect()),
        Value::Array(items) if !items.is_empty() => {
            let named: BTreeMap<String, &Value> = items
                .iter()
                .filter_map(|item| {
                    let name = ["id", "prefix"].iter().find_map(|key| item.get(key)?.as_str())?;
                    Some((format!("[{name}]"), item))
                })
                .collect();
            // The order of what has names is not compared; two of one name are compared as they are.
            (named.len() == items.len()).then_some(named)
        }
        _ => None,
    }
}

fn without_secrets(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let shown = |(name, value): (&String, &Value)| {
                let value = if MASKED.contains(&name.as_str()) { masked(value) } else { without_secrets(value) };
                (name.clone(), value)
            };
            Value::Object(members.iter().map(shown).collect())
        }
        Value::Array(items) => items.iter().map(without_secrets).collect(),
        other => other.clone(),
    }
}

/// Enough to tell two apart. What is a reference to a secret is none.
fn masked(value: &Value) -> Value {
    match value {
        Value::String(text) if !text.starts_with("${") => {
            let kept: String = text.chars().take(15).collect();
            if kept.len() < text.len() { json!(kept + "…") } else { json!(text) }
        }
        Value::String(_) | Value::Null => value.clone(),
        other => without_secrets(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_named_and_the_order_of_routes_with_names_does_not_matter() {
        let before = json!({
            "id": "acme",
            "policies": { "limits": { "rate": { "requests": 1000 } } },
            "routes": [{ "id": "a", "upstream": "x" }, { "id": "b", "upstream": "x" }],
        });
        let after = json!({
            "id": "acme",
            "policies": { "limits": { "rate": { "requests": 500 } } },
            "routes": [{ "id": "b", "upstream": "x" }, { "id": "a", "upstream": "y" }, { "id": "c" }],
        });
        assert_eq!(
            told("acme", &difference(&before, &after)),
            "~ acme: policies.limits.rate.requests: 1000 -> 500\n\
             ~ acme: routes[a].upstream: \"x\" -> \"y\"\n\
             + acme: routes[c]: {\"id\":\"c\"}\n"
        );
        assert!(difference(&before, &before).is_empty());
    }

    #[test]
    fn a_hash_is_shown_by_its_beginning() {
        let keys = |hash: &str| json!({ "keys": [{ "prefix": "abcdefgh", "hash": format!("sha256:{hash}") }] });
        let told = told("acme", &difference(&keys(&"a".repeat(64)), &keys(&"b".repeat(64))));
        assert_eq!(told, "~ acme: keys[abcdefgh].hash: \"sha256:aaaaaaaa…\" -> \"sha256:bbbbbbbb…\"\n");
        let whole = super::told("acme", &difference(&Value::Null, &keys(&"a".repeat(64))));
        assert!(!whole.contains(&"a".repeat(9)), "{whole}");
    }
}
