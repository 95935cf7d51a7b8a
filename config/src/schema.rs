//! The JSON Schema (2020-12) of both files, for editors and for other languages.

use schemars::{JsonSchema, generate::SchemaSettings};

use crate::{node::NodeConfig, tenant::TenantFile};

/// The schema of a node's configuration, as in `config/schema/node.schema.json`.
pub fn node() -> serde_json::Value {
    schema_of::<NodeConfig>()
}

/// The schema of a file of tenants, as in `config/schema/tenants.schema.json`.
pub fn tenants() -> serde_json::Value {
    schema_of::<TenantFile>()
}

fn schema_of<T: JsonSchema>() -> serde_json::Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}
