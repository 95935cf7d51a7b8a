//! What one exact bucket says to what was admitted.

use std::{cmp::Reverse, collections::BinaryHeap};

use seiketsu_limits::{
    oracle::{self, Event as Moment},
    terms::Bucket,
};
use serde::Serialize;

use super::{
    Micros,
    events::{By, Event},
};

/// Windows that over-admission is told for, in seconds; beside all of them.
pub const WINDOWS: [u64; 3] = [1, 10, 60];

/// What became of the requests of one tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub requests: u64,
    pub admitted: u64,
    pub refused: u64,
    /// Neither of both: 5xx, or no answer.
    pub failed: u64,
    /// What an ideal bucket would have admitted of the same arrivals.
    pub ideal: u64,
    /// Tokens too many in the worst window of 1, 10 and 60 seconds; negative: so many more would have been
    /// right in the fullest one.
    pub over_in_windows: [f64; 3],
    /// Tokens too many in the worst of all windows; 0: never.
    pub over: f64,
    /// The same if each admission is counted at the earliest moment that the log allows.
    pub over_at_face_value: f64,
    /// Refused while an exact bucket, from which the same was admitted, would have had a token. While more is
    /// asked for than there is that is nearly all of them, since some tokens are always on their way to a node.
    pub refused_with_tokens: u64,
    pub by_lease: f64,
    pub alone: u64,
    /// What limits took to decide, in milliseconds: in the worst case, and one in a hundred at least.
    pub wait_max_ms: f64,
    pub wait_p99_ms: f64,
    /// What clients waited for admitted requests, in milliseconds.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Between the earliest and the latest moment of an admission, in milliseconds.
    pub doubt_p50_ms: f64,
    pub doubt_p99_ms: f64,
}

impl Figures {
    /// Of these events, all of one tenant, by this bucket. Without a bucket nothing is too much.
    pub fn of(events: &[&Event], bucket: Option<&Bucket>) -> Self {
        let admitted: Vec<&Event> = events.iter().copied().filter(|event| event.admitted).collect();
        let mut waits: Vec<f64> = events.iter().filter_map(|event| Some(millis(event.limit?.1))).collect();
        let mut latencies: Vec<f64> = admitted.iter().map(|event| millis(event.latency)).collect();
        let mut doubts: Vec<f64> =
            admitted.iter().map(|event| millis(event.latest.saturating_sub(event.earliest))).collect();
        for values in [&mut waits, &mut latencies, &mut doubts] {
            values.sort_unstable_by(f64::total_cmp);
        }
        let count = |what: fn(&Event) -> bool| events.iter().filter(|event| what(event)).count() as u64;
        let decided = count(|event| event.limit.is_some()).max(1);
        let mut figures = Self {
            requests: events.len() as u64,
            admitted: admitted.len() as u64,
            refused: count(|event| event.refused),
            failed: count(|event| !event.admitted && !event.refused),
            ideal: events.len() as u64,
            over_in_windows: [0.0; 3],
            over: 0.0,
            over_at_face_value: 0.0,
            refused_with_tokens: 0,
            by_lease: count(|event| matches!(event.limit, Some((By::Lease, _)))) as f64 / decided as f64,
            alone: count(|event| matches!(event.limit, Some((By::Alone, _)))),
            wait_max_ms: quantile(&waits, 1.0),
            wait_p99_ms: quantile(&waits, 0.99),
            p50_ms: quantile(&latencies, 0.5),
            p99_ms: quantile(&latencies, 0.99),
            doubt_p50_ms: quantile(&doubts, 0.5),
            doubt_p99_ms: quantile(&doubts, 0.99),
        };
        if let Some(bucket) = bucket {
            let mut moments = moments(&admitted, bucket);
            figures.ideal = ideal(events, bucket);
            figures.over = oracle::excess(&mut moments, bucket).max(0.0);
            figures.over_in_windows = WINDOWS.map(|window| oracle::excess_in(&mut moments, bucket, window * 1_000_000));
            let mut earliest: Vec<Moment> = admitted.iter().map(|event| (event.earliest, 1)).collect();
            figures.over_at_face_value = oracle::excess(&mut earliest, bucket).max(0.0);
            figures.refused_with_tokens = refused_with_tokens(&moments, events, bucket);
        }
        figures
    }

    /// Requests that an ideal bucket would have admitted more.
    pub fn refused_wrongly(&self) -> u64 {
        self.ideal.saturating_sub(self.admitted)
    }

    /// Admitted, as a share of what an ideal bucket would have.
    pub fn used(&self) -> f64 {
        self.admitted as f64 / self.ideal.max(1) as f64
    }
}

/// How many of these an ideal bucket would have admitted.
pub fn ideal(events: &[&Event], bucket: &Bucket) -> u64 {
    let mut arrived: Vec<Moment> = events.iter().map(|event| (event.came, 1)).collect();
    oracle::ideal(&mut arrived, bucket)
}

/// When these were admitted. It is known between which moments each was; of all that are possible, those are
/// taken that suit the bucket best, so that what is too much then is too much for certain.
///
/// As soon as there is a token and a request that may have been admitted by then, it was: first the one
/// that must have been first. One that finds none until its latest moment was admitted then all the same.
pub fn moments(admitted: &[&Event], bucket: &Bucket) -> Vec<Moment> {
    let unit = bucket.period().as_micros();
    let (rate, full) = (u128::from(bucket.tokens()), u128::from(bucket.burst()) * unit);
    // In parts of a token; below zero after what was too much.
    let (mut level, mut now) = (i128::try_from(full).unwrap_or(i128::MAX), 0);
    let (unit, rate, full) = (i128::try_from(unit).unwrap_or(1), i128::try_from(rate).unwrap_or(1), level);
    let mut coming: Vec<(Micros, Micros)> =
        admitted.iter().map(|event| (event.earliest, event.latest.max(event.earliest))).collect();
    coming.sort_unstable();
    let mut coming = coming.into_iter().peekable();
    let mut waiting: BinaryHeap<Reverse<Micros>> = BinaryHeap::new();
    let mut moments = Vec::with_capacity(admitted.len());
    loop {
        // The next moment at which something can happen.
        let next_coming = coming.peek().map(|next| next.0);
        let next = match waiting.peek() {
            Some(Reverse(latest)) => {
                let missing = u64::try_from((unit - level).max(0).unsigned_abs().div_ceil(rate.unsigned_abs()));
                let token = missing.map_or(Micros::MAX, |missing| now + missing);
                (*latest).min(token).min(next_coming.unwrap_or(Micros::MAX))
            }
            None => match next_coming {
                Some(next) => next,
                None => return moments,
            },
        };
        if next > now {
            level = (level + i128::from(next - now) * rate).min(full);
            now = next;
        }
        while let Some((_, latest)) = coming.next_if(|next| next.0 <= now) {
            waiting.push(Reverse(latest));
        }
        while let Some(Reverse(latest)) = waiting.peek() {
            if level < unit && *latest > now {
                break;
            }
            waiting.pop();
            level -= unit;
            moments.push((now, 1));
        }
    }
}

/// Refusals at moments at which an exact bucket, from which the same was admitted, has a token.
fn refused_with_tokens(admitted: &[Moment], events: &[&Event], bucket: &Bucket) -> u64 {
    let unit = i128::try_from(bucket.period().as_micros()).unwrap_or(1);
    let (rate, full) = (i128::from(bucket.tokens()), i128::from(bucket.burst()) * unit);
    let mut all: Vec<(Micros, bool)> = admitted.iter().map(|(at, _)| (*at, true)).collect();
    all.extend(events.iter().filter(|event| event.refused).map(|event| (event.earliest, false)));
    all.sort_unstable();
    let (mut level, mut before, mut count) = (full, all.first().map_or(0, |first| first.0), 0);
    for (at, was_admitted) in all {
        level = (level + i128::from(at - before) * rate).min(full);
        before = at;
        if was_admitted {
            level -= unit;
        } else if level >= unit {
            count += 1;
        }
    }
    count
}

/// Of sorted values.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(micros: Micros) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    /// 10 a second, 2 at once.
    fn bucket() -> Bucket {
        Bucket::new(10, Duration::from_secs(1), 2).unwrap()
    }

    pub(crate) fn admitted(earliest: Micros, latest: Micros) -> Event {
        Event {
            tenant: 0,
            node: 0,
            came: earliest,
            earliest,
            latest,
            status: 200,
            admitted: true,
            refused: false,
            limit: Some((By::Lease, 0)),
            sent: earliest,
            latency: latest - earliest,
            logged: true,
        }
    }

    fn over(events: &[Event]) -> f64 {
        Figures::of(&events.iter().collect::<Vec<_>>(), Some(&bucket())).over
    }

    #[test]
    fn what_can_have_been_in_time_is_not_too_much() {
        let second = 1_000_000;
        // Two at once, and a third that may have come when its token did.
        assert!(over(&[admitted(second, second), admitted(second, second), admitted(second, second + 100_000)]) < 1e-9);
        // Or may not: half a token was missing at its latest moment.
        let late = over(&[admitted(second, second), admitted(second, second), admitted(second, second + 50_000)]);
        assert!((late - 0.5).abs() < 1e-9, "{late}");
    }

    #[test]
    fn who_must_be_first_is_first() {
        let events = [admitted(0, 0), admitted(0, 0), admitted(0, 250_000), admitted(50_000, 100_000)];
        assert!(over(&events) < 1e-9);
    }

    #[test]
    fn refusals_count_as_wrong_only_where_there_was_a_token() {
        let mut refused = [admitted(10, 10), admitted(100_000, 100_000), admitted(100_001, 100_001)];
        for event in &mut refused {
            (event.admitted, event.refused) = (false, true);
        }
        let events: Vec<Event> = [admitted(0, 0), admitted(0, 0)].into_iter().chain(refused).collect();
        let figures = Figures::of(&events.iter().collect::<Vec<_>>(), Some(&bucket()));
        assert_eq!((figures.refused, figures.refused_with_tokens), (3, 2));
        assert_eq!((figures.ideal, figures.admitted), (3, 2));
    }
}
