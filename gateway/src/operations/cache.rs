//! `/cache`: what the cache holds, for each tenant.

use http::StatusCode;
use serde_json::json;

use super::{Answer, OperationsState, respond};

/// Tenants that are shown; those that hold the most.
const SHOWN: usize = 100;

pub(super) fn get(state: &OperationsState) -> Answer {
    let storage = &state.cache.storage;
    let mut tenants = storage.partitions();
    tenants.sort_by_key(|partition| std::cmp::Reverse(partition.bytes()));
    let shown: Vec<_> = tenants
        .iter()
        .take(SHOWN)
        .map(|partition| {
            let counts = partition.counts();
            json!({
                "tenant": partition.tenant(), "bytes": counts.bytes, "keys": counts.keys,
                "evictions": counts.evictions, "budget_bytes": partition.budget(),
            })
        })
        .collect();
    let answer = json!({
        "bytes": storage.stored_bytes(), "budget_bytes": storage.budget(), "tenants": tenants.len(), "largest": shown,
    });
    respond::json(StatusCode::OK, &answer)
}
