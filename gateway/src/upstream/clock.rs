//! The monotonic time that health, breakers and latencies are measured in.

#[cfg(test)]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use std::time::{Duration, Instant};

/// Nanoseconds since shortly before the clock was made. Monotonic; 0 is left to mean "never".
pub type Nanos = u64;

/// A monotonic clock with its own beginning, so that a point in time fits an atomic. Clones agree.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    /// How far tests have moved it.
    #[cfg(test)]
    ahead: Arc<AtomicU64>,
}

impl Clock {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            ahead: Arc::default(),
        }
    }

    pub fn now(&self) -> Nanos {
        let elapsed = nanos(self.start.elapsed()).saturating_add(1);
        #[cfg(test)]
        let elapsed = elapsed + self.ahead.load(Relaxed);
        elapsed
    }

    #[cfg(test)]
    pub(super) fn advance(&self, by: Duration) {
        self.ahead.fetch_add(nanos(by), Relaxed);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// A length of time as [`Nanos`]; what does not fit (584 years) becomes the largest value.
pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
