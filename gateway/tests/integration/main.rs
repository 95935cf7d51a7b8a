//! The real binary, real origins, real sockets. One test program, so that everything is linked once.
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
    clippy::large_stack_arrays,
    clippy::format_collect,
    clippy::format_push_string
)]

mod cache;
mod callers;
mod control_plane;
mod examples;
mod fixtures;
mod grpc;
mod heads;
mod http2;
mod limits;
mod live_changes;
mod matching;
mod observability;
mod operations;
mod policies;
mod proxy_protocol;
mod proxying;
mod recovery;
mod shedding;
mod streaming;
mod support;
mod tenant_folder;
mod tls;
mod transforms;
mod traps;
mod upstream_answers;
mod upstream_http2;
mod upstreams;
mod usage;
mod validation;
mod versions;
mod websocket;
