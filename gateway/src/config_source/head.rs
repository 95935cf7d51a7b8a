//! Compiling tenants that stand beside one head, wherever they come from.

use std::{collections::HashMap, path::Path, sync::Arc};

use seiketsu_cache::storage::Storage;
use seiketsu_config::{
    layers::SharedLayers,
    tenant::{Tenant, TenantHead, Upstream},
    values::Id,
};
use seiketsu_identity::state::IdentityState;

use crate::{
    limits::Limits,
    proxy::Shared,
    server::tls::LiveTls,
    telemetry::metrics::Metrics,
    tenancy::{
        Snapshot,
        compile::{CompileError, CompiledTenant, Compiler, Pools},
        snapshot::{ContentHash, TenantEntry},
        tls::{Coming, Resolver, TenantTls},
    },
    upstream::{
        pool::UpstreamPool,
        profile::UpstreamError,
        registry::{Owner, PoolKey, Prepared, UpstreamRegistry},
    },
};

/// What compiling needs of the node.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) upstreams: &'a UpstreamRegistry,
    pub(super) identity: &'a Arc<IdentityState>,
    pub(super) metrics: &'a Metrics,
    pub(super) limits: &'a Limits,
    pub(super) cache: &'a Arc<Storage>,
    pub(super) resolver: &'a Resolver,
    pub(super) coming: &'a Coming,
    /// What is in force.
    pub(super) snapshot: &'a Snapshot<CompiledTenant>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(
        shared: &'a Shared,
        tls: &'a LiveTls,
        resolver: &'a Resolver,
        snapshot: &'a Snapshot<CompiledTenant>,
    ) -> Self {
        Self {
            upstreams: &shared.upstreams,
            identity: &shared.identity,
            metrics: &shared.metrics,
            limits: &shared.limits,
            cache: &shared.cache.storage,
            resolver,
            coming: tls.coming(),
            snapshot,
        }
    }
}

/// Upstreams that cannot be made.
pub(super) type WrongUpstreams = Vec<(Id, UpstreamError)>;

/// Compiles tenants of one head, sharing what they share.
pub(super) struct HeadCompiler<'a> {
    parts: Parts<'a>,
    layers: Arc<SharedLayers>,
    shared: SharedPools,
    compiler: Compiler<'a>,
    /// Upstreams that wait to be put in force: the head's, if they are looked at, and those of tenants.
    pub(super) prepared: Vec<Prepared>,
    pub(super) keys: Vec<PoolKey>,
}

impl<'a> HeadCompiler<'a> {
    /// Looks at the head's upstreams, which are new or may have changed. `origin` is the file that errors name, or what
    /// stands in its place.
    pub(super) fn new(
        parts: Parts<'a>,
        owner: &Owner,
        origin: &Path,
        head: &TenantHead,
        layers: Arc<SharedLayers>,
    ) -> (Self, WrongUpstreams) {
        let mut this = Self::beside(parts, SharedPools::Prepared(HashMap::new()), origin, layers);
        let (pools, wrong) = this.prepare(owner, &head.upstreams);
        this.shared = SharedPools::Prepared(pools);
        (this, wrong)
    }

    /// For a head whose upstreams are in force as they are.
    pub(super) fn of_head_in_force(parts: Parts<'a>, owner: Owner, origin: &Path, layers: Arc<SharedLayers>) -> Self {
        Self::beside(parts, SharedPools::InForce(owner), origin, layers)
    }

    fn beside(parts: Parts<'a>, shared: SharedPools, origin: &Path, layers: Arc<SharedLayers>) -> Self {
        let compiler = Compiler::new(parts.identity, parts.metrics, parts.limits, parts.cache, origin);
        Self { parts, layers, shared, compiler, prepared: Vec::new(), keys: Vec::new() }
    }

    /// Compiles a tenant, whose settings are of this revision. A wrong upstream of its own need not keep it from being
    /// compiled, if no route uses it. Of a tenant that cannot be compiled, nothing waits to be put in force.
    pub(super) fn tenant(
        &mut self,
        tenant: &Arc<Tenant>,
        revision: u64,
    ) -> (WrongUpstreams, Result<Arc<TenantEntry<CompiledTenant>>, CompileError>) {
        let before = (self.prepared.len(), self.keys.len());
        let (own, wrong) = self.prepare(&Owner::Tenant(tenant.id.clone()), &tenant.upstreams);
        let former = self.parts.snapshot.tenant(tenant.id.as_str()).map(|former| former.compiled());
        let tls_before = former.and_then(|former| former.tls.as_ref());
        let tls = TenantTls::compile(tenant, tls_before, self.parts.resolver, self.parts.coming);
        let of_tenant = self.layers.tenant(tenant);
        let of_routes = tenant.routes.iter().map(|route| of_tenant.for_route(route)).collect();
        let pools = PoolsOfTenant { own: &own, shared: &self.shared, registry: self.parts.upstreams };
        self.compiler.revision = revision;
        let compiled = self.compiler.tenant(tenant, tls, &of_tenant, of_routes, &pools, former);
        if compiled.is_err() {
            self.prepared.truncate(before.0);
            self.keys.truncate(before.1);
        }
        let entry = compiled.map(|compiled| {
            let hash = ContentHash::of(&serde_json::to_vec(&**tenant).unwrap_or_default());
            TenantEntry::new(tenant.id.clone(), tenant.hosts.iter().cloned(), hash, compiled)
        });
        (wrong, entry)
    }

    /// The same, but all of it or nothing.
    pub(super) fn whole_tenant(
        &mut self,
        tenant: &Arc<Tenant>,
        revision: u64,
    ) -> Result<Arc<TenantEntry<CompiledTenant>>, Vec<String>> {
        let before = (self.prepared.len(), self.keys.len());
        let (wrong, compiled) = self.tenant(tenant, revision);
        let mut errors: Vec<String> =
            wrong.iter().map(|(id, error)| format!("tenant {}: upstreams.{id}: {error}", tenant.id)).collect();
        match compiled {
            Ok(entry) if errors.is_empty() => return Ok(entry),
            Err(error) if errors.is_empty() || !error.is_missing_upstream() => errors.push(error.to_string()),
            Ok(_) | Err(_) => {}
        }
        self.prepared.truncate(before.0);
        self.keys.truncate(before.1);
        Err(errors)
    }

    fn prepare<'u>(
        &mut self,
        owner: &Owner,
        upstreams: impl IntoIterator<Item = (&'u Id, &'u Upstream)>,
    ) -> (HashMap<Id, Arc<UpstreamPool>>, WrongUpstreams) {
        let (mut pools, mut wrong) = (HashMap::new(), Vec::new());
        for (id, upstream) in upstreams {
            let key = PoolKey { owner: owner.clone(), upstream: id.clone() };
            match self.parts.upstreams.prepare(&key, &Arc::new(upstream.clone())) {
                Ok(ready) => {
                    pools.insert(id.clone(), ready.pool().clone());
                    self.prepared.push(ready);
                    self.keys.push(key);
                }
                Err(error) => wrong.push((id.clone(), error)),
            }
        }
        (pools, wrong)
    }
}

/// The pools of a head's upstreams.
enum SharedPools {
    Prepared(HashMap<Id, Arc<UpstreamPool>>),
    /// All that this owner has.
    InForce(Owner),
}

/// Finds the pools that a tenant's routes name.
struct PoolsOfTenant<'a> {
    own: &'a HashMap<Id, Arc<UpstreamPool>>,
    shared: &'a SharedPools,
    registry: &'a UpstreamRegistry,
}

impl Pools for PoolsOfTenant<'_> {
    fn pool(&self, upstream: &Id) -> Option<Arc<UpstreamPool>> {
        let shared = || match self.shared {
            SharedPools::Prepared(pools) => pools.get(upstream).cloned(),
            SharedPools::InForce(owner) => {
                self.registry.get(&PoolKey { owner: owner.clone(), upstream: upstream.clone() })
            }
        };
        self.own.get(upstream).cloned().or_else(shared)
    }
}
