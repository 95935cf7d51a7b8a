//! Every example is read and checked, and the references show every key.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use seiketsu_config::{
    limits::Quota,
    load,
    policy::{CredentialKind, JsonDocument},
    schema,
    secret::SecretRef,
    tenant::KeySource,
};
use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

#[test]
fn every_example_is_accepted() {
    let mut count = 0;
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        if path.to_string_lossy().ends_with("node.yaml") {
            load::node_file(&path).unwrap_or_else(|errors| panic!("{errors}"));
        } else {
            let file = load::tenants_file(&path).unwrap_or_else(|errors| panic!("{errors}"));
            // What is written is what is meant: it reads the same when it is written back.
            let json = serde_json::to_value(&file).unwrap();
            assert_eq!(serde_json::from_value::<seiketsu_config::tenant::TenantFile>(json).unwrap(), file);
        }
        count += 1;
    }
    assert!(count >= 9, "only {count} examples were found");
}

#[test]
fn the_reference_shows_every_key_and_every_choice() {
    for (schema, file) in [(schema::node(), "reference-node.yaml"), (schema::tenants(), "reference-tenants.yaml")] {
        let text = fs::read_to_string(examples().join(file)).unwrap();
        let words: BTreeSet<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
        let mut names = BTreeSet::new();
        collect_names(&schema, &mut names);
        let missing: Vec<_> = names.iter().filter(|name| !words.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{file} does not show {missing:?}");
    }
}

/// Every property and every constant that a schema names.
fn collect_names(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => names.extend(properties.keys().cloned()),
                    ("const", Value::String(choice)) => drop(names.insert(choice.clone())),
                    ("enum", Value::Array(choices)) => {
                        names.extend(choices.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    ("default", _) => continue,
                    _ => {}
                }
                collect_names(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}

#[test]
fn the_demo_is_what_the_readme_says() {
    let node = load::node_file(&examples().join("demo-node.yaml")).unwrap();
    let control_plane = node.control_plane.expect("the tenants are in the control plane");
    assert_eq!(control_plane.url.as_str(), "http://127.0.0.1:9080/");
    assert_eq!(control_plane.files, Some(examples().join("../../var/demo-keys")));
    assert!(node.egress.allow_loopback && node.tls.development_certificate);
    let file = load::tenants_file(&examples().join("demo-tenants.yaml")).unwrap();
    let hosts: Vec<_> = file.tenants.iter().flat_map(|tenant| &tenant.hosts).map(ToString::to_string).collect();
    assert_eq!(hosts, ["acme.localhost", "globex.localhost", "initech.localhost", "umbrella.localhost"]);
    assert_eq!(file.defaults.auth.unwrap().accept, [CredentialKind::Anonymous]);
    // Requests each minute, burst, quotas of a day and a month.
    let limits = file.tenants.iter().map(|tenant| {
        let limits = tenant.policies.limits.as_ref()?;
        let bucket = limits.rate.as_ref()?.bucket()?;
        assert_eq!(bucket.per.to_string(), "1m");
        let quotas = [limits.quotas.daily, limits.quotas.monthly].map(|quota| quota.and_then(Quota::get));
        Some((bucket.requests.get(), bucket.burst(), quotas))
    });
    let expected = [Some((1000, 100, [Some(100_000), Some(1_000_000)])), Some((60, 10, [None, None])), None, None];
    assert_eq!(limits.collect::<Vec<_>>(), expected);
    for tenant in &file.tenants {
        let secure = tenant.routes.iter().find(|route| route.id.as_str() == "secure").unwrap();
        let accept = &secure.policies.auth.as_ref().unwrap().accept;
        assert!(accept.contains(&CredentialKind::ApiKey) && !accept.contains(&CredentialKind::Anonymous));
        let KeySource::Key(SecretRef::File(path)) = &tenant.consumers[0].keys[0].source else {
            panic!("the key of {} is not in a file", tenant.id);
        };
        assert_eq!(*path, examples().join(format!("files/{}/key", tenant.id)));
    }
}

#[test]
fn documents_that_examples_name_are_there() {
    let file = load::tenants_file(&examples().join("validation.yaml")).unwrap();
    let validation = file.tenants[0].policies.validation.as_ref().unwrap();
    let Some(JsonDocument::File(path)) = &validation.openapi else { panic!("the document stands in place") };
    assert!(path.is_file(), "{}", path.display());
}
