//! The files that tenants stand in, as they were last looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::stamp::Stamp;

/// The tenant file, or the files of the folder of tenants.
pub(super) struct TenantFiles {
    path: PathBuf,
    /// Whether it was a folder when it was last looked at.
    is_folder: bool,
    stamps: BTreeMap<PathBuf, Stamp>,
    /// Those that are links to files elsewhere, whose changes a watch on the folder does not see.
    links: BTreeSet<PathBuf>,
}

/// Which files to look at, at least.
pub(super) enum Scope {
    All,
    /// These of the folder, and what cannot be watched.
    Named(BTreeSet<OsString>),
}

/// What looking has shown.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// New, or not as they were.
    pub(super) read: BTreeSet<PathBuf>,
    pub(super) gone: BTreeSet<PathBuf>,
}

enum Presence {
    File,
    Link,
    Gone,
}

impl TenantFiles {
    /// `was_folder`: what is known of it from before the node was started.
    pub(super) fn new(path: &Path, was_folder: bool) -> Self {
        Self { path: path.to_owned(), is_folder: was_folder, stamps: BTreeMap::new(), links: BTreeSet::new() }
    }

    /// All files that there are.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.stamps.keys()
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.stamps.contains_key(path)
    }

    /// Finds out what has changed since the last look. An error (there is no file at all) changes nothing.
    pub(super) fn look(&mut self, scope: &Scope) -> Result<Changed, String> {
        let now = SystemTime::now();
        if self.is_folder && !self.path.exists() {
            return Err(format!("the folder {} is gone; nothing of it goes out of force", self.path.display()));
        }
        self.is_folder = self.path.is_dir();
        let present = match scope {
            Scope::All => list(&self.path)?,
            Scope::Named(names) => self.named(names),
        };
        let gone: BTreeSet<PathBuf> = match scope {
            Scope::All => self.stamps.keys().filter(|path| !present.contains_key(*path)).cloned().collect(),
            Scope::Named(_) => {
                let gone = present.iter().filter(|(_, presence)| matches!(presence, Presence::Gone));
                gone.map(|(path, _)| path.clone()).filter(|path| self.stamps.contains_key(path)).collect()
            }
        };
        if !gone.is_empty()
            && gone.len() == self.stamps.len()
            && present.values().all(|it| matches!(it, Presence::Gone))
        {
            return Err(no_file(&self.path));
        }
        let mut changed = Changed { read: BTreeSet::new(), gone };
        for (path, presence) in present {
            if matches!(presence, Presence::Link) {
                self.links.insert(path.clone());
            } else {
                self.links.remove(&path);
            }
            if matches!(presence, Presence::Gone) {
                continue;
            }
            let stamp = Stamp::of(&path, now);
            if self.stamps.insert(path.clone(), stamp).is_none_or(|before| before.differs_from(stamp)) {
                changed.read.insert(path);
            }
        }
        for path in &changed.gone {
            self.stamps.remove(path);
            self.links.remove(path);
        }
        Ok(changed)
    }

    fn named(&self, names: &BTreeSet<OsString>) -> BTreeMap<PathBuf, Presence> {
        if !self.is_folder {
            // Whether or not it is there: it was named, so it is missing if it is not.
            return BTreeMap::from([(self.path.clone(), Presence::File)]);
        }
        let named = names.iter().filter(|name| is_tenant_file(name)).map(|name| self.path.join(name));
        named.chain(self.links.iter().cloned()).map(|path| (path.clone(), presence(&path))).collect()
    }
}

fn presence(path: &Path) -> Presence {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => Presence::Link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::Gone,
        // What cannot be looked at is there, and cannot be read.
        Ok(_) | Err(_) => Presence::File,
    }
}

/// The file, or the `*.yaml` files of the folder.
fn list(path: &Path) -> Result<BTreeMap<PathBuf, Presence>, String> {
    if !path.is_dir() {
        return Ok(BTreeMap::from([(path.to_owned(), Presence::File)]));
    }
    let unreadable = |error| format!("cannot read the folder {}: {error}", path.display());
    let entries = fs::read_dir(path).map_err(unreadable)?;
    // A list with gaps would take the tenants of the files that are missing in it out of force.
    let entries: Vec<fs::DirEntry> = entries.collect::<Result<_, _>>().map_err(unreadable)?;
    let files: BTreeMap<PathBuf, Presence> = entries
        .into_iter()
        .filter(|entry| is_tenant_file(&entry.file_name()))
        .map(|entry| {
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            (entry.path(), if is_link { Presence::Link } else { Presence::File })
        })
        .collect();
    if files.is_empty() { Err(no_file(path)) } else { Ok(files) }
}

fn no_file(folder: &Path) -> String {
    format!("the folder {} has no *.yaml file; write the tenants into one", folder.display())
}

/// Whether a file of a folder holds tenants.
pub(super) fn is_tenant_file(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
        && !name.as_encoded_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    fn names(paths: &BTreeSet<PathBuf>) -> Vec<&str> {
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
    }

    fn named(names: &[&str]) -> Scope {
        Scope::Named(names.iter().map(OsString::from).collect())
    }

    #[test]
    fn only_what_is_named_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a.yaml", "b.yml", ".c.yaml", "d.txt"] {
            fs::write(path(name), "").unwrap();
        }
        let mut files = TenantFiles::new(folder.path(), false);
        assert_eq!(names(&files.look(&Scope::All).unwrap().read), ["a.yaml", "b.yml"]);
        fs::write(path("a.yaml"), "more").unwrap();
        fs::write(path("b.yml"), "more").unwrap();
        fs::write(path("new.yaml"), "").unwrap();
        let changed = files.look(&named(&["b.yml", "d.txt", ".c.yaml", "never.yaml"])).unwrap();
        assert_eq!((names(&changed.read), names(&changed.gone)), (vec!["b.yml"], vec![]));
        fs::remove_file(path("b.yml")).unwrap();
        assert_eq!(names(&files.look(&named(&["b.yml"])).unwrap().gone), ["b.yml"]);
        assert_eq!(names(&files.look(&Scope::All).unwrap().read), ["a.yaml", "new.yaml"]);
    }

    #[test]
    fn a_link_is_looked_at_without_being_named() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("target");
        fs::write(&target, "").unwrap();
        symlink(&target, folder.path().join("link.yaml")).unwrap();
        let mut files = TenantFiles::new(folder.path(), false);
        files.look(&Scope::All).unwrap();
        fs::write(&target, "other").unwrap();
        assert_eq!(names(&files.look(&named(&[])).unwrap().read), ["link.yaml"]);
        // It leads nowhere: that is an error of the file, not the wish to remove its tenants.
        fs::remove_file(&target).unwrap();
        let changed = files.look(&named(&[])).unwrap();
        assert_eq!((names(&changed.read), changed.gone.len()), (vec!["link.yaml"], 0));
    }

    #[test]
    fn an_empty_folder_is_an_error_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let mut files = TenantFiles::new(folder.path(), false);
        assert!(files.look(&Scope::All).unwrap_err().contains("no *.yaml file"));
        fs::write(&path, "").unwrap();
        files.look(&Scope::All).unwrap();
        fs::remove_file(&path).unwrap();
        for scope in [named(&["a.yaml"]), Scope::All] {
            assert!(files.look(&scope).unwrap_err().contains("no *.yaml file"));
        }
        let away = folder.path().with_extension("away");
        fs::rename(folder.path(), &away).unwrap();
        for scope in [named(&["a.yaml"]), Scope::All] {
            assert!(files.look(&scope).unwrap_err().contains("is gone"));
        }
        fs::rename(away, folder.path()).unwrap();
        fs::write(folder.path().join("b.yaml"), "").unwrap();
        let changed = files.look(&Scope::All).unwrap();
        assert_eq!((names(&changed.read), names(&changed.gone)), (vec!["b.yaml"], vec!["a.yaml"]));
    }

    #[test]
    fn a_file_that_is_named_is_there_even_if_it_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tenants.yaml");
        let mut files = TenantFiles::new(&path, false);
        assert_eq!(files.look(&Scope::All).unwrap().read.len(), 1);
        assert_eq!(files.look(&Scope::All).unwrap().read.len(), 0);
        fs::write(&path, "").unwrap();
        assert_eq!(names(&files.look(&named(&[])).unwrap().read), ["tenants.yaml"]);
        fs::remove_file(&path).unwrap();
        let changed = files.look(&named(&["tenants.yaml"])).unwrap();
        assert_eq!((names(&changed.read), changed.gone.len()), (vec!["tenants.yaml"], 0));
    }
}
