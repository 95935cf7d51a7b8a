//! What is stored for one tenant.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::HeaderMap;
use moka::sync::Cache;
use parking_lot::Mutex;

use super::{Storage, Totals, lent::Lent, order::Order};
use crate::{
    key::Resource,
    purge::{Purge, Purges},
    stored::{Family, Stored},
    time::Timestamp,
    vary::Wishes,
};

type Families = Cache<Arc<[u8]>, Arc<Family>, RandomState>;

/// The cache of one tenant. Whatever the origin has answered is taken in: those who wait for it shall find it. What goes
/// for it is what came first and was not used since, new things first.
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
    /// The keys in the order in which they go. Look-ups do not need it; all that changes something has
    /// it locked meanwhile.
    order: Mutex<Order>,
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
    /// Keys; few have no variant any more.
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
        let mut order = self.order.lock();
        self.budget.store(budget, Relaxed);
        self.evict_from(&mut order, self.bytes().saturating_sub(budget));
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
        let mut has_others = false;
        if let Some(family) = self.families.get().and_then(|families| families.get(key)) {
            family.touch();
            match family.find(request) {
                Some(stored) if self.purges.spare(&family.resource, stored) => return Lookup::Found(stored.clone()),
                // It will be replaced; until then it is as good as gone. What was noted before it was stored counts no
                // more, and what is noted after it was purged takes it away.
                Some(_) => return Lookup::Nothing,
                None => has_others = !family.is_empty(),
            }
        }
        if self.storage.passes().contains(key, now) {
            Lookup::Passes
        } else if has_others {
            Lookup::OtherVariants
        } else {
            Lookup::Nothing
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
        let alone = Family::new(key.into(), resource.clone()).with(stored.clone(), usize::MAX).weight();
        if self.lends_too_much() {
            return false;
        }
        // First of its own, and not under the lock where another tenant has to.
        let more = self.fit_own_budget(&mut self.order.lock(), key, alone);
        if !more.is_some_and(|more| self.storage.make_room(self, more)) {
            return false;
        }
        let mut order = self.order.lock();
        if self.fit_own_budget(&mut order, key, alone).is_none() {
            return false;
        }
        let most = usize::try_from(self.budget()).unwrap_or(usize::MAX);
        self.change(&mut order, key, resource, |family| Some(family.with(stored.clone(), most)));
        true
    }

    /// Makes room within the budget for what takes so much alone; how much it takes in the end, unless it does not fit
    /// at all. Before it is there: what is new and not used yet would have to go first.
    fn fit_own_budget(&self, order: &mut Order, key: &[u8], alone: usize) -> Option<u64> {
        let (alone, budget) = (alone as u64, self.budget());
        if alone > budget {
            return None;
        }
        // Where there are other variants, they make room for what does not fit beside them.
        let before = self.families.get().and_then(|families| families.get(key)).map(|family| family.weight() as u64);
        let more = before.map_or(alone, |before| alone.min(budget.saturating_sub(before)));
        self.evict_from(order, (self.bytes() + more).saturating_sub(budget));
        Some(more)
    }

    /// Whether clients have so much of what has left the cache that they are not to get more of what could leave it.
    fn lends_too_much(&self) -> bool {
        let most = self.budget() / 2;
        self.sweep_lent();
        if !self.lent.is_too_much(most) {
            return false;
        }
        // Others may have nothing to store for a long time.
        self.storage.sweep_lent();
        self.lent.is_too_much(most)
    }

    /// Lets go of bodies that have left the cache and that no client has any more.
    pub(super) fn sweep_lent(&self) {
        if let Some(families) = self.families.get() {
            families.run_pending_tasks();
        }
        self.lent.sweep();
    }

    /// Puts a validated response in the place of the one that was validated. `false`: that has gone meanwhile.
    pub fn renew(&self, key: &[u8], resource: &Resource, old: &Arc<Stored>, new: &Arc<Stored>) -> bool {
        let mut order = self.order.lock();
        let renewed = self.change(&mut order, key, resource, |family| {
            let holds = family.variants().iter().any(|stored| Arc::ptr_eq(stored, old));
            holds.then(|| family.without(old).with(new.clone(), usize::MAX))
        });
        // It may have longer fields: of the tenant's own budget first, and of the node's not under the lock.
        self.evict_from(&mut order, self.bytes().saturating_sub(self.budget()));
        drop(order);
        self.storage.make_room(self, 0);
        renewed
    }

    /// Forgets what would answer a request with these fields: all of it, or an older response would come up again.
    pub fn forget(&self, key: &[u8], resource: &Resource, request: &HeaderMap) {
        if !self.families.get().is_some_and(|families| families.contains_key(key)) {
            return;
        }
        self.change(&mut self.order.lock(), key, resource, |family| {
            let mut wishes = Wishes::of(request);
            let (gone, left): (Vec<_>, Vec<_>) =
                family.variants().iter().partition(|stored| stored.selection.matches(&mut wishes));
            (!gone.is_empty()).then(|| family.of(left.into_iter().cloned().collect()))
        });
    }

    /// Notes that responses for this key are not storable, until then. What was purged of them goes: it would hide the note
    /// from those who wait.
    pub fn pass(&self, key: &[u8], until: Timestamp) {
        self.storage.passes().add(key, until);
        let Some(family) = self.families.get().and_then(|families| families.get(key)) else { return };
        let is_purged = |stored: &Arc<Stored>| !self.purges.spare(&family.resource, stored);
        if family.variants().iter().any(is_purged) {
            self.change(&mut self.order.lock(), key, &family.resource, |family| {
                let (gone, left): (Vec<_>, Vec<_>) = family.variants().iter().partition(|stored| is_purged(stored));
                (!gone.is_empty()).then(|| family.of(left.into_iter().cloned().collect()))
            });
        }
    }

    /// Changes the family of a key; none: leaves it as it is, and returns `false`. Under the lock of the order, as all that
    /// changes something: what is in the cache stands there, once, and what leaves the cache does so once.
    fn change(
        &self,
        order: &mut Order,
        key: &[u8],
        resource: &Resource,
        change: impl Fn(&Family) -> Option<Family>,
    ) -> bool {
        let key: Arc<[u8]> = key.into();
        let families = self.families();
        let current = families.get(&key);
        let is_new = current.is_none();
        let current = current.unwrap_or_else(|| Arc::new(Family::new(key.clone(), resource.clone())));
        let Some(next) = change(&current) else { return false };
        let next = Arc::new(next);
        self.held.add(next.weight());
        if is_new {
            self.held.responses.fetch_add(1, Relaxed);
            order.add(key.clone(), next.weight() as u64);
        }
        families.insert(key, next.clone());
        // What has been replaced goes now, and not some time later.
        families.run_pending_tasks();
        // Once nobody finds it any more: who has it now is all who will ever have.
        let stays = |body: &Bytes| next.variants().iter().any(|stored| stored.body.as_ptr() == body.as_ptr());
        for gone in current.variants().iter().filter(|stored| !stays(&stored.body)) {
            self.lent.add(gone);
        }
        true
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
        self.evict_from(&mut self.order.lock(), bytes)
    }

    fn evict_from(&self, order: &mut Order, bytes: u64) -> u64 {
        let Some(families) = self.families.get().filter(|_| bytes > 0) else { return 0 };
        let mut freed = 0;
        let mut chances = order.len();
        while freed < bytes {
            let Some(key) = order.next() else { break };
            let Some(family) = families.get(&key) else { continue };
            if family.take_used() && chances > 0 {
                chances -= 1;
                order.keep(key, family.weight() as u64);
                continue;
            }
            families.invalidate(&key);
            order.let_go(&key, family.weight() as u64);
            for gone in family.variants() {
                self.lent.add(gone);
            }
            freed += family.weight() as u64;
            self.held.evictions.fetch_add(1, Relaxed);
        }
        families.run_pending_tasks();
        freed
    }

    #[cfg(test)]
    pub(super) fn keys_in_order(&self) -> usize {
        self.order.lock().len()
    }
}

impl Drop for Partition {
    /// Nothing is stored any more: that all of it is purged takes less room than what it was that was purged.
    fn drop(&mut self) {
        self.purges.add(&Purge::All);
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
