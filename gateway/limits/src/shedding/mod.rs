//! Load shedding: what a worker thread cannot serve in time it refuses at once, the least important first.
//!
//! # What is bounded
//!
//! The requests in flight of one worker. Who waits for an upstream, or sends to a slow client, costs the thread
//! next to nothing and must not use up the limit: after a fifth of a second a request is no longer counted
//! (`recent.rs`), and WebSockets and event streams give their place back as they begin. With upstreams that
//! take longer than that, the limit amounts to one on the rate. A worker is judged by itself, since nothing
//! moves between workers; a node's limit is the sum of theirs.
//!
//! # What it goes by
//!
//! The **lag** of the event loop: how much later than it should a timer's task gets its turn. That is the
//! time for which everything that is ready waits in this thread, at each of its steps, whichever tenant or
//! upstream it is for. Response times, which other limiters go by, would mix it with the upstreams' own.
//!
//! Every [`LOOK`] there is a look. As in `CoDel` (RFC 8289 §3), the least lag of an interval counts, since
//! a burst is worked off within it and a standing queue is not. How the limit follows stands in
//! `estimator.rs`; `simulation` shows what comes of it.
//!
//! # Who is refused
//!
//! Each [`Priority`] may fill the limit up to its share. When the limit comes down to what is in flight, low
//! priority finds no place first, and critical last.

mod estimator;
mod recent;
#[cfg(test)]
mod simulation;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::{
    estimator::{Estimator, Interval, Look},
    recent::Recent,
};

/// Time between two looks at the lag. Forty of them in a second cost a thread less than a thousandth of it.
pub const LOOK: Duration = Duration::from_millis(25);

/// A worker that sheds says so in the log, but not more often than this.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// How important a request is to those who run the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Refused first.
    Low,
    #[default]
    Normal,
    /// Refused last.
    Critical,
}

impl Priority {
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::Critical];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }

    /// How much of the limit may be in flight, in percent, for such a request to be admitted.
    ///
    /// The room between two of them is what the more important class finds free. It is wider than the
    /// limit's own ups and downs, so that these do not reach the next class. A node without other classes
    /// loses nothing by it: the limit follows the lag, so a share only shifts where it comes to rest.
    const fn share(self) -> u64 {
        match self {
            Self::Low => 50,
            Self::Normal => 80,
            Self::Critical => 100,
        }
    }

    /// When to come back, in seconds: drawn by lot, so that those who are refused together do not return
    /// together, and the later the less important.
    fn wait(self) -> Duration {
        let seconds = match self {
            Self::Low => 4..=12,
            Self::Normal => 2..=6,
            Self::Critical => 1..=3,
        };
        Duration::from_secs(fastrand::u64(seconds))
    }
}

/// What is overload, and the bounds of the limit. All for one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// More lag than this, for a whole interval, is overload.
    pub target_lag: Duration,
    /// So few requests in flight are never the cause.
    pub min_limit: u32,
    /// The limit while there has been no overload. Not less than `min_limit`.
    pub max_limit: u32,
}

/// Not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker serves as many requests as it can")]
pub struct Shed {
    /// When the client may come back; whole seconds.
    pub retry_after: Duration,
}

/// Admits or sheds the requests of one worker.
///
/// Deciding is a few loads and two additions on memory that no other worker writes to. Aligned so that
/// workers do not share cache lines (two are fetched at a time).
#[derive(Debug)]
#[repr(align(128))]
pub struct Shedder {
    settings: Settings,
    recent: Recent,
    /// By priority: how many may be in flight for one more to be admitted.
    room: [AtomicU32; 3],
    in_flight: [AtomicU32; 3],
    shed: [AtomicU64; 3],
    /// In nanoseconds.
    lag: AtomicU64,
}

impl Shedder {
    /// One that has seen no overload.
    pub fn new(settings: Settings) -> Self {
        let shedder = Self {
            settings,
            recent: Recent::default(),
            room: Default::default(),
            in_flight: Default::default(),
            shed: Default::default(),
            lag: AtomicU64::new(0),
        };
        shedder.set_limit(settings.max_limit);
        shedder
    }

    /// Lets a request in or not. It counts as in flight while the permit lives.
    ///
    /// Meant for one thread: several could together exceed the limit by as many as they are.
    pub fn admit(self: &Arc<Self>, priority: Priority) -> Result<Permit, Shed> {
        let class = priority as usize;
        if self.recent.count() >= self.room[class].load(Relaxed) {
            self.shed[class].fetch_add(1, Relaxed);
            return Err(Shed { retry_after: priority.wait() });
        }
        self.in_flight[class].fetch_add(1, Relaxed);
        Ok(Permit { cohort: self.recent.enter(), priority, shedder: Arc::clone(self) })
    }

    /// How many requests may be in flight.
    pub fn limit(&self) -> u32 {
        self.room[Priority::Critical as usize].load(Relaxed)
    }

    /// Permits that are out, also those that are too old to count.
    pub fn in_flight(&self, priority: Priority) -> u32 {
        self.in_flight[priority as usize].load(Relaxed)
    }

    /// Refused so far.
    pub fn shed(&self, priority: Priority) -> u64 {
        self.shed[priority as usize].load(Relaxed)
    }

    /// The least lag in the last interval: what the limit goes by.
    pub fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag.load(Relaxed))
    }

    fn set_limit(&self, limit: u32) {
        for priority in Priority::ALL {
            let room = u64::from(limit) * priority.share() / 100;
            self.room[priority as usize].store(u32::try_from(room).unwrap_or(u32::MAX).max(1), Relaxed);
        }
    }
}

/// The place of one request, given back when dropped.
#[derive(Debug)]
#[must_use = "the request counts as in flight only while its permit lives"]
pub struct Permit {
    shedder: Arc<Shedder>,
    cohort: u32,
    priority: Priority,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shedder.recent.leave(self.cohort);
        self.shedder.in_flight[self.priority as usize].fetch_sub(1, Relaxed);
    }
}

/// Looks at the lag of the thread it runs on, and moves the limit.
#[derive(Debug)]
pub struct Watch {
    shedder: Arc<Shedder>,
    estimator: Estimator,
    /// How many had been shed at the last look, and at the last warning.
    shed: u64,
    shed_and_told: u64,
    told: Option<Instant>,
}

impl Watch {
    pub fn new(shedder: Arc<Shedder>) -> Self {
        let estimator = Estimator::new(shedder.settings, Instant::now());
        Self { shedder, estimator, shed: 0, shed_and_told: 0, told: None }
    }

    /// Runs for as long as it is polled, on the runtime of the worker that it watches.
    pub async fn run(mut self) {
        loop {
            let due = Instant::now() + LOOK;
            sleep_until(due).await;
            let now = Instant::now();
            self.look(now.saturating_duration_since(due), now);
        }
    }

    /// A task that should have had its turn had it so much later, at `now`.
    fn look(&mut self, lag: Duration, now: Instant) {
        let shed = Priority::ALL.iter().map(|priority| self.shedder.shed(*priority)).sum();
        let look = Look { lag, in_flight: self.shedder.recent.count(), shed: shed != self.shed };
        self.shed = shed;
        if let Some(Interval { limit, lag }) = self.estimator.look(&look, now) {
            self.shedder.set_limit(limit);
            self.shedder.lag.store(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX), Relaxed);
            self.warn(limit, lag, now);
        }
        // Once for each look, however late: while the thread is stuck, nobody ages.
        self.shedder.recent.advance();
    }

    fn warn(&mut self, limit: u32, lag: Duration, now: Instant) {
        let requests = self.shed - self.shed_and_told;
        if requests > 0 && self.told.is_none_or(|at| now.saturating_duration_since(at) >= WARNING_PAUSE) {
            (self.told, self.shed_and_told) = (Some(now), self.shed);
            tracing::warn!(requests, limit, ?lag, "a worker is overloaded and has shed requests");
        }
    }
}
