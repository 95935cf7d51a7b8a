//! Several gateways, one coordinator, simulated time: whatever happens, no window admits too much.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use seiketsu_limits::{
    admission::{Applying, By, Decision, decide, decide_now},
    calendar::Calendar,
    clock::Clock,
    coordinator::{Answer, Coordinator, CoordinatorError, Exchange},
    holdings::{Holdings, Kind, Limit, Plan, Unreachable},
    ledger::{Ledger, Moment},
    node::Node,
    oracle::{self, Event},
    registry::Registry,
    terms::Bucket,
};
use tokio::{runtime::Handle, time::Instant};

/// The accounts of all gateways, at some distance.
#[derive(Debug)]
struct Centre {
    began: Instant,
    accounts: Mutex<HashMap<Arc<str>, Ledger>>,
    gateways: u64,
    /// There and back, in microseconds, at most.
    distance: AtomicU64,
    /// And at least.
    least: AtomicU64,
    is_up: AtomicBool,
    connections: AtomicU64,
    began_at: AtomicU64,
    /// How far its clock is ahead, in microseconds.
    ahead: AtomicU64,
    exchanges: AtomicU64,
}

impl Centre {
    fn new(gateways: u64, distance: Duration) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            accounts: Mutex::default(),
            gateways,
            distance: AtomicU64::new(u64::try_from(distance.as_micros()).unwrap()),
            least: AtomicU64::new(0),
            is_up: AtomicBool::new(true),
            connections: AtomicU64::new(0),
            began_at: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        1_700_000_000_000_000 + u64::try_from(self.began.elapsed().as_micros()).unwrap() + self.ahead.load(Relaxed)
    }

    fn goes(&self) {
        self.is_up.store(false, Relaxed);
    }

    fn comes_back(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.is_up.store(true, Relaxed);
    }

    /// Everything is forgotten.
    fn loses_everything(&self) {
        self.accounts.lock().clear();
        self.began_at.store(self.now(), Relaxed);
    }
}

#[async_trait]
impl Coordinator for Centre {
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        let way =
            || Duration::from_micros(self.least.load(Relaxed).midpoint(fastrand::u64(..=self.distance.load(Relaxed))));
        tokio::time::sleep(way()).await;
        if !self.is_up.load(Relaxed) {
            return Err(CoordinatorError::Unreachable("down".to_owned()));
        }
        self.exchanges.fetch_add(1, Relaxed);
        let moment = Moment { now: self.now(), live: self.gateways, began: self.began_at.load(Relaxed), is_told: true };
        let answers = {
            let mut accounts = self.accounts.lock();
            let answer = |request: &seiketsu_limits::coordinator::Request| {
                let account = accounts
                    .entry(Arc::clone(&request.key))
                    .or_insert_with(|| Ledger::open(request.terms, exchange.revision, &moment, false));
                account.exchange(&moment, &exchange.reporter, exchange.revision, request)
            };
            exchange.accounts.iter().map(answer).collect()
        };
        tokio::time::sleep(way()).await;
        Ok(answers)
    }

    fn live(&self) -> u64 {
        self.gateways
    }

    fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }
}

struct Gateway {
    node: Arc<Node>,
    holdings: Arc<Holdings>,
}

fn gateways(centre: &Arc<Centre>, bucket: Bucket, unreachable: Unreachable) -> Vec<Gateway> {
    gateways_with(centre, &gateway_limits(bucket), unreachable)
}

fn gateways_with(centre: &Arc<Centre>, limits: &[Limit], unreachable: Unreachable) -> Vec<Gateway> {
    let plan = Plan { unreachable, ..plan(1, limits) };
    let gateway = |node| Gateway { holdings: Holdings::new(plan.clone(), &node), node };
    (0..centre.gateways).map(|number| gateway(node(centre, number))).collect()
}

fn node(centre: &Arc<Centre>, number: u64) -> Arc<Node> {
    let coordinator: Arc<dyn Coordinator> = centre.clone();
    Node::start(coordinator, None, &format!("g{number}"), Clock::new(), &Handle::current())
}

fn plan(revision: u64, limits: &[Limit]) -> Plan {
    Plan { tenant: "acme".into(), revision, limits: limits.to_vec(), unreachable: Unreachable::Share }
}

/// One for each gateway. They tell what they know again whenever the coordinator has come back.
fn registries(centre: &Arc<Centre>) -> Vec<Arc<Registry>> {
    let registry = |number| {
        let registry = Arc::new(Registry::new(node(centre, number)));
        tokio::spawn(Registry::remind_after_losses(Arc::downgrade(&registry)));
        registry
    };
    (0..centre.gateways).map(registry).collect()
}

fn gateways_of(registries: &[Arc<Registry>], plan: &Plan) -> Vec<Gateway> {
    let gateway = |registry: &Arc<Registry>| Gateway {
        node: Arc::clone(registry.node()),
        holdings: registry.holdings(plan.clone()),
    };
    registries.iter().map(gateway).collect()
}

fn gateway_limits(bucket: Bucket) -> Vec<Limit> {
    vec![Limit { name: "rate".into(), key: "rate".into(), kind: Kind::Bucket(bucket) }]
}

fn day(limit: u64) -> Limit {
    let kind = Kind::Quota { limit, calendar: Calendar::days("UTC").unwrap() };
    Limit { name: "day".into(), key: "day".into(), kind }
}

#[derive(Debug, Default)]
struct Log {
    arrived: Vec<Event>,
    admitted: Vec<Event>,
    /// When, and by which gateway.
    admitted_by: Vec<(Duration, usize)>,
    local: usize,
    alone: usize,
    longest_wait: Duration,
}

/// Sends `requests`: at which moment after the beginning, to which gateway.
async fn drive(centre: &Arc<Centre>, gateways: &[Gateway], requests: Vec<(Duration, usize)>) -> Log {
    let log = Arc::new(Mutex::new(Log::default()));
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for (at, gateway) in requests {
        tokio::time::sleep_until(begin + at).await;
        let Gateway { node, holdings } = &gateways[gateway];
        let (node, holdings, centre, log) = (node.clone(), holdings.clone(), centre.clone(), log.clone());
        tasks.push(tokio::spawn(async move {
            let arrived = Instant::now();
            log.lock().arrived.push((centre.now(), 1));
            let places = holdings.places(|_| true);
            let applying = [Applying::new(&holdings, &places)];
            let decision = match decide_now(&applying, 1, false, &node, node.clock().now()) {
                Some(decision) => decision,
                None => decide(&applying, 1, false, &node).await,
            };
            let mut log = log.lock();
            log.longest_wait = log.longest_wait.max(arrived.elapsed());
            let by = match decision {
                Decision::Admitted { by, .. } => {
                    log.admitted.push((centre.now(), 1));
                    log.admitted_by.push((begin.elapsed(), gateway));
                    by
                }
                Decision::Refused { by, .. } => by,
                Decision::Unavailable => By::Alone,
            };
            log.local += usize::from(by == By::Lease);
            log.alone += usize::from(by == By::Alone);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    Arc::into_inner(log).unwrap().into_inner()
}

/// Arrivals that know nothing of each other, at gateways that `choose` names.
fn random(per_second: f64, seconds: f64, choose: impl Fn() -> usize) -> Vec<(Duration, usize)> {
    let gap = || -(1.0 - fastrand::f64()).ln() / per_second;
    let times = std::iter::successors(Some(gap()), |at| Some(at + gap()));
    times.take_while(|at| *at < seconds).map(|at| (Duration::from_secs_f64(at), choose())).collect()
}

/// Arrivals at a constant rate, at gateways that `choose` names.
fn steady(per_second: f64, seconds: f64, choose: impl Fn(usize) -> usize) -> Vec<(Duration, usize)> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few thousand.
    let count = (per_second * seconds) as usize;
    (0..count).map(|n| (Duration::from_secs_f64(n as f64 / per_second), choose(n))).collect()
}

fn per_minute(tokens: u64, burst: u64) -> Bucket {
    Bucket::new(tokens, Duration::from_mins(1), burst).unwrap()
}

const NEAR: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_saturated_limit_is_used_up_and_never_exceeded() {
    for (tokens, burst) in [(1000, 100), (6000, 600), (60_000, 100), (600, 10)] {
        let bucket = per_minute(tokens, burst);
        let centre = Centre::new(3, NEAR);
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        let rate = tokens as f64 / 60.0;
        // Some thousand requests, whatever the rate.
        let seconds = (10_000.0 / rate).min(60.0);
        let mut log = drive(&centre, &gateways, steady(3.0 * rate, seconds, |n| n % 3)).await;
        assert!(oracle::excess(&mut log.admitted, &bucket) <= 0.0, "{tokens}");
        let ideal = oracle::ideal(&mut log.arrived, &bucket);
        let used = log.admitted.len() as f64 / ideal as f64;
        eprintln!("{tokens}/min, burst {burst}: used {used:.4}, exchanges {}", centre.exchanges.load(Relaxed));
        assert!(used >= 0.99, "{tokens} rpm, burst {burst}: {used}");
        // Where what comes in three seconds fits into the burst, each gateway asks once a second; and somewhat more
        // often while the burst is used up.
        if rate * 3.0 <= burst as f64 {
            let local = log.local as f64 / log.arrived.len() as f64;
            assert!(local >= 0.95, "{tokens} rpm, burst {burst}: {local}");
            let exchanges = centre.exchanges.load(Relaxed) as f64 / seconds / 3.0;
            assert!(exchanges <= 1.3, "{tokens} rpm, burst {burst}: {exchanges}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn below_the_limit_nothing_is_refused_and_nearly_everything_is_decided_at_hand() {
    for (tokens, burst) in [(1000, 100), (6000, 600), (60_000, 2400)] {
        let bucket = per_minute(tokens, burst);
        let centre = Centre::new(3, NEAR);
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        let rate = tokens as f64 / 60.0;
        let log =
            drive(&centre, &gateways, steady(0.9 * rate, (20_000.0 / rate).min(60.0), |_| fastrand::usize(..3))).await;
        assert_eq!(log.admitted.len(), log.arrived.len(), "{tokens}");
        let local = log.local as f64 / log.arrived.len() as f64;
        let exchanges = centre.exchanges.load(Relaxed) as f64;
        eprintln!(
            "{tokens}/min, burst {burst}: local {local:.4}, {:.2} exchanges a second and gateway, {:.2} per 1000",
            exchanges / 180.0,
            exchanges / log.admitted.len() as f64 * 1000.0
        );
        assert!(local >= 0.95, "{tokens} rpm: {local}");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_a_minute_over_twenty_gateways_are_ten_a_minute() {
    let bucket = per_minute(10, 10);
    let centre = Centre::new(20, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Share);
    let mut log = drive(&centre, &gateways, steady(20.0, 300.0, |_| fastrand::usize(..20))).await;
    assert!(oracle::excess(&mut log.admitted, &bucket) <= 0.0);
    assert_eq!(log.admitted.len() as u64, oracle::ideal(&mut log.arrived, &bucket));
}

#[tokio::test(start_paused = true)]
async fn a_skewed_load_may_use_nearly_everything() {
    let bucket = per_minute(6000, 600);
    let centre = Centre::new(10, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Share);
    let skewed = |_| if fastrand::f64() < 0.9 { 0 } else { fastrand::usize(1..10) };
    let mut log = drive(&centre, &gateways, steady(300.0, 30.0, skewed)).await;
    assert!(oracle::excess(&mut log.admitted, &bucket) <= 0.0);
    let used = log.admitted.len() as f64 / oracle::ideal(&mut log.arrived, &bucket) as f64;
    assert!(used >= 0.95, "{used}");
}

#[tokio::test(start_paused = true)]
async fn one_gateway_that_gets_everything_asks_no_more_often_than_it_would_among_others() {
    for (tokens, burst) in [(1000, 100), (6000, 600), (36_000, 2400)] {
        let bucket = per_minute(tokens, burst);
        // So far that a token comes for every exchange: nobody is refused by it.
        let centre = Centre::new(3, Duration::from_millis(5));
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        let mut log = drive(&centre, &gateways, random(2.0 * tokens as f64 / 60.0, 60.0, || 0)).await;
        assert!(oracle::excess(&mut log.admitted, &bucket) <= 0.0, "{tokens}");
        let used = log.admitted.len() as f64 / oracle::ideal(&mut log.arrived, &bucket) as f64;
        let local = log.local as f64 / log.arrived.len() as f64;
        let exchanges = centre.exchanges.load(Relaxed) as f64 / 60.0;
        eprintln!("{tokens}/min, burst {burst}: used {used:.4}, local {local:.4}, {exchanges:.2} exchanges a second");
        assert!(used >= 0.99, "{tokens} rpm: {used}");
        assert!(local >= 0.95, "{tokens} rpm: {local}");
        assert!(exchanges <= 2.0, "{tokens} rpm: {exchanges}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_first_leaves_others_their_part() {
    let bucket = per_minute(6000, 600);
    let centre = Centre::new(3, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Share);
    let log = drive(&centre, &gateways, random(300.0, 12.0, || fastrand::usize(..3))).await;
    // The burst is used up after three seconds; what a gateway still holds then, half a second later.
    for second in 4..12 {
        let within = |at: &Duration| at.as_secs() == second;
        for gateway in 0..3 {
            let admitted = log.admitted_by.iter().filter(|(at, by)| within(at) && *by == gateway).count();
            assert!((17..=60).contains(&admitted), "gateway {gateway} in second {second}: {admitted} of 100");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_burst_among_many_gateways_refuses_nobody_below_the_limit() {
    for (tokens, burst, gateways) in [(1000, 10, 10), (600, 10, 5), (6000, 30, 10)] {
        let bucket = per_minute(tokens, burst);
        let centre = Centre::new(gateways, NEAR);
        let all = self::gateways(&centre, bucket, Unreachable::Share);
        let rate = tokens as f64 / 60.0;
        let log = drive(&centre, &all, steady(0.7 * rate, 30.0, |_| fastrand::usize(..all.len()))).await;
        assert_eq!(log.admitted.len(), log.arrived.len(), "{tokens} rpm over {gateways}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_nobody_asks_for_any_more_is_soon_others() {
    // So many that chance does not decide.
    const RUNS: usize = 50;
    let (rate, mut used) = (200.0, 0.0);
    for _ in 0..RUNS {
        let bucket = per_minute(12_000, 1000);
        let centre = Centre::new(2, NEAR);
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        // Some time after the burst is used up, all of it goes to one of them.
        let moved = 13.0 + fastrand::f64();
        let mut requests = random(2.0 * rate, moved, || fastrand::usize(..2));
        let after = random(2.0 * rate, 3.0, || 0).into_iter();
        requests.extend(after.map(|(at, gateway)| (at + Duration::from_secs_f64(moved), gateway)));
        let log = drive(&centre, &gateways, requests).await;
        let second = Duration::from_secs_f64(moved + 1.0)..Duration::from_secs_f64(moved + 2.0);
        used += log.admitted_by.iter().filter(|(at, _)| second.contains(at)).count() as f64 / rate / RUNS as f64;
    }
    // A share that was given up is told at once, and asked for a second after that at the latest.
    assert!(used >= 0.8, "{used} of what comes in the second second");
}

#[tokio::test(start_paused = true)]
async fn changes_in_the_middle_of_promises_give_nothing_away() {
    let (rate, centre) = (100.0, Centre::new(20, NEAR));
    let mut gateways = gateways(&centre, per_minute(6000, 300), Unreachable::Deny);
    let (mut admitted, began) = (0, centre.now());
    for revision in 2..60 {
        admitted += drive(&centre, &gateways, random(3.0 * rate, 1.0, || fastrand::usize(..20))).await.admitted.len();
        let come = (centre.now() - began) as f64 / 1e6 * rate;
        assert!(admitted as f64 <= 301.0 + come, "revision {revision}: {admitted} admitted, and {come} have come");
        // One gateway after the other gets other limits.
        let number = usize::try_from(revision).unwrap() % gateways.len();
        let limits = gateway_limits(per_minute(6000, 300 + revision % 2));
        let plan = Plan { tenant: "acme".into(), revision, limits, unreachable: Unreachable::Deny };
        gateways[number].holdings = Holdings::new(plan, &gateways[number].node);
    }
}

#[tokio::test(start_paused = true)]
async fn a_heavy_request_is_not_told_to_come_too_early() {
    let bucket = per_minute(600, 100);
    let centre = Centre::new(1, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Share);
    drive(&centre, &gateways, random(30.0, 12.0, || 0)).await;
    let Gateway { node, holdings } = &gateways[0];
    let places = holdings.places(|_| true);
    let decision = decide(&[Applying::new(holdings, &places)], 25, false, node).await;
    let Decision::Refused { wait, .. } = decision else { panic!("{decision:?}") };
    // A few may be at hand, or left for everybody.
    assert!(wait >= Duration::from_millis(1900), "25 tokens take 2.5 s, and not {wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_goes_and_forgets_everything_admits_nothing_twice_and_holds_nobody_up() {
    for forgets in [true, false] {
        let bucket = per_minute(6000, 300);
        let centre = Centre::new(3, NEAR);
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        let fate = centre.clone();
        let fate = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            fate.is_up.store(false, Relaxed);
            tokio::time::sleep(Duration::from_secs(10)).await;
            if forgets {
                fate.loses_everything();
            }
            fate.is_up.store(true, Relaxed);
        });
        let mut log = drive(&centre, &gateways, steady(50.0, 40.0, |n| n % 3)).await;
        fate.await.unwrap();
        if forgets {
            assert_eq!(log.admitted.len(), log.arrived.len(), "half the rate is within every share");
        }
        assert!(log.longest_wait <= Duration::from_millis(10), "{:?}", log.longest_wait);
        let excess = oracle::excess(&mut log.admitted, &bucket);
        assert!(excess <= 0.0, "{excess}");
        // And with more than is allowed.
        let bucket = per_minute(6000, 300);
        let centre = Centre::new(3, NEAR);
        let gateways = self::gateways(&centre, bucket, Unreachable::Share);
        let fate = centre.clone();
        let fate = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            fate.is_up.store(false, Relaxed);
            tokio::time::sleep(Duration::from_secs(10)).await;
            fate.loses_everything();
            fate.is_up.store(true, Relaxed);
        });
        let mut log = drive(&centre, &gateways, steady(300.0, 40.0, |n| n % 3)).await;
        fate.await.unwrap();
        assert!(log.alone > 0);
        let excess = oracle::excess(&mut log.admitted, &bucket);
        assert!(excess <= 0.0, "{excess}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_goes_at_the_end_of_a_quota_leaves_nothing_that_was_taken_already() {
    for run in 0..60 {
        let centre = Centre::new(3, NEAR);
        let gateways = gateways_with(&centre, &[day(3000)], Unreachable::Share);
        let fate = centre.clone();
        let fate = tokio::spawn(async move {
            // All is spent after six seconds.
            tokio::time::sleep(Duration::from_millis(5000 + 20 * run)).await;
            fate.is_up.store(false, Relaxed);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(200..2000))).await;
            fate.is_up.store(true, Relaxed);
        });
        // From even to nearly all at one.
        let skew = 0.9 * fastrand::f64();
        let choose = || if fastrand::f64() < skew { 0 } else { fastrand::usize(..3) };
        let log = drive(&centre, &gateways, random(500.0, 12.0, choose)).await;
        fate.await.unwrap();
        assert_eq!(log.admitted.len(), 3000, "run {run}, skew {skew}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_goes_in_the_middle_of_a_quota_holds_nobody_up() {
    let centre = Centre::new(3, NEAR);
    let gateways = gateways_with(&centre, &[day(6000)], Unreachable::Share);
    let fate = centre.clone();
    let fate = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        fate.is_up.store(false, Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;
        fate.is_up.store(true, Relaxed);
    });
    let log = drive(&centre, &gateways, steady(500.0, 9.0, |n| n % 3)).await;
    fate.await.unwrap();
    assert!(log.alone > 1000, "{}", log.alone);
    assert_eq!(log.admitted.len(), log.arrived.len());
}

#[tokio::test(start_paused = true)]
async fn slow_quotas_are_kept_to_as_well_when_the_coordinator_goes_at_their_end() {
    for run in 0..20 {
        let centre = Centre::new(3, NEAR);
        let gateways = gateways_with(&centre, &[day(1000)], Unreachable::Share);
        let fate = centre.clone();
        let fate = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(800 + 10 * run)).await;
            fate.is_up.store(false, Relaxed);
        });
        // Two have one request in two seconds each, and the third has ten every two minutes.
        let mut requests = random(1.0, 1400.0, || fastrand::usize(1..3));
        for at in (0..1400).step_by(120) {
            requests.extend((0..10).map(|n| (Duration::from_secs(at) + Duration::from_millis(n * 100), 0)));
        }
        requests.sort_unstable();
        let log = drive(&centre, &gateways, requests).await;
        fate.await.unwrap();
        assert!(log.admitted.len() <= 1000, "run {run}: {}", log.admitted.len());
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_a_quota_for_itself_has_all_of_it_whenever_the_coordinator_goes() {
    let centre = Centre::new(1, NEAR);
    let gateways = gateways_with(&centre, &[day(1000)], Unreachable::Share);
    let fate = centre.clone();
    let fate = tokio::spawn(async move {
        for (at, is_up) in [(5000, false), (8000, true), (8300, false)] {
            tokio::time::sleep_until(fate.began + Duration::from_millis(at)).await;
            fate.is_up.store(is_up, Relaxed);
        }
    });
    let log = drive(&centre, &gateways, steady(100.0, 12.0, |_| 0)).await;
    fate.await.unwrap();
    assert_eq!(log.admitted.len(), 1000);
    assert!(log.alone > 500, "{}", log.alone);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_comes_back_gives_nothing_that_was_spent_without_it() {
    for run in 0..20 {
        let bucket = per_minute(6000, 300);
        let centre = Centre::new(3, NEAR);
        let gateways = gateways(&centre, bucket, Unreachable::Share);
        let fate = centre.clone();
        let fate = tokio::spawn(async move {
            for away in [300 + 150 * run, 50] {
                tokio::time::sleep(Duration::from_secs(5)).await;
                fate.is_up.store(false, Relaxed);
                tokio::time::sleep(Duration::from_millis(away)).await;
                fate.is_up.store(true, Relaxed);
            }
        });
        let mut log = drive(&centre, &gateways, steady(300.0, 18.0, |n| n % 3)).await;
        fate.await.unwrap();
        let excess = oracle::excess(&mut log.admitted, &bucket);
        assert!(excess <= 0.0, "run {run}: {excess}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_nobody_has_asked_for_is_not_refused_because_the_coordinator_is_away() {
    for silence in [0, 7, 600] {
        let centre = Centre::new(3, NEAR);
        let gateways = gateways(&centre, per_minute(10, 10), Unreachable::Share);
        if silence > 0 {
            drive(&centre, &gateways, vec![(Duration::ZERO, 0)]).await;
            tokio::time::sleep(Duration::from_secs(silence)).await;
        }
        centre.is_up.store(false, Relaxed);
        let log = drive(&centre, &gateways, (0..3).map(|gateway| (Duration::ZERO, gateway)).collect()).await;
        assert_eq!((log.admitted.len(), log.alone), (3, 3), "{silence}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_not_asked_for_long_may_spend_little_of_what_others_may_have_spent() {
    let bucket = per_minute(600, 300);
    let centre = Centre::new(3, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Share);
    let fate = centre.clone();
    let fate = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fate.is_up.store(false, Relaxed);
    });
    // Two ask once, the third takes all there is, and then the two come again.
    let mut requests = vec![(Duration::ZERO, 0), (Duration::ZERO, 1)];
    requests.extend((0..400).map(|n| (Duration::from_micros(4_000_000 + 2000 * n), 2)));
    requests.extend((0..100).map(|n| (Duration::from_micros(5_100_000 + 100 * n), usize::from(n % 2 == 0))));
    let mut log = drive(&centre, &gateways, requests).await;
    fate.await.unwrap();
    let excess = oracle::excess(&mut log.admitted, &bucket);
    assert!(excess <= 2.0, "{excess}");
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_while_the_coordinator_was_away_is_asked_for_again_when_it_is_back() {
    for unreachable in [Unreachable::Deny, Unreachable::Share] {
        let centre = Centre::new(2, NEAR);
        let gateways = gateways(&centre, per_minute(60, 10), unreachable);
        centre.is_up.store(false, Relaxed);
        let away = drive(&centre, &gateways, vec![(Duration::ZERO, 0); 20]).await;
        assert!(away.admitted.len() <= 5, "{}", away.admitted.len());
        centre.is_up.store(true, Relaxed);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let back = drive(&centre, &gateways, vec![(Duration::ZERO, 0)]).await;
        assert_eq!((back.admitted.len(), back.alone), (1, 0), "{unreachable:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heavy_requests_are_not_admitted_by_each_gateway_that_is_alone() {
    let centre = Centre::new(3, NEAR);
    let gateways = gateways(&centre, per_minute(600, 100), Unreachable::Share);
    centre.is_up.store(false, Relaxed);
    let mut admitted = 0;
    for second in 0..60 {
        for Gateway { holdings, node } in &gateways {
            let places = holdings.places(|_| true);
            let decision = decide(&[Applying::new(holdings, &places)], 60, false, node).await;
            admitted += u64::from(matches!(decision, Decision::Admitted { .. })) * 60;
        }
        assert!(admitted <= 100 + second * 10, "{admitted} after {second} s");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_hangs_holds_no_request_up_for_long() {
    let bucket = per_minute(6000, 300);
    let centre = Centre::new(3, NEAR);
    let gateways = gateways(&centre, bucket, Unreachable::Allow);
    let fate = centre.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fate.distance.store(100_000_000, Relaxed);
    });
    let log = drive(&centre, &gateways, steady(300.0, 20.0, |n| n % 3)).await;
    assert!(log.longest_wait <= Duration::from_millis(11), "{:?}", log.longest_wait);
    assert!(log.alone > 0);
}

#[tokio::test(start_paused = true)]
async fn an_absence_ends_though_nobody_asks_for_anything_after_it() {
    // Something is spent without the coordinator, or nothing; then, much later, it goes again, is slow for once, or loses
    // its data.
    let fates = ["goes", "is slow", "forgets"];
    for (spends, fate) in fates.iter().flat_map(|fate| [(true, *fate), (false, *fate)]) {
        let bucket = per_minute(600, 300);
        let centre = Centre::new(3, NEAR);
        let registries = registries(&centre);
        let gateways = gateways_of(&registries, &plan(1, &gateway_limits(bucket)));
        // Either a little, and then a silence after which one token each may be spent; or all there is.
        let (requests, silence) =
            if spends { (steady(10.0, 0.9, |n| n % 3), 5) } else { (steady(300.0, 4.0, |n| n % 3), 0) };
        drive(&centre, &gateways, requests).await;
        tokio::time::sleep(Duration::from_secs(silence)).await;
        centre.goes();
        let away = drive(&centre, &gateways, steady(100.0, 0.06, |n| n % 3)).await;
        assert_eq!(!away.admitted.is_empty(), spends);
        tokio::time::sleep(Duration::from_millis(600)).await;
        centre.comes_back();
        tokio::time::sleep(Duration::from_mins(10)).await;
        // One takes all there is, and then the others come.
        let mut log = drive(&centre, &gateways, steady(1000.0, 0.5, |_| 2)).await;
        assert!(log.admitted.len() > 290);
        match fate {
            "goes" => centre.goes(),
            "is slow" => centre.least.store(30_000, Relaxed),
            _ => {
                centre.loses_everything();
                centre.comes_back();
            }
        }
        log.admitted.extend(drive(&centre, &gateways, steady(5000.0, 0.1, |n| n % 2)).await.admitted);
        let excess = oracle::excess(&mut log.admitted, &bucket);
        assert!(excess <= 2.0, "spends {spends}, {fate}: {excess}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_of_a_quota_is_not_kept_for_the_next_absence() {
    let centre = Centre::new(3, NEAR);
    let registries = registries(&centre);
    let gateways = gateways_of(&registries, &plan(1, &[day(3000)]));
    let mut log = drive(&centre, &gateways, steady(15.0, 60.0, |n| n % 3)).await;
    centre.goes();
    log.admitted.extend(drive(&centre, &gateways, steady(15.0, 4.0, |n| n % 3)).await.admitted);
    centre.comes_back();
    // One goes on, and nearly uses it up.
    log.admitted.extend(drive(&centre, &gateways, steady(5.0, 390.0, |_| 2)).await.admitted);
    assert!((2850..3000).contains(&log.admitted.len()), "{}", log.admitted.len());
    centre.goes();
    log.admitted.extend(drive(&centre, &gateways, steady(1000.0, 4.0, |n| n % 2)).await.admitted);
    assert!(log.admitted.len() <= 3000, "{}", log.admitted.len());
}

#[tokio::test(start_paused = true)]
async fn new_limits_do_not_keep_the_share_of_former_ones_for_the_next_absence() {
    let centre = Centre::new(3, NEAR);
    let registries = registries(&centre);
    let gateways = gateways_of(&registries, &plan(1, &[day(3000)]));
    let mut log = drive(&centre, &gateways, steady(30.0, 3.0, |n| n % 3)).await;
    centre.goes();
    log.admitted.extend(drive(&centre, &gateways, steady(30.0, 3.0, |n| n % 3)).await.admitted);
    let mut limits = gateway_limits(per_minute(600_000, 10_000));
    limits.push(day(3000));
    let gateways = gateways_of(&registries, &plan(2, &limits));
    centre.comes_back();
    tokio::time::sleep(Duration::from_secs(3)).await;
    log.admitted.extend(drive(&centre, &gateways, steady(100.0, 27.0, |n| n % 3)).await.admitted);
    assert!((2850..3000).contains(&log.admitted.len()), "{}", log.admitted.len());
    centre.goes();
    log.admitted.extend(drive(&centre, &gateways, steady(1000.0, 4.0, |n| n % 3)).await.admitted);
    assert!(log.admitted.len() <= 3000, "{}", log.admitted.len());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_with_many_limits_tells_of_its_quota_though_its_last_exchange_was_broken_off() {
    let centre = Centre::new(2, NEAR);
    let registries = registries(&centre);
    let route = |n| Limit {
        name: format!("route-{n}").into(),
        key: format!("route-{n}").into(),
        ..gateway_limits(per_minute(6000, 600))[0].clone()
    };
    let limits: Vec<Limit> = std::iter::once(day(10)).chain((0..40).map(route)).collect();
    let gateways = gateways_of(&registries, &plan(1, &limits));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let passing = async |gateway: &Gateway, index: usize| {
        let Gateway { node, holdings } = gateway;
        let places = holdings.places(|_| true);
        let decision = decide(&[Applying::new(holdings, &places[index..=index])], 1, false, node).await;
        usize::from(matches!(decision, Decision::Admitted { .. }))
    };
    let mut passed = 0;
    for _ in 0..12 {
        passed += passing(&gateways[0], 0).await;
    }
    assert_eq!(passed, 10);
    for index in 1..limits.len() {
        assert_eq!(passing(&gateways[0], index).await, 1);
    }
    // It tells of all this after a second, but the first part is not heard.
    tokio::time::sleep(Duration::from_millis(500)).await;
    centre.goes();
    tokio::time::sleep(Duration::from_secs(1)).await;
    centre.loses_everything();
    centre.comes_back();
    tokio::time::sleep(Duration::from_secs(20)).await;
    for _ in 0..12 {
        assert_eq!(passing(&gateways[1], 0).await, 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_over_the_end_of_a_day_and_comes_back_gives_no_quota_again() {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000;
    for last in [0, DAY] {
        let centre = Centre::new(3, NEAR);
        let gateways = gateways_with(&centre, &[day(300)], Unreachable::Share);
        let mut admitted = 0;
        // Everything that is asked for on the last of these days is more than its quota.
        for (per_second, ahead) in [(60.0, 0), (60.0, DAY), (20.0, 0), (20.0, DAY), (10.0, 2 * DAY), (100.0, last)] {
            centre.ahead.store(ahead, Relaxed);
            let log = drive(&centre, &gateways, steady(per_second, 2.0, |n| n % 3)).await;
            admitted += if ahead == last { log.admitted.len() } else { 0 };
        }
        // Each may still have been given a few before it learned what day it is.
        assert!((290..=300).contains(&admitted), "{admitted}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_alone_of_many_limits_is_told_before_others_are_given_more() {
    let bucket = per_minute(600, 300);
    let centre = Centre::new(3, NEAR);
    let registries = registries(&centre);
    // More than are told of at a time.
    let name = |number| format!("route-{number}").into();
    let limits = (0..40).map(|n| Limit { name: name(n), key: name(n), kind: Kind::Bucket(bucket) });
    let limits: Vec<Limit> = limits.collect();
    let gateways = gateways_of(&registries, &plan(1, &limits));
    let last = limits.len() - 1;
    let mut admitted = Vec::new();
    let mut ask = async |gateway: usize, index: usize| {
        let Gateway { node, holdings } = &gateways[gateway];
        let place = &holdings.places(|_| true)[index..=index];
        let decision = decide(&[Applying::new(holdings, place)], 1, false, node).await;
        if index == last && matches!(decision, Decision::Admitted { .. }) {
            admitted.push((centre.now(), 1));
        }
    };
    // The last one is used up; the others are asked for now and then.
    for (is_up, requests, others_every, pause) in [(true, 2000, 20, 1), (false, 400, 1, 25), (true, 2000, 20, 1)] {
        // Over the same connection: nobody is reminded.
        centre.is_up.store(is_up, Relaxed);
        for number in 0..requests {
            ask(number % 3, last).await;
            for index in (0..last).filter(|_| number % others_every == 0) {
                ask(number % 3, index).await;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
    let excess = oracle::excess(&mut admitted, &bucket);
    assert!(excess <= 3.0, "{excess}");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_slow_all_the_time_gives_no_new_share_of_a_quota_with_each_answer() {
    let mut admitted = 0;
    for _ in 0..20 {
        let centre = Centre::new(3, NEAR);
        let gateways = gateways_with(&centre, &[day(60)], Unreachable::Share);
        // They know the quota, and what day it is.
        admitted += drive(&centre, &gateways, steady(30.0, 0.1, |n| n % 3)).await.admitted.len();
        centre.least.store(60_000, Relaxed);
        centre.distance.store(30_000, Relaxed);
        admitted += drive(&centre, &gateways, random(300.0, 2.0, || fastrand::usize(..3))).await.admitted.len();
    }
    // A few may be given to one that another has spent, and has not told of yet.
    assert!((20 * 57..=20 * 66).contains(&admitted), "{} of 60", admitted as f64 / 20.0);
}
