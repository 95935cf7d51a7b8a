//! Usage that a node sends, on its way into the store. It has a queue of its own, and a task: neither what is heard of the
//! configuration nor what is sent of it waits for it.

use std::{convert::Infallible, time::Duration};

use seiketsu_config::push::{
    self, Hello, ToNode,
    usage::{AskUsed, UsagePage, UsageTaken, Used},
};
use time::OffsetDateTime;
use tokio::{sync::mpsc, time::sleep};

use super::{
    Shared, credible,
    session::{End, Sink, send},
    updates::message,
};
use crate::store::{Store, StoreError};

/// A node sends one page at a time. Questions about quotas are few.
const WAITING: usize = 64;

/// While the store cannot be written to.
const RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(10);

/// Logs that a node may have in a day: it has another one whenever it has lost its state.
const MOST_LOGS: u64 = 1000;

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
    if let Said::Page(page) = &said {
        credible::page(page)?;
    }
    queue.try_send(said).map_err(|_| End::UsageAhead)
}

/// Stores what comes, and says so when it is durable.
pub(super) async fn answer(
    shared: &Shared,
    sink: &Sink,
    hello: &Hello,
    mut said: mpsc::Receiver<Said>,
) -> Result<Infallible, End> {
    // Of which it is known that it is the node's own.
    let mut log = None;
    // The sender is in another part of the same connection.
    while let Some(said) = said.recv().await {
        let mut retry = RETRY;
        let answer = loop {
            let done = async {
                if let Said::Page(page) = &said
                    && log.as_ref() != Some(&page.log)
                {
                    is_its_own(&shared.store, hello, &page.log).await??;
                    log = Some(page.log.clone());
                }
                Ok::<_, Fault>(work(shared, hello, &said).await?)
            };
            match done.await {
                Ok(answer) => break answer,
                Err(Fault::End(end)) => return Err(end),
                // The node waits, and loses nothing.
                Err(Fault::Store(error)) => {
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

enum Fault {
    Store(StoreError),
    End(End),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<End> for Fault {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// Whether the log is the node's, or a new one. That of a node which is not there may be its own: nodes get other names.
async fn is_its_own(store: &Store, hello: &Hello, log: &str) -> Result<Result<(), End>, StoreError> {
    let fault = match store.log_of_usage(log).await? {
        Some(owner) if owner == hello.node => return Ok(Ok(())),
        Some(owner) => match store.node(&owner).await? {
            Some(node) if node.live => format!("the log of usage is that of the node {owner}, which is there"),
            _ => return Ok(Ok(())),
        },
        None if store.logs_of_usage(&hello.node).await? < MOST_LOGS => return Ok(Ok(())),
        None => format!("the node has had {MOST_LOGS} logs of usage in a day: see that it keeps its state"),
    };
    Ok(Err(End::Excess(fault)))
}

/// In a task of its own: what has begun is finished, and what it computes is in nobody's way.
async fn work(shared: &Shared, hello: &Hello, said: &Said) -> Result<ToNode, StoreError> {
    let store = shared.store.clone();
    let done = match said {
        Said::Page(page) => {
            let (node, region, mut page) = (hello.node.clone(), hello.region.clone(), page.clone());
            let work = async move {
                let tenants = page.records.iter().map(|record| &*record.tenant).collect();
                let tenants = store.tenants_ever(tenants).await?;
                let refused = credible::sift(&mut page, &tenants, OffsetDateTime::now_utc());
                if let Some(why) = &refused {
                    tracing::warn!(%node, why, "some usage of a node does not count");
                }
                let taken = store.take_usage(&node, region.as_ref(), page).await?;
                Ok(ToNode::UsageTaken(UsageTaken { refused, ..taken }))
            };
            tokio::spawn(work).await
        }
        Said::Ask(AskUsed { tenant, since }) => {
            let (tenant, since) = (tenant.clone(), *since);
            let work = async move {
                let from = i64::try_from(since).unwrap_or(i64::MAX);
                let used = store.usage_since(&[(tenant.as_str(), from)]).await?.into_iter().sum();
                Ok(ToNode::Used(Used { tenant, since, used }))
            };
            tokio::spawn(work).await
        }
    };
    done.unwrap_or_else(|error| Err(StoreError::corrupt("usage that a node has sent", &error)))
}
