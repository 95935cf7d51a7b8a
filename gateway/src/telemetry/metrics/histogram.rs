//! Latency histograms with fixed, log-linear buckets: 20 to a decade from 10 µs to 100 s.
//!
//! Neighbouring bounds are at most a sixth apart, so a quantile read from them is right to within a
//! few percent, and the bounds are round decimal numbers: "p99 below 100 ms" is a bucket's edge, not
//! an interpolation. Finding the bucket takes one table look-up and a comparison or two.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const STEPS: [u64; 20] =
    [100, 110, 120, 135, 150, 175, 200, 225, 250, 275, 300, 350, 400, 450, 500, 550, 600, 700, 800, 900];
const DECADES: usize = 7;
const LOWEST_NANOS: u64 = 10_000;

/// Upper bounds in nanoseconds, inclusive, ascending.
pub(super) const BOUNDS: [u64; STEPS.len() * DECADES + 1] = {
    let mut bounds = [0; STEPS.len() * DECADES + 1];
    let mut decade = LOWEST_NANOS;
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = STEPS[at % STEPS.len()] * decade / STEPS[0];
        at += 1;
        if at % STEPS.len() == 0 {
            decade *= 10;
        }
    }
    bounds
};

/// The bounds that are shown where there is one histogram for each tenant: 500 µs to 30 s.
pub(super) const COARSE_BOUNDS: [u64; 35] = {
    const COARSE_STEPS: [u64; 8] = [100, 150, 200, 250, 300, 400, 500, 700];
    let mut bounds = [0; 35];
    bounds[0] = 500_000;
    let mut decade = 1_000_000;
    let mut at = 0;
    while at < 4 * COARSE_STEPS.len() {
        bounds[1 + at] = COARSE_STEPS[at % COARSE_STEPS.len()] * decade / COARSE_STEPS[0];
        at += 1;
        if at % COARSE_STEPS.len() == 0 {
            decade *= 10;
        }
    }
    bounds[33] = 10_000_000_000;
    bounds[34] = 30_000_000_000;
    bounds
};

/// One bucket for each bound, and one for what lies above all of them.
pub(super) const BUCKETS: usize = BOUNDS.len() + 1;

/// Values fall into cells by their highest bit and the three below it; a cell knows the first bucket
/// that any of its values can be in.
const CELLS: usize = 64 * 8;
const FIRST_BUCKET: [u8; CELLS] = {
    let mut first = [0; CELLS];
    let mut cell = 0;
    while cell < CELLS {
        let octave = cell / 8;
        let lowest = if octave < 3 { 1 << octave } else { (8 + (cell % 8) as u64) << (octave - 3) };
        let mut bucket = 0;
        while bucket < BOUNDS.len() && BOUNDS[bucket] < lowest {
            bucket += 1;
        }
        #[allow(clippy::cast_possible_truncation, reason = "there are fewer than 256 buckets")]
        {
            first[cell] = bucket as u8;
        }
        cell += 1;
    }
    first
};

fn bucket_of(nanos: u64) -> usize {
    let octave = 63 - (nanos | 1).leading_zeros() as usize;
    #[allow(clippy::cast_possible_truncation, reason = "three bits are left")]
    let below = if octave < 3 { 0 } else { (nanos >> (octave - 3) & 7) as usize };
    let mut bucket = usize::from(FIRST_BUCKET[octave * 8 + below]);
    while bucket < BOUNDS.len() && nanos > BOUNDS[bucket] {
        bucket += 1;
    }
    bucket
}

/// Counts durations. Recording is wait-free: two relaxed additions.
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_nanos: AtomicU64::new(0) }
    }

    pub(super) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Only while nobody records.
    pub(super) fn reset(&self) {
        for count in &self.buckets {
            count.store(0, Ordering::Relaxed);
        }
        self.sum_nanos.store(0, Ordering::Relaxed);
    }
}

/// The sum of several histograms at one moment.
#[derive(Debug, Clone)]
pub(super) struct HistogramSum {
    pub(super) buckets: [u64; BUCKETS],
    pub(super) sum_nanos: u64,
}

impl HistogramSum {
    pub(super) const fn new() -> Self {
        Self { buckets: [0; BUCKETS], sum_nanos: 0 }
    }

    pub(super) fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(histogram.sum_nanos.load(Ordering::Relaxed));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Number of values up to each of `bounds` (in nanoseconds), which must be among [`BOUNDS`].
    pub(super) fn cumulative<'a>(&'a self, bounds: &'a [u64]) -> impl Iterator<Item = (u64, u64)> + 'a {
        let mut counted = 0;
        let mut bucket = 0;
        bounds.iter().map(move |bound| {
            while bucket < BOUNDS.len() && BOUNDS[bucket] <= *bound {
                counted += self.buckets[bucket];
                bucket += 1;
            }
            (*bound, counted)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_rise_by_a_sixth_at_most_and_meet_round_numbers() {
        for pair in BOUNDS.windows(2) {
            assert!(pair[0] < pair[1] && pair[1] * 6 <= pair[0] * 7, "{pair:?}");
        }
        assert_eq!((BOUNDS[0], BOUNDS[BOUNDS.len() - 1]), (10_000, 100_000_000_000));
        assert!(COARSE_BOUNDS.contains(&100_000_000), "100 ms");
        assert!(COARSE_BOUNDS.is_sorted() && COARSE_BOUNDS.iter().all(|bound| BOUNDS.contains(bound)));
    }

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        for (index, bound) in BOUNDS.into_iter().enumerate() {
            assert_eq!((bucket_of(bound), bucket_of(bound + 1)), (index, index + 1));
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BOUNDS.len()));
    }

    #[test]
    fn a_p99_read_from_the_buckets_is_right_within_a_few_percent() {
        let histogram = Histogram::new();
        for value in 1..=10_000_u64 {
            histogram.record(Duration::from_micros(value * value / 100));
        }
        let mut sum = HistogramSum::new();
        sum.add(&histogram);
        let exact = 9_900.0 * 9_900.0 / 100.0 * 1e3;
        let (mut below, mut read) = ((0_u64, 0_u64), 0.0);
        for (bound, count) in sum.cumulative(&BOUNDS) {
            if count >= 9_900 {
                let part = (9_900 - below.1) as f64 / (count - below.1) as f64;
                read = below.0 as f64 + part * (bound - below.0) as f64;
                break;
            }
            below = (bound, count);
        }
        assert!((read / exact - 1.0).abs() < 0.03, "read {read}, exact {exact}");
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_plain_search(nanos in prop_oneof![any::<u64>(), 0..200_000_000_000_u64]) {
            prop_assert_eq!(bucket_of(nanos), BOUNDS.partition_point(|bound| *bound < nanos));
        }

        #[test]
        fn nothing_is_lost(values in prop::collection::vec(0..200_000_000_000_u64, 0..50)) {
            let histogram = Histogram::new();
            for nanos in &values {
                histogram.record(Duration::from_nanos(*nanos));
            }
            let mut sum = HistogramSum::new();
            sum.add(&histogram);
            prop_assert_eq!(sum.count(), values.len() as u64);
            prop_assert_eq!(sum.sum_nanos, values.iter().sum::<u64>());
            for (bound, count) in sum.cumulative(&BOUNDS) {
                prop_assert_eq!(count, values.iter().filter(|value| **value <= bound).count() as u64);
            }
        }
    }
}
