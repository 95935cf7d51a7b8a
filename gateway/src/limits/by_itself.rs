//! The coordinator of a node that counts by itself: this process, and whether it can write down what it counts.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use seiketsu_limits::{
    coordinator::{Answer, Coordinator, CoordinatorError, Exchange, MemoryCoordinator},
    journal::Journal,
};

#[derive(Debug)]
pub(crate) struct ByItself {
    memory: MemoryCoordinator,
    /// The disk may be full, or broken.
    can_write: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl ByItself {
    pub(super) fn new(journal: Option<Journal>) -> Self {
        Self {
            memory: MemoryCoordinator::new(journal),
            can_write: AtomicBool::new(true),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Whether what was last to be written down could be.
    pub(super) fn can_write(&self) -> bool {
        self.can_write.load(Relaxed)
    }

    /// Exchanges that were answered, and those that failed.
    pub(crate) fn exchanges(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Writes down how much of each quota is used; nothing can be taken after that.
    pub(super) fn close(&self) -> io::Result<()> {
        self.memory.close()
    }
}

#[async_trait]
impl Coordinator for ByItself {
    /// Only what has to be written first comes here.
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        let result = self.memory.exchange(exchange).await;
        self.can_write.store(result.is_ok(), Relaxed);
        let counter = if result.is_ok() { &self.answered } else { &self.failed };
        counter.fetch_add(1, Relaxed);
        result
    }

    fn exchange_now(&self, exchange: &Exchange) -> Option<Result<Vec<Answer>, CoordinatorError>> {
        let result = self.memory.exchange_now(exchange)?;
        self.answered.fetch_add(1, Relaxed);
        Some(result)
    }

    fn live(&self) -> u64 {
        self.memory.live()
    }

    fn patience(&self) -> Duration {
        self.memory.patience()
    }

    fn promises(&self) -> bool {
        self.memory.promises()
    }
}
