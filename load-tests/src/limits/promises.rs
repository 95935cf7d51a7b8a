//! Which promises were kept, and which were broken.

use std::ops::Range;

use serde::Serialize;

use super::{
    Micros,
    events::{By, Event},
    judgement::{Figures, ideal},
    outcome::{Outcome, Row, Seen},
    scenario::{Fault, Limit, Promise, Scenario},
    seconds,
    stalls::within,
};

/// One promise: what was measured, and what was allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub what: String,
    pub measured: String,
    pub bound: String,
    pub kept: bool,
}

/// Requests wait for Redis no longer than this, in milliseconds.
const LONGEST_WAIT_MS: f64 = 10.0;

/// What takes less than this, in microseconds, did not wait for a Redis that is away.
const WAITED: Micros = 2_000;

/// In microseconds: half of what a request waits for Redis.
const STALL: Micros = 4_000;

/// After this, in microseconds, a gateway does without a Redis that is away.
const SETTLED_AFTER: Micros = 100_000;

/// After this, in microseconds, a gateway has what others no longer need.
const SHIFTED_AFTER: Micros = SECOND;

const SECOND: Micros = 1_000_000;

/// After this, in microseconds, limits are exact again once Redis is back.
const EXACT_AFTER: Micros = 2_000_000;

/// Of what was seen: the scenario's own promises, and those that always hold.
pub fn checks(
    scenario: &Scenario,
    seen: &Seen,
    by_tenant: &[Vec<&Event>],
    outcome: &Outcome,
) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (row, events) in outcome.rows.iter().zip(by_tenant) {
        checks.extend(failures(scenario, row));
        checks.extend(quota(row));
        let Some(limit) = row.limit else { continue };
        checks.extend(over_admission(scenario, seen, row, limit));
        for promise in &scenario.promises {
            checks.extend(promised(*promise, seen, row, limit, events, outcome)?);
        }
        if let Some(fault) = scenario.fault {
            checks.extend(after_fault(fault, seen, row, limit, events)?);
        }
    }
    Ok(checks)
}

fn check(row: &Row, what: &str, measured: String, bound: String, kept: bool) -> Check {
    Check { what: format!("{}: {what}", row.tenant), measured, bound, kept }
}

fn failures(scenario: &Scenario, row: &Row) -> Option<Check> {
    // Requests in flight end with the gateway that is killed, whatever it did with limits.
    if matches!(scenario.fault, Some(Fault::NodeKilled { .. })) {
        return None;
    }
    let failed = row.figures.failed;
    Some(check(row, "requests that failed", failed.to_string(), "0".to_owned(), failed == 0))
}

/// Whatever happens, a quota is never exceeded; and nearly all of it can be used.
fn quota(row: &Row) -> Vec<Check> {
    let Some(quota) = row.quota else { return Vec::new() };
    let (admitted, asked) = (row.figures.admitted, row.figures.requests);
    let due = 0.97 * quota.min(asked) as f64;
    vec![
        check(row, "admitted of the quota", admitted.to_string(), format!("{quota} at most"), admitted <= quota),
        check(
            row,
            "use of the quota",
            format!("{admitted} of {asked} asked"),
            "97 % at least".to_owned(),
            admitted as f64 >= due,
        ),
    ]
}

fn over_admission(scenario: &Scenario, seen: &Seen, row: &Row, limit: Limit) -> Vec<Check> {
    let figures = &row.figures;
    let away = || seen.from.zip(seen.until).map_or(0.0, |(from, until)| seconds(until - from));
    // What is documented for nodes that Redis is out of reach of: one of them, and all.
    let bound = match scenario.fault {
        Some(Fault::Cut { .. }) => {
            let share = limit.per_second() * away() / seen.nodes as f64;
            Some((limit.burst as f64 + share, "B + R·W·k/N"))
        }
        Some(Fault::RedisAway { .. } | Fault::FailedOver { .. }) => Some((seen.nodes as f64, "a token for each node")),
        _ => None,
    };
    if let Some((bound, formula)) = bound {
        return vec![check(
            row,
            "over-admission, cut off",
            format!("{:.2} tokens", figures.over),
            format!("{formula}: {bound:.0} at most"),
            figures.over <= bound,
        )];
    }
    let windows = figures.over_in_windows.into_iter().map(|over| over.max(0.0));
    let worst = windows.fold(figures.over, f64::max);
    vec![check(row, "over-admission, all windows", format!("{worst:.2} tokens"), "0".to_owned(), worst <= 0.0)]
}

fn promised(
    promise: Promise,
    seen: &Seen,
    row: &Row,
    limit: Limit,
    events: &[&Event],
    outcome: &Outcome,
) -> anyhow::Result<Option<Check>> {
    let figures = &row.figures;
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    Ok(match promise {
        Promise::Used(least) => Some(check(
            row,
            "admitted, of the ideal bucket's",
            percent(figures.used()),
            format!("{} at least", percent(least)),
            // One token may have come when nobody asked any more.
            (figures.admitted + 1) as f64 >= least * figures.ideal as f64,
        )),
        Promise::Exact => Some(check(
            row,
            "admitted",
            figures.admitted.to_string(),
            format!("{} exactly", figures.ideal),
            figures.admitted == figures.ideal,
        )),
        Promise::NothingRefused => {
            let (wrong, told) = refused(seen, events);
            Some(check(row, "refused below the limit", told, "0".to_owned(), wrong == 0))
        }
        Promise::RefusedAtMost(share) => {
            let (wrong, told) = refused(seen, events);
            // What came too close together for any bucket, since the machine or the driver was late.
            let due = figures.requests - figures.ideal;
            let bound = format!("{due}, and {} of {} at most", percent(share), figures.ideal);
            let allowed = due as f64 + share * figures.ideal as f64;
            Some(check(row, "refused below the limit", told, bound, wrong as f64 <= allowed))
        }
        Promise::Local => (limit.per_second() >= 2.0 * seen.nodes as f64).then(|| {
            let bound = "95 % at least".to_owned();
            check(row, "decided with a lease", percent(figures.by_lease), bound, figures.by_lease >= 0.95)
        }),
        Promise::FewExchanges => outcome.exchanges_per_second.map(|measured| {
            let what = "exchanges per node, tenant and second";
            check(row, what, format!("{measured:.3}"), "1 at most".to_owned(), measured <= 1.0)
        }),
        Promise::FiveInThousand => outcome.exchanges_per_thousand.map(|measured| {
            let what = "exchanges per 1,000 admitted";
            check(row, what, format!("{measured:.2}"), "5 at most".to_owned(), measured <= 5.0)
        }),
        Promise::RefusedAtNoCost => seen.after.map(|(after, _)| {
            let exchanges = after.exchanges.saturating_sub(seen.before.exchanges);
            // Each token is a reason to ask, for each node: the time until it is over then. And two to begin with.
            let untils = seen.nodes as f64 * (limit.per_second() * outcome.seconds + 2.0);
            let bound = figures.admitted as f64 + untils;
            let what = "exchanges while refused";
            let allowed = format!("{bound:.0}: one per admitted request and time told");
            check(row, what, exchanges.to_string(), allowed, exchanges as f64 <= bound)
        }),
        Promise::UsedUpAtNoCost => seen.steady.zip(seen.after).map(|((steady, _), (after, _))| {
            let exchanges = after.exchanges.saturating_sub(steady.exchanges);
            let allowed = format!("{}: one per gateway and time told", seen.nodes);
            check(
                row,
                "exchanges once the quota is used up",
                exchanges.to_string(),
                allowed,
                exchanges <= seen.nodes as u64,
            )
        }),
        Promise::UsedAfterShift(shift) => {
            let from = seen.began + super::micros(shift) + SHIFTED_AFTER;
            let (before, after): (Vec<&Event>, Vec<&Event>) =
                events.iter().copied().partition(|event| event.came < from);
            let bucket = limit.bucket()?;
            let could = ideal(events, &bucket).saturating_sub(ideal(&before, &bucket)).max(1);
            let did = after.iter().filter(|event| event.admitted).count();
            let used = did as f64 / could as f64;
            let what = "admitted from 1 s after the shift on";
            Some(check(row, what, percent(used), "99.00 % at least".to_owned(), used >= 0.99))
        }
    })
}

fn after_fault(fault: Fault, seen: &Seen, row: &Row, limit: Limit, events: &[&Event]) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    match (fault, seen.from, seen.until) {
        (
            Fault::RedisAway { .. } | Fault::FailedOver { .. } | Fault::Cut { .. } | Fault::RedisRestarted { .. },
            Some(from),
            Some(until),
        ) => {
            let own_wait = |event: &Event| {
                let waited = event.limit.map_or(0, |(_, waited)| waited);
                waited.saturating_sub(within(&seen.stalls, event.came, event.came + waited))
            };
            let wait = events.iter().copied().map(own_wait).max().unwrap_or(0) as f64 / 1000.0;
            checks.push(check(
                row,
                "longest wait, stalls of the machine taken off",
                format!("{wait:.1} ms"),
                format!("{LONGEST_WAIT_MS} ms"),
                wait <= LONGEST_WAIT_MS,
            ));
            let away = match fault {
                Fault::RedisAway { back, .. } | Fault::Cut { back, .. } => Some(from..seen.began + super::micros(back)),
                Fault::FailedOver { .. } => Some(from..until),
                _ => None,
            };
            if let Some(away) = away {
                let affected = |event: &Event| !matches!(fault, Fault::Cut { .. }) || event.node + 1 == seen.nodes;
                let waited = events
                    .iter()
                    .filter(|event| affected(event) && away.contains(&event.earliest) && own_wait(event) >= WAITED);
                let settled = waited.map(|event| event.earliest - from).max().unwrap_or(0);
                checks.push(check(
                    row,
                    "last request that waited for Redis in vain",
                    format!("{} ms after", settled / 1000),
                    "100 ms".to_owned(),
                    settled <= SETTLED_AFTER,
                ));
                checks.push(share(row, limit, events, from..until));
            }
            checks.push(exact_again(row, limit, events, until)?);
        }
        (Fault::LimitChanged { to, .. }, Some(from), Some(until)) => {
            let within: Vec<&Event> =
                events.iter().copied().filter(|event| event.earliest >= from && event.latest < until).collect();
            let figures = Figures::of(&within, Some(&to.bucket()?));
            checks.push(check(
                row,
                "over-admission by the lower limit, once all nodes have it",
                format!("{:.2} tokens", figures.over),
                "0".to_owned(),
                figures.over <= 0.0,
            ));
            if let Some((_, raised)) = seen.taken {
                let end = events.last().map_or(raised, |last| last.came);
                let admitted_until = |until: Micros| {
                    events.iter().filter(|event| event.admitted && (raised..=until).contains(&event.came)).count()
                };
                // At once, and for good.
                for (until, share) in [(raised + 2_000_000, 0.75), (end, 0.99)] {
                    let admitted = admitted_until(until);
                    let new = limit.per_second() * seconds(until.saturating_sub(raised));
                    checks.push(check(
                        row,
                        "admitted, of the tokens that come at the higher rate",
                        format!("{admitted} of {new:.1} in {:.0} s", seconds(until.saturating_sub(raised))),
                        format!("{:.0} % at least", share * 100.0),
                        admitted as f64 >= share * new,
                    ));
                }
            }
        }
        _ => {}
    }
    Ok(checks)
}

/// How many were refused, and in words; those apart for which the machine is to blame.
fn refused(seen: &Seen, events: &[&Event]) -> (usize, String) {
    let refused = events.iter().filter(|event| event.refused);
    let (stalled, wrong): (Vec<&Event>, Vec<&Event>) = refused.partition(|event| was_stalled(seen, event));
    let told = match stalled.len() {
        0 => wrong.len().to_string(),
        excused => format!("{}, and {excused} after a stall of the machine", wrong.len()),
    };
    (wrong.len(), told)
}

/// What is promised of the time after a shift as a whole, told of the worst second of it.
pub fn worst_seconds(
    scenario: &Scenario,
    seen: &Seen,
    by_tenant: &[Vec<&Event>],
    rows: &[Row],
) -> anyhow::Result<Vec<String>> {
    let mut told = Vec::new();
    for promise in &scenario.promises {
        let Promise::UsedAfterShift(shift) = promise else { continue };
        let shift = seen.began + super::micros(*shift);
        let end = seen.began + super::micros(scenario.lasts);
        for (row, events) in rows.iter().zip(by_tenant) {
            let Some(limit) = row.limit else { continue };
            let bucket = limit.bucket()?;
            let ideal_until = |until| ideal(&events[..events.partition_point(|event| event.came < until)], &bucket);
            let admitted_in = |second: Micros| {
                let within = second..second + SECOND;
                events.iter().filter(|event| event.admitted && within.contains(&event.came)).count()
            };
            let seconds = (shift + SHIFTED_AFTER..=end - SECOND).step_by(1_000_000).map(|second| {
                (admitted_in(second), ideal_until(second + SECOND) - ideal_until(second), second - shift)
            });
            let share = |(did, could, _): &(usize, u64, Micros)| *did as f64 / (*could).max(1) as f64;
            if let Some((did, could, after)) = seconds.min_by(|a, b| share(a).total_cmp(&share(b))) {
                told.push(format!(
                    "{}: in the worst second after the shift, from {:.0} s after it on, {did} were admitted of {could}",
                    row.tenant,
                    super::seconds(after)
                ));
            }
        }
    }
    Ok(told)
}

/// The gateway took Redis for slow when it was the machine that stood still: it had the time that a request waits for
/// Redis, and half of that is enough to make it miss an answer.
fn was_stalled(seen: &Seen, event: &Event) -> bool {
    let alone = matches!(event.limit, Some((By::Alone, _)));
    let stalled = within(&seen.stalls, event.came.saturating_sub(SETTLED_AFTER), event.latest);
    alone && stalled >= STALL
}

/// While Redis is away, each node that cannot reach it goes on with its share.
fn share(row: &Row, limit: Limit, events: &[&Event], away: Range<Micros>) -> Check {
    let away = away.start + SETTLED_AFTER..away.end;
    let admitted = events.iter().filter(|event| event.admitted && away.contains(&event.came)).count();
    let asked = events.iter().filter(|event| away.contains(&event.came)).count();
    let due = (limit.per_second() * seconds(away.end - away.start)).min(asked as f64);
    check(
        row,
        "admitted meanwhile, of R · W or all that came",
        format!("{admitted} of {due:.0}"),
        "90 % at least".to_owned(),
        admitted as f64 >= 0.9 * due,
    )
}

/// From two seconds after its return on, no window has too much.
fn exact_again(row: &Row, limit: Limit, events: &[&Event], back: Micros) -> anyhow::Result<Check> {
    let later: Vec<&Event> = events.iter().copied().filter(|event| event.earliest >= back + EXACT_AFTER).collect();
    let over = Figures::of(&later, Some(&limit.bucket()?)).over;
    let what = "over-admission from 2 s after its return on";
    Ok(check(row, what, format!("{over:.2} tokens"), "0".to_owned(), over <= 0.0))
}
