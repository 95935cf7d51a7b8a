//! A worker in simulated time: one thread that works off what is ready in the order in which it became so.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{LOOK, Permit, Priority, Settings, Shedder, Watch};

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings { target_lag: Duration::from_millis(20), min_limit: 10, max_limit: 50_000 };

/// Of the thread's time. A worker serves 500 requests a second of this kind, or refuses 10,000.
const HALF_OF_A_REQUEST: Duration = Duration::from_millis(1);
const REFUSAL: Duration = Duration::from_micros(100);

/// Requests of one kind.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    priority: Priority,
    per_second: u32,
    upstream: Duration,
}

fn traffic(priority: Priority, per_second: u32) -> Traffic {
    Traffic { priority, per_second, upstream: Duration::from_millis(50) }
}

enum Event {
    Look,
    Arrival { kind: usize, run: u32 },
    Response { kind: usize, arrived: Duration, _permit: Permit },
    Stall(Duration),
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    served: u32,
    shed: u32,
    slowest: Duration,
}

struct Worker {
    shedder: Arc<Shedder>,
    watch: Watch,
    start: Instant,
    now: Duration,
    /// By when they are ready; the number tells those of one moment apart.
    ready: BTreeMap<(Duration, u64), Event>,
    events: u64,
    kinds: Vec<Traffic>,
    counts: Vec<Count>,
    /// Arrivals of earlier runs come no more.
    run: u32,
    random: fastrand::Rng,
    limits: (u32, u32),
}

impl Worker {
    fn new() -> Self {
        let shedder = Arc::new(Shedder::new(SETTINGS));
        let mut worker = Self {
            watch: Watch::new(shedder.clone()),
            shedder,
            start: Instant::now(),
            now: Duration::ZERO,
            ready: BTreeMap::new(),
            events: 0,
            kinds: Vec::new(),
            counts: Vec::new(),
            run: 0,
            random: fastrand::Rng::with_seed(7),
            limits: (0, 0),
        };
        worker.put(LOOK, Event::Look);
        worker
    }

    fn put(&mut self, at: Duration, event: Event) {
        self.events += 1;
        self.ready.insert((at, self.events), event);
    }

    /// Lets such traffic come for a while; what became of each kind.
    fn run<const KINDS: usize>(&mut self, time: Duration, kinds: [Traffic; KINDS]) -> [Count; KINDS] {
        let until = self.now + time;
        self.run += 1;
        self.kinds = kinds.to_vec();
        self.counts = vec![Count::default(); KINDS];
        self.limits = (u32::MAX, 0);
        for kind in 0..KINDS {
            self.put(self.now, Event::Arrival { kind, run: self.run });
        }
        while self.now < until {
            let ((ready, _), event) = self.ready.pop_first().unwrap();
            self.now = self.now.max(ready);
            self.work(ready, event);
        }
        self.counts.clone().try_into().unwrap()
    }

    fn work(&mut self, ready: Duration, event: Event) {
        match event {
            Event::Look => {
                self.watch.look(self.now.saturating_sub(ready), self.start + self.now);
                let limit = self.shedder.limit();
                self.limits = (self.limits.0.min(limit), self.limits.1.max(limit));
                self.put(self.now + LOOK, Event::Look);
            }
            Event::Arrival { run, .. } if run != self.run => {}
            Event::Arrival { kind, run } => {
                let Traffic { priority, per_second, upstream } = self.kinds[kind];
                // As it is with many independent clients.
                let pause = -(1.0 - self.random.f64()).ln() / f64::from(per_second);
                self.put(ready + Duration::from_secs_f64(pause), Event::Arrival { kind, run });
                if let Ok(permit) = self.shedder.admit(priority) {
                    self.now += HALF_OF_A_REQUEST;
                    self.put(self.now + upstream, Event::Response { kind, arrived: ready, _permit: permit });
                } else {
                    self.now += REFUSAL;
                    self.counts[kind].shed += 1;
                }
            }
            Event::Response { kind, arrived, _permit } => {
                self.now += HALF_OF_A_REQUEST;
                // Of an earlier run, with more kinds.
                let Some(count) = self.counts.get_mut(kind) else { return };
                count.served += 1;
                count.slowest = count.slowest.max(self.now.saturating_sub(arrived));
            }
            Event::Stall(time) => self.now += time,
        }
    }
}

/// What a worker can serve in a second while it refuses the rest.
fn attainable(per_second: u32) -> f64 {
    let (serve, refuse) = (2.0 * HALF_OF_A_REQUEST.as_secs_f64(), REFUSAL.as_secs_f64());
    (1.0 - f64::from(per_second) * refuse) / (serve - refuse)
}

#[test]
fn a_worker_that_keeps_up_sheds_nothing() {
    let mut worker = Worker::new();
    let slow = Traffic { upstream: 5 * SECOND, ..traffic(Priority::Low, 200) };
    let counts = worker.run(20 * SECOND, [traffic(Priority::Normal, 200), slow]);
    assert_eq!(counts.map(|count| count.shed), [0, 0], "{counts:?}");
    assert_eq!(worker.shedder.limit(), SETTINGS.max_limit);
}

#[test]
fn under_overload_it_serves_what_it_can_and_without_a_queue() {
    // The longer an upstream takes, the later comes what a change of the limit has led to.
    for (per_second, upstream, least) in
        [(600, 50, 0.97), (1500, 50, 0.97), (1500, 1, 0.97), (5000, 50, 0.97), (1500, 300, 0.85), (1500, 1000, 0.8)]
    {
        let mut worker = Worker::new();
        let kind = Traffic { upstream: Duration::from_millis(upstream), ..traffic(Priority::Normal, per_second) };
        worker.run(10 * SECOND, [kind]);
        let [count] = worker.run(20 * SECOND, [kind]);
        let share = f64::from(count.served) / 20.0 / attainable(per_second);
        println!("{per_second}/s, {upstream} ms: {share:.3} of the attainable, {count:?}, limit {:?}", worker.limits);
        assert!(share > least, "{per_second}/s, {upstream} ms: {share:.3} of the attainable");
        assert!(count.slowest < kind.upstream + 12 * SETTINGS.target_lag, "{count:?}");
    }
}

#[test]
fn after_an_overload_all_are_served_and_the_limit_is_forgotten() {
    let mut worker = Worker::new();
    worker.run(10 * SECOND, [traffic(Priority::Normal, 1500)]);
    worker.run(2 * SECOND, [traffic(Priority::Normal, 300)]);
    let [count] = worker.run(18 * SECOND, [traffic(Priority::Normal, 300)]);
    assert_eq!(count.shed, 0);
    assert_eq!(worker.shedder.limit(), SETTINGS.max_limit);
}

#[test]
fn the_less_important_are_shed_first() {
    let mut worker = Worker::new();
    let kinds = [traffic(Priority::Critical, 100), traffic(Priority::Normal, 200), traffic(Priority::Low, 1200)];
    worker.run(10 * SECOND, kinds);
    let counts = worker.run(20 * SECOND, kinds);
    let shares = counts.map(|count| f64::from(count.shed) / f64::from(count.shed + count.served));
    println!("low is too much: {shares:.4?}");
    assert!(shares[0] < 0.001 && shares[1] < 0.01 && shares[2] > 0.8, "{shares:?}");

    let kinds = [traffic(Priority::Critical, 200), traffic(Priority::Normal, 800), traffic(Priority::Low, 300)];
    worker.run(10 * SECOND, kinds);
    let counts = worker.run(20 * SECOND, kinds);
    let shares = counts.map(|count| f64::from(count.shed) / f64::from(count.shed + count.served));
    println!("normal is too much: {shares:.4?}");
    assert!(shares[0] < 0.01 && shares[1] > 0.5 && shares[2] > 0.95, "{shares:?}");

    let kinds = [traffic(Priority::Critical, 1500), traffic(Priority::Normal, 100), traffic(Priority::Low, 100)];
    worker.run(10 * SECOND, kinds);
    let counts = worker.run(20 * SECOND, kinds);
    let served = f64::from(counts[0].served) / 20.0 / attainable(1700);
    println!("critical is too much: {served:.3} of the attainable, {counts:?}");
    assert!(served > 0.9, "{served}");
}

#[test]
fn requests_that_wait_for_a_slow_upstream_take_no_place_from_others() {
    let mut worker = Worker::new();
    let waiting = Traffic { upstream: 30 * SECOND, ..traffic(Priority::Normal, 20) };
    worker.run(40 * SECOND, [waiting]);
    assert!(worker.shedder.in_flight(Priority::Normal) > 500);
    let kinds = [traffic(Priority::Normal, 1000), waiting];
    worker.run(10 * SECOND, kinds);
    let counts = worker.run(20 * SECOND, kinds);
    let served = f64::from(counts[0].served + counts[1].served) / 20.0 / attainable(1020);
    println!("{served:.3} of the attainable, {counts:?}");
    assert!(served > 0.85, "{served}");
}

#[test]
fn one_stall_does_not_bring_the_limit_down() {
    let mut worker = Worker::new();
    let kind = traffic(Priority::Normal, 250);
    worker.run(5 * SECOND, [kind]);
    worker.put(worker.now, Event::Stall(Duration::from_millis(150)));
    let [count] = worker.run(5 * SECOND, [kind]);
    assert_eq!(count.shed, 0);
    // A long one leaves a real queue behind it, and is over soon.
    worker.put(worker.now, Event::Stall(2 * SECOND));
    let [count] = worker.run(6 * SECOND, [kind]);
    println!("{count:?}, limits {:?}", worker.limits);
    assert!(worker.limits.0 > 2 * SETTINGS.min_limit && count.shed < count.served / 4, "{:?}", worker.limits);
    let [count] = worker.run(5 * SECOND, [kind]);
    assert_eq!(count.shed, 0);
}
