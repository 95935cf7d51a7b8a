//! Distributed traces: W3C Trace Context in and out, spans exported over OTLP/HTTP.
//!
//! Off unless the `OTEL_*` environment variables ask for it. While off, the trace context of clients is
//! passed on untouched, and nothing is made or sent. While on, a sampled request becomes a server span,
//! and its exchange with the upstream a client span below it.

mod client;
mod context;
mod sampler;
mod settings;
mod spans;
mod tracer;

pub use self::{
    context::TraceContext,
    settings::{TraceSettings, TraceSettingsError},
    tracer::{Tracer, TracerError},
};
