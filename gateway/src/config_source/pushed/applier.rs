//! Puts in force what the control plane sends: parse, check, compile, swap, at the price of what has changed.
//!
//! A tenant that cannot be put in force keeps its former state and is named; the others go on. So does the head, which
//! all stand beside. What was refused is tried again with whatever may mend it: another document, another head, another
//! file that it refers to, a host that became free.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use seiketsu_config::{
    check::Rule,
    layers::SharedLayers,
    load::{
        CONTROL_PLANE, files_of_head, files_of_tenant, head_leads_out, parallel, pushed_head, pushed_tenant,
        pushed_tenant_fits, tenant_leads_out,
    },
    node::ControlPlane,
    push::{Applied, FrameError, Held, Refused, Update},
    tenant::{Tenant, TenantHead},
    values::Id,
};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    super::{
        compile::same_but_for_revision,
        head::{HeadCompiler, Parts},
        referenced::{ReferencedFiles, Renewed},
        reload::{RESOLVE_PATIENCE, node_certificates, unix_seconds},
        status::{ReloadStatus, StatusCell},
    },
    clashes::{self, Claimant},
    holding::{Assembly, HeldTenant, Holding, InForce, Incoming, Sent},
    keeper::{Changes as Kept, Copy, Keeper, Kept as WasKept, Report},
};
use crate::{
    proxy::Shared,
    server::tls::LiveTls,
    telemetry::metrics::Reload,
    tenancy::{Change, Snapshot, TenantEntry, compile::CompiledTenant},
    upstream::registry::{Owner, PoolKey, Prepared},
};

/// Documents that a thread reads at once.
const BATCH: usize = 64;

/// Errors of one document that are told, and documents whose errors are shown and logged. A mistake made by a program
/// is made a hundred thousand times.
const MOST_ERRORS: usize = 20;
const MOST_SHOWN: usize = 100;

pub(super) struct Applier {
    shared: Arc<Shared>,
    tls: Arc<LiveTls>,
    status: Arc<StatusCell>,
    runtime: Handle,
    /// Where relative paths begin.
    folder: PathBuf,
    holding: Holding,
    assembly: Assembly,
    head: HeadInForce,
    /// Why the head is not in force as it was last sent.
    head_refused: Vec<String>,
    /// Tenants that are not in force as they were last sent, and those of them for which a host has to become free.
    refused: BTreeSet<Id>,
    clashing: BTreeSet<Id>,
    /// Upstreams that are gone from the head, and that tenants in their former state still use.
    lingering: HashSet<PoolKey>,
    referenced: ReferencedFiles,
    node_certificates: Option<String>,
    /// None, once the node is about to end.
    keeper: Option<Keeper>,
    keep_error: Option<String>,
    loaded: bool,
    from_kept: bool,
    /// Tenants that were in force before the start and are not since.
    lost: BTreeSet<Id>,
    applied_at: u64,
}

struct HeadInForce {
    sent: Option<Sent>,
    head: Arc<TenantHead>,
    layers: Arc<SharedLayers>,
}

/// Documents that are others than before.
#[derive(Default)]
struct Documents {
    head: Option<Sent>,
    put: Vec<(Id, Sent)>,
    gone: BTreeSet<Id>,
}

/// What is looked at again though its document is the same.
#[derive(Default)]
struct Again {
    head: bool,
    tenants: BTreeSet<Id>,
}

/// A document and the tenant that it is, or what is wrong with it.
type Read = Result<(Sent, Arc<Tenant>), Vec<String>>;

/// What became of tenants that were read.
struct Made {
    ready: BTreeMap<Id, Ready>,
    refused: BTreeMap<Id, Refusal>,
    /// Of the head, if it is another, and of tenants that are ready.
    prepared: Vec<Prepared>,
    keys: Vec<PoolKey>,
}

/// A tenant that was compiled.
struct Ready {
    tenant: Arc<Tenant>,
    sent: Sent,
    entry: TenantEntry<CompiledTenant>,
}

/// A tenant that keeps its former state.
struct Refusal {
    errors: Vec<String>,
    /// It may be good when one of these is another.
    refers_to: Vec<PathBuf>,
    clashes: bool,
}

/// What became of a step.
#[derive(Default)]
struct Outcome {
    changed: bool,
    tenants: usize,
    compiled: usize,
    /// Refused now, and not before or otherwise.
    newly_refused: BTreeSet<Id>,
    head_newly_refused: bool,
}

impl Claimant<CompiledTenant> for Ready {
    fn entry(&self) -> &TenantEntry<CompiledTenant> {
        &self.entry
    }

    fn revision(&self) -> u64 {
        self.sent.revision
    }
}

impl Applier {
    pub(super) fn new(
        settings: &ControlPlane,
        shared: Arc<Shared>,
        tls: Arc<LiveTls>,
        status: Arc<StatusCell>,
        runtime: Handle,
        keeper: Keeper,
    ) -> Self {
        let certificates = node_certificates(&shared);
        let head = Arc::new(TenantHead::default());
        Self {
            folder: settings.files.clone().unwrap_or_default(),
            holding: Holding::default(),
            assembly: Assembly::default(),
            head: HeadInForce { sent: None, layers: Arc::new(SharedLayers::new(&head)), head },
            head_refused: Vec::new(),
            refused: BTreeSet::new(),
            clashing: BTreeSet::new(),
            lingering: HashSet::new(),
            referenced: ReferencedFiles::of_node(&certificates, tls.coming().clone()),
            node_certificates: tls.load_node(&certificates).err().map(|error| error.to_string()),
            keeper: Some(keeper),
            keep_error: None,
            loaded: false,
            from_kept: false,
            lost: BTreeSet::new(),
            applied_at: 0,
            shared,
            tls,
            status,
            runtime,
        }
    }

    /// Why the certificates of the node cannot be used.
    pub(super) fn certificate_error(&self) -> Option<&String> {
        self.node_certificates.as_ref()
    }

    /// Whether there is a configuration in force.
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Starts from what was kept.
    pub(super) fn load(&mut self, kept: WasKept) {
        let began = Instant::now();
        if !kept.unreadable.is_empty() {
            let copies: Vec<&String> = kept.unreadable.iter().take(MOST_SHOWN).collect();
            tracing::error!(
                count = kept.unreadable.len(),
                ?copies,
                "copies of the last known good configuration were altered or sealed with another key; they are not used"
            );
        }
        if kept.tenants.is_empty() && kept.head.is_none() {
            self.report(&Outcome::default(), began);
            return;
        }
        if kept.head.is_none() {
            // Tenants without their head would be served without its limits, and to whom it does not let in.
            tracing::error!(
                tenants = kept.tenants.len(),
                "the last known good configuration is without its head and is not used: nothing is served before the control plane is heard"
            );
            self.lost = kept.tenants.into_iter().map(|(id, _)| id).collect();
            self.report(&Outcome::default(), began);
            return;
        }
        // First what was in force, then what was refused: it may be good by now.
        let newest = kept.tenants.iter().map(|(_, copy)| copy.newest.revision).max();
        let revision = kept.state.map(|state| state.revision).max(newest).unwrap_or_default();
        let former = |copy: &Copy| copy.former.clone().unwrap_or_else(|| copy.newest.clone());
        let first = Documents {
            head: kept.head.as_ref().map(former),
            put: kept
                .tenants
                .iter()
                .filter(|(_, copy)| !copy.waits)
                .map(|(id, copy)| (id.clone(), former(copy)))
                .collect(),
            gone: BTreeSet::new(),
        };
        let mut total = self.step(first, &Again::default(), revision);
        let unreadable = kept.unreadable.iter().filter_map(|name| name.parse().ok());
        self.lost = self.refused.iter().filter(|id| !self.is_in_force(id)).cloned().chain(unreadable).collect();
        let was_refused = |copy: &Copy| copy.waits || copy.former.is_some();
        let second = Documents {
            head: kept.head.filter(was_refused).map(|copy| copy.newest),
            put: kept
                .tenants
                .into_iter()
                .filter(|(_, copy)| was_refused(copy))
                .map(|(id, copy)| (id, copy.newest))
                .collect(),
            gone: BTreeSet::new(),
        };
        if second.head.is_some() || !second.put.is_empty() {
            total.add(self.step(second, &Again::default(), revision));
        }
        self.holding.state = kept.state.filter(|state| state.sum == self.holding.sum());
        self.loaded = self.may_serve();
        self.from_kept = self.loaded;
        if self.loaded {
            tracing::warn!(
                revision,
                "starting from the last known good configuration until the control plane is heard"
            );
        }
        if !self.lost.is_empty() {
            let tenants: Vec<&str> = self.lost.iter().take(MOST_SHOWN).map(Id::as_str).collect();
            tracing::error!(
                count = self.lost.len(),
                ?tenants,
                "these tenants were served before the start and are not now"
            );
        }
        self.report(&total, began);
    }

    /// A connection is about to be made. Gives what is held.
    pub(super) fn begin(&mut self) -> Option<Held> {
        self.assembly.clear();
        self.holding.state
    }

    /// The control plane of this store will send what has changed, if anything has.
    pub(super) fn welcomed(&mut self, store: Uuid) {
        if self.from_kept && self.holding.state.is_some_and(|state| state.store == store) {
            self.from_kept = false;
            self.status.set(ReloadStatus { from_last_known_good: false, ..(*self.status.get()).clone() });
        }
    }

    /// Takes an update or a part of one; gives the answer to an update.
    pub(super) fn take(&mut self, part: Update) -> Option<Applied> {
        let (nonce, update) = self.assembly.add(part)?;
        let fitting = update.and_then(|update| self.holding.fits(&update).map(|()| update));
        let lost = match fitting {
            Ok(update) => {
                self.apply(update);
                false
            }
            Err(misfit) => {
                self.shared.metrics.node.control_plane.updates.count(Reload::Refused);
                tracing::warn!(nonce, %misfit, "an update of the control plane cannot be applied; asking for the whole configuration");
                true
            }
        };
        Some(Applied { nonce, revision: self.shared.live.load().revision(), refused: self.all_refused(), lost })
    }

    /// A message that cannot be read changes nothing.
    pub(super) fn refuse_message(&self, error: &FrameError) {
        self.shared.metrics.node.control_plane.updates.count(Reload::Refused);
        tracing::error!(%error, "a message of the control plane cannot be read");
    }

    fn apply(&mut self, update: Incoming) {
        let began = Instant::now();
        let is_whole = update.after.is_none();
        let mut gone = update.gone;
        if is_whole {
            gone.extend(self.holding.tenants.keys().filter(|id| !update.put.contains_key(*id)).cloned());
        }
        let only = is_whole.then(|| update.put.keys().cloned().collect());
        // A whole configuration without a head has an empty one.
        let head = update.head.or_else(|| is_whole.then(|| Sent::new(None, update.to.revision, "{}")));
        let documents = Documents { head, put: update.put.into_iter().collect(), gone };
        let outcome = self.step(documents, &Again::default(), update.to.revision);
        let is_news = is_whole || self.holding.state != Some(update.to);
        self.holding.state = Some(update.to);
        if is_whole {
            self.lost.retain(|id| self.holding.tenants.contains_key(id));
        }
        self.loaded |= self.may_serve();
        self.from_kept = false;
        if is_news {
            self.keep_changes(Kept { state: Some(update.to), only, ..Kept::default() });
        }
        let result = if self.all_well() { Reload::Applied } else { Reload::Partial };
        self.shared.metrics.node.control_plane.updates.count(result);
        self.report(&outcome, began);
    }

    /// Looks at the files that configuration refers to. Urgently: at all of them, and tries again what was refused.
    pub(super) fn look(&mut self, urgent: bool) {
        let began = Instant::now();
        let Renewed { tenants, referrers, of_node, .. } = self.referenced.look(urgent);
        let certificates_before = self.node_certificates.clone();
        if of_node || urgent {
            let loaded = self.tls.load_node(&node_certificates(&self.shared));
            self.node_certificates = loaded.err().map(|error| error.to_string());
        }
        let mut again = Again { head: referrers.contains(Path::new(CONTROL_PLANE)), tenants };
        let waiting = referrers.iter().filter_map(|name| name.strip_prefix(CONTROL_PLANE).ok()?.to_str()?.parse().ok());
        again.tenants.extend(waiting);
        if urgent {
            again.head |= !self.head_refused.is_empty();
            again.tenants.extend(self.refused.iter().cloned());
        }
        if !again.head && again.tenants.is_empty() && self.node_certificates == certificates_before && !urgent {
            return;
        }
        let revision = self.shared.live.load().revision();
        let outcome = self.step(Documents::default(), &again, revision);
        self.loaded |= self.holding.state.is_some() && self.may_serve();
        self.report(&outcome, began);
    }

    /// What the disk has to say.
    pub(super) fn kept(&mut self, report: Report) {
        let error = match report {
            Report::Kept(error) => error,
            Report::Lost => {
                tracing::warn!("the last known good configuration was removed or cannot be reached; it is kept anew");
                let ids: Vec<Id> = self.holding.tenants.keys().cloned().collect();
                self.keep(ids, true);
                self.keep_changes(Kept { state: self.holding.state, ..Kept::default() });
                return;
            }
        };
        match (&error, &self.keep_error) {
            (Some(error), None) => {
                tracing::warn!(%error, "the last known good configuration could not be kept; this is tried again and again");
            }
            (None, Some(_)) => tracing::info!("the last known good configuration is kept again"),
            _ => {}
        }
        if error != self.keep_error {
            self.shared.metrics.node.last_known_good_outdated.set(error.is_some().into());
            self.keep_error.clone_from(&error);
            self.status.set(ReloadStatus { last_known_good_error: error, ..(*self.status.get()).clone() });
        }
    }

    /// Compiles what is other than before and puts it in force, but for what is refused. Keeps the documents.
    fn step(&mut self, documents: Documents, again: &Again, revision: u64) -> Outcome {
        let now = SystemTime::now();
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        let (resolver, snapshot) = (tls.resolver(), shared.live.load());
        let parts = Parts::of(&shared, &tls, &resolver, &snapshot);
        let mut outcome = Outcome::default();

        let has_head = documents.head.is_some();
        let (next_head, compiler) = self.look_at_head(parts, documents.head, again.head, &mut outcome);
        let (mut touched, gone) = self.hold(documents.put, documents.gone);
        let mut todo = if next_head.is_some() {
            self.holding.tenants.keys().cloned().collect()
        } else {
            &touched | &again.tenants
        };
        if !(touched.is_empty() && gone.is_empty()) {
            todo.extend(self.clashing.iter().cloned());
        }
        todo.retain(|id| self.holding.tenants.contains_key(id));

        let head = next_head.as_ref().map_or_else(|| self.head.head.clone(), |next| next.head.clone());
        let read = self.read(&todo, &head, next_head.is_some());
        let gone_ids: BTreeSet<Id> = gone.keys().cloned().collect();
        let Made { ready, refused, prepared, mut keys } =
            compile(compiler, read, &head, &self.folder, &gone_ids, &snapshot);
        outcome.changed =
            !(ready.is_empty() && gone.is_empty() && next_head.is_none() && snapshot.revision() == revision)
                || prepared.iter().any(Prepared::is_change);
        outcome.compiled = ready.len();
        self.runtime.block_on(shared.upstreams.resolve(&prepared, RESOLVE_PATIENCE));
        shared.upstreams.apply(prepared, &[]);

        let mut pools_before = Vec::new();
        let (mut tenants_gone, mut tenants_put) = (Vec::new(), Vec::new());
        let mut changes: Vec<Change<CompiledTenant>> = Vec::new();
        for (id, former) in gone {
            self.refused.remove(&id);
            self.clashing.remove(&id);
            self.lost.remove(&id);
            self.referenced.wait(&waiting_name(&id), Vec::new());
            tenants_gone.extend(former.in_force.map(|former| former.tenant));
            changes.push(Change::Remove(id));
        }
        for (id, Ready { tenant, sent, entry }) in ready {
            let Some(held) = self.holding.tenants.get_mut(&id) else { continue };
            changes.push(Change::Put(entry));
            tenants_put.push(tenant.clone());
            tenants_gone.extend(held.in_force.replace(InForce { sent, tenant }).map(|former| former.tenant));
            held.refused.clear();
            self.lost.remove(&id);
            if self.refused.remove(&id) {
                self.clashing.remove(&id);
                self.referenced.wait(&waiting_name(&id), Vec::new());
                touched.insert(id);
            }
        }
        pools_before.extend(tenants_gone.iter().flat_map(|tenant| pools_of(tenant)));
        self.note(refused, &mut outcome);
        outcome.tenants = changes.len();
        if !(changes.is_empty() && snapshot.revision() == revision) {
            match snapshot.with_changes(revision, changes) {
                Ok(next) => shared.live.store(next),
                // Cannot be: conflicts were taken out.
                Err(conflicts) => tracing::error!(?conflicts, "the snapshot stays as it was"),
            }
        }
        if let Some(next) = next_head {
            pools_before.extend(shared_pools(&self.head.head));
            self.referenced.replace_head(Path::new(CONTROL_PLANE), Some(&self.head.head), Some(&next.head), now);
            self.head = next;
        } else if !self.lingering.is_empty() {
            keys.extend(shared_pools(&self.head.head));
        }
        self.referenced.replace(tenants_gone.iter(), tenants_put.iter(), now);
        self.retire(pools_before, keys);
        self.keep(touched.into_iter().chain(gone_ids), has_head || outcome.head_newly_refused);
        outcome
    }

    /// Notes why tenants are not in force as they were last sent.
    fn note(&mut self, refused: BTreeMap<Id, Refusal>, outcome: &mut Outcome) {
        for (id, Refusal { errors, refers_to, clashes }) in refused {
            let Some(held) = self.holding.tenants.get_mut(&id) else { continue };
            if held.refused != errors {
                outcome.newly_refused.insert(id.clone());
                held.refused = errors;
            }
            if clashes {
                self.clashing.insert(id.clone());
            } else {
                self.clashing.remove(&id);
            }
            self.referenced.wait(&waiting_name(&id), refers_to);
            self.refused.insert(id);
        }
    }

    /// The head that is to take the place of the one in force, if it is another one and good, and what compiles beside
    /// the one that holds then.
    fn look_at_head<'p>(
        &mut self,
        parts: Parts<'p>,
        document: Option<Sent>,
        again: bool,
        outcome: &mut Outcome,
    ) -> (Option<HeadInForce>, HeadCompiler<'p>) {
        let origin = Path::new(CONTROL_PLANE);
        let in_force = |head: &HeadInForce| HeadCompiler::of_head_in_force(parts, owner(), origin, head.layers.clone());
        let is_other =
            document.as_ref().is_some_and(|sent| self.holding.head.as_ref().map(|held| held.sum) != Some(sent.sum));
        if document.is_some() {
            self.holding.head = document;
        }
        let Some(sent) = self.holding.head.clone().filter(|_| is_other || again) else {
            return (None, in_force(&self.head));
        };
        let next =
            pushed_head(&sent.content, sent.revision, &self.folder).map_err(|errors| (to_strings(&errors), Vec::new()));
        let next = next.and_then(|head| {
            if self.head.sent.is_some() && same_but_for_revision(&self.head.head, &head) && !again {
                return Ok(None);
            }
            let out = head_leads_out(&head, &self.folder);
            if !out.is_empty() {
                return Err((out, files_of_head(&head).into_iter().map(Path::to_owned).collect()));
            }
            let layers = Arc::new(SharedLayers::new(&head));
            let (compiler, wrong) = HeadCompiler::new(parts, &owner(), origin, &head, layers.clone());
            if wrong.is_empty() {
                let next = HeadInForce { sent: Some(sent.clone()), head: Arc::new(head), layers };
                return Ok(Some((next, compiler)));
            }
            let errors = wrong.iter().map(|(id, error)| format!("{CONTROL_PLANE}: upstreams.{id}: {error}")).collect();
            Err((errors, files_of_head(&head).into_iter().map(Path::to_owned).collect()))
        });
        let (errors, refers_to) = next.as_ref().err().cloned().unwrap_or_default();
        self.referenced.wait(origin, refers_to);
        outcome.head_newly_refused = !errors.is_empty() && errors != self.head_refused;
        self.head_refused = errors;
        match next {
            Ok(Some((next, compiler))) => (Some(next), compiler),
            Ok(None) => {
                self.head.sent = Some(sent);
                (None, in_force(&self.head))
            }
            Err(_) => (None, in_force(&self.head)),
        }
    }

    /// Holds these documents; gives the tenants whose documents are others now, and those that are gone.
    fn hold(&mut self, put: Vec<(Id, Sent)>, gone: BTreeSet<Id>) -> (BTreeSet<Id>, BTreeMap<Id, HeldTenant>) {
        let mut touched = BTreeSet::new();
        for (id, sent) in put {
            match self.holding.tenants.get_mut(&id) {
                Some(held) if held.newest.sum == sent.sum => held.newest.revision = sent.revision,
                Some(held) => {
                    held.newest = sent;
                    touched.insert(id);
                }
                None => {
                    touched.insert(id.clone());
                    self.holding.tenants.insert(id, HeldTenant { newest: sent, in_force: None, refused: Vec::new() });
                }
            }
        }
        let gone = gone.into_iter().filter_map(|id| self.holding.tenants.remove_entry(&id)).collect();
        (touched, gone)
    }

    /// Reads the documents of these tenants, on all processors.
    fn read(&self, todo: &BTreeSet<Id>, head: &TenantHead, other_head: bool) -> Vec<(Id, Read)> {
        let held: Vec<(&Id, &HeldTenant)> =
            todo.iter().filter_map(|id| self.holding.tenants.get_key_value(id)).collect();
        let read = parallel::map(&held, BATCH, |(id, held)| {
            let sent = held.newest.clone();
            if let Some(in_force) = held.in_force.as_ref().filter(|in_force| in_force.sent.sum == sent.sum) {
                // One that was refused may be in force beside a head that is no longer.
                if other_head || !held.refused.is_empty() {
                    pushed_tenant_fits(&in_force.tenant, head).map_err(|errors| to_strings(&errors))?;
                }
                return Ok((sent, in_force.tenant.clone()));
            }
            let tenant = pushed_tenant(&sent.content, head, &self.folder).map_err(|errors| to_strings(&errors))?;
            if tenant.id != **id {
                let other = &tenant.id;
                return Err(vec![format!(
                    "{CONTROL_PLANE}: the document of the tenant {id} is one of the tenant {other}"
                )]);
            }
            Ok((sent, Arc::new(tenant)))
        });
        held.into_iter().map(|(id, _)| id.clone()).zip(read).collect()
    }

    /// Ends what nobody uses any more. Tenants in a former state may use upstreams that the head no longer has.
    fn retire(&mut self, before: Vec<PoolKey>, now: Vec<PoolKey>) {
        if before.is_empty() && self.lingering.is_empty() {
            return;
        }
        let now: HashSet<PoolKey> = now.into_iter().collect();
        let mut unused: HashSet<PoolKey> = before.into_iter().chain(self.lingering.drain()).collect();
        unused.retain(|key| !now.contains(key));
        let in_former_state = self.refused.iter().filter_map(|id| self.holding.tenants.get(id)?.in_force.as_ref());
        for in_force in in_former_state {
            for upstream in upstreams_of(&in_force.tenant) {
                let key = PoolKey { owner: owner(), upstream: upstream.clone() };
                if let Some(key) = unused.take(&key) {
                    self.lingering.insert(key);
                }
            }
        }
        let unused: Vec<PoolKey> = unused.into_iter().collect();
        self.shared.upstreams.apply(Vec::new(), &unused);
    }

    /// Keeps these tenants, and the head, as they are now.
    fn keep(&self, tenants: impl IntoIterator<Item = Id>, with_head: bool) {
        let copy = |newest: &Sent, in_force: Option<&Sent>| Copy {
            newest: newest.clone(),
            former: in_force.filter(|former| former.sum != newest.sum).cloned(),
            waits: in_force.is_none(),
        };
        let head = self.holding.head.as_ref().filter(|_| with_head).map(|head| copy(head, self.head.sent.as_ref()));
        let tenants: Vec<_> = tenants
            .into_iter()
            .map(|id| {
                let held = self.holding.tenants.get(&id);
                let kept = held.map(|held| copy(&held.newest, held.in_force.as_ref().map(|in_force| &in_force.sent)));
                (id, kept)
            })
            .collect();
        if head.is_some() || !tenants.is_empty() {
            self.keep_changes(Kept { head, tenants, ..Kept::default() });
        }
    }

    fn keep_changes(&self, changes: Kept) {
        if let Some(keeper) = &self.keeper {
            keeper.keep(changes);
        }
    }

    /// The node is about to end, and another process may have begun to keep what is in force in the same place.
    pub(super) fn stop_keeping(&mut self) {
        self.keeper = None;
    }

    fn is_in_force(&self, id: &Id) -> bool {
        self.holding.tenants.get(id).is_some_and(|held| held.in_force.is_some())
    }

    fn all_well(&self) -> bool {
        self.refused.is_empty() && self.head_refused.is_empty()
    }

    /// Whether what is in force is worth serving: something, or all of an empty configuration.
    fn may_serve(&self) -> bool {
        self.shared.live.load().tenant_count() > 0 || self.all_well()
    }

    pub(super) fn all_refused(&self) -> Vec<Refused> {
        let head = (!self.head_refused.is_empty()).then(|| Refused { tenant: None, errors: self.head_refused.clone() });
        let tenants = self.refused.iter().filter_map(|id| {
            let errors = self.holding.tenants.get(id)?.refused.clone();
            Some(Refused { tenant: Some(id.clone()), errors })
        });
        head.into_iter().chain(tenants).collect()
    }

    fn report(&mut self, outcome: &Outcome, began: Instant) {
        let errors_of = |id: &Id| self.holding.tenants.get(id).into_iter().flat_map(|held| &held.refused);
        let head = self.head_refused.iter().filter(|_| outcome.head_newly_refused);
        for error in head.chain(outcome.newly_refused.iter().take(MOST_SHOWN).flat_map(errors_of)) {
            tracing::error!("configuration refused: {error}");
        }
        let omitted = outcome.newly_refused.len().saturating_sub(MOST_SHOWN);
        if omitted > 0 {
            tracing::error!(omitted, "configuration refused: so many more tenants");
        }
        let mut errors: Vec<String> = self.node_certificates.iter().chain(&self.head_refused).cloned().collect();
        errors.extend(self.refused.iter().take(MOST_SHOWN).flat_map(errors_of).cloned());
        let omitted = self.refused.len().saturating_sub(MOST_SHOWN);
        if omitted > 0 {
            errors.push(format!("and {omitted} more tenants"));
        }
        let snapshot = self.shared.live.load();
        let (revision, tenants) = (snapshot.revision(), snapshot.tenant_count());
        let metrics = &self.shared.metrics.node;
        let refused = self.refused.len() + usize::from(!self.head_refused.is_empty());
        metrics.control_plane.refused.set(i64::try_from(refused).unwrap_or(i64::MAX));
        if outcome.changed {
            self.applied_at = unix_seconds();
            let (changes, took) = (outcome.tenants, began.elapsed());
            tracing::info!(revision, tenants, changes, refused, ?took, "configuration applied");
        }
        if outcome.changed || !errors.is_empty() {
            let result = match (errors.is_empty(), outcome.changed) {
                (true, _) => Reload::Applied,
                (false, true) => Reload::Partial,
                (false, false) => Reload::Refused,
            };
            metrics.config_reloaded(result, revision, unix_seconds() as f64);
        }
        metrics.config_read(0, outcome.compiled);
        self.status.set(ReloadStatus {
            loaded: self.loaded,
            revision,
            tenants,
            from_last_known_good: self.from_kept,
            last_known_good_error: self.keep_error.clone(),
            lost: self.lost.iter().take(MOST_SHOWN).map(ToString::to_string).collect(),
            errors,
            applied_at: self.applied_at,
        });
    }
}

/// Compiles what was read, and sees to it that it can be put in force together.
fn compile(
    mut compiler: HeadCompiler<'_>,
    read: Vec<(Id, Read)>,
    head: &TenantHead,
    folder: &Path,
    gone: &BTreeSet<Id>,
    snapshot: &Snapshot<CompiledTenant>,
) -> Made {
    let (mut ready, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for (id, read) in read {
        let compiled = read.map_err(Refusal::of_document).and_then(|(sent, tenant)| {
            let out = tenant_leads_out(&tenant, folder);
            let compiled = if out.is_empty() {
                compiler.whole_tenant(&tenant, head.revision.max(sent.revision))
            } else {
                Err(out)
            };
            let entry = compiled.map_err(|errors| Refusal {
                refers_to: files_of_tenant(&tenant)
                    .into_iter()
                    .chain(files_of_head(head))
                    .map(Path::to_owned)
                    .collect(),
                ..Refusal::of_document(errors)
            })?;
            let ready = Ready { tenant, sent, entry };
            match snapshot.tenant(id.as_str()).and_then(|former| ready.below(former)) {
                Some(error) => Err(Refusal::of_document(vec![error])),
                None => Ok(ready),
            }
        });
        match compiled {
            Ok(compiled) => drop(ready.insert(id, compiled)),
            Err(refusal) => drop(refused.insert(id, refusal)),
        }
    }
    for (id, errors) in clashes::take_out(&mut ready, gone, snapshot) {
        refused.insert(id, Refusal { clashes: true, ..Refusal::of_document(errors) });
    }
    let HeadCompiler { mut prepared, mut keys, .. } = compiler;
    let is_refused = |key: &PoolKey| matches!(&key.owner, Owner::Tenant(id) if refused.contains_key(id));
    prepared.retain(|prepared| !is_refused(prepared.pool().key()));
    keys.retain(|key| !is_refused(key));
    Made { ready, refused, prepared, keys }
}

impl Ready {
    /// What is wrong with its limits, if those in force are of a higher revision and others.
    fn below(&self, former: &TenantEntry<CompiledTenant>) -> Option<String> {
        let in_force = former.compiled().limits_since;
        self.entry.compiled().limits_since.is_below(in_force).then(|| {
            let rule = Rule::LowerRevision { in_force: in_force.revision, revision: self.sent.revision };
            format!("tenant {}: {rule}\n    fix: the store of the control plane was set back; change the tenant until its revision is above", self.entry.id())
        })
    }
}

impl Refusal {
    /// Nothing but another document mends it, or another head.
    fn of_document(errors: Vec<String>) -> Self {
        Self { errors, refers_to: Vec::new(), clashes: false }
    }
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.changed |= other.changed;
        self.tenants += other.tenants;
        self.compiled += other.compiled;
        self.newly_refused.extend(other.newly_refused);
        self.head_newly_refused |= other.head_newly_refused;
    }
}

/// Whose the upstreams of the head are.
fn owner() -> Owner {
    Owner::Shared(CONTROL_PLANE.into())
}

/// What a tenant is called that waits for files.
fn waiting_name(tenant: &Id) -> PathBuf {
    Path::new(CONTROL_PLANE).join(tenant.as_str())
}

fn shared_pools(head: &TenantHead) -> impl Iterator<Item = PoolKey> + '_ {
    head.upstreams.keys().map(|id| PoolKey { owner: owner(), upstream: id.clone() })
}

fn pools_of(tenant: &Tenant) -> impl Iterator<Item = PoolKey> + '_ {
    tenant.upstreams.keys().map(move |id| PoolKey { owner: Owner::Tenant(tenant.id.clone()), upstream: id.clone() })
}

/// All upstreams that a tenant's routes name.
fn upstreams_of(tenant: &Tenant) -> impl Iterator<Item = &Id> {
    tenant.routes.iter().flat_map(|route| {
        let canary = route.canary.iter().map(|canary| &canary.upstream);
        [&route.upstream].into_iter().chain(canary).chain(route.mirror.iter().map(|mirror| &mirror.upstream))
    })
}

fn to_strings(errors: &seiketsu_config::error::ConfigErrors) -> Vec<String> {
    let mut told: Vec<String> = errors.iter().take(MOST_ERRORS).map(ToString::to_string).collect();
    let omitted = errors.iter().count().saturating_sub(MOST_ERRORS) + errors.omitted();
    if omitted > 0 {
        told.push(format!("and {omitted} more"));
    }
    told
}
