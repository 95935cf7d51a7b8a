//! Pingora's cache for requests that go to the origin: whether it is used, and under which key.

use std::sync::Arc;

use pingora_cache::{CacheKey, CacheOptionOverrides};
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::Session;
use seiketsu_cache::vary::Selection;

use super::{RequestContext, Shared};

/// So often is waited for others, where each of them gets something else than what was waited for.
const WAITS: usize = 8;

pub(super) fn filter(shared: &Shared, session: &mut Session, ctx: &RequestContext) {
    let Some(fetch) = &ctx.cache.fetch else { return };
    let Some(collapse) = ctx.route().and_then(|route| route.cache.as_ref()).map(|cache| cache.collapse) else { return };
    let mut overrides = CacheOptionOverrides::default();
    overrides.wait_timeout = Some(collapse);
    overrides.max_lock_retries = Some(WAITS);
    let lock = (fetch.collapses && !collapse.is_zero()).then_some(shared.cache.lock);
    session.cache.enable(shared.cache.adapter, None, None, lock, Some(overrides));
}

/// What is waited for: those who may be served different variants do not wait for each other, as far as that is
/// known beforehand. What is stored is found by the key that comes along.
pub(super) fn key(ctx: &RequestContext) -> Result<CacheKey> {
    let missing = || Error::explain(ErrorType::InternalError, "a request that does not use the cache");
    let fetch = ctx.cache.fetch.as_ref().ok_or_else(missing)?;
    let mut waited_for = fetch.asked.key.to_vec();
    fetch.stored.as_ref().map_or(&Selection::default(), |stored| &stored.selection).write(&mut waited_for);
    let mut key = CacheKey::new(waited_for, String::new());
    key.extensions.insert(Arc::clone(&fetch.asked));
    Ok(key)
}
