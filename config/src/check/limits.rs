//! Limits: what stands at the wrong layer, what limits nothing, and what no request can ever pay. That
//! each number is within its bounds is known since it was read.

use super::{Findings, Rule, forms::is_claim, policies::Place};
use crate::{
    layers::{Effective, Layer, TenantLimits},
    limits::{KeyedLimit, LimitKey, Limits, MOST_KEYED, Quota, Quotas, Rate},
    path::At,
    tenant::{Tenant, TenantHead},
};

pub(super) fn check(at: At<'_>, limits: &Limits, place: Place<'_>, findings: &mut Findings) {
    if matches!(place, Place::Route(..)) {
        if limits.calendar.is_some() {
            findings.add_without_value(at.key("calendar"), Rule::NotForRoutes { what: "the calendar" });
        }
        if limits.unreachable.is_some() {
            let rule = Rule::NotForRoutes { what: "what happens while the coordinator cannot be reached" };
            findings.add_without_value(at.key("unreachable"), rule);
        }
    } else if let Some(cost) = limits.cost {
        findings.add(at.key("cost"), cost, Rule::ForRoutesOnly { what: "the weight of a request" });
    }
    let at = at.key("keyed");
    if limits.keyed.len() > MOST_KEYED {
        let rule = Rule::TooMuch { what: "the number of keyed limits", most: "8" };
        findings.add(at, limits.keyed.len(), rule);
    }
    for (index, limit) in limits.keyed.iter().enumerate() {
        if limits.keyed[..index].iter().any(|before| before.id == limit.id) {
            let rule = Rule::Duplicate { what: "keyed limit", name: limit.id.to_string() };
            findings.add(at.index(index).key("id"), &limit.id, rule);
        }
        keyed(at.index(index), limit, findings);
    }
}

fn keyed(at: At<'_>, limit: &KeyedLimit, findings: &mut Findings) {
    let KeyedLimit { id: _, by, rate, quotas, concurrency } = limit;
    let has_quotas = quotas.daily.is_some() || quotas.monthly.is_some();
    if rate.is_none() && !has_quotas && concurrency.requests.is_none() && concurrency.websockets.is_none() {
        findings.add_without_value(at, Rule::NoLimit);
    }
    match by {
        LimitKey::Address => {
            if has_quotas {
                findings.add_without_value(at.key("quotas"), Rule::NotByAddress { what: "a quota" });
            }
            if let Some(websockets) = concurrency.websockets
                && websockets.get().is_some()
            {
                let rule = Rule::NotByAddress { what: "the number of WebSockets" };
                findings.add_without_value(at.key("concurrency").key("websockets"), rule);
            }
        }
        LimitKey::Claim(claim) if !is_claim(claim) => {
            let rule = Rule::BadForm { what: "the name of a claim", form: "a name, or names with dots between" };
            findings.add(at.key("by").key("claim"), claim, rule);
        }
        LimitKey::Claim(_) | LimitKey::Consumer | LimitKey::Header(_) => {}
    }
}

/// Routes whose requests weigh more than a bucket that they must pay from can ever hold, or than a quota is in
/// all: these would be refused for ever.
pub(super) fn costs(at: At<'_>, tenant: &Tenant, head: &TenantHead, findings: &mut Findings) {
    let routes =
        || tenant.routes.iter().enumerate().filter_map(|(i, route)| Some((i, route.policies.limits.as_ref()?)));
    if routes().all(|(_, limits)| limits.cost() == 1) {
        return;
    }
    let of_tenant = mosts_of_tenant(tenant, &merged(tenant, head));
    for (index, limits) in routes() {
        let cost = limits.cost();
        let own = mosts(limits.rate, limits.quotas, || "the route".to_owned()).chain(mosts_of_keyed(&limits.keyed));
        let smallest = own.chain(of_tenant.iter().cloned()).min_by_key(|most| most.tokens);
        if let Some(Most { tokens, of, limit }) = smallest
            && cost > tokens
        {
            let rule = match of {
                MostOf::Burst => Rule::CostAboveBurst { cost, burst: tokens, limit },
                MostOf::Quota(period) => Rule::CostAboveQuota { cost, quota: tokens, period, limit },
            };
            findings.add(at.index(index).key("policies").key("limits").key("cost"), cost, rule);
        }
    }
}

/// The limits of a tenant as its layers make them.
fn merged(tenant: &Tenant, head: &TenantHead) -> std::sync::Arc<TenantLimits> {
    let mut effective = Effective::built_in().with(&head.defaults, Layer::Defaults);
    if let Some(plan) = tenant.plan.as_ref().and_then(|plan| head.plans.get(plan)) {
        effective = effective.with(plan, Layer::Plan);
    }
    std::sync::Arc::clone(&effective.with(&tenant.policies, Layer::Tenant).limits)
}

/// The most that one limit can ever be asked for at once.
#[derive(Debug, Clone)]
struct Most {
    tokens: u64,
    of: MostOf,
    /// Whose limit it is.
    limit: String,
}

#[derive(Debug, Clone, Copy)]
enum MostOf {
    Burst,
    /// Of this period.
    Quota(&'static str),
}

fn mosts_of_tenant(tenant: &Tenant, limits: &TenantLimits) -> Vec<Most> {
    let quotas = Quotas {
        daily: limits.quotas.daily.as_ref().map(|daily| daily.value),
        monthly: limits.quotas.monthly.as_ref().map(|monthly| monthly.value),
    };
    let consumers = tenant.consumers.iter().filter_map(|consumer| Some((consumer, consumer.limits?)));
    let of_consumers = consumers
        .flat_map(|(consumer, limits)| mosts(limits.rate, limits.quotas, || format!("the consumer {}", consumer.id)));
    mosts(limits.rate.as_ref().map(|rate| rate.value), quotas, || "the tenant".to_owned())
        .chain(mosts_of_keyed(limits.keyed()))
        .chain(of_consumers)
        .collect()
}

fn mosts_of_keyed<'a>(keyed: impl IntoIterator<Item = &'a KeyedLimit>) -> impl Iterator<Item = Most> {
    let keyed = keyed.into_iter();
    keyed.flat_map(|limit| mosts(limit.rate, limit.quotas, || format!("the keyed limit {}", limit.id)))
}

fn mosts(rate: Option<Rate>, quotas: Quotas, whose: impl Fn() -> String) -> impl Iterator<Item = Most> {
    let burst = rate.and_then(|rate| Some((rate.bucket()?.burst(), MostOf::Burst)));
    let quota = |quota: Option<Quota>, period| Some((quota?.get()?, MostOf::Quota(period)));
    let quotas = [quota(quotas.daily, "daily"), quota(quotas.monthly, "monthly")];
    // A quota of nothing is meant to admit nothing.
    let quotas = quotas.into_iter().flatten().filter(|(quota, _)| *quota > 0);
    burst.into_iter().chain(quotas).map(move |(tokens, of)| Most { tokens, of, limit: whose() })
}
