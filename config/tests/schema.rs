//! The committed JSON Schemas are those of the model, and what they say holds for every example.
//!
//! After a change of the model: `UPDATE_SCHEMA=1 cargo test -p seiketsu-config --test schema`.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use seiketsu_config::schema;

#[test]
fn the_committed_schemas_are_those_of_the_model() {
    for (name, schema) in [("node", schema::node()), ("tenants", schema::tenants())] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schema/{name}.schema.json"));
        let text = format!("{schema:#}\n");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is out of date: run this test with UPDATE_SCHEMA=1", path.display());
    }
}

#[test]
fn every_example_validates_against_its_schema() {
    let node = jsonschema::validator_for(&schema::node()).unwrap();
    let tenants = jsonschema::validator_for(&schema::tenants()).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let document: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let validator = if path.to_string_lossy().ends_with("node.yaml") { &node } else { &tenants };
        let errors: Vec<_> =
            validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let validator = jsonschema::validator_for(&schema::tenants()).unwrap();
    let minimal = serde_json::json!({ "revision": 1, "tenants": [{ "id": "a", "hosts": [], "routes": [] }] });
    assert!(validator.is_valid(&minimal));
    for (pointer, value) in [
        ("/surplus", serde_json::json!(1)),
        ("/tenants/0/surplus", serde_json::json!(1)),
        ("/tenants/0/id", serde_json::json!("Not A Name")),
        ("/tenants/0/policies", serde_json::json!({ "timeouts": { "total": "soon" } })),
        (
            "/tenants/0/routes",
            serde_json::json!([{ "id": "r", "match": { "path": "/", "headers": [{ "name": "a", "equals": "b", "prefix": "c" }] }, "upstream": "u" }]),
        ),
        (
            "/tenants/0/routes",
            serde_json::json!([{ "id": "r", "match": { "path": "/", "query": [{ "name": "a" }] }, "upstream": "u" }]),
        ),
        ("/tenants/0/consumers", serde_json::json!([{ "id": "c", "keys": [{ "prefix": "abcdefgh" }] }])),
    ] {
        let mut document = minimal.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        assert!(!validator.is_valid(&document), "{pointer} of {document}");
    }
}
