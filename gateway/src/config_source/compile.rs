//! Compiling one file of tenants: what is new or has changed, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use seiketsu_cache::storage::Storage;
use seiketsu_config::{
    error::ConfigErrors,
    layers::SharedLayers,
    load::{Difference, ParsedTenants, files_of_head, files_of_tenant},
    tenant::{Tenant, TenantHead, Upstream},
    values::Id,
};
use seiketsu_identity::state::IdentityState;

use crate::{
    limits::Limits,
    telemetry::metrics::Metrics,
    tenancy::{
        Snapshot,
        compile::{CompiledTenant, Compiler, Pools},
        snapshot::{ContentHash, TenantEntry},
        tls::{Coming, Resolver, TenantTls},
    },
    upstream::{
        pool::UpstreamPool,
        profile::UpstreamError,
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

/// Why a file stays what it was.
pub(super) struct Refused {
    pub(super) errors: Vec<String>,
    /// What it refers to, if that may be what is wrong.
    pub(super) refers_to: Vec<PathBuf>,
}

/// Tenants that could not be made of what was kept, by the files that they stand in.
pub(super) type Lost = BTreeMap<PathBuf, BTreeSet<Id>>;

/// What of a file is compiled again though its text is the same.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refresh<'a> {
    Nothing,
    /// Tenants that refer to one of these files.
    Files(&'a HashSet<PathBuf>),
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
    pub(super) coming: &'a Coming,
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
    ) -> (Changes, BTreeMap<PathBuf, Refused>) {
        let (mut changes, mut wrong) = (Changes::new(), BTreeMap::new());
        for (path, parsed) in read {
            let change = parsed
                .map_err(|errors| Refused { errors: vec![errors.to_string()], refers_to: Vec::new() })
                .and_then(|parsed| self.file(in_force.get(&path), &path, parsed, refresh(&path), None));
            match change {
                Ok(change) => {
                    changes.insert(path, change);
                }
                Err(refused) => {
                    wrong.insert(path, refused);
                }
            }
        }
        (changes, wrong)
    }

    /// What can be made of files that were in force once, where the files themselves are wrong: all tenants but
    /// those that cannot be compiled, such as when a key that they refer to is missing.
    pub(super) fn salvage(&self, read: Read) -> (Changes, Lost) {
        let (mut changes, mut lost) = (Changes::new(), Lost::new());
        for (path, parsed) in read {
            let mut left_out = BTreeSet::new();
            let change = parsed
                .ok()
                .and_then(|parsed| self.file(None, &path, parsed, Refresh::All, Some(&mut left_out)).ok())
                .filter(|change| !change.entries.is_empty() || left_out.is_empty());
            if !left_out.is_empty() {
                lost.insert(path.clone(), left_out);
            }
            changes.extend(change.map(|change| (path, change)));
        }
        (changes, lost)
    }

    /// Compiles what is new or changed in a file. Tenants that cannot be compiled are added to `left_out`; without
    /// it the file is refused as a whole.
    fn file(
        &self,
        before: Option<&FileInForce>,
        path: &Path,
        parsed: ParsedTenants,
        refresh: Refresh<'_>,
        mut left_out: Option<&mut BTreeSet<Id>>,
    ) -> Result<FileChange, Refused> {
        let same_head = before.filter(|before| same_but_for_revision(before.parsed.head(), parsed.head()));
        let layers = match same_head {
            Some(before) => before.layers.clone(),
            None => Arc::new(SharedLayers::new(parsed.head())),
        };
        let mut difference = self.difference(before, same_head.is_some(), &parsed, refresh);
        let mut upstreams = Upstreams { registry: self.upstreams, prepared: Vec::new(), keys: Vec::new() };
        let mut errors = Vec::new();
        let owner = Owner::Shared(path.to_string_lossy().into());
        let place = path.display();
        let shared_pools = upstreams.prepare(&owner, &parsed.head().upstreams, |upstream, error| {
            errors.push(format!("{place}: upstreams.{upstream}: {error}"));
        });
        let mut compiler =
            Compiler::new(self.identity, self.metrics, self.limits, self.cache, parsed.head().revision, path);
        let mut entries = Vec::with_capacity(difference.put.len());
        let mut put = Vec::with_capacity(difference.put.len());
        for number in std::mem::take(&mut difference.put) {
            let tenant = &parsed.tenants()[number];
            let owner = Owner::Tenant(tenant.id.clone());
            let (prepared, keys) = (upstreams.prepared.len(), upstreams.keys.len());
            let line = parsed.line(number);
            let own_pools = upstreams.prepare(&owner, &tenant.upstreams, |upstream, error| {
                errors.push(format!("{place}:{line}: tenant {}: upstreams.{upstream}: {error}", tenant.id));
            });
            let former = self.snapshot.tenant(tenant.id.as_str()).map(|former| former.compiled());
            let tls_before = former.and_then(|former| former.tls.as_ref());
            let tls = TenantTls::compile(tenant, tls_before, self.resolver, self.coming);
            let of_tenant = layers.tenant(tenant);
            let of_routes = tenant.routes.iter().map(|route| of_tenant.for_route(route)).collect();
            let pools = FilePools { own: &own_pools, shared: &shared_pools };
            match compiler.tenant(tenant, tls, &of_tenant, of_routes, &pools, former) {
                Ok(compiled) => {
                    let hash = ContentHash::of(&serde_json::to_vec(&**tenant).unwrap_or_default());
                    entries.push(TenantEntry::new(tenant.id.clone(), tenant.hosts.iter().cloned(), hash, compiled));
                    put.push(number);
                }
                Err(_) if let Some(left_out) = left_out.as_deref_mut() => {
                    left_out.insert(tenant.id.clone());
                    upstreams.prepared.truncate(prepared);
                    upstreams.keys.truncate(keys);
                }
                Err(error) if error.is_missing_upstream() && !errors.is_empty() => {}
                Err(error) => errors.push(format!("{place}:{line}: {error}")),
            }
            if errors.len() > 20 && left_out.is_none() {
                break;
            }
        }
        if !errors.is_empty() && left_out.is_none() {
            let of_tenants = parsed.tenants().iter().flat_map(|tenant| files_of_tenant(tenant));
            let refers_to = files_of_head(parsed.head()).into_iter().chain(of_tenants).map(Path::to_owned).collect();
            return Err(Refused { errors, refers_to });
        }
        difference.put = put;
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

    /// What has to be compiled, and what this takes the place of.
    fn difference(
        &self,
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
        let of_head = refresh.concerns_all(parsed.head());
        let changed: HashSet<usize> = difference.put.iter().copied().collect();
        for (number, tenant) in parsed.tenants().iter().enumerate() {
            // One that is not there was left out when the node started.
            let is_left_out = || matches!(refresh, Refresh::All) && self.snapshot.tenant(tenant.id.as_str()).is_none();
            if !changed.contains(&number) && (of_head || refresh.concerns(tenant) || is_left_out()) {
                difference.put.push(number);
                difference.gone.push(tenant.clone());
            }
        }
        difference
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
        mut refused: impl FnMut(&Id, UpstreamError),
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
                Err(error) => refused(id, error),
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
            Self::Files(files) => files_of_tenant(tenant).into_iter().any(|file| files.contains(file)),
            Self::All => refers_to_files(tenant),
        }
    }

    /// Whether all tenants of a file are concerned.
    fn concerns_all(self, head: &TenantHead) -> bool {
        match self {
            Self::Nothing => false,
            Self::Files(files) => files_of_head(head).into_iter().any(|file| files.contains(file)),
            Self::All => !files_of_head(head).is_empty(),
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
