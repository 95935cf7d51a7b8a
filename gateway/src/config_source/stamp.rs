//! What tells whether a file has changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// Size, time, inode, owner and mode of a file; none if it cannot be looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stamp(Option<Known>);

#[derive(Debug, Clone, Copy)]
struct Known {
    size: u64,
    modified: SystemTime,
    inode: u64,
    /// Who may read it.
    access: (u32, u32, u32),
    /// Whether it had only just been written when it was read: it may have been written again within the
    /// same tick of the file system's clock, so it is read once more.
    is_young: bool,
}

/// Longer than any tick.
const YOUNG: Duration = Duration::from_millis(100);

impl Stamp {
    /// Of a file that is read at this time or later.
    pub(super) fn of(path: &Path, read: SystemTime) -> Self {
        let known = fs::metadata(path).and_then(|metadata| {
            let modified = metadata.modified()?;
            // A time in the future has no age.
            let is_young =
                read.duration_since(modified).map_or_else(|ahead| ahead.duration() < YOUNG, |age| age < YOUNG);
            let access = (metadata.uid(), metadata.gid(), metadata.mode());
            Ok(Known { size: metadata.len(), modified, inode: metadata.ino(), access, is_young })
        });
        Self(known.ok())
    }

    /// Whether what was read under this stamp may be another thing now.
    pub(super) fn differs_from(self, now: Self) -> bool {
        match (self.0, now.0) {
            (Some(before), Some(now)) => {
                let known = |it: Known| (it.size, it.modified, it.inode, it.access);
                before.is_young || known(before) != known(now)
            }
            (None, None) => false,
            _ => true,
        }
    }
}
