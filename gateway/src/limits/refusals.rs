//! Refusals by whose limit it was, and of which kind.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const SCOPES: [&str; 4] = ["tenant", "route", "consumer", "keyed"];
const KINDS: [&str; 5] = ["rate", "day", "month", "concurrency", "websockets"];

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Refusals([[AtomicU64; KINDS.len()]; SCOPES.len()]);

impl Refusals {
    /// Counts a refusal by the limit of this account ([`compile`](super::compile) names them).
    pub(crate) fn count(&self, key: &str) {
        let scope = match key {
            key if key.contains("keyed/") => 3,
            key if key.starts_with("consumer/") => 2,
            key if key.starts_with("route/") => 1,
            _ => 0,
        };
        let kind = KINDS.iter().position(|kind| key.split('/').any(|part| part == *kind));
        if let Some(counter) = kind.and_then(|kind| self.0.get(scope)?.get(kind)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// By scope and kind.
    pub(crate) fn counts(&self) -> impl Iterator<Item = ((&'static str, &'static str), u64)> {
        SCOPES.into_iter().zip(&self.0).flat_map(|(scope, counters)| {
            KINDS.into_iter().zip(counters).map(move |(kind, counter)| ((scope, kind), counter.load(Relaxed)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_counts_where_it_belongs() {
        let refusals = Refusals::default();
        for key in ["rate", "day", "day", "route/orders/month", "consumer/alice/rate", "keyed/each/rate/0af3"] {
            refusals.count(key);
        }
        refusals.count("route/orders/keyed/each/websockets/0af3");
        let counts: Vec<_> = refusals.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            counts,
            [
                (("tenant", "rate"), 1),
                (("tenant", "day"), 2),
                (("route", "month"), 1),
                (("consumer", "rate"), 1),
                (("keyed", "rate"), 1),
                (("keyed", "websockets"), 1),
            ]
        );
    }
}
