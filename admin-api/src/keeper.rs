//! What one replica does for all: the leader, until it dies and another one takes over.

use std::time::Duration;

use tokio::time::sleep;

use crate::store::{Store, StoreError};

/// From one round to the next.
const ROUND: Duration = Duration::from_secs(1);

/// Keeps at it for as long as the process runs.
pub(crate) async fn keep(store: Store) {
    let mut leader = store.leader();
    let mut last = None;
    loop {
        sleep(ROUND).await;
        if leader.leads().await {
            let done = round(&store).await;
            told_once(done, &mut last);
        }
    }
}

async fn round(store: &Store) -> Result<(), StoreError> {
    store.forget_events().await
}

/// The log is told of a fault when it begins, and not in each round.
fn told_once(done: Result<(), StoreError>, last: &mut Option<String>) {
    let now = done.err().map(|error| error.to_string());
    if let Some(error) = now.as_ref().filter(|now| last.as_ref() != Some(now)) {
        tracing::warn!(error, "what the leading replica does cannot be done; trying again");
    }
    *last = now;
}
