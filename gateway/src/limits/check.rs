//! One request: admitted by all limits that apply, or refused by one of them.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use seiketsu_identity::principal::{Principal, PrincipalKind};
use seiketsu_limits::{
    admission::{Admitted, Applying, By as DecidedBy, Decision, decide, decide_now},
    clock::{Clock, Nanos},
    holdings::{Holdings, Place, Places},
};
use smallvec::SmallVec;

use super::{
    Limits,
    compile::{By, Keyed, RouteLimits, TenantLimits},
    refusals::Label,
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What limits made of a request, and what applied to it.
#[derive(Debug)]
pub(crate) struct Limited {
    pub(crate) sets: Sets,
    pub(crate) by: DecidedBy,
    pub(crate) clock: Clock,
    /// How long the decision took.
    pub(crate) waited: Duration,
    /// The limit that refused it.
    pub(crate) refused_by: Option<Arc<str>>,
    /// What the request would have cost.
    pub(crate) cost: u64,
    admitted: Admitted,
    /// Of client addresses, which each node counts for itself.
    admitted_locally: Admitted,
    count_failures: bool,
    is_given_back: bool,
}

type Sets = SmallVec<[(Arc<Holdings>, Places); 2]>;

/// Limits of one plan that apply, and whose they are.
struct Set<'a> {
    /// Those of a tenant are borrowed until it is decided: to count one more who holds them would fetch their memory, and
    /// deciding would wait for that.
    holdings: Cow<'a, Arc<Holdings>>,
    places: &'a [Place],
    /// Of each limit of the holdings.
    labels: &'a [Label],
}

type Applies<'a> = SmallVec<[Set<'a>; 2]>;

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// Nothing is left for so long.
    Refused { wait: Duration, is_slot: bool },
    /// It cannot be told whether the limits allow it.
    Unknown,
}

/// Who is asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) principal: Option<&'a Principal>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) websocket: bool,
}

/// Decides by the client's address, before anything is done to find out who is calling: whoever tries
/// credentials pays for each of them. `limited` tells afterwards what applied, if anything did.
pub(crate) async fn check_address(
    limits: &Limits,
    route: &RouteLimits,
    client: IpAddr,
    websocket: bool,
    limited: &mut Option<Limited>,
) -> Result<(), NotAdmitted> {
    let by_address = || route.keyed.iter().filter(|keyed| matches!(keyed.by, By::Address));
    if by_address().next().is_none() {
        return Ok(());
    }
    let began = limits.local.node().clock().now();
    let mut sets = Applies::new();
    for keyed in by_address() {
        push(&mut sets, Cow::Owned(of_address(keyed, client, began)), keyed.places.of(websocket), &keyed.labels);
    }
    Limited::pass(limited, limits, &mut sets, route, CountedBy::Node, began).await
}

/// Decides by everything else, once it is known who is calling: at once nearly always, else after ten
/// milliseconds at most.
pub(crate) async fn check_caller(
    limits: &Limits,
    tenant: Option<&TenantLimits>,
    route: &RouteLimits,
    asking: Asking<'_>,
    limited: &mut Option<Limited>,
) -> Result<(), NotAdmitted> {
    if tenant.is_none() && route.keyed.is_empty() {
        return Ok(());
    }
    let began = limits.shared.node().clock().now();
    let mut sets = Applies::new();
    if let Some(tenant) = tenant {
        push(&mut sets, Cow::Borrowed(&tenant.holdings), route.places.of(asking.websocket), &tenant.labels);
        let consumer = asking.principal.filter(|principal| is_consumer(principal)).map(Principal::id);
        if let Some(places) = consumer.and_then(|consumer| tenant.of_consumer(consumer)) {
            push(&mut sets, Cow::Borrowed(&tenant.holdings), places.of(asking.websocket), &tenant.labels);
        }
    }
    for keyed in &route.keyed {
        if let Some(holdings) = of_caller(keyed, &asking, began) {
            push(&mut sets, Cow::Owned(holdings), keyed.places.of(asking.websocket), &keyed.labels);
        }
    }
    let result = Limited::pass(limited, limits, &mut sets, route, CountedBy::All, began).await;
    if result.is_err()
        && let Some(limited) = limited
    {
        limited.admitted_locally.refund();
    }
    result
}

/// Who keeps the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CountedBy {
    /// This node for itself.
    Node,
    /// All nodes together, if there are several.
    All,
}

impl Limited {
    fn new(clock: Clock, cost: u64, count_failures: bool) -> Self {
        Self {
            sets: Sets::new(),
            by: DecidedBy::Lease,
            clock,
            waited: Duration::ZERO,
            refused_by: None,
            cost,
            admitted: Admitted::default(),
            admitted_locally: Admitted::default(),
            count_failures,
            is_given_back: false,
        }
    }

    /// Takes what the request costs from all of these, or from none. They are borrowed and emptied: what is moved into a
    /// future is in it twice.
    async fn pass(
        limited: &mut Option<Self>,
        limits: &Limits,
        sets: &mut Applies<'_>,
        route: &RouteLimits,
        counted_by: CountedBy,
        began: Nanos,
    ) -> Result<(), NotAdmitted> {
        if sets.is_empty() {
            return Ok(());
        }
        // By one clock, whoever counts.
        let clock = limits.shared.node().clock();
        let limited = limited.get_or_insert_with(|| Self::new(clock, route.cost, route.count_failures));
        let result = limited.take(limits, sets, route.cost, counted_by, began).await;
        // What was at hand took no time that is worth reading the clock again.
        if limited.by != DecidedBy::Lease {
            limited.waited += Duration::from_nanos(clock.now().saturating_sub(began));
        }
        limited.sets.extend(sets.drain(..).map(|set| (set.holdings.into_owned(), Places::from_slice(set.places))));
        result
    }

    async fn take(
        &mut self,
        limits: &Limits,
        sets: &[Set<'_>],
        cost: u64,
        counted_by: CountedBy,
        now: Nanos,
    ) -> Result<(), NotAdmitted> {
        let is_local = counted_by == CountedBy::Node;
        let node = if is_local { limits.local.node() } else { limits.shared.node() };
        let refundable = is_local || !self.count_failures;
        let applying: SmallVec<[Applying<'_>; 4]> =
            sets.iter().map(|set| Applying::new(&set.holdings, set.places)).collect();
        let decision = match decide_now(&applying, cost, refundable, node, now) {
            Some(decision) => decision,
            // Boxed: few requests wait, and all would carry the room for it.
            None => Box::pin(decide(&applying, cost, refundable, node)).await,
        };
        match decision {
            Decision::Admitted { by, admitted } => {
                if is_local {
                    self.admitted_locally = admitted;
                } else {
                    (self.by, self.admitted) = (by, admitted);
                }
                Ok(())
            }
            Decision::Refused { by, applying, place, wait } => {
                self.by = by;
                if let Some(set) = sets.get(applying) {
                    self.refused_by = set.holdings.limit(place).map(|limit| Arc::clone(&limit.name));
                    if let Some(label) = set.labels.get(place.index()) {
                        limits.refusals.count(*label);
                    }
                }
                Err(NotAdmitted::Refused { wait, is_slot: place.is_slots() })
            }
            Decision::Unavailable => {
                self.by = DecidedBy::Alone;
                Err(NotAdmitted::Unknown)
            }
        }
    }

    /// The upstream has agreed to switch protocols: the request is a WebSocket from here on.
    pub(crate) fn has_upgraded(&mut self) {
        self.admitted.has_upgraded();
        self.admitted_locally.has_upgraded();
    }

    /// The upstream has ended with these fields: trailers, or a head that is all there is. A call of gRPC may have
    /// failed although HTTP says 200.
    pub(crate) fn grpc_ended(&mut self, fields: &HeaderMap) {
        if !self.count_failures && fields.get(GRPC_STATUS).is_some_and(is_failure_of_server) {
            self.give_back();
        }
    }

    /// The request has ended with this status; 0: without any.
    pub(crate) fn ended(&mut self, status: u16) {
        if !self.count_failures && status >= StatusCode::INTERNAL_SERVER_ERROR.as_u16() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        self.admitted.refund_quotas();
        self.is_given_back = true;
    }

    /// What quotas have back of what the request has cost.
    pub(crate) fn given_back(&self) -> u64 {
        if self.is_given_back { self.cost } else { 0 }
    }
}

/// `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`, of
/// <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>.
fn is_failure_of_server(status: &HeaderValue) -> bool {
    matches!(status.as_bytes(), b"2" | b"4" | b"13" | b"14" | b"15")
}

fn push<'a>(sets: &mut Applies<'a>, holdings: Cow<'a, Arc<Holdings>>, places: &'a [Place], labels: &'a [Label]) {
    if !places.is_empty() {
        sets.push(Set { holdings, places, labels });
    }
}

fn is_consumer(principal: &Principal) -> bool {
    !matches!(principal.kind(), PrincipalKind::Anonymous)
}

fn of_address(keyed: &Keyed, client: IpAddr, now: Nanos) -> Arc<Holdings> {
    match client {
        IpAddr::V4(address) => keyed.holdings.of(&address.octets(), now),
        // Whoever has one IPv6 address has a network of them.
        IpAddr::V6(address) => keyed.holdings.of(&address.octets()[..8], now),
    }
}

/// The holdings of whoever is asking, if the key tells.
fn of_caller(keyed: &Keyed, asking: &Asking<'_>, now: Nanos) -> Option<Arc<Holdings>> {
    match &keyed.by {
        By::Address => None,
        By::Consumer => {
            let principal = asking.principal.filter(|principal| is_consumer(principal))?;
            Some(keyed.holdings.of(principal.id().as_bytes(), now))
        }
        By::Header(name) => Some(keyed.holdings.of(asking.headers.get(name)?.as_bytes(), now)),
        By::Claim(claim) => Some(keyed.holdings.of(asking.principal?.claim(claim)?.as_bytes(), now)),
    }
}
