//! One reload: look, parse, check, compile, put in force. All or nothing for each file, and at the price
//! of what has changed: reading everything for the first time is a change of everything.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seiketsu_config::{
    load::{self, ParsedTenants, parallel},
    tenant::CertificateFiles,
    values::Id,
};
use tokio::runtime::Handle;

use super::{
    compile::{Changes, FileChange, FileCompiler, Lost, Read, Refresh, Refused},
    conflicts,
    head::Parts,
    in_force::InForce,
    last_known_good::LastKnownGood,
    referenced::{ReferencedFiles, Renewed},
    status::{ReloadStatus, StatusCell},
    tenant_files::{Changed, Scope, TenantFiles},
};
use crate::{
    proxy::Shared,
    server::tls::LiveTls,
    telemetry::metrics::Reload,
    tenancy::{Change, Snapshot, TenantEntry, compile::CompiledTenant, tls::Resolver},
    upstream::registry::{PoolKey, Prepared},
};

/// How long a reload waits for the names of new upstreams; later answers are taken when they come.
pub(super) const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);
/// Files that a thread reads at once.
const BATCH: usize = 64;

/// Everything a reload needs to know of the one before.
pub(super) struct Reloader {
    shared: Arc<Shared>,
    tls: Arc<LiveTls>,
    status: Arc<StatusCell>,
    runtime: Handle,
    kept: LastKnownGood,
    /// Files of which what is in force is yet to be kept.
    unkept: BTreeSet<PathBuf>,
    /// Why the last attempt to keep them failed.
    keep_error: Option<String>,
    tenant_files: TenantFiles,
    referenced: ReferencedFiles,
    in_force: InForce,
    /// Files of which what is in force is what was kept.
    from_kept: BTreeSet<PathBuf>,
    /// Tenants that were in force before the start and are not since.
    lost: Lost,
    /// Files that are gone and still in force.
    held: BTreeSet<PathBuf>,
    wrong: Wrong,
}

/// What to look at.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// These files of the folder.
    pub(super) named: BTreeSet<OsString>,
    /// What configuration refers to: certificates, keys, documents.
    pub(super) referenced: bool,
    /// Whether any file is new, other or gone.
    pub(super) all: bool,
    /// Everything, and to read it again whether or not it seems to have changed.
    pub(super) again: bool,
}

/// What is wrong with the configuration as it is written now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wrong {
    folder: Option<String>,
    node_certificates: Option<String>,
    /// Files that keep their former state. Each is looked at again with every reload, since what is wrong
    /// with it may have been mended elsewhere.
    files: BTreeMap<PathBuf, Vec<String>>,
}

/// What became of a reload.
#[derive(Debug, Default)]
struct Outcome {
    changed: bool,
    changes: usize,
    compiled: usize,
}

impl Reloader {
    /// `tenants`: the file, or the folder of files.
    pub(super) fn new(
        tenants: &Path,
        shared: Arc<Shared>,
        tls: Arc<LiveTls>,
        status: Arc<StatusCell>,
        runtime: Handle,
    ) -> Self {
        let kept = LastKnownGood::open(&shared.node.state_dir);
        let was_folder = kept.paths().iter().any(|path| path.parent() == Some(tenants));
        Self {
            kept,
            unkept: BTreeSet::new(),
            keep_error: None,
            tenant_files: TenantFiles::new(tenants, was_folder),
            referenced: ReferencedFiles::of_node(&node_certificates(&shared), tls.coming().clone()),
            shared,
            tls,
            status,
            runtime,
            in_force: InForce::default(),
            from_kept: BTreeSet::new(),
            lost: Lost::new(),
            held: BTreeSet::new(),
            wrong: Wrong::default(),
        }
    }

    /// The first load: from the files, or where they are wrong, from what was last in force.
    pub(super) fn load_first(&mut self) {
        self.look(&Look { again: true, ..Look::default() });
        if self.wrong.folder.is_none() && self.wrong.files.is_empty() || self.wrong.node_certificates.is_some() {
            return;
        }
        let is_missing = |path: &PathBuf| self.wrong.folder.is_some() || self.wrong.files.contains_key(path);
        let kept: Vec<PathBuf> = self.kept.paths().into_iter().filter(is_missing).collect();
        let texts = kept.into_iter().filter_map(|path| Some((self.kept.text(&path)?, path)));
        let read: Read = texts.map(|(text, path)| (path.clone(), load::tenants_with(None, text, &path))).collect();
        if read.is_empty() {
            return;
        }
        tracing::warn!(
            files = read.len(),
            "starting from the last known good configuration, since the present one is wrong"
        );
        let (began, files) = (Instant::now(), read.len());
        let wrong = self.wrong.clone();
        let (mut changes, lost) = self.compiler(&self.shared.live.load(), &self.tls.resolver()).salvage(read);
        for (path, tenants) in &lost {
            let tenants: Vec<&str> = tenants.iter().map(Id::as_str).collect();
            tracing::error!(file = %path.display(), ?tenants, "these tenants were served before the start and are not now");
        }
        self.lost = lost;
        conflicts::take_out(&mut changes, self.in_force.files(), &self.shared.live.load());
        self.from_kept = changes.keys().cloned().collect();
        let outcome = self.put_in_force(changes, SystemTime::now());
        self.report(&wrong, &outcome, files, began);
    }

    /// Looks, and puts in force what has changed and is good. Also keeps what could not be kept or was removed.
    pub(super) fn look(&mut self, look: &Look) {
        let lost = !self.in_force.files().is_empty() && self.kept.forget_lost(look.again);
        if lost {
            tracing::warn!("the last known good configuration was removed or cannot be reached; it is kept anew");
            self.unkept.extend(self.in_force.files().keys().cloned());
        }
        if lost || self.keep_error.is_some() {
            self.keep();
        }
        let (began, now, before) = (Instant::now(), SystemTime::now(), self.wrong.clone());
        // Where there was nothing to look at, nothing is known.
        let again = look.again || before.folder.is_some();
        let renewed = if look.referenced || again { self.referenced.look(again) } else { Renewed::default() };
        if again || renewed.of_node {
            let loaded = self.tls.load_node(&node_certificates(&self.shared));
            self.wrong.node_certificates = loaded.err().map(|error| error.to_string());
        }
        let Some(Changed { read: mut changed, mut gone }) = self.look_at_files(look, again) else {
            if look.again || self.wrong != before {
                let before = if look.again { Wrong::default() } else { before };
                self.report(&before, &Outcome::default(), 0, began);
            }
            return;
        };
        if again {
            changed.extend(self.tenant_files.paths().cloned());
        }
        let mut users = self.files_with(&renewed.tenants);
        users.extend(renewed.referrers.iter().filter(|path| self.tenant_files.has(path)).cloned());
        changed.extend(users.iter().cloned());
        if changed.is_empty() && gone.is_empty() && !renewed.of_node && self.wrong == before {
            return;
        }
        gone.extend(self.held.difference(&changed).cloned());
        changed.extend(before.files.keys().cloned());
        let mut read: BTreeSet<PathBuf> = changed.difference(&gone).cloned().collect();
        let refresh = |path: &Path| match () {
            () if again || before.files.contains_key(path) => Refresh::All,
            () if users.contains(path) => Refresh::Files(&renewed.files),
            () => Refresh::Nothing,
        };
        let (mut files, mut total) = (0, Outcome::default());
        loop {
            files += read.len();
            let (outcome, conflicts) = self.step(read, gone, refresh, now);
            total.add(&outcome);
            // What was put in force may have left what others asked for in vain.
            if !outcome.changed || conflicts.is_empty() {
                break;
            }
            (read, gone) = (conflicts, self.held.clone());
        }
        // Who asks for everything is told of all that is wrong.
        let before = if look.again { Wrong::default() } else { before };
        self.report(&before, &total, files, began);
    }

    /// Reads and puts in force what is good of these files; gives those that clash with others.
    fn step<'a>(
        &mut self,
        read: BTreeSet<PathBuf>,
        gone: BTreeSet<PathBuf>,
        refresh: impl Fn(&Path) -> Refresh<'a>,
        now: SystemTime,
    ) -> (Outcome, BTreeSet<PathBuf>) {
        for path in read.iter().chain(&gone) {
            self.wrong.files.remove(path);
            self.referenced.wait(path, Vec::new());
        }
        for path in &gone {
            self.lost.remove(path);
        }
        let read = self.read(read);
        let (mut changes, wrong) = self.compile(read, refresh);
        for path in &gone {
            if let Some(file) = self.in_force.files().get(path) {
                changes.insert(path.clone(), FileChange::removal(file));
            }
        }
        for (path, Refused { errors, refers_to }) in wrong {
            self.referenced.wait(&path, refers_to);
            self.wrong.files.insert(path, errors);
        }
        let clashing = self.take_out(&mut changes);
        // A node that cannot show the certificates it was given does not start with others.
        let may_start = !changes.is_empty() && self.wrong.node_certificates.is_none();
        if self.in_force.files().is_empty() && !may_start {
            return (Outcome::default(), clashing);
        }
        self.from_kept.retain(|path| !changes.contains_key(path));
        self.lost.retain(|path, _| !changes.contains_key(path));
        let outcome = self.put_in_force(changes, now);
        self.held = gone.into_iter().filter(|path| self.in_force.files().contains_key(path)).collect();
        (outcome, clashing)
    }

    /// Takes changes out that cannot be made; gives the files that clash with others.
    fn take_out(&mut self, changes: &mut Changes) -> BTreeSet<PathBuf> {
        let mut clashing = BTreeSet::new();
        loop {
            let conflicts = conflicts::take_out(changes, self.in_force.files(), &self.shared.live.load());
            clashing.extend(conflicts.keys().cloned());
            self.wrong.files.extend(conflicts.into_iter().map(|(path, errors)| (path, vec![errors])));
            // A wrong file that is not in force may hold the tenants of one that is gone: a file was renamed.
            // Nothing goes out of force for the sake of an error.
            if self.wrong.files.keys().all(|path| self.in_force.files().contains_key(path)) {
                return clashing;
            }
            let put: HashSet<Id> = changes.values().flat_map(FileChange::put).map(|tenant| tenant.id.clone()).collect();
            let count = changes.len();
            changes.retain(|_, change| change.next.is_some() || change.goes_over_to(&put));
            if changes.len() == count {
                return clashing;
            }
        }
    }

    /// The files that these tenants stand in.
    fn files_with(&self, tenants: &BTreeSet<Id>) -> BTreeSet<PathBuf> {
        let snapshot = self.shared.live.load();
        let tenants = tenants.iter().filter_map(|id| snapshot.tenant(id.as_str()));
        tenants.map(|tenant| tenant.compiled().file.to_path_buf()).collect()
    }

    /// Nothing, if there is nothing to look at.
    fn look_at_files(&mut self, look: &Look, again: bool) -> Option<Changed> {
        let all = look.all || again;
        let scope = if all { Scope::All } else { Scope::Named(look.named.clone()) };
        match self.tenant_files.look(&scope) {
            Ok(mut changed) => {
                self.wrong.folder = None;
                if all {
                    let there: HashSet<&PathBuf> = self.tenant_files.paths().collect();
                    changed.gone.extend(self.in_force.others(&there));
                }
                Some(changed)
            }
            Err(error) => {
                self.wrong.folder = Some(error);
                None
            }
        }
    }

    fn read(&self, paths: BTreeSet<PathBuf>) -> Read {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let read = parallel::map(&paths, BATCH, |path| load::tenants_file_with(self.in_force.parsed(path), path));
        paths.into_iter().zip(read).collect()
    }

    /// What is to become of each file, and what is wrong with the others.
    fn compile<'a>(&self, read: Read, refresh: impl Fn(&Path) -> Refresh<'a>) -> (Changes, BTreeMap<PathBuf, Refused>) {
        self.compiler(&self.shared.live.load(), &self.tls.resolver()).files(self.in_force.files(), read, refresh)
    }

    fn compiler<'a>(&'a self, snapshot: &'a Snapshot<CompiledTenant>, resolver: &'a Resolver) -> FileCompiler<'a> {
        FileCompiler(Parts::of(&self.shared, &self.tls, resolver, snapshot))
    }

    /// `read`: the files that the changes refer to were read at this time or later.
    fn put_in_force(&mut self, mut changes: Changes, read: SystemTime) -> Outcome {
        let prepared: Vec<Prepared> =
            changes.values_mut().flat_map(|change| std::mem::take(&mut change.prepared)).collect();
        self.runtime.block_on(self.shared.upstreams.resolve(&prepared, RESOLVE_PATIENCE));
        self.shared.upstreams.apply(prepared, &[]);
        let entries: Vec<_> = changes.values_mut().flat_map(|change| std::mem::take(&mut change.entries)).collect();
        let outcome = Outcome {
            changed: changes.values().any(|change| change.changed),
            compiled: entries.len(),
            changes: self.swap(&changes, &entries),
        };
        if self.in_force.files().is_empty() && self.wrong.folder.is_none() {
            let there = self.tenant_files.paths().map(PathBuf::as_path).collect();
            // What cannot be written of this is written with what comes in force.
            let _ = self.kept.keep_only(&there);
        }
        let pools: HashSet<&PoolKey> = changes.values().flat_map(|change| &change.pools).collect();
        let unused = changes.values().flat_map(|change| &change.pools_before).filter(|key| !pools.contains(key));
        let unused: Vec<PoolKey> = unused.cloned().collect();
        self.shared.upstreams.apply(Vec::new(), &unused);
        let gone = changes.values().flat_map(|change| &change.difference.gone);
        self.referenced.replace(gone, changes.values().flat_map(FileChange::put), read);
        for (path, change) in &changes {
            let before = self.in_force.parsed(path).map(|before| &**before.head());
            let next = change.next.as_ref().map(|next| &**next.parsed.head());
            self.referenced.replace_head(path, before, next, read);
        }
        for (path, change) in changes {
            let text = change.next.as_ref().map(|next| next.parsed.text());
            if text != self.in_force.parsed(&path).map(ParsedTenants::text) {
                self.unkept.insert(path.clone());
            }
            self.in_force.replace(path, change.next);
        }
        self.keep();
        outcome
    }

    /// Puts the next snapshot in force; says of how many tenants it differs from the one before.
    fn swap(&self, changes: &Changes, entries: &[Arc<TenantEntry<CompiledTenant>>]) -> usize {
        let put: HashSet<&Id> = changes.values().flat_map(FileChange::put).map(|tenant| &tenant.id).collect();
        let gone = changes.values().flat_map(|change| &change.difference.gone).map(|tenant| &tenant.id);
        let removals: Vec<_> = gone.filter(|id| !put.contains(id)).cloned().map(Change::Remove).collect();
        let revision = self.in_force.revision_with(changes);
        let snapshot = self.shared.live.load();
        let count = removals.len() + entries.len();
        if count == 0 && snapshot.revision() == revision {
            return 0;
        }
        let puts = entries.iter().cloned().map(Change::Put);
        match snapshot.with_changes(revision, removals.into_iter().chain(puts)) {
            Ok(next) => {
                self.shared.live.store(next);
                for entry in entries {
                    entry.compiled().put_in_force();
                }
            }
            // Cannot be: conflicts were taken out.
            Err(conflicts) => tracing::error!(?conflicts, "the snapshot stays as it was"),
        }
        count
    }

    /// Keeps on disk what is in force and not kept yet.
    fn keep(&mut self) {
        let text = |path: &PathBuf| self.in_force.parsed(path).map(ParsedTenants::text);
        let texts: Vec<_> = self.unkept.iter().map(|path| (path.as_path(), text(path))).collect();
        let error = self.kept.keep(&texts).err().map(|error| error.to_string());
        match (&error, &self.keep_error) {
            (Some(error), None) => {
                tracing::warn!(%error, "the last known good configuration could not be kept; this is tried again and again");
            }
            (None, Some(_)) => tracing::info!("the last known good configuration is kept again"),
            _ => {}
        }
        if error.is_none() {
            self.unkept.clear();
        }
        if error != self.keep_error {
            self.shared.metrics.node.last_known_good_outdated.set(error.is_some().into());
            self.keep_error.clone_from(&error);
            self.status.set(ReloadStatus { last_known_good_error: error, ..(*self.status.get()).clone() });
        }
    }

    fn report(&self, before: &Wrong, outcome: &Outcome, files: usize, began: Instant) {
        let errors = self.wrong.errors();
        for error in self.wrong.since(before) {
            tracing::error!("configuration refused: {error}");
        }
        let loaded = !self.in_force.files().is_empty();
        let snapshot = self.shared.live.load();
        let (revision, tenants) = (snapshot.revision(), snapshot.tenant_count());
        let result = match (errors.is_empty(), outcome.changed) {
            (true, _) => Reload::Applied,
            (false, true) => Reload::Partial,
            (false, false) => Reload::Refused,
        };
        let metrics = &self.shared.metrics.node;
        let now = unix_seconds();
        if outcome.changed || !errors.is_empty() {
            metrics.config_reloaded(result, revision, now as f64);
        }
        if outcome.changed {
            let (changes, took) = (outcome.changes, began.elapsed());
            tracing::info!(revision, tenants, files, changes, ?took, "configuration applied");
        }
        let applied_at = if outcome.changed { now } else { self.status.get().applied_at };
        let from_last_known_good = !self.from_kept.is_empty();
        let lost = self.lost.values().flatten().map(ToString::to_string).collect();
        let last_known_good_error = self.keep_error.clone();
        self.status.set(ReloadStatus {
            loaded,
            revision,
            tenants,
            from_last_known_good,
            last_known_good_error,
            lost,
            errors,
            applied_at,
        });
        metrics.config_read(files, outcome.compiled);
    }
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.changed |= other.changed;
        self.changes += other.changes;
        self.compiled += other.compiled;
    }
}

impl Wrong {
    fn errors(&self) -> Vec<String> {
        let of_node = self.folder.iter().chain(&self.node_certificates);
        of_node.chain(self.files.values().flatten()).cloned().collect()
    }

    /// What was not wrong before, or in another way.
    fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a String> {
        let folder = self.folder.iter().filter(|_| self.folder != before.folder);
        let certificates = self.node_certificates.iter().filter(|_| self.node_certificates != before.node_certificates);
        let files = self.files.iter().filter(|(path, errors)| before.files.get(*path) != Some(errors));
        folder.chain(certificates).chain(files.flat_map(|(_, errors)| errors))
    }
}

/// The certificates of the node, with the development certificate where it is asked for.
pub(super) fn node_certificates(shared: &Shared) -> Vec<CertificateFiles> {
    let mut certificates = shared.node.tls.certificates.clone();
    certificates.extend(shared.development_certificate.clone());
    certificates
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
