//! What the response cache has to say, beside what is counted for each request.

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed};

use prometheus::proto::MetricFamily;
use seiketsu_cache::storage::Counts;

use super::{family::Family, tenants::TenantsSum};
use crate::{cache::Cache, telemetry::names};

pub(super) fn families(cache: &Cache, tenants: &TenantsSum) -> Vec<MetricFamily> {
    let mut bytes = Family::gauge(names::CACHE_STORED_BYTES);
    let mut keys = Family::gauge(names::CACHE_STORED_KEYS);
    let mut evictions = Family::counter(names::CACHE_EVICTIONS);
    let mut budget = Family::gauge(names::CACHE_BUDGET);
    let mut files = Family::gauge(names::CACHE_FILE_BYTES);
    let mut lent = Family::gauge(names::CACHE_LENT_BYTES);
    let mut purges = Family::counter(names::CACHE_PURGES);
    let mut folded = Family::counter(names::CACHE_PURGES_FOLDED);
    let mut untold = Family::counter(names::CACHE_PURGES_UNTOLD);
    let mut heard = Family::gauge(names::CACHE_PURGES_HEARD);
    let mut background = Family::counter(names::CACHE_BACKGROUND);
    for (tenant, counts) in by_tenant(cache, tenants) {
        bytes.add(&[&tenant], counts.bytes as f64);
        keys.add(&[&tenant], counts.keys as f64);
        evictions.add(&[&tenant], counts.evictions as f64);
    }
    budget.add(&[], cache.storage.budget() as f64);
    files.add(&[], cache.storage.twin_bytes() as f64);
    cache.storage.sweep_lent();
    lent.add(&[], cache.storage.lent_bytes() as f64);
    let counters = &cache.purging.counters;
    for (by, count) in [
        ("this_node", &counters.here),
        ("unsafe_request", &counters.by_requests),
        ("other_node", &counters.by_others),
        ("missed", &counters.missed),
    ] {
        purges.add(&[by], count.load(Relaxed) as f64);
    }
    folded.add(&[], counters.folded.load(Relaxed) as f64);
    untold.add(&[], counters.untold.load(Relaxed) as f64);
    heard.add(&[], f64::from(u8::from(cache.purging.hears())));
    let counters = &cache.background.counters;
    for (result, count) in [
        ("answered", &counters.answered),
        ("failed", &counters.failed),
        ("given_up", &counters.given_up),
        ("refused", &counters.refused),
    ] {
        background.add(&[result], count.load(Relaxed) as f64);
    }
    let all = [bytes, keys, evictions, budget, files, lent, purges, folded, untold, heard, background];
    all.into_iter().filter_map(Family::finish).collect()
}

/// Tenants that have a name in the metrics by name, all others together.
fn by_tenant(cache: &Cache, tenants: &TenantsSum) -> HashMap<String, Counts> {
    let mut all: HashMap<String, Counts> = HashMap::new();
    for partition in cache.storage.partitions() {
        let counts = partition.counts();
        if counts == Counts::default() {
            continue;
        }
        let named = tenants.named.iter().any(|tenant| *tenant.name == *partition.tenant());
        let name = if named { partition.tenant() } else { names::OTHER };
        let sum = all.entry(name.to_owned()).or_default();
        sum.bytes += counts.bytes;
        sum.keys += counts.keys;
        sum.evictions += counts.evictions;
    }
    all
}
