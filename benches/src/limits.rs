//! Tenants with four limits each, and a coordinator that is always generous, so that nothing but the decision
//! itself is measured.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use seiketsu_limits::{
    admission::{Applying, Decision, decide_now},
    calendar::Calendar,
    clock::{Clock, Nanos},
    coordinator::{Answer, Coordinator, CoordinatorError, Exchange, Outcome, Pace},
    holdings::{Holdings, Kind, Limit, Places, Plan, Unreachable},
    node::Node,
    terms::Bucket,
};
use tokio::runtime::Handle;

/// Gives whatever is wanted, and much more, for a day.
#[derive(Debug)]
struct Generous;

#[async_trait]
impl Coordinator for Generous {
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        let outcome = Outcome::Granted { tokens: 1 << 40, ends_in: Duration::from_hours(24) };
        // Some moment: the period of a quota is whatever it lies in.
        Ok(exchange
            .accounts
            .iter()
            .map(|_| Answer { outcome, pace: Pace::default(), left: 1 << 40, now: 1_760_000_000_000_000 })
            .collect())
    }

    fn exchange_now(&self, exchange: &Exchange) -> Option<Result<Vec<Answer>, CoordinatorError>> {
        let mut future = Box::pin(self.exchange(exchange));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(result) => Some(result),
            std::task::Poll::Pending => None,
        }
    }

    fn live(&self) -> u64 {
        3
    }
}

/// The limits of many tenants.
#[derive(Debug)]
pub struct Tenants {
    node: Arc<Node>,
    all: Vec<Arc<Holdings>>,
    /// The same for all.
    places: Places,
}

impl Tenants {
    /// So many tenants that nobody has asked for yet. The runtime must go on for as long as they do.
    pub fn idle(count: usize, runtime: &Handle) -> Self {
        let node = Node::start(Arc::new(Generous), None, "bench", Clock::new(), runtime);
        let names: [Arc<str>; 4] = ["rate", "day", "month", "orders-rate"].map(Arc::from);
        let bucket = Bucket::new(1000, Duration::from_mins(1), 100).unwrap_or_else(|error| panic!("{error}"));
        let (days, months) = (calendar(Calendar::days("UTC")), calendar(Calendar::months("UTC", 1)));
        let kinds = [
            Kind::Bucket(bucket),
            Kind::Quota { limit: 100_000, calendar: days },
            Kind::Quota { limit: 1_000_000, calendar: months },
            Kind::Bucket(bucket),
        ];
        let tenants = (0..count).map(|number| {
            let limits = names.iter().zip(&kinds);
            let limits = limits.map(|(name, kind)| Limit { name: name.clone(), key: name.clone(), kind: kind.clone() });
            let plan = Plan {
                tenant: format!("tenant-{number:06}").into(),
                revision: 1,
                limits: limits.collect(),
                unreachable: Unreachable::Share,
            };
            Holdings::new(plan, &node)
        });
        let mut tenants: Vec<_> = tenants.collect();
        // No two that follow each other lie side by side: no cache can guess which is next.
        fastrand::Rng::with_seed(7).shuffle(&mut tenants);
        let places = tenants.first().map(|tenant| tenant.places(|_| true)).unwrap_or_default();
        Self { node, all: tenants, places }
    }

    /// Gives each of them its leases.
    pub fn warm(&self) {
        for tenant in &self.all {
            let applying = [self.applying(tenant)];
            let mut now = std::pin::pin!(seiketsu_limits::admission::decide(&applying, 1, false, &self.node));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(now.as_mut().poll(&mut context).is_ready(), "the coordinator answers at once");
        }
    }

    fn applying<'a>(&'a self, tenant: &'a Arc<Holdings>) -> Applying<'a> {
        Applying::new(tenant, &self.places)
    }

    /// What time it is: a request reads the clock once, whatever limits there are.
    pub fn now(&self) -> Nanos {
        self.node.clock().now()
    }

    /// Decides about a request of this tenant, by what is at hand. What limited a request is held until it ends.
    pub fn decide(&self, tenant: usize, now: Nanos) -> Option<Arc<Holdings>> {
        let tenant = &self.all[tenant];
        let decision = decide_now(&[self.applying(tenant)], 1, false, &self.node, now);
        matches!(decision, Some(Decision::Admitted { .. })).then(|| Arc::clone(tenant))
    }
}

fn calendar<E: std::fmt::Display>(calendar: Result<Calendar, E>) -> Calendar {
    calendar.unwrap_or_else(|error| panic!("{error}"))
}
