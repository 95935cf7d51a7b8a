//! The durable log: records in the order of their sequence numbers, in files of bounded size.
//!
//! `<sequence of its first record>.ndjson` is a segment. Only the last one is written to, and it is never removed:
//! so the next sequence number is always known, whatever was taken over or dropped, and never given twice.
//!
//! While a process drains beside its successor, both write to the same log. Each changes it only while it holds the
//! lock of the file `lock`, which the system lets go when a process ends, however that ends; and each reads on to
//! the end, as the other has left it, before it writes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use seiketsu_limits::lock;
use uuid::Uuid;

use super::{counts::Row, record};
use crate::files;

/// The other process holds the lock for as long as the disk takes; one that was stopped holds it longer. What was
/// counted meanwhile can wait; a start that fails could not be mended by waiting.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_AT_START: Duration = Duration::from_mins(1);
/// Segments are a part of what may be kept, so that not too much goes at once, and no larger than this.
const MOST_OF_SEGMENT: u64 = 4 << 20;
const SEGMENTS: u64 = 16;
/// The most bytes in one page.
const MOST_OF_PAGE: usize = 4 << 20;

pub(super) struct Log {
    folder: PathBuf,
    lock: Arc<File>,
    id: String,
    retain: u64,
    /// Oldest first. The last is the one that is written to; none only until the log has been read for the first time.
    segments: Vec<Segment>,
    last: Option<File>,
    /// The sequence number of the next record. All before it are durable.
    next: u64,
    /// Everything up to this record was taken over.
    taken: u64,
    /// What this process has done since somebody last looked.
    pub(super) tally: Tally,
    /// Number and second of the oldest record that was not taken over, as it was when last asked for.
    oldest: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    first: u64,
    bytes: u64,
}

/// Numbers of records.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) written: u64,
    /// Dropped before they were taken over.
    pub(super) lost: u64,
}

/// Records that follow on a place in the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// First and last of the records that should come first and are no longer there.
    pub(super) missing: Option<(u64, u64)>,
    /// Whole lines, without a gap.
    pub(super) lines: Vec<u8>,
    pub(super) records: usize,
    /// The last record of all these.
    pub(super) last: u64,
}

impl Log {
    pub(super) fn open(folder: &Path, retain: u64) -> io::Result<Self> {
        // Consumers are named in it.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
        let lock = Arc::new(lock);
        let _held = hold(&lock, PATIENCE_AT_START)?;
        let mut log = Self {
            id: open_id(&folder.join("id"))?,
            taken: read_taken(&folder.join("taken"))?,
            folder: folder.to_owned(),
            lock,
            retain,
            segments: Vec::new(),
            last: None,
            next: 1,
            tally: Tally::default(),
            oldest: None,
        };
        log.next = log.taken + 1;
        log.read_on()?;
        Ok(log)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The sequence number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Everything up to this record was taken over.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Adopts what another process has written.
    pub(super) fn follow(&mut self) -> io::Result<()> {
        let _held = hold(&self.lock, PATIENCE)?;
        self.read_on()
    }

    /// Makes records of these rows, which are durable then. On failure those that are not are left in `rows`.
    pub(super) fn append(&mut self, second: u64, rows: &mut Vec<Row>) -> io::Result<()> {
        let _held = hold(&self.lock, PATIENCE)?;
        self.read_on()?;
        while !rows.is_empty() {
            let (text, count) = self.encode(second, rows);
            let length = text.len() as u64;
            let bytes = self.segments.last().map_or(0, |segment| segment.bytes);
            if bytes > 0 && bytes + length > self.most_of_segment() {
                self.begin_segment()?;
            }
            self.make_room(length)?;
            let written = self.write(&text);
            if let Err((error, cut_off)) = written {
                if !cut_off {
                    // Whole lines of it may be found there later: better lost than counted twice.
                    rows.drain(..count);
                    self.tally.lost += count as u64;
                }
                return Err(error);
            }
            rows.drain(..count);
            self.next += count as u64;
            self.tally.written += count as u64;
        }
        Ok(())
    }

    /// As many rows as fit into a segment, and at least one.
    fn encode(&self, second: u64, rows: &[Row]) -> (Vec<u8>, usize) {
        let (mut text, mut count) = (Vec::new(), 0);
        for (sequence, row) in (self.next..).zip(rows) {
            let before = text.len();
            record::write(&mut text, sequence, second, row);
            if count > 0 && text.len() as u64 > self.most_of_segment() {
                text.truncate(before);
                break;
            }
            count += 1;
        }
        (text, count)
    }

    /// Writes to the end of the last segment. On failure: whether the segment was left as it was.
    fn write(&mut self, text: &[u8]) -> Result<(), (io::Error, bool)> {
        let (Some(file), Some(segment)) = (&self.last, self.segments.last_mut()) else {
            return Err((io::ErrorKind::NotFound.into(), true));
        };
        let written = file.write_all_at(text, segment.bytes).and_then(|()| file.sync_data());
        written.map_err(|error| (error, file.set_len(segment.bytes).is_ok()))?;
        segment.bytes += text.len() as u64;
        Ok(())
    }

    fn most_of_segment(&self) -> u64 {
        (self.retain / SEGMENTS).min(MOST_OF_SEGMENT)
    }

    /// Drops the oldest segments until so much more fits.
    fn make_room(&mut self, more: u64) -> io::Result<()> {
        while self.bytes() + more > self.retain
            && let [oldest, next, ..] = self.segments[..]
        {
            let lost = next.first.saturating_sub(oldest.first.max(self.taken + 1));
            self.remove_oldest()?;
            self.tally.lost += lost;
        }
        Ok(())
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        match fs::remove_file(self.path(self.segments[0].first)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.segments.remove(0),
        };
        Ok(())
    }

    /// Forgets everything up to this record, which must be there.
    pub(super) fn take(&mut self, through: u64) -> io::Result<()> {
        let _held = hold(&self.lock, PATIENCE)?;
        self.read_on()?;
        if through > self.taken {
            files::replace(&self.folder.join("taken"), through.to_string().as_bytes())?;
            self.taken = through;
        }
        while let [_, next, ..] = self.segments[..]
            && next.first <= self.taken + 1
        {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Up to `limit` records after this one.
    pub(super) fn read(&self, after: u64, limit: usize) -> io::Result<Found> {
        let mut found = Found { last: after, ..Found::default() };
        let ends = self.segments.iter().skip(1).map(|segment| segment.first).chain([self.next]);
        for (segment, end) in self.segments.iter().zip(ends).filter(|(_, end)| *end > after + 1) {
            let text = match fs::read(self.path(segment.first)) {
                // Another process has dropped it, a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            for (line, sequence) in text.split_inclusive(|byte| *byte == b'\n').zip(segment.first..end) {
                if sequence <= found.last {
                    continue;
                }
                if !record::is_whole(line, sequence) {
                    break;
                }
                if sequence > found.last + 1 {
                    if found.records > 0 {
                        return Ok(found);
                    }
                    found.missing = Some((found.last + 1, sequence - 1));
                }
                if found.records == limit || found.lines.len() + line.len() > MOST_OF_PAGE {
                    return Ok(found);
                }
                found.lines.extend_from_slice(line);
                found.records += 1;
                found.last = sequence;
            }
        }
        if found.records == 0 && found.last + 1 < self.next {
            found.missing = Some((found.last + 1, self.next - 1));
            found.last = self.next - 1;
        }
        Ok(found)
    }

    /// The second of the oldest record that was not taken over; none when all were.
    pub(super) fn oldest(&mut self) -> Option<u64> {
        let first = self.segments.first().map_or(self.next, |segment| segment.first).max(self.taken + 1);
        if first >= self.next {
            return None;
        }
        if self.oldest.is_none_or(|(sequence, _)| sequence != first) {
            let second = self.read(first - 1, 1).ok().and_then(|found| record::second(&found.lines))?;
            self.oldest = Some((first, second));
        }
        self.oldest.map(|(_, second)| second)
    }

    /// Reads on from where this process has left the log to where it ends now, and cuts off what a crash has left of
    /// a line there. The lock must be held.
    fn read_on(&mut self) -> io::Result<()> {
        self.taken = read_taken(&self.folder.join("taken"))?.max(self.taken);
        let mut segments = segments(&self.folder)?;
        let Some(last) = segments.last_mut() else {
            self.segments.clear();
            return self.begin_segment();
        };
        let before = self.segments.last().filter(|before| before.first == last.first);
        let file = match self.last.take() {
            Some(file) if before.is_some() => file,
            _ => OpenOptions::new().read(true).write(true).open(self.path(last.first))?,
        };
        // What was read before is whole, unless somebody has cut off even that.
        let known = before.filter(|before| before.bytes <= last.bytes).map(|before| (before.bytes, self.next));
        let (known, mut next) = known.unwrap_or((0, last.first));
        if last.bytes > known {
            let mut text = Vec::new();
            (&file).seek(SeekFrom::Start(known))?;
            (&file).read_to_end(&mut text)?;
            let mut whole = 0;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                if !record::is_whole(line, next) {
                    break;
                }
                next += 1;
                whole += line.len();
            }
            last.bytes = known + whole as u64;
            if whole < text.len() {
                file.set_len(last.bytes)?;
            }
            // Who wrote it may have ended before it was: nothing is handed out that a power cut could take back.
            file.sync_data()?;
        }
        self.last = Some(file);
        self.segments = segments;
        if next < self.next {
            // Never back, whatever was done to the files.
            return self.begin_segment();
        }
        self.next = next;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let (path, first) = (self.path(self.next), self.next);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        File::open(&self.folder)?.sync_all()?;
        self.last = Some(file);
        self.segments.push(Segment { first, bytes: 0 });
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.folder.join(name(first))
    }
}

/// Lets the lock go when it is dropped.
struct Held(Arc<File>);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

fn hold(lock: &Arc<File>, patience: Duration) -> io::Result<Held> {
    lock::take(lock, patience)?;
    Ok(Held(lock.clone()))
}

const EXTENSION: &str = ".ndjson";

fn name(first: u64) -> String {
    format!("{first:020}{EXTENSION}")
}

fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.file_name();
        let first = file.to_str().and_then(|file| file.strip_suffix(EXTENSION)?.parse().ok());
        if let Some(first) = first.filter(|first| *file == *name(*first)) {
            segments.push(Segment { first, bytes: entry.metadata()?.len() });
        }
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments)
}

/// The log's id, made with the log.
fn open_id(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(id) if Uuid::try_parse(&id).is_ok() => Ok(id),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no id", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::now_v7().simple().to_string();
            files::replace(path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

fn read_taken(path: &Path) -> io::Result<u64> {
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is no sequence number", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::telemetry::usage::{
        Counts,
        counts::{Caller, Table},
    };

    const RETAIN: u64 = 64 << 10;

    fn open(folder: &Path) -> Log {
        Log::open(folder, RETAIN).unwrap()
    }

    fn rows(many: u64) -> Vec<Row> {
        let mut table = Table::default();
        for n in 0..many {
            let counts = Counts { admitted: n + 1, cost: n + 1, ..Counts::default() };
            table.add(&Caller { tenant: "acme", route: "open", consumer: &format!("consumer-{n}") }, &counts);
        }
        table.take().collect()
    }

    fn append(log: &mut Log, many: u64) {
        let mut rows = rows(many);
        log.append(1_764_000_000, &mut rows).unwrap();
        assert!(rows.is_empty());
    }

    fn records(found: &Found) -> Vec<Value> {
        found.lines.split_inclusive(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    fn sequences(found: &Found) -> Vec<u64> {
        records(found).iter().map(|record| record["sequence"].as_u64().unwrap()).collect()
    }

    fn everything(log: &Log) -> Vec<u64> {
        let found = log.read(0, usize::MAX).unwrap();
        assert_eq!(found.missing, None);
        sequences(&found)
    }

    fn on_disk(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
        files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn records_are_read_in_pages_of_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path());
        for _ in 0..40 {
            append(&mut log, 10);
        }
        assert!(log.segments.len() > 3 && log.bytes() < RETAIN, "{:?}", log.segments);
        let all: Vec<u64> = (1..=400).collect();
        assert_eq!(everything(&log), all);
        for limit in [1, 7, 399, 400, 401] {
            let (mut after, mut read) = (0, Vec::new());
            loop {
                let found = log.read(after, limit).unwrap();
                if found.records == 0 {
                    assert_eq!((found.last, found.missing), (after, None));
                    break;
                }
                assert!(found.records <= limit);
                read.extend(sequences(&found));
                after = found.last;
            }
            assert_eq!(read, all, "{limit}");
        }
        let one = &records(&log.read(6, 1).unwrap())[0];
        assert_eq!(
            (&one["sequence"], &one["second"], &one["tenant"]),
            (&7.into(), &1_764_000_000.into(), &"acme".into())
        );
    }

    #[test]
    fn numbers_go_on_after_a_restart_also_where_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let id = {
            let mut log = open(folder.path());
            append(&mut log, 200);
            append(&mut log, 200);
            log.take(400).unwrap();
            log.id().to_owned()
        };
        let mut log = open(folder.path());
        assert_eq!((log.id(), log.next(), log.taken()), (&*id, 401, 400));
        assert_eq!(log.oldest(), None);
        append(&mut log, 1);
        assert_eq!(log.oldest(), Some(1_764_000_000));
        drop(log);
        for file in on_disk(folder.path()).keys() {
            fs::remove_file(folder.path().join(file)).unwrap();
        }
        let mut log = open(folder.path());
        append(&mut log, 1);
        assert_eq!(log.next(), 402, "what was taken over is never named again");
    }

    #[test]
    fn what_was_taken_over_takes_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path());
        (0..40).for_each(|_| append(&mut log, 10));
        let before = (log.bytes(), on_disk(folder.path()).len());
        log.take(300).unwrap();
        assert!(log.bytes() < before.0 / 2 && on_disk(folder.path()).len() < before.1, "{before:?}");
        assert_eq!(sequences(&log.read(300, 1000).unwrap()), (301..=400).collect::<Vec<_>>());
        assert_eq!((log.taken(), log.tally.lost), (300, 0));
        log.take(10).unwrap();
        assert_eq!(log.taken(), 300, "there is no way back");
        let gone = log.read(0, 1).unwrap();
        assert_eq!(gone.missing, Some((1, gone.last - 1)));
    }

    #[test]
    fn the_oldest_go_first_and_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path());
        append(&mut log, 10);
        log.take(5).unwrap();
        (0..200).for_each(|_| append(&mut log, 10));
        let on_disk: usize = on_disk(folder.path()).values().map(Vec::len).sum();
        assert!(log.bytes() == on_disk as u64 && log.bytes() <= RETAIN && log.bytes() > RETAIN / 2);
        let found = log.read(5, usize::MAX).unwrap();
        let (from, through) = found.missing.unwrap();
        assert_eq!((from, through - from + 1), (6, log.tally.lost));
        assert_eq!(sequences(&found), (through + 1..=2010).collect::<Vec<_>>());
    }

    #[test]
    fn two_processes_write_one_log() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut log = open(folder.path());
                    (0..30).for_each(|_| append(&mut log, 3));
                });
            }
        });
        let mut log = open(folder.path());
        assert_eq!(everything(&log), (1..=180).collect::<Vec<_>>());
        let mut other = open(folder.path());
        append(&mut other, 1);
        other.take(170).unwrap();
        assert_eq!(log.next(), 181);
        log.follow().unwrap();
        assert_eq!((log.next(), log.taken()), (182, 170));
        assert_eq!(sequences(&log.read(170, 100).unwrap()), (171..=181).collect::<Vec<_>>());
    }

    #[test]
    fn who_holds_the_lock_is_waited_for_and_what_was_counted_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path());
        let other = OpenOptions::new().write(true).open(folder.path().join("lock")).unwrap();
        other.lock().unwrap();
        let mut rows = rows(3);
        assert!(log.append(1, &mut rows).is_err());
        assert_eq!((rows.len(), log.next()), (3, 1));
        other.unlock().unwrap();
        log.append(1, &mut rows).unwrap();
        assert_eq!((rows.len(), log.next()), (0, 4));
    }

    #[test]
    fn a_file_that_was_cut_while_in_use_makes_no_number_come_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path());
        append(&mut log, 10);
        let file = folder.path().join(name(1));
        let kept = fs::read(&file).unwrap().len() / 2;
        OpenOptions::new().write(true).open(&file).unwrap().set_len(kept as u64).unwrap();
        append(&mut log, 2);
        let found = log.read(0, 100).unwrap();
        assert!(found.last < 10 && sequences(&found) == (1..=found.last).collect::<Vec<_>>());
        let rest = log.read(found.last, 100).unwrap();
        assert_eq!((rest.missing, sequences(&rest)), (Some((found.last + 1, 10)), vec![11, 12]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever a crash leaves of the end (part of a line, or room that was never written), what is read is a
        /// beginning of what was written, and the log goes on from there.
        #[test]
        fn of_a_torn_log_a_beginning_is_read(
            batches in prop::collection::vec(1_u64..20, 1..12),
            cut in any::<prop::sample::Index>(),
            zeros in 0_usize..5000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut log = open(folder.path());
            for many in batches {
                append(&mut log, many);
            }
            let written = log.read(0, usize::MAX).unwrap().lines;
            drop(log);
            let (file, text) = on_disk(folder.path()).pop_last().unwrap();
            let kept = cut.index(text.len() + 1);
            let torn = [&text[..kept], &vec![0; zeros]].concat();
            fs::write(folder.path().join(&file), torn).unwrap();

            let mut log = open(folder.path());
            let read = log.read(0, usize::MAX).unwrap();
            prop_assert!(written.starts_with(&read.lines));
            let before: u64 = file.trim_end_matches(EXTENSION).parse().unwrap();
            prop_assert!(read.last + 1 >= before, "only the last segment was torn");
            let whole = memchr::memchr_iter(b'\n', &text[..kept]).count() as u64;
            prop_assert_eq!(log.next(), before + whole);
            append(&mut log, 2);
            prop_assert_eq!(everything(&log), (1..before + whole + 2).collect::<Vec<_>>());
        }

        /// Whatever is written, taken over, followed and restarted by whichever of two processes: a reader who goes
        /// on where it was sees each number once, in order, with exactly the gaps that it is told of.
        #[test]
        fn a_reader_sees_each_number_once(steps in prop::collection::vec((0_u8..5, 1_u64..40), 1..40)) {
            let folder = tempfile::tempdir().unwrap();
            let mut logs = [open(folder.path()), open(folder.path())];
            let mut at = 0;
            for (step, many) in steps {
                let log = &mut logs[usize::from(many % 2 == 0)];
                match step {
                    0 | 1 => append(log, many),
                    2 => *log = open(folder.path()),
                    3 => {
                        let found = log.read(at, usize::try_from(many).unwrap()).unwrap();
                        let first = found.missing.map_or(at + 1, |(from, through)| {
                            assert_eq!(from, at + 1);
                            through + 1
                        });
                        prop_assert_eq!(sequences(&found), (first..=found.last.max(first - 1)).collect::<Vec<_>>());
                        at = found.last;
                    }
                    _ => {
                        log.follow().unwrap();
                        log.take(at).unwrap();
                    }
                }
                prop_assert!(log.bytes() <= RETAIN);
            }
        }
    }
}
