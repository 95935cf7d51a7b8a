//! The access log: one line of JSON for each request.
//!
//! The request path appends a compact record to a buffer of its own thread and goes on. One writer
//! thread takes the buffers, formats the lines and writes them in batches. Where it does not keep up,
//! because the disk or the reader of standard output is slow, records are dropped and counted: logging
//! never makes a request wait.

mod line;
mod output;
mod record;
mod writer;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use seiketsu_config::node::{AccessLogOutput, LogOutput};

pub use self::record::{AccessRecord, LimitRecord, UpstreamRecord};
use self::{line::LineFormat, output::Output, writer::Writer};
use super::{
    metrics::{Counters, LogDrop},
    worker::{shard_count, thread_index},
};

/// What one thread may have waiting for the writer.
const SHARD_BYTES: usize = 1 << 20;
/// With this much waiting the writer is woken; less it fetches by itself, see [`writer`].
const WAKE_BYTES: usize = 64 << 10;

/// How long [`AccessLog::flush`] waits for an output that takes nothing.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// Why the access log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    #[error("cannot open the access log {path}: {source}; create its folder, writable by the gateway's user")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot start the access log's thread: {0}")]
    Thread(io::Error),
}

/// The access log of a node. Dropping it writes what is waiting.
pub struct AccessLog {
    /// Absent where the log is off.
    running: Option<Running>,
    sample: f64,
    dropped: Counters<LogDrop>,
}

struct Running {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What the request path and the writer share.
struct Shared {
    shards: Box<[Shard]>,
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Flushes asked for, and how many of them are done.
    flushes: AtomicU64,
    flushed: Mutex<u64>,
    flushed_more: Condvar,
}

/// Records that wait, one after the other. Aligned so that threads do not share cache lines.
#[repr(align(128))]
struct Shard(Mutex<Vec<u8>>);

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { running, sample, dropped } = self;
        let running = running.is_some();
        f.debug_struct("AccessLog").field("on", &running).field("sample", sample).field("dropped", dropped).finish()
    }
}

impl AccessLog {
    /// Opens the output and starts the writer. `node` is the node's name in every line, `workers` how
    /// many threads will serve requests.
    pub fn open(
        config: &AccessLogOutput,
        node: &str,
        workers: usize,
        dropped: Counters<LogDrop>,
    ) -> Result<Self, AccessLogError> {
        let output = match &config.output {
            LogOutput::Off => return Ok(Self { running: None, sample: 0.0, dropped }),
            LogOutput::Stdout => Output::stdout(),
            LogOutput::File(path) => {
                Output::file(path).map_err(|source| AccessLogError::Open { path: path.clone(), source })?
            }
        };
        Self::start(output, config.sample.as_fraction(), node, workers, dropped)
    }

    fn start(
        output: Output,
        sample: f64,
        node: &str,
        workers: usize,
        dropped: Counters<LogDrop>,
    ) -> Result<Self, AccessLogError> {
        // Two at least: the writer holds one at a time, so that there is always another.
        let shards = (0..shard_count(workers).max(2)).map(|_| Shard(Mutex::default())).collect();
        let shared = Arc::new(Shared {
            shards,
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            flushed: Mutex::new(0),
            flushed_more: Condvar::new(),
        });
        let writer = Writer::new(shared.clone(), output, LineFormat::new(node), dropped.clone());
        let thread = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run())
            .map_err(AccessLogError::Thread)?;
        Ok(Self { running: Some(Running { shared, thread: Some(thread) }), sample, dropped })
    }

    /// Whether a request is to be logged: all that end in 5xx, of the others the node's share times
    /// `share`, the tenant's, between 0 and 1.
    pub fn samples(&self, share: f64, status: u16) -> bool {
        let share = self.sample * share;
        self.running.is_some() && (status >= 500 || share >= 1.0 || fastrand::f64() < share)
    }

    /// Hands a record to the writer. Never waits: a record that finds no room is dropped and counted.
    pub fn write(&self, record: &AccessRecord<'_>) {
        let Some(running) = &self.running else { return };
        let shards = &running.shared.shards;
        let first = thread_index();
        // The thread's own buffer is free but for the moment in which the writer takes it.
        let free = (0..shards.len()).find_map(|n| shards[(first + n) & (shards.len() - 1)].0.try_lock());
        let Some(mut buffer) = free.filter(|buffer| buffer.len() < SHARD_BYTES) else {
            return self.dropped.count(LogDrop::Overflow);
        };
        let before = buffer.len();
        record.encode(&mut buffer);
        let crossed = before < WAKE_BYTES && buffer.len() >= WAKE_BYTES;
        drop(buffer);
        if crossed {
            running.wake();
        }
    }

    /// Opens the file anew, for log rotation. Lines written before stay in the old file.
    pub fn reopen(&self) {
        if let Some(running) = &self.running {
            running.shared.reopen.store(true, Ordering::Release);
            running.wake();
        }
    }

    /// Returns when everything handed over before is written; for the end of the process. `false`: the
    /// output took nothing for five seconds.
    pub fn flush(&self) -> bool {
        self.running.as_ref().is_none_or(Running::flush)
    }
}

impl Running {
    fn flush(&self) -> bool {
        let number = self.shared.flushes.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        let mut flushed = self.shared.flushed.lock();
        let pending = |flushed: &mut u64| *flushed < number;
        !self.shared.flushed_more.wait_while_for(&mut flushed, pending, FLUSH_PATIENCE).timed_out()
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let flushed = self.flush();
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        // A writer that hangs in its output would hang the process, too.
        if flushed && self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the access log's thread ended in a panic");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs,
        sync::mpsc::{Receiver, Sender, channel},
        time::Instant,
    };

    use seiketsu_config::values::Percent;

    pub(crate) use super::record::tests::example;
    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn metrics() -> Metrics {
        Metrics::new(1, [].into()).unwrap()
    }

    fn to_file(path: &std::path::Path, metrics: &Metrics) -> AccessLog {
        let config = AccessLogOutput { output: LogOutput::File(path.to_owned()), ..AccessLogOutput::default() };
        AccessLog::open(&config, "node", 2, metrics.node.access_log_dropped.clone()).unwrap()
    }

    fn wait_for(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "never came true");
            thread::yield_now();
        }
    }

    #[test]
    fn every_record_of_every_thread_is_one_line() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), metrics());
        let path = folder.path().join("access.log");
        let log = to_file(&path, &metrics);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| log.write(&example())));
            }
        });
        drop(log);
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len() as u64 + metrics.node.access_log_dropped.get(LogDrop::Overflow), 2000);
        assert!(lines.iter().all(|line| line["tenant"] == "acme"));
    }

    #[test]
    fn a_line_is_written_without_further_requests() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), metrics());
        let path = folder.path().join("access.log");
        let log = to_file(&path, &metrics);
        log.write(&example());
        wait_for(|| fs::read_to_string(&path).unwrap().ends_with('\n'));
        drop(log);
    }

    #[test]
    fn a_flush_returns_when_everything_is_written() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), metrics());
        let path = folder.path().join("access.log");
        let log = to_file(&path, &metrics);
        for written in 1..=50 {
            log.write(&example());
            assert!(log.flush());
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), written);
        }
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), metrics());
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let log = to_file(&path, &metrics);
        log.write(&example());
        wait_for(|| fs::metadata(&path).unwrap().len() > 0);
        fs::rename(&path, &rotated).unwrap();
        log.reopen();
        wait_for(|| path.exists());
        log.write(&example());
        drop(log);
        for file in [path, rotated] {
            assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 1);
        }
    }

    /// Holds the writer up until it is told to go on.
    struct Stuck(Sender<()>, Receiver<()>);

    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_is_stuck_costs_lines_and_never_a_wait() {
        let metrics = metrics();
        let ((entered_in, entered), (go, go_in)) = (channel(), channel());
        let output = Output::other(Box::new(Stuck(entered_in, go_in)));
        let log = AccessLog::start(output, 1.0, "node", 1, metrics.node.access_log_dropped.clone()).unwrap();
        log.write(&example());
        entered.recv().unwrap();
        let dropped = || metrics.node.access_log_dropped.get(LogDrop::Overflow);
        (0..10_000).for_each(|_| log.write(&example()));
        assert!((1..10_000).contains(&dropped()), "{}", dropped());
        drop(go);
        drop(log);
    }

    /// A disk that is full.
    struct Full;

    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let metrics = metrics();
        let output = Output::other(Box::new(Full));
        let log = AccessLog::start(output, 1.0, "node", 1, metrics.node.access_log_dropped.clone()).unwrap();
        (0..5).for_each(|_| log.write(&example()));
        drop(log);
        assert_eq!(metrics.node.access_log_dropped.get(LogDrop::WriteError), 5);
    }

    #[test]
    fn server_errors_are_always_logged_and_the_rest_by_share() {
        let metrics = metrics();
        let output = Output::other(Box::new(io::sink()));
        let log = AccessLog::start(output, 0.5, "node", 1, metrics.node.access_log_dropped.clone()).unwrap();
        assert!((0..1000).all(|_| log.samples(0.0, 502)));
        assert!((0..1000).all(|_| !log.samples(0.0, 200)));
        let kept = (0..10_000).filter(|_| log.samples(0.5, 200)).count();
        assert!((2_000..3_000).contains(&kept), "{kept}");
    }

    #[test]
    fn a_log_that_is_off_samples_nothing() {
        let config = AccessLogOutput { output: LogOutput::Off, sample: Percent::new_const(100) };
        let log = AccessLog::open(&config, "node", 1, metrics().node.access_log_dropped.clone()).unwrap();
        assert!(!log.samples(1.0, 500));
        log.write(&example());
    }
}
