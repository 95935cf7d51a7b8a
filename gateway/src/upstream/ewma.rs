//! Peak-EWMA latency, as Finagle and Linkerd balance by it: a slow answer raises the estimate at once,
//! quick ones lower it gradually, and silence lets it fade.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::clock::Nanos;

/// After this time a past observation still weighs 1/e.
const DECAY_NANOS: f32 = 10e9;

/// What a failure counts as at least, so that an endpoint that fails fast does not look fast.
const FAILURE_NANOS: Nanos = 1_000_000_000;

/// What an endpoint without any observation is taken for while a request is on its way to it: one
/// request may find out, the others had better wait for what it says.
const UNKNOWN_NANOS: f32 = 1e9;

/// Time is kept in units of 2^16 ns (66 µs), so that 32 bits last for three days of silence.
const TICK_SHIFT: u32 = 16;

/// The estimate in nanoseconds (`f32`) and when it was made, in one word.
#[derive(Debug, Default)]
pub struct PeakEwma {
    word: AtomicU64,
}

impl PeakEwma {
    pub fn observe(&self, latency: Nanos, now: Nanos) {
        #[allow(clippy::cast_possible_truncation)] // An estimate, and at most 2^64.
        let latency = (latency as f64 as f32).max(1.0);
        let now = tick(now);
        let mut word = self.word.load(Relaxed);
        loop {
            let (estimate, at) = unpack(word);
            let next = if latency >= estimate {
                latency
            } else if now == at {
                // No time has passed, so nothing has faded.
                return;
            } else {
                let kept = fading(at, now);
                estimate * kept + latency * (1.0 - kept)
            };
            match self.word.compare_exchange_weak(word, pack(next, now), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    pub fn observe_failure(&self, latency: Nanos, now: Nanos) {
        self.observe(latency.max(FAILURE_NANOS), now);
    }

    /// The estimate in nanoseconds as it has faded until now; 0: nothing was ever observed.
    pub fn estimate(&self, now: Nanos) -> f32 {
        let (estimate, at) = unpack(self.word.load(Relaxed));
        if estimate == 0.0 { 0.0 } else { estimate * fading(at, tick(now)) }
    }

    /// What one more request would cost: the estimate times those in flight, itself included.
    pub fn cost(&self, in_flight: u32, now: Nanos) -> f64 {
        let (estimate, at) = unpack(self.word.load(Relaxed));
        let latency = match (estimate, in_flight) {
            (0.0, 0) => return 0.0,
            (0.0, _) => UNKNOWN_NANOS,
            _ => estimate * fading(at, tick(now)),
        };
        f64::from(latency) * (f64::from(in_flight) + 1.0)
    }
}

#[allow(clippy::cast_possible_truncation)] // Wraps, and is only ever subtracted.
fn tick(now: Nanos) -> u32 {
    (now >> TICK_SHIFT) as u32
}

fn fading(at: u32, now: u32) -> f32 {
    // Another thread may have written a later time; then nothing has faded yet.
    let elapsed = now.wrapping_sub(at);
    if elapsed > u32::MAX / 2 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss)]
    let nanos = elapsed as f32 * (1u32 << TICK_SHIFT) as f32;
    (-nanos / DECAY_NANOS).exp()
}

fn pack(estimate: f32, at: u32) -> u64 {
    u64::from(estimate.to_bits()) << 32 | u64::from(at)
}

#[allow(clippy::cast_possible_truncation)] // The two halves.
fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: Nanos = 1_000_000;
    const SECOND: Nanos = 1_000 * MILLI;

    #[test]
    fn a_peak_shows_at_once_and_fades() {
        let ewma = PeakEwma::default();
        ewma.observe(10 * MILLI, SECOND);
        ewma.observe(500 * MILLI, SECOND);
        assert!((ewma.estimate(SECOND) - 500e6).abs() < 1e3);
        let later = ewma.estimate(11 * SECOND);
        assert!((later - 500e6 / std::f32::consts::E).abs() < 1e6, "{later}");
    }

    #[test]
    fn a_fast_failure_does_not_look_fast() {
        let ewma = PeakEwma::default();
        ewma.observe(50 * MILLI, SECOND);
        ewma.observe_failure(1, SECOND);
        assert!(ewma.estimate(SECOND) > 900e6);
    }

    #[test]
    fn an_unknown_endpoint_gets_one_request_to_show_itself() {
        let ewma = PeakEwma::default();
        assert!(ewma.cost(0, SECOND) < 1.0);
        assert!(ewma.cost(1, SECOND) > 1e9);
    }

    #[test]
    fn many_quick_answers_within_one_tick_do_not_stall_the_estimate() {
        let ewma = PeakEwma::default();
        ewma.observe(100 * MILLI, SECOND);
        for step in 0..200_000 {
            ewma.observe(MILLI, SECOND + step * 300_000);
        }
        assert!(ewma.estimate(61 * SECOND) < 5e6, "{}", ewma.estimate(61 * SECOND));
    }

    proptest! {
        #[test]
        fn the_estimate_stays_between_nothing_and_the_highest_observation(
            observations in prop::collection::vec((1u64..10 * SECOND, 0u64..20 * SECOND), 1..100)
        ) {
            let ewma = PeakEwma::default();
            let mut now = SECOND;
            let mut highest = 0;
            for (latency, wait) in observations {
                now += wait;
                highest = highest.max(latency);
                ewma.observe(latency, now);
                let estimate = f64::from(ewma.estimate(now));
                prop_assert!(estimate >= 0.99 * latency.min(highest) as f64 || estimate > 0.0);
                prop_assert!(estimate <= highest as f64 * 1.001);
            }
        }
    }
}
