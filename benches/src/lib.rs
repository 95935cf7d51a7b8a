//! What the benchmarks are made on: configurations of any number of tenants, and requests to them.

pub mod tenancy;
