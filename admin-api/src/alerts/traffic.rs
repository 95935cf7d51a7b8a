//! How requests are answered: too many errors, and sudden rises.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Facts, later::Later};
use crate::store::{
    Store, StoreError,
    alerts::Found,
    usage::{Answered, Step},
};

const LOOK: Duration = Duration::from_secs(5);

/// What the last minutes are compared with.
const BEFORE: u32 = 60;

/// A class of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub enum StatusClass {
    #[serde(rename = "4xx")]
    ClientErrors,
    #[serde(rename = "5xx")]
    ServerErrors,
}

impl StatusClass {
    fn name(self) -> &'static str {
        match self {
            Self::ClientErrors => "4xx",
            Self::ServerErrors => "5xx",
        }
    }

    fn of(self, answered: &Answered) -> u64 {
        match self {
            Self::ClientErrors => answered.client_errors,
            Self::ServerErrors => answered.server_errors,
        }
    }
}

/// Whose requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Each,
    Together,
}

/// From one number of minutes ago, counted from the minute that runs, to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Span {
    from: u32,
    to: u32,
    whose: Whose,
}

type Sums = BTreeMap<String, Answered>;

#[derive(Debug, Default)]
pub(super) struct Traffic {
    later: Later<Looked>,
    looked: Option<Looked>,
    /// What rules want to know.
    wanted: HashSet<Span>,
}

#[derive(Debug, Default)]
struct Looked {
    /// How much of the minute that runs is in it.
    seconds: u32,
    spans: HashMap<Span, Sums>,
}

impl Traffic {
    /// Takes in what was looked at, and looks at more.
    pub(super) async fn turn(&mut self, store: &Store, now: i64) -> Result<(), StoreError> {
        match self.later.ended().await {
            Some(Ok(looked)) => self.looked = Some(looked),
            Some(Err(error)) => {
                self.looked = None;
                return Err(error);
            }
            None => {}
        }
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.is_empty() {
            self.looked = None;
        } else {
            self.later.begin(LOOK, || look(store.clone(), now, wanted));
        }
        Ok(())
    }

    /// None: it is not known yet.
    fn of(&mut self, spans: &[Span]) -> Option<(u32, Vec<&Sums>)> {
        self.wanted.extend(spans);
        let looked = self.looked.as_ref()?;
        let sums: Option<Vec<&Sums>> = spans.iter().map(|span| looked.spans.get(span)).collect();
        Some((looked.seconds, sums?))
    }
}

async fn look(store: Store, now: i64, wanted: HashSet<Span>) -> Result<Looked, StoreError> {
    let minute = Step::Minute.start(now);
    let mut looked = Looked { seconds: u32::try_from(now - minute).unwrap_or_default(), ..Looked::default() };
    for span in wanted {
        let ago = |minutes: u32| minute - i64::from(minutes) * Step::Minute.seconds();
        // To the end of what there is, whatever the clocks of nodes say.
        let to = if span.to == 0 { i64::MAX } else { ago(span.to) };
        looked.spans.insert(span, store.answered(ago(span.from), to, span.whose == Whose::Each).await?);
    }
    Ok(looked)
}

/// Too many of a class. None: it is not known yet.
pub(super) fn error_rate(
    facts: &mut Facts<'_>,
    class: StatusClass,
    percent: u32,
    window_minutes: u32,
    least_requests: u32,
    whose: Whose,
) -> Option<Vec<Found>> {
    let (_, sums) = facts.traffic.of(&[Span { from: window_minutes, to: 0, whose }])?;
    let found = sums.into_iter().flatten().filter_map(|(tenant, answered)| {
        let bad = class.of(answered);
        let is_so = answered.requests >= u64::from(least_requests)
            && u128::from(bad) * 100 > u128::from(answered.requests) * u128::from(percent);
        if !is_so {
            return None;
        }
        let told = format!(
            "{bad} of {} within {window_minutes} min were answered with {}",
            of(tenant, "requests", answered.requests),
            class.name()
        );
        found(tenant, told)
    });
    Some(found.collect())
}

/// More than before. None: it is not known yet.
pub(super) fn sudden_rise(
    facts: &mut Facts<'_>,
    class: Option<StatusClass>,
    factor: u32,
    window_minutes: u32,
    least: u32,
    whose: Whose,
) -> Option<Vec<Found>> {
    let now = Span { from: window_minutes, to: 0, whose };
    let before = Span { from: window_minutes + BEFORE, to: window_minutes, whose };
    let (seconds, sums) = facts.traffic.of(&[now, before])?;
    let [now, before] = sums[..] else { return None };
    let what = class.map_or("requests", StatusClass::name);
    let found = now.iter().filter_map(|(tenant, answered)| {
        let before = before.get(tenant)?;
        let count = |answered: &Answered| class.map_or(answered.requests, |class| class.of(answered));
        let is_so = has_risen(count(answered), window_minutes * 60 + seconds, count(before), factor)
            && count(answered) >= u64::from(least);
        if !is_so {
            return None;
        }
        let told = format!(
            "{} within {window_minutes} min are more than {factor} times as many as in the hour before, which had {}",
            of(tenant, what, count(answered)),
            count(before)
        );
        found(tenant, told)
    });
    Some(found.collect())
}

/// Whether so many within these seconds are more than so many times what came in the hour before.
fn has_risen(now: u64, seconds: u32, before: u64, factor: u32) -> bool {
    u128::from(now) * u128::from(BEFORE * 60) > u128::from(before) * u128::from(seconds) * u128::from(factor)
}

fn of(tenant: &str, what: &str, count: u64) -> String {
    if tenant.is_empty() { format!("{count} {what}") } else { format!("{count} {what} of the tenant {tenant}") }
}

/// None: it is no tenant's.
fn found(tenant: &str, summary: String) -> Option<Found> {
    if tenant.is_empty() {
        return Some(Found { subject: "all requests".to_owned(), tenant: None, summary });
    }
    let tenant: Id = tenant.parse().ok()?;
    Some(Found { subject: format!("requests of tenant {tenant}"), tenant: Some(tenant), summary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_is_measured_by_the_hour_before_whatever_the_window() {
        // 600 in an hour are 10 a minute.
        for (now, seconds, factor, expected) in [
            (150, 300, 3, false),
            (151, 300, 3, true),
            // A minute that has just begun counts as long as it has lasted.
            (151, 310, 3, false),
            (156, 310, 3, true),
        ] {
            assert_eq!(has_risen(now, seconds, 600, factor), expected, "{now} within {seconds} s");
        }
        assert!(has_risen(1, 300, 0, 3) && !has_risen(0, 300, 0, 3));
    }
}
