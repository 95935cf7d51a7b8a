//! The counters of one tenant in the memory of one worker thread.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    histogram::{Histogram, HistogramSum},
    labels::{Attempt, CacheResult, Label},
};
use crate::{
    respond::problem::ProblemKind,
    telemetry::worker::{shard_count, thread_index},
};

/// Routes of one tenant that have a name of their own in the metrics; further ones count together.
pub(super) const NAMED_ROUTES: usize = 50;
/// The places of "no route" and "further routes", before those of the named ones.
pub(super) const NO_ROUTE: u8 = 0;
pub(super) const OTHER_ROUTES: u8 = 1;
pub(super) const FIRST_NAMED: usize = 2;
pub(super) const ROUTES: usize = FIRST_NAMED + NAMED_ROUTES;

/// Classes of status codes, in the order in which they are counted.
pub(super) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const ATTEMPTS: usize = Attempt::VALUES.len();
const CACHE_RESULTS: usize = CacheResult::VALUES.len();

/// Where the requests of one route are counted, within the counters of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSlot(pub(super) u8);

impl RouteSlot {
    /// For requests that matched no route.
    pub const NONE: Self = Self(NO_ROUTE);
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub route: RouteSlot,
    /// Of the response that was sent; 0: the client left before there was one.
    pub status: u16,
    /// The kind of problem, when the gateway itself refused or failed the request.
    pub refusal: Option<ProblemKind>,
    /// From the first byte of the request to the last of the response.
    pub total: Duration,
    /// The part of it spent waiting for upstreams; absent where none was asked.
    pub upstream: Option<Duration>,
    /// Body bytes received from the client.
    pub bytes_in: u64,
    /// Body bytes sent to the client.
    pub bytes_out: u64,
}

/// One thread's counters of one tenant. Aligned so that threads do not share cache lines (two are
/// fetched at a time).
#[repr(align(128))]
pub(super) struct Shard {
    requests: [[AtomicU64; CLASSES.len()]; ROUTES],
    refusals: [AtomicU64; ProblemKind::COUNT],
    attempts: [AtomicU64; ATTEMPTS],
    cached: [AtomicU64; CACHE_RESULTS],
    cached_bytes: AtomicU64,
    retries: AtomicU64,
    nonconforming: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    total: Histogram,
    upstream: Histogram,
    gateway: Histogram,
}

impl Shard {
    const fn new() -> Self {
        Self {
            requests: [const { [const { AtomicU64::new(0) }; CLASSES.len()] }; ROUTES],
            refusals: [const { AtomicU64::new(0) }; ProblemKind::COUNT],
            attempts: [const { AtomicU64::new(0) }; ATTEMPTS],
            cached: [const { AtomicU64::new(0) }; CACHE_RESULTS],
            cached_bytes: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            nonconforming: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            total: Histogram::new(),
            upstream: Histogram::new(),
            gateway: Histogram::new(),
        }
    }

    fn count(&self, outcome: &Outcome) {
        let class = match outcome.status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        self.requests[usize::from(outcome.route.0)][class].fetch_add(1, Relaxed);
        if let Some(refusal) = outcome.refusal {
            self.refusals[refusal as usize].fetch_add(1, Relaxed);
        }
        if outcome.bytes_in != 0 {
            self.bytes_in.fetch_add(outcome.bytes_in, Relaxed);
        }
        if outcome.bytes_out != 0 {
            self.bytes_out.fetch_add(outcome.bytes_out, Relaxed);
        }
        self.total.record(outcome.total);
        if let Some(upstream) = outcome.upstream {
            self.upstream.record(upstream);
        }
        self.gateway.record(outcome.total.saturating_sub(outcome.upstream.unwrap_or_default()));
    }

    fn reset(&self) {
        let counters = self.requests.as_flattened().iter().chain(&self.refusals).chain(&self.attempts);
        let counters = counters.chain(&self.cached);
        for counter in
            counters.chain([&self.cached_bytes, &self.retries, &self.nonconforming, &self.bytes_in, &self.bytes_out])
        {
            counter.store(0, Relaxed);
        }
        for histogram in [&self.total, &self.upstream, &self.gateway] {
            histogram.reset();
        }
    }
}

/// A request being served. It counts as in flight until it is finished or dropped.
///
/// It is counted where it began, so that a tenant that gains or loses its name meanwhile is counted
/// right.
pub struct InFlight {
    // That others hold the shard is the very count of requests in flight.
    shard: Arc<Shard>,
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight").finish_non_exhaustive()
    }
}

impl InFlight {
    /// Counts one attempt at an upstream.
    pub fn attempt(&self, result: Attempt) {
        self.shard.attempts[result.index()].fetch_add(1, Relaxed);
    }

    /// Counts an attempt beyond the first, when it is made.
    pub fn retry(&self) {
        self.shard.retries.fetch_add(1, Relaxed);
    }

    /// Counts what the cache did for the request, and the body bytes that the client got from there.
    pub fn cached(&self, result: CacheResult, bytes: u64) {
        self.shard.cached[result.index()].fetch_add(1, Relaxed);
        if !matches!(result, CacheResult::Miss | CacheResult::Bypass) {
            self.shard.cached_bytes.fetch_add(bytes, Relaxed);
        }
    }

    /// Counts the request as one that validation would have refused, had it been told to.
    pub fn nonconforming(&self) {
        self.shard.nonconforming.fetch_add(1, Relaxed);
    }

    /// Counts the request and ends its being in flight.
    pub fn finish(self, outcome: &Outcome) {
        self.shard.count(outcome);
    }
}

/// The counters of one tenant, or of all that have no name, over all threads.
pub(super) struct Block {
    shards: Box<[Arc<Shard>]>,
}

impl Block {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: (0..shard_count(workers)).map(|_| Arc::new(Shard::new())).collect() }
    }

    pub(super) fn begin(&self) -> InFlight {
        InFlight { shard: Arc::clone(&self.shards[thread_index() & (self.shards.len() - 1)]) }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.shards.iter().map(|shard| Arc::strong_count(shard) - 1).sum()
    }

    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::new();
        sum.add(self);
        sum
    }

    /// Only while nothing is in flight.
    pub(super) fn reset(&self) {
        self.shards.iter().for_each(|shard| shard.reset());
    }

    /// Only while nobody has the route.
    pub(super) fn reset_route(&self, route: u8) {
        for counter in self.shards.iter().flat_map(|shard| &shard.requests[usize::from(route)]) {
            counter.store(0, Relaxed);
        }
    }
}

/// The counters of a [`Block`] at one moment.
pub(super) struct Sum {
    pub(super) requests: [[u64; CLASSES.len()]; ROUTES],
    pub(super) refusals: [u64; ProblemKind::COUNT],
    pub(super) attempts: [u64; ATTEMPTS],
    pub(super) cached: [u64; CACHE_RESULTS],
    pub(super) cached_bytes: u64,
    pub(super) retries: u64,
    pub(super) nonconforming: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) total: HistogramSum,
    pub(super) upstream: HistogramSum,
    pub(super) gateway: HistogramSum,
}

impl Sum {
    pub(super) fn new() -> Self {
        Self {
            requests: [[0; CLASSES.len()]; ROUTES],
            refusals: [0; ProblemKind::COUNT],
            attempts: [0; ATTEMPTS],
            cached: [0; CACHE_RESULTS],
            cached_bytes: 0,
            retries: 0,
            nonconforming: 0,
            bytes_in: 0,
            bytes_out: 0,
            total: HistogramSum::new(),
            upstream: HistogramSum::new(),
            gateway: HistogramSum::new(),
        }
    }

    pub(super) fn add(&mut self, block: &Block) {
        for shard in &block.shards {
            for (sum, row) in self.requests.iter_mut().zip(&shard.requests) {
                add_all(sum, row);
            }
            add_all(&mut self.refusals, &shard.refusals);
            add_all(&mut self.attempts, &shard.attempts);
            add_all(&mut self.cached, &shard.cached);
            self.cached_bytes += shard.cached_bytes.load(Relaxed);
            self.retries += shard.retries.load(Relaxed);
            self.nonconforming += shard.nonconforming.load(Relaxed);
            self.bytes_in += shard.bytes_in.load(Relaxed);
            self.bytes_out += shard.bytes_out.load(Relaxed);
            self.total.add(&shard.total);
            self.upstream.add(&shard.upstream);
            self.gateway.add(&shard.gateway);
        }
    }

    /// Of all routes together, by class.
    pub(super) fn requests_by_class(&self) -> [u64; CLASSES.len()] {
        array::from_fn(|class| self.requests.iter().map(|row| row[class]).sum())
    }
}

fn add_all(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.load(Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16) -> Outcome {
        Outcome {
            route: RouteSlot::NONE,
            status,
            refusal: None,
            total: Duration::from_millis(5),
            upstream: Some(Duration::from_millis(4)),
            bytes_in: 3,
            bytes_out: 70,
        }
    }

    #[test]
    fn counts_of_all_threads_add_up() {
        let block = Block::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| block.begin().finish(&outcome(200))));
            }
        });
        let sum = block.sum();
        assert_eq!(sum.requests_by_class(), [0, 0, 4000, 0, 0, 0]);
        assert_eq!((sum.bytes_in, sum.bytes_out), (12_000, 280_000));
        assert_eq!((sum.total.count(), sum.upstream.sum_nanos), (4000, 16_000_000_000));
        assert_eq!(sum.gateway.sum_nanos, 4_000_000_000);
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_finished_or_dropped() {
        let block = Block::new(1);
        let (first, second) = (block.begin(), block.begin());
        assert_eq!(block.in_flight(), 2);
        first.finish(&outcome(200));
        assert_eq!(block.in_flight(), 1);
        drop(second);
        assert_eq!((block.in_flight(), block.sum().total.count()), (0, 1));
    }

    #[test]
    fn a_status_is_counted_in_its_class_and_none_as_none() {
        let block = Block::new(1);
        for status in [0, 101, 204, 302, 404, 503, 999] {
            block.begin().finish(&outcome(status));
        }
        assert_eq!(block.sum().requests_by_class(), [2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_reset_leaves_nothing() {
        let block = Block::new(2);
        let request = block.begin();
        request.attempt(Attempt::Reset);
        request.retry();
        request.finish(&Outcome { refusal: Some(ProblemKind::Internal), ..outcome(500) });
        block.reset();
        let sum = block.sum();
        assert_eq!((sum.requests_by_class(), sum.total.count(), sum.total.sum_nanos), ([0; 6], 0, 0));
        assert_eq!((sum.attempts, sum.retries, sum.refusals), ([0; 6], 0, [0; ProblemKind::COUNT]));
        assert_eq!((sum.bytes_in, sum.bytes_out), (0, 0));
    }
}
