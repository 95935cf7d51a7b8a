//! Quotas that are nearly used up. All tenants that have used anything are looked at once, part by part, and then those that
//! have used more, or whose limits were changed. Tenants that rules are for are looked at by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use seiketsu_config::values::Id;
use time::OffsetDateTime;

use super::{
    Facts, Findings, MOST_SUBJECTS,
    later::Later,
    walk::{MOST_FAILURES, PART, Range, Tenants, Walk},
};
use crate::store::{
    Store, StoreError,
    alerts::Found,
    usage::{PeriodUse, QuotaUse, Step},
};

const LOOK: Duration = Duration::from_secs(5);

/// How often all are looked at: usage may come late, from a node that was away.
const LOOK_AT_ALL: Duration = Duration::from_mins(30);

/// Usage comes a moment after it was counted.
const SETTLED: i64 = 120;

/// The longest period, and a day for where it begins.
const LONGEST: i64 = 32 * 24 * 3600;

/// If more documents have changed, all are looked at.
const MOST_CHANGES: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Quotas {
    all: All,
    named: Named,
}

impl Quotas {
    /// Takes in what was looked at, and looks at more.
    pub(super) async fn turn(&mut self, store: &Store, now: OffsetDateTime, newest: u64) -> Result<(), StoreError> {
        let named = self.named.turn(store, now).await;
        self.all.turn(store, now, newest).await.and(named)
    }
}

/// All tenants.
#[derive(Debug, Default)]
struct All {
    later: Later<Looked>,
    /// Those that have quotas. None: it is not known yet.
    known: Option<BTreeMap<Id, QuotaUse>>,
    /// Of whom it is not known: they are looked at again.
    unknown: Arc<Tenants>,
    /// The time, and the revision, up to which it is known.
    at: Option<(OffsetDateTime, u64)>,
    whole_at: Option<Instant>,
    /// What has changed since could not be read.
    is_stale: bool,
    is_wanted: bool,
}

#[derive(Debug, Default)]
struct Looked {
    at: Option<(OffsetDateTime, u64)>,
    is_whole: bool,
    /// Who was looked at.
    tenants: Tenants,
    uses: Vec<QuotaUse>,
    /// Who could not be read, and why.
    unknown: Tenants,
    failed: Option<StoreError>,
}

impl All {
    async fn turn(&mut self, store: &Store, now: OffsetDateTime, newest: u64) -> Result<(), StoreError> {
        let failed = match self.later.ended().await {
            Some(Ok(looked)) => self.take_in(looked),
            Some(Err(error)) => {
                self.is_stale = true;
                Some(error)
            }
            None => None,
        };
        if std::mem::take(&mut self.is_wanted) {
            let is_old = self.whole_at.is_none_or(|whole_at| whole_at.elapsed() >= LOOK_AT_ALL);
            let since = self.at.filter(|_| !is_old);
            let over = |of: &QuotaUse| of.day.until <= now || of.month.until <= now;
            let known = self.known.iter().flatten().filter(|(_, of)| over(of));
            let mut again = Tenants::clone(&self.unknown);
            again.names.extend(known.map(|(tenant, _)| tenant.to_string()));
            self.later.begin(LOOK, || look(store.clone(), since, (now, newest), again));
        }
        failed.map_or(Ok(()), Err)
    }

    fn take_in(&mut self, looked: Looked) -> Option<StoreError> {
        let Looked { at, is_whole, tenants, uses, unknown, failed } = looked;
        if is_whole {
            self.whole_at = Some(Instant::now());
        }
        let known = self.known.get_or_insert_default();
        known.retain(|tenant, _| !tenants.has(tenant.as_str()));
        let limited = uses.into_iter().filter(|of| of.day.quota.is_some() || of.month.quota.is_some());
        known.extend(limited.map(|of| (of.tenant.clone(), of)));
        (self.at, self.unknown, self.is_stale) = (at, Arc::new(unknown), false);
        failed
    }
}

/// Looks at these again, and at who has used anything, or was changed, since then; or at all.
async fn look(
    store: Store,
    since: Option<(OffsetDateTime, u64)>,
    to: (OffsetDateTime, u64),
    mut again: Tenants,
) -> Result<Looked, StoreError> {
    let changes = match since {
        Some((_, revision)) => store.changes_since(revision, MOST_CHANGES).await?,
        None => None,
    };
    let mut looked = Looked { at: Some(to), ..Looked::default() };
    match (since, changes) {
        // Whatever else stands beside the tenants, their limits may follow from it.
        (Some((at, _)), Some(changes)) if changes.head.is_none() => {
            looked.at = Some((to.0, changes.to.revision));
            let mut walk = Walk::new(&store, Step::Minute, at.unix_timestamp() - SETTLED, Range::all());
            while let Some((range, names)) = walk.next().await {
                match names {
                    Ok(names) => again.names.extend(names),
                    Err(error) => {
                        again.ranges.push(range);
                        looked.failed = Some(error);
                    }
                }
            }
            let changed = changes.put.into_iter().filter_map(|document| document.tenant).chain(changes.gone);
            again.names.extend(changed.map(|tenant| tenant.to_string()));
        }
        _ => {
            again = Tenants { ranges: vec![Range::all()], ..Tenants::default() };
            looked.is_whole = true;
        }
    }
    looked.read_ranges(&store, &again.ranges, to.0).await;
    let names: Vec<String> = again.names.iter().cloned().collect();
    looked.read_names(&store, &names, to.0).await;
    looked.tenants = again;
    Ok(looked)
}

impl Looked {
    async fn read_ranges(&mut self, store: &Store, ranges: &[Range], now: OffsetDateTime) {
        let mut failures = 0;
        for range in ranges {
            if failures >= MOST_FAILURES {
                self.unknown.ranges.push(range.clone());
                continue;
            }
            let since = now.unix_timestamp() - LONGEST;
            let mut walk = Walk::new(store, Step::Day, since, range.clone()).after_failures(failures);
            while let Some((range, names)) = walk.next().await {
                let read = match names {
                    Ok(names) => store.quota_uses(&names, now).await,
                    Err(error) => Err(error),
                };
                let rest = walk.goes_on(read.is_ok());
                self.unknown.ranges.extend(rest);
                match read {
                    Ok(uses) => self.uses.extend(uses),
                    Err(error) => {
                        self.unknown.ranges.push(range);
                        self.failed.get_or_insert(error);
                    }
                }
            }
            failures = walk.failures();
        }
    }

    async fn read_names(&mut self, store: &Store, names: &[String], now: OffsetDateTime) {
        let mut failures = 0;
        for names in names.chunks(PART) {
            let read = if failures < MOST_FAILURES { Some(store.quota_uses(names, now).await) } else { None };
            if let Some(Ok(uses)) = read {
                self.uses.extend(uses);
                failures = 0;
                continue;
            }
            self.unknown.names.extend(names.iter().cloned());
            if let Some(Err(error)) = read {
                failures += 1;
                self.failed.get_or_insert(error);
            }
        }
    }
}

/// Tenants that rules are for.
#[derive(Debug, Default)]
struct Named {
    later: Later<Looked>,
    looked: Looked,
    wanted: BTreeSet<String>,
}

impl Named {
    async fn turn(&mut self, store: &Store, now: OffsetDateTime) -> Result<(), StoreError> {
        let failed = match self.later.ended().await {
            Some(Ok(mut looked)) => {
                let failed = looked.failed.take();
                self.looked = looked;
                failed
            }
            Some(Err(error)) => {
                self.looked = Looked::default();
                Some(error)
            }
            None => None,
        };
        let names = std::mem::take(&mut self.wanted);
        if names.is_empty() {
            self.looked = Looked::default();
        } else {
            self.later.begin(LOOK, || look_at_named(store.clone(), names, now));
        }
        failed.map_or(Ok(()), Err)
    }

    /// What it uses; nothing, if it is not there. None: it is not known.
    fn of(&mut self, tenant: &Id) -> Option<&[QuotaUse]> {
        self.wanted.insert(tenant.to_string());
        let Looked { tenants, uses, unknown, .. } = &self.looked;
        if !tenants.has(tenant.as_str()) || unknown.has(tenant.as_str()) {
            return None;
        }
        match uses.binary_search_by(|of| of.tenant.cmp(tenant)) {
            Ok(place) => uses.get(place..=place),
            Err(_) => Some(&[]),
        }
    }
}

async fn look_at_named(store: Store, names: BTreeSet<String>, now: OffsetDateTime) -> Result<Looked, StoreError> {
    let mut looked = Looked::default();
    let all: Vec<String> = names.iter().cloned().collect();
    looked.read_names(&store, &all, now).await;
    looked.tenants.names = names;
    Ok(looked)
}

/// None: it is not known yet.
pub(super) fn quota_used(facts: &mut Facts<'_>, percent: u32, tenant: Option<&Id>) -> Option<Findings> {
    let now = facts.now;
    if let Some(tenant) = tenant {
        let of = facts.quotas.named.of(tenant)?;
        let found = of.iter().flat_map(|of| PERIODS.into_iter().filter_map(|period| found(of, period, now, percent)));
        return Some(found.collect::<Vec<_>>().into());
    }
    let all = &mut facts.quotas.all;
    all.is_wanted = true;
    let known = all.known.as_ref().filter(|_| !all.is_stale)?;
    // In the order of what they are about: there are no more alerts than so many.
    let found =
        PERIODS.into_iter().flat_map(|period| known.values().filter_map(move |of| found(of, period, now, percent)));
    Some(Findings { found: found.take(MOST_SUBJECTS).collect(), unknown: Arc::clone(&all.unknown) })
}

const PERIODS: [Period; 2] = [Period::Day, Period::Month];

#[derive(Debug, Clone, Copy)]
enum Period {
    Day,
    Month,
}

fn found(of: &QuotaUse, period: Period, now: OffsetDateTime, percent: u32) -> Option<Found> {
    let (name, period) = match period {
        Period::Day => ("daily", &of.day),
        Period::Month => ("monthly", &of.month),
    };
    let used = used(period, now, percent)?;
    Some(Found {
        subject: format!("{name} quota of tenant {}", of.tenant),
        tenant: Some(of.tenant.clone()),
        summary: format!(
            "the tenant {} has used {used:.0} % of its {name} quota of {}",
            of.tenant,
            period.quota.unwrap_or_default()
        ),
    })
}

/// How much of it, if that is enough. What was used of a period that has ended is past.
fn used(period: &PeriodUse, now: OffsetDateTime, percent: u32) -> Option<f64> {
    period.percent().filter(|used| *used >= f64::from(percent) && period.until > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_used_up_to_a_percentage_until_its_period_ends() {
        let at = |hours| OffsetDateTime::UNIX_EPOCH + time::Duration::hours(hours);
        let period = |used, quota| PeriodUse { since: at(0), until: at(24), used, quota };
        for (period, now, expected) in [
            (period(80, Some(100)), at(1), Some(80.0)),
            (period(79, Some(100)), at(1), None),
            (period(80, Some(100)), at(24), None),
            (period(300, Some(100)), at(1), Some(300.0)),
            (period(0, Some(0)), at(1), Some(100.0)),
            (period(1 << 40, None), at(1), None),
        ] {
            assert_eq!(used(&period, now, 80), expected, "{period:?}");
        }
    }
}
