//! Hearing of changes to files.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

use super::tenant_files::is_tenant_file;

/// What the watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// This file of the folder may have changed.
    File(OsString),
    /// Anything may have changed: notifications were lost, or many files have changed in one step.
    Anything,
}

type OnNotice = Arc<dyn Fn(Notice) + Send + Sync>;

/// Watches the folder of the tenant file, or the folder of tenant files: editors and orchestrators
/// replace files by renaming, which a watch on the file itself would miss.
pub(super) struct FileWatch {
    path: PathBuf,
    on_notice: OnNotice,
    watching: Option<Watching>,
}

struct Watching {
    _watcher: RecommendedWatcher,
    target: Target,
}

/// What is watched. The kernel watches a folder, whatever its name comes to be; a name that comes to
/// mean another folder has to be watched anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    folder: PathBuf,
    /// Only this file counts.
    file: Option<OsString>,
    device: u64,
    inode: u64,
}

impl FileWatch {
    /// `on_notice` may be called for changes that turn out to be none.
    pub(super) fn new(path: &Path, on_notice: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        let mut watch = Self { path: path.to_owned(), on_notice: Arc::new(on_notice), watching: None };
        if let Err(error) = watch.start() {
            tracing::warn!(path = %path.display(), %error, "cannot watch for changes; files are looked at every two seconds instead");
        }
        watch
    }

    /// Whether what is to be watched is watched. If it is not, this tries again.
    pub(super) fn works(&mut self) -> bool {
        let watched = self.watching.as_ref().map(|watching| &watching.target);
        if watched.is_some() && watched == Target::of(&self.path).ok().as_ref() {
            return true;
        }
        if self.watching.take().is_some() {
            tracing::warn!(path = %self.path.display(), "what was watched is no longer there under this name");
        }
        // What has changed before it was watched again is for the caller to find.
        let _ = self.start();
        false
    }

    fn start(&mut self) -> notify::Result<()> {
        let target = Target::of(&self.path)?;
        if is_remote(&target.folder) {
            return Err(notify::Error::generic("this kind of file system tells of no changes that others make"));
        }
        let mut watcher = notify::recommended_watcher({
            let (on_notice, target) = (Arc::clone(&self.on_notice), target.clone());
            move |event| notices(event, &target, &*on_notice)
        })?;
        watcher.watch(&target.folder, RecursiveMode::NonRecursive)?;
        self.watching = Some(Watching { _watcher: watcher, target });
        Ok(())
    }
}

impl Target {
    fn of(path: &Path) -> io::Result<Self> {
        let (folder, file) = if path.is_dir() {
            (path, None)
        } else {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (folder, path.file_name().map(OsStr::to_owned))
        };
        let metadata = fs::metadata(folder)?;
        Ok(Self { folder: folder.to_owned(), file, device: metadata.dev(), inode: metadata.ino() })
    }
}

fn notices(event: notify::Result<Event>, target: &Target, on_notice: &dyn Fn(Notice)) {
    match event {
        Ok(event) if event.need_rescan() => on_notice(Notice::Anything),
        Ok(event) if event.kind.is_access() => {}
        Ok(event) => event.paths.iter().filter_map(|path| notice(path, target)).for_each(on_notice),
        Err(_) => on_notice(Notice::Anything),
    }
}

/// What a change of this path may mean to the configuration: other files may live in the same folder and
/// be written all the time, such as a log.
fn notice(changed: &Path, target: &Target) -> Option<Notice> {
    let name = changed.file_name().filter(|_| !changed.ends_with(&target.folder));
    match name {
        // The folder itself.
        None => Some(Notice::Anything),
        // Kubernetes replaces the files of a volume by pointing the link `..data` elsewhere.
        Some(name) if name.as_encoded_bytes().starts_with(b"..") => Some(Notice::Anything),
        Some(name) => {
            let counts = target.file.as_deref().map_or_else(|| is_tenant_file(name), |file| file == name);
            counts.then(|| Notice::File(name.to_owned()))
        }
    }
}

/// Whether a folder lies in a file system that others change as well, of which the kernel does not hear.
fn is_remote(folder: &Path) -> bool {
    /// NFS, SMB (three of them), FUSE, 9P, Ceph, AFS: `f_type` of statfs(2).
    const REMOTE: [u32; 8] =
        [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x6573_5546, 0x0102_1997, 0x00C3_6400, 0x5346_414F];
    rustix::fs::statfs(folder).is_ok_and(|found| u32::try_from(found.f_type).is_ok_and(|kind| REMOTE.contains(&kind)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    fn target(file: Option<&str>) -> Target {
        Target { folder: "/conf".into(), file: file.map(Into::into), device: 0, inode: 0 }
    }

    #[test]
    fn only_changes_of_the_configuration_matter() {
        let notice = |path: &str, file| notice(Path::new(path), &target(file));
        let file = |name: &str| Some(Notice::File(name.into()));
        assert_eq!(notice("/conf/a.yaml", None), file("a.yaml"));
        assert_eq!(notice("/conf/tenants.conf", Some("tenants.conf")), file("tenants.conf"));
        assert_eq!(notice("/conf/b.yaml", Some("a.yaml")), None);
        assert_eq!(notice("/conf/.a.yaml", None), None);
        for only in [None, Some("a.yaml")] {
            assert_eq!(notice("/conf/access.log", only), None);
            assert_eq!(notice("/conf/..data", only), Some(Notice::Anything));
            assert_eq!(notice("/conf", only), Some(Notice::Anything));
        }
    }

    #[test]
    fn lost_notifications_mean_that_anything_may_have_changed() {
        let (sender, receiver) = mpsc::channel();
        let tell = move |notice| sender.send(notice).unwrap();
        let lost = Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan);
        notices(Ok(lost), &target(None), &tell);
        assert_eq!(receiver.try_recv().unwrap(), Notice::Anything);
        notices(Err(notify::Error::generic("")), &target(None), &tell);
        assert_eq!(receiver.try_recv().unwrap(), Notice::Anything);
    }

    #[test]
    fn a_folder_that_takes_the_place_of_another_is_watched() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("tenants");
        fs::create_dir(&path).unwrap();
        let (sender, receiver) = mpsc::channel();
        let mut watch = FileWatch::new(&path, move |notice| {
            let _ = sender.send(notice);
        });
        assert!(watch.works());
        fs::rename(&path, parent.path().join("former")).unwrap();
        assert!(!watch.works());
        fs::create_dir(&path).unwrap();
        assert!(!watch.works());
        assert!(watch.works());
        fs::write(path.join("a.yaml"), "").unwrap();
        let patience = std::time::Duration::from_secs(20);
        while receiver.recv_timeout(patience).unwrap() != Notice::File("a.yaml".into()) {}
    }
}
