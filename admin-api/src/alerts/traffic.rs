//! How requests are answered: too many errors, and sudden rises.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Facts, Findings, MOST_SUBJECTS,
    later::Later,
    walk::{MOST_FAILURES, PART, Range, Tenants, Walk},
};
use crate::store::{
    Store, StoreError,
    alerts::Found,
    usage::{Answered, Step},
};

const LOOK: Duration = Duration::from_secs(5);

/// What the last minutes are compared with.
const BEFORE: u32 = 60;

/// Of all tenants, that are read at a time.
const MINUTES: u32 = 5;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// Of all tenants.
    Together,
    /// Of each tenant by itself.
    Each,
    One(Id),
}

/// From one number of minutes ago, counted from the minute that runs, to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Span {
    from: u32,
    to: u32,
}

type Sums = BTreeMap<String, Answered>;

/// What rules want to know, and of whom, where it is not of all.
type Wanted = BTreeMap<Span, BTreeSet<String>>;

/// Each has a pace of its own: what is soon known of one tenant does not wait until all have been read.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Under the empty name.
    together: View<Figures>,
    /// Of tenants that rules are for.
    named: View<Figures>,
    each: View<Vec<Page>>,
}

#[derive(Debug)]
struct View<T> {
    later: Later<(T, Option<StoreError>)>,
    looked: Option<T>,
    wanted: Wanted,
}

impl<T> Default for View<T> {
    fn default() -> Self {
        Self { later: Later::default(), looked: None, wanted: Wanted::new() }
    }
}

/// Whoever is not there is not known.
#[derive(Debug, Default)]
struct Figures {
    /// How much of the minute that runs is in it.
    seconds: u32,
    spans: HashMap<Span, Sums>,
}

/// Tenants that follow each other by name. Those without requests are not among the sums; spans that could not be read are
/// not there.
#[derive(Debug)]
struct Page {
    range: Range,
    figures: Figures,
}

impl<T: Send + 'static> View<T> {
    /// Takes in what was looked at, and looks at more.
    async fn turn<Work>(&mut self, look: impl FnOnce(Wanted) -> Work) -> Result<(), StoreError>
    where
        Work: Future<Output = Result<(T, Option<StoreError>), StoreError>> + Send + 'static,
    {
        let failed = match self.later.ended().await {
            Some(Ok((looked, failed))) => {
                self.looked = Some(looked);
                failed
            }
            Some(Err(error)) => {
                self.looked = None;
                Some(error)
            }
            None => None,
        };
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.is_empty() {
            self.looked = None;
        } else {
            self.later.begin(LOOK, || look(wanted));
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Traffic {
    pub(super) async fn turn(&mut self, store: &Store) -> Result<(), StoreError> {
        let together = self.together.turn(|wanted| look_at_all(store.clone(), wanted)).await;
        let named = self.named.turn(|wanted| look_at_named(store.clone(), wanted)).await;
        let each = self.each.turn(|wanted| look_at_each(store.clone(), wanted)).await;
        together.and(named).and(each)
    }

    /// What is found by the figures of these spans, and how many seconds of the minute that runs are in them. None: they
    /// are not known yet.
    fn find<const N: usize>(
        &mut self,
        whose: &Whose,
        spans: [Span; N],
        found: impl Fn(&str, u32, [Answered; N]) -> Option<Found>,
    ) -> Option<Findings> {
        let (view, name) = match whose {
            Whose::Each => return self.find_of_each(spans, found),
            Whose::Together => (&mut self.together, ""),
            Whose::One(tenant) => (&mut self.named, tenant.as_str()),
        };
        for span in spans {
            view.wanted.entry(span).or_default().insert(name.to_owned());
        }
        let Figures { seconds, spans: known } = view.looked.as_ref()?;
        let figures = spans.map(|span| known.get(&span).and_then(|sums| sums.get(name)).copied());
        if figures.iter().any(Option::is_none) {
            return None;
        }
        Some(found(name, *seconds, figures.map(Option::unwrap_or_default)).into_iter().collect::<Vec<_>>().into())
    }

    fn find_of_each<const N: usize>(
        &mut self,
        spans: [Span; N],
        found: impl Fn(&str, u32, [Answered; N]) -> Option<Found>,
    ) -> Option<Findings> {
        self.each.wanted.extend(spans.map(|span| (span, BTreeSet::new())));
        let (mut all, mut unknown) = (Vec::new(), Tenants::default());
        for Page { range, figures: Figures { seconds, spans: known } } in self.each.looked.as_ref()? {
            let sums = spans.map(|span| known.get(&span));
            if sums.iter().any(Option::is_none) {
                unknown.ranges.push(range.clone());
                continue;
            }
            let of =
                |tenant: &str| sums.map(|sums| sums.and_then(|sums| sums.get(tenant)).copied().unwrap_or_default());
            let tenants = sums.first().copied().flatten().into_iter().flat_map(BTreeMap::keys);
            let found = tenants.filter_map(|tenant| found(tenant, *seconds, of(tenant)));
            all.extend(found.take(MOST_SUBJECTS.saturating_sub(all.len())));
        }
        Some(Findings { found: all, unknown: Arc::new(unknown) })
    }
}

/// The minute that runs.
#[derive(Debug, Clone, Copy)]
struct Now {
    minute: i64,
    seconds: u32,
}

impl Now {
    fn new() -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let minute = Step::Minute.start(now);
        Self { minute, seconds: u32::try_from(now - minute).unwrap_or_default() }
    }

    fn ago(self, minutes: u32) -> i64 {
        self.minute - i64::from(minutes) * Step::Minute.seconds()
    }

    /// To the end of what there is, whatever the clocks of nodes say.
    fn bounds(self, span: Span) -> (i64, i64) {
        (self.ago(span.from), if span.to == 0 { i64::MAX } else { self.ago(span.to) })
    }
}

/// Backwards, some minutes at a time, each of them once, whatever they are wanted for.
async fn look_at_all(store: Store, wanted: Wanted) -> Result<(Figures, Option<StoreError>), StoreError> {
    let now = Now::new();
    let oldest = now.ago(wanted.keys().map(|span| span.from).max().unwrap_or_default());
    let (mut minutes, mut unknown, mut failed) = (BTreeMap::new(), Vec::new(), None);
    let (mut from, mut to) = (now.ago(MINUTES - 1).max(oldest), i64::MAX);
    loop {
        match store.answered_by_minute(from, to).await {
            Ok(read) => minutes.extend(read),
            Err(error) => {
                failed.get_or_insert(error);
                unknown.push((from, to));
            }
        }
        if from <= oldest || unknown.len() >= MOST_FAILURES {
            break;
        }
        (from, to) = ((from - i64::from(MINUTES) * Step::Minute.seconds()).max(oldest), from);
    }
    unknown.push((i64::MIN, from));
    let mut figures = Figures { seconds: now.seconds, ..Figures::default() };
    for span in wanted.into_keys() {
        let (from, to) = now.bounds(span);
        if unknown.iter().any(|unknown| from < unknown.1 && unknown.0 < to) {
            continue;
        }
        let mut sum = Answered::default();
        minutes.range(from..to).for_each(|(_, answered)| sum.add(answered));
        figures.spans.insert(span, Sums::from([(String::new(), sum)]));
    }
    Ok((figures, failed))
}

async fn look_at_named(store: Store, wanted: Wanted) -> Result<(Figures, Option<StoreError>), StoreError> {
    let now = Now::new();
    let (mut figures, mut failed, mut failures) = (Figures { seconds: now.seconds, ..Figures::default() }, None, 0);
    for (span, names) in wanted {
        let (from, to) = now.bounds(span);
        let sums = figures.spans.entry(span).or_default();
        let names: Vec<String> = names.into_iter().collect();
        for names in names.chunks(PART) {
            match store.answered(names, from, to).await {
                Ok(mut read) => {
                    failures = 0;
                    sums.extend(names.iter().map(|name| (name.clone(), read.remove(name).unwrap_or_default())));
                }
                Err(error) => {
                    failures += 1;
                    failed.get_or_insert(error);
                }
            }
            if failures >= MOST_FAILURES {
                return Ok((figures, failed));
            }
        }
    }
    Ok((figures, failed))
}

async fn look_at_each(store: Store, wanted: Wanted) -> Result<(Vec<Page>, Option<StoreError>), StoreError> {
    let spans: Vec<Span> = wanted.into_keys().collect();
    let longest = spans.iter().map(|span| span.from).max().unwrap_or_default();
    let mut walk = Walk::new(&store, Step::Minute, Now::new().ago(longest), Range::all());
    let (mut pages, mut failed) = (Vec::new(), None);
    while let Some((range, names)) = walk.next().await {
        // It takes a while: each page is of the time when it is read.
        let now = Now::new();
        let mut figures = Figures { seconds: now.seconds, ..Figures::default() };
        let read = async {
            let names = names?;
            for span in &spans {
                let (from, to) = now.bounds(*span);
                figures.spans.insert(*span, store.answered(&names, from, to).await?);
            }
            Ok::<_, StoreError>(())
        };
        let read = read.await;
        pages.push(Page { range, figures });
        let rest = walk.goes_on(read.is_ok());
        pages.extend(rest.map(|range| Page { range, figures: Figures::default() }));
        if let Err(error) = read {
            failed.get_or_insert(error);
        }
    }
    Ok((pages, failed))
}

/// Too many of a class. None: it is not known yet.
pub(super) fn error_rate(
    facts: &mut Facts<'_>,
    class: StatusClass,
    percent: u32,
    window_minutes: u32,
    least_requests: u32,
    whose: &Whose,
) -> Option<Findings> {
    let window = Span { from: window_minutes, to: 0 };
    facts.traffic.find(whose, [window], |tenant, _, [answered]| {
        let bad = class.of(&answered);
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
    })
}

/// More than before. None: it is not known yet.
pub(super) fn sudden_rise(
    facts: &mut Facts<'_>,
    class: Option<StatusClass>,
    factor: u32,
    window_minutes: u32,
    least: u32,
    whose: &Whose,
) -> Option<Findings> {
    let now = Span { from: window_minutes, to: 0 };
    let before = Span { from: window_minutes + BEFORE, to: window_minutes };
    let what = class.map_or("requests", StatusClass::name);
    facts.traffic.find(whose, [now, before], |tenant, seconds, [answered, before]| {
        let count = |answered: &Answered| class.map_or(answered.requests, |class| class.of(answered));
        let (now, earlier) = (count(&answered), count(&before));
        let is_so = before.requests > 0
            && has_risen(now, window_minutes * 60 + seconds, earlier, factor)
            && now >= u64::from(least);
        if !is_so {
            return None;
        }
        let told = format!(
            "{} within {window_minutes} min are more than {factor} times as many as in the hour before, which had {earlier}",
            of(tenant, what, now),
        );
        found(tenant, told)
    })
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
