//! What is stored for one tenant.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::HeaderMap;
use moka::{ops::compute::Op, sync::Cache};
use parking_lot::Mutex;

use super::{Storage, Totals, lent::Lent};
use crate::{
    key::Resource,
    purge::Purges,
    stored::{Family, Stored},
    time::Timestamp,
    vary::Wishes,
};

type Families = Cache<Arc<[u8]>, Arc<Family>, RandomState>;

/// The cache of one tenant. Whatever the origin has answered is taken in: those who wait for it shall find it. What goes
/// for it is what came first and was not used since.
pub struct Partition {
    tenant: Box<str>,
    budget: AtomicU64,
    storage: Arc<Storage>,
    purges: Arc<Purges>,
    held: Arc<Held>,
    lent: Lent,
    /// Bytes of responses on their way into it.
    filling: AtomicU64,
    /// Made with the first response: most tenants of a large node store nothing.
    families: OnceLock<Families>,
    /// The keys in the order in which they came, to evict from.
    order: Mutex<VecDeque<Arc<[u8]>>>,
}

/// What the tenant has.
#[derive(Debug)]
struct Held {
    totals: Arc<Totals>,
    bytes: AtomicU64,
    responses: AtomicU64,
    evictions: AtomicU64,
}

/// What a tenant's cache holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub bytes: u64,
    /// Keys; each has one variant or more.
    pub keys: u64,
    pub evictions: u64,
}

/// What was found for a request.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// A response that may answer it, as far as key and `Vary` are concerned.
    Found(Arc<Stored>),
    /// The key is known, but nothing is stored for these fields.
    OtherVariants,
    Nothing,
    /// Responses for this key were not storable lately.
    Passes,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("tenant", &self.tenant).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Partition {
    pub(super) fn new(tenant: &str, budget: u64, storage: Arc<Storage>, purges: Arc<Purges>) -> Self {
        let lent = Lent::new(storage.totals.clone());
        let held = Held {
            totals: storage.totals.clone(),
            bytes: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        };
        Self {
            tenant: tenant.into(),
            budget: AtomicU64::new(budget),
            storage,
            purges,
            held: Arc::new(held),
            lent,
            filling: AtomicU64::new(0),
            families: OnceLock::new(),
            order: Mutex::default(),
        }
    }

    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Bytes that the tenant may have at most.
    pub fn budget(&self) -> u64 {
        self.budget.load(Relaxed)
    }

    /// Lets the tenant have more or less from now on. What does not fit goes at once, and nothing else.
    pub fn set_budget(&self, budget: u64) {
        self.budget.store(budget, Relaxed);
        self.shrink();
    }

    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    pub(super) fn filling(&self) -> &AtomicU64 {
        &self.filling
    }

    pub fn bytes(&self) -> u64 {
        self.held.bytes.load(Relaxed)
    }

    pub fn counts(&self) -> Counts {
        Counts {
            bytes: self.bytes(),
            keys: self.held.responses.load(Relaxed),
            evictions: self.held.evictions.load(Relaxed),
        }
    }

    /// What is stored under a key for a request with these fields.
    pub fn find(&self, key: &[u8], request: &HeaderMap, now: Timestamp) -> Lookup {
        let Some(family) = self.families.get().and_then(|families| families.get(key)) else { return Lookup::Nothing };
        family.touch();
        match family.find(request) {
            Some(stored) if self.purges.spare(&family.resource, stored) => Lookup::Found(stored.clone()),
            // It will be replaced; until then it is as good as gone.
            Some(_) => Lookup::Nothing,
            None if family.passes(now) => Lookup::Passes,
            None if family.is_empty() => Lookup::Nothing,
            None => Lookup::OtherVariants,
        }
    }

    /// Whether what was found has not been purged meanwhile.
    pub fn still_holds(&self, resource: &Resource, stored: &Stored) -> bool {
        self.purges.spare(resource, stored)
    }

    /// Stores a response in place of the one with the same selection. `false`: there is no room for it, or clients
    /// still have too much of what was stored before.
    pub fn store(&self, key: &[u8], resource: &Resource, stored: Stored) -> bool {
        let stored = Arc::new(stored);
        let most = usize::try_from(self.budget()).unwrap_or(usize::MAX);
        let alone = Family::new(key.into(), resource.clone()).with(stored.clone(), most).weight();
        // Where there are other variants, they make room for what does not fit beside them.
        let before = self.families.get().and_then(|families| families.get(key)).map(|family| family.weight());
        let more = before.map_or(alone, |before| alone.min(most.saturating_sub(before)));
        if alone > most || self.lends_too_much() || !self.make_room(more as u64) {
            return false;
        }
        self.change(key, resource, |family| Some(family.with(stored.clone(), most)));
        true
    }

    /// Whether clients have so much of what has left the cache that they are not to get more of what could leave it.
    fn lends_too_much(&self) -> bool {
        let most = self.budget() / 2;
        self.lent.sweep();
        if !self.lent.is_too_much(most) {
            return false;
        }
        // Others may have nothing to store for a long time, and what has gone may still wait for its end.
        for partition in self.storage.partitions() {
            if let Some(families) = partition.families.get() {
                families.run_pending_tasks();
            }
            partition.lent.sweep();
        }
        self.lent.is_too_much(most)
    }

    /// Makes room for so many bytes, of the tenant and of the node. `false`: they cannot be had.
    fn make_room(&self, bytes: u64) -> bool {
        let budget = self.budget();
        if bytes > budget {
            return false;
        }
        // Before it is there: what is new and not used yet would have to go first.
        let excess = (self.bytes() + bytes).saturating_sub(budget);
        if excess > 0 {
            self.evict(excess);
        }
        self.storage.make_room(self, bytes)
    }

    /// What several have stored at the same time may be too much together, and what takes the place of something else may
    /// be larger.
    fn shrink(&self) {
        let excess = self.bytes().saturating_sub(self.budget());
        if excess > 0 {
            self.evict(excess);
        }
    }

    /// Puts a validated response in the place of the one that was validated, unless that has gone meanwhile.
    pub fn renew(&self, key: &[u8], resource: &Resource, old: &Arc<Stored>, new: &Arc<Stored>) {
        self.change(key, resource, |family| {
            let holds = family.variants().iter().any(|stored| Arc::ptr_eq(stored, old));
            holds.then(|| family.without(old).with(new.clone(), usize::MAX))
        });
    }

    /// Forgets what would answer a request with these fields: all of it, or an older response would come up again.
    pub fn forget(&self, key: &[u8], resource: &Resource, request: &HeaderMap) {
        self.change(key, resource, |family| {
            let mut wishes = Wishes::of(request);
            let (gone, left): (Vec<_>, Vec<_>) =
                family.variants().iter().partition(|stored| stored.selection.matches(&mut wishes));
            (!gone.is_empty()).then(|| family.of(left.into_iter().cloned().collect()))
        });
    }

    /// Notes that responses for this key are not storable, until then.
    pub fn pass(&self, key: &[u8], resource: &Resource, until: Timestamp) {
        let weight = Family::new(key.into(), resource.clone()).weight();
        if !self.make_room(weight as u64) {
            return;
        }
        self.change(key, resource, |family| Some(family.passing(until)));
    }

    /// Changes the family of a key; none: leaves it as it is.
    fn change(&self, key: &[u8], resource: &Resource, change: impl Fn(&Family) -> Option<Family>) {
        let key: Arc<[u8]> = key.into();
        let families = self.families();
        let mut is_new = false;
        let _ = families.entry(key.clone()).and_compute_with(|entry| {
            is_new = entry.is_none();
            let current =
                entry.map_or_else(|| Arc::new(Family::new(key.clone(), resource.clone())), moka::Entry::into_value);
            let Some(next) = change(&current) else {
                is_new = false;
                return Op::Nop;
            };
            let stays = |body: &Bytes| next.variants().iter().any(|stored| stored.body.as_ptr() == body.as_ptr());
            for gone in current.variants().iter().filter(|stored| !stays(&stored.body)) {
                self.lent.add(gone);
            }
            self.held.add(next.weight());
            if is_new {
                self.held.responses.fetch_add(1, Relaxed);
            }
            Op::Put(Arc::new(next))
        });
        if is_new {
            self.order.lock().push_back(key);
        }
        self.shrink();
        // What has been replaced goes now, and not some time later.
        families.run_pending_tasks();
    }

    fn families(&self) -> &Families {
        self.families.get_or_init(|| {
            let held = self.held.clone();
            // It has no bound of its own: by that it would refuse what is asked for less often than what it has.
            Cache::builder()
                .eviction_listener(move |_, family: Arc<Family>, cause| {
                    held.remove(family.weight());
                    if cause != moka::notification::RemovalCause::Replaced {
                        held.responses.fetch_sub(1, Relaxed);
                    }
                })
                .build_with_hasher(RandomState::default())
        })
    }

    /// Frees at least so many bytes, if it has as many; how many it has freed. What was used lately gets a second
    /// chance.
    pub(super) fn evict(&self, bytes: u64) -> u64 {
        let Some(families) = self.families.get() else { return 0 };
        let before = self.bytes();
        let mut chances = self.order.lock().len();
        while before.saturating_sub(self.bytes()) < bytes {
            let Some(key) = self.order.lock().pop_front() else { break };
            let Some(family) = families.get(&key) else { continue };
            if family.take_used() && chances > 0 {
                chances -= 1;
                self.order.lock().push_back(key);
                continue;
            }
            families.invalidate(&key);
            for gone in family.variants() {
                self.lent.add(gone);
            }
            self.held.evictions.fetch_add(1, Relaxed);
        }
        families.run_pending_tasks();
        before.saturating_sub(self.bytes())
    }

    #[cfg(test)]
    pub(super) fn keys_in_order(&self) -> usize {
        self.order.lock().len()
    }
}

impl Held {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.totals.stored.fetch_add(bytes as u64, Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as u64, Relaxed);
        self.totals.stored.fetch_sub(bytes as u64, Relaxed);
    }
}

impl Drop for Held {
    /// The cache has gone without a word about what was in it.
    fn drop(&mut self) {
        self.totals.stored.fetch_sub(self.bytes.load(Relaxed), Relaxed);
    }
}
