//! The table, and whether the promise was kept.

use std::{fmt::Write, time::Duration};

use super::{costs::Costs, run::Measured};

/// Half of all changes are enforced on every node within this.
pub const PROMISED_HALF: Duration = Duration::from_millis(20);

/// And of a hundred changes all but one.
pub const PROMISED_MOST: Duration = Duration::from_millis(50);

/// A gateway has a whole configuration within this, from its start.
pub const PROMISED_READY: Duration = Duration::from_secs(10);

/// And needs no more memory for it, at any time.
pub const PROMISED_BYTES: u64 = 2 << 30;

/// A change costs a gateway no more processor time.
pub const PROMISED_CPU: Duration = Duration::from_millis(10);

/// No client waits longer for an answer while configuration arrives.
pub const PROMISED_REQUEST: Duration = Duration::from_millis(100);

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
    let slowest = measured.slowest_request.as_secs_f64() * 1000.0;
    let _ = writeln!(text, "slowest answer to a client meanwhile: {slowest:.1} ms");
    let _ = writeln!(text, "slowest changes (which one, ms): {}", slowest_of(&measured.enforced));
    text
}

#[must_use]
pub fn text_of(costs: &Costs) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let rows = [
        ("a gateway is ready with all tenants after", format!("{:.2} s", costs.ready_after.as_secs_f64())),
        ("processor time of a gateway for a change", format!("{:.2} ms", millis(costs.cpu_per_change))),
        ("all tenants anew on every node after", format!("{:.2} s", costs.whole.as_secs_f64())),
        ("slowest answer to a client meanwhile", format!("{:.1} ms", millis(costs.slowest_request))),
        ("most resident memory of a gateway", format!("{} MiB", costs.resident_bytes >> 20)),
    ];
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<44}{value:>17}");
        text
    })
}

#[must_use]
pub fn kept_cheaply(costs: &Costs) -> bool {
    costs.ready_after <= PROMISED_READY
        && costs.cpu_per_change <= PROMISED_CPU
        && costs.slowest_request <= PROMISED_REQUEST
        && costs.resident_bytes <= PROMISED_BYTES
}

#[must_use]
pub fn kept(measured: &Measured) -> bool {
    measured.untrue == 0
        && measured.slowest_request <= PROMISED_REQUEST
        && percentile(&measured.enforced, 0.5) <= PROMISED_HALF
        && percentile(&measured.enforced, 0.99) <= PROMISED_MOST
}

/// The ten slowest, in the order they were made in: whether they come together says what they wait for.
fn slowest_of(times: &[Duration]) -> String {
    let mut all: Vec<(usize, &Duration)> = times.iter().enumerate().collect();
    all.sort_unstable_by_key(|(_, time)| std::cmp::Reverse(*time));
    all.truncate(10);
    all.sort_unstable();
    let told = all.iter().map(|(number, time)| format!("{number}: {}", time.as_millis()));
    told.collect::<Vec<_>>().join(", ")
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
        assert!(!kept(&Measured { slowest_request: Duration::from_millis(101), ..Measured::default() }));
    }

    #[test]
    fn each_cost_can_break_the_promise() {
        assert!(kept_cheaply(&Costs::default()));
        let over = Duration::from_millis(1);
        for costs in [
            Costs { ready_after: PROMISED_READY + over, ..Costs::default() },
            Costs { cpu_per_change: PROMISED_CPU + over, ..Costs::default() },
            Costs { slowest_request: PROMISED_REQUEST + over, ..Costs::default() },
            Costs { resident_bytes: PROMISED_BYTES + 1, ..Costs::default() },
        ] {
            assert!(!kept_cheaply(&costs), "{costs:?}");
        }
    }

    #[test]
    fn the_slowest_changes_stand_in_the_order_they_were_made_in() {
        let times: Vec<Duration> = (0..20).map(|number| Duration::from_millis(number * 7 % 20)).collect();
        let told = slowest_of(&times);
        assert_eq!(told.split(", ").count(), 10);
        assert!(told.starts_with("2: 14, 5: 15"), "{told}");
    }
}
