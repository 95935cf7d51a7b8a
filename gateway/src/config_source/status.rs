//! What came of the last reload.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;

/// Shown by `/readyz`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ReloadStatus {
    /// Whether there is a configuration in force.
    pub(crate) loaded: bool,
    /// The number of the configuration in force.
    pub(crate) revision: u64,
    pub(crate) tenants: usize,
    /// Whether what is in force comes from the last known good instead of the files.
    pub(crate) from_last_known_good: bool,
    /// Why what is in force is not kept on disk: a start from it would bring back something older.
    pub(crate) last_known_good_error: Option<String>,
    /// Tenants that were served before the node was started and are not now, for something that they need is
    /// missing; `errors` say what.
    pub(crate) lost: Vec<String>,
    /// What is wrong with the files as they are now; empty: nothing.
    pub(crate) errors: Vec<String>,
    /// Seconds since 1970 of the last reload that changed something.
    pub(crate) applied_at: u64,
}

/// The status, for readers on other threads.
#[derive(Debug, Default)]
pub(crate) struct StatusCell(ArcSwap<ReloadStatus>);

impl StatusCell {
    pub(crate) fn get(&self) -> Arc<ReloadStatus> {
        self.0.load_full()
    }

    pub(super) fn set(&self, status: ReloadStatus) {
        self.0.store(Arc::new(status));
    }
}
