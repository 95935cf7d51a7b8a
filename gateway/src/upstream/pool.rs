//! The endpoints of one upstream, and what is known about them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;
use seiketsu_config::{
    policy::Retries,
    tenant::{Endpoint as EndpointConfig, HostHeader},
    values::HostPort,
};

use super::{
    balance::{self, Choice, EndpointId, Group, Tried},
    breaker::{Breaker, Permit, Refused, Transition},
    clock::Nanos,
    endpoint::{Endpoint, EndpointState},
    health::{Checker, ProbeError},
    outlier,
    peer::{PeerTemplates, PeerTimeouts},
    profile::Profile,
    registry::{Event, EventKind, PoolKey, Shared},
    resolver::Watch,
    retry::{self, Attempt, Budget, Verdict},
    status::{EndpointStatus, PoolStatus},
};

/// What a request says about the endpoint it needs.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// For consistent hashing: [`balance::hash_key`] of what [`Profile::hash_key`] names.
    pub hash_key: Option<u64>,
    pub tried: &'a Tried,
    pub timeouts: PeerTimeouts,
    /// Whether the client speaks HTTP/2, which matters to upstreams of protocol `auto` without TLS.
    pub caller_speaks_http2: bool,
}

/// Where an attempt goes.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Arc<Endpoint>,
    pub peer: Box<HttpPeer>,
}

/// Why there is no endpoint to go to. Means 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    #[error("no address of the upstream is known, or none may be connected to")]
    Unresolved,
    #[error("no endpoint of the upstream is healthy")]
    Unhealthy,
}

/// One upstream as requests see it. Lives as long as its name is configured; settings and endpoints
/// change inside it.
#[derive(Debug)]
pub struct UpstreamPool {
    key: PoolKey,
    shared: Arc<Shared>,
    this: Weak<Self>,
    breaker: Arc<Breaker>,
    budget: Budget,
    cursor: AtomicUsize,
    next_id: AtomicU32,
    view: ArcSwap<View>,
    /// Everything that changes in the background. Never waited for by a request.
    inner: Mutex<Inner>,
}

/// What requests read: replaced whole on every change.
#[derive(Debug)]
struct View {
    profile: Arc<Profile>,
    endpoints: Vec<Arc<Endpoint>>,
    groups: Vec<Group<Arc<Endpoint>>>,
    panic: bool,
    /// When an ejection ends, and with it this view.
    valid_until: Nanos,
}

#[derive(Debug)]
struct Inner {
    profile: Arc<Profile>,
    /// One for each configured endpoint, in their order.
    watches: Vec<Watch>,
    slots: HashMap<EndpointKey, Slot>,
    /// In the order of the configuration.
    endpoints: Vec<Arc<Endpoint>>,
    ejected: HashSet<EndpointId>,
}

/// The host counts too: with TLS, two names on one address are two services.
type EndpointKey = (HostPort, SocketAddr);

#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    /// Runs as long as the slot is there.
    _checker: Option<Checker>,
}

impl UpstreamPool {
    /// A pool without endpoints; [`Self::configure`] gives it some.
    pub(super) fn new(key: PoolKey, shared: &Arc<Shared>, profile: &Arc<Profile>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            key,
            shared: Arc::clone(shared),
            this: this.clone(),
            breaker: Arc::default(),
            budget: Budget::default(),
            // Nodes that start together do not all begin with the same endpoint.
            cursor: AtomicUsize::new(fastrand::usize(..)),
            next_id: AtomicU32::new(0),
            view: ArcSwap::from_pointee(View {
                profile: Arc::clone(profile),
                endpoints: Vec::new(),
                groups: Vec::new(),
                panic: false,
                valid_until: Nanos::MAX,
            }),
            inner: Mutex::new(Inner {
                profile: Arc::clone(profile),
                watches: Vec::new(),
                slots: HashMap::new(),
                endpoints: Vec::new(),
                ejected: HashSet::new(),
            }),
        })
    }

    pub fn key(&self) -> &PoolKey {
        &self.key
    }

    /// The settings in force.
    pub fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.view.load().profile)
    }

    /// Lets a request in, unless the breaker is open or enough are in flight. Hold the permit until the
    /// request has ended.
    pub fn admit(&self) -> Result<Permit, Refused> {
        let now = self.shared.clock.now();
        let (permit, transition) = self.breaker.admit(&self.view.load().profile.config.breaker, now)?;
        self.budget.request(now);
        if let Some(transition) = transition {
            self.breaker_changed(transition);
        }
        Ok(permit)
    }

    /// Chooses an endpoint that the request has not tried, while one is left.
    pub fn pick(&self, selection: &Selection<'_>) -> Result<Picked, NoEndpoint> {
        let endpoint = self.endpoint(selection.tried, selection.hash_key)?;
        let peer = endpoint.peers.peer(&selection.timeouts, selection.caller_speaks_http2);
        Ok(Picked { endpoint, peer })
    }

    pub(super) fn endpoint(&self, tried: &Tried, hash_key: Option<u64>) -> Result<Arc<Endpoint>, NoEndpoint> {
        let now = self.shared.clock.now();
        let mut view = self.view.load();
        if now >= view.valid_until {
            // One request brings the view up to date, the others go on with the old one meanwhile.
            if let Some(mut inner) = self.inner.try_lock() {
                self.publish(&mut inner, now);
            }
            view = self.view.load();
        }
        let choice = Choice { balance: &view.profile.config.balance, hash_key, tried, cursor: &self.cursor, now };
        balance::choose(&view.groups, &choice).cloned().ok_or(if view.endpoints.is_empty() {
            NoEndpoint::Unresolved
        } else {
            NoEndpoint::Unhealthy
        })
    }

    /// Whether an attempt that failed is made again; if so, it counts against the retry budget.
    pub fn may_retry(&self, policy: &Retries, attempt: &Attempt<'_>) -> Verdict {
        retry::decide(policy, attempt, &self.budget, self.shared.clock.now())
    }

    /// Takes new settings and endpoints. What is known about addresses that stay is kept.
    pub(super) fn configure(&self, profile: Arc<Profile>, watches: Vec<Watch>) {
        let mut inner = self.inner.lock();
        inner.profile = profile;
        inner.watches = watches;
        self.update_endpoints(&mut inner);
    }

    /// Takes the addresses that DNS gives now.
    pub(super) fn refresh(&self) {
        self.update_endpoints(&mut self.inner.lock());
    }

    /// Ends all background work. Requests that still hold the pool go on with what it knows.
    pub(super) fn retire(&self) {
        let mut inner = self.inner.lock();
        inner.watches.clear();
        inner.slots.clear();
    }

    fn update_endpoints(&self, inner: &mut Inner) {
        if inner.watches.len() != inner.profile.config.endpoints.len() {
            return;
        }
        let now = self.shared.clock.now();
        let mut before = std::mem::take(&mut inner.slots);
        // Those that are there from the start need no slow start: none has more than the others.
        let up_since = if before.is_empty() { 0 } else { now };
        inner.endpoints.clear();
        let profile = Arc::clone(&inner.profile);
        for (config, watch) in profile.config.endpoints.iter().zip(&inner.watches) {
            for ip in watch.addresses().iter() {
                let address = SocketAddr::new(*ip, config.address.port());
                let key = (config.address.clone(), address);
                if inner.slots.contains_key(&key) {
                    continue;
                }
                let slot = match before.remove(&key) {
                    Some(slot) if Arc::ptr_eq(&slot.endpoint.profile, &profile) => slot,
                    Some(slot) => self.slot(config, address, &profile, Arc::clone(&slot.endpoint.state)),
                    None => {
                        let id = EndpointId(self.next_id.fetch_add(1, Relaxed));
                        self.slot(config, address, &profile, Arc::new(EndpointState::new(id, up_since)))
                    }
                };
                inner.endpoints.push(Arc::clone(&slot.endpoint));
                inner.slots.insert(key, slot);
            }
        }
        self.publish(inner, now);
    }

    fn slot(
        &self,
        config: &EndpointConfig,
        address: SocketAddr,
        profile: &Arc<Profile>,
        state: Arc<EndpointState>,
    ) -> Slot {
        let host = config.address.host();
        let endpoint = Arc::new(Endpoint {
            address,
            authority: config.address.clone(),
            weight: config.weight,
            priority: config.priority,
            region: config.region.clone(),
            zone: config.zone.clone(),
            distance: self.shared.distance(config.region.as_ref(), config.zone.as_ref()),
            host_header: match profile.host_header() {
                HostHeader::Client => None,
                HostHeader::Endpoint => HeaderValue::from_str(&config.address.to_string()).ok(),
                HostHeader::Fixed(value) => Some(value.get().clone()),
            },
            hash_seed: balance::hash_key(format!("{} {address}", config.address).as_bytes()),
            peers: PeerTemplates::new(&self.key, profile, host, address),
            state,
            profile: Arc::clone(profile),
            breaker: Arc::clone(&self.breaker),
            pool: self.this.clone(),
            clock: self.shared.clock.clone(),
        });
        let checker = if let Some(check) = &profile.config.health {
            Some(Checker::start(Arc::clone(&endpoint), check.clone(), &self.shared.runtime))
        } else {
            endpoint.state.health.forget();
            None
        };
        Slot { endpoint, _checker: checker }
    }

    /// Works out anew what requests see.
    fn publish(&self, inner: &mut Inner, now: Nanos) {
        let returned: Vec<_> = inner
            .endpoints
            .iter()
            .filter(|endpoint| inner.ejected.contains(&endpoint.id()) && !endpoint.state.outlier.is_ejected(now))
            .cloned()
            .collect();
        for endpoint in returned {
            inner.ejected.remove(&endpoint.id());
            self.tell(EventKind::Returned { address: endpoint.address });
        }
        let view = View::new(&inner.profile, &inner.endpoints, now);
        if view.panic != self.view.load().panic {
            self.tell(EventKind::Panic(view.panic));
        }
        self.view.store(Arc::new(view));
    }

    pub(super) fn eject(&self, endpoint: &Endpoint, now: Nanos) {
        let mut inner = self.inner.lock();
        let outliers = inner.profile.config.outliers;
        let ejected = inner.endpoints.iter().filter(|e| e.state.outlier.is_ejected(now)).count();
        if endpoint.state.outlier.is_ejected(now) || !outlier::has_room(&outliers, ejected, inner.endpoints.len()) {
            return;
        }
        let until = endpoint.state.outlier.eject(&outliers, now);
        endpoint.state.up_since.store(until, Relaxed);
        inner.ejected.insert(endpoint.id());
        self.tell(EventKind::Ejected {
            address: endpoint.address,
            duration: Duration::from_nanos(until.saturating_sub(now)),
        });
        self.publish(&mut inner, now);
    }

    pub(super) fn health_changed(&self, endpoint: &Endpoint, healthy: bool, error: Option<&ProbeError>) {
        let now = self.shared.clock.now();
        if healthy {
            endpoint.state.up_since.store(now, Relaxed);
        }
        let reason = error.map(ToString::to_string);
        self.tell(EventKind::Health { address: endpoint.address, healthy, reason });
        self.publish(&mut self.inner.lock(), now);
    }

    pub(super) fn breaker_changed(&self, transition: Transition) {
        self.tell(EventKind::Breaker(transition));
    }

    fn tell(&self, kind: EventKind) {
        tracing::info!(upstream = %self.key, event = ?kind, "upstream changed");
        // Nobody may be listening.
        let _ = self.shared.events.send(Event { pool: self.key.clone(), kind });
    }

    /// For `/config` and metrics. Reads what is there, changes nothing.
    pub fn status(&self) -> PoolStatus {
        let now = self.shared.clock.now();
        let view = self.view.load();
        PoolStatus {
            upstream: self.key.to_string(),
            breaker: self.breaker.state(),
            in_flight: self.breaker.in_flight(),
            panic: view.panic,
            endpoints: view.endpoints.iter().map(|endpoint| EndpointStatus::new(endpoint, now)).collect(),
        }
    }
}

impl View {
    fn new(profile: &Arc<Profile>, endpoints: &[Arc<Endpoint>], now: Nanos) -> Self {
        let balance = &profile.config.balance;
        let takes_traffic = || endpoints.iter().filter(|endpoint| endpoint.weight > 0);
        // Usable endpoints and all, by priority.
        let mut levels: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
        let mut groups: BTreeMap<(u8, u8), Vec<Arc<Endpoint>>> = BTreeMap::new();
        for endpoint in takes_traffic() {
            let (usable, all) = levels.entry(endpoint.priority).or_default();
            *all += 1;
            if endpoint.state.is_usable(now) {
                *usable += 1;
                groups.entry((endpoint.priority, endpoint.distance)).or_default().push(Arc::clone(endpoint));
            }
        }
        // A level that is down does not matter while another can carry its load, so their shares add up.
        let usable_share: f64 = levels.values().map(|&(usable, all)| f64::from(usable) / f64::from(all)).sum();
        let panic = !levels.is_empty() && usable_share < profile.config.panic_threshold.as_fraction();
        let groups = if panic {
            vec![Group::new(takes_traffic().cloned().collect(), balance)]
        } else {
            groups.into_values().map(|members| Group::new(members, balance)).collect()
        };
        let valid_until = endpoints
            .iter()
            .map(|endpoint| endpoint.state.outlier.ejected_until())
            .filter(|until| *until > now)
            .min()
            .unwrap_or(Nanos::MAX);
        Self { profile: Arc::clone(profile), endpoints: endpoints.to_vec(), groups, panic, valid_until }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{Method, StatusCode};

    use super::*;
    use crate::upstream::{
        endpoint::Outcome,
        registry::UpstreamRegistry,
        retry::Failure,
        testing::{put, registry, selection},
    };

    const OK: Outcome = Outcome::Status(StatusCode::OK);

    /// Endpoints 127.0.0.1, 127.0.0.2 … with these further fields, and further fields of the upstream.
    fn config(endpoints: &[&str], extra: &str) -> String {
        let endpoints: Vec<_> = endpoints
            .iter()
            .enumerate()
            .map(|(n, more)| format!(r#"{{"address":"127.0.0.{}:80"{more}}}"#, n + 1))
            .collect();
        format!(r#"{{"endpoints":[{}]{extra}}}"#, endpoints.join(","))
    }

    fn setup(endpoints: &[&str], extra: &str) -> (UpstreamRegistry, Arc<UpstreamPool>) {
        let registry = registry();
        let pool = put(&registry, "t", &config(endpoints, extra));
        (registry, pool)
    }

    fn pick(pool: &UpstreamPool) -> Picked {
        pool.pick(&selection(&Tried::default())).unwrap()
    }

    /// Last octets of the endpoints that come up in many picks.
    fn in_use(pool: &UpstreamPool) -> Vec<u8> {
        let mut seen: Vec<_> = (0..200).map(|_| octet(&pick(pool).endpoint)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn octet(endpoint: &Endpoint) -> u8 {
        match endpoint.address.ip() {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        }
    }

    fn endpoint(pool: &UpstreamPool, last_octet: u8) -> Arc<Endpoint> {
        pool.view.load().endpoints.iter().find(|endpoint| octet(endpoint) == last_octet).unwrap().clone()
    }

    fn attempts(pool: &UpstreamPool, last_octet: u8, count: usize, outcome: Outcome) {
        let permit = pool.admit().unwrap();
        for _ in 0..count {
            endpoint(pool, last_octet).begin(&permit).finish(outcome);
        }
    }

    fn set_health(pool: &UpstreamPool, last_octet: u8, healthy: bool) {
        let endpoint = endpoint(pool, last_octet);
        let check = crate::upstream::testing::upstream(
            r#"{"endpoints":[],"health":{"probe":"tcp","healthy_after":1,"unhealthy_after":1}}"#,
        );
        endpoint.state.health.record(healthy, check.health.as_ref().unwrap());
        pool.health_changed(&endpoint, healthy, None);
    }

    #[tokio::test]
    async fn one_request_never_gets_the_same_endpoint_twice_while_another_is_left() {
        let (_registry, pool) = setup(&["", "", r#","priority":1"#], "");
        for _ in 0..50 {
            let mut tried = Tried::default();
            let mut order = Vec::new();
            for _ in 0..3 {
                let picked = pool.pick(&selection(&tried)).unwrap();
                tried.add(picked.endpoint.id());
                order.push(octet(&picked.endpoint));
            }
            assert_eq!(order[2], 3, "the lower priority comes last");
            assert_ne!(order[0], order[1]);
            assert!(pool.pick(&selection(&tried)).is_ok(), "all tried: any will do");
        }
    }

    #[tokio::test]
    async fn the_peer_is_the_address_of_the_endpoint() {
        let (_registry, pool) = setup(&[""], "");
        let picked = pick(&pool);
        assert_eq!(picked.peer._address.as_inet(), Some(&picked.endpoint.address));
    }

    #[tokio::test]
    async fn failing_endpoints_are_set_aside_and_come_back() {
        let (registry, pool) = setup(&["", ""], r#","balance":"round_robin""#);
        let mut events = registry.events();
        attempts(&pool, 1, 4, Outcome::ConnectFailed);
        attempts(&pool, 1, 1, OK);
        attempts(&pool, 1, 4, Outcome::Status(StatusCode::BAD_GATEWAY));
        assert_eq!(in_use(&pool), [1, 2]);
        attempts(&pool, 1, 1, Outcome::Reset);
        assert_eq!(in_use(&pool), [2]);
        let address = endpoint(&pool, 1).address;
        let ejected = events.try_recv().unwrap().kind;
        assert_eq!(ejected, EventKind::Ejected { address, duration: Duration::from_secs(10) });
        assert!(registry.status()[0].endpoints[0].ejected_for_seconds.unwrap() > 9.0);

        pool.shared.clock.advance(Duration::from_secs(10));
        assert_eq!(in_use(&pool), [1, 2]);
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Returned { address });
    }

    #[tokio::test]
    async fn no_more_are_set_aside_than_the_cap_allows() {
        let (registry, pool) = setup(&["", "", "", ""], r#","balance":"round_robin","outliers":{"max_ejected":50}"#);
        for octet in 1..=4 {
            attempts(&pool, octet, 20, Outcome::Timeout);
        }
        let ejected = registry.status()[0].endpoints.iter().filter(|e| e.ejected_for_seconds.is_some()).count();
        assert_eq!(ejected, 2);
        assert_eq!(in_use(&pool), [3, 4]);
    }

    #[tokio::test]
    async fn what_is_known_about_an_address_outlives_a_reload() {
        let (registry, pool) = setup(&["", ""], "");
        attempts(&pool, 1, 5, Outcome::ConnectFailed);
        let before = endpoint(&pool, 1);
        let permit = pool.admit().unwrap();
        let in_flight = before.begin(&permit);

        let again = put(&registry, "t", &config(&[r#","weight":7"#, "", ""], r#","slow_start":"1m""#));
        assert!(Arc::ptr_eq(&pool, &again));
        let after = endpoint(&pool, 1);
        assert_eq!((after.weight, after.id(), after.in_flight()), (7, before.id(), 1));
        assert!(after.state.outlier.is_ejected(pool.shared.clock.now()));
        assert_eq!(registry.status()[0].endpoints[0].failures, 5);
        drop(in_flight);
        assert_eq!(after.in_flight(), 0);

        // Gone and come back is a new beginning.
        put(&registry, "t", r#"{"endpoints":[{"address":"127.0.0.2:80"}]}"#);
        assert_eq!(in_use(&pool), [2]);
        put(&registry, "t", &config(&["", ""], ""));
        assert_ne!(endpoint(&pool, 1).id(), before.id());
    }

    #[tokio::test]
    async fn higher_numbers_are_used_only_while_no_lower_one_is_healthy() {
        let (_registry, pool) = setup(&["", "", r#","priority":5"#, r#","priority":5"#], "");
        assert_eq!(in_use(&pool), [1, 2]);
        set_health(&pool, 1, false);
        assert_eq!(in_use(&pool), [2]);
        set_health(&pool, 2, false);
        assert_eq!(in_use(&pool), [3, 4]);
        set_health(&pool, 1, true);
        assert_eq!(in_use(&pool), [1]);
    }

    #[tokio::test]
    async fn the_nearest_are_preferred() {
        let (_registry, pool) =
            setup(&[r#","region":"us""#, r#","region":"eu","zone":"eu-2""#, r#","region":"eu","zone":"eu-1""#, ""], "");
        assert_eq!(in_use(&pool), [3]);
        set_health(&pool, 3, false);
        assert_eq!(in_use(&pool), [2, 4]);
        set_health(&pool, 2, false);
        set_health(&pool, 4, false);
        // A quarter is left: by default that is panic, see below.
        assert_eq!(in_use(&pool), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn in_panic_health_is_ignored_and_without_it_there_is_no_endpoint() {
        let (registry, pool) = setup(&["", "", ""], "");
        set_health(&pool, 1, false);
        assert_eq!(in_use(&pool), [2, 3]);
        let mut events = registry.events();
        set_health(&pool, 2, false);
        assert_eq!(in_use(&pool), [1, 2, 3]);
        assert!(pool.status().panic);
        assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|event| event.kind == EventKind::Panic(true)));

        let (_registry, pool) = setup(&["", ""], r#","panic_threshold":0"#);
        set_health(&pool, 1, false);
        assert_eq!(in_use(&pool), [2]);
        set_health(&pool, 2, false);
        assert_eq!(pool.pick(&selection(&Tried::default())).unwrap_err(), NoEndpoint::Unhealthy);
    }

    #[tokio::test]
    async fn endpoints_of_weight_zero_take_no_traffic() {
        let (_registry, pool) = setup(&[r#","weight":0"#, ""], "");
        assert_eq!(in_use(&pool), [2]);
    }

    #[tokio::test]
    async fn an_endpoint_that_comes_back_starts_slowly() {
        let (_registry, pool) = setup(&["", ""], r#","slow_start":"100s","balance":"round_robin""#);
        let share = |pool: &UpstreamPool| (0..4_000).filter(|_| octet(&pick(pool).endpoint) == 1).count();
        assert_eq!(share(&pool), 2_000, "at the beginning all are equal");
        set_health(&pool, 1, false);
        assert_eq!(share(&pool), 0);
        set_health(&pool, 1, true);
        pool.shared.clock.advance(Duration::from_secs(20));
        let slow = share(&pool);
        assert!((250..600).contains(&slow), "a fifth of its half, got {slow}");
        pool.shared.clock.advance(Duration::from_secs(80));
        assert_eq!(share(&pool), 2_000);
    }

    #[tokio::test]
    async fn slower_endpoints_get_less() {
        let (_registry, pool) = setup(&["", ""], "");
        let permit = pool.admit().unwrap();
        for (octet, millis) in [(1, 10), (2, 100)] {
            let guard = endpoint(&pool, octet).begin(&permit);
            pool.shared.clock.advance(Duration::from_millis(millis));
            guard.finish(OK);
        }
        assert_eq!(in_use(&pool), [1]);
        let _busy: Vec<_> = (0..20).map(|_| endpoint(&pool, 1).begin(&permit)).collect();
        assert_eq!(in_use(&pool), [2], "load counts as much as latency");
    }

    #[tokio::test]
    async fn consistent_hash_keeps_a_key_on_its_endpoint() {
        let (_registry, pool) = setup(&["", "", ""], r#","balance":{"consistent_hash":"path"}"#);
        let to = |key: u64| {
            let tried = Tried::default();
            let selection = Selection { hash_key: Some(balance::hash_key(&key.to_be_bytes())), ..selection(&tried) };
            octet(&pool.pick(&selection).unwrap().endpoint)
        };
        let before: Vec<_> = (0..300).map(to).collect();
        assert_eq!(before, (0..300).map(to).collect::<Vec<_>>());
        set_health(&pool, 2, false);
        let after: Vec<_> = (0..300).map(to).collect();
        assert!(before.iter().zip(&after).all(|(was, is)| *was == 2 || was == is));
        set_health(&pool, 2, true);
        assert_eq!(before, (0..300).map(to).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_breaker_opens_on_attempts_and_recovers() {
        let extra =
            r#","breaker":{"error_rate":50,"min_requests":4,"open_for":"5s"},"outliers":{"consecutive_failures":0}"#;
        let (registry, pool) = setup(&[""], extra);
        let mut events = registry.events();
        attempts(&pool, 1, 4, Outcome::Timeout);
        assert_eq!(pool.admit().unwrap_err(), Refused::Open);
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Breaker(Transition::Opened));
        pool.shared.clock.advance(Duration::from_secs(5));
        for _ in 0..3 {
            attempts(&pool, 1, 1, OK);
        }
        assert!(pool.admit().is_ok());
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Breaker(Transition::HalfOpened));
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Breaker(Transition::Closed));
    }

    #[tokio::test]
    async fn in_flight_is_bounded_and_given_back_whatever_happens() {
        let (_registry, pool) = setup(&[""], r#","breaker":{"max_concurrent":1}"#);
        let permit = pool.admit().unwrap();
        assert_eq!(pool.admit().unwrap_err(), Refused::TooManyInFlight);
        // The client goes away: no outcome.
        let attempt = pick(&pool).endpoint.begin(&permit);
        assert_eq!(attempt.endpoint().in_flight(), 1);
        drop((attempt, permit));
        assert_eq!(endpoint(&pool, 1).in_flight(), 0);
        assert_eq!(pool.status().endpoints[0].attempts, 0, "and nothing is learnt from it");
        assert!(pool.admit().is_ok());
    }

    #[tokio::test]
    async fn only_the_first_outcome_of_an_attempt_counts() {
        let (_registry, pool) = setup(&[""], "");
        let permit = pool.admit().unwrap();
        let mut attempt = endpoint(&pool, 1).begin(&permit);
        attempt.observe(OK);
        attempt.finish(Outcome::Reset);
        let status = pool.status();
        assert_eq!((status.endpoints[0].attempts, status.endpoints[0].failures), (1, 0));
    }

    #[tokio::test]
    async fn retries_have_a_budget_per_upstream() {
        let (_registry, pool) = setup(&[""], "");
        let attempt = Attempt {
            method: &Method::GET,
            failure: Failure::Connect,
            made: 1,
            may_have_arrived: false,
            replayable: true,
        };
        let granted =
            (0..50).filter(|_| matches!(pool.may_retry(&Retries::default(), &attempt), Verdict::Again(_))).count();
        assert_eq!(granted, 10);
    }

    #[tokio::test]
    async fn doubled_endpoints_count_once() {
        let twice = r#"{"endpoints":[{"address":"localhost:80"},{"address":"localhost:80"}]}"#;
        let pool = put(&registry(), "t", twice);
        assert_eq!(pool.status().endpoints.len(), 1);
    }
}
