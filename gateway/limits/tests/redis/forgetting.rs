//! Redis has lost its data, and gateways have much to tell: of a quota nothing is given twice.

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seiketsu_limits::{
    admission::{Applying, Decision, decide},
    calendar::Calendar,
    clock::Clock,
    coordinator::{Coordinator, redis::RedisCoordinator},
    holdings::{Holdings, Kind, Limit, Plan, Unreachable},
    journal::Journal,
    node::Node,
    registry::Registry,
};
use tokio::runtime::Handle;

use crate::support::{Server, address, until};

const QUOTA: u64 = 20;

/// By former processes of the first gateway.
const TAKEN: u64 = 12;

struct Gateway {
    registry: Arc<Registry>,
    coordinator: Arc<RedisCoordinator>,
    holdings: Arc<Holdings>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    /// Its journal says that former processes took one of the quotas of so many tenants each, and `taken` of
    /// this one's.
    fn start(name: &str, server: &Server, tenants: usize, taken: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let calendar = Calendar::months("UTC", 1).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let period = calendar.period(now.try_into().unwrap());
        let mut lines = String::new();
        let mut add = |tenant: &str, by: u64| {
            let (id, ends) = (period.id, period.ends);
            writeln!(lines, r#"{{"t":"{tenant}","k":"month:{id}\t{name}.former.0","d":{by},"e":{ends}}}"#).unwrap();
        };
        (0..tenants).for_each(|n| add(&format!("tenant-{n}"), 1));
        add("acme", taken);
        std::fs::write(&path, lines).unwrap();
        let runtime = Handle::current();
        let coordinator = Arc::new(RedisCoordinator::start(address(&server.url()), name.into(), &runtime));
        let journal = Journal::open(&path).unwrap();
        let node = Node::start(coordinator.clone(), Some(journal), name, Clock::new(), &runtime);
        let registry = Arc::new(Registry::new(node));
        runtime.spawn(Registry::remind_after_losses(Arc::downgrade(&registry)));
        let limit = Limit { name: "month".into(), key: "month".into(), kind: Kind::Quota { limit: QUOTA, calendar } };
        let plan = Plan { tenant: "acme".into(), revision: 1, limits: vec![limit], unreachable: Unreachable::Share };
        let holdings = registry.holdings(plan);
        Self { registry, coordinator, holdings, _folder: folder }
    }

    async fn decide(&self) -> Decision {
        let places = self.holdings.places(|_| true);
        decide(&[Applying::new(&self.holdings, &places)], 1, false, self.registry.node()).await
    }
}

/// Asks both in turn until the quota is certainly used up. Returns how many were admitted, and how long it took.
async fn ask_both(gateways: &[Gateway]) -> (u64, Duration) {
    let began = Instant::now();
    let mut admitted = 0;
    let mut used_up = vec![false; gateways.len()];
    while !used_up.iter().all(|used_up| *used_up) {
        assert!(began.elapsed() < Duration::from_mins(2), "{admitted} admitted, and the quota does not end");
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
    (admitted, began.elapsed())
}

async fn nothing_is_given_twice(tenants: usize) {
    let server = Server::start(&[]);
    let gateways = [Gateway::start("teller", &server, tenants, TAKEN), Gateway::start("asker", &server, 0, 0)];
    for gateway in &gateways {
        until("both", async || gateway.coordinator.live() == 2).await;
    }
    let (admitted, took) = ask_both(&gateways).await;
    eprintln!("{tenants} entries: {admitted} admitted beside {TAKEN} of {QUOTA}, used up after {took:?}");
    assert_eq!(admitted, QUOTA - TAKEN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_waits_for_those_who_have_much_to_tell() {
    nothing_is_given_twice(40_000).await;
}

/// For longer than leases last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_waits_for_those_who_have_very_much_to_tell() {
    nothing_is_given_twice(200_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_little_to_tell_is_soon_done() {
    let server = Server::start(&[]);
    let gateways = [Gateway::start("teller", &server, 0, TAKEN), Gateway::start("asker", &server, 0, 0)];
    for gateway in &gateways {
        until("both", async || gateway.coordinator.live() == 2).await;
    }
    let (admitted, took) = ask_both(&gateways).await;
    assert_eq!(admitted, QUOTA - TAKEN);
    assert!(took < Duration::from_secs(10), "{took:?}");
}
