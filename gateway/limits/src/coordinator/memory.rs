//! The coordinator of a gateway that stands alone: the accounts are in this process. Exact for one gateway.
//!
//! Quotas survive the process: what may be given is written down before it is, in portions, so that a
//! gateway that is killed never counts again what it has counted already. It forgets at most one portion and
//! one lease, a thousandth of the quota each, and errs on the side of the limit. While one process takes
//! another's place, each counts what the other has written down as used.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Answer, Coordinator, CoordinatorError, Exchange, Outcome, Pace};
use crate::{
    journal::{Entry, Journal, Others},
    ledger::{LEASE_PART, Ledger, Moment},
    terms::Terms,
};

/// Tenants are spread over so many locks.
const SHARDS: usize = 64;

/// For a disk that is very slow. Only the first request of a tenant in a day waits for it, and now and then one
/// whose portion is used up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Accounts that nobody has asked for are looked for when a shard has grown by so many.
const GROWTH: usize = 1024;

pub struct MemoryCoordinator {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    journal: Option<Journal>,
}

#[derive(Default)]
struct Shard {
    /// By tenant, then by key.
    tenants: HashMap<Arc<str>, HashMap<Arc<str>, Account>>,
    accounts: usize,
    cleaned_at: usize,
}

struct Account {
    ledger: Ledger,
    used_at: u64,
    /// Of a quota: how many this process may count, as it stands in the journal.
    durable: u64,
    /// Of a quota: how many others may have counted, before this process and beside it.
    others: u64,
    /// The batch of the journal that said so.
    heard: u64,
    ends: u64,
}

impl MemoryCoordinator {
    /// `journal` keeps quotas; without one they begin anew with each process.
    pub fn new(journal: Option<Journal>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default(), journal }
    }

    fn shard(&self, tenant: &str) -> &Mutex<Shard> {
        use std::hash::BuildHasher;
        let hash = usize::try_from(self.hasher.hash_one(tenant) >> 32).unwrap_or_default();
        &self.shards[hash % SHARDS]
    }

    /// Carries the exchange out as far as quotas are written down; `Err` are those that have to be written
    /// first.
    fn carry_out(&self, exchange: &Exchange) -> Result<Vec<Answer>, Vec<Entry>> {
        let moment = Moment { now: unix_micros(), live: 1, began: 0, is_told: true };
        let mut shard = self.shard(&exchange.tenant).lock();
        shard.clean(moment.now);
        let Shard { tenants, accounts, .. } = &mut *shard;
        if !tenants.contains_key(&exchange.tenant) {
            tenants.insert(Arc::clone(&exchange.tenant), HashMap::new());
        }
        let Some(of_tenant) = tenants.get_mut(&exchange.tenant) else { return Ok(Vec::new()) };
        for request in &exchange.accounts {
            if !of_tenant.contains_key(&request.key) {
                *accounts += 1;
                let account = self.open(exchange, &request.key, request.terms, &moment);
                of_tenant.insert(Arc::clone(&request.key), account);
            }
        }
        if self.journal.is_some() {
            let missing: Vec<Entry> = exchange
                .accounts
                .iter()
                .filter_map(|request| {
                    let account = of_tenant.get(&request.key)?;
                    let Terms::Quota { limit, ends, .. } = request.terms else { return None };
                    let Ledger::Quota(ledger) = &account.ledger else { return None };
                    let needed = ledger.debited_after(&exchange.reporter, request).saturating_sub(account.others);
                    (needed > account.durable).then(|| {
                        let value = needed.saturating_add(limit / LEASE_PART);
                        Entry::new(&exchange.tenant, &request.key, value, ends)
                    })
                })
                .collect();
            if !missing.is_empty() {
                return Err(missing);
            }
        }
        let answers = exchange.accounts.iter().map(|request| {
            let Some(account) = of_tenant.get_mut(&request.key) else {
                return Answer { outcome: Outcome::OtherPeriod, pace: Pace::default(), left: 0, now: moment.now };
            };
            account.used_at = moment.now;
            account.ledger.exchange(&moment, &exchange.reporter, exchange.revision, request)
        });
        Ok(answers.collect())
    }

    fn open(&self, exchange: &Exchange, key: &Arc<str>, terms: Terms, moment: &Moment) -> Account {
        let mut ledger = Ledger::open(terms, exchange.revision, moment, false);
        let mut others = 0;
        if let (Some(journal), Ledger::Quota(quota)) = (&self.journal, &mut ledger) {
            others = journal.get(&exchange.tenant, key);
            quota.others_took(0, others);
        }
        let ends = match terms {
            Terms::Quota { ends, .. } => ends,
            Terms::Bucket(_) | Terms::Slots { .. } => u64::MAX,
        };
        Account { ledger, used_at: moment.now, durable: 0, others, heard: 0, ends }
    }

    /// Writes down how much of each quota is used. Leases should have been given back; nothing can be taken
    /// after that.
    pub fn close(&self) -> io::Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let mut entries = Vec::new();
        for shard in &self.shards {
            for (tenant, accounts) in &shard.lock().tenants {
                for (key, account) in accounts {
                    if let Ledger::Quota(quota) = &account.ledger {
                        let own = quota.debited().saturating_sub(account.others);
                        entries.push(Entry::new(tenant, key, own, account.ends).to_be_final());
                    }
                }
            }
        }
        journal.close(&entries)
    }

    fn written(&self, exchange: &Exchange, entries: &[Entry], others: &Others) {
        let mut shard = self.shard(&exchange.tenant).lock();
        for (entry, others_took) in entries.iter().zip(&others.taken) {
            let account = shard.tenants.get_mut(&exchange.tenant).and_then(|accounts| accounts.get_mut(entry.key()));
            let Some(account) = account else { continue };
            account.durable = account.durable.max(entry.value());
            // Of two that were written at about the same time, the later one knows more.
            if let Ledger::Quota(quota) = &mut account.ledger
                && others.sequence > account.heard
            {
                account.heard = others.sequence;
                quota.others_took(account.others, *others_took);
                account.others = *others_took;
            }
        }
    }
}

impl Shard {
    /// Forgets what is as good as new, now and then.
    fn clean(&mut self, now: u64) {
        if self.accounts < self.cleaned_at + GROWTH {
            return;
        }
        self.tenants.retain(|_, accounts| {
            accounts.retain(|_, account| {
                let is_quota = account.ends != u64::MAX;
                if is_quota {
                    now < account.ends
                } else {
                    now.saturating_sub(account.used_at) < account.ledger.is_as_new_after()
                }
            });
            !accounts.is_empty()
        });
        self.accounts = self.tenants.values().map(HashMap::len).sum();
        self.cleaned_at = self.accounts;
    }
}

#[async_trait]
impl Coordinator for MemoryCoordinator {
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        // Twice: to find out what is to be written down, and when it has been. Others may be quicker meanwhile.
        for _ in 0..8 {
            match self.carry_out(exchange) {
                Ok(answers) => return Ok(answers),
                Err(entries) => {
                    let Some(journal) = &self.journal else { break };
                    let others = journal.write(&entries).await;
                    let others = others.map_err(|error| CoordinatorError::Unreachable(error.to_string()))?;
                    self.written(exchange, &entries, &others);
                }
            }
        }
        Err(CoordinatorError::TimedOut)
    }

    fn exchange_now(&self, exchange: &Exchange) -> Option<Result<Vec<Answer>, CoordinatorError>> {
        self.carry_out(exchange).ok().map(Ok)
    }

    fn live(&self) -> u64 {
        1
    }

    fn promises(&self) -> bool {
        false
    }

    /// There is nobody else to ask: what a slow disk has not written yet cannot be decided without it.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl std::fmt::Debug for MemoryCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryCoordinator").field("journal", &self.journal).finish_non_exhaustive()
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
