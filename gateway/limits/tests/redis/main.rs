//! What a coordinator does with a real Redis.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod concurrency;
mod elsewhere;
mod faults;
mod forgetting;
mod script;
mod tls;
mod topologies;
