//! Nodes that do not come back are forgotten some day.

use std::time::Duration;

use tokio::time::sleep;

use crate::store::Store;

/// Forgets nodes that were not heard of for so long, for ever. Every replica does, and it is no matter which is first.
pub(crate) async fn forget(store: Store, after: Duration) {
    let every = (after / 10).clamp(Duration::from_millis(100), Duration::from_hours(1));
    loop {
        sleep(every).await;
        match store.forget_departed(after).await {
            Ok(0) => {}
            Ok(nodes) => tracing::info!(nodes, ?after, "nodes are forgotten that were not heard of for so long"),
            Err(error) => tracing::warn!(%error, "nodes that are gone cannot be forgotten; trying again"),
        }
    }
}
