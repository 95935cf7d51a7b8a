//! What became of one scenario: what was seen, and in figures.

use anyhow::Context;
use serde::Serialize;

use super::{
    Micros,
    cluster::Counted,
    driver::Answered,
    events::Event,
    judgement::{self, Figures},
    promises::{self, Check},
    scenario::{CROWD_RATE, Fault, Limit, Scenario, Tenant},
    seconds,
    stalls::Stall,
};

/// What became of one scenario.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub name: &'static str,
    pub about: &'static str,
    pub nodes: usize,
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// For a thousand admitted requests of limited tenants, while traffic went its way; unknown where it did not.
    pub exchanges_per_thousand: Option<f64>,
    /// For each gateway, tenant and second, while traffic went its way.
    pub exchanges_per_second: Option<f64>,
    /// Scripts that Redis ran, heartbeats included.
    pub scripts_run: Option<u64>,
    /// The machine had no processor to spare: in all, and at a time, in milliseconds.
    pub stalled_ms: f64,
    pub longest_stall_ms: f64,
    /// One in a hundred requests was sent at least so much later than planned.
    pub slip_p99_ms: f64,
    pub checks: Vec<Check>,
    /// What happened, and when, in seconds.
    pub happened: Vec<(f64, String)>,
    pub remarks: Vec<String>,
}

/// One tenant, or all of a crowd.
#[derive(Debug, Serialize)]
pub struct Row {
    pub tenant: String,
    pub limit: Option<Limit>,
    pub quota: Option<u64>,
    /// Requests a second that were asked for.
    pub rate: f64,
    pub figures: Figures,
    /// What clients waited longer than those of the unlimited tenant.
    pub added_p50_ms: Option<f64>,
    pub added_p99_ms: Option<f64>,
    /// In each second: admitted and refused.
    pub by_second: Vec<(u64, u64)>,
}

impl Outcome {
    pub(super) fn of(
        scenario: &Scenario,
        tenants: &[Tenant],
        seen: &Seen,
        answered: &[Answered],
        (scripts_run, happened, remarks): (Option<u64>, Vec<(f64, String)>, Vec<String>),
    ) -> anyhow::Result<Self> {
        let mut by_tenant: Vec<Vec<&Event>> = vec![Vec::new(); tenants.len()];
        for event in &seen.events {
            by_tenant[event.tenant].push(event);
        }
        let named = scenario.tenants.len();
        let mut rows = Vec::new();
        for (tenant, events) in tenants.iter().zip(&by_tenant).take(named) {
            rows.push(Row::of(tenant, events, seen.began)?);
        }
        if tenants.len() > named {
            rows.push(Row::of_crowd(&tenants[named..], &by_tenant[named..], seen.began)?);
        }
        let unlimited = rows
            .iter()
            .find(|row| row.limit.is_none() && row.quota.is_none())
            .map(|row| (row.figures.p50_ms, row.figures.p99_ms));
        for row in rows.iter_mut().filter(|row| row.limit.is_some()) {
            row.added_p50_ms = unlimited.map(|(p50, _)| row.figures.p50_ms - p50);
            row.added_p99_ms = unlimited.map(|(_, p99)| row.figures.p99_ms - p99);
        }
        let limited = rows.iter().filter(|row| row.limit.is_some());
        let exchanges_per_thousand = seen.steady.zip(seen.after).map(|((steady, from), (after, to))| {
            let within = |event: &&Event| event.admitted && (from..to).contains(&event.came);
            let of_limited = |event: &&Event| tenants[event.tenant].limit.is_some();
            let admitted = seen.events.iter().filter(within).filter(of_limited).count().max(1);
            after.exchanges.saturating_sub(steady.exchanges) as f64 * 1000.0 / admitted as f64
        });
        // Of a crowd most tenants are asked for nothing in any second.
        let known = seen.steady.zip(seen.after).filter(|_| tenants.len() == named);
        let exchanges_per_second = known.map(|((steady, from), (after, to))| {
            let each = seen.nodes as f64 * limited.count() as f64;
            after.exchanges.saturating_sub(steady.exchanges) as f64 / each / seconds(to - from)
        });
        let mut slips: Vec<f64> = answered.iter().map(|one| one.slip as f64 / 1000.0).collect();
        slips.sort_unstable_by(f64::total_cmp);
        let mut outcome = Self {
            name: scenario.name,
            about: scenario.about,
            nodes: seen.nodes,
            seconds: scenario.lasts.as_secs_f64(),
            rows,
            exchanges_per_thousand,
            exchanges_per_second,
            scripts_run,
            stalled_ms: seen.stalls.iter().map(|stall| (stall.1 - stall.0) as f64 / 1000.0).sum(),
            longest_stall_ms: seen.stalls.iter().map(|stall| (stall.1 - stall.0) as f64 / 1000.0).fold(0.0, f64::max),
            slip_p99_ms: judgement::quantile(&slips, 0.99),
            checks: Vec::new(),
            happened,
            remarks,
        };
        let alone: u64 = outcome.rows.iter().map(|row| row.figures.alone).sum();
        if alone > 0 && matches!(scenario.fault, None | Some(Fault::ClocksMoved { .. } | Fault::LimitChanged { .. })) {
            outcome.remarks.push(format!(
                "{alone} decisions were made without Redis although nothing was wrong with it: it, or the gateway itself, \
                 took more than 10 ms. Then each node goes on with its share, as when it is cut off, and the bound is B + R·W·k/N"
            ));
        }
        outcome.checks = promises::checks(scenario, seen, &by_tenant, &outcome)?;
        outcome.remarks.extend(promises::worst_seconds(scenario, seen, &by_tenant, &outcome.rows)?);
        Ok(outcome)
    }

    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.kept)
    }
}

/// Everything that was seen of a scenario; moments by this machine's clock.
#[derive(Debug)]
pub struct Seen {
    pub events: Vec<Event>,
    pub stalls: Vec<Stall>,
    pub began: Micros,
    pub nodes: usize,
    /// When the fault began and ended; how it was seen.
    pub from: Option<Micros>,
    pub until: Option<Micros>,
    /// When a changed limit had been taken by all nodes, both times.
    pub taken: Option<(Micros, Micros)>,
    /// Counters before, when traffic went its way (and when that was), and after.
    pub before: Counted,
    pub steady: Option<(Counted, Micros)>,
    pub after: Option<(Counted, Micros)>,
}

impl Row {
    fn of(tenant: &Tenant, events: &[&Event], began: Micros) -> anyhow::Result<Self> {
        let bucket = tenant.limit.map(Limit::bucket).transpose()?;
        Ok(Self {
            tenant: tenant.id.clone(),
            limit: tenant.limit,
            quota: tenant.quota,
            rate: tenant.rate,
            figures: Figures::of(events, bucket.as_ref()),
            added_p50_ms: None,
            added_p99_ms: None,
            by_second: by_second(events.iter().copied(), began),
        })
    }

    /// Each by its own bucket, all together; the worst of them, where worst is what is told.
    fn of_crowd(tenants: &[Tenant], events: &[Vec<&Event>], began: Micros) -> anyhow::Result<Self> {
        let all: Vec<&Event> = events.iter().flatten().copied().collect();
        let mut figures = Figures::of(&all, None);
        figures.ideal = 0;
        figures.over_in_windows = [f64::MIN; 3];
        let mut seen = 0;
        for (tenant, events) in tenants.iter().zip(events).filter(|(_, events)| !events.is_empty()) {
            let bucket = tenant.limit.context("no limit")?.bucket()?;
            let one = Figures::of(events, Some(&bucket));
            figures.ideal += one.ideal;
            figures.over = figures.over.max(one.over);
            figures.over_at_face_value = figures.over_at_face_value.max(one.over_at_face_value);
            figures.refused_with_tokens += one.refused_with_tokens;
            for (worst, own) in figures.over_in_windows.iter_mut().zip(one.over_in_windows) {
                *worst = worst.max(own);
            }
            seen += 1;
        }
        let limit = tenants.first().and_then(|tenant| tenant.limit);
        let by_second = by_second(all.into_iter(), began);
        let tenant = format!("{seen} of {} tenants", tenants.len());
        Ok(Self {
            tenant,
            limit,
            quota: None,
            rate: CROWD_RATE,
            figures,
            added_p50_ms: None,
            added_p99_ms: None,
            by_second,
        })
    }
}

fn by_second<'a>(events: impl Iterator<Item = &'a Event>, began: Micros) -> Vec<(u64, u64)> {
    let mut seconds = Vec::new();
    for event in events {
        let second = usize::try_from(event.came.saturating_sub(began) / 1_000_000).unwrap_or_default();
        if seconds.len() <= second {
            seconds.resize(second + 1, (0, 0));
        }
        seconds[second].0 += u64::from(event.admitted);
        seconds[second].1 += u64::from(event.refused);
    }
    seconds
}
