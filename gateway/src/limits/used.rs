//! What tenants have used, as the control plane knows it: asked where Redis and this node's memory may both have been lost.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use seiketsu_config::{
    push::usage::{AskUsed, Used},
    values::Id,
};
use seiketsu_limits::coordinator::redis::elsewhere::Elsewhere;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

/// Meanwhile the node goes on by itself. What takes longer is asked for again.
const PATIENCE: Duration = Duration::from_millis(250);

/// Questions under way. All tenants may come at once, after a loss.
const AT_ONCE: usize = 16;

/// Who waits for what a tenant has used since a moment.
type Waiting = HashMap<(Id, u64), Vec<oneshot::Sender<u64>>>;

/// What the control plane says tenants have used.
#[derive(Debug)]
pub(crate) struct UsedBefore {
    /// Where questions go, while the control plane is connected and answers them.
    connection: Mutex<Option<mpsc::UnboundedSender<AskUsed>>>,
    waiting: Mutex<Waiting>,
    questions: Semaphore,
}

impl Default for UsedBefore {
    fn default() -> Self {
        Self { connection: Mutex::default(), waiting: Mutex::default(), questions: Semaphore::new(AT_ONCE) }
    }
}

impl UsedBefore {
    /// There is a connection, and these are the questions to be put there.
    pub(crate) fn connected(&self) -> mpsc::UnboundedReceiver<AskUsed> {
        let (asks, asked) = mpsc::unbounded_channel();
        *self.connection.lock() = Some(asks);
        asked
    }

    async fn ask(&self, tenant: Id, since: u64) -> Option<u64> {
        let _turn = self.questions.acquire().await.ok()?;
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().entry((tenant.clone(), since)).or_default().push(answer);
        // Without a connection, or over one that has ended, nobody takes it.
        self.connection.lock().as_ref()?.send(AskUsed { tenant, since }).ok()?;
        answered.await.ok()
    }

    /// What the control plane has answered.
    pub(crate) fn heard(&self, Used { tenant, since, used }: Used) {
        for waiting in self.waiting.lock().remove(&(tenant, since)).unwrap_or_default() {
            // It may have lost its patience.
            let _ = waiting.send(used);
        }
    }
}

#[async_trait]
impl Elsewhere for UsedBefore {
    async fn used(&self, tenant: &str, since: u64) -> Option<u64> {
        let (tenant, since): (Id, u64) = (tenant.parse().ok()?, since / 1_000_000);
        let used = timeout(PATIENCE, self.ask(tenant, since)).await.ok().flatten();
        if used.is_none() {
            self.waiting.lock().retain(|_, waiting| {
                waiting.retain(|waiting| !waiting.is_closed());
                !waiting.is_empty()
            });
        }
        used
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_asks_gets_the_answer_to_the_question_or_none() {
        let used = Arc::new(UsedBefore::default());
        assert_eq!(used.used("acme", 5_000_000).await, None, "there is no connection");
        let mut asked = used.connected();
        let asks = [("acme", 5), ("acme", 6), ("globex", 5)].map(|(tenant, since)| {
            let used = used.clone();
            tokio::spawn(async move { used.used(tenant, since * 1_000_000).await })
        });
        for _ in 0..3 {
            let AskUsed { tenant, since } = asked.recv().await.unwrap();
            let many = since + if tenant.as_str() == "acme" { 10 } else { 20 };
            used.heard(Used { tenant, since, used: many });
        }
        let mut answers = Vec::new();
        for ask in asks {
            answers.push(ask.await.unwrap());
        }
        assert_eq!(answers, [Some(15), Some(16), Some(25)]);
        drop(asked);
        assert_eq!(used.used("acme", 5_000_000).await, None, "it has ended");
        assert!(used.waiting.lock().is_empty());
    }
}
