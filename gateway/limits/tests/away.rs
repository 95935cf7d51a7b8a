//! What gateways hold to while the coordinator is away, over changes of the limits too; and what they tell it.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use seiketsu_limits::{
    admission::{Applying, Decision, decide},
    calendar::Calendar,
    clock::Clock,
    coordinator::{Answer, Coordinator, CoordinatorError, Exchange, MemoryCoordinator},
    holdings::{Holdings, Kind, Limit, Plan, Unreachable},
    journal::Journal,
    node::Node,
    registry::Registry,
    terms::Bucket,
};
use tokio::runtime::Handle;

/// Can be taken away, and remembers what it was told.
#[derive(Debug)]
struct Switch {
    accounts: MemoryCoordinator,
    is_away: AtomicBool,
    heard: Mutex<Vec<Exchange>>,
    connections: AtomicU64,
}

impl Switch {
    fn new() -> Arc<Self> {
        let accounts = MemoryCoordinator::new(None);
        Arc::new(Self {
            accounts,
            is_away: AtomicBool::new(false),
            heard: Mutex::default(),
            connections: AtomicU64::new(0),
        })
    }

    fn take_away(&self) {
        self.is_away.store(true, SeqCst);
    }

    fn bring_back(&self) {
        self.is_away.store(false, SeqCst);
    }

    /// The most that was said to be spent of an account.
    fn spent(&self, key: &str) -> u64 {
        let heard = self.heard.lock();
        let accounts = heard.iter().flat_map(|exchange| &exchange.accounts);
        accounts.filter(|account| account.key.starts_with(key)).map(|account| account.spent).max().unwrap_or_default()
    }
}

#[async_trait]
impl Coordinator for Switch {
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        if self.is_away.load(SeqCst) {
            return Err(CoordinatorError::Unreachable("away".to_owned()));
        }
        self.heard.lock().push(exchange.clone());
        self.accounts.exchange(exchange).await
    }

    fn live(&self) -> u64 {
        1
    }

    fn connections(&self) -> u64 {
        self.connections.load(SeqCst)
    }
}

fn registry(switch: &Arc<Switch>, journal: Option<Journal>) -> Registry {
    let coordinator: Arc<dyn Coordinator> = switch.clone();
    Registry::new(Node::start(coordinator, journal, "node", Clock::new(), &Handle::current()))
}

fn day(limit: u64) -> Limit {
    let kind = Kind::Quota { limit, calendar: Calendar::days("UTC").unwrap() };
    Limit { name: "day".into(), key: "day".into(), kind }
}

fn rate(name: &str, burst: u64) -> Limit {
    let kind = Kind::Bucket(Bucket::new(6_000_000, Duration::from_mins(1), burst).unwrap());
    Limit { name: name.into(), key: name.into(), kind }
}

fn plan(limits: &[Limit], unreachable: Unreachable) -> Plan {
    Plan { tenant: "acme".into(), revision: 1, limits: limits.to_vec(), unreachable }
}

/// How many of so many requests pass.
async fn passing(registry: &Registry, holdings: &Arc<Holdings>, requests: usize) -> usize {
    let places = holdings.places(|_| true);
    let mut passing = 0;
    for _ in 0..requests {
        let decision = decide(&[Applying::new(holdings, &places)], 1, false, registry.node()).await;
        passing += usize::from(matches!(decision, Decision::Admitted { .. }));
    }
    passing
}

async fn comes_true(what: &str, question: impl Fn() -> bool) {
    for _ in 0..3000 {
        if question() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}

#[tokio::test]
async fn changed_limits_are_no_new_quota_while_the_coordinator_is_away() {
    let switch = Switch::new();
    let registry = registry(&switch, None);
    let mut holdings = registry.holdings(plan(&[day(20)], Unreachable::Share));
    assert_eq!(passing(&registry, &holdings, 8).await, 8);
    switch.take_away();
    let mut passed = 8 + passing(&registry, &holdings, 50).await;
    for burst in [5000, 6000, 7000] {
        holdings = registry.holdings(plan(&[rate("rate", burst), day(20)], Unreachable::Share));
        passed += passing(&registry, &holdings, 50).await;
    }
    assert!((15..=20).contains(&passed), "{passed}");
}

#[tokio::test]
async fn nor_are_they_for_callers_who_need_not_come_after_each_change() {
    let switch = Switch::new();
    let registry = registry(&switch, None);
    let plan = |burst| plan(&[rate("rate", burst), day(20)], Unreachable::Share);
    let passing = async |burst, callers: &[&[u8]], requests| {
        let keyed = registry.keyed(&"each".into(), plan(burst));
        let mut passed = 0;
        for caller in callers {
            let holdings = keyed.of(caller, registry.node().clock().now());
            passed += passing(&registry, &holdings, requests).await;
        }
        (keyed, passed)
    };
    let (mut keyed, mut passed) = passing(5000, &[b"one", b"two"], 8).await;
    assert_eq!(passed, 16);
    switch.take_away();
    for (burst, callers) in
        [(5000, &[&b"one"[..], b"two"][..]), (6000, &[b"one"]), (7000, &[b"one", b"two"]), (8000, &[b"two"])]
    {
        let more;
        (keyed, more) = passing(burst, callers, 50).await;
        passed += more;
    }
    assert!((30..=40).contains(&passed), "{passed}");
    drop(keyed);
}

#[tokio::test]
async fn a_gateway_that_starts_while_the_coordinator_is_away_knows_what_its_former_processes_took() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quotas");
    let switch = Switch::new();
    switch.take_away();
    let mut passed = 0;
    for _ in 0..3 {
        let registry = registry(&switch, Some(Journal::open(&path).unwrap()));
        let holdings = registry.holdings(plan(&[day(20)], Unreachable::Share));
        passed += passing(&registry, &holdings, 15).await;
        registry.node().close().await;
    }
    assert_eq!(passed, 20);
}

#[tokio::test]
async fn zero_is_zero_whatever_applies_while_the_coordinator_is_away() {
    let switch = Switch::new();
    let registry = registry(&switch, None);
    switch.take_away();
    let slots = Limit { name: "concurrency".into(), key: "concurrency".into(), kind: Kind::Slots { limit: 0 } };
    for limit in [day(0), slots] {
        for unreachable in [Unreachable::Share, Unreachable::Allow, Unreachable::Deny] {
            let holdings = registry.holdings(plan(std::slice::from_ref(&limit), unreachable));
            assert_eq!(passing(&registry, &holdings, 3).await, 0, "{limit:?} {unreachable:?}");
        }
    }
}

/// One request with the coordinator, and a hundred without it.
async fn spent_without(switch: &Arc<Switch>) -> (Registry, Arc<Holdings>) {
    let registry = registry(switch, None);
    let holdings = registry.holdings(plan(&[day(1000)], Unreachable::Share));
    assert_eq!(passing(&registry, &holdings, 1).await, 1);
    switch.take_away();
    assert_eq!(passing(&registry, &holdings, 100).await, 100);
    (registry, holdings)
}

#[tokio::test]
async fn what_was_spent_without_the_coordinator_is_told_though_nobody_asks_again() {
    let switch = Switch::new();
    let _gateway = spent_without(&switch).await;
    switch.bring_back();
    comes_true("101 are told", || switch.spent("day") == 101).await;
}

#[tokio::test]
async fn limits_that_were_replaced_while_the_coordinator_was_away_tell_it_later() {
    let switch = Switch::new();
    let (_registry, holdings) = spent_without(&switch).await;
    drop(holdings);
    switch.bring_back();
    comes_true("101 are told", || switch.spent("day") == 101).await;
}

#[tokio::test]
async fn what_replaced_limits_spent_is_told_to_a_coordinator_that_may_have_forgotten_it() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Switch::new();
    let registry = Arc::new(registry(&switch, Some(Journal::open(&folder.path().join("quotas")).unwrap())));
    tokio::spawn(Registry::remind_after_losses(Arc::downgrade(&registry)));
    let holdings = registry.holdings(plan(&[day(1000)], Unreachable::Share));
    assert_eq!(passing(&registry, &holdings, 8).await, 8);
    let next = registry.holdings(plan(&[day(900)], Unreachable::Share));
    drop(holdings);
    assert_eq!(passing(&registry, &next, 3).await, 3);
    comes_true("both have told", || switch.spent("day") == 8 && !registry.node().is_busy()).await;
    switch.heard.lock().clear();
    switch.connections.store(1, SeqCst);
    comes_true("8 are told again", || switch.spent("day") == 8).await;
}

#[tokio::test]
async fn limits_that_were_only_looked_at_do_not_hide_those_in_force() {
    let switch = Switch::new();
    let registry = registry(&switch, None);
    let in_force = registry.holdings(plan(&[day(1000)], Unreachable::Share));
    assert_eq!(passing(&registry, &in_force, 10).await, 10);
    // A configuration that is refused in the end.
    drop(registry.holdings(plan(&[day(2000)], Unreachable::Share)));
    let again = registry.holdings(plan(&[day(1000)], Unreachable::Share));
    assert!(Arc::ptr_eq(&in_force, &again));
    switch.heard.lock().clear();
    registry.give_back();
    comes_true("they are given back", || switch.spent("day") == 10).await;
}

#[tokio::test]
async fn a_tenant_with_very_many_limits_tells_of_them_in_parts() {
    let switch = Switch::new();
    let registry = registry(&switch, None);
    let limits: Vec<Limit> = (0..500).map(|n| rate(&format!("route-{n}"), 100_000)).collect();
    let holdings = registry.holdings(plan(&limits, Unreachable::Share));
    // Accounts begin empty.
    let places = holdings.places(|_| true);
    for place in &places {
        let one = std::slice::from_ref(place);
        while !matches!(
            decide(&[Applying::new(&holdings, one)], 1, false, registry.node()).await,
            Decision::Admitted { .. }
        ) {}
    }
    registry.give_back();
    for limit in &limits {
        comes_true(&limit.key, || switch.spent(&format!("{}", limit.key)) >= 1).await;
    }
    let most = switch.heard.lock().iter().map(|exchange| exchange.accounts.len()).max();
    assert!(most <= Some(40), "{most:?}");
}
