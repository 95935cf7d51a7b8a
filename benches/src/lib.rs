//! What the benchmarks are made on: configurations of any number of tenants and requests to them, also as
//! files, the policies that most routes have, and a whole gateway.

pub mod gateway;
pub mod limits;
pub mod policies;
pub mod tenancy;
pub mod tenant_files;
