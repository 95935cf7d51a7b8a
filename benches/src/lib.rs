//! What the benchmarks are made on: configurations of any number of tenants and requests to them, the
//! policies that most routes have, and a whole gateway.

pub mod gateway;
pub mod policies;
pub mod tenancy;
