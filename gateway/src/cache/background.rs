//! Requests that the cache makes itself: to validate what is being served stale (RFC 5861 §3), and to warm.
//!
//! They take the way of all requests, through the same hooks, on a worker's own thread and connections, without a
//! client: nobody is authenticated, nothing is limited, counted or logged.

use std::{
    any::Any,
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::{HttpProxy, Session, Subrequest, subrequest::Ctx as SubrequestCtx};
use seiketsu_cache::{key::Resource, stored::Stored};
use seiketsu_config::push::is_of_client_alone;
use seiketsu_identity::principal::Principal;
use tokio::{
    io::{AsyncWriteExt, copy, duplex, sink},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{proxy::Gateway, upstream::pool::UpstreamPool};

/// Requests that are under way on one worker. Enough to validate a thousand responses a second where origins take
/// 50 ms, and few enough that clients do not notice: each has a connection to an origin, and buffers.
const AT_ONCE: usize = 64;
/// Of one tenant, and for one upstream, those that wait among them: an origin that hangs keeps each place for a minute, and
/// has to leave some to others.
const OF_ONE: usize = AT_ONCE / 4;
/// Requests that wait for their turn on one worker. Beyond it, stale responses stay stale for longer.
const WAITING: usize = 1024;
/// What is read at a time of an answer that nobody wants to see.
const PIPE_BYTES: usize = 64 << 10;

/// To the end of the answer.
const DEADLINE: Duration = Duration::from_mins(1);
/// From there until it has to have ended.
const GRACE: Duration = Duration::from_secs(5);

/// What such a request is for, and on whose behalf.
pub(crate) struct Internal {
    pub(crate) host: Box<[u8]>,
    pub(crate) secure: bool,
    pub(crate) client: IpAddr,
    /// Whoever is served stale: the origin gets to see the same caller.
    pub(crate) principal: Option<Arc<Principal>>,
    /// Where the response belongs; absent where that is still to be found out.
    pub(crate) place: Option<Place>,
    pub(crate) canary: bool,
    /// Told what became of it: the origin's status, and whether it is stored, or why not.
    pub(crate) done: Option<oneshot::Sender<Fetched>>,
}

/// The place of a response that is being validated, or fetched.
pub(crate) struct Place {
    pub(crate) key: Box<[u8]>,
    pub(crate) resource: Resource,
    pub(crate) identified: bool,
    pub(crate) stored: Option<Arc<Stored>>,
}

/// What came of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetched {
    /// 0: there was no answer.
    pub(crate) status: u16,
    pub(crate) stored: bool,
    /// Why it is not stored, in a word.
    pub(crate) detail: Option<&'static str>,
    /// Else, why there was no answer, nobody to be asked, or nothing kept, in a word.
    pub(crate) failure: Option<&'static str>,
}

impl Drop for Internal {
    fn drop(&mut self) {
        // However it ended: the next one may try.
        if let Some(stored) = self.place.as_ref().and_then(|place| place.stored.as_ref()) {
            stored.refreshed();
        }
    }
}

/// What came of requests that have begun, and how many were not let begin.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) answered: AtomicU64,
    /// There was no answer, or an error of the origin.
    pub(crate) failed: AtomicU64,
    /// They took too long.
    pub(crate) given_up: AtomicU64,
    /// There were too many already, of all tenants or of this one.
    pub(crate) refused: AtomicU64,
}

/// How many requests of each tenant, and for each upstream, are under way on a worker, or wait.
#[derive(Debug, Default)]
struct Shares(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    tenants: HashMap<Box<str>, usize>,
    /// By where they are.
    pools: HashMap<usize, usize>,
}

/// An upstream's pool, held: so nothing else gets to be where it is while it is counted.
type Pool = Arc<dyn Any + Send + Sync>;

fn place(pool: &Pool) -> usize {
    Arc::as_ptr(pool).cast::<()>().addr()
}

/// Counts as one of a tenant's and of an upstream's, as long as it lives.
pub(crate) struct Share {
    shares: Arc<Shares>,
    tenant: Box<str>,
    pool: Pool,
}

impl Shares {
    /// None: the tenant has as many as it may have, or the upstream has.
    fn take(self: &Arc<Self>, tenant: &str, pool: Pool) -> Option<Share> {
        let place = place(&pool);
        let mut taken = self.0.lock();
        let is_full = |count: Option<&usize>| count.is_some_and(|count| *count >= OF_ONE);
        if is_full(taken.tenants.get(tenant)) || is_full(taken.pools.get(&place)) {
            return None;
        }
        *taken.tenants.entry(tenant.into()).or_default() += 1;
        *taken.pools.entry(place).or_default() += 1;
        Some(Share { shares: self.clone(), tenant: tenant.into(), pool })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.0.lock();
        give_back(&mut taken.tenants, &self.tenant);
        give_back(&mut taken.pools, &place(&self.pool));
    }
}

fn give_back<K: Borrow<Q> + Eq + Hash, Q: Eq + Hash + ?Sized>(counts: &mut HashMap<K, usize>, of: &Q) {
    let Some(count) = counts.get_mut(of) else { return };
    *count -= 1;
    if *count == 0 {
        counts.remove(of);
    }
}

/// What a worker has to do.
pub(crate) struct Jobs {
    receiver: mpsc::Receiver<Job>,
    counters: Arc<Counters>,
}

/// A request that waits for its turn.
pub(crate) struct Job {
    head: BytesMut,
    internal: Internal,
    share: Option<Share>,
}

impl Job {
    /// GET, with these fields. `share`: the tenant's, where it has one.
    pub(crate) fn new(target: &Uri, headers: &HeaderMap, internal: Internal, share: Option<Share>) -> Self {
        let mut head = BytesMut::with_capacity(1024);
        head.put_slice(b"GET ");
        head.put_slice(target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).as_bytes());
        head.put_slice(b" HTTP/1.1\r\nhost: ");
        head.put_slice(&internal.host);
        head.put_slice(b"\r\n");
        for (name, value) in headers.iter().filter(|(name, _)| !is_of_client_alone(name)) {
            head.put_slice(name.as_str().as_bytes());
            head.put_slice(b": ");
            head.put_slice(value.as_bytes());
            head.put_slice(b"\r\n");
        }
        head.put_slice(b"\r\n");
        Self { head, internal, share }
    }
}

/// The queues of all workers.
pub(crate) struct Background {
    queues: Box<[Queue]>,
    pub(crate) counters: Arc<Counters>,
}

struct Queue {
    sender: mpsc::Sender<Job>,
    /// Until its worker takes it.
    receiver: Mutex<Option<mpsc::Receiver<Job>>>,
    shares: Arc<Shares>,
}

impl Background {
    pub(crate) fn new(workers: usize) -> Self {
        let queue = |_| {
            let (sender, receiver) = mpsc::channel(WAITING);
            Queue { sender, receiver: Mutex::new(Some(receiver)), shares: Arc::default() }
        };
        Self { queues: (0..workers.max(1)).map(queue).collect(), counters: Arc::default() }
    }

    /// A share of what a worker may do for a tenant, and ask of an upstream. None: it does as much as it may.
    pub(crate) fn share(&self, worker: usize, tenant: &str, pool: &Arc<UpstreamPool>) -> Option<Share> {
        let share = self.queues[worker % self.queues.len()].shares.take(tenant, pool.clone());
        if share.is_none() {
            self.counters.refused.fetch_add(1, Relaxed);
        }
        share
    }

    /// Gives a request to a worker, unless it has too many already.
    pub(crate) fn add(&self, worker: usize, job: Job) {
        if self.queues[worker % self.queues.len()].sender.try_send(job).is_err() {
            self.counters.refused.fetch_add(1, Relaxed);
        }
    }

    /// Gives a request to a worker once it has time for it. Whoever waits sees to it that there are not too many.
    pub(crate) async fn wait_and_add(&self, worker: usize, job: Job) {
        // A worker that has ended has no time any more, and the job says so by being dropped.
        let _ = self.queues[worker % self.queues.len()].sender.send(job).await;
    }

    /// What a worker has to do. Once for each.
    pub(crate) fn jobs(&self, worker: usize) -> Option<Jobs> {
        let receiver = self.queues.get(worker)?.receiver.lock().take()?;
        Some(Jobs { receiver, counters: self.counters.clone() })
    }
}

/// Makes requests as they come, on the worker that calls.
pub(crate) async fn run(proxy: Arc<HttpProxy<Gateway>>, mut jobs: Jobs) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(job) = jobs.receiver.recv().await {
        // Never closed, so there is always a place to wait for.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (proxy, counters) = (proxy.clone(), jobs.counters.clone());
        tokio::spawn(async move {
            perform(proxy, job, &counters).await;
            drop(place);
        });
    }
}

async fn perform(proxy: Arc<HttpProxy<Gateway>>, job: Job, counters: &Counters) {
    // Where it does not end by itself once nobody reads it any more, it is dropped.
    if timeout(DEADLINE + GRACE, request(proxy, job, counters)).await.is_err() {
        tracing::debug!("a request of the cache was dropped");
    }
}

async fn request(proxy: Arc<HttpProxy<Gateway>>, job: Job, counters: &Counters) {
    // The tenant's share is given back at the end.
    let Job { head, internal, share: _share } = job;
    let (mut near, far) = duplex(PIPE_BYTES);
    let session = ServerSession::new_http1(Box::new(far));
    let context = SubrequestCtx::builder().user_ctx(Box::new(Some(internal))).build();
    let served = proxy.process_subrequest(Box::new(session), Box::new(context));
    let client = async move {
        let read = async {
            if near.write_all(&head).await.is_ok() {
                // What is said does not matter: it is what is stored of it.
                let _ = copy(&mut near, &mut sink()).await;
            }
        };
        // Nobody watches over it for being late: there is no client that waits. Then it ends as if that had gone.
        if timeout(DEADLINE, read).await.is_err() {
            counters.given_up.fetch_add(1, Relaxed);
            tracing::debug!("a request of the cache was given up");
        }
    };
    tokio::join!(served, client);
}

/// What a request is for, if the cache has made it. Once.
pub(crate) fn take(session: &mut Session) -> Option<Internal> {
    session.subrequest_ctx.as_mut()?.user_ctx_mut()?.downcast_mut::<Option<Internal>>()?.take()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::*;

    fn pool() -> Pool {
        Arc::new(0_u8)
    }

    fn with(share: Share) -> Job {
        let internal = Internal {
            host: b"a.test".as_slice().into(),
            secure: false,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            principal: None,
            place: None,
            canary: false,
            done: None,
        };
        Job::new(&Uri::from_static("/"), &HeaderMap::new(), internal, Some(share))
    }

    #[test]
    fn a_tenant_leaves_places_to_others() {
        let background = Background::new(1);
        let (taken, add) = (&background.queues[0].shares, |share| background.add(0, with(share)));
        let shares: Vec<_> = (0..AT_ONCE).filter_map(|_| taken.take("a", pool())).collect();
        assert_eq!(shares.len(), OF_ONE);
        assert!(taken.take("b", pool()).is_some());
        shares.into_iter().for_each(add);
        assert!(taken.take("a", pool()).is_none());
        // What has ended makes room for one more.
        let mut jobs = background.jobs(0).unwrap();
        drop(jobs.receiver.try_recv().unwrap());
        let last = taken.take("a", pool());
        assert!(last.is_some() && taken.take("a", pool()).is_none());
    }

    #[test]
    fn an_upstream_of_many_tenants_leaves_places_to_others() {
        let (shares, one) = (Arc::new(Shares::default()), pool());
        let of_one: Vec<_> = (0..AT_ONCE).filter_map(|tenant| shares.take(&tenant.to_string(), one.clone())).collect();
        assert_eq!(of_one.len(), OF_ONE);
        assert!(shares.take("0", pool()).is_some());
    }

    #[test]
    fn what_has_nothing_under_way_is_forgotten() {
        let (shares, one) = (Arc::new(Shares::default()), pool());
        drop([shares.take("a", one.clone()), shares.take("a", pool()), shares.take("b", one)]);
        let taken = shares.0.lock();
        assert!(taken.tenants.is_empty() && taken.pools.is_empty());
    }

    #[test]
    fn no_upstream_gets_to_be_where_one_is_that_is_asked() {
        let (shares, one) = (Arc::new(Shares::default()), pool());
        let share = shares.take("a", one.clone());
        assert_eq!(Arc::strong_count(&one), 2);
        drop(share);
        assert_eq!(Arc::strong_count(&one), 1);
    }
}
