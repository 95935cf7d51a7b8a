//! The response cache of a node. Its rules and its storage are [`seiketsu_cache`]'s own.
//!
//! | file | what happens there |
//! |---|---|
//! | [`clock`] | clocks of origins that go wrong |
//! | [`compile`] | what a route's settings come to |
//! | [`request`] | what the cache knows of one request |
//! | [`adapter`] | storage as Pingora's cache wants it |
//! | [`background`] | requests of the cache's own: stale responses that are validated, URLs that are warmed |
//! | [`purging`] | purges, of this node or of all |
//! | [`warming`] | lists of URLs, and how far they are |
//!
//! A response that can be served at once is served from `proxy/cache.rs`, without Pingora's state machine. What has
//! to go to the origin goes through it, for what it does well: one request for each key at a time, validation,
//! stale responses on errors.

pub(crate) mod adapter;
pub(crate) mod background;
pub(crate) mod clock;
pub(crate) mod compile;
pub(crate) mod purging;
pub(crate) mod request;
pub(crate) mod warming;

use std::{sync::Arc, time::Duration};

use pingora_cache::lock::{CacheKeyLockImpl, CacheLock};
use seiketsu_cache::storage::Storage;
use seiketsu_config::node::NodeConfig;
use tokio::runtime::Handle;

use self::{
    adapter::Adapter,
    background::Background,
    purging::{Purging, PurgingError},
    warming::Warming,
};

/// Who gets a response for all that wait for it is not waited for longer than this, whatever routes say.
const LOCK_AGE: Duration = Duration::from_mins(1);

/// The cache of a node. Outlives configurations.
pub(crate) struct Cache {
    pub(crate) storage: Arc<Storage>,
    pub(crate) background: Arc<Background>,
    pub(crate) purging: Arc<Purging>,
    pub(crate) warming: Arc<Warming>,
    /// Pingora wants both for ever. There is one of each, for as long as the process serves.
    pub(crate) adapter: &'static Adapter,
    pub(crate) lock: &'static CacheKeyLockImpl,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Cache {
    pub(crate) fn start(node: &NodeConfig, workers: usize, runtime: &Handle) -> Result<Self, PurgingError> {
        let storage = Storage::new(node.cache.memory.get());
        Ok(Self {
            background: Arc::new(Background::new(workers)),
            purging: Purging::start(node, storage.clone(), runtime)?,
            warming: Arc::default(),
            adapter: Box::leak(Box::new(Adapter)),
            lock: Box::leak(CacheLock::new_boxed(LOCK_AGE)),
            storage,
        })
    }
}
