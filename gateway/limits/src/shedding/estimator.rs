//! How the limit follows the lag. Plain arithmetic; time comes from outside.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;

/// An interval ends with the first look after so much time. The look that it begins with, the last one of the
/// interval before, is one of its own: there are always two, so that a single stall is not taken for a queue.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most and the least by which one interval of overload lowers the limit. More at once would
/// overshoot, since the lag follows only when what is in flight has come down.
const STEEPEST_FALL: f64 = 0.5;
const GENTLEST_FALL: f64 = 0.95;

/// By how much an interval without any lag raises the limit: it doubles in one and a half seconds.
const STEEPEST_RISE: f64 = 0.05;

/// Finds the limit at which the lag stays at its target.
///
/// - Over the target, the limit falls in proportion to how far over it is. If nothing was shed, it falls from
///   what was in flight: a limit that was not reached says nothing.
/// - Under it, the limit rises, the faster the more is left, whether it was reached or not: after an
///   overload the node becomes wholly open again.
/// - With no more than `min_limit` in flight it stays, whatever the lag: something else keeps the thread
///   busy (handshakes, bodies, another process), and refusing requests would be no help.
#[derive(Debug)]
pub(super) struct Estimator {
    settings: Settings,
    limit: f64,
    began: Instant,
    least_lag: Duration,
    most_in_flight: u32,
    reached: bool,
}

/// What was seen at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) lag: Duration,
    /// Requests that count against the limit.
    pub(super) in_flight: u32,
    /// Whether any were refused since the last look.
    pub(super) shed: bool,
}

/// What an interval has led to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) limit: u32,
    /// The least of all looks.
    pub(super) lag: Duration,
}

impl Estimator {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            limit: f64::from(settings.max_limit),
            began: now,
            least_lag: Duration::ZERO,
            most_in_flight: 0,
            reached: false,
        }
    }

    /// Takes a look into account; the last one of an interval moves the limit.
    pub(super) fn look(&mut self, look: &Look, now: Instant) -> Option<Interval> {
        self.least_lag = self.least_lag.min(look.lag);
        self.most_in_flight = self.most_in_flight.max(look.in_flight);
        self.reached |= look.shed;
        if now.saturating_duration_since(self.began) < INTERVAL {
            return None;
        }
        self.limit = self.next();
        let lag = std::mem::replace(&mut self.least_lag, look.lag);
        (self.began, self.most_in_flight, self.reached) = (now, look.in_flight, false);
        Some(Interval { limit: self.limit(), lag })
    }

    fn next(&self) -> f64 {
        let Settings { target_lag, min_limit, max_limit } = self.settings;
        let load = self.least_lag.as_secs_f64() / target_lag.as_secs_f64();
        let next = if load <= 1.0 {
            self.limit * (1.0 + STEEPEST_RISE * (1.0 - load)) + 1.0
        } else if self.most_in_flight > min_limit {
            let used = if self.reached { self.limit } else { self.limit.min(self.most_in_flight.into()) };
            used * load.recip().clamp(STEEPEST_FALL, GENTLEST_FALL)
        } else {
            self.limit
        };
        next.clamp(min_limit.into(), max_limit.into())
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is between two `u32`.
    fn limit(&self) -> u32 {
        self.limit as u32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings { target_lag: Duration::from_millis(20), min_limit: 10, max_limit: 1000 };

    /// The limit after intervals of such looks.
    fn after(estimator: &mut Estimator, intervals: u32, lag: u64, in_flight: u32, shed: bool) -> u32 {
        let look = Look { lag: Duration::from_millis(lag), in_flight, shed };
        estimator.least_lag = look.lag;
        for _ in 0..intervals {
            let mut now = estimator.began;
            while {
                now += Duration::from_millis(20 + lag);
                estimator.look(&look, now).is_none()
            } {}
        }
        estimator.limit()
    }

    fn new() -> Estimator {
        Estimator::new(SETTINGS, Instant::now())
    }

    #[test]
    fn it_falls_from_what_was_in_flight_or_from_the_limit_if_that_was_reached() {
        let mut estimator = new();
        assert_eq!(after(&mut estimator, 1, 25, 500, false), 400);
        assert_eq!(after(&mut estimator, 1, 25, 300, true), 320);
        assert_eq!(after(&mut estimator, 1, 500, 320, true), 160, "the steepest");
        assert_eq!(after(&mut estimator, 1, 21, 200, true), 152, "the gentlest");
    }

    #[test]
    fn it_rises_the_faster_the_more_is_left_and_to_the_top() {
        let mut estimator = new();
        assert_eq!(after(&mut estimator, 1, 40, 200, false), 100);
        assert_eq!(after(&mut estimator, 1, 0, 0, false), 106);
        assert_eq!(after(&mut estimator, 1, 10, 0, false), 109);
        assert_eq!(after(&mut estimator, 1, 20, 0, false), 110);
        assert_eq!(after(&mut estimator, 60, 0, 0, false), 1000);
    }

    #[test]
    fn few_requests_are_not_the_cause() {
        let mut estimator = new();
        assert_eq!(after(&mut estimator, 50, 500, 10, false), 1000);
        assert_eq!(after(&mut estimator, 50, 500, 11, false), 10);
        assert_eq!(after(&mut estimator, 50, 500, 10, true), 10);
    }

    #[test]
    fn a_single_stall_changes_nothing() {
        let mut estimator = new();
        let now = estimator.began;
        let mut look = |lag, seconds| {
            let look = Look { lag: Duration::from_millis(lag), in_flight: 500, shed: false };
            estimator.look(&look, now + Duration::from_secs(seconds)).unwrap()
        };
        assert_eq!(look(2000, 2), Interval { limit: 1000, lag: Duration::ZERO });
        assert_eq!(look(1, 3), Interval { limit: 1000, lag: Duration::from_millis(1) });
        // Two in a row are a queue.
        assert_eq!(look(2000, 5), Interval { limit: 1000, lag: Duration::from_millis(1) });
        assert_eq!(look(1000, 6), Interval { limit: 250, lag: Duration::from_secs(1) });
    }

    proptest! {
        #[test]
        fn it_stays_between_its_bounds_and_moves_in_small_steps(
            looks in prop::collection::vec((0u64..200, 0u32..2000, any::<bool>()), 1..300),
        ) {
            let mut estimator = new();
            let mut now = estimator.began;
            let mut before = estimator.limit;
            for (lag, in_flight, shed) in looks {
                now += Duration::from_millis(20 + lag);
                let look = Look { lag: Duration::from_millis(lag), in_flight, shed };
                let Some(Interval { limit, .. }) = estimator.look(&look, now) else { continue };
                prop_assert!((10..=1000).contains(&limit));
                prop_assert!(estimator.limit <= before * 1.05 + 1.0);
                prop_assert!(!shed || estimator.limit >= (before * 0.5).max(10.0), "{before} → {limit}");
                before = estimator.limit;
            }
        }
    }
}
