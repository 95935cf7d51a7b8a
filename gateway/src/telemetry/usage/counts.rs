//! What requests add up to, by who has made them.

use std::collections::HashMap;

use seiketsu_config::push::usage::{Counts, MOST_NAME_BYTES, Refused};

use crate::{respond::problem::ProblemKind, telemetry::names::OTHER};

/// Rows that a tenant may have in a table. Its callers beyond them count together as [`OTHER`], for each route.
const MOST_OF_TENANT: usize = 1000;
/// The same for a table as a whole.
const MOST_ROWS: usize = 100_000;
/// Stands between the parts of a row's name. No id of a tenant or route contains it.
const SEPARATOR: char = '\0';

/// Whose requests are counted. What is not known is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    pub tenant: &'a str,
    pub route: &'a str,
    /// As in [`Principal::id`](seiketsu_identity::principal::Principal::id).
    pub consumer: &'a str,
}

/// One request, without its bytes and how it ended. None where it is nobody's usage: a preflight, and whatever else the
/// gateway answers for itself before it looks at the caller.
///
/// `weight`: what it weighs, if it passed all checks. `refused`: the problem that the gateway answered with.
/// `failed`: the answer was a 5xx, or the upstream broke off.
pub fn of_request(weight: Option<u64>, refused: Option<ProblemKind>, failed: bool) -> Option<Counts> {
    use ProblemKind as P;
    let of_upstream = matches!(refused, Some(P::UpstreamError | P::UpstreamUnavailable | P::UpstreamTimeout));
    let refused = match (weight, refused) {
        (Some(cost), refused) if refused.is_none() || of_upstream => {
            let failures = u64::from(failed || of_upstream);
            return Some(Counts { admitted: 1, cost, failures, ..Counts::default() });
        }
        (_, None) => return None,
        (_, Some(kind)) => match kind.status().as_u16() {
            401 | 403 => Refused { auth: 1, ..Refused::default() },
            429 => Refused { limit: 1, ..Refused::default() },
            _ => Refused { other: 1, ..Refused::default() },
        },
    };
    Some(Counts { refused, ..Counts::default() })
}

/// Sums by caller, of bounded size: whatever callers there are, nothing is lost but who they were.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: HashMap<Box<str>, Counts, foldhash::fast::RandomState>,
    /// How many rows tenants have for callers by name.
    of_tenants: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    /// Names are put together here, so that finding a row allocates nothing.
    name: String,
}

/// What one caller's requests add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    name: Box<str>,
    pub(super) counts: Counts,
}

impl Table {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn add(&mut self, caller: &Caller<'_>, counts: &Counts) {
        self.change(caller, |row| row.add(counts));
    }

    /// Changes a caller's row, which is empty if there was none.
    pub(super) fn change(&mut self, caller: &Caller<'_>, change: impl FnOnce(&mut Counts)) {
        let name = &mut self.name;
        name.clear();
        name.push_str(caller.tenant);
        name.push(SEPARATOR);
        name.push_str(caller.route);
        name.push(SEPARATOR);
        name.push_str(caller.consumer);
        if let Some(row) = self.rows.get_mut(name.as_str()) {
            return change(row);
        }
        let mut counts = Counts::default();
        change(&mut counts);
        self.add_row(caller, &counts);
    }

    #[cold]
    fn add_row(&mut self, caller: &Caller<'_>, counts: &Counts) {
        // There are only as many of the others as there are routes.
        let has_name = !matches!(caller.consumer, "" | OTHER);
        if has_name {
            let of_tenant = self.of_tenants.get_mut(caller.tenant);
            let is_full = self.rows.len() >= MOST_ROWS || of_tenant.as_ref().is_some_and(|n| **n >= MOST_OF_TENANT);
            if is_full || caller.consumer.len() > MOST_NAME_BYTES {
                return self.add(&Caller { consumer: OTHER, ..*caller }, counts);
            }
            match of_tenant {
                Some(of_tenant) => *of_tenant += 1,
                None => drop(self.of_tenants.insert(caller.tenant.into(), 1)),
            }
        }
        self.rows.insert(self.name.as_str().into(), *counts);
    }

    /// Takes everything out. The room that it had is kept for what comes next.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Row> {
        self.of_tenants.clear();
        self.rows.drain().map(|(name, counts)| Row { name, counts })
    }

    pub(super) fn add_rows(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            self.add(&row.caller(), &row.counts);
        }
    }
}

impl Row {
    pub(super) fn caller(&self) -> Caller<'_> {
        let mut parts = self.name.splitn(3, SEPARATOR);
        let mut part = || parts.next().unwrap_or_default();
        Caller { tenant: part(), route: part(), consumer: part() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sum<'a>(counts: impl IntoIterator<Item = &'a Counts>) -> Counts {
        counts.into_iter().fold(Counts::default(), |mut sum, counts| {
            sum.add(counts);
            sum
        })
    }

    fn admitted(many: u64) -> Counts {
        Counts { admitted: many, cost: 2 * many, ..Counts::default() }
    }

    #[test]
    fn a_request_is_admitted_or_refused_or_nobodys() {
        use ProblemKind as P;
        let of = |weight, refused, failed| {
            let counts = of_request(weight, refused, failed)?;
            let Refused { limit, auth, other } = counts.refused;
            Some([counts.admitted, counts.cost, counts.failures, limit, auth, other])
        };
        assert_eq!(of(Some(3), None, false), Some([1, 3, 0, 0, 0, 0]));
        assert_eq!(of(Some(1), None, true), Some([1, 1, 1, 0, 0, 0]));
        assert_eq!(of(Some(1), Some(P::UpstreamTimeout), true), Some([1, 1, 1, 0, 0, 0]));
        assert_eq!(of(Some(1), Some(P::BreakerOpen), true), Some([0, 0, 0, 0, 0, 1]));
        assert_eq!(of(None, Some(P::QuotaExceeded), false), Some([0, 0, 0, 1, 0, 0]));
        assert_eq!(of(None, Some(P::Unauthenticated), false), Some([0, 0, 0, 0, 1, 0]));
        assert_eq!(of(None, Some(P::Forbidden), false), Some([0, 0, 0, 0, 1, 0]));
        assert_eq!(of(None, Some(P::NoRoute), false), Some([0, 0, 0, 0, 0, 1]));
        assert_eq!(of(None, Some(P::UpstreamUnavailable), true), Some([0, 0, 0, 0, 0, 1]), "its keys, not its API");
        assert_eq!(of(None, None, false), None);
    }

    #[test]
    fn callers_beyond_the_bound_count_together() {
        let mut table = Table::default();
        for n in 0..MOST_OF_TENANT + 500 {
            table.add(&Caller { tenant: "acme", route: "open", consumer: &format!("c{n}") }, &admitted(1));
        }
        let long = "x".repeat(MOST_NAME_BYTES + 1);
        table.add(&Caller { tenant: "globex", route: "open", consumer: &long }, &admitted(1));
        for (tenant, consumer) in [("acme", ""), ("acme", "c7"), ("globex", "c7")] {
            table.add(&Caller { tenant, route: "open", consumer }, &admitted(1));
        }
        let rows: Vec<Row> = table.take().collect();
        assert_eq!(rows.len(), MOST_OF_TENANT + 4);
        let of = |tenant, consumer| {
            let caller = Caller { tenant, route: "open", consumer };
            rows.iter().find(|row| row.caller() == caller).map_or(0, |row| row.counts.admitted)
        };
        assert_eq!((of("acme", OTHER), of("acme", "c7"), of("acme", "")), (500, 2, 1));
        assert_eq!((of("globex", OTHER), of("globex", "c7")), (1, 1));
        assert!(table.is_empty() && table.of_tenants.is_empty());
    }

    proptest! {
        /// Whatever is counted in whatever tables and put together in whatever steps: each caller's sum is exact.
        #[test]
        fn nothing_is_lost_and_nothing_counted_twice(
            requests in prop::collection::vec((0_u8..4, 0_u8..3, 0_u8..5, 0_usize..3, 1_u64..9, any::<bool>()), 0..200),
        ) {
            let mut expected: HashMap<(String, String, String), Counts> = HashMap::new();
            let (mut shards, mut whole): ([Table; 3], Table) = Default::default();
            for (tenant, route, consumer, shard, many, gather) in requests {
                let names = [tenant, route, consumer].map(|n| if n == 0 { String::new() } else { format!("n{n}") });
                let caller = Caller { tenant: &names[0], route: &names[1], consumer: &names[2] };
                shards[shard].add(&caller, &admitted(many));
                let [tenant, route, consumer] = names;
                expected.entry((tenant, route, consumer)).or_default().add(&admitted(many));
                if gather {
                    whole.add_rows(shards[shard].take());
                }
            }
            for shard in &mut shards {
                whole.add_rows(shard.take());
            }
            let found: HashMap<_, _> = whole
                .take()
                .map(|row| {
                    let Caller { tenant, route, consumer } = row.caller();
                    ((tenant.to_owned(), route.to_owned(), consumer.to_owned()), row.counts)
                })
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
