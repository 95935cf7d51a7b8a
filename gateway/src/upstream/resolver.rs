//! The one resolver: names to addresses that the gateway may connect to.
//!
//! Upstream names are watched: a task per name asks again when the answer's TTL has run out (within the
//! node's bounds) and tells its pools when something changed. No request ever waits for DNS. When a name
//! server fails, or a name is suddenly gone, the last good answer stays: stale beats nothing.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RecordType},
};
use parking_lot::Mutex;
use seiketsu_config::{node::Dns, values::HostPort};
use tokio::{runtime::Handle, sync::watch};

use super::{
    answer::{Answer, Questions, Reply, pause},
    egress::{Denied, EgressPolicy},
};
use crate::telemetry::{
    metrics::{Counters, DnsFailure},
    silence::Silence,
};

/// How long one question may take, further attempts included.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the node's DNS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    #[error("dns.servers: {server} is a name; write the address of the name server")]
    ServerByName { server: HostPort },
    #[error("the resolver cannot be set up: {0}")]
    Setup(NetError),
}

/// Why a name has no address to connect to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    #[error("{host} cannot be resolved: {source}")]
    Dns { host: String, source: NetError },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("{host} may not be connected to: {denied}")]
    Denied { host: String, denied: Denied },
}

/// Cheap to clone; all clones share their answers.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    dns: TokioResolver,
    egress: EgressPolicy,
    min_refresh: Duration,
    max_refresh: Duration,
    runtime: Handle,
    failures: Counters<DnsFailure>,
    names: Mutex<HashMap<Box<str>, Weak<Name>>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("egress", &self.inner.egress).finish_non_exhaustive()
    }
}

impl Resolver {
    /// Uses the servers of `dns`, or else those of the system. Background work runs on `runtime`.
    pub fn new(
        dns: &Dns,
        egress: EgressPolicy,
        failures: Counters<DnsFailure>,
        runtime: Handle,
    ) -> Result<Self, ResolverError> {
        let mut builder = if dns.servers.is_empty() {
            TokioResolver::builder_tokio().unwrap_or_else(|error| {
                tracing::warn!(%error, "this system names no name server: only addresses and localhost will resolve");
                with_servers(Vec::new())
            })
        } else {
            with_servers(dns.servers.iter().map(name_server).collect::<Result<_, _>>()?)
        };
        // Answers are kept here; a second cache would only make them older.
        builder.options_mut().cache_size = 0;
        let dns_client = builder.build().map_err(ResolverError::Setup)?;
        Ok(Self {
            inner: Arc::new(Inner {
                dns: dns_client,
                egress,
                min_refresh: dns.min_refresh.get().max(Duration::from_millis(1)),
                max_refresh: dns.max_refresh.get().max(dns.min_refresh.get()),
                runtime,
                failures,
                names: Mutex::default(),
            }),
        })
    }

    pub fn egress(&self) -> EgressPolicy {
        self.inner.egress
    }

    /// Resolves now, for requests of the gateway's own. Only addresses that may be connected to.
    pub async fn lookup(&self, host: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        if let Some(address) = without_dns(host) {
            return match self.inner.egress.check(address) {
                Ok(()) => Ok(Arc::new([address])),
                Err(denied) => Err(LookupError::Denied { host: host.to_owned(), denied }),
            };
        }
        let watched = self.inner.names.lock().get(host).and_then(Weak::upgrade);
        if let Some(name) = watched {
            let known = Arc::clone(&name.answer.borrow().addresses);
            if !known.is_empty() {
                return Ok(known);
            }
        }
        let answer = self.inner.ask(host).await;
        let addresses = Answer::default().updated(&answer).addresses;
        if addresses.is_empty() { Err(answer.error(host)) } else { Ok(addresses) }
    }

    /// Keeps a name resolved until the [`Watch`] is dropped, and calls `on_change` whenever its addresses
    /// have changed. Addresses and localhost need no watching: they are there at once and stay.
    pub fn watch(&self, host: &str, on_change: impl Fn() + Send + Sync + 'static) -> Watch {
        if let Some(address) = without_dns(host) {
            let allowed = self.inner.egress.check(address).is_ok();
            return Watch::Fixed(if allowed { Arc::new([address]) } else { Arc::new([]) });
        }
        let mut names = self.inner.names.lock();
        let name = names.get(host).and_then(Weak::upgrade).unwrap_or_else(|| {
            let name = Arc::new(Name {
                host: host.into(),
                answer: watch::Sender::default(),
                listeners: Mutex::default(),
                silence: Silence::new(),
                resolver: Arc::downgrade(&self.inner),
            });
            names.insert(host.into(), Arc::downgrade(&name));
            self.inner.runtime.spawn(keep_fresh(Arc::downgrade(&name)));
            name
        });
        drop(names);
        let listener: Arc<OnChange> = Arc::new(on_change);
        name.listeners.lock().push(Arc::downgrade(&listener));
        Watch::Name(Watched { name, _listener: listener })
    }
}

impl Inner {
    async fn ask(&self, host: &str) -> Questions {
        let (v4, v6) = tokio::join!(self.ask_family(host, RecordType::A), self.ask_family(host, RecordType::AAAA));
        let questions = Questions { v4, v6 };
        if let Some(failure) = questions.failure() {
            self.failures.count(failure);
        }
        questions
    }

    async fn ask_family(&self, host: &str, family: RecordType) -> Reply {
        let asked = tokio::time::timeout(QUERY_TIMEOUT, self.dns.lookup(host, family)).await;
        match asked.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => {
                let mut addresses = Vec::new();
                let mut ttl = u32::MAX;
                let mut denied = None;
                for record in lookup.answers() {
                    ttl = ttl.min(record.ttl);
                    let Some(address) = record.data.ip_addr() else { continue };
                    match self.egress.check(address) {
                        Ok(()) => addresses.push(address),
                        Err(reason) => denied = Some(reason),
                    }
                }
                addresses.sort_unstable();
                addresses.dedup();
                Reply::Answer { addresses, denied, ttl: Duration::from_secs(ttl.into()) }
            }
            // The name has no such records, or does not exist: an answer like any other.
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                let ttl = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                Reply::Answer { addresses: Vec::new(), denied: None, ttl }
            }
            Err(error) => Reply::Failed(error),
        }
    }
}

struct Name {
    host: Box<str>,
    answer: watch::Sender<Answer>,
    listeners: Mutex<Vec<Weak<OnChange>>>,
    /// About a name without an address: most are slips, and stay.
    silence: Silence,
    resolver: Weak<Inner>,
}

type OnChange = dyn Fn() + Send + Sync;

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(resolver) = self.resolver.upgrade() {
            let mut names = resolver.names.lock();
            // Another may have begun to watch the same name in the meantime.
            if names.get(&*self.host).is_some_and(|name| name.strong_count() == 0) {
                names.remove(&*self.host);
            }
        }
    }
}

/// Asks for a name again and again until nobody watches it any more.
async fn keep_fresh(name: Weak<Name>) {
    let mut failures = 0;
    loop {
        let Some((this, resolver)) = name.upgrade().and_then(|n| n.resolver.upgrade().map(|r| (n, r))) else {
            return;
        };
        let questions = resolver.ask(&this.host).await;
        this.publish(&questions);
        let pause = pause(&questions, &mut failures, resolver.min_refresh, resolver.max_refresh);
        // Held while asleep, they would never be dropped.
        drop((this, resolver));
        tokio::time::sleep(pause).await;
    }
}

impl Name {
    fn publish(&self, questions: &Questions) {
        let before = self.answer.borrow().clone();
        let after = before.updated(questions);
        for reply in [&questions.v4, &questions.v6] {
            match reply {
                Reply::Failed(error) => {
                    tracing::warn!(host = %self.host, %error, kept = after.addresses.len(), "a name could not be resolved; its last addresses stay in use");
                }
                Reply::Answer { denied: Some(denied), .. } => {
                    tracing::warn!(host = %self.host, %denied, "a name resolves to an address that may not be connected to");
                }
                Reply::Answer { .. } => {}
            }
        }
        if questions.failure() == Some(DnsFailure::NoAddress) && self.silence.is_over(SystemTime::now()) {
            tracing::warn!(host = %self.host, kept = after.addresses.len(), "a name does not exist, or has no address; those it had stay in use");
        }
        let changed = before.addresses != after.addresses;
        if changed {
            tracing::info!(host = %self.host, addresses = ?after.addresses, "the addresses of a name have changed");
        }
        self.answer.send_replace(after);
        if changed {
            let listeners: Vec<_> = {
                let mut listeners = self.listeners.lock();
                listeners.retain(|listener| listener.strong_count() > 0);
                listeners.iter().filter_map(Weak::upgrade).collect()
            };
            for listener in listeners {
                listener();
            }
        }
    }
}

/// A name that is kept resolved as long as this lives.
pub enum Watch {
    Fixed(Arc<[IpAddr]>),
    Name(Watched),
}

/// A name that the resolver asks for, and whom to tell. Opaque to callers.
#[allow(missing_debug_implementations)] // `Watch` has one.
pub struct Watched {
    name: Arc<Name>,
    _listener: Arc<OnChange>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.addresses()).finish()
    }
}

impl Watch {
    /// The addresses as last known; none before the first answer.
    pub fn addresses(&self) -> Arc<[IpAddr]> {
        match self {
            Self::Fixed(addresses) => Arc::clone(addresses),
            Self::Name(Watched { name, .. }) => Arc::clone(&name.answer.borrow().addresses),
        }
    }

    /// Waits until the name has been asked for once, with whatever result.
    pub async fn asked(&self) {
        if let Self::Name(Watched { name, .. }) = self {
            let mut answer = name.answer.subscribe();
            // The sender lives as long as `self`, so this cannot fail.
            let _ = answer.wait_for(|answer| answer.asked).await;
        }
    }
}

/// Addresses and localhost (RFC 6761 §6.3), which no name server needs to be asked for. `localhost` is
/// 127.0.0.1 only: servers that listen on one family mostly choose that one; `[::1]` can be written.
fn without_dns(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_localhost = || {
        let last = bare.rsplit('.').next().unwrap_or_default();
        last.eq_ignore_ascii_case("localhost")
    };
    bare.parse().ok().or_else(|| is_localhost().then_some(Ipv4Addr::LOCALHOST.into()))
}

fn with_servers(servers: Vec<NameServerConfig>) -> hickory_resolver::ResolverBuilder<TokioRuntimeProvider> {
    TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), TokioRuntimeProvider::default())
}

fn name_server(server: &HostPort) -> Result<NameServerConfig, ResolverError> {
    let ip = server.host().parse().map_err(|_| ResolverError::ServerByName { server: server.clone() })?;
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    Ok(NameServerConfig::new(ip, true, connections.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::upstream::testing::{NameServer, OPEN, failures, resolver, until};

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn addresses_and_localhost_need_no_name_server() {
        let resolver = resolver(&["127.0.0.1:9".parse().unwrap()], OPEN);
        for (host, expected) in [
            ("localhost", "127.0.0.1"),
            ("api.localhost", "127.0.0.1"),
            ("127.0.0.9", "127.0.0.9"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(*resolver.lookup(host).await.unwrap(), addresses(&[expected])[..], "{host}");
            assert_eq!(*resolver.watch(host, || ()).addresses(), addresses(&[expected])[..], "{host}");
        }
    }

    #[tokio::test]
    async fn changed_answers_are_noticed_and_told() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.2", "10.0.0.1"]);
        let resolver = resolver(&[server.address], OPEN);
        let told = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&told);
        let watch = resolver.watch("api.test", move || {
            counter.fetch_add(1, Relaxed);
        });
        watch.asked().await;
        assert_eq!(*watch.addresses(), addresses(&["10.0.0.1", "10.0.0.2"])[..]);
        until("told of the first answer", || told.load(Relaxed) == 1).await;
        server.set(&["10.0.0.3", "2606:4700::1"]);
        until("the new addresses", || *watch.addresses() == addresses(&["10.0.0.3", "2606:4700::1"])[..]).await;
        let asked = server.asked();
        until("asked again", || server.asked() > asked + 4).await;
        assert_eq!(told.load(Relaxed), 2, "only changes are told");
    }

    #[tokio::test]
    async fn stale_addresses_stay_when_the_server_fails_or_the_name_is_gone() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.1"]);
        let resolver = resolver(&[server.address], OPEN);
        let watch = resolver.watch("api.test", || ());
        watch.asked().await;
        let broken: [&dyn Fn(); 2] = [&|| server.forget(), &|| {
            for family in [RecordType::A, RecordType::AAAA] {
                server.fail(family, ResponseCode::ServFail);
            }
        }];
        for make_broken in broken {
            make_broken();
            let asked = server.asked();
            until("asked again", || server.asked() > asked + 4).await;
            assert_eq!(*watch.addresses(), addresses(&["10.0.0.1"])[..]);
        }
        let counted = &resolver.inner.failures;
        assert!(counted.get(DnsFailure::NoAddress) > 0 && counted.get(DnsFailure::Failed) > 0, "{counted:?}");
        assert_eq!(counted.get(DnsFailure::Denied), 0);
        server.set(&["10.0.0.2"]);
        until("the server is back", || *watch.addresses() == addresses(&["10.0.0.2"])[..]).await;
    }

    #[tokio::test]
    async fn a_failing_family_does_not_take_its_addresses_away() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.1", "2606:4700::1"]);
        let resolver = resolver(&[server.address], OPEN);
        let watch = resolver.watch("api.test", || ());
        watch.asked().await;
        server.set(&["10.0.0.2"]);
        server.fail(RecordType::AAAA, ResponseCode::ServFail);
        until("the family that works", || *watch.addresses() == addresses(&["10.0.0.2", "2606:4700::1"])[..]).await;
    }

    #[tokio::test]
    async fn denied_addresses_never_come_out() {
        let server = NameServer::start().await;
        server.set(&["169.254.169.254", "127.0.0.1", "8.8.8.8", "::ffff:10.0.0.1", "fe80::1"]);
        let resolver = resolver(&[server.address], EgressPolicy::default());
        let watch = resolver.watch("api.test", || ());
        watch.asked().await;
        assert_eq!(*watch.addresses(), addresses(&["8.8.8.8"])[..]);
        assert_eq!(*resolver.lookup("other.test").await.unwrap(), addresses(&["8.8.8.8"])[..]);
        assert!(matches!(resolver.lookup("127.0.0.1").await, Err(LookupError::Denied { .. })));
        // A name that is moved to the inside loses its endpoints: this is no failure to be ridden out.
        server.set(&["169.254.169.254"]);
        until("no address", || watch.addresses().is_empty()).await;
        assert!(resolver.inner.failures.get(DnsFailure::Denied) > 0);
        assert!(matches!(resolver.lookup("other.test").await, Err(LookupError::Denied { .. })));
    }

    #[tokio::test]
    async fn a_name_nobody_watches_is_no_longer_asked_for() {
        let server = NameServer::start().await;
        server.set(&["10.0.0.1"]);
        let resolver = resolver(&[server.address], OPEN);
        let (one, other) = (resolver.watch("api.test", || ()), resolver.watch("api.test", || ()));
        other.asked().await;
        assert_eq!(resolver.inner.names.lock().len(), 1, "two watchers share one name");
        drop(one);
        let asked = server.asked();
        until("still asked for the other", || server.asked() > asked + 2).await;
        drop(other);
        until("forgotten", || resolver.inner.names.lock().is_empty()).await;
    }

    #[tokio::test]
    async fn a_name_server_is_given_by_address() {
        let dns = Dns { servers: vec!["ns.example.com:53".parse().unwrap()], ..Dns::default() };
        let refused = Resolver::new(&dns, OPEN, failures(), Handle::current());
        assert!(matches!(refused, Err(ResolverError::ServerByName { .. })));
    }
}
