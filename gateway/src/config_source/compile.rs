//! Compiling one file of tenants: what is new or has changed, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use seiketsu_config::{
    error::ConfigErrors,
    layers::SharedLayers,
    load::{Difference, ParsedTenants, files_of_head, files_of_tenant},
    tenant::{Tenant, TenantHead},
    values::Id,
};

use super::head::{HeadCompiler, Parts};
use crate::{
    tenancy::{compile::CompiledTenant, snapshot::TenantEntry},
    upstream::registry::{Owner, PoolKey, Prepared},
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
    pub(super) entries: Vec<Arc<TenantEntry<CompiledTenant>>>,
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

/// Compiles what is new or has changed in files of tenants.
#[derive(Clone, Copy)]
pub(super) struct FileCompiler<'a>(pub(super) Parts<'a>);

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
        let owner = Owner::Shared(path.to_string_lossy().into());
        let place = path.display();
        let (mut compiler, wrong) = HeadCompiler::new(self.0, &owner, path, parsed.head(), layers.clone());
        let mut errors: Vec<String> =
            wrong.iter().map(|(upstream, error)| format!("{place}: upstreams.{upstream}: {error}")).collect();
        let mut entries = Vec::with_capacity(difference.put.len());
        let mut put = Vec::with_capacity(difference.put.len());
        for number in std::mem::take(&mut difference.put) {
            let tenant = &parsed.tenants()[number];
            let line = parsed.line(number);
            let (wrong, compiled) = compiler.tenant(tenant, parsed.head().revision);
            errors.extend(wrong.iter().map(|(upstream, error)| {
                format!("{place}:{line}: tenant {}: upstreams.{upstream}: {error}", tenant.id)
            }));
            match compiled {
                Ok(entry) => {
                    entries.push(entry);
                    put.push(number);
                }
                Err(_) if let Some(left_out) = left_out.as_deref_mut() => {
                    left_out.insert(tenant.id.clone());
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
            || compiler.prepared.iter().any(Prepared::is_change)
            || before.is_none_or(|before| before.parsed.head().revision != parsed.head().revision);
        Ok(FileChange {
            pools_before: before
                .map(|before| pools_of(path, before.parsed.head(), &difference.gone))
                .unwrap_or_default(),
            pools: compiler.keys,
            prepared: compiler.prepared,
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
            let is_left_out =
                || matches!(refresh, Refresh::All) && self.0.snapshot.tenant(tenant.id.as_str()).is_none();
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

/// A new revision number alone changes no tenant.
pub(super) fn same_but_for_revision(one: &TenantHead, other: &TenantHead) -> bool {
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
