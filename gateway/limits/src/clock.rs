//! The monotonic time that leases end by.

use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds since a clock was made. Monotonic; 0 never occurs.
pub type Nanos = u64;

/// A monotonic clock with a beginning of its own, so that a moment fits into an atomic. Copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn now(&self) -> Nanos {
        nanos(self.start.elapsed()).saturating_add(1)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// A length of time in nanoseconds; what does not fit (584 years) becomes the largest value.
pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
