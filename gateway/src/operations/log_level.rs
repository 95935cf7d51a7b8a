//! `/log-level`: the filter of the node's log, read with GET and changed with PUT.
//!
//! The body of a PUT is a filter as in `RUST_LOG`: `info`, or `info,seiketsu_gateway::upstream=debug`.
//! The change holds until the next one or the end of the process. What Pingora would say of each request is left out
//! unless the filter names it.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    reload,
};

use super::{Answer, OperationsState, respond};
use crate::respond::problem::ProblemKind;

const MAX_FILTER: usize = 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where Pingora warns of every stale response that stands in for an error, of every request that waits for another, and of
/// every response that turns out to be too large for the cache: in an outage, or as long as there are such responses, of each
/// request. What is to be known of them stands in the access log.
const OF_EACH_REQUEST: [&str; 3] = ["pingora_proxy::proxy_cache", "pingora_proxy::proxy_h1", "pingora_proxy::proxy_h2"];

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

/// The filter that an operator has written, with errors only of what would be said of each request. Whoever names such a
/// part of the log, or a part around it, gets it as it was asked for.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::try_new(text)?;
    // Where nothing is said of all targets, these say nothing already.
    let is_open = |directive: &str| directive.trim().parse().is_ok_and(|level: LevelFilter| level != LevelFilter::OFF);
    if !text.split(',').any(is_open) {
        return Ok(filter);
    }
    let targets = || text.split(',').filter_map(|directive| directive.split(['=', '[']).next()).map(str::trim);
    let is_named = |part: &str| targets().any(|target| !target.is_empty() && part.starts_with(target));
    OF_EACH_REQUEST
        .into_iter()
        .filter(|part| !is_named(part))
        .try_fold(filter, |filter, part| Ok(filter.add_directive(format!("{part}=error").parse()?)))
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
    let text = std::str::from_utf8(&body).map(str::trim).unwrap_or_default();
    if text.is_empty() {
        return respond::problem(
            ProblemKind::BadRequest,
            "Send a filter as the body, as in `info` or `info,hyper=warn`.",
        );
    }
    match filter(text) {
        Ok(parsed) => {
            if !state.log_level.replace(parsed) {
                return ended();
            }
            tracing::warn!(filter = text, "the log level was changed");
            get(state)
        }
        Err(error) => respond::problem(ProblemKind::BadRequest, format!("{text:?} is no log filter: {error}.")),
    }
}

fn ended() -> Answer {
    respond::problem(ProblemKind::Internal, "Logging has ended.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_said_of_each_request_is_left_out_unless_it_is_named() {
        let [cache, h1, h2] = OF_EACH_REQUEST.map(|part| format!("{part}=error"));
        for (text, in_force) in [
            ("info", format!("{cache},{h2},{h1},info")),
            ("info,hyper=warn", format!("{cache},{h2},{h1},hyper=warn,info")),
            ("info,pingora_core=debug", format!("{cache},{h2},{h1},pingora_core=debug,info")),
            ("info,pingora_proxy=debug", "pingora_proxy=debug,info".to_owned()),
            ("info,pingora_proxy::proxy_cache=warn", format!("pingora_proxy::proxy_cache=warn,{h2},{h1},info")),
            ("info,pingora_proxy::proxy_h1=warn", format!("{cache},{h2},pingora_proxy::proxy_h1=warn,info")),
            ("off", "off".to_owned()),
            ("hyper=warn", "hyper=warn".to_owned()),
            ("off,seiketsu_gateway=info", "seiketsu_gateway=info,off".to_owned()),
        ] {
            assert_eq!(filter(text).unwrap().to_string(), in_force, "{text}");
        }
        assert!(filter("no=such=filter").is_err());
    }
}
