//! Purges, of this node or of all.
//!
//! A purge is made here at once. Where nodes share a Redis, it is also written to a stream there, which all of them
//! follow: the stream is the store and the hint in one. A node that was cut off reads on where it was when it comes
//! back. Where the entry that it has read last is no longer there, since the stream was trimmed, lost, or brought back
//! from an older copy, others are missing as well, and everything is purged. That is why each reading begins with this
//! entry, and each writing looks for the one that was written last: in one step, so that nothing comes between. What
//! cannot be written yet waits in the [`outbox`].

mod outbox;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    RedisError,
    streams::{StreamId, StreamRangeReply},
};
use seiketsu_cache::{
    key::{NoDigest, Resource},
    purge::{Purge, Purges},
    storage::Storage,
};
use seiketsu_config::{node::NodeConfig, values::RedisUrlError};
use seiketsu_limits::coordinator::redis::{
    address::{RedisAddress, RedisAddressError},
    dialer::{Connection, Dialer},
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use uuid::Uuid;

use self::outbox::Outbox;

/// Where purges stand. One key, so that a cluster keeps them in one place and in one order.
const STREAM: &str = "seiketsu:cache:purges";
/// Purges that are kept; a node that has missed more than these purges everything.
const KEPT: usize = 100_000;
const READ_AT_ONCE: usize = 1000;
/// How long Redis waits for the next purge before it says that there is none.
const BLOCK: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(200);
/// The field of an entry that holds a purge.
const PURGE: &str = "purge";
/// The field of an entry that is there to be read, and says nothing.
const BEGINNING: &str = "beginning";
/// In place of a purge: some were lost. Nodes that do not know this purge everything for that very reason.
const EVERYTHING: &str = "everything";

/// Why purges of other nodes cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum PurgingError {
    #[error("limits.redis.url: {0}")]
    Url(#[from] RedisUrlError),
    #[error("limits.redis.url: {0}")]
    Address(#[from] RedisAddressError),
}

/// Other nodes were not told yet.
#[derive(Debug, thiserror::Error)]
#[error("purged on this node only so far, since Redis did not take it: other nodes hear of it once it does")]
pub(crate) struct NotTold;

/// Who purges.
#[derive(Debug)]
pub(crate) struct Purging {
    storage: Arc<Storage>,
    /// Tells this node's own purges from those of others.
    run: Uuid,
    /// Present where others are told.
    outbox: Option<Arc<Outbox>>,
    /// The last entry that this node has written, unless it need not be looked for.
    told: Mutex<String>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By operators of this node.
    pub(crate) here: AtomicU64,
    /// By unsafe requests to this node.
    pub(crate) by_requests: AtomicU64,
    pub(crate) by_others: AtomicU64,
    /// There were so many that older ones are not told apart any more.
    pub(crate) folded: AtomicU64,
    /// Everything was purged, since it is not known what was.
    pub(crate) missed: AtomicU64,
    /// Others were not told in time, or not of this by itself.
    pub(crate) untold: AtomicU64,
    pub(crate) connected: AtomicBool,
}

/// A purge as it stands in the stream.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
struct Message {
    tenant: String,
    what: What,
    /// The node that has made it, until its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Uuid>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum What {
    All,
    Url(Url),
    Prefix { host: Option<String>, path: String },
    Tag(String),
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
enum Url {
    /// In hexadecimal digits: clients may make it as long as they please, and there are many in the stream.
    Digest(String),
    /// As nodes of before write it.
    Text { host: String, path: String, query: Option<String> },
}

impl Purging {
    /// Where nodes share a Redis, follows what others purge, on `runtime`.
    pub(crate) fn start(node: &NodeConfig, storage: Arc<Storage>, runtime: &Handle) -> Result<Arc<Self>, PurgingError> {
        let (counters, run) = (Counters::default(), Uuid::now_v7());
        let Some(redis) = node.limits.redis.as_ref().filter(|_| node.cache.memory.get() > 0) else {
            return Ok(Arc::new(Self { storage, run, outbox: None, told: Mutex::default(), counters }));
        };
        let address = RedisAddress::parse(&redis.url.read()?)?;
        let outbox = Arc::new(Outbox::default());
        let purging = Arc::new(Self { storage, run, outbox: Some(outbox.clone()), told: Mutex::default(), counters });
        runtime.spawn(tell(purging.clone(), Dialer::new(address.clone(), ANSWER_TIMEOUT), outbox));
        runtime.spawn(follow(purging.clone(), Dialer::new(address, ANSWER_TIMEOUT)));
        Ok(purging)
    }

    /// Purges here and at others. `false`: no tenant of this name uses the cache here; others may know it.
    pub(crate) async fn purge(&self, tenant: &str, purge: Purge) -> Result<bool, NotTold> {
        let known = self.here(tenant, &purge);
        if let Some(outbox) = &self.outbox {
            let was_sent = outbox.put(tenant, purge);
            if !known {
                return Ok(false);
            }
            if !matches!(timeout(ANSWER_TIMEOUT, was_sent).await, Ok(Ok(()))) {
                self.counters.untold.fetch_add(1, Relaxed);
                return Err(NotTold);
            }
        }
        Ok(known)
    }

    /// What an unsafe request has made invalid. Others are told, but nobody waits for it.
    pub(crate) fn invalidate(&self, tenant: &str, purges: &Purges, resources: impl IntoIterator<Item = Resource>) {
        for url in resources.into_iter().map(|resource| resource.digest()) {
            self.add(purges, &Purge::Url(url));
            self.counters.by_requests.fetch_add(1, Relaxed);
            if let Some(outbox) = &self.outbox
                && outbox.add(tenant, url).is_err()
            {
                self.counters.untold.fetch_add(1, Relaxed);
            }
        }
    }

    /// What was purged of a tenant; none where no tenant of that name uses the cache here.
    pub(crate) fn purges(&self, tenant: &str) -> Option<Arc<Purges>> {
        self.storage.purges(tenant)
    }

    /// Whether purges of others are heard, or there are no others.
    pub(crate) fn hears(&self) -> bool {
        self.outbox.is_none() || self.counters.connected.load(Relaxed)
    }

    /// Purges here and nowhere else. `false`: no tenant of this name uses the cache here.
    pub(crate) fn here(&self, tenant: &str, purge: &Purge) -> bool {
        let Some(purges) = self.storage.purges(tenant) else { return false };
        self.add(&purges, purge);
        self.counters.here.fetch_add(1, Relaxed);
        true
    }

    fn add(&self, purges: &Purges, purge: &Purge) {
        if purges.add(purge) {
            self.counters.folded.fetch_add(1, Relaxed);
        }
    }

    /// What stands in the stream: a purge of another node, or one of this node, which is made already.
    fn heard(&self, text: &str) {
        if text == EVERYTHING {
            tracing::warn!(
                "purges were lost, since Redis came back from an older copy of its data; everything is purged"
            );
            return self.everything();
        }
        let read = || {
            let message: Message = serde_json::from_str(text).ok()?;
            Some((Purge::try_from(message.what).ok()?, message.tenant, message.run))
        };
        let Some((purge, tenant, run)) = read() else {
            tracing::warn!("a purge of another node cannot be read; everything is purged");
            return self.everything();
        };
        if run == Some(self.run) {
            return;
        }
        if let Some(purges) = self.storage.purges(&tenant) {
            self.add(&purges, &purge);
            self.counters.by_others.fetch_add(1, Relaxed);
        }
    }

    fn text(&self, tenant: &str, purge: &Purge) -> String {
        let message = Message { tenant: tenant.to_owned(), what: purge.into(), run: Some(self.run) };
        // Texts only: it can always be written.
        serde_json::to_string(&message).unwrap_or_default()
    }

    /// What this node had written up to here is read, or made up for; it may have written more meanwhile.
    fn forget(&self, told: &str) {
        let mut latest = self.told.lock();
        if *latest == told {
            latest.clear();
        }
    }

    /// Purges all that is stored, since it is not known what of it was.
    pub(crate) fn everything(&self) {
        // Whoever has just begun has missed nothing.
        if self.storage.stored_bytes() > 0 {
            self.counters.missed.fetch_add(1, Relaxed);
        }
        for purges in self.storage.all_purges() {
            purges.add(&Purge::All);
        }
    }
}

impl From<&Purge> for What {
    fn from(purge: &Purge) -> Self {
        match purge {
            Purge::All => Self::All,
            Purge::Url(digest) => Self::Url(Url::Digest(digest.to_string())),
            Purge::Prefix { host, path } => {
                Self::Prefix { host: host.as_deref().map(str::to_owned), path: path.to_string() }
            }
            Purge::Tag(tag) => Self::Tag(tag.to_string()),
        }
    }
}

impl TryFrom<What> for Purge {
    type Error = NoDigest;

    fn try_from(what: What) -> Result<Self, NoDigest> {
        Ok(match what {
            What::All => Self::All,
            What::Url(Url::Digest(digits)) => Self::Url(digits.parse()?),
            What::Url(Url::Text { host, path, query }) => {
                Self::Url(Resource::new(host.as_bytes(), &path, query.as_deref()).digest())
            }
            What::Prefix { host, path } => Self::Prefix { host: host.map(Into::into), path: path.into() },
            What::Tag(tag) => Self::Tag(tag.into()),
        })
    }
}

/// Writes purges to the stream; none is given up but when the node ends.
async fn tell(purging: Arc<Purging>, mut dialer: Dialer, outbox: Arc<Outbox>) {
    let mut connection: Option<Connection> = None;
    loop {
        let letters = outbox.next().await;
        let texts: Vec<String> = letters.iter().map(|letter| purging.text(&letter.tenant, &letter.purge)).collect();
        let mut is_refused = false;
        loop {
            let Some(open) = &mut connection else {
                match dialer.connect().await {
                    Ok(open) => connection = Some(open),
                    Err(_) => sleep(RETRY).await,
                }
                continue;
            };
            let told = purging.told.lock().clone();
            match write(open, &told, PURGE, &texts).await {
                Ok(place) => {
                    *purging.told.lock() = place;
                    break;
                }
                Err(error) if error.is_io_error() || is_refused => {
                    tracing::debug!(%error, "other nodes are not told of purges");
                }
                Err(error) => {
                    is_refused = true;
                    tracing::warn!(%error, "Redis does not take purges for other nodes; this is tried again and again");
                }
            }
            connection = None;
            sleep(RETRY).await;
        }
        for sent in letters.into_iter().filter_map(|letter| letter.sent) {
            // Whoever wanted to know may have given up.
            let _ = sent.send(());
        }
    }
}

/// Follows the stream for as long as the node runs.
async fn follow(purging: Arc<Purging>, mut dialer: Dialer) {
    // The last entry that was read; empty before the first.
    let mut place = String::new();
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

async fn read(purging: &Purging, connection: &mut Connection, place: &mut String) -> Result<(), RedisError> {
    loop {
        let told = purging.told.lock().clone();
        let entries = from(connection, place).await?;
        if let Some(missing) = missing(connection, place, &told, &entries).await? {
            *place = beginning(connection, &missing).await?;
            // Not before: what is purged from now on is read, and what was purged before may be stored.
            if missing.is_empty() {
                tracing::info!("purges of other nodes are heard from now on; what was stored before is purged");
            } else {
                tracing::warn!(
                    entry = missing,
                    "Redis has this entry no longer, and may have lost purges with it; everything is purged"
                );
            }
            purging.everything();
            purging.forget(&told);
            continue;
        }
        let are_all = entries.len() <= READ_AT_ONCE;
        for entry in entries.into_iter().skip(1) {
            if let Some(text) = entry.get::<String>(PURGE) {
                purging.heard(&text);
            }
            *place = entry.id;
        }
        purging.counters.connected.store(true, Relaxed);
        if are_all {
            wait(connection, place).await?;
        }
    }
}

/// The entry at this place, if it is still there, and those that follow. In one step: where it is the first of them, none was
/// trimmed or lost between.
async fn from(connection: &mut Connection, place: &str) -> Result<Vec<StreamId>, RedisError> {
    if place.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = redis::cmd("XRANGE");
    command.arg(STREAM).arg(place).arg("+").arg("COUNT").arg(1 + READ_AT_ONCE);
    let reply: StreamRangeReply = command.query_async(connection).await?;
    Ok(reply.ids)
}

/// Until something follows, or nothing has for a while: the stream may have gone meanwhile, which wakes nobody.
async fn wait(connection: &mut Connection, place: &str) -> Result<(), RedisError> {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis().to_string());
    command.arg("STREAMS").arg(STREAM).arg(place).query_async(connection).await
}

/// Which entry is no longer there: the one that was read last, or one that this node has written since. Empty: none was read.
/// `entries` are those from the first one on, read after `told` was written.
async fn missing(
    connection: &mut Connection,
    place: &str,
    told: &str,
    entries: &[StreamId],
) -> Result<Option<String>, RedisError> {
    if entries.first().is_none_or(|entry| entry.id != place) {
        return Ok(Some(place.to_owned()));
    }
    let is_lost = number(told) > number(place)
        && entries.iter().all(|entry| entry.id != told)
        // It may be further on than what is read at once.
        && first(connection, told, told).await?.is_none();
    Ok(is_lost.then(|| told.to_owned()))
}

/// What orders entries.
fn number(entry: &str) -> Option<(u64, u64)> {
    let (millis, sequence) = entry.split_once('-')?;
    Some((millis.parse().ok()?, sequence.parse().ok()?))
}

/// Where a node reads on that misses an entry.
async fn beginning(connection: &mut Connection, missing: &str) -> Result<String, RedisError> {
    if !missing.is_empty() && first(connection, "-", missing).await?.is_some() {
        // It was not trimmed: older ones are still there. Others who were away then may not notice, since what they have
        // read last was not lost with it.
        return write(connection, "", PURGE, &[EVERYTHING.to_owned()]).await;
    }
    let last =
        redis::cmd("XREVRANGE").arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1).query_async(connection).await?;
    match id(last) {
        Some(last) => Ok(last),
        // That it is there shows later on that nothing was lost.
        None => write(connection, "", BEGINNING, &[String::new()]).await,
    }
}

/// The first entry from one place to another, both included.
async fn first(connection: &mut Connection, from: &str, to: &str) -> Result<Option<String>, RedisError> {
    redis::cmd("XRANGE").arg(STREAM).arg(from).arg(to).arg("COUNT").arg(1).query_async(connection).await.map(id)
}

fn id(entries: StreamRangeReply) -> Option<String> {
    entries.ids.into_iter().next().map(|entry| entry.id)
}

/// Adds entries to the stream; the place of the last one. In one round trip, or there would be no more purges in a second than
/// round trips. All or none: of what is refused in part, again and again, the other part would fill the stream.
///
/// `told`: what this node has written last, if anything. Where it was lost, all nodes are told to purge everything, this one
/// too, in the same step: whoever follows may have been away, and would find what it has read last, and what is added now,
/// and nothing missing. Where older ones are gone as well it was trimmed, or all was lost: that each finds out by itself.
async fn write(connection: &mut Connection, told: &str, field: &str, texts: &[String]) -> Result<String, RedisError> {
    const SCRIPT: &str = "
        local function add(field, text)
            return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', field, text)
        end
        if ARGV[2] ~= '' then
            local found = redis.call('XREVRANGE', KEYS[1], ARGV[2], '-', 'COUNT', 1)[1]
            if found and found[1] ~= ARGV[2] then add(ARGV[3], ARGV[4]) end
        end
        local last
        for i = 6, #ARGV do last = add(ARGV[5], ARGV[i]) end
        return last";
    let mut command = redis::cmd("EVAL");
    command.arg(SCRIPT).arg(1).arg(STREAM).arg(KEPT).arg(told).arg(PURGE).arg(EVERYTHING);
    command.arg(field).arg(texts).query_async(connection).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn purging() -> Purging {
        Purging {
            storage: Storage::new(1 << 20),
            run: Uuid::now_v7(),
            outbox: None,
            told: Mutex::default(),
            counters: Counters::default(),
        }
    }

    fn url(query: Option<&str>) -> Purge {
        Purge::Url(Resource::new(b"a.test:81", "/x", query).digest())
    }

    #[test]
    fn a_purge_comes_out_as_it_went_in() {
        for purge in [
            Purge::All,
            Purge::Tag("a b".into()),
            Purge::Prefix { host: None, path: "/v1".into() },
            Purge::Prefix { host: Some("a.test".into()), path: "".into() },
            url(Some("y=?/z")),
            url(None),
        ] {
            let message: Message = serde_json::from_str(&purging().text("acme", &purge)).unwrap();
            assert_eq!((message.tenant.as_str(), Purge::try_from(message.what)), ("acme", Ok(purge)));
        }
    }

    #[test]
    fn what_nodes_of_before_write_is_read() {
        for (text, purge) in [
            (
                r#"{ "tenant": "acme", "what": { "url": { "host": "A.test:81", "path": "/x", "query": "b&a" } } }"#,
                url(Some("a&b")),
            ),
            (
                r#"{ "tenant": "acme", "what": { "url": { "host": "a.test", "path": "/x", "query": null } } }"#,
                url(None),
            ),
            (r#"{ "tenant": "acme", "what": { "tag": "t" } }"#, Purge::Tag("t".into())),
            (r#"{ "tenant": "acme", "what": "all" }"#, Purge::All),
        ] {
            let message: Message = serde_json::from_str(text).unwrap();
            assert_eq!(Purge::try_from(message.what), Ok(purge), "{text}");
        }
    }

    #[test]
    fn entries_are_in_the_order_of_their_numbers() {
        let entries = ["", "9-9", "10-2", "10-10"].map(number);
        assert!(entries.is_sorted() && entries[0].is_none());
    }

    #[test]
    fn what_was_written_meanwhile_is_not_forgotten() {
        let purging = purging();
        *purging.told.lock() = "2-0".to_owned();
        purging.forget("1-0");
        assert_eq!(*purging.told.lock(), "2-0");
        purging.forget("2-0");
        assert_eq!(*purging.told.lock(), "");
    }

    #[test]
    fn a_message_is_short_however_long_a_url_is() {
        let long = Resource::new(b"a.test", &"/a".repeat(30_000), Some("b"));
        assert!(purging().text("acme", &Purge::Url(long.digest())).len() < 200);
    }

    #[test]
    fn a_node_makes_its_own_purges_once_and_those_of_others() {
        let (one, other) = (purging(), purging());
        let _held = [&one, &other].map(|node| node.storage.partition("acme", 1 << 20));
        let latest = |node: &Purging| node.storage.purges("acme").unwrap().latest().get();
        assert!(one.here("acme", &url(None)));
        let text = one.text("acme", &url(None));
        one.heard(&text);
        other.heard(&text);
        assert_eq!((latest(&one), latest(&other)), (1, 1));
        let counts = |node: &Purging| {
            [&node.counters.here, &node.counters.by_others, &node.counters.missed].map(|count| count.load(Relaxed))
        };
        assert_eq!((counts(&one), counts(&other)), ([1, 0, 0], [0, 1, 0]));
        // What cannot be read may be about anything. It is not counted where nothing is stored.
        for text in ["", "{}", EVERYTHING, r#"{ "tenant": "acme", "what": { "url": "12" } }"#] {
            let before = latest(&other);
            other.heard(text);
            assert_eq!(latest(&other), before + 1, "{text}");
        }
        assert_eq!(counts(&other), [0, 1, 0]);
    }
}
