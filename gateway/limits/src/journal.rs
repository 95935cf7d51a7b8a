//! Numbers that only grow, on disk: what must still be known after the process has been killed.
//!
//! A file of lines, one JSON object each; of several lines about one thing the largest number counts, or
//! the one that is said to be final. A last line that was not written whole is ignored.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// A file that has grown to twice what it says is written anew, but not below this.
const REWRITTEN_FROM: u64 = 4 << 20;

/// By tenant and key.
pub(crate) type Entries = HashMap<(Arc<str>, Arc<str>), Entry>;

/// A journal in use.
#[derive(Debug)]
pub struct Journal {
    /// What stood there at the beginning and has not ended.
    former: Entries,
    batches: Mutex<Option<mpsc::UnboundedSender<Batch>>>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

/// A number and what it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(rename = "t")]
    tenant: Arc<str>,
    #[serde(rename = "k")]
    key: Arc<str>,
    #[serde(rename = "v")]
    value: u64,
    /// Microseconds since 1970 from which on it matters no more.
    #[serde(rename = "e")]
    ends: u64,
    /// Whether it counts although a larger one was written before.
    #[serde(rename = "f", default, skip_serializing_if = "std::ops::Not::not")]
    is_final: bool,
}

#[derive(Debug)]
struct Batch {
    entries: Vec<Entry>,
    written: oneshot::Sender<io::Result<()>>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the counters of quotas in {path} cannot be {action}: {source}")]
pub struct JournalError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl Entry {
    pub fn new(tenant: &Arc<str>, key: &Arc<str>, value: u64, ends: u64) -> Self {
        Self { tenant: Arc::clone(tenant), key: Arc::clone(key), value, ends, is_final: false }
    }

    /// One that counts whatever was written before.
    #[must_use]
    pub fn to_be_final(self) -> Self {
        Self { is_final: true, ..self }
    }

    pub fn tenant(&self) -> &Arc<str> {
        &self.tenant
    }

    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub fn value(&self) -> u64 {
        self.value
    }

    pub fn ends(&self) -> u64 {
        self.ends
    }
}

impl Journal {
    /// Reads the journal, leaves out what has ended, and goes on writing it. The file need not be there,
    /// its folder must.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let error = |action| move |source| JournalError { path: path.to_owned(), action, source };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut known = read(path).map_err(error("read"))?;
        known.retain(|_, entry| entry.ends > now);
        let file = rewrite(path, known.values()).map_err(error("written"))?;
        let (batches, receiver) = mpsc::unbounded_channel();
        let mut writer = Writer { path: path.to_owned(), file, known: known.clone(), written: 0 };
        let thread = thread::Builder::new()
            .name("quota-journal".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(error("written"))?;
        Ok(Self { former: known, batches: Mutex::new(Some(batches)), writer: Mutex::new(Some(thread)) })
    }

    /// What stood there at the beginning; 0 if nothing did.
    pub fn get(&self, tenant: &Arc<str>, key: &Arc<str>) -> u64 {
        self.former.get(&(Arc::clone(tenant), Arc::clone(key))).map_or(0, Entry::value)
    }

    /// All that stood there at the beginning.
    pub fn former(&self) -> impl Iterator<Item = &Entry> {
        self.former.values()
    }

    /// Returns once the entries would survive a loss of power.
    pub async fn write(&self, entries: &[Entry]) -> io::Result<()> {
        let (written, wait) = oneshot::channel();
        self.send(Batch { entries: entries.to_vec(), written })?;
        wait.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Writes the last entries; nothing can be written after that.
    pub fn close(&self, entries: &[Entry]) -> io::Result<()> {
        let (written, _) = oneshot::channel();
        self.send(Batch { entries: entries.to_vec(), written })?;
        self.batches.lock().take();
        let writer = self.writer.lock().take();
        writer.map_or(Ok(()), |writer| writer.join().map_err(|_| io::Error::other("the writer has failed")))
    }

    fn send(&self, batch: Batch) -> io::Result<()> {
        self.batches.lock().as_ref().and_then(|batches| batches.send(batch).ok()).ok_or_else(closed)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.batches.lock().take();
        if let Some(writer) = self.writer.lock().take() {
            // It has said what went wrong.
            let _ = writer.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    known: Entries,
    /// Bytes since the file was written anew.
    written: u64,
}

impl Writer {
    fn run(&mut self, mut batches: mpsc::UnboundedReceiver<Batch>) {
        while let Some(first) = batches.blocking_recv() {
            // All that has come meanwhile shares one wait for the disk.
            let mut together = vec![first];
            while let Ok(next) = batches.try_recv() {
                together.push(next);
            }
            let result = self.append(together.iter().flat_map(|batch| &batch.entries));
            if let Err(error) = &result {
                tracing::error!(path = %self.path.display(), %error, "counters of quotas cannot be written");
            }
            for batch in together {
                let result = result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()));
                // Whoever asked may have gone.
                let _ = batch.written.send(result);
            }
        }
    }

    fn append<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> io::Result<()> {
        let mut lines = Vec::new();
        for entry in entries {
            if merge(&mut self.known, entry.clone()) {
                serde_json::to_writer(&mut lines, entry)?;
                lines.push(b'\n');
            }
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.written += lines.len() as u64;
        // About what the entries take that count.
        let size = self.known.len() as u64 * 100;
        if self.written > REWRITTEN_FROM.max(size) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            self.known.retain(|_, entry| entry.ends > now);
            self.file = rewrite(&self.path, self.known.values())?;
            self.written = 0;
        }
        Ok(())
    }
}

/// Whether the entry says anything new.
fn merge(known: &mut Entries, entry: Entry) -> bool {
    let key = (Arc::clone(&entry.tenant), Arc::clone(&entry.key));
    match known.get(&key) {
        Some(before) if !entry.is_final && before.value >= entry.value => false,
        _ => {
            known.insert(key, entry);
            true
        }
    }
}

fn read(path: &Path) -> io::Result<Entries> {
    let mut known = HashMap::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(known),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut number = 0_u64;
    while reader.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        match serde_json::from_slice(&line) {
            // The last line, if it lacks its end, was not waited for by anybody.
            Ok(entry) if line.ends_with(b"\n") => {
                merge(&mut known, entry);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), line = number, %error, "a line of counters is ignored");
            }
        }
        line.clear();
    }
    Ok(known)
}

/// Replaces the file in one step; returns it, open for more.
fn rewrite<'a>(path: &Path, entries: impl Iterator<Item = &'a Entry>) -> io::Result<File> {
    let next = path.with_extension("next");
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, &Entry { is_final: false, ..entry.clone() })?;
        text.push(b'\n');
    }
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&next)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the journal is closed")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn entry(key: &str, value: u64) -> Entry {
        Entry::new(&"acme".into(), &key.into(), value, u64::MAX)
    }

    fn get(journal: &Journal, key: &str) -> u64 {
        journal.get(&"acme".into(), &key.into())
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_the_process_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let journal = Journal::open(&path).unwrap();
        journal.write(&[entry("day", 10), entry("month", 100)]).await.unwrap();
        // An older number does not replace a newer one.
        journal.write(&[entry("day", 7), entry("month", 101)]).await.unwrap();
        // As it stands on disk, without an orderly end.
        let copy = folder.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let again = Journal::open(&copy).unwrap();
        assert_eq!((get(&again, "day"), get(&again, "month"), get(&again, "hour")), (10, 101, 0));
        // The final number counts even if it is smaller.
        journal.close(&[entry("day", 8).to_be_final()]).unwrap();
        assert_eq!(get(&Journal::open(&path).unwrap(), "day"), 8);
    }

    #[tokio::test]
    async fn a_line_that_was_cut_off_is_as_if_it_had_not_been_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let journal = Journal::open(&path).unwrap();
        for value in 1..=20 {
            journal.write(&[entry("day", value)]).await.unwrap();
        }
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let lines = whole[..length].split(|byte| *byte == b'\n').count() as u64 - 1;
            assert_eq!(get(&Journal::open(&path).unwrap(), "day"), lines);
        }
    }

    #[tokio::test]
    async fn what_has_ended_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let ended = Entry::new(&"acme".into(), &"day".into(), 5, 1);
        Journal::open(&path).unwrap().write(&[ended, entry("month", 6)]).await.unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!((get(&journal, "day"), get(&journal, "month")), (0, 6));
        assert_eq!(journal.former().count(), 1);
    }
}
