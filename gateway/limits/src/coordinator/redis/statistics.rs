//! How exchanges go, for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::coordinator::CoordinatorError;

/// Upper bounds of the latency's buckets. The last one is the time-out.
pub const LATENCY_BOUNDS: [Duration; 9] = [
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
];

/// Counts since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Exchanges that were answered.
    pub answered: u64,
    pub unreachable: u64,
    pub timed_out: u64,
    pub malformed: u64,
    /// Answered exchanges that took no longer than each of [`LATENCY_BOUNDS`], and longer than the one before.
    pub latency: [u64; LATENCY_BOUNDS.len()],
    /// Time that all answered ones took together.
    pub latency_sum: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    unreachable: AtomicU64,
    timed_out: AtomicU64,
    malformed: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS.len()],
    latency_nanos: AtomicU64,
}

impl Counters {
    pub(super) fn answered(&self, took: Duration) {
        let bucket = LATENCY_BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(LATENCY_BOUNDS.len() - 1);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or_default(), Relaxed);
    }

    pub(super) fn failed(&self, error: &CoordinatorError) {
        let counter = match error {
            CoordinatorError::Unreachable(_) => &self.unreachable,
            CoordinatorError::TimedOut => &self.timed_out,
            CoordinatorError::Malformed(_) => &self.malformed,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Statistics {
        let latency = self.latency.each_ref().map(|count| count.load(Relaxed));
        Statistics {
            answered: latency.iter().sum(),
            unreachable: self.unreachable.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            latency,
            latency_sum: Duration::from_nanos(self.latency_nanos.load(Relaxed)),
        }
    }
}
