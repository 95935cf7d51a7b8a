//! Hearing of changes to files.

use std::{ffi::OsStr, path::Path};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Watches the folder of the tenant file, or the folder of tenant files: editors and orchestrators
/// replace files by renaming, which a watch on the file itself would miss.
pub(super) struct FileWatch {
    _watcher: Option<RecommendedWatcher>,
}

impl FileWatch {
    /// `on_change` may be called for changes that turn out to be none.
    pub(super) fn new(path: &Path, on_change: impl Fn() + Send + 'static) -> Self {
        let (folder, file) = if path.is_dir() {
            (path, None)
        } else {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (folder, path.file_name().map(OsStr::to_owned))
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event
                .is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(|p| matters(p, file.as_deref())))
            {
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

/// Whether a change of this path may be one of the configuration: other files may live in the same
/// folder and be written all the time, such as a log.
fn matters(changed: &Path, file: Option<&OsStr>) -> bool {
    let Some(name) = changed.file_name() else { return true };
    // Kubernetes replaces the files of a volume by pointing the link `..data` elsewhere.
    if name.as_encoded_bytes().starts_with(b"..") {
        return true;
    }
    match file {
        Some(file) => name == file,
        None => is_tenant_file(changed),
    }
}

/// Whether a file of a folder holds tenants.
pub(super) fn is_tenant_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_of_the_configuration_matter() {
        let (file, log) = (Path::new("/conf/tenants.yaml"), Path::new("/conf/access.log"));
        assert!(matters(file, file.file_name()) && matters(file, None));
        assert!(!matters(log, file.file_name()) && !matters(log, None));
        assert!(!matters(Path::new("/conf/other.yaml"), file.file_name()));
        assert!(matters(Path::new("/conf/..data"), file.file_name()) && matters(Path::new("/conf/..data"), None));
    }
}
