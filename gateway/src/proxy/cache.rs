//! The cache's part of a request: what is answered from it at once, and what goes to the origin on its behalf.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, response::Parts};
use pingora_cache::NoCacheReason;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_cache::{
    directives::RequestDirectives,
    range,
    reuse::Reuse,
    status::{Forwarded, Status},
    storage::Lookup,
    stored::Stored,
    storing::NotStored,
    time::Timestamp,
    validation,
};

use super::{
    Downstream, RequestContext, Shared,
    early_request::X_FORWARDED_PROTO,
    failure,
    request::{self, Decision},
    response, response_body,
};
use crate::{
    cache::{
        background::{Internal, Job, Place, Share},
        compile::CompiledCache,
        request::{self as cache_request, Asked, Fetch, Origin},
        warming,
    },
    policy::Refusal,
    respond::{self, problem::ProblemKind},
    tenancy::compile::{CompiledRoute, CompiledTenant},
    upstream::pool::UpstreamPool,
};

/// What becomes of a request.
enum Plan {
    /// From what is stored.
    Serve(Arc<Stored>, Status),
    /// To the origin; the cache stores what it may.
    Fetch(Box<Fetch>, Forwarded),
    /// To the origin, as if there were no cache.
    PassBy(Forwarded),
    /// Nothing is stored, and the client wants nothing else.
    Refuse(Refusal),
}

/// Whether what is stored answers the request, or what the cache wants of the origin.
pub(super) fn decide(
    shared: &Shared,
    worker: usize,
    downstream: &impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
    cache: &CompiledCache,
) -> Result<Decision, Refusal> {
    match plan(shared, worker, downstream, ctx, tenant, route, cache) {
        Plan::Serve(stored, status) => {
            ctx.cache.status = Some(status);
            Ok(Decision::Serve(stored))
        }
        Plan::Fetch(fetch, forwarded) => {
            ctx.cache.status = Some(Status { forwarded: Some(forwarded), ..Status::default() });
            ctx.cache.fetch = Some(fetch);
            Ok(Decision::Proxy)
        }
        Plan::PassBy(forwarded) => {
            ctx.cache.status = Some(Status { forwarded: Some(forwarded), ..Status::default() });
            Ok(Decision::Proxy)
        }
        Plan::Refuse(refusal) => {
            ctx.cache.status = Some(Status::default());
            Err(refusal)
        }
    }
}

fn plan(
    shared: &Shared,
    worker: usize,
    downstream: &impl Downstream,
    ctx: &RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
    cache: &CompiledCache,
) -> Plan {
    let request = downstream.head();
    if !cache_request::is_cacheable_method(&request.method) {
        return Plan::PassBy(Forwarded::Method);
    }
    let directives =
        if cache.client_directives { RequestDirectives::of(&request.headers) } else { RequestDirectives::default() };
    let (secure, trusted) = scheme(downstream);
    if !cache_request::may_use_cache(request, trusted) || ctx.has_untold_body || ctx.websocket {
        return Plan::PassBy(Forwarded::Bypass);
    }
    if directives.no_store {
        return Plan::PassBy(Forwarded::Request);
    }
    let host = request::request_host(request).unwrap_or_default();
    let forwarded = route.policies.auth.forward_credential.then(|| tenant.auth.credential_headers());
    let identified =
        cache_request::is_identified(ctx.principal.as_deref(), &request.headers, forwarded.unwrap_or_default());
    let version = ctx.version.and_then(|index| tenant.versions.as_ref()?.id(index));
    let origin = Origin {
        tenant: tenant.config.id.as_str(),
        version: version.unwrap_or_default(),
        canary: ctx.exchange.canary,
        identified,
        secure,
        host,
        trusted,
    };
    let key = cache_request::key(cache, request, &origin);
    let now = Timestamp::from(ctx.started_at);
    let lookup = cache.partition.find(&key, &request.headers, now);
    let passes = matches!(lookup, Lookup::Passes);
    let (stored, forwarded, collapses) = match lookup {
        Lookup::Found(stored) if !is_servable(route, &stored) => (None, Forwarded::UriMiss, !ctx.may_be_quiet),
        Lookup::Found(stored) => match stored.rules.reuse(&directives, cache.policy.stale, now) {
            Reuse::Fresh | Reuse::Stale => {
                let status = Status::hit(stored.rules.remaining(now));
                return Plan::Serve(stored, status);
            }
            Reuse::Refresh => {
                let status = Status::hit(stored.rules.remaining(now));
                if let Some(share) =
                    may_ask_behind(shared, worker, origin.tenant, route.pool_for(origin.canary), Some(&stored))
                {
                    let place = Place {
                        key: key.as_slice().into(),
                        resource: cache_request::resource(request, host),
                        identified,
                        stored: Some(stored.clone()),
                    };
                    ask_behind(shared, worker, downstream, ctx, place, share);
                }
                return Plan::Serve(stored, status);
            }
            Reuse::Validate => {
                let by_request = stored.rules.is_fresh(now);
                let forwarded = if by_request { Forwarded::Request } else { Forwarded::Stale };
                let collapses = stored.is_worth_waiting_for();
                (Some(stored), forwarded, collapses)
            }
        },
        // Streams begin with their head and end some time: nobody waits for that.
        Lookup::OtherVariants => (None, Forwarded::VaryMiss, !ctx.may_be_quiet),
        Lookup::Nothing => (None, Forwarded::UriMiss, !ctx.may_be_quiet),
        Lookup::Passes => (None, Forwarded::UriMiss, false),
    };
    if directives.only_if_cached {
        return Plan::Refuse(Refusal::new(ProblemKind::NotCached, "There is no stored response that may be served."));
    }
    // The origin may well save itself the whole where that is not stored.
    if passes && cache_request::wants_less(request) {
        return Plan::PassBy(forwarded);
    }
    let asked = Asked {
        partition: cache.partition.clone(),
        key: key.as_slice().into(),
        resource: cache_request::resource(request, host),
        headers: request.headers.clone(),
        directives,
        identified,
        max_object: cache.max_object,
        stale: cache.policy.stale,
        filled: AtomicBool::new(false),
        kept: AtomicBool::new(false),
    };
    Plan::Fetch(Box::new(Fetch::new(asked, stored, collapses)), forwarded)
}

/// Whether the client speaks TLS, with the gateway or with a proxy that is believed; and whether there is such a proxy.
pub(super) fn scheme(downstream: &impl Downstream) -> (bool, bool) {
    let Some(peer) = downstream.peer() else { return (false, false) };
    let told = || downstream.head().headers.get(X_FORWARDED_PROTO).is_some_and(|proto| proto == "https");
    (peer.tls.is_some() || peer.trusted && told(), peer.trusted)
}

/// Whether the cache may ask the origin by itself: nobody has this validated already, and not too much is done for the
/// tenant. Known before anything is made for it, since in an outage this is asked for each client.
fn may_ask_behind(
    shared: &Shared,
    worker: usize,
    tenant: &str,
    pool: &Arc<UpstreamPool>,
    stored: Option<&Arc<Stored>>,
) -> Option<Share> {
    if stored.is_some_and(|stored| !stored.begin_refresh()) {
        return None;
    }
    let share = shared.cache.background.share(worker, tenant, pool);
    if let (None, Some(stored)) = (&share, stored) {
        stored.refreshed();
    }
    share
}

/// Has the origin asked by the cache itself, as this client would ask it for the whole.
fn ask_behind(
    shared: &Shared,
    worker: usize,
    downstream: &impl Downstream,
    ctx: &RequestContext,
    place: Place,
    share: Share,
) {
    let request = downstream.head();
    let internal = Internal {
        host: request::request_host(request).unwrap_or_default().into(),
        secure: scheme(downstream).0,
        client: ctx.client,
        principal: ctx.principal.clone(),
        place: Some(place),
        canary: ctx.exchange.canary,
        done: None,
    };
    // Where the worker has no time for it, the next one who wants it asks again.
    shared.cache.background.add(worker, Job::new(&request.uri, &request.headers, internal, Some(share)));
}

/// The end of a request that has begun to fill the cache. Pingora asks for a whole response also where the client wants
/// less of it, and lets go of what it has of it as soon as the client has all that it wants: then the cache asks once more,
/// behind the client's back.
pub(super) fn end_fill(
    shared: &Shared,
    worker: usize,
    session: &mut Session,
    ctx: &RequestContext,
    error: Option<&Error>,
) {
    let Some(fetch) = ctx.cache.fetch.as_ref().filter(|fetch| fetch.fills) else { return };
    let asked = &fetch.asked;
    if asked.filled.load(Relaxed) {
        return;
    }
    if session.cache.enabled() {
        // Who waits for it is to know that nothing will come of it.
        session.cache.disable(NoCacheReason::UpstreamError);
    }
    let is_left = error.is_none()
        && fetch.announced
        && ctx.cache.internal.is_none()
        && cache_request::wants_less(session.req_header());
    if is_left
        && let Some(pool) = &ctx.exchange.pool
        && let Some(share) = may_ask_behind(shared, worker, asked.partition.tenant(), pool, fetch.stored.as_ref())
    {
        let place = Place {
            key: asked.key.clone(),
            resource: asked.resource.clone(),
            identified: asked.identified,
            stored: fetch.stored.clone(),
        };
        ask_behind(shared, worker, session, ctx, place, share);
    }
}

/// Whether the body of a request of the cache's own is read for nothing, since it will not be stored. What is short is read to
/// its end, which keeps the connection to the origin.
pub(super) fn is_in_vain(session: &Session, ctx: &RequestContext) -> bool {
    const SHORT: usize = 64 << 10;
    ctx.cache.internal.is_some() && !session.cache.enabled() && session.body_bytes_sent() > SHORT
}

/// Whether nothing is stored for those who have waited, and nothing will be.
pub(super) fn has_come_to_nothing(ctx: &RequestContext) -> bool {
    // What the cache asks by itself is asked whatever became of it before.
    let fetch = ctx.cache.fetch.as_ref().filter(|_| ctx.cache.internal.is_none());
    fetch.is_some_and(|fetch| fetch.collapses && fetch.asked.passes())
}

/// The origin has failed for good, and nothing is stored that may stand in: lets go of all who wait, who would else find
/// that out one after the other. Who comes later waits again.
pub(super) fn let_go_of_waiting(session: &mut Session, ctx: &RequestContext) {
    let has_others_wait = ctx.cache.fetch.as_ref().is_some_and(|fetch| fetch.collapses);
    if has_others_wait && session.cache.enabled() && !failure::may_serve_stale(ctx) {
        // Of all reasons one of those that let all go on at once.
        session.cache.disable(NoCacheReason::OriginNotCache);
    }
}

/// Sends what is stored to a client whose request could not be sent to the origin.
pub(super) async fn serve_stale(session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
    let Some(stored) = ctx.cache.fetch.as_ref().and_then(|fetch| fetch.stored.clone()) else { return Ok(()) };
    note_stale(ctx, None);
    serve(session, ctx, &stored).await
}

/// The client gets what is stored, since the origin has failed.
pub(super) fn note_stale(ctx: &mut RequestContext, status: Option<u16>) {
    let Some(fetch) = &mut ctx.cache.fetch else { return };
    fetch.serving.clone_from(&fetch.stored);
    let ttl = fetch.stored.as_ref().map(|stored| stored.rules.remaining(SystemTime::now().into()));
    let forwarded = ctx.cache.status.and_then(|status| status.forwarded);
    ctx.cache.status = Some(Status { forwarded, forwarded_status: status, ttl, ..Status::default() });
}

/// A request of the cache's own: finds its tenant and route, and sends it on. `false`: there is nothing to be sent.
pub(super) fn internal(shared: &Shared, session: &mut Session, ctx: &mut RequestContext, internal: Internal) -> bool {
    ctx.client = internal.client;
    ctx.principal.clone_from(&internal.principal);
    ctx.cache.internal = Some(Box::new(internal));
    if request::find_route(shared, session, ctx).is_err() {
        return false;
    }
    let Some(entry) = ctx.tenant.clone() else { return false };
    let tenant = entry.compiled();
    let Some(route) = ctx.route.and_then(|index| tenant.routes.get(index)) else { return false };
    let (Some(cache), Some(internal)) = (&route.cache, &ctx.cache.internal) else { return false };
    let request = session.req_header();
    if internal.place.is_none() && !warming::is_for_anybody(tenant, route, &request.headers) {
        let detail = Some(NotStored::Credential.name());
        ctx.cache.status = Some(Status { detail, ..Status::default() });
        return false;
    }
    ctx.exchange.canary = internal.canary;
    ctx.exchange.pool = Some(route.pool_for(internal.canary).clone());
    let (key, resource, identified, stored) = if let Some(place) = &internal.place {
        if place.stored.is_none()
            && let Some(ttl) = fresh_meanwhile(cache, &place.key, request)
        {
            ctx.cache.status = Some(Status::hit(ttl));
            return false;
        }
        (place.key.clone(), place.resource.clone(), place.identified, place.stored.clone())
    } else {
        let version = ctx.version.and_then(|index| tenant.versions.as_ref()?.id(index));
        let origin = Origin {
            tenant: tenant.config.id.as_str(),
            version: version.unwrap_or_default(),
            canary: internal.canary,
            identified: false,
            secure: internal.secure,
            host: &internal.host,
            trusted: false,
        };
        let key = cache_request::key(cache, request, &origin);
        (key.as_slice().into(), cache_request::resource(request, &internal.host), false, None)
    };
    let asked = Asked {
        partition: cache.partition.clone(),
        key,
        resource,
        headers: request.headers.clone(),
        // Whatever is stored, the origin is asked.
        directives: RequestDirectives { no_cache: true, ..RequestDirectives::default() },
        identified,
        max_object: cache.max_object,
        stale: cache.policy.stale,
        filled: AtomicBool::new(false),
        kept: AtomicBool::new(false),
    };
    ctx.cache.status = Some(Status { forwarded: Some(Forwarded::Request), ..Status::default() });
    ctx.cache.fetch = Some(Box::new(Fetch::new(asked, stored, true)));
    true
}

/// For how long that is fresh which another one of many requests that were cut short has brought meanwhile.
fn fresh_meanwhile(cache: &CompiledCache, key: &[u8], request: &RequestHeader) -> Option<i64> {
    let now = Timestamp::from(SystemTime::now());
    let Lookup::Found(stored) = cache.partition.find(key, &request.headers, now) else { return None };
    stored.rules.is_fresh(now).then(|| stored.rules.remaining(now))
}

/// Sends what is stored, or what of it the client has not got yet.
pub(super) async fn serve(session: &mut Session, ctx: &mut RequestContext, stored: &Stored) -> Result<()> {
    let Some(entry) = ctx.tenant.clone() else { return Ok(()) };
    let tenant = entry.compiled();
    let Some(route) = ctx.route.and_then(|index| tenant.routes.get(index)) else { return Ok(()) };
    let (parts, body) = answer(session, ctx, tenant, route, stored)?;
    let has_body = respond::may_have_body(session.req_header(), parts.status);
    let is_last = body.as_ref().is_none_or(Bytes::is_empty);
    session.write_response_header(Box::new(parts.into()), is_last).await?;
    if ctx.response_body.is_left() {
        let mut left = body.unwrap_or_default();
        loop {
            let (piece, is_last) = response_body::next_piece(session, &mut left, ctx).await?;
            session.write_response_body(piece, is_last).await?;
            if is_last {
                return Ok(());
            }
        }
    }
    if !is_last {
        session.write_response_body(body, true).await?;
    } else if session.req_header().version == http::Version::HTTP_2 || has_body {
        // Else the stream is taken for one that broke off, or the chunked body for one that has not ended.
        session.write_response_body(None, true).await?;
    }
    Ok(())
}

/// The whole answer that a client gets of what is stored. Where a long body [is left](super::context::ResponseBody::is_left)
/// to be compressed, it goes through [`response_body::next_piece`] while it is sent.
pub(super) fn answer(
    downstream: &mut impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
    stored: &Stored,
) -> Result<(Parts, Option<Bytes>)> {
    let mut parts = http::Response::new(()).into_parts().0;
    let mut body = compose(downstream.head(), &mut parts, route, stored, ctx.started_at.into());
    response::change(downstream, &mut parts, ctx, tenant, route);
    if !respond::may_have_body(downstream.head(), parts.status) {
        body = None;
    } else if !response_body::goes_in_pieces(body.as_ref(), ctx) {
        response_body::filter(downstream, &mut body, true, ctx)?;
    }
    if let Some(body) = &body
        && !ctx.response_body.is_left()
    {
        offer_file(downstream, route, stored, body);
    }
    Ok((parts, body))
}

/// A stored body that goes out as it is, to a client whom nothing but TCP lies before, may be sent from its file.
fn offer_file(downstream: &impl Downstream, route: &CompiledRoute, stored: &Stored, body: &Bytes) {
    let (Some(peer), Some(cache)) = (downstream.peer(), &route.cache) else { return };
    let is_stored = body.as_ptr() == stored.body.as_ptr() && body.len() == stored.body.len();
    if is_stored
        && peer.tls.is_none()
        && downstream.head().version != http::Version::HTTP_2
        && let Some(twin) = stored.twin(cache.partition.storage())
    {
        peer.set_twin(Some(twin));
    }
}

/// The head that a client gets of a stored response, and the body that belongs to it.
fn compose(
    request: &RequestHeader,
    parts: &mut Parts,
    route: &CompiledRoute,
    stored: &Stored,
    now: Timestamp,
) -> Option<Bytes> {
    parts.status = stored.status;
    parts.headers = stored.headers.clone();
    parts.headers.insert(header::AGE, HeaderValue::from(stored.rules.age(now)));
    if validation::is_not_modified(&request.headers, stored.status, &stored.headers) {
        parts.status = StatusCode::NOT_MODIFIED;
        validation::without_content(&mut parts.headers);
        return None;
    }
    if stored.status == StatusCode::OK && request.method == Method::GET && serves_parts(route) {
        match range::parts(&request.headers, &stored.headers, stored.body.len()) {
            range::Parts::Whole => {}
            range::Parts::Some(ranges) => {
                parts.status = StatusCode::PARTIAL_CONTENT;
                return Some(range::partial(&mut parts.headers, &stored.body, &ranges, fastrand::u64(..)));
            }
            range::Parts::Unsatisfiable => {
                parts.status = StatusCode::RANGE_NOT_SATISFIABLE;
                range::unsatisfiable(&mut parts.headers, stored.body.len());
                return None;
            }
        }
    }
    Some(stored.body.clone())
}

/// Whether the route can make of it what its clients get. It may have been stored before the route had a transform.
pub(super) fn is_servable(route: &CompiledRoute, stored: &Stored) -> bool {
    route.policies.response_body.is_none() || !response::defies_transform(stored.status, &stored.headers)
}

/// Whether parts of a stored body are parts of what the client would get of it.
pub(super) fn serves_parts(route: &CompiledRoute) -> bool {
    route.policies.response_body.is_none()
}

impl Fetch {
    pub(super) fn new(asked: Asked, stored: Option<Arc<Stored>>, collapses: bool) -> Self {
        Self {
            requested: SystemTime::now().into(),
            since: asked.partition.purges().latest(),
            asked: Arc::new(asked),
            failures: stored.as_ref().map_or(0, |stored| stored.failures()),
            stored,
            collapses,
            frees_others: false,
            fills: false,
            announced: false,
            update: None,
            serving: None,
            told: None,
        }
    }
}
