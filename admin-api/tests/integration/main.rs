//! The real binary, real stores, real sockets. One test program, so that everything is linked once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    // Numbers in tests are small, and each constant stands beside the test that needs it.
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::items_after_statements,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::needless_pass_by_value
)]

mod access;
mod alerts;
mod audit;
mod cuts;
mod documents;
mod edge;
mod enterprise_tables;
mod events;
mod hostile;
mod hostile_wire;
mod keys;
mod operators;
mod outages;
mod replica;
mod revisions;
mod secrets;
mod siem;
mod store;
mod support;
mod tables;
mod trust;
mod usage;
mod waiting;
mod webhooks;
