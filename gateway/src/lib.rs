//! x

pub mod tenancy;
