//! When to look again at what has to be looked at from time to time.

use std::time::{Duration, Instant};

/// Looks happen this often, unless one takes long: then they are rarer, so that they never take more than
/// a small part of one processor.
pub(super) struct Pace {
    least: Duration,
    next: Instant,
}

/// A look that takes a second is followed by none for as many seconds.
const PAUSE: u32 = 400;

impl Pace {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, next: Instant::now() + least }
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    pub(super) fn looked(&mut self, since: Instant) {
        let now = Instant::now();
        self.next = now + self.least.max((now - since) * PAUSE);
    }
}
