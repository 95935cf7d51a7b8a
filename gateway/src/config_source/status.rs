//! What came of the last reload.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;

/// Shown by `/readyz`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ReloadStatus {
    /// Whether there is a configuration in force.
    pub(crate) loaded: bool,
    /// The number of the configuration in force.
    pub(crate) revision: u64,
    pub(crate) tenants: usize,
    /// Whether what is in force comes from the last known good instead of the files or the control plane.
    pub(crate) from_last_known_good: bool,
    /// Why what is in force is not kept on disk: a start from it would bring back something older.
    pub(crate) last_known_good_error: Option<String>,
    /// Tenants that were served before the node was started and are not now, for something that they need is
    /// missing; `errors` say what.
    pub(crate) lost: Vec<String>,
    /// What is wrong with the files, or with what the control plane sent, as it is now; empty: nothing.
    pub(crate) errors: Vec<String>,
    /// Seconds since 1970 of the last reload that changed something.
    pub(crate) applied_at: u64,
}

/// How the connection to the control plane stands.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ConnectionStatus {
    pub(crate) url: String,
    pub(crate) connected: bool,
    /// Seconds since 1970 that it has been so.
    pub(crate) since: u64,
    /// Why the last attempt failed; none while it is connected.
    pub(crate) error: Option<String>,
}

/// The status, for readers on other threads.
#[derive(Debug, Default)]
pub(crate) struct StatusCell {
    reload: ArcSwap<ReloadStatus>,
    connection: ArcSwapOption<ConnectionStatus>,
}

impl StatusCell {
    pub(crate) fn get(&self) -> Arc<ReloadStatus> {
        self.reload.load_full()
    }

    /// None, if there is no control plane.
    pub(crate) fn connection(&self) -> Option<Arc<ConnectionStatus>> {
        self.connection.load_full()
    }

    pub(super) fn set(&self, status: ReloadStatus) {
        self.reload.store(Arc::new(status));
    }

    pub(super) fn set_connection(&self, connection: ConnectionStatus) {
        self.connection.store(Some(Arc::new(connection)));
    }
}
