//! What one exact bucket would have done with the same requests: what tests and the proof judge by.

use crate::terms::Bucket;

/// Something that happened: when, in microseconds of any clock, and how many tokens it was about.
pub type Event = (u64, u64);

/// By how many tokens admissions were too many, in the worst of all windows; 0 if never. Sorts them.
///
/// In no window may more be admitted than burst and rate · window. That holds for all windows exactly if a
/// bucket that is full at the beginning never goes below zero.
pub fn excess(admitted: &mut [Event], bucket: &Bucket) -> f64 {
    admitted.sort_unstable();
    let mut worst = 0;
    replay(admitted, bucket, |level, cost| {
        worst = worst.min(level - cost);
        level - cost
    });
    -worst as f64 / unit(bucket) as f64
}

/// By how many tokens admissions were too many in windows of this length, at worst; negative: so many more
/// would have been right in the fullest of them. Sorts them.
pub fn excess_in(admitted: &mut [Event], bucket: &Bucket, window_micros: u64) -> f64 {
    admitted.sort_unstable();
    let allowed = bucket.burst() as f64 + rate(bucket) as f64 * window_micros as f64 / unit(bucket) as f64;
    let (mut from, mut within, mut most) = (0, 0_u64, 0_u64);
    for (to, (at, cost)) in admitted.iter().enumerate() {
        within += cost;
        while admitted[from].0 + window_micros < *at && from < to {
            within -= admitted[from].1;
            from += 1;
        }
        most = most.max(within);
    }
    most as f64 - allowed
}

/// How many tokens an ideal bucket would have admitted of these requests. Sorts them.
pub fn ideal(arrived: &mut [Event], bucket: &Bucket) -> u64 {
    arrived.sort_unstable();
    let mut admitted = 0;
    replay(arrived, bucket, |level, cost| {
        if level < cost {
            return level;
        }
        admitted += u64::try_from(cost / unit(bucket)).unwrap_or_default();
        level - cost
    });
    admitted
}

/// Calls `then` with the level before each event and its cost, both in units; it says what is left.
fn replay(events: &[Event], bucket: &Bucket, mut then: impl FnMut(i128, i128) -> i128) {
    let capacity = i128::from(bucket.burst()) * unit(bucket);
    let (mut level, mut before) = (capacity, events.first().map_or(0, |first| first.0));
    for (at, cost) in events {
        let come = i128::from(at - before) * rate(bucket);
        level = then((level + come).min(capacity), i128::from(*cost) * unit(bucket));
        before = *at;
    }
}

fn unit(bucket: &Bucket) -> i128 {
    i128::from(bucket.unit())
}

/// Units per microsecond.
fn rate(bucket: &Bucket) -> i128 {
    i128::from(bucket.units_per_micro())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    /// 10 a second, 5 at once.
    fn bucket() -> Bucket {
        Bucket::new(10, Duration::from_secs(1), 5).unwrap()
    }

    #[test]
    fn what_a_bucket_admits_is_never_too_much() {
        let mut arrived: Vec<Event> = (0..1000).map(|n| (n * 10_000, 1)).collect();
        assert_eq!(ideal(&mut arrived, &bucket()), 5 + 99);
        let mut admitted: Vec<Event> = (0..5).map(|_| (0, 1)).chain((1..=99).map(|n| (n * 100_000, 1))).collect();
        assert!(excess(&mut admitted, &bucket()) <= 0.0);
        admitted.push((5_000_000, 1));
        assert!((excess(&mut admitted, &bucket()) - 1.0).abs() < 1e-9);
        assert!((excess_in(&mut admitted, &bucket(), 10_000_000) - 0.0).abs() < 1e-9);
    }

    #[test]
    fn the_worst_window_is_found_wherever_it_is() {
        let mut admitted: Vec<Event> = vec![(0, 1), (60_000_000, 4), (60_100_000, 4), (120_000_000, 5)];
        assert!((excess(&mut admitted, &bucket()) - 2.0).abs() < 1e-9);
        assert!((excess_in(&mut admitted, &bucket(), 100_000) - 2.0).abs() < 1e-9);
    }
}
