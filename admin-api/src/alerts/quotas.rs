//! Quotas that are nearly used up. All tenants that have used anything are looked at once, and then those that have used
//! more, or whose limits were changed.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use seiketsu_config::values::Id;
use time::OffsetDateTime;

use super::{Facts, later::Later};
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
    later: Later<Looked>,
    /// None: it is not known yet.
    known: Option<HashMap<Id, QuotaUse>>,
    /// The time, and the revision, up to which it is.
    at: Option<(OffsetDateTime, u64)>,
    all_at: Option<Instant>,
    is_wanted: bool,
}

#[derive(Debug)]
struct Looked {
    at: (OffsetDateTime, u64),
    /// None: all.
    names: Option<BTreeSet<String>>,
    uses: Vec<QuotaUse>,
}

impl Quotas {
    /// Takes in what was looked at, and looks at more.
    pub(super) async fn turn(&mut self, store: &Store, now: OffsetDateTime, newest: u64) -> Result<(), StoreError> {
        let ended = self.later.ended().await;
        if let Some(Ok(looked)) = ended {
            self.take_in(looked);
        } else if let Some(Err(error)) = ended {
            *self = Self { later: std::mem::take(&mut self.later), ..Self::default() };
            return Err(error);
        }
        if !std::mem::take(&mut self.is_wanted) {
            return Ok(());
        }
        let is_old = self.all_at.is_none_or(|all_at| all_at.elapsed() >= LOOK_AT_ALL);
        let since = self.at.filter(|_| !is_old);
        let over = |of: &QuotaUse| of.day.until <= now || of.month.until <= now;
        let known = self.known.iter().flatten().filter(|(_, of)| over(of));
        let over: Vec<String> = known.map(|(tenant, _)| tenant.to_string()).collect();
        self.later.begin(LOOK, || look(store.clone(), since, (now, newest), over));
        Ok(())
    }

    fn take_in(&mut self, Looked { at, names, uses }: Looked) {
        let known = self.known.get_or_insert_default();
        if let Some(names) = names {
            known.retain(|tenant, _| !names.contains(tenant.as_str()));
        } else {
            known.clear();
            self.all_at = Some(Instant::now());
        }
        let limited = uses.into_iter().filter(|of| of.day.quota.is_some() || of.month.quota.is_some());
        known.extend(limited.map(|of| (of.tenant.clone(), of)));
        self.at = Some(at);
    }
}

async fn look(
    store: Store,
    since: Option<(OffsetDateTime, u64)>,
    to: (OffsetDateTime, u64),
    over: Vec<String>,
) -> Result<Looked, StoreError> {
    let now = to.0.unix_timestamp();
    let changes = match since {
        Some((_, revision)) => store.changes_since(revision, MOST_CHANGES).await?,
        None => None,
    };
    let (names, at) = match (since, changes) {
        // Whatever else stands beside the tenants, their limits may follow from it.
        (Some((at, _)), Some(changes)) if changes.head.is_none() => {
            let used = store.tenants_in_use(Step::Minute, at.unix_timestamp() - SETTLED).await?;
            let changed = changes.put.into_iter().filter_map(|document| document.tenant).chain(changes.gone);
            let names = used.into_iter().chain(over).chain(changed.map(|tenant| tenant.to_string()));
            (Some(names.collect::<BTreeSet<_>>()), (to.0, changes.to.revision))
        }
        _ => (None, to),
    };
    let looked_at: Vec<String> = match &names {
        Some(names) => names.iter().cloned().collect(),
        None => store.tenants_in_use(Step::Day, now - LONGEST).await?,
    };
    let uses = store.quota_uses(&looked_at, to.0).await?;
    Ok(Looked { at, names, uses })
}

/// None: it is not known yet.
pub(super) fn quota_used(facts: &mut Facts<'_>, percent: u32) -> Option<Vec<Found>> {
    facts.quotas.is_wanted = true;
    let known = facts.quotas.known.as_ref()?;
    let now = facts.now;
    let found = known.values().flat_map(|of| {
        [("daily", &of.day), ("monthly", &of.month)].into_iter().filter_map(move |(name, period)| {
            used(period, now, percent).map(|used| Found {
                subject: format!("{name} quota of tenant {}", of.tenant),
                tenant: Some(of.tenant.clone()),
                summary: format!(
                    "the tenant {} has used {used:.0} % of its {name} quota of {}",
                    of.tenant,
                    period.quota.unwrap_or_default()
                ),
            })
        })
    });
    Some(found.collect())
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
