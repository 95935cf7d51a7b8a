//! Takes what the control plane sends, at the price of what has changed: `step` puts it in force, `report` tells of it.
//!
//! A tenant that cannot be put in force keeps its former state and is named; the others go on. So does the head, which
//! all stand beside. What was refused is tried again with whatever may mend it: another document, another head, another
//! file that it refers to, a host that became free.

mod report;
mod step;

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use seiketsu_config::{
    layers::SharedLayers,
    load::CONTROL_PLANE,
    node::ControlPlane,
    push::{Applied, Held, Update},
    tenant::TenantHead,
    values::Id,
};
use tokio::runtime::Handle;
use uuid::Uuid;

use self::step::{Again, Documents, Outcome};
use super::{
    super::{
        referenced::{ReferencedFiles, Renewed},
        reload::node_certificates,
        status::{ReloadStatus, StatusCell},
    },
    holding::{Assembly, Holding, Incoming, Sent},
    keeper::{Changes as Kept, Copy, Keeper, Kept as WasKept, Report},
    numbering::Numbering,
};
use crate::{proxy::Shared, server::tls::LiveTls, telemetry::metrics::Reload, upstream::registry::PoolKey};

/// Documents whose errors are shown and logged. A mistake made by a program is made a hundred thousand times.
const MOST_SHOWN: usize = 100;

pub(super) struct Applier {
    shared: Arc<Shared>,
    tls: Arc<LiveTls>,
    status: Arc<StatusCell>,
    runtime: Handle,
    /// Where relative paths begin.
    folder: PathBuf,
    holding: Holding,
    numbering: Numbering,
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
    /// The one that it was last changed in.
    revision: u64,
    head: Arc<TenantHead>,
    layers: Arc<SharedLayers>,
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
            numbering: Numbering::default(),
            assembly: Assembly::default(),
            head: HeadInForce { sent: None, revision: 0, layers: Arc::new(SharedLayers::new(&head)), head },
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
        self.numbering = kept.state.map(Numbering::from).unwrap_or_default();
        let state = kept.state.map(|state| state.held);
        // First what was in force, then what was refused: it may be good by now.
        let newest = kept.tenants.iter().map(|(_, copy)| copy.newest.revision).max();
        let revision = state.map(|state| state.revision).max(newest).unwrap_or_default();
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
        self.holding.state = state.filter(|state| state.sum == self.holding.sum());
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
        let (refused, refused_more) = self.told_refused();
        Some(Applied { nonce, revision: self.shared.live.load().revision(), refused, refused_more, lost })
    }

    fn apply(&mut self, update: Incoming) {
        let began = Instant::now();
        let is_whole = update.after.is_none();
        if self.numbering.follow(update.to) {
            self.forget_revisions();
        }
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
            self.keep_changes(Kept { state: Some(self.numbering.state(update.to)), only, ..Kept::default() });
        }
        let result = if self.all_well() { Reload::Applied } else { Reload::Partial };
        self.shared.metrics.node.control_plane.updates.count(result);
        self.report(&outcome, began);
    }

    /// What is in force is of revisions that mean nothing any more.
    fn forget_revisions(&mut self) {
        self.head.revision = 0;
        for in_force in self.holding.tenants.values_mut().filter_map(|held| held.in_force.as_mut()) {
            in_force.sent.revision = 0;
        }
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
                let state = self.holding.state.map(|held| self.numbering.state(held));
                self.keep_changes(Kept { state, ..Kept::default() });
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
}
