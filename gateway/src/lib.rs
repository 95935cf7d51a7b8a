//! The data plane of Seiketsu Gateway.

pub mod upstream;
