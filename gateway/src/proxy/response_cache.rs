//! The head of the origin's answer: whether it is stored, and what a 304 makes of what is stored.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, StatusCode, header};
use pingora_cache::{CacheMeta, CachePhase, NoCacheReason, RespCacheable};
use pingora_http::ResponseHeader;
use seiketsu_cache::{
    directives::RequestDirectives,
    freshness::Exchange,
    invalidation,
    reuse::{Reuse, Rules},
    stored::Stored,
    storing::{self, Candidate, NotStored, Storable},
    time::Timestamp,
    validation,
    vary::Selection,
};

use super::{RequestContext, Shared, cache::scheme, request};
use crate::{
    cache::{
        adapter::{Renewal, Storing, pass_until},
        clock,
        compile::CompiledCache,
        request::{Asked, Fetch},
    },
    tenancy::path,
};

/// Decides about an answer to a request that was made for the cache.
pub(super) fn filter(response: &ResponseHeader, ctx: &mut RequestContext) -> RespCacheable {
    let entry = ctx.tenant.clone();
    let route = ctx.route.and_then(|index| entry.as_deref()?.compiled().routes.get(index));
    let (Some(fetch), Some(cache)) = (ctx.cache.fetch.as_mut(), route.and_then(|route| route.cache.as_ref())) else {
        return RespCacheable::Uncacheable(NoCacheReason::InternalError);
    };
    let status = ctx.cache.status.get_or_insert_default();
    let decided = match (fetch.update.take(), fetch.stored.clone()) {
        (Some(update), Some(stored)) => {
            status.forwarded_status = Some(StatusCode::NOT_MODIFIED.as_u16());
            renew(fetch, cache, &update, &stored)
        }
        _ => store(fetch, cache, response),
    };
    match decided {
        Ok(meta) => {
            status.stored = true;
            RespCacheable::Cacheable(meta)
        }
        Err(reason) => {
            status.detail = Some(reason.name());
            RespCacheable::Uncacheable(NoCacheReason::OriginNotCache)
        }
    }
}

fn store(fetch: &mut Fetch, cache: &CompiledCache, response: &ResponseHeader) -> Result<CacheMeta, NotStored> {
    clock::compare(&response.headers, fetch.requested);
    let asked = &fetch.asked;
    let storable = storable(fetch, cache, response.status, &response.headers).and_then(|storable| {
        let announced =
            response.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let largest = usize::try_from(asked.partition.storage().largest()).unwrap_or(usize::MAX);
        if announced.is_some_and(|length: usize| length > cache.max_object.min(largest)) {
            return Err(NotStored::TooLarge);
        }
        Ok((storable, announced.is_some()))
    });
    match storable {
        Ok((storable, announced)) => {
            fetch.fills = true;
            fetch.announced = announced;
            fetch.frees_others = !serves_others(&storable.rules, asked);
            let mut meta = meta(&storable.rules, response.clone());
            let storing = Storing { status: response.status, storable, since: fetch.since };
            meta.extensions_mut().insert(Arc::new(storing));
            Ok(meta)
        }
        Err(reason) => {
            asked.partition.pass(&asked.key, pass_until());
            // The origin has another answer now. After an error the old one may still be of use.
            if !response.status.is_server_error() {
                asked.partition.forget(&asked.key, &asked.resource, &asked.headers);
            }
            Err(reason)
        }
    }
}

/// RFC 9111 §4.3.4.
fn renew(
    fetch: &mut Fetch,
    cache: &CompiledCache,
    update: &HeaderMap,
    stored: &Arc<Stored>,
) -> Result<CacheMeta, NotStored> {
    let asked = fetch.asked.clone();
    fetch.serving = Some(stored.clone());
    // Else it speaks of another response than the one that was asked about.
    let is_about = validation::is_about(update, &stored.headers);
    let merged = if is_about { validation::freshened(&stored.headers, update) } else { stored.headers.clone() };
    let storable = if is_about { storable(fetch, cache, stored.status, &merged) } else { Err(NotStored::Useless) };
    match storable {
        Ok(Storable { headers, rules, vary }) => {
            fetch.frees_others = !serves_others(&rules, &asked);
            let selection = Selection::of(&vary, &asked.headers);
            let new = Arc::new(stored.renewed(headers, rules, selection, fetch.since));
            let mut meta = meta(&new.rules, head(&new)?);
            meta.extensions_mut().insert(Arc::new(Renewal { old: stored.clone(), new: new.clone() }));
            fetch.serving = Some(new);
            Ok(meta)
        }
        Err(reason) => {
            asked.partition.forget(&asked.key, &asked.resource, &asked.headers);
            fetch.told = Some(merged);
            Err(reason)
        }
    }
}

fn storable(
    fetch: &Fetch,
    cache: &CompiledCache,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Storable, NotStored> {
    let candidate = Candidate {
        status,
        headers,
        request: fetch.asked.directives,
        has_credential: fetch.asked.identified,
        exchange: Exchange { requested: fetch.requested, answered: SystemTime::now().into() },
    };
    let storable = storing::storable(&candidate, &cache.policy)?;
    // Which requests it answers cannot be told by what clients send.
    if storable.vary.iter().any(|name| cache.writes(name)) {
        return Err(NotStored::Vary);
    }
    Ok(storable)
}

/// Whether those who wait may be served what has come, be it stale already.
fn serves_others(rules: &Rules, asked: &Asked) -> bool {
    rules.can_be_fresh() || serves_all(rules, asked)
}

/// Whether it may be served to whoever has no wishes of its own.
pub(super) fn serves_all(rules: &Rules, asked: &Asked) -> bool {
    rules.reuse(&RequestDirectives::default(), asked.stale, SystemTime::now().into()) != Reuse::Validate
}

/// What Pingora has to know of it: nothing that it would decide by.
fn meta(rules: &Rules, head: ResponseHeader) -> CacheMeta {
    let now = SystemTime::now();
    let fresh_until = now + std::time::Duration::from_secs(rules.lifetime);
    CacheMeta::new(fresh_until, now, 0, 0, head)
}

fn head(stored: &Stored) -> Result<ResponseHeader, NotStored> {
    crate::cache::adapter::head(stored).map_err(|_| NotStored::Useless)
}

/// What an unsafe request has changed is no longer served (RFC 9111 §4.4), and whoever learns of the change from its
/// answer must not get the old one any more.
pub(super) fn invalidate(
    shared: &Shared,
    session: &pingora_proxy::Session,
    response: &ResponseHeader,
    ctx: &RequestContext,
) {
    let request = session.req_header();
    if !invalidation::is_unsafe(&request.method) {
        return;
    }
    let (Some(tenant), Some(host)) = (&ctx.tenant, request::request_host(request)) else { return };
    // Wherever something may be stored, whatever the configuration was when the request began.
    let tenant = tenant.id().as_str();
    let Some(purges) = shared.cache.purging.purges(tenant) else { return };
    let (secure, _) = scheme(session);
    let target = invalidation::Target { secure, host, path: request.uri.path(), query: request.uri.query() };
    let normalise = |path: &str| path::normalise(path.as_bytes()).ok().map(|path| path.into_path().into_owned());
    let changed = invalidation::invalidated(&target, response.status, &response.headers, normalise);
    shared.cache.purging.invalidate(tenant, &purges, changed);
}

/// Nobody waits for each other any more, until something else is stored, or for a while where nothing is.
pub(super) fn let_pass(fetch: &Fetch) {
    match &fetch.stored {
        Some(stored) => stored.waited_in_vain(),
        None => fetch.asked.partition.pass(&fetch.asked.key, pass_until()),
    }
}

/// When the origin is asked, again or for the first time.
pub(super) fn begin(fetch: &mut Fetch, cache: CachePhase) {
    if fetch.collapses
        && let CachePhase::Disabled(reason) = cache
    {
        match (&fetch.stored, reason) {
            // Whoever has let it go has failed, which says nothing of the next one; or has noted itself why.
            (None, NoCacheReason::CacheLockGiveUp | NoCacheReason::ResponseTooLarge) => {}
            // It has waited in vain. Those who come now shall not.
            _ => let_pass(fetch),
        }
    }
    fetch.requested = Timestamp::from(SystemTime::now());
    fetch.since = fetch.asked.partition.purges().latest();
    fetch.update = None;
}
