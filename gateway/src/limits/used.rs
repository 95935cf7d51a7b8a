//! What tenants have used, as the control plane knows it: asked where Redis and this node's memory may both have been lost.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use seiketsu_config::{
    push::usage::{AskUsed, Used},
    values::Id,
};
use seiketsu_limits::coordinator::redis::elsewhere::{self, Elsewhere};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::telemetry::usage::Usage;

/// Meanwhile the node goes on by itself. What takes longer is asked for again.
const PATIENCE: Duration = Duration::from_millis(250);

/// What was counted here and not taken over is waited for so long: then it is known what of the answer is this node's.
const PATIENCE_FOR_OURS: Duration = Duration::from_millis(50);

/// Questions under way. All tenants may come at once, after a loss.
const AT_ONCE: usize = 16;

/// Who waits for what a tenant has used since a moment.
type Waiting = HashMap<(Id, u64), Vec<oneshot::Sender<u64>>>;

/// What the control plane says tenants have used.
#[derive(Debug)]
pub(crate) struct UsedBefore {
    /// Where questions go, while the control plane is connected and answers them.
    connection: Mutex<Option<Connection>>,
    waiting: Mutex<Waiting>,
    questions: Semaphore,
}

#[derive(Debug, Clone)]
struct Connection {
    asks: mpsc::UnboundedSender<AskUsed>,
    /// What this node tells the control plane of its own, over the same connection.
    usage: Arc<Usage>,
}

impl Default for UsedBefore {
    fn default() -> Self {
        Self { connection: Mutex::default(), waiting: Mutex::default(), questions: Semaphore::new(AT_ONCE) }
    }
}

impl UsedBefore {
    /// There is a connection, and these are the questions to be put there.
    pub(crate) fn connected(&self, usage: Arc<Usage>) -> mpsc::UnboundedReceiver<AskUsed> {
        let (asks, asked) = mpsc::unbounded_channel();
        *self.connection.lock() = Some(Connection { asks, usage });
        asked
    }

    async fn ask(&self, tenant: Id, since: u64) -> Option<elsewhere::Used> {
        let _turn = self.questions.acquire().await.ok()?;
        // Over a connection that has ended nobody takes it.
        let Connection { asks, usage } = self.connection.lock().clone()?;
        usage.wait_until_taken(PATIENCE_FOR_OURS).await;
        // Before the question: what is written later may be in the answer, and then counts twice rather than never.
        let by_us = usage.charged(tenant.as_str());
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().entry((tenant.clone(), since)).or_default().push(answer);
        asks.send(AskUsed { tenant, since }).ok()?;
        Some(elsewhere::Used { in_all: answered.await.ok()?, by_us })
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
    async fn used(&self, tenant: &str, since: u64) -> Option<elsewhere::Used> {
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

    use seiketsu_config::node::UsageLog;

    use super::*;
    use crate::telemetry::{
        metrics::Metrics,
        usage::{Caller, Counts},
    };

    #[tokio::test]
    async fn whoever_asks_gets_the_answer_to_the_question_or_none() {
        let used = Arc::new(UsedBefore::default());
        assert_eq!(used.used("acme", 5_000_000).await, None, "there is no connection");
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(1, [].into()).unwrap());
        let usage = Usage::open(&UsageLog::default(), folder.path(), 1, metrics.node.usage.clone()).unwrap();
        let ours = Counts { admitted: 1, cost: 3, ..Counts::default() };
        usage.count(&Caller { tenant: "acme", route: "", consumer: "" }, &ours);
        usage.flush();
        let mut asked = used.connected(Arc::new(usage));
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
        let answer = |in_all, by_us| Some(elsewhere::Used { in_all, by_us });
        assert_eq!(answers, [answer(15, 3), answer(16, 3), answer(25, 0)]);
        drop(asked);
        assert_eq!(used.used("acme", 5_000_000).await, None, "it has ended");
        assert!(used.waiting.lock().is_empty());
    }
}
