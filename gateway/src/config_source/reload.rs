//! One reload: parse, check, compile, put in force. All or nothing for each file.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seiketsu_config::{
    check,
    error::ConfigErrors,
    load::{self, ParsedTenants},
    tenant::CertificateFiles,
    values::Id,
};
use tokio::runtime::Handle;

use super::{
    compile::{FileCompiler, FileInForce, ReadyFile, list},
    last_known_good::LastKnownGood,
    status::{ReloadStatus, StatusCell},
};
use crate::{
    proxy::Shared,
    server::tls::{self, LiveTls},
    telemetry::metrics::Reload,
    tenancy::snapshot::Change,
    upstream::registry::{PoolKey, Prepared},
};

/// How long a reload waits for the names of new upstreams; later answers are taken when they come.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);

/// Everything a reload needs to know of the one before.
pub(super) struct Reloader {
    shared: Arc<Shared>,
    tls: Arc<LiveTls>,
    status: Arc<StatusCell>,
    runtime: Handle,
    kept: LastKnownGood,
    /// The files in force.
    files: BTreeMap<PathBuf, FileInForce>,
    /// Sizes and times of all files that were looked at, also of certificates.
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
}

/// What tells whether a file has changed.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    size: u64,
    modified: SystemTime,
    inode: u64,
    /// Whether it had only just been written: it may have been written again within the same tick of the
    /// file system's clock, so it is read once more.
    is_young: bool,
}

/// Longer than any tick.
const YOUNG: Duration = Duration::from_millis(100);

impl Reloader {
    pub(super) fn new(shared: Arc<Shared>, tls: Arc<LiveTls>, status: Arc<StatusCell>, runtime: Handle) -> Self {
        let kept = LastKnownGood::new(&shared.node.state_dir);
        Self { shared, tls, status, runtime, kept, files: BTreeMap::new(), stamps: BTreeMap::new() }
    }

    /// The first load: from the files, or where they are wrong, from what was last in force.
    pub(super) fn load_first(&mut self) {
        self.reload(true);
        if self.status.get().loaded {
            return;
        }
        let errors = self.status.get().errors.clone();
        let kept = self.kept.load();
        if kept.is_empty() {
            return;
        }
        tracing::warn!("starting from the last known good configuration, since the present one is wrong");
        let parsed = kept.iter().map(|(path, text)| (path.clone(), load::tenants_with(None, text, path)));
        let parsed: Vec<_> = parsed.collect();
        self.put_in_force(parsed, true, true);
        let mut status = (*self.status.get()).clone();
        status.from_last_known_good = status.loaded;
        status.errors = errors;
        self.status.set(status);
    }

    /// Whether any file that matters has another size or time than when it was last read.
    pub(super) fn files_changed(&self) -> bool {
        let listed = list(&self.shared.node.tenants).unwrap_or_default();
        listed.iter().any(|path| !self.stamps.contains_key(path))
            || self.stamps.iter().any(|(path, stamp)| has_changed(*stamp, stamp_of(path)))
    }

    /// Reads the files and puts in force what is good. `all`: also what they refer to is read again.
    pub(super) fn reload(&mut self, all: bool) {
        let paths = match list(&self.shared.node.tenants) {
            Ok(paths) => paths,
            Err(error) => return self.refused(vec![error]),
        };
        self.stamps =
            paths.iter().cloned().chain(self.certificates()).map(|path| (path.clone(), stamp_of(&path))).collect();
        let parsed = paths
            .into_iter()
            .map(|path| {
                let before = self.files.get(&path).map(|file| &file.parsed);
                let result = load::tenants_file_with(before, &path);
                (path, result)
            })
            .collect();
        self.put_in_force(parsed, all, false);
    }

    fn put_in_force(&mut self, parsed: Vec<(PathBuf, Result<ParsedTenants, ConfigErrors>)>, all: bool, kept: bool) {
        let began = Instant::now();
        let mut errors: Vec<String> = Vec::new();
        let mut ready: BTreeMap<PathBuf, ReadyFile> = BTreeMap::new();
        let mut stay: HashSet<PathBuf> = HashSet::new();
        for (path, result) in parsed {
            let file = result
                .map_err(|errors| vec![errors.to_string()])
                .and_then(|parsed| self.compiler().file(self.files.get(&path), &path, parsed, all));
            match file {
                Ok(file) => {
                    ready.insert(path, file);
                }
                Err(mut found) => {
                    errors.append(&mut found);
                    stay.insert(path);
                }
            }
        }
        if ready.is_empty() && self.files.is_empty() {
            return self.refused(errors);
        }
        // A wrong file that is not in force may hold the tenants of one that is gone: a file was renamed, or the
        // whole folder is away for a moment. Nothing goes out of force for the sake of an error.
        if stay.iter().any(|path| !self.files.contains_key(path)) {
            stay.extend(self.files.keys().filter(|path| !ready.contains_key(*path)).cloned());
        }
        // What is in force afterwards: the new files, the old state of the wrong ones, not those that are gone.
        let parsed_after = ready
            .values()
            .map(|file| &file.in_force.parsed)
            .chain(self.files.iter().filter(|(path, _)| stay.contains(*path)).map(|(_, file)| &file.parsed));
        let parsed_after: Vec<&ParsedTenants> = parsed_after.collect();
        if let Err(conflicts) = check::across(parsed_after.iter().copied()) {
            errors.push(conflicts.to_string());
            return self.refused(errors);
        }
        let tenants_after: HashSet<&Id> =
            parsed_after.iter().flat_map(|file| file.tenants()).map(|tenant| &tenant.id).collect();
        let certificates = parsed_after.iter().flat_map(|file| file.tenants()).map(|tenant| &**tenant);
        let store = match tls::Store::load(Some(&self.tls.current()), &node_certificates(&self.shared), certificates) {
            Ok(store) => store,
            Err(error) => {
                errors.push(error.to_string());
                return self.refused(errors);
            }
        };
        let revision = parsed_after.iter().map(|file| file.head().revision).max().unwrap_or_default();
        let gone: Vec<Id> = self
            .files
            .values()
            .flat_map(|file| file.parsed.tenants())
            .map(|tenant| &tenant.id)
            .filter(|id| !tenants_after.contains(id))
            .cloned()
            .collect();
        let changed = ready.values().any(|file| file.changed)
            || !gone.is_empty()
            || self.files.len() != ready.len() + stay.iter().filter(|path| self.files.contains_key(*path)).count();
        drop(tenants_after);

        let prepared: Vec<Prepared> = ready.values_mut().flat_map(|file| std::mem::take(&mut file.prepared)).collect();
        self.runtime.block_on(self.shared.upstreams.resolve(&prepared, RESOLVE_PATIENCE));
        self.shared.upstreams.apply(prepared, &[]);
        let removals = gone.into_iter().map(Change::Remove);
        let puts = ready.values_mut().flat_map(|file| std::mem::take(&mut file.changes));
        let changes: Vec<_> = removals.chain(puts).collect();
        let changes_made = changes.len();
        let next = self.shared.live.load().with_changes(revision, changes);
        match next {
            Ok(next) => self.shared.live.store(next),
            // Cannot be: `check::across` has looked at the same hosts.
            Err(conflicts) => {
                errors.extend(conflicts.iter().map(ToString::to_string));
                return self.refused(errors);
            }
        }
        self.tls.replace(store);
        let before: HashSet<PoolKey> = self.files.values().flat_map(|file| file.pools.iter().cloned()).collect();
        self.files.retain(|path, _| stay.contains(path));
        self.files.extend(ready.into_iter().map(|(path, file)| (path, file.in_force)));
        let now: HashSet<&PoolKey> = self.files.values().flat_map(|file| &file.pools).collect();
        let unused: Vec<PoolKey> = before.into_iter().filter(|key| !now.contains(key)).collect();
        self.shared.upstreams.apply(Vec::new(), &unused);
        self.stamps.extend(self.certificates().into_iter().map(|path| (path.clone(), stamp_of(&path))));
        if !kept
            && errors.is_empty()
            && changed
            && let Err(error) = self.kept.store(self.files.keys().map(PathBuf::as_path))
        {
            tracing::warn!(%error, "the last known good configuration could not be kept");
        }
        self.applied(errors, changed, revision, changes_made, began);
    }

    fn applied(&self, errors: Vec<String>, changed: bool, revision: u64, changes: usize, began: Instant) {
        let now = unix_seconds();
        let before = self.status.get();
        let result = match (errors.is_empty(), changed) {
            (true, _) => Reload::Applied,
            (false, true) => Reload::Partial,
            (false, false) => Reload::Refused,
        };
        if changed || !errors.is_empty() {
            self.shared.metrics.node.config_reloaded(result, revision, now as f64);
        }
        for error in &errors {
            tracing::error!("configuration refused: {error}");
        }
        if changed {
            let tenants = self.shared.live.load().tenant_count();
            let took = began.elapsed();
            tracing::info!(revision, tenants, changes, ?took, "configuration applied");
        }
        self.status.set(ReloadStatus {
            loaded: true,
            revision,
            tenants: self.shared.live.load().tenant_count(),
            // Until the files are good, what was kept is what is in force.
            from_last_known_good: before.from_last_known_good && !errors.is_empty(),
            errors,
            applied_at: if changed { now } else { before.applied_at },
        });
    }

    fn compiler(&self) -> FileCompiler<'_> {
        let shared = &*self.shared;
        FileCompiler { upstreams: &shared.upstreams, identity: &shared.identity, metrics: &shared.metrics }
    }

    /// Nothing has changed but what is known to be wrong.
    fn refused(&self, errors: Vec<String>) {
        for error in &errors {
            tracing::error!("configuration refused: {error}");
        }
        let before = self.status.get();
        self.shared.metrics.node.config_reloaded(Reload::Refused, before.revision, unix_seconds() as f64);
        self.status.set(ReloadStatus { errors, ..(*before).clone() });
    }

    /// Certificate files in use, to notice when they are renewed or an authority is replaced.
    fn certificates(&self) -> Vec<PathBuf> {
        let tenants = || self.files.values().flat_map(|file| file.parsed.tenants()).filter_map(|t| t.tls.as_ref());
        let authorities = tenants().filter_map(|tls| tls.client_ca.clone());
        tenants()
            .flat_map(|tls| tls.certificates.iter().cloned())
            .chain(node_certificates(&self.shared))
            .flat_map(|files| [files.certificate, files.key])
            .chain(authorities)
            .collect()
    }
}

/// The certificates of the node, with the development certificate where it is asked for.
pub(crate) fn node_certificates(shared: &Shared) -> Vec<CertificateFiles> {
    let mut certificates = shared.node.tls.certificates.clone();
    certificates.extend(shared.development_certificate.clone());
    certificates
}

fn has_changed(before: Option<Stamp>, now: Option<Stamp>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => {
            before.is_young || (before.size, before.modified, before.inode) != (now.size, now.modified, now.inode)
        }
        (None, None) => false,
        _ => true,
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?;
    // A time in the future has no age.
    let is_young = modified.elapsed().is_ok_and(|age| age < YOUNG);
    Some(Stamp { size: metadata.len(), modified, inode: metadata.ino(), is_young })
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
