//! Requests that the cache makes itself: to validate what is being served stale (RFC 5861 §3), and to warm.
//!
//! They take the way of all requests, through the same hooks, on a worker's own thread and connections, without a
//! client: nobody is authenticated, nothing is limited, counted or logged.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Uri, header};
use parking_lot::Mutex;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::{HttpProxy, Session, Subrequest, subrequest::Ctx as SubrequestCtx};
use seiketsu_cache::{key::Resource, stored::Stored};
use seiketsu_identity::principal::Principal;
use tokio::{
    io::{AsyncWriteExt, copy, duplex, sink},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::proxy::Gateway;

/// Requests that wait for their turn on one worker. Beyond it, stale responses stay stale for longer.
const WAITING: usize = 1024;
/// What is read at a time of an answer that nobody wants to see.
const PIPE_BYTES: usize = 64 << 10;

/// To the end of the answer.
const DEADLINE: Duration = Duration::from_mins(1);

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
}

impl Drop for Internal {
    fn drop(&mut self) {
        // However it ended: the next one may try.
        if let Some(stored) = self.place.as_ref().and_then(|place| place.stored.as_ref()) {
            stored.refreshed();
        }
    }
}

/// What a worker has to do.
pub(crate) type Jobs = mpsc::Receiver<Job>;

/// A request that waits for its turn.
pub(crate) struct Job {
    head: BytesMut,
    internal: Internal,
}

impl Job {
    /// GET, with these fields.
    pub(crate) fn new(target: &Uri, headers: &HeaderMap, internal: Internal) -> Self {
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
        Self { head, internal }
    }
}

/// Fields that are about a client's connection, what it has already, or which part of a response it wants.
fn is_of_client_alone(name: &http::HeaderName) -> bool {
    [
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::UPGRADE,
        header::EXPECT,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::CACHE_CONTROL,
        header::PRAGMA,
    ]
    .contains(name)
}

/// The queues of all workers.
pub(crate) struct Background(Box<[Queue]>);

struct Queue {
    sender: mpsc::Sender<Job>,
    /// Until its worker takes it.
    receiver: Mutex<Option<Jobs>>,
}

impl Background {
    pub(crate) fn new(workers: usize) -> Self {
        let queue = |_| {
            let (sender, receiver) = mpsc::channel(WAITING);
            Queue { sender, receiver: Mutex::new(Some(receiver)) }
        };
        Self((0..workers.max(1)).map(queue).collect())
    }

    /// Gives a request to a worker. `false`: it has too many already.
    pub(crate) fn add(&self, worker: usize, job: Job) -> bool {
        self.0[worker % self.0.len()].sender.try_send(job).is_ok()
    }

    /// Gives a request to a worker once it has time for it.
    pub(crate) async fn wait_and_add(&self, worker: usize, job: Job) {
        // A worker that has ended has no time any more, and the job says so by being dropped.
        let _ = self.0[worker % self.0.len()].sender.send(job).await;
    }

    /// What a worker has to do. Once for each.
    pub(crate) fn jobs(&self, worker: usize) -> Option<Jobs> {
        self.0.get(worker)?.receiver.lock().take()
    }
}

/// Makes requests as they come, on the worker that calls.
pub(crate) async fn run(proxy: Arc<HttpProxy<Gateway>>, mut jobs: Jobs) {
    while let Some(job) = jobs.recv().await {
        tokio::spawn(perform(proxy.clone(), job));
    }
}

async fn perform(proxy: Arc<HttpProxy<Gateway>>, job: Job) {
    // Nobody watches over it for being late: there is no client that waits.
    if timeout(DEADLINE, request(proxy, job)).await.is_err() {
        tracing::debug!("a request of the cache was given up");
    }
}

async fn request(proxy: Arc<HttpProxy<Gateway>>, job: Job) {
    let Job { head, internal } = job;
    let (mut near, far) = duplex(PIPE_BYTES);
    let session = ServerSession::new_http1(Box::new(far));
    let context = SubrequestCtx::builder().user_ctx(Box::new(Some(internal))).build();
    let served = proxy.process_subrequest(Box::new(session), Box::new(context));
    let client = async move {
        if near.write_all(&head).await.is_ok() {
            // What is said does not matter: it is what is stored of it.
            let _ = copy(&mut near, &mut sink()).await;
        }
    };
    tokio::join!(served, client);
}

/// What a request is for, if the cache has made it. Once.
pub(crate) fn take(session: &mut Session) -> Option<Internal> {
    session.subrequest_ctx.as_mut()?.user_ctx_mut()?.downcast_mut::<Option<Internal>>()?.take()
}
