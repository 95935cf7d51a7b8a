//! Redis and gateways have lost what was used of a quota, and it is known elsewhere.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use seiketsu_limits::{
    admission::{Applying, Decision, decide},
    calendar::Calendar,
    clock::Clock,
    coordinator::{
        Coordinator,
        redis::{
            RedisCoordinator,
            elsewhere::{Elsewhere, Used},
        },
    },
    holdings::{Holdings, Kind, Limit, Plan, Unreachable},
    journal::Journal,
    node::Node,
    registry::Registry,
};
use tokio::runtime::Handle;

use crate::support::{Server, address, until};

const QUOTA: u64 = 100;

/// Says that so much was used, and how much of it by who asks; below 0, nothing. And how often it has said something.
#[derive(Debug, Default)]
struct Known(AtomicI64, AtomicU64, AtomicU64);

#[async_trait]
impl Elsewhere for Known {
    async fn used(&self, tenant: &str, since: u64) -> Option<Used> {
        assert_eq!((tenant, since), ("acme", period().1));
        let in_all = u64::try_from(self.0.load(Ordering::Relaxed)).ok()?;
        self.1.fetch_add(1, Ordering::Relaxed);
        Some(Used { in_all, by_us: self.2.load(Ordering::Relaxed) })
    }
}

fn known(used: i64) -> Arc<Known> {
    Arc::new(Known(used.into(), AtomicU64::new(0), AtomicU64::new(0)))
}

struct Gateway {
    registry: Arc<Registry>,
    coordinator: Arc<RedisCoordinator>,
    holdings: Arc<Holdings>,
    _folder: tempfile::TempDir,
}

fn calendar() -> Calendar {
    Calendar::months("UTC", 1).unwrap()
}

/// Its id, when it began and when it ends.
fn period() -> (String, u64, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let period = calendar().period(now.try_into().unwrap());
    (period.id.to_string(), period.starts, period.ends)
}

impl Gateway {
    /// Its journal says that former processes took so many.
    fn start(name: &str, server: &Server, elsewhere: Arc<Known>, remembers: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut lines = String::new();
        if remembers > 0 {
            let (id, _, ends) = period();
            writeln!(lines, r#"{{"t":"acme","k":"month:{id}\t{name}.former.0","d":{remembers},"e":{ends}}}"#).unwrap();
        }
        std::fs::write(&path, lines).unwrap();
        let runtime = Handle::current();
        let coordinator = Arc::new(RedisCoordinator::start(address(&server.url()), name.into(), &runtime));
        coordinator.ask(elsewhere, &runtime);
        let journal = Journal::open(&path).unwrap();
        let node = Node::start(coordinator.clone(), Some(journal), name, Clock::new(), &runtime);
        let registry = Arc::new(Registry::new(node));
        runtime.spawn(Registry::remind_after_losses(Arc::downgrade(&registry)));
        let kind = Kind::Quota { limit: QUOTA, calendar: calendar() };
        let limit = Limit { name: "month".into(), key: "month".into(), kind };
        let plan = Plan { tenant: "acme".into(), revision: 1, limits: vec![limit], unreachable: Unreachable::Share };
        let holdings = registry.holdings(plan);
        Self { registry, coordinator, holdings, _folder: folder }
    }

    async fn decide(&self) -> Decision {
        let places = self.holdings.places(|_| true);
        decide(&[Applying::new(&self.holdings, &places)], 1, false, self.registry.node()).await
    }
}

/// How many are admitted before the quota is certainly used up, by all of these in turn.
async fn admitted(gateways: &[&Gateway]) -> u64 {
    for gateway in gateways {
        until("all", async || gateway.coordinator.live() == gateways.len() as u64).await;
    }
    let began = Instant::now();
    let mut admitted = 0;
    let mut used_up = vec![false; gateways.len()];
    while !used_up.iter().all(|used_up| *used_up) {
        assert!(began.elapsed() < Duration::from_mins(1), "{admitted} admitted, and the quota does not end");
        for (gateway, used_up) in gateways.iter().zip(&mut used_up) {
            match gateway.decide().await {
                Decision::Admitted { .. } => admitted += 1,
                // Until the end of the month, or nearly so.
                Decision::Refused { wait, .. } => *used_up = wait > Duration::from_secs(40),
                Decision::Unavailable => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_remembers_is_told_from_elsewhere_once_whoever_asks() {
    let server = Server::start(&[]);
    let known = known(60);
    let gateways = [Gateway::start("one", &server, known.clone(), 0), Gateway::start("two", &server, known, 0)];
    assert_eq!(admitted(&[&gateways[0], &gateways[1]]).await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_remembers_is_a_part_of_it() {
    let server = Server::start(&[]);
    let known = known(60);
    let gateways = [Gateway::start("one", &server, known.clone(), 30), Gateway::start("two", &server, known, 0)];
    assert_eq!(admitted(&[&gateways[0], &gateways[1]]).await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_that_is_remembered_than_known_elsewhere_counts() {
    let server = Server::start(&[]);
    let gateway = Gateway::start("one", &server, known(20), 70);
    assert_eq!(admitted(&[&gateway]).await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_takes_before_it_can_ask_counts_beside_it() {
    let server = Server::start(&[]);
    let gateway = Gateway::start("one", &server, known(60), 0);
    let mut passed = 0;
    while passed == 0 {
        passed += u64::from(matches!(gateway.decide().await, Decision::Admitted { .. }));
    }
    assert_eq!(passed + admitted(&[&gateway]).await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nobody_answers_gateways_go_on_and_it_is_told_later() {
    // In all, and by the gateway that asks, of the ten that it has admitted by then.
    for (in_all, by_us, left) in [(60, 0, 30), (60, 4, 34), (60, 10, 40), (60, 99, 40), (95, 0, 0), (5, 5, 90)] {
        let server = Server::start(&[]);
        let known = known(-1);
        known.2.store(by_us, Ordering::Relaxed);
        let gateway = Gateway::start("one", &server, known.clone(), 0);
        until("connected", async || gateway.coordinator.is_connected()).await;
        let mut passed = 0;
        until("some are admitted", async || {
            passed += u64::from(matches!(gateway.decide().await, Decision::Admitted { .. }));
            passed == 10
        })
        .await;
        known.0.store(in_all, Ordering::Relaxed);
        until("it is asked again", async || known.1.load(Ordering::Relaxed) > 0).await;
        // What is at hand may still be spent, and what is asked for in this moment.
        let more = admitted(&[&gateway]).await;
        let most = if left == 0 { 10 } else { left };
        assert!((left..=most).contains(&more), "{more} after {in_all} of which {by_us} were its own");
    }
}
