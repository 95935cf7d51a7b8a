//! Which limits apply to which requests, worked out once for each tenant.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use http::HeaderName;
use seiketsu_config::{
    layers::{Effective, TenantLimits as Merged},
    limits::{self, Concurrency, KeyedLimit, LimitKey, Quotas, Rate, TokenBucket},
    tenant::{Route, Tenant},
    values::Id,
};
use seiketsu_limits::{
    calendar::{Calendar, CalendarError},
    holdings::{Holdings, Kind, Limit, Place, Places, Plan, Unreachable},
    registry::{KeyedHoldings, Registry},
    terms::{Bucket, BucketError},
};

use super::{
    Limits,
    refusals::{Counts, Label, Scope},
};

/// Why limits cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub enum LimitsCompileError {
    #[error("limits: rate: {0}")]
    Bucket(#[from] BucketError),
    #[error("limits: calendar: {0}")]
    Calendar(#[from] CalendarError),
}

/// What all limits of a tenant say, in short, and the revision since which they do. What counts takes no limits
/// from a lower one ([`Exchange`](seiketsu_limits::coordinator::Exchange)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since {
    pub(crate) revision: u64,
    says: u64,
}

/// The limits of a tenant, its routes and its consumers; none if nothing is limited.
#[derive(Debug)]
pub(crate) struct TenantLimits {
    pub(crate) holdings: Arc<Holdings>,
    /// Of each limit of the holdings.
    pub(crate) labels: Box<[Label]>,
    consumers: HashMap<Id, PlacesBy>,
}

/// The limits of one route.
#[derive(Debug, Default)]
pub(crate) struct RouteLimits {
    /// The tenant's and the route's own.
    pub(crate) places: PlacesBy,
    pub(crate) keyed: Box<[Keyed]>,
    pub(crate) cost: u64,
    /// Whether requests that the upstream fails count.
    pub(crate) count_failures: bool,
}

/// Places of limits, for what they apply to.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacesBy {
    pub(crate) requests: Places,
    /// For requests to become WebSockets: until the upstream has agreed, they are requests like any other.
    pub(crate) websockets: Places,
}

impl PlacesBy {
    fn new(limits: impl IntoIterator<Item = (Place, Label)>) -> Self {
        let mut places = Self::default();
        for (place, label) in limits {
            match label.counts {
                Counts::Rate | Counts::Day | Counts::Month => {
                    places.requests.push(place);
                    places.websockets.push(place);
                }
                Counts::Requests => {
                    places.requests.push(place);
                    places.websockets.push(place.until_upgrade());
                }
                Counts::WebSockets => places.websockets.push(place),
            }
        }
        places
    }

    pub(crate) fn of(&self, websocket: bool) -> &Places {
        if websocket { &self.websockets } else { &self.requests }
    }
}

/// A limit for each value of a key.
#[derive(Debug)]
pub(crate) struct Keyed {
    pub(crate) by: By,
    pub(crate) holdings: Arc<KeyedHoldings>,
    /// Of each limit of the holdings.
    pub(crate) labels: Box<[Label]>,
    pub(crate) places: PlacesBy,
}

/// What tells callers apart.
#[derive(Debug)]
pub(crate) enum By {
    Consumer,
    Address,
    Header(HeaderName),
    Claim(Box<str>),
}

impl TenantLimits {
    /// The limits that hold for this consumer only.
    pub(crate) fn of_consumer(&self, consumer: &str) -> Option<&PlacesBy> {
        if self.consumers.is_empty() { None } else { self.consumers.get(consumer) }
    }
}

impl Since {
    /// `former` is what was in force before.
    pub(crate) fn of(
        revision: u64,
        tenant: &Tenant,
        of_tenant: &Effective,
        effective: &[Arc<Effective>],
        former: Option<Self>,
    ) -> Self {
        let says = says(tenant, of_tenant, effective);
        match former {
            Some(former) if former.says == says => former,
            _ => Self { revision, says },
        }
    }

    /// Whether these limits cannot take the place of those in force.
    pub(crate) fn is_below(self, in_force: Self) -> bool {
        self.revision < in_force.revision && self.says != in_force.says
    }
}

/// A hash of all that stands in an account of the tenant, in whichever layer and order it is written.
fn says(tenant: &Tenant, of_tenant: &Effective, effective: &[Arc<Effective>]) -> u64 {
    fn hash(limit: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        limit.hash(&mut hasher);
        hasher.finish()
    }
    let merged = &of_tenant.limits;
    let (rate, quotas) = (merged.bucket(), (merged.daily(), merged.monthly()));
    let own = hash((
        (rate, quotas, merged.concurrent_requests(), merged.websockets()),
        (&merged.calendar.value, merged.unreachable.value),
    ));
    let keyed = merged.keyed().map(hash);
    let of_routes = tenant.routes.iter().zip(effective).filter_map(|(route, effective)| {
        let limits = effective.route_limits.as_deref()?;
        let sum = limits.keyed.iter().map(|limit| hash((&route.id, limit))).fold(0, u64::wrapping_add);
        Some(hash((&route.id, limits.rate, limits.quotas, limits.concurrency)).wrapping_add(sum))
    });
    let of_consumers = tenant.consumers.iter().filter_map(|consumer| Some(hash((&consumer.id, consumer.limits?))));
    // A sum, so that the order does not matter.
    keyed.chain(of_routes).chain(of_consumers).fold(own, u64::wrapping_add)
}

/// Collects the limits of one tenant.
struct Collector<'a> {
    limits: Vec<(Limit, Label)>,
    merged: &'a Merged,
}

/// Whose limits are collected: what their names and those of their accounts begin with.
#[derive(Debug, Clone, Copy)]
struct Whose<'a> {
    scope: Scope,
    name: &'a str,
    key: &'a str,
}

/// The claims that limits tell callers apart by.
pub(crate) fn claims<'a>(of_tenant: &'a Effective, effective: &'a [Arc<Effective>]) -> Vec<&'a str> {
    let of_routes = effective.iter().filter_map(|effective| effective.route_limits.as_deref());
    let keyed = of_tenant.limits.keyed().chain(of_routes.flat_map(|limits| &limits.keyed));
    let mut claims: Vec<&str> = keyed
        .filter_map(|limit| match &limit.by {
            LimitKey::Claim(claim) => Some(claim.as_str()),
            _ => None,
        })
        .collect();
    claims.sort_unstable();
    claims.dedup();
    claims
}

/// Works out the limits of a tenant, and of each of its routes in their order. `effective` are the merged
/// settings of the routes.
pub(crate) fn tenant(
    limits: &Limits,
    revision: u64,
    tenant: &Tenant,
    of_tenant: &Effective,
    effective: &[Arc<Effective>],
) -> Result<(Option<TenantLimits>, Vec<RouteLimits>), LimitsCompileError> {
    let merged = &of_tenant.limits;
    let mut all = Collector { limits: Vec::new(), merged };
    let whose = Whose { scope: Scope::Tenant, name: "", key: "" };
    let own = all.amounts(whose, merged.bucket(), merged.daily(), merged.monthly())?;
    let own = own.start..all.concurrency(whose, merged.concurrent_requests(), merged.websockets()).end;
    let mut of_routes = Vec::with_capacity(tenant.routes.len());
    for (route, effective) in tenant.routes.iter().zip(effective) {
        of_routes.push(match effective.route_limits.as_deref() {
            Some(limits) => all.route(route, limits)?,
            None => 0..0,
        });
    }
    let mut of_consumers = Vec::new();
    for consumer in &tenant.consumers {
        if let Some(limits) = &consumer.limits {
            let key = format!("consumer/{}/", consumer.id);
            let whose = Whose { scope: Scope::Consumer, name: "consumer-", key: &key };
            let range = all.all(whose, limits.rate.as_ref(), &limits.quotas, &limits.concurrency)?;
            of_consumers.push((consumer.id.clone(), range));
        }
    }
    let plan_of = |limits: Vec<Limit>| Plan {
        tenant: tenant.id.as_str().into(),
        revision,
        limits,
        unreachable: match merged.unreachable.value {
            limits::Unreachable::Share => Unreachable::Share,
            limits::Unreachable::Allow => Unreachable::Allow,
            limits::Unreachable::Deny => Unreachable::Deny,
        },
    };
    let (all, labels): (Vec<Limit>, Vec<Label>) = all.limits.into_iter().unzip();
    let holdings = (!all.is_empty()).then(|| limits.shared.holdings(plan_of(all)));
    let places = |ranges: &[std::ops::Range<usize>]| match &holdings {
        Some(holdings) => places(holdings, &labels, ranges),
        None => PlacesBy::default(),
    };
    let of_tenant_only = places(std::slice::from_ref(&own));
    let mut routes = Vec::with_capacity(tenant.routes.len());
    for ((route, effective), range) in tenant.routes.iter().zip(effective).zip(of_routes) {
        let mut keyed_limits: Vec<(&str, String, &KeyedLimit)> =
            merged.keyed().map(|limit| ("", String::new(), limit)).collect();
        if let Some(limits) = effective.route_limits.as_deref() {
            keyed_limits
                .extend(limits.keyed.iter().map(|limit| (route.id.as_str(), format!("route/{}/", route.id), limit)));
        }
        let keyed = keyed_limits
            .into_iter()
            // One that sets nothing switches an inherited one off.
            .filter(|(_, _, limit)| !sets_nothing(limit))
            .map(|(scope, key, limit)| keyed(limits, merged, &plan_of, scope, &key, limit))
            .collect::<Result<_, _>>()?;
        routes.push(RouteLimits {
            places: if range.is_empty() { of_tenant_only.clone() } else { places(&[own.clone(), range]) },
            keyed,
            cost: effective.cost(),
            count_failures: effective.count_failures(),
        });
    }
    let consumers = of_consumers.into_iter().map(|(id, range)| (id, places(&[range]))).collect();
    Ok((holdings.map(|holdings| TenantLimits { holdings, labels: labels.into(), consumers }), routes))
}

impl Collector<'_> {
    /// Adds what is set; returns where it stands.
    fn all(
        &mut self,
        whose: Whose<'_>,
        rate: Option<&Rate>,
        quotas: &Quotas,
        concurrency: &Concurrency,
    ) -> Result<std::ops::Range<usize>, LimitsCompileError> {
        let range = self.amounts(whose, rate.and_then(Rate::bucket), daily(quotas), monthly(quotas))?;
        let (requests, websockets) = slots(concurrency);
        Ok(range.start..self.concurrency(whose, requests, websockets).end)
    }

    /// Adds rate and quotas; returns where they stand.
    fn amounts(
        &mut self,
        whose: Whose<'_>,
        bucket: Option<&TokenBucket>,
        daily: Option<u64>,
        monthly: Option<u64>,
    ) -> Result<std::ops::Range<usize>, LimitsCompileError> {
        let start = self.limits.len();
        let calendar = &self.merged.calendar.value;
        let zone = calendar.time_zone.as_str();
        if let Some(bucket) = bucket {
            let kind = Kind::Bucket(Bucket::new(bucket.requests.get(), bucket.per.get(), bucket.burst())?);
            self.add(whose, Counts::Rate, kind);
        }
        if let Some(limit) = daily {
            self.add(whose, Counts::Day, Kind::Quota { limit, calendar: Calendar::days(zone)? });
        }
        if let Some(limit) = monthly {
            let first = u8::try_from(calendar.month_starts_on.get()).unwrap_or(1);
            let kind = Kind::Quota { limit, calendar: Calendar::months(zone, first)? };
            self.add(whose, Counts::Month, kind);
        }
        Ok(start..self.limits.len())
    }

    fn concurrency(
        &mut self,
        whose: Whose<'_>,
        requests: Option<u64>,
        websockets: Option<u64>,
    ) -> std::ops::Range<usize> {
        let start = self.limits.len();
        if let Some(limit) = requests {
            self.add(whose, Counts::Requests, Kind::Slots { limit });
        }
        if let Some(limit) = websockets {
            self.add(whose, Counts::WebSockets, Kind::Slots { limit });
        }
        start..self.limits.len()
    }

    fn route(&mut self, route: &Route, limits: &limits::Limits) -> Result<std::ops::Range<usize>, LimitsCompileError> {
        let (name, key) = (format!("{}-", route.id), format!("route/{}/", route.id));
        let whose = Whose { scope: Scope::Route, name: &name, key: &key };
        self.all(whose, limits.rate.as_ref(), &limits.quotas, &limits.concurrency)
    }

    fn add(&mut self, whose: Whose<'_>, counts: Counts, kind: Kind) {
        // Those of tenants are the same for very many of them.
        let limit = Limit { name: interned(whose.name, counts), key: interned(whose.key, counts), kind };
        self.limits.push((limit, Label { scope: whose.scope, counts }));
    }
}

/// The usual names are made once.
fn interned(prefix: &str, counts: Counts) -> Arc<str> {
    static USUAL: std::sync::LazyLock<[Arc<str>; Counts::ALL.len()]> =
        std::sync::LazyLock::new(|| Counts::ALL.map(|counts| counts.name().into()));
    if prefix.is_empty() { Arc::clone(&USUAL[counts as usize]) } else { format!("{prefix}{}", counts.name()).into() }
}

fn places(holdings: &Holdings, labels: &[Label], ranges: &[std::ops::Range<usize>]) -> PlacesBy {
    let all = holdings.places(|_| true);
    PlacesBy::new(ranges.iter().flat_map(Clone::clone).map(|index| (all[index], labels[index])))
}

fn keyed(
    limits: &Limits,
    merged: &Merged,
    plan_of: &dyn Fn(Vec<Limit>) -> Plan,
    scope: &str,
    key: &str,
    limit: &KeyedLimit,
) -> Result<Keyed, LimitsCompileError> {
    let mut all = Collector { limits: Vec::new(), merged };
    let (name, key) = (format!("{}-", limit.id), format!("{key}keyed/{}/", limit.id));
    let whose = Whose { scope: Scope::Keyed, name: &name, key: &key };
    all.all(whose, limit.rate.as_ref(), &limit.quotas, &limit.concurrency)?;
    let (all, labels): (Vec<Limit>, Vec<Label>) = all.limits.into_iter().unzip();
    let template = plan_of(all);
    let by = match &limit.by {
        LimitKey::Consumer => By::Consumer,
        LimitKey::Address => By::Address,
        LimitKey::Header(name) => By::Header(name.get().clone()),
        LimitKey::Claim(claim) => By::Claim(claim.as_str().into()),
    };
    let registry: &Registry = if matches!(by, By::Address) { &limits.local } else { &limits.shared };
    let holdings = registry.keyed(&format!("{scope}/{}", limit.id).into(), template);
    let places = PlacesBy::new(holdings.places(|_| true).into_iter().zip(labels.iter().copied()));
    Ok(Keyed { by, holdings, labels: labels.into(), places })
}

fn sets_nothing(limit: &KeyedLimit) -> bool {
    let bucket = limit.rate.as_ref().and_then(Rate::bucket);
    let no_quota = daily(&limit.quotas).is_none() && monthly(&limit.quotas).is_none();
    bucket.is_none() && no_quota && slots(&limit.concurrency) == (None, None)
}

fn daily(quotas: &Quotas) -> Option<u64> {
    quotas.daily.as_ref()?.get()
}

fn monthly(quotas: &Quotas) -> Option<u64> {
    quotas.monthly.as_ref()?.get()
}

fn slots(concurrency: &Concurrency) -> (Option<u64>, Option<u64>) {
    let of = |slots: Option<&limits::Slots>| slots.and_then(|slots| slots.get());
    (of(concurrency.requests.as_ref()), of(concurrency.websockets.as_ref()))
}
