//! Passive health: an endpoint that fails several real requests in a row is set aside for a while, each
//! time for longer. Who may be set aside at the same time is for the pool to say.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use seiketsu_config::tenant::Outliers as Settings;

use super::clock::{Nanos, nanos};

/// What requests have shown about one endpoint.
#[derive(Debug, Default)]
pub struct Outlier {
    failures_in_a_row: AtomicU32,
    ejected_until: AtomicU64,
    ejections: AtomicU32,
}

impl Outlier {
    pub fn succeeded(&self) {
        // Reading first keeps the cache line shared while all is well.
        if self.failures_in_a_row.load(Relaxed) != 0 {
            self.failures_in_a_row.store(0, Relaxed);
        }
    }

    /// Whether this failure makes the endpoint a candidate for ejection. It does so again with every
    /// further run of as many failures, should the pool have had no room for it before.
    pub fn failed(&self, settings: &Settings, now: Nanos) -> bool {
        let threshold = settings.consecutive_failures;
        if threshold == 0 || self.is_ejected(now) {
            return false;
        }
        let failures = self.failures_in_a_row.fetch_add(1, Relaxed).wrapping_add(1);
        failures.is_multiple_of(threshold)
    }

    /// Sets the endpoint aside and returns until when: `base_ejection` the first time, as much more with
    /// each further time, up to `max_ejection`. After `max_ejection` without one it starts over.
    pub fn eject(&self, settings: &Settings, now: Nanos) -> Nanos {
        let (base, max) = (nanos(settings.base_ejection.get()), nanos(settings.max_ejection.get()));
        let was_good_for = now.saturating_sub(self.ejected_until.load(Relaxed));
        let times = if was_good_for > max { 1 } else { self.ejections.load(Relaxed).saturating_add(1) };
        let until = now.saturating_add(base.saturating_mul(u64::from(times)).min(max));
        self.ejections.store(times, Relaxed);
        self.failures_in_a_row.store(0, Relaxed);
        self.ejected_until.store(until, Relaxed);
        until
    }

    pub fn is_ejected(&self, now: Nanos) -> bool {
        now < self.ejected_until.load(Relaxed)
    }

    /// When the last ejection ends or ended; 0: there was none.
    pub fn ejected_until(&self) -> Nanos {
        self.ejected_until.load(Relaxed)
    }
}

/// Whether one more of `total` endpoints may be set aside while `ejected` are: at most `max_ejected` of
/// them, but always at least one.
pub fn has_room(settings: &Settings, ejected: usize, total: usize) -> bool {
    ejected == 0 || ((ejected + 1) * 100) as f64 <= settings.max_ejected.get() * total as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seiketsu_config::values::{Percent, Span};

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn settings() -> Settings {
        Settings {
            consecutive_failures: 3,
            base_ejection: Span::from_secs(10),
            max_ejection: Span::from_secs(25),
            max_ejected: Percent::new_const(50),
        }
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let outlier = Outlier::default();
        assert!(!outlier.failed(&settings(), SECOND));
        assert!(!outlier.failed(&settings(), SECOND));
        outlier.succeeded();
        assert!(!outlier.failed(&settings(), SECOND));
        assert!(!outlier.failed(&settings(), SECOND));
        assert!(outlier.failed(&settings(), SECOND));
    }

    #[test]
    fn each_ejection_is_longer_up_to_the_maximum_and_good_conduct_is_rewarded() {
        let outlier = Outlier::default();
        let mut now = 100 * SECOND;
        for expected in [10, 20, 25, 25] {
            let until = outlier.eject(&settings(), now);
            assert_eq!(until - now, expected * SECOND);
            assert!(outlier.is_ejected(until - 1));
            assert!(!outlier.is_ejected(until));
            now = until + SECOND;
        }
        now += 30 * SECOND;
        assert_eq!(outlier.eject(&settings(), now) - now, 10 * SECOND);
    }

    #[test]
    fn zero_switches_it_off() {
        let outlier = Outlier::default();
        let off = Settings { consecutive_failures: 0, ..settings() };
        assert!((0..100).all(|_| !outlier.failed(&off, SECOND)));
    }

    proptest! {
        #[test]
        fn never_more_than_the_cap_and_always_at_least_one(total in 1usize..50, share in 0u8..=100) {
            let settings = Settings { max_ejected: Percent::new_const(share), ..settings() };
            let mut ejected = 0;
            while ejected < total && has_room(&settings, ejected, total) {
                ejected += 1;
            }
            prop_assert!(ejected >= 1);
            prop_assert!(ejected == 1 || ejected * 100 <= usize::from(share) * total);
        }
    }
}
