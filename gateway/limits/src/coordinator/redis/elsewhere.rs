//! What is known elsewhere of quotas: if Redis and the gateways' memory are lost at once, the counters are told from it
//! what was used.
//!
//! Each period of each quota is looked at once by each process, before it is first asked for. If Redis has known the tenant
//! since before the period began, it knows all. Else it is asked for elsewhere, and a reporter of its own tells the answer: the
//! account is at least that, and what who asks has taken meanwhile. Whoever tells later of what was before tells nothing
//! new. While nobody answers, gateways go on, and it is told when somebody does.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{
    coordinator::{Exchange, Request},
    terms::Terms,
};

/// The reporter's name. Those of gateways have dots in them.
pub(super) const REPORTER: &str = "elsewhere";

/// What is known of a tenant is kept so long after the last look: longer than any period.
pub(super) const KEPT: Duration = Duration::from_hours(24 * 70);

/// Accounts that are remembered to have been looked at. When there are more, all are looked at again.
const MOST_SETTLED: usize = 1 << 20;

/// Accounts that wait for an answer.
const MOST_WAITING: usize = 1 << 16;

/// Knows what tenants have used, from another place than their counters.
#[async_trait]
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// What a tenant has used since a moment, in microseconds since 1970. None: it cannot be asked now.
    async fn used(&self, tenant: &str, since: u64) -> Option<Used>;
}

/// What a tenant has used, as far as it is known elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub in_all: u64,
    /// At most so much of it is what this process has admitted, and tells of itself.
    pub by_us: u64,
}

/// The tenant of an account, and its key.
type Name = (Arc<str>, Arc<str>);

/// Which accounts have been looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    settled: Mutex<HashSet<Name>>,
    waiting: Mutex<Vec<Account>>,
    /// What was answered to those that waited. It is told with their next exchange, which knows what was spent by then.
    answered: Mutex<HashMap<Name, Used>>,
}

/// A tenant's quota of a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) tenant: Arc<str>,
    pub(super) key: Arc<str>,
    /// The reporter that asks for it, and what it has spent.
    pub(super) asker: Arc<str>,
    pub(super) spent: u64,
    pub(super) revision: u64,
    pub(super) limit: u64,
    pub(super) starts: u64,
    pub(super) ends: u64,
}

impl Looked {
    /// The accounts of an exchange that are looked at for the first time.
    pub(super) fn new_in(&self, exchange: &Exchange) -> Vec<Account> {
        if self.elsewhere.get().is_none() {
            return Vec::new();
        }
        let quotas = exchange.accounts.iter().filter_map(|request| account(exchange, request));
        let mut settled = self.settled.lock();
        if settled.len() >= MOST_SETTLED {
            settled.clear();
        }
        quotas.filter(|account| settled.insert(account.name())).collect()
    }

    /// Redis could not be asked: it is looked at again with the next exchange.
    pub(super) fn forget(&self, account: &Account) {
        self.settled.lock().remove(&account.name());
    }

    /// Nobody has answered.
    pub(super) fn wait(&self, account: Account) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MOST_WAITING {
            waiting.push(account);
        }
    }

    pub(super) fn answer(&self, account: &Account, used: Used) {
        let mut answered = self.answered.lock();
        if answered.len() >= MOST_WAITING {
            // Of tenants that have asked for nothing since, for the most part. They are looked at again when they do.
            let mut settled = self.settled.lock();
            for (name, _) in answered.drain() {
                settled.remove(&name);
            }
        }
        answered.insert(account.name(), used);
    }

    /// What is still to be told of the accounts of an exchange.
    pub(super) fn answered_in(&self, exchange: &Exchange) -> Vec<(Account, Used)> {
        let mut answered = self.answered.lock();
        if answered.is_empty() {
            return Vec::new();
        }
        let quotas = exchange.accounts.iter().filter_map(|request| account(exchange, request));
        let told = |account: Account| {
            let used = answered.remove(&account.name())?;
            Some((account, used))
        };
        quotas.filter_map(told).collect()
    }

    pub(super) fn take_waiting(&self) -> Vec<Account> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Of all that a tenant uses: nothing finer is known elsewhere.
fn account(exchange: &Exchange, request: &Request) -> Option<Account> {
    let Terms::Quota { limit, starts, ends } = request.terms else { return None };
    let is_of_tenant = request.key.starts_with("day:") || request.key.starts_with("month:");
    // Who tells of former processes does not know when the period began.
    (is_of_tenant && starts > 0).then(|| Account {
        tenant: Arc::clone(&exchange.tenant),
        key: Arc::clone(&request.key),
        asker: Arc::clone(&exchange.reporter),
        spent: request.spent,
        revision: exchange.revision,
        limit,
        starts,
        ends,
    })
}

impl Account {
    fn name(&self) -> Name {
        (Arc::clone(&self.tenant), Arc::clone(&self.key))
    }

    /// What is told of it.
    pub(super) fn told(&self, used: Used) -> Exchange {
        let Self { tenant, key, spent, revision, limit, starts, ends, .. } = self.clone();
        let request = Request {
            key,
            terms: Terms::Quota { limit, starts, ends },
            spent: used.in_all,
            // What these two say here, and `want`, stands in the script.
            held: used.by_us,
            known: false,
            has_ended: true,
            want: spent,
            least: 0,
            paced: false,
        };
        Exchange { tenant, reporter: REPORTER.into(), revision, accounts: vec![request] }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl Elsewhere for Nothing {
        async fn used(&self, _: &str, _: u64) -> Option<Used> {
            None
        }
    }

    #[test]
    fn quotas_of_tenants_are_looked_at_once_and_nothing_else_is() {
        let looked = Looked::default();
        let request = |key: &str, starts| {
            let (tenant, key, asker) = ("acme".into(), key.into(), "n.1".into());
            let account = Account { tenant, key, asker, spent: 0, revision: 1, limit: 9, starts, ends: 99 };
            account.told(Used::default()).accounts.remove(0)
        };
        let accounts =
            vec![request("day:2026-05-31", 5), request("keyed/each/day:2026-05-31/00", 5), request("month:2026-05", 0)];
        let exchange = Exchange { tenant: "acme".into(), reporter: "n.1".into(), revision: 1, accounts };
        assert!(looked.new_in(&exchange).is_empty(), "there is nobody to ask");
        looked.elsewhere.set(Arc::new(Nothing)).unwrap();
        let new = looked.new_in(&exchange);
        assert_eq!(new.iter().map(|account| &*account.key).collect::<Vec<_>>(), ["day:2026-05-31"]);
        assert!(looked.new_in(&exchange).is_empty());
        looked.forget(&new[0]);
        assert_eq!(looked.new_in(&exchange), new);
        looked.wait(new[0].clone());
        assert_eq!((looked.take_waiting(), looked.take_waiting().len()), (new.clone(), 0));
        // What was answered is told once, with what was spent by then.
        let used = Used { in_all: 7, by_us: 2 };
        looked.answer(&new[0], used);
        let mut later = exchange.clone();
        later.accounts[0].spent = 3;
        let told = looked.answered_in(&later);
        assert_eq!(told, [(Account { spent: 3, ..new[0].clone() }, used)]);
        let request = told[0].0.told(used).accounts.remove(0);
        assert_eq!((request.spent, request.held, request.want), (7, 2, 3));
        assert!(looked.answered_in(&later).is_empty());
    }
}
