//! Waiting for the node to drain.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use pingora_core::server::ShutdownWatch;

/// Resolves once draining has begun; at once if it already has.
pub(super) async fn begun(watch: &mut ShutdownWatch) {
    // An error means that the sender is gone, which only happens when the node ends.
    let _ = watch.wait_for(|draining| *draining).await;
}

/// The same for a task that asks again and again, as before each request of a connection. To wait takes a lock that all
/// connections share; so the task waits once, and after that compares two numbers.
pub(super) struct Draining {
    pub(super) watch: ShutdownWatch,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Draining {
    pub(super) fn new(watch: ShutdownWatch) -> Self {
        Self { watch, waiting: None }
    }

    pub(super) fn has_begun(&self) -> bool {
        // Whoever looked at it saw that it does not drain, or would not be here.
        self.watch.has_changed().unwrap_or(true)
    }

    /// Always called by the same task, which is woken when draining begins.
    pub(super) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_some() && !self.has_begun() {
            return Poll::Pending;
        }
        let waiting = self.waiting.get_or_insert_with(|| {
            let mut watch = self.watch.clone();
            Box::pin(async move { begun(&mut watch).await })
        });
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{future::poll_fn, time::Duration};

    use tokio::{sync::watch, time::timeout};

    use super::*;

    #[tokio::test]
    async fn who_waits_on_is_woken_when_draining_begins() {
        let (sender, watch) = watch::channel(false);
        let waiting = tokio::spawn(async move {
            let mut draining = Draining::new(watch);
            for _ in 0..3 {
                assert!(poll_fn(|cx| Poll::Ready(draining.poll_begun(cx).is_pending())).await);
            }
            assert!(!draining.has_begun());
            poll_fn(|cx| draining.poll_begun(cx)).await;
            assert!(draining.has_begun());
            // And ever after.
            poll_fn(|cx| draining.poll_begun(cx)).await;
        });
        tokio::task::yield_now().await;
        sender.send(true).unwrap();
        timeout(Duration::from_mins(1), waiting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_comes_late_is_told_at_once() {
        let (sender, watch) = watch::channel(false);
        sender.send(true).unwrap();
        let mut draining = Draining::new(watch);
        assert!(draining.has_begun());
        poll_fn(|cx| draining.poll_begun(cx)).await;
    }
}
