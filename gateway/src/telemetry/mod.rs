//! What the gateway tells about itself: metrics, the access log, traces.
//!
//! The request path only counts into memory of its own thread and copies one compact record; summing,
//! formatting and sending happen elsewhere.

pub mod access_log;
pub mod metrics;
pub mod names;
pub mod request_id;
pub(crate) mod silence;
pub mod trace;
pub mod usage;
mod worker;
