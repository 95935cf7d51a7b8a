//! Noticing that an exchange stands still: no response from the upstream, no body from the client.
//!
//! Pingora's time-outs are per read and fixed when an attempt begins, so they cannot tell a slow first
//! byte from a quiet event stream. A [`Watch`] belongs to one exchange; hooks arm it with what is being
//! waited for, progress moves it on, and whoever drives the exchange polls it.
//!
//! Its timer is lazy: it is not moved with each request, but looks, when it fires, whether there is
//! really something overdue. A busy connection thus pays one timer in several seconds.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

/// Request bodies are measured over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// What did not come in time. Travels inside an [`io::Error`] through Pingora, back to our hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Overdue {
    #[error("the upstream's response did not come in time")]
    Response,
    #[error("the request body comes too slowly")]
    RequestBody,
}

impl Overdue {
    /// Finds it among the causes of an error that came back from Pingora.
    pub(crate) fn in_error(error: &pingora_core::Error) -> Option<Self> {
        let cause = error.root_cause();
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref)?;
        inner.downcast_ref::<Self>().copied()
    }
}

/// Times are milliseconds since `born`; 0 stands for "not".
#[derive(Debug)]
pub(crate) struct Watch {
    born: Instant,
    /// How long the other side may be silent; 0: for ever.
    limit: AtomicU64,
    /// When it was last heard of.
    heard: AtomicU64,
    /// Bytes of request body in the present window, and when that began.
    body_bytes: AtomicU64,
    body_window: AtomicU64,
    /// Bytes that must come in one window; 0: no bound.
    body_least: u64,
}

impl Watch {
    /// `body_rate` is the least number of bytes per second of a request body; 0: no bound.
    pub(crate) fn new(body_rate: u64) -> Self {
        Self {
            born: Instant::now(),
            limit: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            body_window: AtomicU64::new(0),
            body_least: body_rate.saturating_mul(RATE_WINDOW.as_secs()),
        }
    }

    fn now(&self) -> u64 {
        self.millis(Instant::now())
    }

    fn millis(&self, at: Instant) -> u64 {
        // Never 0, which stands for "not".
        u64::try_from((at - self.born).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// From now on, silence longer than this is an error.
    pub(crate) fn arm(&self, limit: Duration, now: Instant) {
        self.heard.store(self.millis(now), Relaxed);
        self.limit.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    /// From now on, silence is nothing unusual.
    pub(crate) fn disarm(&self) {
        self.limit.store(0, Relaxed);
    }

    /// Something was heard of the other side.
    pub(crate) fn progress(&self) {
        if self.limit.load(Relaxed) != 0 {
            self.heard.store(self.now(), Relaxed);
        }
    }

    /// Begins to measure a request body.
    pub(crate) fn body_begins(&self) {
        if self.body_least > 0 {
            self.body_bytes.store(0, Relaxed);
            self.body_window.store(self.now(), Relaxed);
        }
    }

    pub(crate) fn body_received(&self, bytes: u64) {
        self.body_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn body_ended(&self) {
        self.body_window.store(0, Relaxed);
    }

    /// Whether the silence that is allowed now ends before that time, as after arming it for less than
    /// before.
    fn is_due_before(&self, deadline: tokio::time::Instant) -> bool {
        let limit = self.limit.load(Relaxed);
        let due = Duration::from_millis(self.heard.load(Relaxed).saturating_add(limit));
        // Some slack, for the sake of the timer: it need not move for a millisecond.
        limit != 0 && self.born + due + Duration::from_millis(10) < deadline.into_std()
    }

    /// What is overdue, or when to look again.
    fn check(&self) -> Result<Option<Duration>, Overdue> {
        let (limit, window) = (self.limit.load(Relaxed), self.body_window.load(Relaxed));
        // Asked at each read from a client, mostly for nothing: the clock is not read for that.
        if limit == 0 && window == 0 {
            return Ok(None);
        }
        let now = self.now();
        let mut next = None;
        if limit != 0 {
            let silent = now.saturating_sub(self.heard.load(Relaxed));
            if silent >= limit {
                return Err(Overdue::Response);
            }
            next = Some(limit - silent);
        }
        if window != 0 {
            let length = u64::try_from(RATE_WINDOW.as_millis()).unwrap_or(u64::MAX);
            let age = now.saturating_sub(window);
            let left = if age >= length {
                if self.body_bytes.swap(0, Relaxed) < self.body_least {
                    return Err(Overdue::RequestBody);
                }
                self.body_window.store(now, Relaxed);
                length
            } else {
                length - age
            };
            next = Some(next.map_or(left, |next: u64| next.min(left)));
        }
        Ok(next.map(Duration::from_millis))
    }
}

/// The timer that looks after a [`Watch`].
#[derive(Debug, Default)]
pub(crate) struct WatchTimer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl WatchTimer {
    /// Ready once something is overdue. While the watch is not armed it stays pending without a timer,
    /// so it must be polled again after arming; whoever reads from the client does that.
    pub(crate) fn poll(&mut self, watch: &Watch, cx: &mut Context<'_>) -> Poll<Overdue> {
        loop {
            match &mut self.sleep {
                Some(sleep) => {
                    if sleep.as_mut().poll(cx).is_pending() && !watch.is_due_before(sleep.deadline()) {
                        return Poll::Pending;
                    }
                    match watch.check() {
                        Err(overdue) => return Poll::Ready(overdue),
                        Ok(None) => self.sleep = None,
                        Ok(Some(next)) => sleep.as_mut().reset(tokio::time::Instant::now() + next),
                    }
                }
                None => match watch.check() {
                    Err(overdue) => return Poll::Ready(overdue),
                    Ok(None) => return Poll::Pending,
                    Ok(Some(next)) => {
                        self.sleep = Some(Box::pin(sleep_until(tokio::time::Instant::now() + next)));
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overdue_unless_armed() {
        let watch = Watch::new(100);
        assert_eq!(watch.check(), Ok(None));
        watch.arm(Duration::from_secs(5), Instant::now());
        assert!(matches!(watch.check(), Ok(Some(left)) if left <= Duration::from_secs(5)));
        watch.disarm();
        assert_eq!(watch.check(), Ok(None));
    }

    #[test]
    fn silence_is_told_from_progress() {
        let mut watch = Watch::new(0);
        watch.arm(Duration::from_millis(50), Instant::now());
        watch.born -= Duration::from_millis(60);
        assert_eq!(watch.check(), Err(Overdue::Response));
        watch.progress();
        assert!(watch.check().is_ok());
    }

    #[test]
    fn a_trickling_body_is_overdue_and_a_flowing_one_is_not() {
        let mut watch = Watch::new(100);
        watch.body_begins();
        watch.body_received(1000);
        watch.born -= RATE_WINDOW;
        assert!(watch.check().is_ok());
        watch.body_received(999);
        watch.born -= RATE_WINDOW;
        assert_eq!(watch.check(), Err(Overdue::RequestBody));
        watch.body_ended();
        assert_eq!(watch.check(), Ok(None));
    }

    #[test]
    fn what_was_overdue_is_found_again_behind_pingora() {
        let io = io::Error::new(io::ErrorKind::TimedOut, Overdue::RequestBody);
        let error = pingora_core::Error::because(pingora_core::ErrorType::ReadError, "reading", io);
        assert_eq!(Overdue::in_error(&error), Some(Overdue::RequestBody));
        let other = pingora_core::Error::new(pingora_core::ErrorType::ReadError);
        assert_eq!(Overdue::in_error(&other), None);
    }
}
