//! Through all tenants that have used anything, some at a time: no statement reads more than these, and one that fails leaves
//! unknown only what it would have told.

use std::collections::BTreeSet;

use crate::store::{Store, StoreError, usage::Step};

/// Tenants of a part.
pub(super) const PART: usize = 500;

/// Parts in a row that cannot be read: then the store is away, and each of the others would be waited for as long.
pub(super) const MOST_FAILURES: usize = 3;

/// Tenants that follow each other by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// It begins after this name.
    after: String,
    /// It ends with this one; none: with the last that there is.
    through: Option<String>,
}

impl Range {
    pub(super) fn all() -> Self {
        Self { after: String::new(), through: None }
    }

    fn has(&self, tenant: &str) -> bool {
        tenant > self.after.as_str() && self.through.as_ref().is_none_or(|through| tenant <= through.as_str())
    }
}

/// Some tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tenants {
    pub(super) names: BTreeSet<String>,
    pub(super) ranges: Vec<Range>,
}

impl Tenants {
    pub(super) fn has(&self, tenant: &str) -> bool {
        self.names.contains(tenant) || self.ranges.iter().any(|range| range.has(tenant))
    }
}

pub(super) struct Walk<'a> {
    store: &'a Store,
    step: Step,
    since: i64,
    /// What is left.
    rest: Option<Range>,
    failures: usize,
}

impl<'a> Walk<'a> {
    /// Through those of the range that have used anything since a moment, as sums of this step tell.
    pub(super) fn new(store: &'a Store, step: Step, since: i64, range: Range) -> Self {
        Self { store, step, since, rest: Some(range), failures: 0 }
    }

    /// The same, where so many parts before it could not be read.
    pub(super) fn after_failures(self, failures: usize) -> Self {
        Self { failures, ..self }
    }

    /// How many parts in a row could not be read, to the last.
    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    /// The next part, and whom of it there is to look at.
    pub(super) async fn next(&mut self) -> Option<(Range, Result<Vec<String>, StoreError>)> {
        let rest = self.rest.take()?;
        match self.store.tenants_in_use(self.step, self.since, &rest.after, PART).await {
            Ok(mut next) => {
                next.tenants.retain(|tenant| rest.has(tenant));
                let through = next.through.filter(|through| rest.has(through));
                let part = Range { after: rest.after, through: through.clone().or(rest.through.clone()) };
                self.rest = through.map(|after| Range { after, through: rest.through });
                Some((part, Ok(next.tenants)))
            }
            // Where the next part would begin is not known either.
            Err(error) => Some((rest, Err(error))),
        }
    }

    /// Is told whether a part could be read. If too many could not, that is the end: what is left.
    pub(super) fn goes_on(&mut self, is_read: bool) -> Option<Range> {
        self.failures = if is_read { 0 } else { self.failures + 1 };
        if self.failures < MOST_FAILURES { None } else { self.rest.take() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_after_a_name_and_ends_with_one() {
        let range =
            |after: &str, through: Option<&str>| Range { after: after.to_owned(), through: through.map(str::to_owned) };
        let some = Tenants { names: BTreeSet::from(["acme".to_owned()]), ranges: vec![range("b", Some("d"))] };
        let has = ["acme", "b", "b-", "c", "d", "d0"].map(|tenant| some.has(tenant));
        assert_eq!(has, [true, false, true, true, true, false]);
        assert!(Range::all().has("zoo") && range("x", None).has("zoo") && !range("x", None).has("x"));
    }
}
