//! What all leases of a gateway share: the coordinator, the clocks, and who looks after them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{
    clock::{Clock, Nanos, nanos},
    coordinator::{Coordinator, CoordinatorError, Exchange, Request},
    holdings::Holdings,
    journal::{Entry, Journal, Name},
    terms::{MAX_QUOTA, Terms},
};

/// How often leases that are due are looked for.
const TICK: Duration = Duration::from_millis(50);

/// What was given of quotas is written down every second: so many ticks.
const WRITTEN_EVERY: u64 = 20;

/// Stands between account and reporter in the journal; neither contains it.
const SEPARATOR: char = '\t';

/// How often a coordinator is told that does not answer.
const REMINDERS: u32 = 5;

/// Exchanges under way while reminding.
pub(crate) const REMINDED_AT_ONCE: usize = 64;

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
    journal: Option<Journal>,
    /// What former processes took of each quota.
    former: OnceLock<HashMap<Name, u64>>,
    /// What of each quota this process was given, as far as it is not in the journal yet.
    unwritten: Mutex<HashMap<Name, Entry>>,
    /// What reporters of this process that are gone have spent of quotas.
    gone: Mutex<HashMap<Name, Entry>>,
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
    ///
    /// `journal` keeps what was given of quotas, so that a coordinator that has lost it can be told after the
    /// process has gone. Coordinators that keep it themselves need none.
    pub fn start(
        coordinator: Arc<dyn Coordinator>,
        journal: Option<Journal>,
        id: &str,
        clock: Clock,
        runtime: &Handle,
    ) -> Arc<Self> {
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
            journal,
            former: OnceLock::new(),
            unwritten: Mutex::default(),
            gone: Mutex::default(),
        });
        let weak = Arc::downgrade(&node);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for tick in 0_u64.. {
                ticks.tick().await;
                let Some(node) = weak.upgrade() else { return };
                node.look_after();
                if tick.is_multiple_of(WRITTEN_EVERY) {
                    node.write_down().await;
                }
            }
        });
        node
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// How long a request waits for the coordinator, all in all.
    pub(crate) fn patience(&self) -> Duration {
        self.coordinator.patience()
    }

    /// Whether exchanges are under way.
    pub fn is_busy(&self) -> bool {
        self.in_flight() > 0
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
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

    /// So much of a quota was given to a reporter of this process in all, until its period ends.
    pub(crate) fn quota_given(&self, tenant: &Arc<str>, key: &Arc<str>, reporter: &str, given: u64, ends: u64) {
        if self.journal.is_none() {
            return;
        }
        let entry = entry_of(tenant, key, reporter, given, ends);
        self.unwritten.lock().insert(entry.name(), entry);
    }

    /// A reporter of this process is gone that spent so much of a quota in all, until its period ends: nobody else can
    /// tell a coordinator that has forgotten it.
    pub(crate) fn reporter_gone(&self, tenant: &Arc<str>, key: &Arc<str>, reporter: &str, spent: u64, ends: u64) {
        if self.journal.is_none() {
            return;
        }
        let entry = entry_of(tenant, key, reporter, spent, ends);
        let now = self.coordinator_micros(self.clock.now());
        let mut gone = self.gone.lock();
        gone.insert(entry.name(), entry);
        if gone.len().is_power_of_two() {
            gone.retain(|_, entry| entry.ends() > now);
        }
    }

    async fn write_down(&self) {
        let Some(journal) = &self.journal else { return };
        let entries: Vec<Entry> = std::mem::take(&mut *self.unwritten.lock()).into_values().collect();
        if !entries.is_empty() && journal.write(&entries).await.is_err() {
            // The journal has said why. They are written with the next ones.
            let mut unwritten = self.unwritten.lock();
            for entry in entries {
                unwritten.entry(entry.name()).or_insert(entry);
            }
        }
    }

    /// Writes down the last of it.
    pub async fn close(&self) {
        self.write_down().await;
    }

    /// What former processes of this gateway took of a quota, as far as is known.
    pub(crate) fn former_took(&self, tenant: &Arc<str>, key: &Arc<str>) -> u64 {
        // Worked out when it is needed, which is seldom: while the coordinator is away from the beginning.
        let sums = self.former.get_or_init(|| {
            let mut sums: HashMap<Name, u64> = HashMap::new();
            for entry in self.journal.iter().flat_map(Journal::former) {
                if let Some((key, _)) = entry.key().rsplit_once(SEPARATOR) {
                    let sum = sums.entry((Arc::clone(entry.tenant()), key.into())).or_default();
                    *sum = sum.saturating_add(entry.value());
                }
            }
            sums
        });
        sums.get(&(Arc::clone(tenant), Arc::clone(key))).copied().unwrap_or_default()
    }

    /// Makes an exchange whose answer is of no interest; whether it was heard, or never will be.
    pub(crate) async fn says(&self, exchange: &Exchange) -> bool {
        self.exchange_begins();
        let result = self.coordinator.exchange(exchange).await;
        self.exchange_ends();
        matches!(result, Ok(_) | Err(CoordinatorError::Malformed(_)))
    }

    /// The same at once, if nothing has to be waited for.
    pub(crate) fn says_at_once(&self, exchange: &Exchange) -> bool {
        self.exchange_begins();
        let result = self.coordinator.exchange_now(exchange);
        self.exchange_ends();
        matches!(result, Some(Ok(_)))
    }

    /// Tells the coordinator what former processes, and reporters that are gone, were given of quotas that have not
    /// ended: it may have forgotten. Whether all of it was heard.
    pub(crate) async fn remind_of_former(&self) -> bool {
        let Some(journal) = &self.journal else { return true };
        let now = self.coordinator_micros(self.clock.now());
        let gone: Vec<Entry> = self.gone.lock().values().filter(|entry| entry.ends() > now).cloned().collect();
        let mut reminders: HashMap<(&Arc<str>, &str), Exchange> = HashMap::new();
        for entry in journal.former().chain(&gone) {
            let Some((key, reporter)) = entry.key().rsplit_once(SEPARATOR) else { continue };
            let exchange = reminders.entry((entry.tenant(), reporter)).or_insert_with(|| Exchange {
                tenant: Arc::clone(entry.tenant()),
                reporter: reporter.into(),
                revision: 0,
                accounts: Vec::new(),
            });
            exchange.accounts.push(of_former(key, entry));
        }
        let reminders: Vec<Exchange> = reminders.into_values().collect();
        let is_heard = AtomicBool::new(true);
        let remind = |exchange: Exchange| {
            let is_heard = &is_heard;
            async move {
                for _ in 0..REMINDERS {
                    if self.says(&exchange).await {
                        return;
                    }
                }
                is_heard.store(false, Relaxed);
            }
        };
        stream::iter(reminders).for_each_concurrent(REMINDED_AT_ONCE, remind).await;
        is_heard.into_inner()
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

fn entry_of(tenant: &Arc<str>, key: &Arc<str>, reporter: &str, value: u64, ends: u64) -> Entry {
    Entry::new(tenant, &format!("{key}{SEPARATOR}{reporter}").into(), value, ends).to_be_final()
}

/// What is to be said of a quota that a former process was given.
fn of_former(key: &str, entry: &Entry) -> Request {
    Request {
        key: key.into(),
        // The limit itself is for those to say who know it.
        terms: Terms::Quota { limit: MAX_QUOTA, starts: 0, ends: entry.ends() },
        spent: entry.value(),
        held: 0,
        known: false,
        has_ended: true,
        want: 0,
        least: 0,
        paced: false,
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
