//! What takes its time: begun in one round, and looked at in a later one, so that no round waits for it.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::store::StoreError;

#[derive(Debug)]
pub(super) struct Later<T> {
    running: Option<JoinHandle<(Duration, Result<T, StoreError>)>>,
    /// When it ended, and what it took.
    last: Option<(Instant, Duration)>,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self { running: None, last: None }
    }
}

impl<T> Drop for Later<T> {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// It takes no more than a tenth of the time altogether, however much there is to look at.
const PAUSES: u32 = 10;

impl<T: Send + 'static> Later<T> {
    /// What has come of it since it was asked last, once.
    pub(super) async fn ended(&mut self) -> Option<Result<T, StoreError>> {
        if !self.running.as_ref()?.is_finished() {
            return None;
        }
        let (took, done) = match self.running.take()?.await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "what alerts are made from ended in a fault");
                (Duration::ZERO, Err(StoreError::corrupt("what alerts are made from", &"it ended in a fault")))
            }
        };
        self.last = Some((Instant::now(), took));
        Some(done)
    }

    /// Begins with it, if the last time is so long ago.
    pub(super) fn begin<Work>(&mut self, pause: Duration, work: impl FnOnce() -> Work)
    where
        Work: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let is_early = |(ended, took): (Instant, Duration)| ended.elapsed() < pause.max(took.saturating_mul(PAUSES));
        if self.running.is_some() || self.last.is_some_and(is_early) {
            return;
        }
        let work = work();
        self.running = Some(tokio::spawn(async move {
            let begun = Instant::now();
            let done = work.await;
            (begun.elapsed(), done)
        }));
    }
}
