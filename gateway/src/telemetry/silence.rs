//! Warnings that every request could give, given once in a while.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

/// One word about the same thing in this time.
const SECONDS: u64 = 300;

/// When something was last told.
#[derive(Debug, Default)]
pub(crate) struct Silence(AtomicU64);

impl Silence {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether it may be told (again). To one of several who ask at once.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.0.load(Relaxed);
        seconds >= last + SECONDS && self.0.compare_exchange(last, seconds, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_word_in_a_while() {
        let silence = Silence::new();
        let now = SystemTime::now();
        assert!(silence.is_over(now));
        assert!(!silence.is_over(now + Duration::from_secs(SECONDS / 2)));
        assert!(silence.is_over(now + Duration::from_secs(SECONDS)));
    }
}
