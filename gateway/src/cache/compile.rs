//! What a route's settings for the cache come to.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use http::HeaderName;
use seiketsu_cache::{
    freshness::Heuristic,
    reuse::Windows,
    storage::{Partition, Storage},
    storing::Policy,
};
use seiketsu_config::{
    cache,
    layers::Effective,
    tenant::{Route, Tenant},
    values::{self, PathPattern, Span},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::request::is_written_by_gateway;

/// The cache of a tenant.
#[derive(Debug)]
pub(crate) struct TenantCache {
    pub(crate) partition: Arc<Partition>,
    /// Bytes that the tenant may have at most.
    memory: u64,
}

/// The cache of a route.
#[derive(Debug)]
pub(crate) struct CompiledCache {
    pub(crate) partition: Arc<Partition>,
    pub(crate) policy: Policy,
    /// Tells apart what other settings would have made of the same request.
    pub(crate) settings: [u8; 16],
    pub(crate) client_directives: bool,
    pub(crate) sort_query: bool,
    pub(crate) max_object: usize,
    pub(crate) collapse: Duration,
    /// Fields of requests that are renamed to these: what the client sends under them does not reach the upstream.
    renamed_to: Box<[HeaderName]>,
}

/// The settings that may change what an upstream gets to see of a request, and so what it answers, or for how long its
/// answer is good. A change of any other empties nothing: least of all in an outage, when operators change deadlines,
/// limits and how long stale responses may be served.
#[derive(Serialize)]
struct Identity<'a> {
    route: &'a str,
    /// A transform takes parameters from it.
    path: &'a PathPattern,
    upstream: &'a str,
    canary: Option<&'a str>,
    transform: Option<&'a seiketsu_config::policy::Transform>,
    request_headers: &'a seiketsu_config::layers::HeaderEntries,
    auth: &'a seiketsu_config::policy::Auth,
    ttl: Option<Span>,
    sort_query: bool,
    targeted_fields: &'a [values::HeaderName],
}

/// The cache of a tenant, if any of its routes uses it. What is stored is not touched: nobody knows yet whether these
/// settings will be in force.
pub(crate) fn tenant(
    storage: &Arc<Storage>,
    tenant: &Tenant,
    of_tenant: &Effective,
    of_routes: &[Arc<Effective>],
) -> Option<TenantCache> {
    let uses = |effective: &Arc<Effective>| effective.cache.as_ref().is_some_and(|cache| cache.enabled);
    if storage.budget() == 0 || !of_routes.iter().any(uses) {
        return None;
    }
    of_routes.iter().filter(|effective| uses(effective)).for_each(|effective| compare(storage, effective));
    let memory = of_tenant.cache.as_ref().and_then(|cache| cache.memory).unwrap_or(cache::Cache::DEFAULT_MEMORY);
    Some(TenantCache { partition: storage.partition(tenant.id.as_str(), memory.get()), memory: memory.get() })
}

impl TenantCache {
    /// Now that its tenant is in force as it was compiled.
    pub(crate) fn put_in_force(&self) {
        self.partition.set_budget(self.memory);
    }
}

/// Says, once, that no node of this size stores what a route would let it store.
fn compare(storage: &Storage, effective: &Effective) {
    static SAID: Once = Once::new();
    let Some(wanted) = effective.cache.as_ref().map(|cache| cache.max_object) else { return };
    let largest = storage.largest();
    if wanted.get() > largest {
        SAID.call_once(|| {
            tracing::warn!(
                max_object = %wanted,
                largest_body = largest,
                "responses as large as `max_object` of a route allows are never stored: the node's `cache.memory` is for \
                 bodies of at most a sixteenth of it"
            );
        });
    }
}

impl CompiledCache {
    pub(crate) fn compile(tenant: Option<&TenantCache>, route: &Route, effective: &Effective) -> Option<Self> {
        let cache = effective.cache.as_ref().filter(|cache| cache.enabled)?;
        Some(Self {
            partition: tenant?.partition.clone(),
            policy: Policy {
                targets: cache.targeted_fields.iter().map(|name| HeaderName::clone(name.get())).collect(),
                heuristic: Heuristic { lifetime: cache.ttl.map(|ttl| ttl.get().as_secs()) },
                stale: Windows {
                    while_revalidate: cache.stale_while_revalidate.get().as_secs(),
                    if_error: cache.stale_if_error.get().as_secs(),
                },
            },
            settings: settings(route, effective, cache),
            client_directives: cache.client_directives,
            sort_query: cache.sort_query,
            max_object: cache.max_object.as_usize(),
            collapse: cache.collapse.get(),
            renamed_to: effective.headers.request.rename.values().map(|to| to.value.get().clone()).collect(),
        })
    }
}

impl CompiledCache {
    /// Whether a response that depends on this field of requests depends on something that the client has not sent.
    pub(crate) fn writes(&self, name: &HeaderName) -> bool {
        is_written_by_gateway(name) || self.renamed_to.contains(name)
    }
}

fn settings(route: &Route, effective: &Effective, cache: &cache::Cache) -> [u8; 16] {
    let identity = Identity {
        route: route.id.as_str(),
        path: &route.r#match.path,
        upstream: route.upstream.as_str(),
        canary: route.canary.as_ref().map(|canary| canary.upstream.as_str()),
        transform: effective.transform.as_ref().map(|transform| &*transform.value),
        request_headers: &effective.headers.request,
        auth: &effective.auth.value,
        ttl: cache.ttl,
        sort_query: cache.sort_query,
        targeted_fields: &cache.targeted_fields,
    };
    // Settings can always be written: they were read from the same form.
    let digest = Sha256::digest(serde_json::to_vec(&identity).unwrap_or_default());
    digest.first_chunk().copied().unwrap_or_default()
}
