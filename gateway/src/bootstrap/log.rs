//! The node's own log, to standard error.

use std::{io::IsTerminal, sync::Arc};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::operations::LogLevel;

/// Starts logging; the result changes what is logged while the node runs.
pub fn log(filter: &str) -> Result<Arc<dyn LogLevel>, ParseError> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    // Fails only where a log was started before, as in tests: that one stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Ok(Arc::new(handle))
}
