//! The real binary, real origins, real sockets. One test program, so that everything is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_debug_implementations)]

mod operations;
mod proxying;
mod support;
