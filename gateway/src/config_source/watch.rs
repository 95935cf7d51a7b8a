//! Hearing of changes to files.

use std::path::Path;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Watches the folder of the tenant file, or the folder of tenant files: editors and orchestrators
/// replace files by renaming, which a watch on the file itself would miss.
pub(super) struct FileWatch {
    _watcher: Option<RecommendedWatcher>,
}

impl FileWatch {
    /// `on_change` may be called for changes that turn out to be none.
    pub(super) fn new(path: &Path, on_change: impl Fn() + Send + 'static) -> Self {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                on_change();
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watching {
            tracing::warn!(folder = %folder.display(), %error, "cannot watch for changes; files are looked at every two seconds instead");
        }
        Self { _watcher: watching.ok() }
    }
}
