//! Purges, of this node or of all.
//!
//! A purge is made here at once. Where nodes share a Redis, it is also written to a stream there, which all of them
//! follow: the stream is the store and the hint in one. A node that was cut off reads on where it was when it comes
//! back; where that is no longer known, since the stream was trimmed or lost, everything is purged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{RedisError, aio::ConnectionLike, streams::StreamReadReply};
use seiketsu_cache::{key::Resource, purge::Purge, storage::Storage};
use seiketsu_config::{node::NodeConfig, values::RedisUrlError};
use seiketsu_limits::coordinator::redis::{
    address::{RedisAddress, RedisAddressError},
    dialer::{Connection, Dialer},
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::sleep,
};

/// Where purges stand. One key, so that a cluster keeps them in one place and in one order.
const STREAM: &str = "seiketsu:cache:purges";
/// Purges that are kept; a node that has missed more than these purges everything.
const KEPT: usize = 100_000;
const READ_AT_ONCE: usize = 1000;
/// How long Redis waits for the next purge before it says that there is none.
const BLOCK: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(200);
/// Purges that wait to be told to others.
const WAITING: usize = 10_000;
/// The place before the first entry.
const BEGINNING: &str = "0-0";

/// Why purges of other nodes cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum PurgingError {
    #[error("limits.redis.url: {0}")]
    Url(#[from] RedisUrlError),
    #[error("limits.redis.url: {0}")]
    Address(#[from] RedisAddressError),
}

/// Other nodes were not told.
#[derive(Debug, thiserror::Error)]
#[error("purged on this node only, since Redis cannot be reached: purge again when it can")]
pub(crate) struct NotTold;

/// Who purges.
#[derive(Debug)]
pub(crate) struct Purging {
    storage: Arc<Storage>,
    /// Present where others are told.
    outbox: Option<mpsc::Sender<Letter>>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) here: AtomicU64,
    pub(crate) by_others: AtomicU64,
    /// Everything was purged, since it is not known what was.
    pub(crate) missed: AtomicU64,
    pub(crate) untold: AtomicU64,
    pub(crate) connected: AtomicBool,
}

/// A purge for others, and who wants to know that it has been sent.
#[derive(Debug)]
struct Letter {
    text: String,
    sent: Option<oneshot::Sender<()>>,
}

/// A purge as it stands in the stream.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
struct Message {
    tenant: String,
    what: What,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum What {
    All,
    Url { host: String, path: String, query: Option<String> },
    Prefix { host: Option<String>, path: String },
    Tag(String),
}

impl Purging {
    /// Where nodes share a Redis, follows what others purge, on `runtime`.
    pub(crate) fn start(node: &NodeConfig, storage: Arc<Storage>, runtime: &Handle) -> Result<Arc<Self>, PurgingError> {
        let counters = Counters::default();
        let Some(redis) = node.limits.redis.as_ref().filter(|_| node.cache.memory.get() > 0) else {
            return Ok(Arc::new(Self { storage, outbox: None, counters }));
        };
        let address = RedisAddress::parse(&redis.url.read()?)?;
        let (outbox, letters) = mpsc::channel(WAITING);
        let purging = Arc::new(Self { storage, outbox: Some(outbox), counters });
        runtime.spawn(tell(Dialer::new(address.clone(), ANSWER_TIMEOUT), letters));
        runtime.spawn(follow(purging.clone(), Dialer::new(address, ANSWER_TIMEOUT)));
        Ok(purging)
    }

    /// Purges here and at others. `false`: no tenant of this name uses the cache here.
    pub(crate) async fn purge(&self, tenant: &str, purge: Purge) -> Result<bool, NotTold> {
        let text = text(tenant, &purge);
        let known = self.here(tenant, purge);
        if let Some(outbox) = &self.outbox {
            let (sent, was_sent) = oneshot::channel();
            let told = outbox.try_send(Letter { text, sent: Some(sent) }).is_ok()
                && matches!(tokio::time::timeout(ANSWER_TIMEOUT, was_sent).await, Ok(Ok(())));
            if !told {
                self.counters.untold.fetch_add(1, Relaxed);
                return Err(NotTold);
            }
        }
        Ok(known)
    }

    /// What an unsafe request has made invalid. Others are told, but nobody waits for it.
    pub(crate) fn invalidate(&self, tenant: &str, resources: impl IntoIterator<Item = Resource>) {
        for resource in resources {
            let purge = Purge::Url(resource);
            if let Some(outbox) = &self.outbox
                && outbox.try_send(Letter { text: text(tenant, &purge), sent: None }).is_err()
            {
                self.counters.untold.fetch_add(1, Relaxed);
            }
            self.here(tenant, purge);
        }
    }

    /// Whether purges of others are heard, or there are no others.
    pub(crate) fn hears(&self) -> bool {
        self.outbox.is_none() || self.counters.connected.load(Relaxed)
    }

    /// Purges here and nowhere else. `false`: no tenant of this name uses the cache here.
    pub(crate) fn here(&self, tenant: &str, purge: Purge) -> bool {
        let Some(purges) = self.storage.purges(tenant) else { return false };
        purges.add(purge);
        self.counters.here.fetch_add(1, Relaxed);
        true
    }

    /// What another node has purged, or this one.
    fn heard(&self, text: &str) {
        let Ok(message) = serde_json::from_str::<Message>(text) else {
            tracing::warn!("a purge of another node cannot be read; everything is purged");
            return self.everything();
        };
        if let Some(purges) = self.storage.purges(&message.tenant) {
            purges.add(message.what.into());
            self.counters.by_others.fetch_add(1, Relaxed);
        }
    }

    /// Purges all that is stored, since it is not known what of it was.
    pub(crate) fn everything(&self) {
        self.counters.missed.fetch_add(1, Relaxed);
        for purges in self.storage.all_purges() {
            purges.add(Purge::All);
        }
    }
}

fn text(tenant: &str, purge: &Purge) -> String {
    let message = Message { tenant: tenant.to_owned(), what: purge.into() };
    // Texts only: it can always be written.
    serde_json::to_string(&message).unwrap_or_default()
}

impl From<&Purge> for What {
    fn from(purge: &Purge) -> Self {
        match purge {
            Purge::All => Self::All,
            Purge::Url(resource) => {
                let (host, path) = (resource.host().to_owned(), resource.path().to_owned());
                let query = resource.path_and_query().strip_prefix(&*path).and_then(|rest| rest.strip_prefix('?'));
                Self::Url { query: query.map(str::to_owned), host, path }
            }
            Purge::Prefix { host, path } => {
                Self::Prefix { host: host.as_deref().map(str::to_owned), path: path.to_string() }
            }
            Purge::Tag(tag) => Self::Tag(tag.to_string()),
        }
    }
}

impl From<What> for Purge {
    fn from(what: What) -> Self {
        match what {
            What::All => Self::All,
            What::Url { host, path, query } => Self::Url(Resource::new(host.as_bytes(), &path, query.as_deref())),
            What::Prefix { host, path } => Self::Prefix { host: host.map(Into::into), path: path.into() },
            What::Tag(tag) => Self::Tag(tag.into()),
        }
    }
}

/// Writes purges to the stream, in their order; none is given up but when the node ends.
async fn tell(mut dialer: Dialer, mut letters: mpsc::Receiver<Letter>) {
    let mut connection: Option<Connection> = None;
    while let Some(letter) = letters.recv().await {
        loop {
            let Some(open) = &mut connection else {
                match dialer.connect().await {
                    Ok(open) => connection = Some(open),
                    Err(_) => sleep(RETRY).await,
                }
                continue;
            };
            let mut command = redis::cmd("XADD");
            command.arg(STREAM).arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg("purge").arg(&letter.text);
            if command.query_async::<String>(open).await.is_ok() {
                break;
            }
            connection = None;
            sleep(RETRY).await;
        }
        if let Some(sent) = letter.sent {
            // Whoever wanted to know may have given up.
            let _ = sent.send(());
        }
    }
}

/// Follows the stream for as long as the node runs.
async fn follow(purging: Arc<Purging>, mut dialer: Dialer) {
    // The last entry that was read.
    let mut place: Option<String> = None;
    loop {
        if let Ok(mut connection) = dialer.connect().await
            && let Err(error) = read(&purging, &mut connection, &mut place).await
        {
            tracing::debug!(%error, "purges of other nodes are not heard");
        }
        purging.counters.connected.store(false, Relaxed);
        sleep(RETRY).await;
    }
}

/// The edges of the stream.
struct Edges {
    first: Option<String>,
    last: String,
    /// Entries have been trimmed.
    is_cut: bool,
}

async fn read(purging: &Purging, connection: &mut Connection, place: &mut Option<String>) -> Result<(), RedisError> {
    let edges = edges(connection).await?;
    let place = match place {
        None => {
            // What was stored before anybody was heard may have been purged.
            purging.everything();
            place.insert(edges.last)
        }
        Some(place) => {
            if !continues(place, &edges) {
                purging.everything();
                *place = edges.last;
            }
            place
        }
    };
    loop {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(READ_AT_ONCE).arg("BLOCK").arg(BLOCK.as_millis().to_string());
        command.arg("STREAMS").arg(STREAM).arg(&*place);
        let reply: Option<StreamReadReply> = command.query_async(connection).await?;
        for entry in reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids) {
            if let Some(text) = entry.get::<String>("purge") {
                purging.heard(&text);
            }
            *place = entry.id;
        }
        purging.counters.connected.store(true, Relaxed);
    }
}

async fn edges(connection: &mut (impl ConnectionLike + Send)) -> Result<Edges, RedisError> {
    let exists: bool = redis::cmd("EXISTS").arg(STREAM).query_async(connection).await?;
    if !exists {
        return Ok(Edges { first: None, last: BEGINNING.to_owned(), is_cut: false });
    }
    let info: redis::streams::StreamInfoStreamReply =
        redis::cmd("XINFO").arg("STREAM").arg(STREAM).query_async(connection).await?;
    let first = (info.length > 0).then_some(info.first_entry.id);
    Ok(Edges { first, last: info.last_generated_id, is_cut: info.length >= KEPT })
}

/// Whether everything after this place still stands in the stream.
fn continues(last: &str, edges: &Edges) -> bool {
    let number = |id: &str| -> Option<(u64, u64)> {
        let (millis, sequence) = id.split_once('-')?;
        Some((millis.parse().ok()?, sequence.parse().ok()?))
    };
    let (Some(here), Some(end)) = (number(last), number(&edges.last)) else { return false };
    // Another stream, which begins anew: the one before was lost.
    if end < here {
        return false;
    }
    let first = edges.first.as_deref().and_then(number);
    if here == (0, 0) {
        return !edges.is_cut;
    }
    // Without the entry that was read last, others may be missing as well.
    first.is_some_and(|first| first <= here)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_purge_comes_out_as_it_went_in() {
        for purge in [
            Purge::All,
            Purge::Tag("a b".into()),
            Purge::Prefix { host: None, path: "/v1".into() },
            Purge::Prefix { host: Some("a.test".into()), path: "".into() },
            Purge::Url(Resource::new(b"a.test:81", "/x", Some("y=?/z"))),
            Purge::Url(Resource::new(b"a.test", "/x", None)),
            Purge::Url(Resource::new(b"a.test", "/x", Some(""))),
        ] {
            let message: Message = serde_json::from_str(&text("acme", &purge)).unwrap();
            assert_eq!((message.tenant.as_str(), Purge::from(message.what)), ("acme", purge));
        }
    }

    #[test]
    fn what_was_missed_is_noticed() {
        let edges = |first: Option<&str>, last: &str, is_cut| Edges {
            first: first.map(str::to_owned),
            last: last.to_owned(),
            is_cut,
        };
        assert!(continues("5-0", &edges(Some("5-0"), "9-0", true)));
        assert!(continues("5-1", &edges(Some("3-0"), "5-1", false)));
        assert!(continues("0-0", &edges(Some("3-0"), "5-1", false)));
        assert!(continues("0-0", &edges(None, "0-0", false)));
        // Trimmed, lost, begun anew.
        assert!(!continues("5-0", &edges(Some("5-1"), "9-0", true)));
        assert!(!continues("5-0", &edges(None, "0-0", false)));
        assert!(!continues("5-0", &edges(Some("1-0"), "4-0", false)));
        assert!(!continues("0-0", &edges(Some("3-0"), "9-1", true)));
    }
}
