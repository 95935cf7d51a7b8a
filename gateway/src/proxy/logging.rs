//! The end of a request: counted, logged, traced, and the attempt's guard let go.

use pingora_core::{Error, ErrorSource};
use pingora_proxy::Session;
use seiketsu_identity::principal::Principal;

use super::{RequestContext, Shared, request};
use crate::{
    server::peer::Peer,
    telemetry::{
        access_log::{AccessRecord, LimitRecord, UpstreamRecord},
        metrics::{Attempt, Outcome, RouteSlot},
        usage::{Caller, Counts},
    },
};

pub(super) fn finish(shared: &Shared, session: &mut Session, error: Option<&Error>, ctx: &mut RequestContext) {
    if let Some(peer) = Peer::of(session) {
        peer.watch.disarm();
    }
    ctx.exchange.attempt = None;
    ctx.exchange.permit = None;
    ctx.admitted = None;
    let duration = ctx.started.elapsed();
    let status = session.response_written().map_or(0, |response| response.status.as_u16());
    let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
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
    in_flight.finish(&outcome);
    let broken_off = error.is_some_and(|error| *error.esource() == ErrorSource::Upstream);
    if let Some(counts) = Counts::of_request(ctx.weight, ctx.refused, status >= 500 || broken_off)
        && let Some(tenant) = &ctx.tenant
    {
        let caller = Caller {
            tenant: tenant.id().as_str(),
            route: ctx.route().map_or("", |route| route.id.as_str()),
            consumer: ctx.principal.as_deref().map_or("", Principal::id),
        };
        shared.usage.count(&caller, &Counts { bytes_in, bytes_out, ..counts });
    }

    let share = ctx.policies().map_or(1.0, |policies| policies.log_sample);
    let logged = shared.access_log.samples(share, status);
    if !logged && !ctx.trace.is_recorded() {
        return;
    }
    let request = session.req_header();
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
        tls: Peer::of(session).and_then(|peer| peer.tls.as_ref()).map_or("", |tls| tls.version),
        status,
        bytes_in,
        bytes_out,
        refusal: ctx.refused,
        limit: ctx.limited.as_ref().map(|limited| LimitRecord {
            by: limited.by,
            waited: limited.waited,
            refused_by: limited.refused_by.as_deref().unwrap_or_default(),
        }),
        user_agent: text(http::header::USER_AGENT),
        upstream: asked_upstream.and_then(|at| {
            let pool = ctx.exchange.pool.as_ref()?;
            Some(UpstreamRecord {
                name: pool.key().upstream.as_str(),
                address: ctx.exchange.endpoint.as_ref().map(|endpoint| endpoint.address),
                status: ctx.exchange.status.map_or(0, |status| status.as_u16()),
                began_after: at.saturating_duration_since(ctx.started),
                duration: upstream_time.unwrap_or_default(),
                attempts: ctx.exchange.attempts,
            })
        }),
    };
    shared.tracer.record(&ctx.trace, &record);
    if logged {
        shared.access_log.write(&record);
    }
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
        Some(_) if ctx.refused.is_some() => Attempt::Timeout,
        _ => Attempt::Cancelled,
    }
}
