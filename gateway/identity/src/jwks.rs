//! Where issuers' public keys are kept: one [`JwksStore`] per source, shared by all tenants that name
//! it, and kept when configuration is reloaded.
//!
//! A request whose key is at hand never waits. Keys are fetched again when 80 % of their life is over,
//! in the background; if that fails, the old ones go on for a day. A key id that is not known starts a
//! fetch too, for issuers publish a new key shortly before its first use: all who ask at that time wait
//! for the same fetch, for a bounded time. So that a stranger who invents key ids cannot make the
//! gateway hammer an issuer, two fetches are [`COOL_DOWN`] apart, and an id that was looked for in vain
//! is remembered for [`MISSING_FOR`].

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use seiketsu_config::{
    regular,
    tenant::{JwksSource, JwtAlgorithm},
};
use tokio::{sync::watch, time::Instant};
use url::Url;

use crate::jwk::{KeySet, KeySetError, NoKey, VerifyingKey};

/// The largest JWK Set, in bytes.
pub const MAX_BYTES: usize = 256 << 10;
/// The least time between two fetches from one source.
pub const COOL_DOWN: Duration = Duration::from_secs(10);
/// The same while there are no keys at all.
pub const COOL_DOWN_WITHOUT_KEYS: Duration = Duration::from_secs(1);
/// How long a key id that a fetch did not bring is not looked for again.
pub const MISSING_FOR: Duration = Duration::from_secs(30);
/// The longest that a request waits for a fetch.
pub const MAX_WAIT: Duration = Duration::from_secs(2);

const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_LIFE: Duration = Duration::from_mins(10);
const MIN_LIFE: Duration = Duration::from_mins(1);
const MAX_LIFE: Duration = Duration::from_hours(24);
/// Files are read again four seconds after they were.
const FILE_LIFE: Duration = Duration::from_secs(5);
/// How long keys are used beyond their life while fetches fail.
const STALE_FOR: Duration = Duration::from_hours(24);
const MAX_MISSING: usize = 64;

/// The gateway's outbound HTTP client, as this crate needs it.
#[async_trait]
pub trait HttpFetch: fmt::Debug + Send + Sync {
    /// `GET`s a document of at most `max_bytes`. Anything but 200 is an error; redirects are the
    /// client's business, and so is which addresses may be connected to.
    async fn get(&self, url: &Url, max_bytes: usize) -> Result<Fetched, FetchError>;
}

/// A document that was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub body: Bytes,
    /// `max-age` of its `Cache-Control` (RFC 9111 §5.2.2.1).
    pub max_age: Option<Duration>,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the request failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why keys could not be had from their source.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot fetch {url}: {source}")]
    Fetch { url: String, source: FetchError },
    #[error("{0}")]
    Content(#[from] KeySetError),
}

/// Why a store has no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyError {
    Unknown,
    Misfit,
    Ambiguous,
    /// There are no keys at all: the source cannot be reached.
    Unavailable,
}

/// All stores of a node, by source.
#[derive(Debug)]
pub struct JwksStores {
    client: Arc<dyn HttpFetch>,
    stores: Mutex<HashMap<JwksSource, Weak<JwksStore>>>,
}

impl JwksStores {
    pub fn new(client: Arc<dyn HttpFetch>) -> Self {
        Self { client, stores: Mutex::default() }
    }

    /// The store of a source; the same one as long as anybody holds it. A file is read now, and a
    /// missing or wrong one is an error; a URL is fetched when it is first needed, or by
    /// [`refresh_due`](Self::refresh_due). May block on the file system.
    pub fn open(&self, source: &JwksSource) -> Result<Arc<JwksStore>, JwksError> {
        let mut stores = self.stores.lock();
        if let Some(store) = stores.get(source).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let store = JwksStore::new(source.clone(), Arc::clone(&self.client));
        if let JwksSource::File(path) = source {
            let file = |source| JwksError::File { path: path.clone(), source };
            let keys = KeySet::parse(&read_file(path).map_err(file)?)?;
            store.put(keys, FILE_LIFE);
        }
        let store = Arc::new(store);
        stores.retain(|_, store| store.strong_count() > 0);
        stores.insert(source.clone(), Arc::downgrade(&store));
        Ok(store)
    }

    /// Starts, in the background, every fetch that is due: the gateway calls it every few seconds, in a
    /// Tokio runtime. So keys are at hand before the first request, and files are seen to have changed.
    pub fn refresh_due(&self) {
        let stores: Vec<_> = self.stores.lock().values().filter_map(Weak::upgrade).collect();
        let now = Instant::now();
        for store in stores {
            if store.current.load().as_ref().is_none_or(|held| held.refresh_at <= now) {
                store.start_refresh(now);
            }
        }
    }
}

/// The keys of one source.
pub struct JwksStore {
    source: JwksSource,
    client: Arc<dyn HttpFetch>,
    current: ArcSwapOption<Held>,
    state: Mutex<State>,
    /// Counts fetches that ended, well or not.
    ended: watch::Sender<u64>,
}

struct Held {
    keys: KeySet,
    refresh_at: Instant,
    usable_until: Instant,
}

#[derive(Default)]
struct State {
    in_flight: bool,
    not_before: Option<Instant>,
    /// Key ids that a fetch did not bring, and until when they are believed not to exist.
    missing: HashMap<Box<str>, Instant>,
}

impl JwksStore {
    fn new(source: JwksSource, client: Arc<dyn HttpFetch>) -> Self {
        Self { source, client, current: ArcSwapOption::empty(), state: Mutex::default(), ended: watch::Sender::new(0) }
    }

    /// Hands the one key that fits to `use_key`.
    pub(crate) async fn with_key<T>(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: JwtAlgorithm,
        use_key: impl FnOnce(&VerifyingKey) -> T,
    ) -> Result<T, KeyError> {
        let now = Instant::now();
        if let Some(held) = self.usable(now) {
            let found = held.keys.find(id, algorithm);
            if held.refresh_at <= now {
                self.start_refresh(now);
            }
            match found {
                Ok(key) => return Ok(use_key(key)),
                Err(NoKey::Unknown) => {}
                Err(other) => return Err(other.into()),
            }
        }
        let fetched = self.wait_for_fetch(id, now).await;
        // Looked at again in any case: a fetch may have ended between the first look and the wait.
        let now = Instant::now();
        let held = self.usable(now).ok_or(KeyError::Unavailable)?;
        let found = held.keys.find(id, algorithm);
        if fetched && matches!(found, Err(NoKey::Unknown)) {
            self.remember_missing(id, now);
        }
        Ok(use_key(found?))
    }

    fn usable(&self, now: Instant) -> Option<Arc<Held>> {
        self.current.load_full().filter(|held| now < held.usable_until)
    }

    /// Waits for a fetch that may bring the key. False if there is none to wait for, or it takes too long.
    async fn wait_for_fetch(self: &Arc<Self>, id: Option<&str>, now: Instant) -> bool {
        // Before the state is looked at, so that the end of a fetch cannot be missed.
        let mut ended = self.ended.subscribe();
        let known_missing = self.state.lock().missing.get(id.unwrap_or_default()).is_some_and(|until| now < *until);
        if known_missing || !self.start_refresh(now) {
            return false;
        }
        matches!(tokio::time::timeout(MAX_WAIT, ended.changed()).await, Ok(Ok(())))
    }

    fn remember_missing(&self, id: Option<&str>, now: Instant) {
        let missing = &mut self.state.lock().missing;
        missing.retain(|_, until| now < *until);
        // When it is full, someone is inventing ids; the cool-down alone holds those.
        if missing.len() < MAX_MISSING {
            missing.insert(id.unwrap_or_default().into(), now + MISSING_FOR);
        }
    }

    /// Starts a fetch unless one runs or it is too early. True if one runs.
    fn start_refresh(self: &Arc<Self>, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.in_flight {
            return true;
        }
        if state.not_before.is_some_and(|not_before| now < not_before) {
            return false;
        }
        let pause = if self.current.load().is_some() { COOL_DOWN } else { COOL_DOWN_WITHOUT_KEYS };
        state.in_flight = true;
        state.not_before = Some(now + pause);
        // A task of its own: the request that started it may go away.
        let flight = Flight(Arc::clone(self));
        tokio::spawn(async move { flight.0.refresh().await });
        true
    }

    async fn refresh(&self) {
        match self.read().await {
            Ok((keys, life)) => self.put(keys, life),
            Err(error) => {
                tracing::warn!(%error, stale = self.current.load().is_some(), "JWT issuer's keys could not be refreshed");
            }
        }
    }

    async fn read(&self) -> Result<(KeySet, Duration), JwksError> {
        match &self.source {
            JwksSource::File(path) => {
                let file = |source| JwksError::File { path: path.clone(), source };
                let from = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&from)).await;
                let bytes = read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(file)?;
                Ok((KeySet::parse(&bytes)?, FILE_LIFE))
            }
            JwksSource::Url(url) => {
                let failed = |source| JwksError::Fetch { url: shown(url), source };
                let answer = tokio::time::timeout(FETCH_TIMEOUT, self.client.get(url, MAX_BYTES)).await;
                let fetched = answer.map_err(|_| failed(FetchError::TimedOut(FETCH_TIMEOUT)))?.map_err(failed)?;
                if fetched.body.len() > MAX_BYTES {
                    return Err(failed(FetchError::TooLarge(MAX_BYTES)));
                }
                let life = fetched.max_age.unwrap_or(DEFAULT_LIFE).clamp(MIN_LIFE, MAX_LIFE);
                Ok((KeySet::parse(&fetched.body)?, life))
            }
        }
    }

    fn put(&self, keys: KeySet, life: Duration) {
        let now = Instant::now();
        let held = Held { keys, refresh_at: now + life * 4 / 5, usable_until: now + life + STALE_FOR };
        self.current.store(Some(Arc::new(held)));
    }
}

/// A URL as it may stand in a log: queries hold keys, and fragments what was meant for a query.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_fragment(None);
    if shown.query().is_some() {
        shown.set_query(Some("***"));
    }
    shown.into()
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular::open(path)?.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A running fetch. When it ends, even by a panic, the next may start and those who wait are told.
struct Flight(Arc<JwksStore>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.state.lock().in_flight = false;
        self.0.ended.send_modify(|count| *count += 1);
    }
}

impl From<NoKey> for KeyError {
    fn from(no_key: NoKey) -> Self {
        match no_key {
            NoKey::Unknown => Self::Unknown,
            NoKey::Misfit => Self::Misfit,
            NoKey::Ambiguous => Self::Ambiguous,
        }
    }
}

impl fmt::Debug for JwksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwksStore").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::future::join_all;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Behaviour, FakeServer, P256};

    fn key(kid: &str) -> Value {
        P256.jwk(json!({ "kid": kid }))
    }

    fn url() -> JwksSource {
        JwksSource::Url("https://idp.example/jwks".parse().unwrap())
    }

    fn store(server: &Arc<FakeServer>) -> Arc<JwksStore> {
        JwksStores::new(server.clone()).open(&url()).unwrap()
    }

    async fn find(store: &Arc<JwksStore>, kid: &str) -> Result<(), KeyError> {
        store.with_key(Some(kid), JwtAlgorithm::ES256, |_| ()).await
    }

    /// Lets every task run until all wait for time to pass, then lets it pass.
    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_millis(seconds * 1000 + 100)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_requests_for_a_new_key_share_one_fetch() {
        let server = FakeServer::serving(vec![key("old")]);
        let store = store(&server);
        find(&store, "old").await.unwrap();
        pass(10).await;
        server.serve(vec![key("old"), key("new")]);
        let found = join_all((0..100).map(|_| find(&store, "new"))).await;
        assert!(found.iter().all(Result::is_ok));
        assert_eq!(server.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_invented_key_ids_cause_one_fetch() {
        let server = FakeServer::serving(vec![key("old")]);
        let store = store(&server);
        find(&store, "old").await.unwrap();
        pass(10).await;
        let ids: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        let found = join_all(ids.iter().map(|id| find(&store, id))).await;
        assert!(found.iter().all(|found| *found == Err(KeyError::Unknown)));
        assert_eq!(server.calls(), 2);
        assert!(store.state.lock().missing.len() <= MAX_MISSING);
    }

    #[tokio::test(start_paused = true)]
    async fn two_fetches_are_a_cool_down_apart() {
        let server = FakeServer::serving(vec![key("old")]);
        let store = store(&server);
        find(&store, "old").await.unwrap();
        assert_eq!(find(&store, "a").await, Err(KeyError::Unknown));
        assert_eq!(server.calls(), 1, "just fetched");
        pass(10).await;
        assert_eq!(find(&store, "a").await, Err(KeyError::Unknown));
        assert_eq!(find(&store, "b").await, Err(KeyError::Unknown));
        assert_eq!(server.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_id_looked_for_in_vain_is_not_looked_for_again_for_a_while() {
        let server = FakeServer::serving(vec![key("old")]);
        let store = store(&server);
        find(&store, "old").await.unwrap();
        pass(10).await;
        assert_eq!(find(&store, "a").await, Err(KeyError::Unknown));
        pass(11).await;
        assert_eq!(find(&store, "a").await, Err(KeyError::Unknown));
        assert_eq!(server.calls(), 2, "remembered as missing");
        assert_eq!(find(&store, "b").await, Err(KeyError::Unknown));
        assert_eq!(server.calls(), 3, "another id may be looked for");
        pass(30).await;
        server.serve(vec![key("a")]);
        assert_eq!(find(&store, "a").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_at_hand_never_waits_for_the_network() {
        let server = FakeServer::serving(vec![key("old")]);
        let store = store(&server);
        find(&store, "old").await.unwrap();
        server.set(Behaviour::Hang);
        pass(481).await;
        let before = Instant::now();
        find(&store, "old").await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
        tokio::task::yield_now().await;
        assert_eq!(server.calls(), 2, "80 % of ten minutes are over");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_live_as_long_as_the_issuer_says_within_bounds() {
        for (max_age, quiet, due) in [(1, 47, 2), (100, 79, 2), (30 * 86_400, 69_119, 2)] {
            let server = FakeServer::serving(vec![]);
            server.set(Behaviour::Serve { keys: vec![key("k")], max_age: Some(max_age) });
            let stores = JwksStores::new(server.clone());
            let _store = stores.open(&url()).unwrap();
            stores.refresh_due();
            // The answer takes 50 ms.
            tokio::time::sleep(Duration::from_millis(60)).await;
            tokio::time::sleep(Duration::from_secs(quiet)).await;
            stores.refresh_due();
            tokio::task::yield_now().await;
            assert_eq!(server.calls(), 1, "max-age {max_age}");
            pass(1).await;
            stores.refresh_due();
            tokio::task::yield_now().await;
            assert_eq!(server.calls(), due, "max-age {max_age}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_keys_go_on_for_a_day_while_the_issuer_is_away() {
        let server = FakeServer::serving(vec![key("k")]);
        let store = store(&server);
        find(&store, "k").await.unwrap();
        for bad in
            [Behaviour::Fail, Behaviour::Raw(b"<html>".to_vec()), Behaviour::Serve { keys: vec![], max_age: None }]
        {
            server.set(bad);
            pass(3600).await;
            assert_eq!(find(&store, "k").await, Ok(()));
        }
        pass(86_400).await;
        assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
        server.serve(vec![key("k")]);
        pass(10).await;
        assert_eq!(find(&store, "k").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_tells_neither_query_nor_fragment_of_its_url() {
        let server = FakeServer::serving(vec![]);
        server.set(Behaviour::Fail);
        let source = JwksSource::Url("https://idp.example/jwks?token=s3#s3".parse().unwrap());
        let store = JwksStores::new(server).open(&source).unwrap();
        let error = store.read().await.err().unwrap().to_string();
        assert!(error.contains("https://idp.example/jwks?***") && !error.contains("s3"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_key_the_source_is_tried_every_second() {
        let server = FakeServer::serving(vec![]);
        server.set(Behaviour::Fail);
        let store = store(&server);
        for expected in 1..4 {
            assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
            assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
            assert_eq!(server.calls(), expected);
            pass(1).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_bounded_time() {
        let server = FakeServer::serving(vec![]);
        server.set(Behaviour::Hang);
        let store = store(&server);
        let before = Instant::now();
        assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
        assert_eq!(before.elapsed().as_secs(), MAX_WAIT.as_secs());
        // The fetch itself is given up as well, so that it does not bar the next.
        server.serve(vec![key("k")]);
        pass(10).await;
        assert_eq!(find(&store, "k").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_survives_the_request_that_started_it() {
        let server = FakeServer::serving(vec![key("k")]);
        let store = store(&server);
        let impatient = tokio::time::timeout(Duration::from_millis(10), find(&store, "k")).await;
        assert!(impatient.is_err());
        assert_eq!(find(&store, "k").await, Ok(()));
        assert_eq!(server.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bug_in_the_client_does_not_bar_later_fetches() {
        let server = FakeServer::serving(vec![]);
        server.set(Behaviour::Panic);
        let store = store(&server);
        assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
        server.serve(vec![key("k")]);
        pass(1).await;
        assert_eq!(find(&store, "k").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_oversized_document_is_refused() {
        let server = FakeServer::serving(vec![]);
        let mut document = json!({ "keys": [key("k")] }).to_string().into_bytes();
        document.resize(MAX_BYTES + 1, b' ');
        server.set(Behaviour::Raw(document.clone()));
        let store = store(&server);
        assert_eq!(find(&store, "k").await, Err(KeyError::Unavailable));
        document.truncate(MAX_BYTES);
        server.set(Behaviour::Raw(document));
        pass(1).await;
        assert_eq!(find(&store, "k").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_at_once_and_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        let source = JwksSource::File(path.clone());
        let stores = JwksStores::new(FakeServer::serving(vec![]));
        let missing = stores.open(&source).unwrap_err().to_string();
        assert!(missing.contains("jwks.json"), "{missing}");
        std::fs::write(&path, json!({ "keys": [key("old")] }).to_string()).unwrap();
        let store = stores.open(&source).unwrap();
        assert_eq!(find(&store, "old").await, Ok(()));
        std::fs::write(&path, json!({ "keys": [key("new")] }).to_string()).unwrap();
        pass(10).await;
        stores.refresh_due();
        pass(0).await;
        assert_eq!(find(&store, "old").await, Err(KeyError::Unknown));
        assert_eq!(find(&store, "new").await, Ok(()));
    }

    #[tokio::test]
    async fn a_source_has_one_store_as_long_as_somebody_holds_it() {
        let stores = JwksStores::new(FakeServer::serving(vec![]));
        let first = stores.open(&url()).unwrap();
        assert!(Arc::ptr_eq(&first, &stores.open(&url()).unwrap()));
        drop(first);
        stores.open(&JwksSource::Url("https://other.example/".parse().unwrap())).unwrap();
        assert!(stores.stores.lock().len() <= 1);
    }
}
