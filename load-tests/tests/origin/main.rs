//! The demo origin over real sockets: what each endpoint promises.
#![allow(clippy::unwrap_used)]

mod control;
mod grpc;
mod http;
mod support;
mod websocket;
