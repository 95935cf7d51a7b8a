//! Where a request goes: canary or not, a copy to a mirror, and the endpoint of each attempt.

use std::time::{Duration, Instant};

use http::{HeaderValue, header, request};
use pingora_core::{
    Error, ErrorType, Result,
    upstreams::peer::{HttpPeer, Peer as _},
};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_config::{policy::Timeouts, tenant::HashKey};

use super::{Downstream, RequestContext, Shared, cache};
use crate::{
    policy::Refusal,
    respond::problem::ProblemKind,
    server::peer::Peer,
    tenancy::compile::{CompiledCanary, CompiledRoute},
    upstream::{balance, joining::Joining, outbound::Mirrored, peer::PeerTimeouts, pool::Selection},
};

/// Decides between the route's upstream and its canary; the former is where a request goes that says nothing else.
pub(super) fn choose_side(downstream: &impl Downstream, ctx: &mut RequestContext, route: &CompiledRoute) {
    if let Some(canary) = &route.canary {
        let (chosen, set_cookie) = canary_side(canary, downstream.head(), || cache::scheme(downstream).0);
        if let Some(cookie) = set_cookie {
            ctx.sticky_cookie = Some(cookie);
        }
        if chosen {
            ctx.exchange.canary = true;
            ctx.exchange.pool = Some(canary.pool.clone());
        }
    }
}

/// Whether the canary takes the request, and the cookie that keeps it so.
fn canary_side(
    canary: &CompiledCanary,
    request: &RequestHeader,
    is_secure: impl Fn() -> bool,
) -> (bool, Option<HeaderValue>) {
    if let Some((name, value)) = &canary.header
        && request.headers.get_all(name).iter().any(|sent| sent == value)
    {
        return (true, None);
    }
    if let Some((name, value)) = &canary.cookie
        && cookie(request, name) == Some(value)
    {
        return (true, None);
    }
    let Some(sticky) = &canary.sticky else { return (fastrand::f64() < canary.weight, None) };
    // The cookie holds the number that was drawn, not the side: a change of weight moves no more
    // callers than it must.
    let drawn = cookie(request, &sticky.name).and_then(|value| value.parse::<u16>().ok()).filter(|n| *n < 10_000);
    if let Some(drawn) = drawn {
        (f64::from(drawn) < canary.weight * 10_000.0, None)
    } else {
        let drawn = fastrand::u16(..10_000);
        let secure = if is_secure() { "; Secure" } else { "" };
        let cookie = format!("{}={drawn}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax{secure}", sticky.name);
        (f64::from(drawn) < canary.weight * 10_000.0, HeaderValue::try_from(cookie).ok())
    }
}

/// The value of a cookie (RFC 6265 §4.2.1).
fn cookie<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    let lines = request.headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(have, value)| (have == name).then_some(value))
}

/// Sends a copy to the route's mirror, if this request is one of its share. The copy is of what the
/// upstream gets, without the credential, and with the caller's signed identity as it is meant for the mirror:
/// with `assertion`, that for the upstream, the mirror could speak to the upstream in the caller's name.
pub(super) fn mirror(
    shared: &Shared,
    request: &request::Parts,
    ctx: &RequestContext,
    route: &CompiledRoute,
    assertion: Option<&HeaderValue>,
) {
    let Some(mirror) = &route.mirror else { return };
    if ctx.exchange.attempts > 1 || ctx.websocket || fastrand::f64() >= mirror.share {
        return;
    }
    // Without the body the copy would not be one.
    let body = &ctx.request_body;
    let Some(body) = body.replacement.clone().or_else(|| body.read.clone()) else { return };
    let instead = match (assertion, ctx.principal.as_deref()) {
        (Some(of_upstream), Some(principal)) => match shared.assertions.assertion(principal, &mirror.audience) {
            Ok(of_mirror) => Some((of_upstream, of_mirror)),
            Err(_) => return shared.metrics.mirrored("unavailable"),
        },
        _ => None,
    };
    let result = match shared.outbound.mirror(request, body, &mirror.pool, instead) {
        Mirrored::Sent => "sent",
        Mirrored::TooMany => "too_many",
        Mirrored::Unavailable => "unavailable",
    };
    shared.metrics.mirrored(result);
}

/// The endpoint for the next attempt.
pub(super) async fn pick(joining: &Joining, session: &mut Session, ctx: &mut RequestContext) -> Result<Box<HttpPeer>> {
    if let Some(pause) = ctx.exchange.backoff.take() {
        tokio::time::sleep(pause).await;
    }
    let Some((timeouts, body_counter)) =
        ctx.route().map(|route| (route.policies.timeouts, Some(route.policies.request.body_counter())))
    else {
        return Err(Error::explain(ErrorType::InternalError, "a request without a route has no upstream"));
    };
    let now = Instant::now();
    let began = *ctx.exchange.first_attempt_at.get_or_insert(now);
    let left = timeouts.total.get().saturating_sub(now - began);
    if left.is_zero() {
        ctx.refusal = Some(Refusal::new(ProblemKind::UpstreamTimeout, "The service did not answer in time."));
        return Err(Error::explain(ErrorType::HTTPStatus(504), "no time left for another attempt"));
    }
    let tenant_key = ctx.tenant.as_ref().map_or(0, |tenant| balance::hash_key(tenant.id().as_str().as_bytes()));
    let h2 = session.req_header().version == http::Version::HTTP_2;
    let exchange = &mut ctx.exchange;
    let Some(pool) = exchange.pool.clone() else {
        return Err(Error::explain(ErrorType::InternalError, "no upstream was chosen"));
    };
    let profile = pool.profile();
    let hash_key = profile.hash_key().and_then(|key| hash_key(key, session.req_header(), ctx.client));
    let picked = pool.pick(&Selection {
        hash_key,
        tried: &exchange.tried,
        timeouts: peer_timeouts(&timeouts, left),
        caller_speaks_http2: h2,
    });
    let picked = match picked {
        Ok(picked) => picked,
        Err(error) => {
            tracing::debug!(upstream = %pool.key(), %error, "no endpoint");
            let detail = "No endpoint of the service can be reached.";
            ctx.refusal = Some(Refusal::new(ProblemKind::UpstreamUnavailable, detail));
            return Err(Error::explain(ErrorType::HTTPStatus(503), "no endpoint of the upstream can be used"));
        }
    };
    // An upstream may serve several tenants; a connection to it serves one.
    let mut peer = picked.peer;
    peer.group_key ^= tenant_key;
    // The body begins anew with each attempt.
    ctx.request_body.counter = body_counter;
    exchange.attempts += 1;
    exchange.tried.add(picked.endpoint.id());
    exchange.attempt = exchange.permit.as_ref().map(|permit| picked.endpoint.begin(permit));
    exchange.endpoint = Some(picked.endpoint);
    exchange.place = None;
    let mut now = now;
    // Where HTTP/2 is not certain before there is a connection, it may not be one that others can share.
    if peer.options.alpn.get_min_http_version() == 2 {
        let patience = timeouts.connect.get().min(left);
        exchange.place = Some(joining.place(peer.reuse_hash(), patience).await);
        now = Instant::now();
    }
    if let Some(peer) = Peer::of(session) {
        peer.watch.arm(timeouts.per_try.get().min(left), now);
    }
    Ok(peer)
}

/// Waiting for a response is the watch's affair, which can tell a late head from a quiet stream.
fn peer_timeouts(timeouts: &Timeouts, left: Duration) -> PeerTimeouts {
    PeerTimeouts { connect: timeouts.connect.get().min(left), read: None, write: Some(timeouts.idle.get()) }
}

fn hash_key(key: &HashKey, request: &RequestHeader, client: std::net::IpAddr) -> Option<u64> {
    match key {
        HashKey::Address => match client {
            std::net::IpAddr::V4(v4) => Some(balance::hash_key(&v4.octets())),
            std::net::IpAddr::V6(v6) => Some(balance::hash_key(&v6.octets())),
        },
        HashKey::Path => Some(balance::hash_key(request.uri.path().as_bytes())),
        HashKey::Header(name) => request.headers.get(name.get()).map(|value| balance::hash_key(value.as_bytes())),
        HashKey::Cookie(name) => cookie(request, name).map(|value| balance::hash_key(value.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request(cookies: &str) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("cookie", cookies).unwrap();
        request
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let request = request("xa=1; a=2;b=3");
        assert_eq!((cookie(&request, "a"), cookie(&request, "b"), cookie(&request, "c")), (Some("2"), Some("3"), None));
    }
}
