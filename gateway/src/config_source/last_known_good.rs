//! The configuration that was last in force, kept on disk.
//!
//! Copies of the files and a manifest with their hashes, which is replaced last: a crash in between
//! leaves the former manifest with the former copies.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files;

/// A folder under the node's state.
#[derive(Debug)]
pub(super) struct LastKnownGood {
    folder: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    /// From the path of a configuration file to the hash of its text, which is also its copy's name.
    files: BTreeMap<PathBuf, String>,
}

impl LastKnownGood {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("last-known-good") }
    }

    /// Keeps these files, and forgets all others.
    pub(super) fn store<'a>(&self, files: impl Iterator<Item = &'a Path>) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut manifest = Manifest::default();
        for path in files {
            let text = fs::read(path)?;
            let hash = hash_of(&text);
            let copy = self.folder.join(&hash);
            if !copy.exists() {
                // Readable by the gateway only: configuration holds hashes of keys, and whom they belong to.
                files::write_secret(&copy, &text)?;
            }
            manifest.files.insert(path.to_owned(), hash);
        }
        files::write_secret(&self.manifest_path(), &serde_json::to_vec_pretty(&manifest)?)?;
        self.remove_others(&manifest);
        Ok(())
    }

    /// The text of every file, as it was when it was last in force. Nothing, if nothing was ever kept;
    /// a copy that was changed or lost counts as not kept.
    pub(super) fn load(&self) -> BTreeMap<PathBuf, String> {
        let manifest: Option<Manifest> =
            fs::read(self.manifest_path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let files = manifest.unwrap_or_default().files.into_iter();
        files
            .filter_map(|(path, hash)| {
                let text = fs::read(self.folder.join(&hash)).ok().filter(|text| hash_of(text) == hash)?;
                Some((path, String::from_utf8(text).ok()?))
            })
            .collect()
    }

    fn manifest_path(&self) -> PathBuf {
        self.folder.join("manifest.json")
    }

    fn remove_others(&self, manifest: &Manifest) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name != "manifest.json" && !manifest.files.values().any(|hash| *hash == name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn hash_of(text: &[u8]) -> String {
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        use std::fmt::Write;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_stored_comes_back_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "two").unwrap();
        let kept = LastKnownGood::new(folder.path());
        kept.store([&*a, &*b].into_iter()).unwrap();
        fs::write(&a, "three").unwrap();
        assert_eq!(kept.load()[&a], "one");
        kept.store([&*a].into_iter()).unwrap();
        assert_eq!(kept.load(), BTreeMap::from([(a, "three".to_owned())]));
        assert_eq!(fs::read_dir(folder.path().join("last-known-good")).unwrap().count(), 2);
    }

    #[test]
    fn a_copy_that_was_changed_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let a = folder.path().join("a.yaml");
        fs::write(&a, "one").unwrap();
        let kept = LastKnownGood::new(folder.path());
        kept.store([&*a].into_iter()).unwrap();
        fs::write(folder.path().join("last-known-good").join(hash_of(b"one")), "evil").unwrap();
        assert!(kept.load().is_empty());
    }
}
