//! The real control plane, real sockets, and nodes that speak the protocol. One test program, so that everything is linked
//! once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::cast_possible_truncation
)]

mod admin;
mod caches;
mod connections;
mod credible;
mod ctl;
mod events;
mod gateway;
mod keys;
mod node;
mod postgres;
mod quotas;
mod replicas;
mod restores;
mod tls;
mod tokens;
mod updates;
mod usage;
mod waiting;
