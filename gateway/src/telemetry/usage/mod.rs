//! Usage: what each caller of each route of each tenant has used, second by second, for whoever bills and draws it.
//!
//! Requests are counted at their end, a WebSocket too, with their status and how long they took. A request costs some
//! 50 ns: its thread has a table of its own, whose lock nobody else asks for but once a second, for the moment in which a
//! full table changes places with an empty one; names are put together in a buffer that stays, so that a caller's first
//! request in a second is the only one that allocates. Everything else happens on a thread of its own: once a second it
//! adds up the tables and appends what comes of it to a durable log (`log.rs`), where the control plane reads it and
//! takes it over.
//!
//! What cannot be written, since the disk is full, say, stays in memory and is written with a later second.

mod counts;
mod cursor;
mod log;
mod record;

use std::{
    collections::HashMap,
    fmt, io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use seiketsu_config::node::UsageLog;
use tokio::{sync::watch, time::timeout};

pub use seiketsu_config::push::usage::{Counts, Refused};

pub use self::{
    counts::{Caller, of_request},
    cursor::{Cursor, NotACursor},
};
use self::{
    counts::{Row, Table},
    log::{Log, Tally},
};
use super::{
    metrics::UsageMetrics,
    worker::{shard_count, thread_index},
};

/// Tenants whose charges are remembered. When there are more, all are forgotten.
const MOST_CHARGED: usize = 1 << 18;

/// Why usage cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error(
        "cannot keep usage in {path}: {source}; make the folder writable by the gateway's user, or set `usage.retain` to 0"
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot start the thread that writes usage: {0}")]
    Thread(io::Error),
}

/// Why the log does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("this node keeps no usage: set `usage.retain` in the node file")]
    Off,
    #[error("this is a cursor of another log; the node's is {0} now: begin anew, without `after`")]
    OtherLog(String),
    #[error(
        "the log ends at {end}; if the node's state was put back to an earlier one, remove `usage` from its state folder"
    )]
    Beyond { end: Cursor },
    #[error("the log of usage cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// The usage of a node. Dropping it writes what was counted.
pub struct Usage {
    /// Absent where usage is not kept.
    running: Option<Running>,
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Usage").field("kept", &self.running.is_some()).finish_non_exhaustive()
    }
}

struct Running {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    shards: Box<[Shard]>,
    writer: Mutex<Writer>,
    /// What this process has written that tenants' quotas were charged.
    charged: Mutex<HashMap<Box<str>, u64, foldhash::fast::RandomState>>,
    /// The sequence number of the next record. All before it can be read.
    next: watch::Sender<u64>,
    /// Everything up to this record was taken over.
    taken: watch::Sender<u64>,
    metrics: UsageMetrics,
    stop: AtomicBool,
}

/// What was counted since the last second. Aligned so that threads do not share cache lines.
#[repr(align(128))]
struct Shard(Mutex<Table>);

struct Writer {
    log: Log,
    /// Counted and not yet written.
    pending: Table,
    /// Changes places with the tables that are taken, so that none is ever allocated anew.
    spare: Table,
    /// When counting of what is not yet written began, as a Unix time.
    began: u64,
    failing: bool,
    /// Something was dropped that nobody had taken over.
    losing: bool,
}

/// Records that follow on a cursor.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// First and last sequence number of what should come first and is no longer there.
    pub missing: Option<(u64, u64)>,
    /// A line of JSON for each record.
    pub lines: Vec<u8>,
    pub records: usize,
    /// What to ask for next.
    pub next: Cursor,
}

impl Usage {
    /// Opens the log under the node's state and starts the thread that writes it. `workers`: how many threads will
    /// serve requests.
    pub fn open(
        config: &UsageLog,
        state_dir: &Path,
        workers: usize,
        metrics: UsageMetrics,
    ) -> Result<Self, UsageError> {
        if config.retain.get() == 0 {
            return Ok(Self { running: None });
        }
        let path = state_dir.join("usage");
        let log = Log::open(&path, config.retain.get()).map_err(|source| UsageError::Open { path, source })?;
        let (pending, spare) = (Table::default(), Table::default());
        let (next, taken) = (watch::Sender::new(log.next()), watch::Sender::new(log.taken()));
        let began = unix_now().as_secs();
        let writer = Writer { log, pending, spare, began, failing: false, losing: false };
        let shared = Arc::new(Shared {
            // Two at least: one is locked while it is taken, and there is always another.
            shards: (0..shard_count(workers).max(2)).map(|_| Shard(Mutex::default())).collect(),
            writer: Mutex::new(writer),
            charged: Mutex::default(),
            next,
            taken,
            metrics,
            stop: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("usage".to_owned()).spawn(move || of_thread.run());
        Ok(Self { running: Some(Running { shared, thread: Some(thread.map_err(UsageError::Thread)?) }) })
    }

    /// Adds a request, or several, to what a caller has used.
    pub fn count(&self, caller: &Caller<'_>, counts: &Counts) {
        self.change(caller, |row| row.add(counts));
    }

    /// Adds a request with how it ended. `took`: of those whose latency counts.
    pub fn count_request(&self, caller: &Caller<'_>, counts: &Counts, status: u16, took: Option<Duration>) {
        self.change(caller, |row| row.add_request(counts, status, took));
    }

    fn change(&self, caller: &Caller<'_>, change: impl FnOnce(&mut Counts)) {
        let Some(running) = &self.running else { return };
        let shards = &running.shared.shards;
        let (own, mask) = (thread_index(), shards.len() - 1);
        let free = (0..shards.len()).find_map(|n| shards[(own + n) & mask].0.try_lock());
        free.unwrap_or_else(|| shards[own & mask].0.lock()).change(caller, change);
    }

    /// Writes what was counted before. Blocks until it is durable, or cannot be.
    pub fn flush(&self) {
        if let Some(running) = &self.running {
            running.shared.write();
        }
    }

    /// Up to `limit` records after a cursor, or after what was taken over. Blocks while it reads.
    ///
    /// After a cursor of another log the present one is read from its beginning: the node's state was lost, or
    /// another node is asked, and none of the records are known to whoever asks.
    pub fn read(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, TakeoverError> {
        let writer = self.shared()?.writer.lock();
        let log = &writer.log;
        let after = after.filter(|after| after.log == log.id()).map_or(log.taken(), |after| after.sequence);
        check_end(log, after)?;
        let found = log.read(after, limit)?;
        let next = Cursor { log: log.id().to_owned(), sequence: found.last };
        Ok(Page { missing: found.missing, lines: found.lines, records: found.records, next })
    }

    /// Returns as soon as there is a record after this cursor, or when it has waited long enough.
    pub async fn wait(&self, after: &Cursor, patience: Duration) {
        let Ok(shared) = self.shared() else { return };
        let mut next = shared.next.subscribe();
        let more = next.wait_for(|next| *next > after.sequence + 1);
        let _ = timeout(patience, more).await;
    }

    /// Returns as soon as all that was written is taken over, or when it has waited long enough.
    pub async fn wait_until_taken(&self, patience: Duration) {
        let Ok(shared) = self.shared() else { return };
        let (next, mut taken) = (*shared.next.borrow(), shared.taken.subscribe());
        let _ = timeout(patience, taken.wait_for(|taken| *taken + 1 >= next)).await;
    }

    /// What this process has written that a tenant's quotas were charged; or less, where there are very many tenants.
    pub fn charged(&self, tenant: &str) -> u64 {
        self.shared().map_or(0, |shared| shared.charged.lock().get(tenant).copied().unwrap_or(0))
    }

    /// Lets the node forget everything up to this record: whoever asks for it has stored it. Blocks.
    pub fn take(&self, through: &Cursor) -> Result<Cursor, TakeoverError> {
        let shared = self.shared()?;
        let mut writer = shared.writer.lock();
        if through.log != writer.log.id() {
            return Err(TakeoverError::OtherLog(writer.log.id().to_owned()));
        }
        check_end(&writer.log, through.sequence)?;
        writer.log.take(through.sequence)?;
        shared.taken.send_replace(writer.log.taken());
        shared.show(&mut writer);
        Ok(Cursor { log: through.log.clone(), sequence: writer.log.taken() })
    }

    fn shared(&self) -> Result<&Shared, TakeoverError> {
        self.running.as_ref().map(|running| &*running.shared).ok_or(TakeoverError::Off)
    }
}

fn check_end(log: &Log, sequence: u64) -> Result<(), TakeoverError> {
    if sequence < log.next() {
        return Ok(());
    }
    Err(TakeoverError::Beyond { end: Cursor { log: log.id().to_owned(), sequence: log.next() - 1 } })
}

impl Shared {
    fn run(&self) {
        loop {
            // Read first: what was counted before the stop is still written below.
            let stop = self.stop.load(Ordering::Acquire);
            self.write();
            if stop {
                return;
            }
            let into_second = Duration::from_nanos(unix_now().subsec_nanos().into());
            thread::park_timeout(Duration::from_secs(1).saturating_sub(into_second));
        }
    }

    /// Writes what was counted, and adopts what another process has written meanwhile.
    fn write(&self) {
        let mut writer = self.writer.lock();
        let before = writer.log.next();
        let result = writer.write(self);
        if let Err(error) = &result {
            self.metrics.write_failures.inc();
            if !writer.failing {
                tracing::error!(%error, "usage cannot be written; it is kept in memory until it can be again");
            }
        } else if writer.failing {
            tracing::info!("usage can be written again");
        }
        writer.failing = result.is_err();
        let next = writer.log.next();
        if next > before {
            self.next.send_replace(next);
        }
        self.show(&mut writer);
    }

    fn charge(&self, rows: &[Row], change: impl Fn(u64, u64) -> u64) {
        let mut charged = self.charged.lock();
        if charged.len() > MOST_CHARGED {
            charged.clear();
        }
        for row in rows {
            let cost = row.counts.cost.saturating_sub(row.counts.given_back);
            let tenant = row.caller().tenant;
            match charged.get_mut(tenant) {
                Some(charged) => *charged = change(*charged, cost),
                None if cost > 0 => drop(charged.insert(tenant.into(), change(0, cost))),
                None => {}
            }
        }
    }

    fn show(&self, writer: &mut Writer) {
        let Tally { written, lost } = mem::take(&mut writer.log.tally);
        if lost > 0 && !mem::replace(&mut writer.losing, true) {
            // Once: where nobody takes usage over, it is so from here on, and a metric counts it.
            tracing::warn!("usage was dropped before it was taken over, to make room; the oldest goes first");
        }
        self.metrics.written.inc_by(written);
        self.metrics.lost.inc_by(lost);
        self.metrics.bytes.set(i64::try_from(writer.log.bytes()).unwrap_or(i64::MAX));
        self.metrics.oldest.set(writer.log.oldest().and_then(|second| i64::try_from(second).ok()).unwrap_or(0));
    }
}

impl Writer {
    fn write(&mut self, shared: &Shared) -> io::Result<()> {
        for shard in &shared.shards {
            mem::swap(&mut *shard.0.lock(), &mut self.spare);
            self.pending.add_rows(self.spare.take());
        }
        let now = unix_now().as_secs();
        if self.pending.is_empty() {
            self.began = now;
            return self.log.follow();
        }
        let mut rows: Vec<Row> = self.pending.take().collect();
        // Before it can be read, so that nobody is told of it first.
        shared.charge(&rows, u64::saturating_add);
        let result = self.log.append(self.began, &mut rows);
        shared.charge(&rows, u64::saturating_sub);
        self.pending.add_rows(rows);
        result?;
        self.began = now;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("the thread that writes usage ended in a panic");
        }
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use seiketsu_config::{push::usage as push, values::ByteSize};
    use serde_json::Value;

    use super::{counts::tests::sum, *};
    use crate::telemetry::metrics::Metrics;

    const ONE: Counts = Counts {
        admitted: 1,
        refused: Refused { limit: 0, auth: 0, other: 0 },
        cost: 1,
        bytes_in: 3,
        bytes_out: 5,
        failures: 0,
        given_back: 0,
        statuses: push::Statuses([0; 5]),
        latency_ms: push::Latency([0; 13]),
    };

    fn open(state_dir: &Path, metrics: &Metrics) -> Usage {
        Usage::open(&UsageLog::default(), state_dir, 2, metrics.node.usage.clone()).unwrap()
    }

    /// What is in the log, added up by consumer.
    fn kept(usage: &Usage) -> HashMap<String, Counts> {
        let mut sums: HashMap<String, Counts> = HashMap::new();
        let lines = usage.read(None, usize::MAX).unwrap().lines;
        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let record: Value = serde_json::from_slice(line).unwrap();
            let counts: Counts = serde_json::from_value(record.clone()).unwrap();
            let of_consumer = sums.entry(record["consumer"].as_str().unwrap_or_default().to_owned()).or_default();
            *of_consumer = sum([&*of_consumer, &counts]);
        }
        sums
    }

    #[test]
    fn what_many_threads_count_over_restarts_adds_up_exactly() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(2, [].into()).unwrap());
        for _ in 0..3 {
            let usage = open(folder.path(), &metrics);
            thread::scope(|scope| {
                for _ in 0..5 {
                    scope.spawn(|| {
                        for n in 0..10_000 {
                            let consumer = ["", "a", "b"][n % 3];
                            usage.count(&Caller { tenant: "acme", route: "open", consumer }, &ONE);
                            if n % 1000 == 0 {
                                usage.flush();
                            }
                        }
                    });
                }
            });
        }
        let kept = kept(&open(folder.path(), &metrics));
        let all = sum(kept.values());
        assert_eq!((kept.len(), all.admitted, all.bytes_in, all.bytes_out), (3, 150_000, 450_000, 750_000));
        assert_eq!(kept["a"].admitted, 15 * 3333);
    }

    #[test]
    fn what_quotas_were_charged_is_known_by_tenant_once_it_is_written() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(2, [].into()).unwrap());
        for _ in 0..2 {
            let usage = open(folder.path(), &metrics);
            let count = |tenant, cost, given_back| {
                let counts = Counts { cost, given_back, ..ONE };
                usage.count(&Caller { tenant, route: "open", consumer: "" }, &counts);
            };
            count("acme", 5, 0);
            count("acme", 3, 2);
            count("globex", 0, 0);
            usage.flush();
            count("acme", 1, 0);
            usage.flush();
            // By this process, and not by those before it.
            assert_eq!(["acme", "globex", "initech"].map(|tenant| usage.charged(tenant)), [7, 0, 0]);
        }
    }

    #[test]
    fn who_waits_is_woken_by_a_record_and_not_by_nothing() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(2, [].into()).unwrap());
        let usage = open(folder.path(), &metrics);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let page = usage.read(None, 10).unwrap();
        assert_eq!((page.records, page.next.sequence), (0, 0));
        let start = Instant::now();
        runtime.block_on(usage.wait(&page.next, Duration::from_millis(300)));
        assert!(start.elapsed() >= Duration::from_millis(300));
        let start = Instant::now();
        usage.count(&Caller { tenant: "acme", route: "", consumer: "" }, &ONE);
        // Within the second, without anybody's doing.
        runtime.block_on(usage.wait(&page.next, Duration::from_secs(20)));
        assert!(start.elapsed() < Duration::from_secs(10));
        let page = usage.read(Some(&page.next), 10).unwrap();
        assert_eq!((page.records, page.next.sequence), (1, 1));
        let line = String::from_utf8(page.lines).unwrap();
        assert!(
            line.ends_with(",\"tenant\":\"acme\",\"admitted\":1,\"cost\":1,\"bytes_in\":3,\"bytes_out\":5}\n"),
            "{line}"
        );
    }

    #[test]
    fn cursors_of_elsewhere_are_known_as_such() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(2, [].into()).unwrap());
        let usage = open(folder.path(), &metrics);
        usage.count(&Caller { tenant: "acme", route: "", consumer: "" }, &ONE);
        usage.flush();
        let here = usage.read(None, 10).unwrap().next;
        let other = Cursor { log: "0a".to_owned(), sequence: 99 };
        assert_eq!(usage.read(Some(&other), 10).unwrap().records, 1, "a new log is read from its beginning");
        assert!(matches!(usage.take(&other), Err(TakeoverError::OtherLog(log)) if log == here.log));
        let beyond = Cursor { sequence: 2, ..here.clone() };
        assert!(matches!(usage.read(Some(&beyond), 10), Err(TakeoverError::Beyond { end }) if end == here));
        assert!(matches!(usage.take(&beyond), Err(TakeoverError::Beyond { .. })));
        assert_eq!(usage.take(&here).unwrap(), here);
        assert_eq!(usage.read(None, 10).unwrap().records, 0);
    }

    #[test]
    fn a_node_that_keeps_none_writes_none() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(2, [].into()).unwrap());
        let off = UsageLog { retain: ByteSize::new(0) };
        let usage = Usage::open(&off, folder.path(), 2, metrics.node.usage.clone()).unwrap();
        usage.count(&Caller { tenant: "acme", route: "", consumer: "" }, &ONE);
        usage.flush();
        assert!(matches!(usage.read(None, 1), Err(TakeoverError::Off)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
