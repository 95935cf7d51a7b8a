//! Who keeps the accounts that gateways take their leases from.

mod memory;
pub mod redis;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::memory::MemoryCoordinator;
use crate::terms::Terms;

/// A bucket's lease ends this long after it was given, unless it is renewed. What is left of it is lost.
pub const LEASE_TIME: Duration = Duration::from_millis(1500);

/// A slot's lease: longer, since what holds the slot goes on while the lease is renewed.
pub const SLOT_LEASE_TIME: Duration = Duration::from_secs(5);

/// Leases are renewed this often at least, while they are in use.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// A request waits this long for a coordinator that is reached over the network. No more than ten milliseconds with
/// what comes on top: the next tick of the timer, and until the processor is there.
pub const PATIENCE: Duration = Duration::from_millis(8);

/// Keeps one account for each limit.
#[async_trait]
pub trait Coordinator: fmt::Debug + Send + Sync {
    /// Tells of what was spent, gives back what is not held any more, and takes new tokens: for several
    /// accounts of one tenant at once, each for itself.
    ///
    /// # Errors
    /// Then nothing is known: it may or may not have been carried out. The next exchange puts it right,
    /// since it says what was spent in all, and what is held.
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError>;

    /// The same at once, if nothing has to be waited for.
    fn exchange_now(&self, exchange: &Exchange) -> Option<Result<Vec<Answer>, CoordinatorError>> {
        let _ = exchange;
        None
    }

    /// How many gateways share the accounts, this one included.
    fn live(&self) -> u64;

    /// How long a request waits for an answer before it is decided without one.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Whether it is not known to be out of reach.
    fn is_reachable(&self) -> bool {
        true
    }

    /// Whether accounts promise what is still to come, so that a gateway need not ask for each token while more is
    /// asked for than there is. Not worth it where asking costs nothing.
    fn promises(&self) -> bool {
        true
    }

    /// How many connections there have been: with each new one, what was told before may have been forgotten.
    fn connections(&self) -> u64 {
        0
    }

    /// Over this connection and all before it, everything has been told of quotas that this gateway knows. Until all
    /// gateways have, a coordinator that may have forgotten gives nothing of them.
    fn has_told(&self, connections: u64) {
        let _ = connections;
    }
}

/// What one reporter says about some accounts of a tenant.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub tenant: Arc<str>,
    /// Who says so; its numbers of tokens spent only ever grow.
    pub reporter: Arc<str>,
    /// Of the configuration that the terms are from. Accounts take no terms from a lower one than before.
    pub revision: u64,
    pub accounts: Vec<Request>,
}

/// What is said about one account, and asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names the account among those of the tenant.
    pub key: Arc<str>,
    pub terms: Terms,
    /// Tokens spent by this reporter in all. Of slots: those in use.
    pub spent: u64,
    /// Tokens that it holds, unspent.
    pub held: u64,
    /// Whether it has had an answer about this account within [`ledger::KEPT`](crate::ledger::KEPT): then an
    /// account that is not there has been lost.
    pub known: bool,
    /// The reporter is no more: of a quota, what it was given counts as spent.
    pub has_ended: bool,
    /// New tokens that it would like.
    pub want: u64,
    /// Fewer new tokens than this are of no use to it.
    pub least: u64,
    /// Where there are too few, it takes a promise: see [`Pace`].
    pub paced: bool,
}

/// What an account answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    /// What comes to the reporter beside that, by and by.
    pub pace: Pace,
    /// What is left for everybody.
    pub left: u64,
    /// The account's time, in microseconds since 1970.
    pub now: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// So many more. Those held and these end after this time; what was told is on record.
    Granted { tokens: u64, ends_in: Duration },
    /// Less than the least that was asked for, and not more before this time is over. Those held go on
    /// like granted ones.
    NoneUntil { wait: Duration, ends_in: Duration },
    /// The account may have lost what it knew, and gives nothing until every lease of before has ended.
    Recovering { wait: Duration },
    /// The quota's period is not now.
    OtherPeriod,
}

/// What a bucket promises to a reporter of what is still to come: so many units each microsecond, from the answer on
/// until the lease ends or the reporter tells the next time. Nobody else is given of it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// 0: nothing is promised.
    pub rate: u64,
    /// Units that one token counts.
    pub unit: u64,
    /// It is less than the reporter's part, which others still have: it is worth asking again after this time.
    /// 0: it is not.
    pub again_in: Duration,
}

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoordinatorError {
    #[error("the coordinator cannot be reached: {0}")]
    Unreachable(String),
    #[error("the coordinator did not answer in time")]
    TimedOut,
    #[error("the coordinator answered with something else than was asked: {0}")]
    Malformed(String),
}
