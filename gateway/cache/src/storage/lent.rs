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
        if stored.body.len() < SMALLEST || !is_in_use(stored) {
            return;
        }
        let mut responses = self.responses.lock();
        if responses.is_empty() {
            self.totals.lenders.fetch_add(1, Relaxed);
        }
        let length = stored.body.len() as u64;
        self.bytes.fetch_add(length, Relaxed);
        self.totals.lent.fetch_add(length, Relaxed);
        responses.push(stored.clone());
    }

    /// Whether the tenant has as much as it leaves for all others, or as it may have for itself. However much others have,
    /// it may have an equal share, since they must not keep it from storing anything. Where many have much, that is somewhat
    /// more in all than one alone may have.
    pub(super) fn is_too_much(&self, most: u64) -> bool {
        let own = self.bytes.load(Relaxed);
        let all = self.totals.most_lent();
        let left = all.saturating_sub(self.totals.lent.load(Relaxed));
        let share = all / self.totals.lenders.load(Relaxed).max(1);
        own > left.max(share).min(most)
    }

    /// Lets go of those that nobody has any more.
    pub(super) fn sweep(&self) {
        let mut responses = self.responses.lock();
        if responses.is_empty() {
            return;
        }
        let bytes = |responses: &[Arc<Stored>]| responses.iter().map(|stored| stored.body.len() as u64).sum::<u64>();
        let before = bytes(&responses);
        responses.retain(is_in_use);
        self.forget(before - bytes(&responses), responses.is_empty());
    }

    fn forget(&self, bytes: u64, all: bool) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.totals.lent.fetch_sub(bytes, Relaxed);
        if all {
            self.totals.lenders.fetch_sub(1, Relaxed);
        }
    }
}

/// Whether anybody has the body beside who asks. The file has it as well, and is for hits alone.
fn is_in_use(stored: &Arc<Stored>) -> bool {
    if Arc::strong_count(stored) > 1 {
        return true;
    }
    stored.let_go_of_file();
    !stored.body.is_unique()
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.responses.get_mut().is_empty() {
            self.forget(self.bytes.load(Relaxed), true);
        }
    }
}
