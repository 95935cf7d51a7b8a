//! The real binary, real origins, real sockets. One test program, so that everything is linked once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::format_collect
)]

mod callers;
mod examples;
mod fixtures;
mod grpc;
mod heads;
mod http2;
mod live_changes;
mod matching;
mod observability;
mod operations;
mod policies;
mod proxy_protocol;
mod proxying;
mod streaming;
mod support;
mod tls;
mod transforms;
mod traps;
mod upstream_answers;
mod upstream_http2;
mod upstreams;
mod validation;
mod versions;
mod websocket;
