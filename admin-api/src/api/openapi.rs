//! `GET /api/enterprise/openapi.json`: the description of the operations (OpenAPI 3.1), made from the code. The committed
//! `openapi.json` is the same; a test sees to it.

use std::{borrow::Cow, sync::LazyLock};

use axum::response::{IntoResponse, Response};
use http::header;
use schemars::{JsonSchema, generate::SchemaSettings};
use seiketsu_config::tenant::{Tenant, TenantFile};
use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use super::answers;
use crate::store;

/// The description.
pub fn document() -> Value {
    let (_, described) = super::operations_router().split_for_parts();
    let mut document = serde_json::to_value(described).unwrap_or_default();
    document["openapi"] = json!("3.1.0");
    document["info"] = json!({
        "title": "Seiketsu Gateway control plane",
        "version": env!("CARGO_PKG_VERSION"),
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        "description": "Configures the gateways, and tells how they are. Errors are problem details (RFC 9457); \
            lists come in pages; documents have an ETag for If-Match.",
    });
    document["security"] = json!([{ "token": [] }]);
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "A token of an operator: sa_…" },
    });
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.extend(configuration_schemas());
    }
    answers::describe(&mut document);
    document
}

/// The schemas of what the gateway reads, from the model itself.
fn configuration_schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let tenant = Tenant::json_schema(&mut generator);
    let head = store::HeadDocument::json_schema(&mut generator);
    let file = TenantFile::json_schema(&mut generator);
    let mut schemas = generator.take_definitions(true);
    for (name, schema) in [("Tenant", tenant), ("Head", head), ("TenantFile", file)] {
        schemas.insert(name.to_owned(), schema.to_value());
    }
    schemas
}

/// Stands in descriptions for a schema that is put in afterwards.
macro_rules! described_elsewhere {
    ($type:ident, $name:literal) => {
        #[doc = concat!("The schema ", $name, ".")]
        #[derive(Debug)]
        pub(super) struct $type;

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::default())
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                $name.into()
            }
        }
    };
}

described_elsewhere!(TenantDocument, "Tenant");
described_elsewhere!(HeadDocument, "Head");
described_elsewhere!(ConfigurationText, "TenantFile");
described_elsewhere!(RouteDocument, "Route");
described_elsewhere!(UpstreamDocument, "Upstream");

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
});

pub(super) async fn get() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_committed_description_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &*TEXT).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == *TEXT, "run this test with UPDATE_OPENAPI=1 and commit admin-api/openapi.json");
    }

    #[test]
    fn no_name_means_two_things() {
        let (_, described) = crate::api::operations_router().split_for_parts();
        let described = described.components.unwrap().schemas;
        let twice: Vec<String> = configuration_schemas()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| described.contains_key(name))
            .collect();
        assert_eq!(
            twice,
            ["Head", "Route", "Tenant", "TenantFile", "Upstream"],
            "only these are put in for what stands for them"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
