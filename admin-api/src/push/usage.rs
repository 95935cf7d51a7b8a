//! Usage that a node sends, on its way into the store. It has a queue of its own, and a task: neither what is heard of the
//! configuration nor what is sent of it waits for it.

use std::{convert::Infallible, time::Duration};

use seiketsu_config::push::{
    self, Hello, ToNode,
    usage::{AskUsed, UsagePage, Used},
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Shared,
    session::{End, Sink, send},
    updates::message,
};
use crate::store::StoreError;

/// A node sends one page at a time. Questions about quotas are few.
const WAITING: usize = 64;

/// While the store cannot be written to.
const RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(10);

/// What a node says about usage.
#[derive(Debug)]
pub(super) enum Said {
    Page(UsagePage),
    Ask(AskUsed),
}

/// Where it waits.
pub(super) type Queue = mpsc::Sender<Said>;

pub(super) fn queue() -> (Queue, mpsc::Receiver<Said>) {
    mpsc::channel(WAITING)
}

/// Takes a message to be worked on. A node that sends more before it is answered is not the one it says it is.
pub(super) fn take(queue: &Queue, said: Said) -> Result<(), End> {
    queue.try_send(said).map_err(|_| End::UsageAhead)
}

/// Stores what comes, and says so when it is durable.
pub(super) async fn answer(
    shared: &Shared,
    sink: &Sink,
    hello: &Hello,
    mut said: mpsc::Receiver<Said>,
) -> Result<Infallible, End> {
    // The sender is in another part of the same connection.
    while let Some(said) = said.recv().await {
        let mut retry = RETRY;
        let answer = loop {
            match work(shared, hello, &said).await {
                Ok(answer) => break answer,
                // The node waits, and loses nothing.
                Err(error) => {
                    tracing::warn!(node = %hello.node, %error, "usage cannot be stored or read; trying again");
                }
            }
            sleep(retry).await;
            retry = (retry * 2).min(MOST_RETRY);
        };
        send(sink, message(push::write(&answer)?)).await?;
    }
    std::future::pending().await
}

/// In a task of its own: what has begun is finished, and what it computes is in nobody's way.
async fn work(shared: &Shared, hello: &Hello, said: &Said) -> Result<ToNode, StoreError> {
    let store = shared.store.clone();
    let done = match said {
        Said::Page(page) => {
            let (node, region, page) = (hello.node.clone(), hello.region.clone(), page.clone());
            let work = async move { store.take_usage(&node, region.as_ref(), page).await.map(ToNode::UsageTaken) };
            tokio::spawn(work).await
        }
        Said::Ask(AskUsed { tenant, since }) => {
            let (tenant, since) = (tenant.clone(), *since);
            let work = async move {
                let from = i64::try_from(since).unwrap_or(i64::MAX);
                let used = store.usage_since(&[tenant.as_str()], from).await?;
                let used = used.get(tenant.as_str()).copied().unwrap_or_default();
                Ok(ToNode::Used(Used { tenant, since, used }))
            };
            tokio::spawn(work).await
        }
    };
    done.unwrap_or_else(|error| Err(StoreError::corrupt("usage that a node has sent", &error)))
}
