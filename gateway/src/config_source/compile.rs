//! Compiling one file of tenants: what is new or has changed, and nothing else.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use seiketsu_config::{
    layers::SharedLayers,
    load::ParsedTenants,
    tenant::{Tenant, TenantHead, Upstream},
    values::Id,
};
use seiketsu_identity::state::IdentityState;

use super::watch::is_tenant_file;
use crate::{
    telemetry::metrics::Metrics,
    tenancy::{
        compile::{CompiledTenant, Compiler, Pools},
        snapshot::{Change, ContentHash, TenantEntry},
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
    pub(super) pools: BTreeSet<PoolKey>,
}

/// One file, checked and compiled, ready to be put in force.
pub(super) struct ReadyFile {
    pub(super) in_force: FileInForce,
    pub(super) changes: Vec<Change<CompiledTenant>>,
    pub(super) prepared: Vec<Prepared>,
    pub(super) changed: bool,
}

/// What compiling needs of the node.
#[derive(Clone, Copy)]
pub(super) struct FileCompiler<'a> {
    pub(super) upstreams: &'a UpstreamRegistry,
    pub(super) identity: &'a Arc<IdentityState>,
    pub(super) metrics: &'a Metrics,
}

impl FileCompiler<'_> {
    /// Compiles what is new or changed in a file.
    /// `all`: also tenants that are unchanged but refer to files, whose content may have changed.
    pub(super) fn file(
        &self,
        before: Option<&FileInForce>,
        path: &Path,
        parsed: ParsedTenants,
        all: bool,
    ) -> Result<ReadyFile, Vec<String>> {
        let same_head = before.filter(|before| same_but_for_revision(before.parsed.head(), parsed.head()));
        let layers = match same_head {
            Some(before) => before.layers.clone(),
            None => Arc::new(SharedLayers::new(parsed.head())),
        };
        let mut prepared = Vec::new();
        let mut pools = BTreeSet::new();
        let mut prepare = |key: PoolKey, upstream: &Upstream, prepared: &mut Vec<Prepared>| {
            let ready = self
                .upstreams
                .prepare(&key, &Arc::new(upstream.clone()))
                .map_err(|error| format!("upstream {key}: {error}"))?;
            let pool = ready.pool().clone();
            pools.insert(key);
            prepared.push(ready);
            Ok::<_, String>(pool)
        };
        let mut errors = Vec::new();
        let mut shared_pools: HashMap<Id, Arc<UpstreamPool>> = HashMap::new();
        for (id, upstream) in &parsed.head().upstreams {
            let key = PoolKey { owner: Owner::Shared(path.to_string_lossy().into()), upstream: id.clone() };
            match prepare(key, upstream, &mut prepared) {
                Ok(pool) => {
                    shared_pools.insert(id.clone(), pool);
                }
                Err(error) => errors.push(format!("{}: {error}", path.display())),
            }
        }
        let former: HashMap<&Id, &Arc<Tenant>> = same_head
            .map(|before| before.parsed.tenants().iter().map(|tenant| (&tenant.id, tenant)).collect())
            .unwrap_or_default();
        let mut compiler = Compiler::new(self.identity, self.metrics);
        let mut changes = Vec::new();
        for tenant in parsed.tenants() {
            let unchanged = former.get(&tenant.id).is_some_and(|before| Arc::ptr_eq(before, tenant));
            let mut own_pools = HashMap::new();
            for (id, upstream) in &tenant.upstreams {
                let key = PoolKey { owner: Owner::Tenant(tenant.id.clone()), upstream: id.clone() };
                match prepare(key, upstream, &mut prepared) {
                    Ok(pool) => {
                        own_pools.insert(id.clone(), pool);
                    }
                    Err(error) => errors.push(format!("{}: {error}", path.display())),
                }
            }
            if unchanged && !(all && refers_to_files(tenant)) {
                continue;
            }
            let of_tenant = layers.tenant(tenant);
            let of_routes = tenant.routes.iter().map(|route| of_tenant.for_route(route)).collect();
            match compiler.tenant(tenant, &of_tenant, of_routes, &FilePools { own: &own_pools, shared: &shared_pools })
            {
                Ok(compiled) => {
                    let hash = ContentHash::of(&serde_json::to_vec(&**tenant).unwrap_or_default());
                    changes.push(Change::Put(TenantEntry::new(
                        tenant.id.clone(),
                        tenant.hosts.iter().cloned(),
                        hash,
                        compiled,
                    )));
                }
                Err(error) if error.is_missing_upstream() && !errors.is_empty() => {}
                Err(error) => errors.push(format!("{}: {error}", path.display())),
            }
            if errors.len() > 20 {
                break;
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let changed = !changes.is_empty()
            || prepared.iter().any(Prepared::is_change)
            || before.is_none_or(|before| before.parsed.head().revision != parsed.head().revision);
        Ok(ReadyFile { in_force: FileInForce { parsed, layers, pools }, changes, prepared, changed })
    }
}

/// The file, or the `*.yaml` files of the folder, by name.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error| format!("cannot read the folder {}: {error}", path.display());
    let entries = fs::read_dir(path).map_err(unreadable)?;
    // A list with gaps would take the tenants of the files that are missing in it out of force.
    let entries: Vec<fs::DirEntry> = entries.collect::<Result<_, _>>().map_err(unreadable)?;
    let mut files: Vec<PathBuf> = entries
        .iter()
        .map(fs::DirEntry::path)
        .filter(|path| is_tenant_file(path))
        .filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("the folder {} has no *.yaml file; write the tenants into one", path.display()));
    }
    Ok(files)
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
    let keys = tenant.consumers.iter().any(|consumer| !consumer.keys.is_empty());
    let policies = tenant.routes.iter().map(|route| &route.policies).chain([&tenant.policies]);
    keys || !tenant.jwt_issuers.is_empty() || policies.into_iter().any(|policies| policies.validation.is_some())
}
