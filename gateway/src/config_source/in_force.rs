//! The files in force.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use seiketsu_config::load::ParsedTenants;

use super::compile::{Changes, FileInForce, Files};

/// The files in force, and the revisions that they say they are.
#[derive(Default)]
pub(super) struct InForce {
    files: Files,
    /// How many files have each.
    revisions: BTreeMap<u64, usize>,
}

impl InForce {
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn parsed(&self, path: &Path) -> Option<&ParsedTenants> {
        self.files.get(path).map(|file| &file.parsed)
    }

    /// Those that are not among these.
    pub(super) fn others(&self, paths: &HashSet<&PathBuf>) -> Vec<PathBuf> {
        self.files.keys().filter(|path| !paths.contains(path)).cloned().collect()
    }

    /// The highest revision that there is when these changes are made.
    pub(super) fn revision_with(&self, changes: &Changes) -> u64 {
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        for path in changes.keys() {
            if let Some(parsed) = self.parsed(path) {
                *left.entry(parsed.head().revision).or_default() += 1;
            }
        }
        let stays = |(revision, count): &(&u64, &usize)| left.get(revision).is_none_or(|left| left < count);
        let staying = self.revisions.iter().rev().find(stays).map(|(revision, _)| *revision);
        let coming = changes.values().filter_map(|change| Some(change.next.as_ref()?.parsed.head().revision)).max();
        staying.max(coming).unwrap_or_default()
    }

    /// Puts a file in place of what was there under its name; nothing, if it is gone.
    pub(super) fn replace(&mut self, path: PathBuf, next: Option<FileInForce>) {
        if let Some(next) = &next {
            *self.revisions.entry(next.parsed.head().revision).or_default() += 1;
        }
        let former = match next {
            Some(next) => self.files.insert(path, next),
            None => self.files.remove(&path),
        };
        let Some(former) = former else { return };
        let revision = former.parsed.head().revision;
        if let Some(count) = self.revisions.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.revisions.remove(&revision);
            }
        }
    }
}
