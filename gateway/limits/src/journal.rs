//! How much of each quota was taken, on disk: what must still be known after the process has been killed.
//!
//! A file of lines, one JSON object each: by how much a number grew, or shrank where what was taken was not
//! needed after all. The sum of its lines counts. Several processes may write the same file, as the two do of
//! which one takes the other's place: each reads what the others have added before it adds anything itself,
//! under a lock. A line that was not written whole is ignored; nobody was told that it had been.
//!
//! What has ended is taken out when the file is written anew, and put aside: a clock that was wrong once would
//! have ended it too early. It is taken back by a process that starts before its end.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::lock;

/// A file that has grown to twice what it says is written anew, but not below this.
const REWRITTEN_FROM: u64 = 4 << 20;

/// So many entries are put aside, those that ended last.
const MOST_ASIDE: usize = 100_000;

/// How long another process is waited for that has the journal locked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tenant and key.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// A journal in use.
#[derive(Debug)]
pub struct Journal {
    /// What stood there at the beginning and has not ended.
    former: HashMap<Name, Entry>,
    batches: Mutex<Option<mpsc::UnboundedSender<Batch>>>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

/// How much of something this process has taken in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    tenant: Arc<str>,
    key: Arc<str>,
    value: u64,
    /// Microseconds since 1970 from which on it matters no more.
    ends: u64,
    /// Whether it counts although a larger one was written before.
    is_final: bool,
}

/// What other processes have taken, for each entry of a batch.
#[derive(Debug)]
pub struct Others {
    /// Grows with each batch: what has a larger one is newer.
    pub sequence: u64,
    pub taken: Vec<u64>,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "t")]
    tenant: Arc<str>,
    #[serde(rename = "k")]
    key: Arc<str>,
    /// By how much it has grown.
    #[serde(rename = "d")]
    by: i64,
    #[serde(rename = "e")]
    ends: u64,
}

#[derive(Debug)]
struct Batch {
    entries: Vec<Entry>,
    written: oneshot::Sender<io::Result<Others>>,
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

    pub(crate) fn name(&self) -> Name {
        (Arc::clone(&self.tenant), Arc::clone(&self.key))
    }
}

impl Journal {
    /// Reads the journal, leaves out what has ended, and goes on writing it. The file need not be there,
    /// its folder must.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let error = |action| move |source| JournalError { path: path.to_owned(), action, source };
        let mut writer = Writer::open(path).map_err(error("opened"))?;
        let former = writer.begin(unix_micros()).map_err(error("written"))?;
        let (batches, receiver) = mpsc::unbounded_channel();
        let thread = thread::Builder::new()
            .name("quota-journal".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(error("written"))?;
        Ok(Self { former, batches: Mutex::new(Some(batches)), writer: Mutex::new(Some(thread)) })
    }

    /// What stood there at the beginning; 0 if nothing did.
    pub fn get(&self, tenant: &Arc<str>, key: &Arc<str>) -> u64 {
        self.former.get(&(Arc::clone(tenant), Arc::clone(key))).map_or(0, Entry::value)
    }

    /// All that stood there at the beginning.
    pub fn former(&self) -> impl Iterator<Item = &Entry> {
        self.former.values()
    }

    /// Returns once the entries would survive a loss of power, with what all other processes have taken of the
    /// same, before and since.
    pub async fn write(&self, entries: &[Entry]) -> io::Result<Others> {
        let (written, wait) = oneshot::channel();
        self.send(Batch { entries: entries.to_vec(), written })?;
        wait.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Writes the last entries; nothing can be written after that.
    pub fn close(&self, entries: &[Entry]) -> io::Result<()> {
        let (written, mut result) = oneshot::channel();
        self.send(Batch { entries: entries.to_vec(), written })?;
        self.batches.lock().take();
        let writer = self.writer.lock().take();
        writer.map_or(Ok(()), |writer| writer.join().map_err(|_| io::Error::other("the writer has failed")))?;
        result.try_recv().unwrap_or_else(|_| Err(closed())).map(drop)
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
    /// Held while the file is read and written. Another file, since that one is replaced at times.
    lock: File,
    file: File,
    /// Up to here the file has been read, or was written here.
    offset: u64,
    /// Whether the last line has no end.
    is_torn: bool,
    /// What the lines up to there say.
    sums: HashMap<Name, Sum>,
    /// What of it this process has written.
    own: HashMap<Name, u64>,
    sequence: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    value: i64,
    ends: u64,
}

impl Writer {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            lock: OpenOptions::new().create(true).append(true).open(path.with_extension("lock"))?,
            file: open_or_create(path)?,
            offset: 0,
            is_torn: false,
            sums: HashMap::new(),
            own: HashMap::new(),
            sequence: 0,
        })
    }

    /// Reads what is there, and writes it anew without what has ended.
    fn begin(&mut self, now: u64) -> io::Result<HashMap<Name, Entry>> {
        self.locked(|this| {
            this.catch_up()?;
            let aside = this.aside()?;
            for (name, sum) in aside.iter().filter(|(_, sum)| sum.ends > now) {
                let taken_back = this.sums.entry(name.clone()).or_default();
                // Who was there all the time has written it once more.
                taken_back.value = taken_back.value.max(sum.value);
                taken_back.ends = sum.ends;
            }
            this.rewrite(now)?;
            // Once it stands there again.
            if aside.values().any(|sum| sum.ends > now) {
                this.put_aside(aside.into_iter().filter(|(_, sum)| sum.ends <= now).collect())?;
            }
            Ok(())
        })?;
        let entry = |(name, sum): (&Name, &Sum)| {
            let (tenant, key) = name;
            (name.clone(), Entry::new(tenant, key, u64::try_from(sum.value).unwrap_or_default(), sum.ends))
        };
        Ok(self.sums.iter().map(entry).collect())
    }

    fn run(&mut self, mut batches: mpsc::UnboundedReceiver<Batch>) {
        while let Some(first) = batches.blocking_recv() {
            // All that has come meanwhile shares one wait for the disk.
            let mut together = vec![first];
            while let Ok(next) = batches.try_recv() {
                together.push(next);
            }
            let result = self.locked(|this| this.append(together.iter().flat_map(|batch| &batch.entries)));
            if let Err(error) = &result {
                tracing::error!(path = %self.path.display(), %error, "counters of quotas cannot be written");
                // How much of it was written is read again; it counts as others' then, so that nothing is
                // given twice.
                self.forget();
            }
            self.sequence += 1;
            for batch in together {
                let others = |()| Others {
                    sequence: self.sequence,
                    taken: batch.entries.iter().map(|entry| self.others(&entry.name())).collect(),
                };
                let result = result.as_ref().copied().map(others);
                let result = result.map_err(|error| io::Error::new(error.kind(), error.to_string()));
                // Whoever asked may have gone.
                let _ = batch.written.send(result);
            }
        }
    }

    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        lock::take(&self.lock, PATIENCE)?;
        let result = work(self);
        self.lock.unlock()?;
        result
    }

    fn append<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> io::Result<()> {
        self.catch_up()?;
        let (mut lines, mut own) = (Vec::new(), HashMap::new());
        if self.is_torn {
            lines.push(b'\n');
        }
        for entry in entries {
            let name = entry.name();
            let before = own.get(&name).or_else(|| self.own.get(&name)).copied().unwrap_or_default();
            // Several are on their way at a time, and need not come in their order.
            if entry.value == before || entry.value < before && !entry.is_final {
                continue;
            }
            let by = to_i64(entry.value) - to_i64(before);
            write_line(&mut lines, &name, Sum { value: by, ends: entry.ends })?;
            own.insert(name, entry.value);
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.own.extend(own);
        self.catch_up()?;
        // About what the entries take that count.
        let size = self.sums.len() as u64 * 100;
        if self.offset > 2 * REWRITTEN_FROM.max(size) {
            self.rewrite(unix_micros())?;
        }
        Ok(())
    }

    /// Reads what has been added to the file, or all of it if it is another one.
    fn catch_up(&mut self) -> io::Result<()> {
        let is_another = match fs::metadata(&self.path) {
            Ok(there) => {
                let here = self.file.metadata()?;
                (there.dev(), there.ino()) != (here.dev(), here.ino())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        if is_another {
            self.file = open_or_create(&self.path)?;
            self.forget();
        }
        let length = self.file.metadata()?.len();
        if length < self.offset {
            self.forget();
        }
        let mut reader = BufReader::new(From { file: &self.file, offset: self.offset });
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            self.offset += line.len() as u64;
            self.is_torn = !line.ends_with(b"\n");
            match serde_json::from_slice::<Line>(&line) {
                Ok(Line { tenant, key, by, ends }) if !self.is_torn => {
                    let sum = self.sums.entry((tenant, key)).or_default();
                    (sum.value, sum.ends) = (sum.value.saturating_add(by), ends);
                }
                Ok(_) => {}
                Err(_) if line == b"\n" => {}
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "a line of counters is ignored");
                }
            }
            line.clear();
        }
        Ok(())
    }

    /// Replaces the file in one step by one that says the same with fewer lines.
    fn rewrite(&mut self, now: u64) -> io::Result<()> {
        let ended: Vec<(Name, Sum)> = self.sums.extract_if(|_, sum| sum.ends <= now).collect();
        if !ended.is_empty() {
            let mut aside = self.aside()?;
            aside.extend(ended);
            self.put_aside(aside)?;
        }
        let Self { sums, own, .. } = self;
        own.retain(|name, _| sums.contains_key(name));
        let mut text = Vec::new();
        for (name, sum) in sums.iter() {
            write_line(&mut text, name, *sum)?;
        }
        replace(&self.path, &text)?;
        self.file = open_or_create(&self.path)?;
        (self.offset, self.is_torn) = (text.len() as u64, false);
        Ok(())
    }

    fn path_aside(&self) -> PathBuf {
        self.path.with_extension("ended")
    }

    /// What was put aside.
    fn aside(&self) -> io::Result<HashMap<Name, Sum>> {
        let text = match fs::read(self.path_aside()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        Ok(lines.map(|Line { tenant, key, by, ends }| ((tenant, key), Sum { value: by, ends })).collect())
    }

    fn put_aside(&self, all: HashMap<Name, Sum>) -> io::Result<()> {
        let mut all: Vec<(Name, Sum)> = all.into_iter().collect();
        all.sort_unstable_by_key(|(_, sum)| std::cmp::Reverse(sum.ends));
        let mut text = Vec::new();
        for (name, sum) in all.iter().take(MOST_ASIDE) {
            write_line(&mut text, name, *sum)?;
        }
        replace(&self.path_aside(), &text)
    }

    /// Everything is read again.
    fn forget(&mut self) {
        self.sums.clear();
        (self.offset, self.is_torn) = (0, false);
    }

    /// What all others have taken, before and since.
    fn others(&self, name: &Name) -> u64 {
        let sum = self.sums.get(name).map_or(0, |sum| sum.value);
        let own = self.own.get(name).copied().unwrap_or_default();
        u64::try_from(sum.saturating_sub(to_i64(own))).unwrap_or_default()
    }
}

/// A file from some place on, whatever place others read or write it at.
struct From<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for From<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Writes a file anew, in one step.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&next)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn open_or_create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

fn write_line(text: &mut Vec<u8>, (tenant, key): &Name, sum: Sum) -> io::Result<()> {
    let line = Line { tenant: Arc::clone(tenant), key: Arc::clone(key), by: sum.value, ends: sum.ends };
    serde_json::to_writer(&mut *text, &line)?;
    text.push(b'\n');
    Ok(())
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
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
    async fn of_several_processes_each_learns_what_the_others_have_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let former = Journal::open(&path).unwrap();
        former.write(&[entry("day", 10)]).await.unwrap();
        // Which writes the file anew, while the first has it open.
        let next = Journal::open(&path).unwrap();
        assert_eq!(get(&next, "day"), 10);
        former.write(&[entry("day", 15)]).await.unwrap();
        let told = next.write(&[entry("day", 4)]).await.unwrap();
        assert_eq!(told.taken, [15]);
        let told_former = former.write(&[entry("month", 1), entry("day", 16)]).await.unwrap();
        assert_eq!(told_former.taken, [0, 4]);
        // What the first did not need after all is the other's again.
        former.close(&[entry("day", 12).to_be_final()]).unwrap();
        let told_later = next.write(&[entry("day", 5)]).await.unwrap();
        assert_eq!(told_later.taken, [12]);
        assert!(told_later.sequence > told.sequence);
        drop(next);
        assert_eq!(get(&Journal::open(&path).unwrap(), "day"), 17);
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
    async fn a_line_that_another_process_left_torn_spoils_none_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let journal = Journal::open(&path).unwrap();
        journal.write(&[entry("day", 1)]).await.unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"t\":\"ac").unwrap();
        journal.write(&[entry("day", 2)]).await.unwrap();
        journal.write(&[entry("day", 3)]).await.unwrap();
        drop(journal);
        assert_eq!(get(&Journal::open(&path).unwrap(), "day"), 3);
    }

    #[test]
    fn a_clock_that_was_wrong_once_has_ended_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas");
        let entries = [("day", 5, 100), ("month", 6, 1000)]
            .map(|(key, value, ends)| Entry::new(&"acme".into(), &key.into(), value, ends));
        let open = |now| {
            let mut writer = Writer::open(&path).unwrap();
            let former = writer.begin(now).unwrap();
            let get = |key: &str| former.get(&("acme".into(), key.into())).map_or(0, Entry::value);
            let found = (get("day"), get("month"));
            (writer, found)
        };
        let (mut writer, _) = open(50);
        writer.locked(|writer| writer.append(entries.iter())).unwrap();
        assert_eq!(open(60).1, (5, 6));
        // Years ahead, twice.
        assert_eq!(open(1 << 60).1, (0, 0));
        assert_eq!(open(1 << 61).1, (0, 0));
        for _ in 0..2 {
            assert_eq!(open(70).1, (5, 6));
        }
        assert_eq!(open(100).1, (0, 6));
        // Who was there all the time counts once.
        let (mut writer, found) = open(80);
        assert_eq!(found, (5, 6));
        writer.rewrite(1 << 60).unwrap();
        let more = Entry::new(&"acme".into(), &"day".into(), 3, 100);
        writer.locked(|writer| writer.append([&more].into_iter())).unwrap();
        assert_eq!(open(90).1, (5, 6));
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
