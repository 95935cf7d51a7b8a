//! `/log-level`: the filter of the node's log, read with GET and changed with PUT.
//!
//! The body of a PUT is a filter as in `RUST_LOG`: `info`, or `info,seiketsu_gateway::upstream=debug`.
//! The change holds until the next one or the end of the process.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use tracing_subscriber::{EnvFilter, reload};

use super::{Answer, OperationsState, respond};
use crate::respond::problem::ProblemKind;

const MAX_FILTER: usize = 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A log filter that can be changed while the node runs.
pub trait LogLevel: Send + Sync {
    /// The filter in force, as text; none if logging has ended.
    fn current(&self) -> Option<String>;

    /// Puts another in force; `false` if logging has ended.
    fn replace(&self, filter: EnvFilter) -> bool;
}

impl<S> LogLevel for reload::Handle<EnvFilter, S> {
    fn current(&self) -> Option<String> {
        self.with_current(ToString::to_string).ok()
    }

    fn replace(&self, filter: EnvFilter) -> bool {
        self.reload(filter).is_ok()
    }
}

pub(super) fn get(state: &OperationsState) -> Answer {
    match state.log_level.current() {
        Some(filter) => respond::text("text/plain; charset=utf-8", filter + "\n"),
        None => ended(),
    }
}

pub(super) async fn put(state: &OperationsState, body: Incoming) -> Answer {
    let Ok(body) = timeout(BODY_TIMEOUT, Limited::new(body, MAX_FILTER).collect()).await else {
        return respond::problem(ProblemKind::RequestTimeout, "");
    };
    let Ok(body) = body else {
        return respond::problem(ProblemKind::PayloadTooLarge, format!("A filter has at most {MAX_FILTER} bytes."));
    };
    let body = body.to_bytes();
    let filter = std::str::from_utf8(&body).map(str::trim).unwrap_or_default();
    if filter.is_empty() {
        return respond::problem(
            ProblemKind::BadRequest,
            "Send a filter as the body, as in `info` or `info,hyper=warn`.",
        );
    }
    match EnvFilter::try_new(filter) {
        Ok(parsed) => {
            if !state.log_level.replace(parsed) {
                return ended();
            }
            tracing::warn!(filter, "the log level was changed");
            get(state)
        }
        Err(error) => respond::problem(ProblemKind::BadRequest, format!("{filter:?} is no log filter: {error}.")),
    }
}

fn ended() -> Answer {
    respond::problem(ProblemKind::Internal, "Logging has ended.")
}
