//! Compiling one file of tenants: what is new or has changed, and nothing else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use seiketsu_cache::storage::Storage;
use seiketsu_config::{
    error::ConfigErrors,
    layers::SharedLayers,
    load::{Difference, ParsedTenants},
    tenant::{Tenant, TenantHead, Upstream},
    values::Id,
};
use seiketsu_identity::state::IdentityState;

use super::certificates::files_of;
use crate::{
    limits::Limits,
    telemetry::metrics::Metrics,
    tenancy::{
        Snapshot,
        compile::{CompiledTenant, Compiler, Pools},
        snapshot::{ContentHash, TenantEntry},
        tls::{Resolver, TenantTls},
    },
    upstream::{
        pool::UpstreamPool,
        registry::{Owner, PoolKey, Prepared, UpstreamRegistry},
    },
};

/// One file, as it is in force.
pub(super) struct FileInForce {
    pub(super) parsed: ParsedTenants,
    layers: Arc<SharedLayers>,
}

/// What is to become of one file: checked and compiled, ready to be put in force.
#[derive(Default)]
pub(super) struct FileChange {
    /// None where the file is gone.
    pub(super) next: Option<FileInForce>,
    pub(super) difference: Difference,
    /// In the order of `difference.put`.
    pub(super) entries: Vec<TenantEntry<CompiledTenant>>,
    pub(super) prepared: Vec<Prepared>,
    /// Upstreams of what goes, and of what comes.
    pub(super) pools_before: Vec<PoolKey>,
    pub(super) pools: Vec<PoolKey>,
    pub(super) changed: bool,
}

/// Files by their paths.
pub(super) type Files = BTreeMap<PathBuf, FileInForce>;
pub(super) type Changes = BTreeMap<PathBuf, FileChange>;

/// What was read, of each file.
pub(super) type Read = Vec<(PathBuf, Result<ParsedTenants, ConfigErrors>)>;

/// What of a file is compiled again though its text is the same.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refresh<'a> {
    Nothing,
    /// Tenants that use one of these certificate files.
    Certificates(&'a HashSet<PathBuf>),
    /// Tenants that refer to any file, whose content may have changed.
    All,
}

/// What compiling needs of the node.
#[derive(Clone, Copy)]
pub(super) struct FileCompiler<'a> {
    pub(super) upstreams: &'a UpstreamRegistry,
    pub(super) identity: &'a Arc<IdentityState>,
    pub(super) metrics: &'a Metrics,
    pub(super) limits: &'a Limits,
    pub(super) cache: &'a Arc<Storage>,
    pub(super) resolver: &'a Resolver,
    /// What is in force.
    pub(super) snapshot: &'a Snapshot<CompiledTenant>,
}

impl FileCompiler<'_> {
    /// What is to become of each file, and what is wrong with the others.
    pub(super) fn files<'a>(
        &self,
        in_force: &Files,
        read: Read,
        refresh: impl Fn(&Path) -> Refresh<'a>,
    ) -> (Changes, BTreeMap<PathBuf, Vec<String>>) {
        let (mut changes, mut wrong) = (Changes::new(), BTreeMap::new());
        for (path, parsed) in read {
            let change = parsed
                .map_err(|errors| vec![errors.to_string()])
                .and_then(|parsed| self.file(in_force.get(&path), &path, parsed, refresh(&path)));
            match change {
                Ok(change) => {
                    changes.insert(path, change);
                }
                Err(errors) => {
                    wrong.insert(path, errors);
                }
            }
        }
        (changes, wrong)
    }

    /// Compiles what is new or changed in a file.
    fn file(
        &self,
        before: Option<&FileInForce>,
        path: &Path,
        parsed: ParsedTenants,
        refresh: Refresh<'_>,
    ) -> Result<FileChange, Vec<String>> {
        let same_head = before.filter(|before| same_but_for_revision(before.parsed.head(), parsed.head()));
        let layers = match same_head {
            Some(before) => before.layers.clone(),
            None => Arc::new(SharedLayers::new(parsed.head())),
        };
        let difference = difference(before, same_head.is_some(), &parsed, refresh);
        let mut upstreams = Upstreams { registry: self.upstreams, prepared: Vec::new(), keys: Vec::new() };
        let mut errors = Vec::new();
        let owner = Owner::Shared(path.to_string_lossy().into());
        let shared_pools = upstreams.prepare(&owner, &parsed.head().upstreams, &mut errors);
        let mut compiler =
            Compiler::new(self.identity, self.metrics, self.limits, self.cache, parsed.head().revision, path);
        let mut entries = Vec::with_capacity(difference.put.len());
        for tenant in difference.put.iter().map(|number| &parsed.tenants()[*number]) {
            let owner = Owner::Tenant(tenant.id.clone());
            let own_pools = upstreams.prepare(&owner, &tenant.upstreams, &mut errors);
            let former = self.snapshot.tenant(tenant.id.as_str()).map(|former| former.compiled());
            let tls = TenantTls::compile(tenant, former.and_then(|former| former.tls.as_ref()), self.resolver);
            let of_tenant = layers.tenant(tenant);
            let of_routes = tenant.routes.iter().map(|route| of_tenant.for_route(route)).collect();
            let pools = FilePools { own: &own_pools, shared: &shared_pools };
            match compiler.tenant(tenant, tls, &of_tenant, of_routes, &pools, former) {
                Ok(compiled) => {
                    let hash = ContentHash::of(&serde_json::to_vec(&**tenant).unwrap_or_default());
                    entries.push(TenantEntry::new(tenant.id.clone(), tenant.hosts.iter().cloned(), hash, compiled));
                }
                Err(error) if error.is_missing_upstream() && !errors.is_empty() => {}
                Err(error) => errors.push(error.to_string()),
            }
            if errors.len() > 20 {
                break;
            }
        }
        if !errors.is_empty() {
            return Err(errors.into_iter().map(|error| format!("{}: {error}", path.display())).collect());
        }
        let changed = !entries.is_empty()
            || !difference.gone.is_empty()
            || upstreams.prepared.iter().any(Prepared::is_change)
            || before.is_none_or(|before| before.parsed.head().revision != parsed.head().revision);
        Ok(FileChange {
            pools_before: before
                .map(|before| pools_of(path, before.parsed.head(), &difference.gone))
                .unwrap_or_default(),
            pools: upstreams.keys,
            prepared: upstreams.prepared,
            next: Some(FileInForce { parsed, layers }),
            difference,
            entries,
            changed,
        })
    }
}

impl FileChange {
    /// The file is no longer there, and with it all that it had.
    pub(super) fn removal(before: &FileInForce) -> Self {
        let gone = before.parsed.tenants().to_vec();
        Self {
            pools_before: pools_of(before.parsed.origin(), before.parsed.head(), &gone),
            difference: Difference { put: Vec::new(), gone },
            changed: true,
            ..Self::default()
        }
    }

    /// Whether all tenants that it takes away are among these.
    pub(super) fn goes_over_to(&self, put: &HashSet<Id>) -> bool {
        self.difference.gone.iter().all(|tenant| put.contains(&tenant.id))
    }

    /// The tenants that are new or changed.
    pub(super) fn put(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        let parsed = self.next.as_ref().map(|next| &next.parsed);
        parsed.into_iter().flat_map(|parsed| self.difference.put.iter().map(|number| &parsed.tenants()[*number]))
    }
}

/// What has to be compiled, and what this takes the place of.
fn difference(
    before: Option<&FileInForce>,
    same_head: bool,
    parsed: &ParsedTenants,
    refresh: Refresh<'_>,
) -> Difference {
    let before = before.map(|before| &before.parsed);
    if !same_head {
        let gone = before.map(|before| before.tenants().to_vec()).unwrap_or_default();
        return Difference { gone, ..parsed.since(None) };
    }
    let mut difference = parsed.since(before);
    if matches!(refresh, Refresh::Nothing) {
        return difference;
    }
    let changed: HashSet<usize> = difference.put.iter().copied().collect();
    for (number, tenant) in parsed.tenants().iter().enumerate() {
        if refresh.concerns(tenant) && !changed.contains(&number) {
            difference.put.push(number);
            difference.gone.push(tenant.clone());
        }
    }
    difference
}

/// Upstreams that were checked, of one file.
struct Upstreams<'a> {
    registry: &'a UpstreamRegistry,
    prepared: Vec<Prepared>,
    keys: Vec<PoolKey>,
}

impl Upstreams<'_> {
    fn prepare<'u>(
        &mut self,
        owner: &Owner,
        upstreams: impl IntoIterator<Item = (&'u Id, &'u Upstream)>,
        errors: &mut Vec<String>,
    ) -> HashMap<Id, Arc<UpstreamPool>> {
        let mut pools = HashMap::new();
        for (id, upstream) in upstreams {
            let key = PoolKey { owner: owner.clone(), upstream: id.clone() };
            match self.registry.prepare(&key, &Arc::new(upstream.clone())) {
                Ok(ready) => {
                    pools.insert(id.clone(), ready.pool().clone());
                    self.prepared.push(ready);
                    self.keys.push(key);
                }
                Err(error) => errors.push(format!("upstream {key}: {error}")),
            }
        }
        pools
    }
}

/// The upstreams of a file's head and of these of its tenants.
fn pools_of(path: &Path, head: &TenantHead, tenants: &[Arc<Tenant>]) -> Vec<PoolKey> {
    let shared = Owner::Shared(path.to_string_lossy().into());
    let shared = head.upstreams.keys().map(|id| PoolKey { owner: shared.clone(), upstream: id.clone() });
    let own = tenants.iter().flat_map(|tenant| {
        tenant.upstreams.keys().map(|id| PoolKey { owner: Owner::Tenant(tenant.id.clone()), upstream: id.clone() })
    });
    shared.chain(own).collect()
}

impl Refresh<'_> {
    fn concerns(self, tenant: &Tenant) -> bool {
        match self {
            Self::Nothing => false,
            Self::Certificates(files) => files_of(tenant).any(|file| files.contains(file)),
            Self::All => refers_to_files(tenant),
        }
    }
}

/// Finds the pools that a tenant's routes name.
struct FilePools<'a> {
    own: &'a HashMap<Id, Arc<UpstreamPool>>,
    shared: &'a HashMap<Id, Arc<UpstreamPool>>,
}

impl Pools for FilePools<'_> {
    fn pool(&self, upstream: &Id) -> Option<Arc<UpstreamPool>> {
        self.own.get(upstream).or_else(|| self.shared.get(upstream)).cloned()
    }
}

/// A new revision number alone changes no tenant.
fn same_but_for_revision(one: &TenantHead, other: &TenantHead) -> bool {
    one.defaults == other.defaults && one.plans == other.plans && one.upstreams == other.upstreams
}

/// Whether the tenant's meaning depends on files beside its configuration.
fn refers_to_files(tenant: &Tenant) -> bool {
    let certificates = tenant.tls.is_some() || tenant.upstreams.values().any(|upstream| upstream.tls.is_some());
    let keys = tenant.consumers.iter().any(|consumer| !consumer.keys.is_empty());
    let policies = tenant.routes.iter().map(|route| &route.policies).chain([&tenant.policies]);
    certificates
        || keys
        || !tenant.jwt_issuers.is_empty()
        || policies.into_iter().any(|policies| policies.validation.is_some())
}
