//! The time of day, as everything that expires sees it.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Where the time of day comes from: the system, or a test.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Whole seconds since 1970-01-01T00:00:00Z, as in a JWT's `NumericDate` (RFC 7519 §2).
    fn unix_seconds(&self) -> u64;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_seconds(&self) -> u64 {
        // A clock before 1970 is a clock that was never set. Read as the end of time it makes every
        // credential that expires expired, which is the safe way to be wrong.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
    }
}
