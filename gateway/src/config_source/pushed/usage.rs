//! Usage on its way to the control plane: a page at a time, and the next one when the last is durable there. What is
//! not sent stays in the node's log.

use std::{sync::Arc, time::Duration};

use seiketsu_config::push::{
    FromNode,
    usage::{MOST_USAGE_RECORDS, UsagePage, UsageTaken},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

use super::subscription::{Replies, Reply};
use crate::telemetry::usage::{Cursor, Page, TakeoverError, Usage};

/// How long nothing need come before it is looked again.
const IDLE: Duration = Duration::from_mins(10);
/// While the log cannot be read.
const RETRY: Duration = Duration::from_secs(5);

/// Sends what there is and what comes, until it is dropped: with the connection.
#[derive(Debug)]
pub(super) struct Sending(JoinHandle<()>);

impl Sending {
    /// `taken`: what the control plane answers.
    pub(super) fn start(usage: Arc<Usage>, replies: &Replies, taken: mpsc::UnboundedReceiver<UsageTaken>) -> Self {
        let replies = replies.replies.clone();
        Self(tokio::spawn(async move {
            match send(&usage, &replies, taken).await {
                Ok(()) | Err(TakeoverError::Off) => {}
                Err(error) => {
                    tracing::error!(%error, "usage is not sent to the control plane until the next connection");
                }
            }
        }))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends with the connection.
async fn send(
    usage: &Arc<Usage>,
    replies: &mpsc::UnboundedSender<Reply>,
    mut taken: mpsc::UnboundedReceiver<UsageTaken>,
) -> Result<(), TakeoverError> {
    loop {
        let read = blocking(usage, |usage| usage.read(None, MOST_USAGE_RECORDS)).await;
        let page = match read {
            Err(TakeoverError::Io(error)) => {
                tracing::warn!(%error, "usage cannot be read, to be sent to the control plane; trying again");
                sleep(RETRY).await;
                continue;
            }
            page => page?,
        };
        if page.records == 0 && page.missing.is_none() {
            usage.wait(&page.next, IDLE).await;
            continue;
        }
        if replies.send(Reply::Say(FromNode::Usage(message(&page)))).is_err() {
            return Ok(());
        }
        let Some(UsageTaken { log, next, refused }) = taken.recv().await else { return Ok(()) };
        if let Some(why) = refused {
            tracing::warn!(why, "the control plane does not count some of the usage of this node");
        }
        match blocking(usage, move |usage| usage.take(&Cursor { log, sequence: next })).await {
            // It is sent again, and counts once.
            Err(TakeoverError::Io(error)) => {
                tracing::warn!(%error, "it cannot be noted that usage was taken by the control plane; trying again");
                sleep(RETRY).await;
            }
            taken => drop(taken?),
        }
    }
}

fn message(page: &Page) -> UsagePage {
    let lines = page.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    // A line that somebody has changed is passed over: its number will be missing.
    let records = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    UsagePage { log: page.next.log.clone(), missing: page.missing, records, next: page.next.sequence }
}

async fn blocking<T: Send + 'static>(
    usage: &Arc<Usage>,
    work: impl FnOnce(&Usage) -> Result<T, TakeoverError> + Send + 'static,
) -> Result<T, TakeoverError> {
    let usage = Arc::clone(usage);
    spawn_blocking(move || work(&usage)).await.unwrap_or_else(|error| Err(TakeoverError::Io(error.into())))
}
