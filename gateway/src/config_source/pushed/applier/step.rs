//! Putting documents in force: what became other is read, compiled and swapped in, and the rest is left as it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use seiketsu_config::{
    check::Rule,
    layers::SharedLayers,
    load::{
        CONTROL_PLANE, files_of_head, files_of_tenant, head_leads_out, parallel, pushed_head, pushed_tenant,
        pushed_tenant_fits, tenant_leads_out,
    },
    tenant::{Tenant, TenantHead},
    values::Id,
};

use super::{
    super::{
        super::{
            compile::same_but_for_revision,
            head::{HeadCompiler, Parts},
            reload::RESOLVE_PATIENCE,
        },
        clashes::{self, Claimant},
        holding::{HeldTenant, InForce, Sent},
        numbering::Numbering,
    },
    Applier, HeadInForce,
    report::to_strings,
};
use crate::{
    tenancy::{Change, Snapshot, TenantEntry, compile::CompiledTenant},
    upstream::registry::{Owner, PoolKey, Prepared},
};

/// Documents that a thread reads at once.
const BATCH: usize = 64;

/// Documents that are others than before.
#[derive(Default)]
pub(super) struct Documents {
    pub(super) head: Option<Sent>,
    pub(super) put: Vec<(Id, Sent)>,
    pub(super) gone: BTreeSet<Id>,
}

/// What is looked at again though its document is the same.
#[derive(Default)]
pub(super) struct Again {
    pub(super) head: bool,
    pub(super) tenants: BTreeSet<Id>,
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
    entry: Arc<TenantEntry<CompiledTenant>>,
}

/// A tenant that keeps its former state.
struct Refusal {
    errors: Vec<String>,
    /// It may be good when one of these is another.
    refers_to: Vec<PathBuf>,
    clashes: bool,
}

impl Claimant<CompiledTenant> for Ready {
    fn entry(&self) -> &TenantEntry<CompiledTenant> {
        &self.entry
    }

    fn revision(&self) -> u64 {
        self.sent.revision
    }
}

/// What became of a step.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) changed: bool,
    pub(super) tenants: usize,
    pub(super) compiled: usize,
    /// Refused now, and not before or otherwise.
    pub(super) newly_refused: BTreeSet<Id>,
    pub(super) head_newly_refused: bool,
}

impl Applier {
    /// Compiles what is other than before and puts it in force, but for what is refused. Keeps the documents.
    pub(super) fn step(&mut self, documents: Documents, again: &Again, revision: u64) -> Outcome {
        let now = SystemTime::now();
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        let (resolver, snapshot) = (tls.resolver(), shared.live.load());
        let parts = Parts::of(&shared, &tls, &resolver, &snapshot);
        let mut outcome = Outcome::default();

        let has_head = documents.head.is_some();
        let (next_head, compiler) = self.look_at_head(parts, documents.head, again.head, &mut outcome);
        let (mut touched, renumbered, gone) = self.hold(documents.put, documents.gone);
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
        let head_revision = next_head.as_ref().map_or(self.head.revision, |next| next.revision);
        let number = |sent: &Sent| self.numbering.of_limits(head_revision.max(sent.revision));
        let made = compile(compiler, read, &head, &self.folder, &gone_ids, &snapshot, &number);
        let Made { ready, refused, prepared, mut keys } = made;
        outcome.changed =
            !(ready.is_empty() && gone.is_empty() && next_head.is_none() && snapshot.revision() == revision)
                || prepared.iter().any(Prepared::is_change);
        outcome.compiled = ready.len();
        self.runtime.block_on(shared.upstreams.resolve(&prepared, RESOLVE_PATIENCE));
        shared.upstreams.apply(prepared, &[]);

        let mut pools_before = Vec::new();
        let (mut tenants_gone, mut tenants_put) = (Vec::new(), Vec::new());
        let mut changes: Vec<Change<CompiledTenant>> = Vec::new();
        let mut entries = Vec::new();
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
            entries.push(entry.clone());
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
                Ok(next) => {
                    shared.live.store(next);
                    for entry in &entries {
                        entry.compiled().put_in_force();
                    }
                }
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
        self.keep(touched.into_iter().chain(renumbered).chain(gone_ids), has_head || outcome.head_newly_refused);
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
        if let Some(sent) = document {
            if self.head.sent.as_ref().is_some_and(|in_force| in_force.sum == sent.sum) {
                self.head.revision = sent.revision;
            }
            self.holding.head = Some(sent);
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
                let next =
                    HeadInForce { revision: sent.revision, sent: Some(sent.clone()), head: Arc::new(head), layers };
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
                self.head.revision = sent.revision;
                self.head.sent = Some(sent);
                (None, in_force(&self.head))
            }
            Err(_) => (None, in_force(&self.head)),
        }
    }

    /// Holds these documents; gives the tenants whose documents are others now, those whose documents have another revision
    /// only, and those that are gone.
    fn hold(
        &mut self,
        put: Vec<(Id, Sent)>,
        gone: BTreeSet<Id>,
    ) -> (BTreeSet<Id>, BTreeSet<Id>, BTreeMap<Id, HeldTenant>) {
        let (mut touched, mut renumbered) = (BTreeSet::new(), BTreeSet::new());
        for (id, sent) in put {
            match self.holding.tenants.get_mut(&id) {
                Some(held) if held.newest.sum == sent.sum => {
                    if held.newest.revision != sent.revision {
                        held.newest.revision = sent.revision;
                        renumbered.insert(id);
                    }
                }
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
        (touched, renumbered, gone)
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
}

/// Compiles what was read, and sees to it that it can be put in force together.
fn compile(
    mut compiler: HeadCompiler<'_>,
    read: Vec<(Id, Read)>,
    head: &TenantHead,
    folder: &Path,
    gone: &BTreeSet<Id>,
    snapshot: &Snapshot<CompiledTenant>,
    number: &impl Fn(&Sent) -> u64,
) -> Made {
    let (mut ready, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for (id, read) in read {
        let compiled = read.map_err(Refusal::of_document).and_then(|(sent, tenant)| {
            let out = tenant_leads_out(&tenant, folder);
            let compiled = if out.is_empty() { compiler.whole_tenant(&tenant, number(&sent)) } else { Err(out) };
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
            let rule = Rule::LowerRevision { in_force: Numbering::shown(in_force.revision), revision: self.sent.revision };
            format!("tenant {}: {rule}\n    fix: what is in force has a higher revision; change the tenant until its revision is above", self.entry.id())
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
    pub(super) fn add(&mut self, other: Self) {
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
