//! The node's own log, to standard error.

use std::{fmt as std_fmt, io::IsTerminal, sync::Arc};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{filter::ParseError, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::operations::{LogLevel, log_level};

/// Lines that wait for whoever reads standard error. Beyond it they are lost: nothing that a node does may wait for
/// a reader that has stopped.
const WAITING_LINES: usize = 10_000;

/// The running log. What is waiting is written when it is dropped, so it is held to the end of the process.
pub struct Log {
    level: Arc<dyn LogLevel>,
    _writer: WorkerGuard,
}

impl Log {
    /// Starts logging what the filter lets through.
    pub fn start(filter: &str) -> Result<Self, ParseError> {
        let (filter, handle) = reload::Layer::new(log_level::filter(filter)?);
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_LINES);
        let (writer, guard) = builder.thread_name("log").finish(std::io::stderr());
        let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(writer);
        // Fails only where a log was started before, as in tests: that one stays.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Ok(Self { level: Arc::new(handle), _writer: guard })
    }

    /// Changes what is logged while the node runs.
    pub fn level(&self) -> Arc<dyn LogLevel> {
        self.level.clone()
    }
}

impl std_fmt::Debug for Log {
    fn fmt(&self, f: &mut std_fmt::Formatter<'_>) -> std_fmt::Result {
        f.debug_struct("Log").field("filter", &self.level.current()).finish_non_exhaustive()
    }
}
