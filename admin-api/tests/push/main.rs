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
mod connections;
mod ctl;
mod gateway;
mod node;
mod postgres;
mod replicas;
mod restores;
mod tokens;
mod updates;
mod waiting;
