//! In which order keys go, when room is needed.

use std::{collections::VecDeque, sync::Arc};

/// New keys are so many of all at most, before others go for them.
const YOUNG: usize = 10;

/// The keys of one tenant. What was used while it was new stays with those that were used before; of what was not, most
/// never is. So a scan goes through the queue of new keys, and leaves the others where they are (S3-FIFO, SOSP 2023).
#[derive(Debug, Default)]
pub(super) struct Order {
    young: VecDeque<Arc<[u8]>>,
    old: VecDeque<Arc<[u8]>>,
}

impl Order {
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// A key that is new.
    pub(super) fn add(&mut self, key: Arc<[u8]>) {
        self.young.push_back(key);
    }

    /// The key that goes next, unless it was used and is kept.
    pub(super) fn next(&mut self) -> Option<Arc<[u8]>> {
        let is_young = self.young.len() * YOUNG > self.len() || self.old.is_empty();
        if is_young { self.young.pop_front() } else { self.old.pop_front() }
    }

    /// A key that was used, behind all others that were.
    pub(super) fn keep(&mut self, key: Arc<[u8]>) {
        self.old.push_back(key);
    }
}
