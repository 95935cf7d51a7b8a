//! The data plane of Seiketsu Gateway.

pub mod operations;
pub mod respond;
pub mod telemetry;
