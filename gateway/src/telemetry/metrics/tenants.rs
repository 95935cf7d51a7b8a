//! The metrics of tenants: who has a name of their own, and where each is counted.
//!
//! There are places for [`NAMED_TENANTS`] tenants by name and one for all others together. While there
//! are fewer tenants than names, each gets one at once; beyond that, names follow the traffic. A tenant
//! without a name costs a few words of memory and no counters of its own.
//!
//! Counters never go back: what was counted together stays counted together when a tenant gains its
//! name, and the series of a tenant that loses it simply ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    histogram::HistogramSum,
    shard::{Block, FIRST_NAMED, InFlight, OTHER_ROUTES, ROUTES, RouteSlot, Sum},
};
use crate::telemetry::names;

/// Tenants that are named in the metrics at a time.
pub(super) const NAMED_TENANTS: usize = 100;
/// Places that may still be in use by requests of tenants that lost their name.
const SPARE_PLACES: usize = 28;
const OTHER_TENANTS: u16 = 0;
const NO_TENANT: u16 = 1;
const FIRST_PLACE: u16 = 2;
const PLACES: usize = FIRST_PLACE as usize + NAMED_TENANTS + SPARE_PLACES;

/// Names are given and taken at most this often.
const RANK_INTERVAL: Duration = Duration::from_secs(10);
/// A tenant that no configuration has had for this long (twice at most) is forgotten.
const GRACE: Duration = Duration::from_mins(10);

/// The counters of one tenant. Held by the compiled configuration, resolved by
/// [`Metrics::tenant`](super::Metrics::tenant).
pub struct TenantMetrics {
    name: Box<str>,
    place: AtomicU16,
    /// Requests begun without a name: what ranks the tenant among the others.
    unnamed_requests: AtomicU64,
    blocks: Arc<Blocks>,
    tables: Mutex<Vec<Weak<RouteTable>>>,
}

impl std::fmt::Debug for TenantMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantMetrics").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TenantMetrics {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins a request. Neither locks nor allocates, but for the tenant's first request ever.
    pub fn begin(&self) -> InFlight {
        let place = self.place.load(Relaxed);
        if place == OTHER_TENANTS {
            self.unnamed_requests.fetch_add(1, Relaxed);
        }
        self.blocks.get_or_make(place).begin()
    }

    /// Finds the places of the tenant's routes, in the order of `ids`. A route that a configuration
    /// still in use has too keeps its counters. Beyond the first fifty, routes count together.
    pub fn routes<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Arc<RouteTable> {
        let mut tables = self.tables.lock();
        tables.retain(|table| table.strong_count() > 0);
        let live: Vec<_> = tables.iter().filter_map(Weak::upgrade).collect();
        let mut taken = live
            .iter()
            .flat_map(|table| &table.0)
            .fold((1 << FIRST_NAMED) - 1, |taken: u64, route| taken | 1 << route.1.0);
        let place_of = |id: &str| live.iter().flat_map(|table| &table.0).find(|route| *route.0 == *id).map(|r| r.1);
        let mut new_place = || {
            let free = taken.trailing_ones() as usize;
            if free >= ROUTES {
                return RouteSlot(OTHER_ROUTES);
            }
            taken |= 1 << free;
            let free = u8::try_from(free).unwrap_or(OTHER_ROUTES);
            if let Some(block) = self.own_block() {
                block.reset_route(free);
            }
            RouteSlot(free)
        };
        let routes = ids.into_iter().map(|id| (id.into(), place_of(id).unwrap_or_else(&mut new_place)));
        let table = Arc::new(RouteTable(routes.collect()));
        tables.push(Arc::downgrade(&table));
        tables.shrink_to_fit();
        table
    }

    /// Absent while the tenant has no name or has had no request.
    fn own_block(&self) -> Option<&Block> {
        let place = self.place.load(Relaxed);
        (place >= FIRST_PLACE).then(|| self.blocks.get(place)).flatten()
    }

    fn traffic(&self) -> u64 {
        let named = self.own_block().map_or(0, |block| block.sum().total.count());
        self.unnamed_requests.load(Relaxed) + named
    }

    /// Names of the routes that have a place of their own.
    pub(super) fn route_names(&self) -> Vec<Option<Box<str>>> {
        let mut names = vec![None; ROUTES];
        for table in self.tables.lock().iter().filter_map(Weak::upgrade) {
            for (name, slot) in table.0.iter().filter(|(_, slot)| slot.0 != OTHER_ROUTES) {
                names[usize::from(slot.0)] = Some(name.clone());
            }
        }
        names
    }
}

/// The routes of a tenant in one configuration. The configuration holds it for as long as it uses
/// the slots in it.
#[derive(Debug)]
pub struct RouteTable(Box<[(Box<str>, RouteSlot)]>);

impl RouteTable {
    /// Where the `index`th route is counted.
    pub fn slot(&self, index: usize) -> RouteSlot {
        self.0.get(index).map_or(RouteSlot(OTHER_ROUTES), |route| route.1)
    }
}

/// Counters by place, each made when it is first needed.
struct Blocks {
    workers: usize,
    places: [OnceLock<Block>; PLACES],
}

impl Blocks {
    fn get(&self, place: u16) -> Option<&Block> {
        self.places[usize::from(place)].get()
    }

    fn get_or_make(&self, place: u16) -> &Block {
        self.places[usize::from(place)].get_or_init(|| Block::new(self.workers))
    }
}

/// All tenants that are counted.
pub(super) struct Tenants {
    blocks: Arc<Blocks>,
    none: Arc<TenantMetrics>,
    state: Mutex<State>,
}

struct State {
    tenants: HashMap<Box<str>, Entry, foldhash::fast::RandomState>,
    places: Vec<Place>,
    /// Total, upstream and gateway times of places that were emptied.
    retired: [HistogramSum; 3],
    ranked: Instant,
    swept: Instant,
}

struct Entry {
    metrics: Arc<TenantMetrics>,
    /// Traffic up to the last ranking.
    seen: u64,
    /// Recent traffic: each ranking halves what was before.
    score: u64,
    /// No configuration had it when the registry was last swept.
    unused: bool,
}

#[derive(Clone)]
enum Place {
    Free,
    Named(Weak<TenantMetrics>),
    /// Requests of a tenant that lost its name may still be counted here.
    Leaving,
}

/// What is exposed of one tenant.
pub(super) struct NamedSum {
    pub(super) name: Box<str>,
    /// Absent where routes are not told apart.
    pub(super) routes: Option<Vec<Option<Box<str>>>>,
    pub(super) in_flight: usize,
    pub(super) sum: Box<Sum>,
}

/// The state of all tenants at one moment.
pub(super) struct TenantsSum {
    pub(super) tenants: usize,
    pub(super) named: Vec<NamedSum>,
    /// Total, upstream and gateway time, over all tenants.
    pub(super) stages: [HistogramSum; 3],
}

impl Tenants {
    pub(super) fn new(workers: usize, now: Instant) -> Self {
        let blocks = Arc::new(Blocks { workers, places: [const { OnceLock::new() }; PLACES] });
        let none = Arc::new(TenantMetrics::new(names::NONE, NO_TENANT, &blocks));
        let state = State {
            tenants: HashMap::default(),
            places: vec![Place::Free; PLACES - usize::from(FIRST_PLACE)],
            retired: [const { HistogramSum::new() }; 3],
            ranked: now,
            swept: now,
        };
        Self { blocks, none, state: Mutex::new(state) }
    }

    pub(super) fn none(&self) -> &Arc<TenantMetrics> {
        &self.none
    }

    pub(super) fn tenant(&self, id: &str) -> Arc<TenantMetrics> {
        let mut state = self.state.lock();
        if let Some(entry) = state.tenants.get(id) {
            return Arc::clone(&entry.metrics);
        }
        let metrics = Arc::new(TenantMetrics::new(id, OTHER_TENANTS, &self.blocks));
        state.give_name(&metrics);
        let entry = Entry { metrics: Arc::clone(&metrics), seen: 0, score: 0, unused: false };
        state.tenants.insert(id.into(), entry);
        metrics
    }

    /// Sums up, and hands out names anew if it is time to.
    pub(super) fn collect(&self, now: Instant) -> TenantsSum {
        let mut state = self.state.lock();
        if now.duration_since(state.ranked) >= RANK_INTERVAL {
            state.ranked = now;
            state.empty_left_places(&self.blocks);
            state.rank();
        }
        if now.duration_since(state.swept) >= GRACE {
            state.swept = now;
            state.forget_unused();
        }
        let mut sums = TenantsSum { tenants: state.tenants.len(), named: Vec::new(), stages: state.retired.clone() };
        for (place, block) in self.blocks.places.iter().enumerate() {
            let Some(block) = block.get() else { continue };
            let sum = Box::new(block.sum());
            for (stage, part) in sums.stages.iter_mut().zip([&sum.total, &sum.upstream, &sum.gateway]) {
                stage.merge(part);
            }
            let in_flight = block.in_flight();
            let (name, routes) = match place.checked_sub(usize::from(FIRST_PLACE)) {
                None if place == usize::from(NO_TENANT) => (names::NONE.into(), None),
                None => (names::OTHER.into(), None),
                Some(index) => match &state.places[index] {
                    Place::Named(tenant) => match tenant.upgrade() {
                        Some(tenant) => (tenant.name.clone(), Some(tenant.route_names())),
                        None => continue,
                    },
                    Place::Free | Place::Leaving => continue,
                },
            };
            sums.named.push(NamedSum { name, routes, in_flight, sum });
        }
        sums
    }
}

impl TenantMetrics {
    fn new(name: &str, place: u16, blocks: &Arc<Blocks>) -> Self {
        Self {
            name: name.into(),
            place: AtomicU16::new(place),
            unnamed_requests: AtomicU64::new(0),
            blocks: Arc::clone(blocks),
            tables: Mutex::new(Vec::new()),
        }
    }
}

impl State {
    fn named(&self) -> usize {
        self.places.iter().filter(|place| matches!(place, Place::Named(_))).count()
    }

    /// Gives the tenant a name of its own if one can be had.
    fn give_name(&mut self, tenant: &Arc<TenantMetrics>) -> bool {
        if self.named() >= NAMED_TENANTS {
            return false;
        }
        let Some(free) = self.places.iter().position(|place| matches!(place, Place::Free)) else { return false };
        self.places[free] = Place::Named(Arc::downgrade(tenant));
        tenant.place.store(place_number(free), Relaxed);
        true
    }

    fn take_name(&mut self, tenant: &TenantMetrics) {
        let place = tenant.place.swap(OTHER_TENANTS, Relaxed);
        if let Some(index) = usize::from(place).checked_sub(usize::from(FIRST_PLACE)) {
            self.places[index] = Place::Leaving;
        }
    }

    /// Frees the places that nothing is counted into any more. A place is left for a whole interval
    /// first, so that no thread is between finding the place and using it.
    fn empty_left_places(&mut self, blocks: &Blocks) {
        for (index, place) in self.places.iter_mut().enumerate().filter(|(_, p)| matches!(p, Place::Leaving)) {
            if let Some(block) = blocks.get(place_number(index)) {
                if block.in_flight() > 0 {
                    continue;
                }
                let sum = block.sum();
                for (stage, part) in self.retired.iter_mut().zip([&sum.total, &sum.upstream, &sum.gateway]) {
                    stage.merge(part);
                }
                block.reset();
            }
            *place = Place::Free;
        }
    }

    /// Names the tenants with the most traffic of late. One without a name must have twice the traffic
    /// of one that has it to take its place, so that names do not flap.
    fn rank(&mut self) {
        for entry in self.tenants.values_mut() {
            let traffic = entry.metrics.traffic();
            entry.score = entry.score / 2 + traffic.saturating_sub(entry.seen);
            entry.seen = traffic;
        }
        if self.tenants.len() <= self.named() {
            return;
        }
        let (mut named, mut others): (Vec<_>, Vec<_>) = self
            .tenants
            .values()
            .map(|entry| (entry.score, Arc::clone(&entry.metrics)))
            .partition(|(_, tenant)| tenant.place.load(Relaxed) >= FIRST_PLACE);
        others.retain(|(score, _)| *score > 0);
        if others.len() > NAMED_TENANTS {
            others.select_nth_unstable_by_key(NAMED_TENANTS, |(score, _)| std::cmp::Reverse(*score));
            others.truncate(NAMED_TENANTS);
        }
        others.sort_unstable_by_key(|(score, _)| std::cmp::Reverse(*score));
        named.sort_unstable_by_key(|(score, _)| *score);
        let mut losers = named.into_iter();
        for (score, tenant) in others {
            if self.give_name(&tenant) {
                continue;
            }
            let free_places = self.places.iter().any(|place| matches!(place, Place::Free));
            let Some((lowest, loser)) = losers.next().filter(|_| free_places) else { break };
            if score <= 2 * lowest {
                break;
            }
            self.take_name(&loser);
            if let Some(entry) = self.tenants.get_mut(&loser.name) {
                entry.seen = loser.unnamed_requests.load(Relaxed);
            }
            self.give_name(&tenant);
        }
    }

    fn forget_unused(&mut self) {
        let mut forgotten = Vec::new();
        self.tenants.retain(|_, entry| {
            let unused = Arc::strong_count(&entry.metrics) == 1;
            if unused && entry.unused {
                forgotten.push(Arc::clone(&entry.metrics));
                return false;
            }
            entry.unused = unused;
            true
        });
        for tenant in forgotten {
            self.take_name(&tenant);
        }
    }
}

fn place_number(index: usize) -> u16 {
    u16::try_from(index).map_or(OTHER_TENANTS, |index| index + FIRST_PLACE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::telemetry::metrics::shard::Outcome;

    fn requests(tenant: &TenantMetrics, count: u64, route: RouteSlot) {
        for _ in 0..count {
            tenant.begin().finish(&Outcome {
                route,
                status: 200,
                refusal: None,
                total: Duration::from_millis(2),
                upstream: None,
                bytes_in: 0,
                bytes_out: 10,
            });
        }
    }

    fn counted(sums: &TenantsSum, name: &str) -> Option<u64> {
        sums.named.iter().find(|named| *named.name == *name).map(|named| named.sum.total.count())
    }

    #[test]
    fn few_tenants_are_named_from_their_first_request() {
        let start = Instant::now();
        let tenants = Tenants::new(2, start);
        requests(&tenants.tenant("acme"), 3, RouteSlot::NONE);
        requests(&tenants.tenant("acme"), 1, RouteSlot::NONE);
        requests(tenants.none(), 2, RouteSlot::NONE);
        let sums = tenants.collect(start);
        assert_eq!((counted(&sums, "acme"), counted(&sums, names::NONE)), (Some(4), Some(2)));
        assert_eq!((sums.tenants, sums.stages[0].count()), (1, 6));
    }

    #[test]
    fn beyond_the_bound_names_follow_the_traffic_and_nothing_is_lost() {
        let start = Instant::now();
        let tenants = Tenants::new(1, start);
        let handles: Vec<_> = (0..300).map(|n| tenants.tenant(&format!("t{n}"))).collect();
        for tenant in &handles {
            requests(tenant, 1, RouteSlot::NONE);
        }
        let sums = tenants.collect(start);
        assert_eq!(sums.named.len(), NAMED_TENANTS + 1);
        assert_eq!((counted(&sums, "t250"), counted(&sums, names::OTHER)), (None, Some(200)));

        requests(&handles[250], 50, RouteSlot::NONE);
        let open = handles[0].begin();
        tenants.collect(start + RANK_INTERVAL);
        requests(&handles[250], 7, RouteSlot::NONE);
        let sums = tenants.collect(start + RANK_INTERVAL);
        assert_eq!((counted(&sums, "t250"), counted(&sums, names::OTHER)), (Some(7), Some(250)));
        assert_eq!(sums.named.len(), NAMED_TENANTS + 1, "one lost its name for it");

        drop(open);
        let sums = tenants.collect(start + 2 * RANK_INTERVAL);
        assert_eq!(sums.stages[0].count(), 357, "what the loser had counted stays in the sum of all");
    }

    #[test]
    fn a_place_is_not_given_away_while_a_request_is_counted_there() {
        let start = Instant::now();
        let tenants = Tenants::new(1, start);
        let handles: Vec<_> = (0..101).map(|n| tenants.tenant(&format!("t{n}"))).collect();
        let places = |tenants: &Tenants| {
            let state = tenants.state.lock();
            state.places.iter().filter(|place| matches!(place, Place::Leaving)).count()
        };
        let open: Vec<_> = handles.iter().map(|tenant| tenant.begin()).collect();
        requests(&handles[100], 1000, RouteSlot::NONE);
        tenants.collect(start + RANK_INTERVAL);
        assert_eq!(places(&tenants), 1);
        tenants.collect(start + 2 * RANK_INTERVAL);
        assert_eq!(places(&tenants), 1, "its request goes on");
        drop(open);
        tenants.collect(start + 3 * RANK_INTERVAL);
        assert_eq!(places(&tenants), 0);
    }

    #[test]
    fn a_tenant_survives_a_reload_and_is_forgotten_after_the_grace() {
        let start = Instant::now();
        let tenants = Tenants::new(1, start);
        let first = tenants.tenant("acme");
        requests(&first, 5, RouteSlot::NONE);
        let second = tenants.tenant("acme");
        drop(first);
        assert_eq!(counted(&tenants.collect(start + GRACE), "acme"), Some(5));
        drop(second);
        assert_eq!(counted(&tenants.collect(start + 2 * GRACE), "acme"), Some(5), "may come back");
        let sums = tenants.collect(start + 3 * GRACE);
        assert_eq!((counted(&sums, "acme"), sums.tenants), (None, 0));
    }

    #[test]
    fn a_route_keeps_its_counters_over_a_reload_and_a_new_one_begins_at_zero() {
        let start = Instant::now();
        let tenants = Tenants::new(1, start);
        let tenant = tenants.tenant("acme");
        let old = tenant.routes(["echo", "stream"]);
        requests(&tenant, 3, old.slot(0));
        requests(&tenant, 4, old.slot(1));
        let new = tenant.routes(["bytes", "echo"]);
        drop(old);
        requests(&tenant, 1, new.slot(1));
        let newer = tenant.routes(["bytes", "echo", "delay"]);
        let sums = tenants.collect(start);
        let acme = sums.named.iter().find(|named| &*named.name == "acme").unwrap();
        let count = |slot: RouteSlot| acme.sum.requests[usize::from(slot.0)].iter().sum::<u64>();
        assert_eq!((count(newer.slot(1)), count(newer.slot(0)), count(newer.slot(2))), (4, 0, 0));
        let named: Vec<_> = acme.routes.as_ref().unwrap().iter().flatten().map(|name| &**name).collect();
        assert_eq!(named.len(), 3, "{named:?}");
    }

    #[test]
    fn routes_beyond_the_bound_count_together() {
        let tenants = Tenants::new(1, Instant::now());
        let ids: Vec<String> = (0..60).map(|n| format!("r{n}")).collect();
        let table = tenants.tenant("acme").routes(ids.iter().map(String::as_str));
        assert_ne!(table.slot(49), RouteSlot(OTHER_ROUTES));
        assert_eq!((table.slot(50), table.slot(59)), (RouteSlot(OTHER_ROUTES), RouteSlot(OTHER_ROUTES)));
    }
}
