//! The responses of the gateway's own.

pub mod problem;
