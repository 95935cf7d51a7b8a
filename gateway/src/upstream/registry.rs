//! All upstreams of the node, by whose they are.
//!
//! A new configuration is taken in two steps, so that one that is refused leaves no trace:
//! [`UpstreamRegistry::prepare`] for each upstream that is new or changed, which may fail, then
//! [`UpstreamRegistry::apply`], which may not. Cost follows the number of changed upstreams, however
//! many there are.

use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use seiketsu_config::{node::NodeConfig, tenant::Upstream, values::Id};
use sha2::{Digest, Sha256};
use tokio::{runtime::Handle, sync::broadcast};

use super::{
    breaker::Transition,
    clock::Clock,
    pool::{PoolStatus, UpstreamPool},
    profile::{Profile, UpstreamError},
    resolver::{Resolver, Watch},
    tls::SystemRoots,
};

/// Whose upstream it is. Connections, health and breakers never cross this border.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// All tenants of one file; the name tells files apart and stays the same when the file changes.
    Shared(Box<str>),
    Tenant(Id),
}

/// The identity of an upstream: it stays the same over all configurations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    pub owner: Owner,
    pub upstream: Id,
}

impl PoolKey {
    /// Different for different keys: each part goes in with its kind and length.
    pub(super) fn digest(&self) -> [u8; 32] {
        let (kind, owner) = match &self.owner {
            Owner::Shared(name) => (0u8, &**name),
            Owner::Tenant(id) => (1, id.as_str()),
        };
        let mut hash = Sha256::new();
        hash.update([kind]);
        for part in [owner, self.upstream.as_str()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Shared(name) => write!(f, "shared {name}: {}", self.upstream),
            Owner::Tenant(id) => write!(f, "tenant {id}: {}", self.upstream),
        }
    }
}

/// Something about an upstream has changed by itself.
#[derive(Debug, Clone)]
pub struct Event {
    pub pool: PoolKey,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// By active checks; with what the last one found, where that was bad.
    Health { address: SocketAddr, healthy: bool, reason: Option<String> },
    /// Set aside for failing requests.
    Ejected { address: SocketAddr, duration: Duration },
    Returned { address: SocketAddr },
    Breaker(Transition),
    /// Health is ignored from now on, since too few are healthy; or no longer.
    Panic(bool),
}

/// Events that a slow listener may lag behind before it misses some.
const EVENTS: usize = 1024;

/// What all pools have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub clock: Clock,
    pub runtime: Handle,
    pub events: broadcast::Sender<Event>,
    resolver: Resolver,
    roots: SystemRoots,
    region: Option<Id>,
    zone: Option<Id>,
}

impl Shared {
    /// 0: own zone, 1: own region or none given, 2: another region.
    pub(super) fn distance(&self, region: Option<&Id>, zone: Option<&Id>) -> u8 {
        match (self.region.as_ref(), region) {
            (Some(own), Some(theirs)) if own != theirs => 2,
            (Some(_), Some(_)) if zone.is_some() && self.zone.as_ref() == zone => 0,
            _ => 1,
        }
    }
}

/// All pools of the node.
#[derive(Debug)]
pub struct UpstreamRegistry {
    shared: Arc<Shared>,
    pools: Mutex<HashMap<PoolKey, Arc<UpstreamPool>>>,
}

/// An upstream that has been checked and waits to be put in force. Dropped, it leaves no trace.
#[derive(Debug)]
pub struct Prepared {
    pool: Arc<UpstreamPool>,
    /// `None`: nothing has changed.
    change: Option<(Arc<Profile>, Vec<Watch>)>,
}

impl Prepared {
    /// The pool to compile into routes. It has its new settings only after [`UpstreamRegistry::apply`].
    pub fn pool(&self) -> &Arc<UpstreamPool> {
        &self.pool
    }

    /// Whether putting it in force would change anything.
    pub fn is_change(&self) -> bool {
        self.change.is_some()
    }
}

impl UpstreamRegistry {
    /// Health checks and name resolution run on `runtime`, which must outlive the registry.
    pub fn new(node: &NodeConfig, resolver: Resolver, roots: SystemRoots, runtime: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock: Clock::new(),
                runtime,
                events: broadcast::channel(EVENTS).0,
                resolver,
                roots,
                region: node.region.clone(),
                zone: node.zone.clone(),
            }),
            pools: Mutex::default(),
        }
    }

    /// Checks an upstream that is new or may have changed. Reads the files it names, so it blocks; name
    /// resolution begins. Prepare a key at most once per [`Self::apply`].
    pub fn prepare(&self, key: &PoolKey, upstream: &Arc<Upstream>) -> Result<Prepared, UpstreamError> {
        let shared = &self.shared;
        let profile = Arc::new(Profile::compile(upstream, shared.resolver.egress(), &shared.roots)?);
        let pool = match self.get(key) {
            Some(pool) if pool.profile().is_same(&profile) => return Ok(Prepared { pool, change: None }),
            Some(pool) => pool,
            None => UpstreamPool::new(key.clone(), shared, &profile),
        };
        let watches = upstream
            .endpoints
            .iter()
            .map(|endpoint| {
                let pool = Arc::downgrade(&pool);
                shared.resolver.watch(endpoint.address.host(), move || {
                    if let Some(pool) = pool.upgrade() {
                        pool.refresh();
                    }
                })
            })
            .collect();
        Ok(Prepared { pool, change: Some((profile, watches)) })
    }

    /// Waits until all names have been asked for, so that new upstreams begin with endpoints; but no
    /// longer than `patience`, since a dead name must not hold up the rest.
    pub async fn resolve(&self, prepared: &[Prepared], patience: Duration) {
        let watches = prepared.iter().filter_map(|prepared| prepared.change.as_ref()).flat_map(|(_, w)| w);
        let all = futures::future::join_all(watches.map(Watch::asked));
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("not all names of upstreams are resolved yet; going on without them");
        }
    }

    /// Puts changes in force and removes pools that are no longer configured, with their background
    /// work. Snapshots that still hold a removed pool go on with what it knew.
    pub fn apply(&self, prepared: Vec<Prepared>, removed: &[PoolKey]) {
        for Prepared { pool, change } in prepared {
            let Some((profile, watches)) = change else { continue };
            pool.configure(profile, watches);
            let before = self.pools.lock().insert(pool.key().clone(), Arc::clone(&pool));
            if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &pool)) {
                before.retire();
            }
        }
        for key in removed {
            let gone = self.pools.lock().remove(key);
            if let Some(gone) = gone {
                gone.retire();
            }
        }
    }

    pub fn get(&self, key: &PoolKey) -> Option<Arc<UpstreamPool>> {
        self.pools.lock().get(key).cloned()
    }

    /// What happens to upstreams from now on, for metrics and the log of events.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// All pools, for `/config` and metrics, in order of their keys.
    pub fn status(&self) -> Vec<PoolStatus> {
        let mut pools: Vec<_> = self.pools.lock().values().cloned().collect();
        pools.sort_by(|one, other| one.key().cmp(other.key()));
        pools.iter().map(|pool| pool.status()).collect()
    }
}
