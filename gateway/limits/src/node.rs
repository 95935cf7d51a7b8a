//! What all leases of a gateway share: the coordinator, the clocks, and who looks after them.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{
    clock::{Clock, Nanos, nanos},
    coordinator::Coordinator,
    holdings::Holdings,
};

/// How often leases that are due are looked for.
const TICK: Duration = Duration::from_millis(50);

/// One gateway, as far as its limits are concerned.
pub struct Node {
    pub(crate) coordinator: Arc<dyn Coordinator>,
    pub(crate) clock: Clock,
    pub(crate) runtime: Handle,
    pub counters: Counters,
    /// Names this process among all that ever reported.
    id: Arc<str>,
    reporters: AtomicU64,
    /// The coordinator's time, in microseconds since 1970, when the clock began.
    epoch_micros: AtomicI64,
    due: Mutex<BinaryHeap<Due>>,
    /// Exchanges that have not ended.
    in_flight: AtomicU64,
}

/// What became of requests, and what the coordinator was asked.
#[derive(Debug, Default)]
pub struct Counters {
    /// Decided with what was at hand.
    pub local: AtomicU64,
    /// Decided after waiting for the coordinator.
    pub waited: AtomicU64,
    /// Decided without the coordinator, since it could not be reached.
    pub alone: AtomicU64,
    pub refused: AtomicU64,
    /// Exchanges with the coordinator: all, and those that failed.
    pub exchanges: AtomicU64,
    pub failures: AtomicU64,
    /// Tokens that were admitted without having been given by the coordinator, and may be too many.
    pub unbacked: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

struct Due {
    at: Reverse<Nanos>,
    holdings: Weak<Holdings>,
}

impl Node {
    /// `id` must be another one in each process: letters, digits, `.`, `_` and `-`. Leases are looked after
    /// on `runtime`, until the last reference to the node is gone.
    pub fn start(coordinator: Arc<dyn Coordinator>, id: &str, runtime: Handle) -> Arc<Self> {
        let clock = Clock::new();
        let node = Arc::new(Self {
            coordinator,
            clock,
            runtime: runtime.clone(),
            counters: Counters::default(),
            id: id.into(),
            reporters: AtomicU64::new(0),
            epoch_micros: AtomicI64::new(unix_micros() - micros(clock.now())),
            due: Mutex::default(),
            in_flight: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&node);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(node) = weak.upgrade() else { return };
                node.look_after();
            }
        });
        node
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether exchanges are under way.
    pub fn is_busy(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }

    pub(crate) fn exchange_begins(&self) {
        Counters::count(&self.counters.exchanges);
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn exchange_ends(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A name for one more reporter of this process.
    pub(crate) fn new_reporter(&self) -> Arc<str> {
        format!("{}.{}", self.id, self.reporters.fetch_add(1, Relaxed)).into()
    }

    /// What time it is for the coordinator, as far as is known: microseconds since 1970.
    pub(crate) fn coordinator_micros(&self, now: Nanos) -> u64 {
        u64::try_from(self.epoch_micros.load(Relaxed) + micros(now)).unwrap_or_default()
    }

    /// The coordinator said what time it is.
    pub(crate) fn heard_time(&self, coordinator_micros: u64, now: Nanos) {
        let epoch = i64::try_from(coordinator_micros).unwrap_or(i64::MAX) - micros(now);
        self.epoch_micros.store(epoch, Relaxed);
    }

    /// Looks after these holdings at that time.
    pub(crate) fn schedule(&self, holdings: Weak<Holdings>, at: Nanos) {
        self.due.lock().push(Due { at: Reverse(at), holdings });
    }

    fn look_after(&self) {
        let now = self.clock.now();
        loop {
            let holdings = {
                let mut due = self.due.lock();
                match due.peek() {
                    Some(first) if first.at.0 <= now => due.pop().and_then(|first| first.holdings.upgrade()),
                    _ => return,
                }
            };
            if let Some(holdings) = holdings {
                holdings.look_after(now);
            }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn micros(now: Nanos) -> i64 {
    i64::try_from(now / 1000).unwrap_or(i64::MAX)
}

/// This much later.
pub(crate) fn after(now: Nanos, time: Duration) -> Nanos {
    now.saturating_add(nanos(time))
}
