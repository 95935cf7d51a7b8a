//! Refusals in the audit trail: each of the first, and then how many there were. Each entry takes its turn among all writes,
//! so that whoever sends garbage would else hold up those who change something.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use secrecy::SecretString;
use uuid::Uuid;

use super::unknown_tokens::UnknownTokens;
use crate::{
    limit::{self, Limiter},
    store::{Author, Store, StoreError, audit::Entry},
};

/// So many of one caller are kept one by one in each [`WINDOW`].
const FIRST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Beyond so many callers, all others count as one.
const MANY: usize = 10_000;

/// Somebody known, or whoever is at an address.
type Caller = (Option<IpAddr>, Option<Uuid>);

/// Slows down those who have no token that holds, and keeps what was refused.
#[derive(Debug, Clone)]
pub(crate) struct Doorkeeper {
    store: Store,
    failures: Arc<Limiter<IpAddr>>,
    unknown: Arc<UnknownTokens>,
    counts: Arc<Mutex<HashMap<Caller, Count>>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    since: Instant,
    refusals: u32,
}

impl Doorkeeper {
    pub(super) fn new(store: Store, failures: Arc<Limiter<IpAddr>>) -> Self {
        Self { store, failures, unknown: Arc::default(), counts: Arc::default() }
    }

    /// Whether it was looked up a moment ago, and was none.
    pub(crate) fn is_unknown(&self, token: &SecretString) -> bool {
        self.unknown.has(token)
    }

    pub(crate) fn add_unknown(&self, token: &SecretString) {
        self.unknown.add(token);
    }

    /// Somebody at the address has tried a token that does not hold; else for how many seconds no more is answered.
    pub(crate) fn has_failed(&self, address: IpAddr) -> Result<(), u64> {
        self.failures.take(limit::network(address))
    }

    /// Keeps what was refused, at once or as one of many.
    pub(crate) async fn keep(&self, author: &Author, entry: Entry<'_>) -> Result<(), StoreError> {
        let (caller, refusals) = self.count((author.address, author.operator()), Instant::now());
        match refusals {
            ..=FIRST => return self.store.record(author, entry).await,
            many if many == FIRST + 1 => {}
            _ => return Ok(()),
        }
        // The first of those that are only counted sees to it that they are told of.
        let (keeper, author) = (self.clone(), Author { action: "refusals", ..author.clone() });
        tokio::spawn(async move {
            tokio::time::sleep(WINDOW).await;
            let count = keeper.counts.lock().remove(&caller);
            let more = count.map_or(0, |count| count.refusals.saturating_sub(FIRST));
            if let Err(error) = keeper.store.record(&author, Entry::refused().with("more", more)).await {
                tracing::warn!(%error, more, "refusals could not be kept in the audit trail");
            }
        });
        Ok(())
    }

    /// As whom the caller is counted, and how many it is.
    fn count(&self, caller: Caller, now: Instant) -> (Caller, u32) {
        let mut counts = self.counts.lock();
        if counts.len() >= MANY {
            // Those beyond the first are taken out when they are told of.
            counts.retain(|_, count| count.refusals > FIRST || now.duration_since(count.since) < WINDOW);
        }
        let caller = if counts.len() < MANY || counts.contains_key(&caller) { caller } else { (None, None) };
        let count = counts.entry(caller).or_insert(Count { since: now, refusals: 0 });
        if count.refusals <= FIRST && now.duration_since(count.since) >= WINDOW {
            *count = Count { since: now, refusals: 0 };
        }
        count.refusals += 1;
        (caller, count.refusals)
    }
}
