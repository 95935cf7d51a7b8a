//! The data plane of Seiketsu Gateway. `LIFECYCLE.md` follows one request through it.

pub mod bootstrap;
mod cache;
mod config_source;
mod fields;
mod files;
mod limits;
mod node;
pub mod operations;
pub mod policy;
mod proxy;
mod respond;
pub mod server;
pub mod telemetry;
pub mod tenancy;
pub mod upstream;

pub use node::{check_config, run};
