//! The data plane of Seiketsu Gateway.

pub mod respond;
pub mod telemetry;
