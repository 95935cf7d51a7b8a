//! Waiting for the node to drain.

use pingora_core::server::ShutdownWatch;

/// Resolves once draining has begun; at once if it already has.
pub(super) async fn begun(watch: &mut ShutdownWatch) {
    // An error means that the sender is gone, which only happens when the node ends.
    let _ = watch.wait_for(|draining| *draining).await;
}
