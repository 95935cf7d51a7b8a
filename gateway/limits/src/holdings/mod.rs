//! All leases of one tenant, or of one caller, and their exchange with the coordinator.
//!
//! | file | what happens there |
//! |---|---|
//! | `mod.rs` | what is held, and the fast path over it |
//! | `account.rs` | what was given of an account, and what was told |
//! | `exchange.rs` | when there is an exchange, and for what |
//! | `report.rs` | what is told and asked |
//! | `settle.rs` | what an answer changes |
//! | `alone.rs` | what applies while the coordinator cannot be reached |
//! | `known.rs` | what was last heard of an account |
//! | `promise.rs` | what comes by and by, while more is asked for than there is |
//! | `succession.rs` | new limits in the place of former ones |

mod account;
mod alone;
mod exchange;
mod known;
mod promise;
mod report;
mod settle;
mod succession;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use self::{account::State, known::Known};
pub(crate) use self::{alone::Verdict, promise::Found};
use crate::{
    calendar::Calendar,
    clock::Nanos,
    lease::{Leases, Taken},
    node::Node,
    terms::Bucket,
};

/// What these leases are for, and what applies to them: does not change. Other limits, other holdings.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub tenant: Arc<str>,
    /// Of the configuration.
    pub revision: u64,
    pub limits: Vec<Limit>,
    pub unreachable: Unreachable,
}

impl Plan {
    /// Whether nothing has changed but the revision.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.limits == other.limits && self.unreachable == other.unreachable
    }
}

/// One limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// What it is called in `RateLimit`, problems, metrics and logs.
    pub name: Arc<str>,
    /// Its account among those of the tenant; of a quota, without the period.
    pub key: Arc<str>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Bucket(Bucket),
    Quota { limit: u64, calendar: Calendar },
    Slots { limit: u64 },
}

impl Kind {
    /// Whether nothing is ever admitted.
    fn is_none(&self) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.burst() == 0,
            Self::Quota { limit, .. } | Self::Slots { limit } => *limit == 0,
        }
    }
}

/// What applies while the coordinator cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreachable {
    /// Each gateway admits its share of the limit.
    #[default]
    Share,
    /// Everything is admitted.
    Allow,
    /// Nothing is admitted.
    Deny,
}

/// The leases of one plan.
///
/// In this order, since a request that is admitted needs the leases and, to hold on to them, the counts of the `Arc` that
/// stand before them, and of many tenants hardly one is in the processor's cache: the counts and three leases are one line,
/// and the fourth begins the next.
#[derive(Debug)]
#[repr(C)]
pub struct Holdings {
    leases: Leases,
    known: Box<[Known]>,
    node: Arc<Node>,
    this: Weak<Self>,
    /// Until when decisions are made without the coordinator; 0: it can be reached.
    alone_until: AtomicU64,
    /// Whether somebody will look after the leases.
    scheduled: AtomicBool,
    plan: Plan,
    reporter: Arc<str>,
    state: Mutex<State>,
    /// An exchange has ended.
    exchanged: Notify,
}

/// Where a limit stands in a plan, and of which kind it is: what a request needs to know of it, so that it need
/// not look into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    const SLOTS: u32 = 1 << 31;
    const QUOTA: u32 = 1 << 30;
    const UNTIL_UPGRADE: u32 = 1 << 29;
    const INDEX: u32 = Self::UNTIL_UPGRADE - 1;

    fn new(index: usize, kind: &Kind) -> Self {
        // No memory holds a plan that is longer.
        let index = u32::try_from(index).unwrap_or(u32::MAX) & Self::INDEX;
        Self(match kind {
            Kind::Bucket(_) => index,
            Kind::Quota { .. } => index | Self::QUOTA,
            Kind::Slots { .. } => index | Self::SLOTS,
        })
    }

    pub fn index(self) -> usize {
        (self.0 & Self::INDEX) as usize
    }

    pub fn is_quota(self) -> bool {
        self.0 & Self::QUOTA != 0
    }

    pub fn is_slots(self) -> bool {
        self.0 & Self::SLOTS != 0
    }

    pub(crate) fn is_bucket(self) -> bool {
        !self.is_quota() && !self.is_slots()
    }

    /// What a request of this weight takes here: of slots, one.
    pub(crate) fn cost(self, cost: u64) -> u64 {
        if self.is_slots() { 1 } else { cost }
    }

    /// The same, for a request to switch protocols: what it takes there it holds until it has.
    #[must_use]
    pub fn until_upgrade(self) -> Self {
        Self(self.0 | Self::UNTIL_UPGRADE)
    }

    pub(crate) fn is_until_upgrade(self) -> bool {
        self.0 & Self::UNTIL_UPGRADE != 0
    }
}

/// The places of the limits that apply to a request: seldom more than fit here.
pub type Places = SmallVec<[Place; 8]>;

/// What a request took of one limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) place: Place,
    pub(crate) cost: u64,
    pub(crate) taken: Taken,
}

impl Took {
    /// By a request of this weight.
    pub(crate) fn new(place: Place, cost: u64, taken: Taken) -> Self {
        Self { place, cost: place.cost(cost), taken }
    }
}

impl Holdings {
    /// Leases are taken when the first request comes.
    pub fn new(plan: Plan, node: &Arc<Node>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            leases: Leases::new(plan.limits.len()),
            known: plan.limits.iter().map(|_| Known::default()).collect(),
            alone_until: AtomicU64::new(0),
            scheduled: AtomicBool::new(false),
            state: Mutex::new(State::new()),
            reporter: node.new_reporter(),
            plan,
            node: Arc::clone(node),
            this: this.clone(),
            exchanged: Notify::new(),
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn limit(&self, place: Place) -> Option<&Limit> {
        self.plan.limits.get(place.index())
    }

    /// The places of the limits that `chosen` says yes to, in the order in which they are asked.
    pub fn places(&self, chosen: impl Fn(&Limit) -> bool) -> Places {
        let limits = self.plan.limits.iter().enumerate().filter(|(_, limit)| chosen(limit));
        limits.map(|(index, limit)| Place::new(index, &limit.kind)).collect()
    }

    /// The tokens at hand, one lease for each limit.
    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Takes what a request costs from one limit, if it is at hand.
    ///
    /// A few nanoseconds, no lock, no allocation, no call.
    pub(crate) fn take(&self, place: Place, cost: u64, now: Nanos) -> Option<Took> {
        let taken = self.leases.get(place.index())?.take(place.cost(cost), now)?;
        if taken.low {
            self.renew(now);
        }
        let took = Took::new(place, cost, taken);
        if place.is_slots() {
            // Slots that come and go leave no other trace.
            self.known.get(place.index())?.ask(took.cost);
        }
        Some(took)
    }

    /// A request found too few tokens here, and there may be some elsewhere.
    pub(crate) fn asked_in_vain(&self, place: Place, cost: u64) {
        if let Some(known) = self.known.get(place.index()) {
            known.ask(place.cost(cost));
        }
    }

    /// Gives back what a request took and did not use, or a slot that it no longer needs.
    pub(crate) fn put_back(&self, took: Took) {
        if let Some(lease) = self.leases.get(took.place.index()) {
            lease.put_back(took.taken, took.cost);
        }
    }

    /// What a client may be told of a limit: what remains, and how long until there is more.
    pub fn remaining(&self, place: Place, now: Nanos) -> (u64, Option<Duration>) {
        let (index, Some(described)) = (place.index(), self.limit(place)) else { return (0, None) };
        let (Some(lease), Some(known)) = (self.leases.get(index), self.known.get(index)) else { return (0, None) };
        let own = if lease.has_ended(now) { 0 } else { lease.tokens() };
        let remaining = own.saturating_add(known.left());
        let barred = Duration::from_nanos(known.barred_until().saturating_sub(now));
        match &described.kind {
            Kind::Bucket(bucket) => {
                let remaining = remaining.min(bucket.burst());
                // A token comes within this time, unless it is full.
                let next = bucket.period() / u32::try_from(bucket.tokens()).unwrap_or(u32::MAX);
                (remaining, (remaining < bucket.burst()).then(|| next.max(barred)))
            }
            Kind::Quota { limit: quota, .. } => {
                let left = known.renewed_at().saturating_sub(now);
                (remaining.min(*quota), (left > 0).then(|| Duration::from_nanos(left)))
            }
            Kind::Slots { limit } => (remaining.min(*limit), None),
        }
    }

    /// Whether the coordinator is known to be out of reach, or to give nothing yet.
    pub fn is_alone(&self, now: Nanos) -> bool {
        now < self.alone_until.load(Relaxed)
    }
}
