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
//! | [`ledger`] | the arithmetic of an account, which `redis/acquire.lua` repeats |
//! | [`lease`] | the tokens at hand, in one atomic word |
//! | [`coordinator`] | who keeps the accounts: this process, or Redis |
//! | [`holdings`] | all leases of one tenant, or of one caller, and their exchange with the coordinator |
//!
//! Apart from all that, [`shedding`] protects the node itself: how many requests a worker has in flight
//! before it refuses the less important ones.

pub mod clock;
pub mod coordinator;
pub mod holdings;
pub mod lease;
pub mod ledger;
pub mod shedding;
pub mod terms;

mod sync {
    //! What the model checker replaces, see `tests/lease_model.rs`.
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}
