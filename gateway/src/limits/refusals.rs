//! Refusals by whose limit it was, and by what it counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whose a limit is, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) scope: Scope,
    pub(crate) counts: Counts,
}

/// Whose a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Tenant,
    Route,
    Consumer,
    Keyed,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    Rate,
    Day,
    Month,
    /// Those in flight.
    Requests,
    /// Those that are open.
    WebSockets,
}

impl Scope {
    const ALL: [Self; 4] = [Self::Tenant, Self::Route, Self::Consumer, Self::Keyed];

    fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Route => "route",
            Self::Consumer => "consumer",
            Self::Keyed => "keyed",
        }
    }
}

impl Counts {
    pub(super) const ALL: [Self; 5] = [Self::Rate, Self::Day, Self::Month, Self::Requests, Self::WebSockets];

    /// In names of limits and of accounts, and in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Day => "day",
            Self::Month => "month",
            Self::Requests => "concurrency",
            Self::WebSockets => "websockets",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Refusals([[AtomicU64; Counts::ALL.len()]; Scope::ALL.len()]);

impl Refusals {
    pub(crate) fn count(&self, by: Label) {
        self.0[by.scope as usize][by.counts as usize].fetch_add(1, Relaxed);
    }

    /// By scope and by what the limit counts.
    pub(crate) fn counts(&self) -> impl Iterator<Item = ((&'static str, &'static str), u64)> {
        Scope::ALL.into_iter().zip(&self.0).flat_map(|(scope, counters)| {
            let counters = Counts::ALL.into_iter().zip(counters);
            counters.map(move |(counts, counter)| ((scope.name(), counts.name()), counter.load(Relaxed)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_shown_where_it_was_counted() {
        for scope in Scope::ALL {
            for counts in Counts::ALL {
                let refusals = Refusals::default();
                refusals.count(Label { scope, counts });
                let shown: Vec<_> = refusals.counts().filter(|(_, count)| *count > 0).collect();
                assert_eq!(shown, [((scope.name(), counts.name()), 1)]);
            }
        }
    }
}
