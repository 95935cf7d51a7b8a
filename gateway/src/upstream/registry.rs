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
    pool::UpstreamPool,
    profile::{Profile, UpstreamError},
    resolver::{Resolver, Watch},
    status::PoolStatus,
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
    Health {
        address: SocketAddr,
        healthy: bool,
        reason: Option<String>,
    },
    /// Set aside for failing requests.
    Ejected {
        address: SocketAddr,
        duration: Duration,
    },
    Returned {
        address: SocketAddr,
    },
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
        let known = self.get(key);
        if let Some(pool) = known.as_ref().filter(|pool| pool.profile().is_surely(upstream)) {
            return Ok(Prepared { pool: Arc::clone(pool), change: None });
        }
        let profile = Arc::new(Profile::compile(upstream, shared.resolver.egress(), &shared.roots)?);
        let pool = match known {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::IpAddr;

    use super::*;
    use crate::upstream::{
        balance::Tried,
        egress::EgressPolicy,
        pool::NoEndpoint,
        testing::{NameServer, OPEN, key, put, registry, registry_with, resolver, selection, until, upstream},
    };

    const ONE: &str = r#"{"endpoints":[{"address":"127.0.0.1:80"}]}"#;

    #[tokio::test]
    async fn what_is_prepared_but_not_applied_leaves_no_trace() {
        let registry = registry();
        let pool = put(&registry, "t", ONE);
        let two = r#"{"endpoints":[{"address":"127.0.0.1:80"},{"address":"127.0.0.2:80"}]}"#;
        drop(registry.prepare(&key("t"), &upstream(two)).unwrap());
        drop(registry.prepare(&key("other"), &upstream(two)).unwrap());
        assert_eq!(pool.status().endpoints.len(), 1);
        assert_eq!(registry.status().len(), 1);
    }

    #[tokio::test]
    async fn the_same_configuration_is_no_change_and_the_pool_stays_the_same() {
        let registry = registry();
        let pool = put(&registry, "t", ONE);
        let same = registry.prepare(&key("t"), &upstream(ONE)).unwrap();
        assert!(!same.is_change());
        assert!(Arc::ptr_eq(same.pool(), &pool));
        let other = registry.prepare(&key("t"), &upstream(&ONE.replace("80", "81"))).unwrap();
        assert!(other.is_change());
        assert!(Arc::ptr_eq(other.pool(), &pool));
    }

    #[tokio::test]
    async fn a_changed_certificate_file_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let write = || {
            std::fs::write(&path, rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem()).unwrap();
        };
        write();
        let json = format!(r#"{{"endpoints":[{{"address":"127.0.0.1:443"}}],"tls":{{"ca":{path:?}}}}}"#);
        let registry = registry();
        put(&registry, "t", &json);
        assert!(!registry.prepare(&key("t"), &upstream(&json)).unwrap().is_change());
        write();
        assert!(registry.prepare(&key("t"), &upstream(&json)).unwrap().is_change());
    }

    #[tokio::test]
    async fn addresses_that_may_not_be_connected_to_are_refused() {
        let closed = registry_with(resolver(&[], EgressPolicy::default()));
        for address in ["127.0.0.1:80", "10.0.0.1:80", "[::ffff:169.254.169.254]:80", "169.254.169.254:80"] {
            let json = format!(r#"{{"endpoints":[{{"address":"{address}"}}]}}"#);
            let error = closed.prepare(&key("t"), &upstream(&json)).unwrap_err();
            assert!(matches!(error, UpstreamError::Denied(_)), "{address}: {error}");
        }
        // A name cannot be judged before it resolves: it just has no endpoint.
        let pool = put(&closed, "t", r#"{"endpoints":[{"address":"localhost:80"}]}"#);
        assert_eq!(pool.pick(&selection(&Tried::default())).unwrap_err(), NoEndpoint::Unresolved);
    }

    #[tokio::test]
    async fn a_grpc_probe_needs_http2() {
        let json = r#"{"endpoints":[],"health":{"probe":{"grpc":{"service":""}}}}"#;
        let error = registry().prepare(&key("t"), &upstream(json)).unwrap_err();
        assert!(matches!(error, UpstreamError::GrpcProbe));
    }

    #[tokio::test]
    async fn endpoints_follow_dns_and_keep_what_is_known_about_them() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.1", "10.0.0.2"]);
        let registry = registry_with(resolver(&[server.address], OPEN));
        let json = r#"{"endpoints":[{"address":"api.test:80"}]}"#;
        let prepared = vec![registry.prepare(&key("t"), &upstream(json)).unwrap()];
        registry.resolve(&prepared, Duration::from_secs(10)).await;
        let pool = Arc::clone(prepared[0].pool());
        registry.apply(prepared, &[]);
        let addresses = || -> Vec<IpAddr> { pool.status().endpoints.iter().map(|e| e.address.ip()).collect() };
        let expected = |list: [&str; 2]| list.map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(addresses(), expected(["10.0.0.1", "10.0.0.2"]), "resolved before it is put in force");
        let permit = pool.admit().unwrap();
        let mut tried = Tried::default();
        let first = pool.pick(&selection(&tried)).unwrap().endpoint;
        tried.add(first.id());
        let second = pool.pick(&selection(&tried)).unwrap().endpoint;
        let of_two = if first.address.ip() == expected(["10.0.0.2", "::"])[0] { first } else { second };
        let in_flight = of_two.begin(&permit);

        server.set(&["10.0.0.2", "10.0.0.3"]);
        until("the new addresses", || addresses() == expected(["10.0.0.2", "10.0.0.3"])).await;
        assert_eq!(pool.status().endpoints[0].in_flight, 1);
        drop(in_flight);
        assert_eq!(pool.status().endpoints[0].in_flight, 0);
    }

    #[tokio::test]
    async fn a_dead_name_does_not_hold_up_the_rest() {
        // Nobody reads from this socket.
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let registry = registry_with(resolver(&[silent.local_addr().unwrap()], OPEN));
        let json = r#"{"endpoints":[{"address":"dead.test:80"},{"address":"127.0.0.1:80"}]}"#;
        let prepared = vec![registry.prepare(&key("t"), &upstream(json)).unwrap()];
        registry.resolve(&prepared, Duration::from_millis(20)).await;
        registry.apply(prepared, &[]);
        assert_eq!(registry.status()[0].endpoints.len(), 1);
    }

    #[tokio::test]
    async fn a_removed_pool_ends_its_work_but_still_serves_who_holds_it() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.1"]);
        let registry = registry_with(resolver(&[server.address], OPEN));
        let pool = put(&registry, "t", r#"{"endpoints":[{"address":"api.test:80"}]}"#);
        until("resolved", || !pool.status().endpoints.is_empty()).await;
        registry.apply(Vec::new(), &[key("t")]);
        assert!(registry.get(&key("t")).is_none());
        server.set(&["10.0.0.2"]);
        // Another name on the same server shows that time has passed for the first one too.
        let other = put(&registry, "other", r#"{"endpoints":[{"address":"other.test:80"}]}"#);
        until("the other resolved", || !other.status().endpoints.is_empty()).await;
        let asked = server.asked();
        until("asked again", || server.asked() > asked + 6).await;
        let picked = pool.pick(&selection(&Tried::default())).unwrap();
        assert_eq!(picked.endpoint.address, "10.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn keys_of_different_owners_have_different_digests() {
        let shared =
            |scope: &str, id: &str| PoolKey { owner: Owner::Shared(scope.into()), upstream: id.parse().unwrap() };
        let keys = [key("a"), key("b"), shared("a", "api"), shared("aa", "pi"), shared("a", "a.pi")];
        let mut digests: Vec<_> = keys.iter().map(PoolKey::digest).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), keys.len());
    }
}
