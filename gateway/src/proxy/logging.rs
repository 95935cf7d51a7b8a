//! The end of a request: counted, logged, traced, and the attempt's guard let go.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use pingora_core::{Error, ErrorSource};
use seiketsu_cache::status::{Forwarded, Status};
use seiketsu_identity::principal::Principal;

use super::{Downstream, RequestContext, Shared, request};
use crate::{
    cache::background::{Fetched, Internal},
    limits::check::Limited,
    respond::problem::ProblemKind,
    telemetry::{
        access_log::{AccessRecord, LimitRecord, UpstreamRecord},
        metrics::{Attempt, CacheResult, Outcome, RouteSlot},
        usage::{Caller, Counts, of_request},
    },
};

/// A WebSocket lasts as long as its client likes: its latency is none.
const SWITCHING_PROTOCOLS: u16 = 101;

/// Gives how long it has taken.
pub(super) fn finish(
    shared: &Shared,
    downstream: &impl Downstream,
    error: Option<&Error>,
    ctx: &mut RequestContext,
) -> Duration {
    if let Some(mut internal) = ctx.cache.internal.take() {
        finish_of_cache(shared, ctx, &mut internal);
        return ctx.started.elapsed();
    }
    if let Some(peer) = downstream.peer() {
        peer.watch.disarm();
        peer.set_twin(None);
    }
    ctx.exchange.attempt = None;
    ctx.exchange.permit = None;
    ctx.admitted = None;
    let duration = ctx.started.elapsed();
    let status = downstream.answered().map_or(0, |status| status.as_u16());
    let (bytes_in, bytes_out) = (downstream.body_received(), downstream.body_sent());
    let asked_upstream = ctx.exchange.first_attempt_at;
    let upstream_time = asked_upstream.map(|at| ctx.exchange.headers_after.unwrap_or_else(|| at.elapsed()));
    let tenant = ctx.tenant();
    let slot = tenant.zip(ctx.route).map_or(RouteSlot::NONE, |(tenant, route)| tenant.route_metrics.slot(route));
    let outcome = Outcome {
        route: slot,
        status,
        refusal: ctx.refused,
        total: duration,
        upstream: upstream_time,
        bytes_in,
        bytes_out,
    };
    let in_flight = ctx.in_flight.take().unwrap_or_else(|| shared.metrics.no_tenant().begin());
    if asked_upstream.is_some() {
        for _ in 1..ctx.exchange.attempts {
            in_flight.retry();
        }
        in_flight.attempt(attempt(ctx, error));
    }
    if let Some(limited) = &mut ctx.limited {
        // To callers of gRPC, HTTP says 200 whatever was refused.
        let refused = ctx.refused.filter(|_| ctx.grpc);
        limited.ended(refused.map_or(status, |kind| kind.status().as_u16()));
    }
    let cached = cache_result(ctx);
    if let Some(result) = cached {
        in_flight.cached(result, bytes_out);
    }
    in_flight.finish(&outcome);
    let stands_in = ctx.cache.fetch.as_ref().is_some_and(|fetch| fetch.serving.is_some());
    let broken_off = error.is_some_and(|error| *error.esource() == ErrorSource::Upstream) && !stands_in;
    if let Some(counts) = of_request(ctx.weight, ctx.refused, status >= 500 || broken_off)
        && let Some(tenant) = &ctx.tenant
    {
        let caller = Caller {
            tenant: tenant.id().as_str(),
            route: ctx.route().map_or("", |route| route.id.as_str()),
            consumer: ctx.principal.as_deref().map_or("", Principal::id),
        };
        let took = (counts.admitted > 0 && status != SWITCHING_PROTOCOLS).then_some(duration);
        let given_back = ctx.limited.as_ref().map_or(0, Limited::given_back).min(counts.cost);
        shared.usage.count_request(&caller, &Counts { bytes_in, bytes_out, given_back, ..counts }, status, took);
    }

    let logged = shared.access_log.samples(ctx.policies().map_or(1.0, |policies| policies.log_sample), status);
    if !logged && !ctx.trace.is_recorded() {
        return duration;
    }
    let request = downstream.head();
    let text = |name| request.headers.get(name).map_or(&b""[..], http::HeaderValue::as_bytes);
    let record = AccessRecord {
        started: ctx.started_at,
        duration,
        request_id: ctx.request_id.as_str(),
        trace_id: ctx.trace.trace_id(),
        tenant: ctx.tenant.as_ref().map_or("", |tenant| tenant.id().as_str()),
        route: ctx.route().map_or("", |route| route.id.as_str()),
        consumer: ctx.principal.as_deref().and_then(Principal::name).unwrap_or(""),
        client: ctx.client,
        method: request.method.as_str(),
        host: request::request_host(request).unwrap_or_default(),
        path: request.uri.path().as_bytes(),
        protocol: request.version,
        tls: downstream.peer().and_then(|peer| peer.tls.as_ref()).map_or("", |tls| tls.version),
        status,
        bytes_in,
        bytes_out,
        refusal: ctx.refused,
        early_error: "",
        limit: ctx.limited.as_ref().map(|limited| LimitRecord {
            by: limited.by,
            waited: limited.waited,
            refused_by: limited.refused_by.as_deref().unwrap_or_default(),
        }),
        cache: cached,
        user_agent: text(http::header::USER_AGENT),
        upstream: asked_upstream.and_then(|at| exchange(ctx, at, upstream_time.unwrap_or_default())),
    };
    shared.tracer.record(&ctx.trace, &record);
    if logged {
        shared.access_log.write(&record);
    }
    duration
}

/// What became of the attempts, the first of which began then; they took so long.
fn exchange(ctx: &RequestContext, began: Instant, duration: Duration) -> Option<UpstreamRecord<'_>> {
    let pool = ctx.exchange.pool.as_ref()?;
    Some(UpstreamRecord {
        name: pool.key().upstream.as_str(),
        address: ctx.exchange.endpoint.as_ref().map(|endpoint| endpoint.address),
        status: ctx.exchange.status.map_or(0, |status| status.as_u16()),
        began_after: began.saturating_duration_since(ctx.started),
        duration,
        attempts: ctx.exchange.attempts,
        error: ctx.exchange.failure.unwrap_or_default(),
    })
}

/// The end of a request that the cache has made itself.
fn finish_of_cache(shared: &Shared, ctx: &mut RequestContext, internal: &mut Internal) {
    ctx.exchange.attempt = None;
    ctx.exchange.permit = None;
    ctx.in_flight = None;
    let status = ctx.exchange.status.map_or(0, |status| status.as_u16());
    let counters = &shared.cache.background.counters;
    // What somebody else has fetched meanwhile is stored as well.
    let is_fresh = |status: Status| status.ttl.is_some_and(|ttl| ttl > 0);
    let is_there = ctx.cache.status.is_some_and(|status| (status.hit || status.collapsed) && is_fresh(status));
    let count = if (1..500).contains(&status) || is_there { &counters.answered } else { &counters.failed };
    count.fetch_add(1, Relaxed);
    if let Some(done) = internal.done.take() {
        let is_kept = ctx.cache.fetch.as_ref().is_some_and(|fetch| fetch.is_kept());
        let stored = is_there || is_kept && ctx.cache.status.is_some_and(|status| status.stored);
        // Whoever asked may have gone.
        let detail = ctx.cache.status.and_then(|status| status.detail);
        let _ = done.send(Fetched { status, stored, detail, failure: failure(ctx) });
    }
}

/// Why the cache has got nothing that it could keep although nothing in the answer's head forbids it, in a word.
fn failure(ctx: &RequestContext) -> Option<&'static str> {
    match (&ctx.tenant, ctx.cache.status) {
        (None, _) => Some(ProblemKind::NoRoute.name()),
        (Some(_), None) => Some("cache-off"),
        (Some(_), Some(status)) => {
            let refused = ctx.refused.map(ProblemKind::name);
            // The body was too large, or there was no room for it; or what was validated has gone meanwhile.
            ctx.exchange.failure.or(refused).or(status.stored.then_some("not-kept"))
        }
    }
}

/// What Pingora's own messages say of a request: all but the query, which may hold anything and stands in no log.
pub(super) fn summary(downstream: &impl Downstream) -> String {
    let request = downstream.head();
    let host = String::from_utf8_lossy(request::request_host(request).unwrap_or_default());
    format!("{} {}, Host: {host}", request.method, request.uri.path())
}

/// What the cache did for the request, in a word.
fn cache_result(ctx: &RequestContext) -> Option<CacheResult> {
    let status = ctx.cache.status?;
    let stale = status.ttl.is_some_and(|ttl| ttl <= 0);
    Some(match status.forwarded {
        Some(_) if status.collapsed && !stale => CacheResult::Collapsed,
        None if status.hit && stale => CacheResult::Stale,
        None if status.hit => CacheResult::Hit,
        Some(Forwarded::Bypass | Forwarded::Method) => CacheResult::Bypass,
        Some(_) if ctx.cache.fetch.is_none() => CacheResult::Bypass,
        Some(_) if status.forwarded_status == Some(304) => CacheResult::Revalidated,
        Some(_) if ctx.cache.fetch.as_ref().is_some_and(|fetch| fetch.serving.is_some()) => CacheResult::Stale,
        Some(_) | None => CacheResult::Miss,
    })
}

fn attempt(ctx: &RequestContext, error: Option<&Error>) -> Attempt {
    use pingora_core::ErrorType as E;
    if ctx.exchange.status.is_some() {
        return Attempt::Answered;
    }
    match error {
        Some(error) if *error.esource() == ErrorSource::Upstream => match error.etype() {
            E::ConnectTimedout
            | E::ConnectRefused
            | E::ConnectNoRoute
            | E::ConnectError
            | E::ConnectProxyFailure
            | E::TLSHandshakeFailure
            | E::TLSHandshakeTimedout
            | E::SocketError
            | E::BindError => Attempt::ConnectFailure,
            E::ReadTimedout | E::WriteTimedout => Attempt::Timeout,
            E::InvalidHTTPHeader | E::InvalidH2 => Attempt::Malformed,
            _ => Attempt::Reset,
        },
        Some(_) if ctx.refused.is_some_and(|kind| !kind.status().is_client_error()) => Attempt::Timeout,
        _ => Attempt::Cancelled,
    }
}
