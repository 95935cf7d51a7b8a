//! Rate limits, quotas and concurrency limits, exact over any number of gateways, without a network call
//! on the hot path.
//!
//! A **coordinator** ([`coordinator`]) keeps one account for each limit. Gateways take **leases** from it:
//! tokens that are debited before they are spent, so that nothing is ever admitted twice. A request takes
//! from the leases that its gateway holds ([`holdings`]), from all that apply or from none.
//!
//! From the most basic to the most general:
//!
//! | module | what it knows |
//! |---|---|
//! | [`terms`] | what a limit is: a token bucket, a quota, slots; which values are possible |
//! | [`calendar`] | when a day or month begins and ends in a time zone |
//! | [`ledger`] | the arithmetic of an account, which `coordinator/redis/acquire.lua` repeats |
//! | [`lease`] | the tokens at hand, in one atomic word |
//! | [`coordinator`] | who keeps the accounts: this process, or Redis |
//! | [`node`] | what all leases of a gateway share |
//! | [`holdings`] | all leases of one tenant, or of one caller, and their exchange with the coordinator |
//! | [`admission`] | whether a request may pass: everything that applies, or nothing |
//! | [`registry`] | all leases of a gateway, kept over changes of configuration |
//! | [`fields`] | what clients are told: `RateLimit`, `Retry-After` |
//! | [`journal`] | what is still known of quotas when the process has been killed |
//! | [`lock`](mod@lock) | the lock of a file that several processes write |
//! | [`oracle`] | what one exact bucket would have done, to judge by |
//!
//! Apart from all that, [`shedding`] protects the node itself: how many requests a worker has in flight
//! before it refuses the less important ones.

pub mod admission;
pub mod calendar;
pub mod clock;
pub mod coordinator;
pub mod fields;
pub mod holdings;
pub mod journal;
pub mod lease;
#[cfg(test)]
mod lease_tests;
pub mod ledger;
pub mod lock;
pub mod node;
pub mod oracle;
pub mod registry;
pub mod shedding;
pub mod terms;

mod sync {
    //! What the model checker replaces, see `tests/lease_model.rs`.
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}
