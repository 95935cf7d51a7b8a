//! The configuration that was last in force, kept on disk.
//!
//! Copies of the files, and a journal of which copy is of which file. A change writes its copies and then
//! one line: a crash in between leaves the former state with the former copies. The journal is written anew
//! when most of it has been overtaken. What came from the control plane is kept the same way, under names in place of
//! paths, and sealed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use seiketsu_config::load::parallel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{RARE_POLL, pace::Pace, seal::UnsealKey};
use crate::files;

/// A folder under the node's state.
pub(super) struct LastKnownGood {
    folder: PathBuf,
    /// What copies are sealed with, if they are.
    key: Option<UnsealKey>,
    copies: BTreeMap<PathBuf, Hash>,
    /// How many files the lines of the journal name in all.
    named: usize,
    /// The journal may not say what `copies` says, or end in a part of a line: writing it failed.
    behind: bool,
    /// Of looking at all of it.
    pace: Pace,
}

/// Of a file's path and what is in its copy; also the name of that.
type Hash = [u8; 32];

/// One line of the journal: files, and the names of their copies; none where a file is gone.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Line {
    files: BTreeMap<PathBuf, Option<String>>,
}

/// Files that change together and are more than this are not made durable one by one.
const FEW: usize = 64;
/// Files that a thread takes at once.
const BATCH: usize = 64;

impl LastKnownGood {
    /// What is kept there, or nothing if there is nothing that can be read.
    pub(super) fn open(state_dir: &Path) -> Self {
        Self::open_folder(state_dir.join("last-known-good"), None)
    }

    /// The same of this folder, whose copies are sealed with this key.
    pub(super) fn open_sealed(folder: PathBuf, key: UnsealKey) -> Self {
        Self::open_folder(folder, Some(key))
    }

    fn open_folder(folder: PathBuf, key: Option<UnsealKey>) -> Self {
        let Journal { copies, named, is_cut_off } = Journal::read(&folder.join(JOURNAL));
        let mut kept = Self { folder, key, copies, named, behind: false, pace: Pace::new(RARE_POLL) };
        if is_cut_off {
            // The next line needs a beginning.
            let _ = kept.rewrite();
        }
        kept
    }

    /// Forgets what has been removed or can no longer be reached, so that it is kept anew; says whether there is such.
    /// Whether there is a journal is looked at every time, what it says and the copies from time to time, or if it is
    /// urgent.
    pub(super) fn forget_lost(&mut self, urgent: bool) -> bool {
        if self.copies.is_empty() {
            return false;
        }
        let is_there = fs::metadata(self.journal()).is_ok_and(|journal| journal.len() > 0);
        if is_there && !urgent && !self.pace.is_due() {
            return false;
        }
        let (began, count) = (Instant::now(), self.copies.len());
        let says_another = !self.behind && Journal::read(&self.journal()).copies != self.copies;
        let is_kept = |hash: &Hash| fs::metadata(self.folder.join(hex(hash))).is_ok_and(|copy| copy.len() > 0);
        self.copies.retain(|_, hash| is_kept(hash));
        let lost = says_another || self.copies.len() < count;
        // Should the journal come back, it is overtaken.
        self.behind |= lost;
        self.pace.looked(began);
        lost
    }

    /// Keeps these texts in place of the former ones; without a text, nothing.
    pub(super) fn keep(&mut self, changes: &[(&Path, Option<&str>)]) -> io::Result<()> {
        let made = parallel::map(changes, BATCH, |(path, text)| text.map(|text| self.copy_of(path, text)).transpose());
        let mut copies = Vec::with_capacity(changes.len());
        for ((path, _), copy) in changes.iter().zip(made) {
            let copy = copy?;
            if self.copies.get(*path) != copy.as_ref().map(|(hash, _)| hash) {
                copies.push((*path, copy));
            }
        }
        let changes = copies;
        if changes.is_empty() && !self.behind {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        if self.behind {
            self.rewrite()?;
        }
        let copies = || changes.iter().filter_map(|(_, copy)| copy.as_ref());
        let written = copies().try_for_each(|(hash, content)| self.write_copy(hash, content, changes.len() <= FEW));
        if let Err(error) = written {
            // A full disk does not get fuller with every attempt: one that is sealed anew has another name.
            copies().for_each(|(hash, _)| drop(fs::remove_file(self.folder.join(hex(hash)))));
            return Err(error);
        }
        if changes.len() > FEW {
            rustix::fs::syncfs(fs::File::open(&self.folder)?)?;
        }
        if !changes.is_empty() {
            let name = |copy: &Option<(Hash, Cow<'_, [u8]>)>| copy.as_ref().map(|(hash, _)| hex(hash));
            let files = changes.iter().map(|(path, copy)| ((*path).to_owned(), name(copy))).collect();
            self.append(&Line { files })?;
        }
        for (path, copy) in changes {
            let former = match copy {
                Some((hash, _)) => self.copies.insert(path.to_owned(), hash),
                None => self.copies.remove(path),
            };
            if let Some(former) = former {
                let _ = fs::remove_file(self.folder.join(hex(&former)));
            }
        }
        // Writing it anew costs as much as all changes since the last time have cost together.
        if self.named > 2 * self.copies.len() + FEW { self.rewrite() } else { Ok(()) }
    }

    /// Forgets all other files, and removes what no line names: after a crash there may be such copies.
    pub(super) fn keep_only(&mut self, paths: &HashSet<&Path>) -> io::Result<()> {
        self.copies.retain(|path, _| paths.contains(&**path));
        if !self.folder.exists() {
            return Ok(());
        }
        self.rewrite()?;
        let names: HashSet<String> = self.copies.values().map(hex).collect();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name();
            if name != OsStr::new(JOURNAL) && !name.to_str().is_some_and(|name| names.contains(name)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// The files that are kept.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.copies.keys().cloned().collect()
    }

    /// The text of a file as it was when it was last in force; a copy that was changed or lost counts as
    /// not kept.
    pub(super) fn text(&self, path: &Path) -> Option<String> {
        let hash = self.copies.get(path)?;
        let content = fs::read(self.folder.join(hex(hash))).ok()?;
        if hash_of(path, &content) != *hash {
            return None;
        }
        match &self.key {
            Some(key) => key.open(path, content),
            None => String::from_utf8(content).ok(),
        }
    }

    fn copy_of<'t>(&self, path: &Path, text: &'t str) -> io::Result<(Hash, Cow<'t, [u8]>)> {
        let content = match &self.key {
            Some(key) => Cow::Owned(key.seal(path, text)?),
            None => Cow::Borrowed(text.as_bytes()),
        };
        Ok((hash_of(path, &content), content))
    }

    fn write_copy(&self, hash: &Hash, content: &[u8], durable: bool) -> io::Result<()> {
        // Readable by the gateway only: configuration holds hashes of keys, and whom they belong to.
        let copy = self.folder.join(hex(hash));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(copy)?;
        file.write_all(content)?;
        if durable { file.sync_all() } else { Ok(()) }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.journal())?;
        self.behind = true;
        file.write_all(&text)?;
        file.sync_all()?;
        self.behind = false;
        self.named += line.files.len();
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let files = self.copies.iter().map(|(path, hash)| (path.clone(), Some(hex(hash)))).collect();
        let mut text = serde_json::to_vec(&Line { files })?;
        text.push(b'\n');
        self.behind = true;
        files::write_secret(&self.journal(), &text)?;
        self.behind = false;
        self.named = self.copies.len();
        Ok(())
    }

    fn journal(&self) -> PathBuf {
        self.folder.join(JOURNAL)
    }
}

const JOURNAL: &str = "journal.json";

/// What a journal says.
#[derive(Default)]
struct Journal {
    copies: BTreeMap<PathBuf, Hash>,
    /// How many files its lines name in all.
    named: usize,
    /// It ends in a part of a line: a crash cut it off, so it was not in force yet.
    is_cut_off: bool,
}

impl Journal {
    fn read(path: &Path) -> Self {
        let mut journal = Self::default();
        for line in fs::read(path).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            let Some(Line { files }) = serde_json::from_slice(line).ok().filter(|_| line.ends_with(b"\n")) else {
                journal.is_cut_off = true;
                break;
            };
            journal.named += files.len();
            for (path, hash) in files {
                match hash.as_deref().and_then(from_hex) {
                    Some(hash) => journal.copies.insert(path, hash),
                    None => journal.copies.remove(&path),
                };
            }
        }
        journal
    }
}

fn hash_of(path: &Path, content: &[u8]) -> Hash {
    let path = path.as_os_str().as_encoded_bytes();
    let mut hash = Sha256::new();
    hash.update((path.len() as u64).to_be_bytes());
    hash.update(path);
    hash.update(content);
    hash.finalize().into()
}

fn hex(hash: &Hash) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn from_hex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    let digits = text.as_bytes();
    if digits.len() != 2 * hash.len() || !digits.is_ascii() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: &str = "/conf/a.yaml";
    const B: &str = "/conf/b.yaml";

    fn keep(kept: &mut LastKnownGood, changes: &[(&str, Option<&str>)]) {
        let changes: Vec<_> = changes.iter().map(|(path, text)| (Path::new(path), *text)).collect();
        kept.keep(&changes).unwrap();
    }

    fn texts(folder: &Path) -> Vec<(String, Option<String>)> {
        let kept = LastKnownGood::open(folder);
        kept.paths().iter().map(|path| (path.display().to_string(), kept.text(path))).collect()
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder.join("last-known-good")).unwrap().count()
    }

    #[test]
    fn what_was_kept_comes_back_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = LastKnownGood::open(folder.path());
        keep(&mut kept, &[(A, Some("one")), (B, Some("one"))]);
        keep(&mut kept, &[(A, Some("two"))]);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(texts(folder.path()), [(A.to_owned(), text("two")), (B.to_owned(), text("one"))]);
        keep(&mut kept, &[(A, None)]);
        assert_eq!(texts(folder.path()), [(B.to_owned(), text("one"))]);
        assert_eq!(count(folder.path()), 2);
        kept.keep_only(&HashSet::new()).unwrap();
        assert_eq!((texts(folder.path()).len(), count(folder.path())), (0, 1));
    }

    #[test]
    fn many_changes_leave_a_short_journal() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = LastKnownGood::open(folder.path());
        let paths: Vec<String> = (0..200).map(|number| format!("/conf/{number}.yaml")).collect();
        keep(&mut kept, &paths.iter().map(|path| (&**path, Some("first"))).collect::<Vec<_>>());
        for path in &paths {
            keep(&mut kept, &[(path, Some("second")), (A, None)]);
            keep(&mut kept, &[(path, Some("third"))]);
        }
        assert!(kept.named <= 2 * 200 + FEW);
        let texts = texts(folder.path());
        assert_eq!((texts.len(), count(folder.path())), (200, 201));
        assert!(texts.iter().all(|(_, text)| text.as_deref() == Some("third")));
    }

    #[test]
    fn a_copy_that_was_changed_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        keep(&mut LastKnownGood::open(folder.path()), &[(A, Some("one"))]);
        let name = hex(&hash_of(Path::new(A), b"one"));
        fs::write(folder.path().join("last-known-good").join(name), "evil").unwrap();
        assert_eq!(texts(folder.path()), [(A.to_owned(), None)]);
    }

    #[test]
    fn a_line_that_a_full_disk_cut_off_takes_no_later_one_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = LastKnownGood::open(folder.path());
        keep(&mut kept, &[(A, Some("one"))]);
        let journal = kept.journal();
        let whole = fs::read(&journal).unwrap();
        fs::remove_file(&journal).unwrap();
        std::os::unix::fs::symlink("/dev/full", &journal).unwrap();
        assert!(kept.keep(&[(Path::new(A), Some("two"))]).is_err());
        fs::remove_file(&journal).unwrap();
        fs::write(&journal, [&whole, &whole[..10]].concat()).unwrap();
        keep(&mut kept, &[(A, Some("two"))]);
        keep(&mut kept, &[(B, Some("one"))]);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(texts(folder.path()), [(A.to_owned(), text("two")), (B.to_owned(), text("one"))]);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_counts_as_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = LastKnownGood::open(folder.path());
        keep(&mut kept, &[(A, Some("one"))]);
        keep(&mut kept, &[(B, Some("one"))]);
        let whole = fs::read(kept.journal()).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in 0..=whole.len() {
            fs::write(kept.journal(), &whole[..length]).unwrap();
            let mut kept = LastKnownGood::open(folder.path());
            assert_eq!(kept.paths().len(), usize::from(length >= first) + usize::from(length == whole.len()));
            // And what comes then is read again.
            keep(&mut kept, &[("/conf/c.yaml", Some("one"))]);
            assert_eq!(LastKnownGood::open(folder.path()).paths(), kept.paths());
        }
        // The copies of what was never said to be in force go with the next start.
        fs::write(kept.journal(), &whole[..whole.len() - 3]).unwrap();
        LastKnownGood::open(folder.path()).keep_only(&HashSet::from([Path::new(A)])).unwrap();
        assert_eq!(count(folder.path()), 2);
    }
}
