//! Counting what is under way, and waiting until nothing is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// A count of connections or streams that are being served, or of what is being sent.
#[derive(Debug, Default)]
pub(super) struct Active {
    count: AtomicUsize,
    none_left: Notify,
}

/// One of them; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct ActiveGuard(Arc<Active>);

impl Active {
    pub(super) fn enter(active: &Arc<Self>) -> ActiveGuard {
        active.count.fetch_add(1, Ordering::AcqRel);
        ActiveGuard(active.clone())
    }

    pub(super) fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// Resolves when nothing is under way. One waiter at a time.
    pub(super) async fn none_left(&self) {
        while self.is_any() {
            self.none_left.notified().await;
        }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_one();
        }
    }
}
