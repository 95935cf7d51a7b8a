//! The table, and whether the promise was kept.

use std::{fmt::Write, time::Duration};

use super::run::Measured;

/// Half of all changes are enforced on every node within this.
pub const PROMISED_HALF: Duration = Duration::from_millis(20);

/// And of a hundred changes all but one.
pub const PROMISED_MOST: Duration = Duration::from_millis(50);

#[must_use]
pub fn text(measured: &Measured) -> String {
    let mut text = format!("{:<44}{:>8}{:>9}{:>9}{:>9}\n", "milliseconds", "changes", "p50", "p99", "most");
    for (name, times) in [
        ("change enforced on every node", &measured.enforced),
        ("change answered", &measured.answered),
        ("change answered with ?wait=applied", &measured.waited),
    ] {
        let of = |share| percentile(times, share).as_secs_f64() * 1000.0;
        let (count, half, most, all) = (times.len(), of(0.5), of(0.99), of(1.0));
        let _ = writeln!(text, "{name:<44}{count:>8}{half:>9.1}{most:>9.1}{all:>9.1}");
    }
    let _ = writeln!(text, "answers to those who waited that were not true: {}", measured.untrue);
    text
}

#[must_use]
pub fn kept(measured: &Measured) -> bool {
    measured.untrue == 0
        && percentile(&measured.enforced, 0.5) <= PROMISED_HALF
        && percentile(&measured.enforced, 0.99) <= PROMISED_MOST
}

/// The time within which this share of all were.
fn percentile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of times")]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_by_nearly_all() {
        let times = |slow: usize| {
            let time = |number: usize| Duration::from_millis(if number < slow { 400 } else { 3 });
            (0..1000).map(time).collect::<Vec<_>>()
        };
        assert_eq!(percentile(&times(10), 0.99), Duration::from_millis(3));
        assert!(kept(&Measured { enforced: times(10), ..Measured::default() }));
        assert!(!kept(&Measured { enforced: times(11), ..Measured::default() }));
        assert!(!kept(&Measured { enforced: times(0), untrue: 1, ..Measured::default() }));
    }
}
