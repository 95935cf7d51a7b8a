//! Bodies that have left the cache while clients have not yet got all of them.
//!
//! They take memory as before, and whoever has much stored anew and reads it slowly could have any amount of it. So they
//! are kept in mind until nobody has them, and while a tenant has too many of them, nothing new is stored for it: what
//! is not stored is in memory only as far as it is on its way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::Totals;
use crate::stored::Stored;

/// Smaller ones are hardly more than what a connection has in its buffers anyway.
const SMALLEST: usize = 16 * 1024;

/// Those of one tenant.
#[derive(Debug)]
pub(super) struct Lent {
    totals: Arc<Totals>,
    responses: Mutex<Vec<Arc<Stored>>>,
    bytes: AtomicU64,
}

impl Lent {
    pub(super) fn new(totals: Arc<Totals>) -> Self {
        Self { totals, responses: Mutex::default(), bytes: AtomicU64::new(0) }
    }

    /// Takes note of a response that leaves the cache, where somebody has its body.
    pub(super) fn add(&self, stored: &Arc<Stored>) {
        if stored.body.len() < SMALLEST || !stored.is_in_use() {
            return;
        }
        let length = stored.body.len() as u64;
        self.bytes.fetch_add(length, Relaxed);
        self.totals.lent.fetch_add(length, Relaxed);
        self.responses.lock().push(stored.clone());
    }

    /// Whether the tenant has as much as it leaves for all others, or as it may have for itself.
    pub(super) fn is_too_much(&self, most: u64) -> bool {
        let own = self.bytes.load(Relaxed);
        let left = self.totals.most_lent().saturating_sub(self.totals.lent.load(Relaxed));
        own > left.min(most)
    }

    /// Lets go of those that nobody has any more.
    pub(super) fn sweep(&self) {
        let mut responses = self.responses.lock();
        let before: usize = responses.iter().map(|stored| stored.body.len()).sum();
        responses.retain(Stored::is_in_use);
        let after: usize = responses.iter().map(|stored| stored.body.len()).sum();
        self.forget((before - after) as u64);
    }

    fn forget(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.totals.lent.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.forget(self.bytes.load(Relaxed));
    }
}
