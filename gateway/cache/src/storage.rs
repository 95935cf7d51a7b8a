//! Everything that is stored, in memory, within the budgets of node and tenants.
//!
//! Each tenant has a cache of its own, which holds no more than the tenant may have. All of them together hold no more
//! than the node may have: when that is full, room is made where most is held beyond an equal share. A tenant that stores
//! much beyond its share evicts what is its own, and never what is another's; nobody gives to others what is within its
//! share.

mod fill;
mod lent;
mod order;
mod partition;
mod passes;
mod twin;

use std::{
    collections::HashMap,
    ptr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};

pub(crate) use self::twin::Place;
pub use self::{
    fill::{Fill, NotFilled},
    partition::{Counts, Lookup, Partition},
    twin::Twin,
};
use self::{passes::Passes, twin::Twins};
use crate::purge::Purges;

/// Responses on their way into the cache may take one of so many parts of the node's budget, and so may bodies that are
/// held once more, for the kernel to send. The rest is for what is stored.
const PARTS: u64 = 8;

/// How often lent bodies of all tenants are gone through at most.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// What has to be freed at once is rounded up to this part of a share, so that not every response makes room anew.
const BATCH: u64 = 64;

/// The cache of a node.
#[derive(Debug)]
pub struct Storage {
    totals: Arc<Totals>,
    twins: Arc<Twins>,
    partitions: RwLock<HashMap<Box<str>, Entry>>,
    passes: Passes,
    /// Who makes room; others that need some wait for it.
    making_room: Mutex<()>,
    /// When lent bodies of all tenants were last gone through.
    swept: Mutex<Option<Instant>>,
}

/// Bytes of all tenants together.
#[derive(Debug, Default)]
struct Totals {
    budget: u64,
    stored: AtomicU64,
    part: u64,
    filling: AtomicU64,
    /// Of bodies that are no longer stored, and that clients have not got all of yet.
    lent: AtomicU64,
    /// Tenants of which there are such bodies.
    lenders: AtomicU64,
}

impl Totals {
    /// Bytes that bodies which clients still have may take beside what is stored.
    fn most_lent(&self) -> u64 {
        2 * self.part
    }
}

#[derive(Debug)]
struct Entry {
    partition: Weak<Partition>,
    purges: Arc<Purges>,
}

impl Storage {
    /// `budget`: bytes that all responses together may take.
    pub fn new(budget: u64) -> Arc<Self> {
        let part = budget / PARTS;
        let totals = Totals { budget: budget - 2 * part, part, ..Totals::default() };
        Arc::new(Self {
            totals: Arc::new(totals),
            twins: Twins::new(part),
            partitions: RwLock::default(),
            passes: Passes::default(),
            making_room: Mutex::new(()),
            swept: Mutex::default(),
        })
    }

    /// The cache of a tenant, the same for the same tenant as long as somebody holds it. `budget`: bytes that a tenant
    /// may have at most whose cache is new; else it stays what it is until [`Partition::set_budget`].
    pub fn partition(self: &Arc<Self>, tenant: &str, budget: u64) -> Arc<Partition> {
        let mut partitions = self.partitions.write();
        let existing = partitions.get(tenant);
        if let Some(current) = existing.and_then(|entry| entry.partition.upgrade()) {
            return current;
        }
        // Purges outlive the responses: those under way when a tenant goes and comes back are concerned as well.
        let purges = existing.map_or_else(Arc::default, |entry| entry.purges.clone());
        let partition = Arc::new(Partition::new(tenant, budget, self.clone(), purges.clone()));
        partitions.insert(tenant.into(), Entry { partition: Arc::downgrade(&partition), purges });
        partition
    }

    /// What was purged of a tenant; none where no tenant of that name uses the cache.
    pub fn purges(&self, tenant: &str) -> Option<Arc<Purges>> {
        let partitions = self.partitions.read();
        partitions.get(tenant).filter(|entry| entry.partition.strong_count() > 0).map(|entry| entry.purges.clone())
    }

    /// The purges of all tenants.
    pub fn all_purges(&self) -> Vec<Arc<Purges>> {
        self.partitions.read().values().map(|entry| entry.purges.clone()).collect()
    }

    /// The caches of all tenants that have one.
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().values().filter_map(|entry| entry.partition.upgrade()).collect()
    }

    /// Bytes that stored responses take.
    pub fn stored_bytes(&self) -> u64 {
        self.totals.stored.load(Relaxed)
    }

    /// Looks which bodies that have left the caches nobody has any more, from time to time: there may be many tenants.
    pub fn sweep_lent(&self) {
        let Some(mut swept) = self.swept.try_lock() else { return };
        if swept.is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL) {
            self.partitions().iter().for_each(|partition| partition.sweep_lent());
            *swept = Some(Instant::now());
        }
    }

    fn passes(&self) -> &Passes {
        &self.passes
    }

    /// Bytes of bodies that are no longer stored, and that clients have not got all of yet.
    pub fn lent_bytes(&self) -> u64 {
        self.totals.lent.load(Relaxed)
    }

    pub(crate) fn twins(&self) -> &Arc<Twins> {
        &self.twins
    }

    /// Bytes that bodies take once more, in files that the kernel sends.
    pub fn twin_bytes(&self) -> u64 {
        self.twins.bytes()
    }

    /// Bytes that stored responses may take.
    pub fn budget(&self) -> u64 {
        self.totals.budget
    }

    /// Bytes of the largest body that can be stored, whoever wants it.
    pub fn largest(&self) -> u64 {
        self.totals.part / 2
    }

    /// Makes room for so many bytes of this tenant. `false`: they cannot be had, since they are more than its share, and
    /// others have not so much beyond theirs.
    fn make_room(&self, of: &Partition, bytes: u64) -> bool {
        if bytes > self.totals.budget {
            return false;
        }
        if self.excess(bytes) == 0 {
            return true;
        }
        let _alone = self.making_room.lock();
        loop {
            let excess = self.excess(bytes);
            if excess == 0 {
                return true;
            }
            let partitions = self.partitions();
            let others = || partitions.iter().map(|partition| &**partition).filter(|other| !ptr::eq(*other, of));
            let share = self.totals.budget / (others().filter(|other| other.bytes() > 0).count() as u64 + 1);
            let spare = |other: &Partition| other.bytes().saturating_sub(share);
            // Who would have more than its share makes room itself. If it has less, somebody has more.
            let own = (of.bytes() + bytes).saturating_sub(share).min(of.bytes());
            if bytes > share && own + others().map(spare).sum::<u64>() < excess {
                return false;
            }
            let (victim, most) = match others().max_by_key(|other| other.bytes()) {
                Some(largest) if own == 0 => (largest, spare(largest)),
                _ => (of, own),
            };
            if victim.evict(excess.max(share / BATCH).min(most).max(1)) == 0 {
                return false;
            }
        }
    }

    fn excess(&self, more: u64) -> u64 {
        (self.stored_bytes() + more).saturating_sub(self.totals.budget)
    }
}

#[cfg(test)]
mod tests;
