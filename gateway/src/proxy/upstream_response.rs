//! The head of an upstream's response, and its trailers: how the attempt went, and whether there will be another.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use seiketsu_cache::storing;

use super::{RequestContext, Shared, change_response, failure, response::defies_transform, response_cache};
use crate::{
    policy::Refusal,
    respond::problem::ProblemKind,
    server::peer::Peer,
    upstream::{endpoint::Outcome, retry::Failure},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

pub(super) fn filter(
    shared: &Shared,
    session: &mut Session,
    response: &mut ResponseHeader,
    ctx: &mut RequestContext,
) -> Result<()> {
    // Hints on the way to the response (RFC 9110 §15.2) are not it.
    let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if response.status.is_informational() && !switches {
        return Ok(());
    }
    if switches && !session.as_downstream().is_upgrade_req() {
        let error = Error::explain(ErrorType::InvalidHTTPHeader, "the upstream switches protocols unasked");
        return Err(error.into_up());
    }
    if !switches {
        let targets = ctx.route().and_then(|route| route.cache.as_ref()).map(|cache| &*cache.policy.targets);
        change_response(response, |response| {
            // The gateway's own, whatever the upstream speaks (RFC 9112 §2.3).
            response.version = Version::HTTP_11;
            normalise_framing(response.status, &mut response.headers);
            remove_hop_by_hop(response.status, &mut response.headers, targets.unwrap_or_default());
        });
    }
    if let Some(attempt) = &mut ctx.exchange.attempt {
        attempt.observe(Outcome::Status(response.status));
    }
    if failure::may_retry(shared, session, ctx, Failure::Status(response.status), true) {
        let mut error = Error::explain(ErrorType::HTTPStatus(response.status.as_u16()), "tried again");
        error.as_up();
        error.set_retry(true);
        return Err(error);
    }
    failure::give_way_to_stale(session, response.status, ctx)?;
    if let Some(limited) = &mut ctx.limited {
        if switches {
            limited.has_upgraded();
        }
        if ctx.grpc {
            limited.grpc_ended(&response.headers);
        }
    }
    ctx.exchange.status = Some(response.status);
    ctx.exchange.failure = None;
    if response.status == StatusCode::NOT_MODIFIED
        && let Some(fetch) = &mut ctx.cache.fetch
        && fetch.stored.is_some()
    {
        fetch.update = Some(response.headers.clone());
    }
    response_cache::invalidate(shared, session, response, ctx);
    if ctx.route().is_some_and(|route| route.policies.response_body.is_some())
        && defies_transform(response.status, &response.headers)
    {
        return Err(not_transformable(response.status, ctx));
    }
    let now = Instant::now();
    ctx.exchange.headers_after = ctx.exchange.first_attempt_at.map(|at| now - at);
    if let (Some(peer), Some(route)) = (Peer::of(session), ctx.route()) {
        let quiet = ctx.may_be_quiet || switches || storing::is_event_stream(&response.headers);
        if quiet {
            // It may go on for hours and costs little.
            ctx.admitted = None;
            peer.watch.disarm();
        } else {
            peer.watch.arm(route.policies.timeouts.idle.get(), now);
        }
    }
    Ok(())
}

/// Before it is stored, and before the client has the head.
fn not_transformable(status: StatusCode, ctx: &mut RequestContext) -> Box<Error> {
    if let Some(route) = ctx.route() {
        tracing::info!(route = %route.id, %status, "a response came encoded or in part although it is to be transformed");
    }
    let detail = "The answer of the service behind this API could not be translated.";
    ctx.refusal = Some(Refusal::new(ProblemKind::UpstreamError, detail));
    Error::explain(ErrorType::InvalidHTTPHeader, "the response cannot be transformed").into_up()
}

/// What comes behind the body.
pub(super) fn filter_trailers(trailers: &HeaderMap, ctx: &mut RequestContext) {
    if ctx.grpc
        && let Some(limited) = &mut ctx.limited
    {
        limited.grpc_ended(trailers);
    }
}

/// One statement about where the body ends, and none where there is no body.
fn normalise_framing(status: StatusCode, fields: &mut HeaderMap) {
    if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6, RFC 9112 §6.1.
        fields.remove(header::CONTENT_LENGTH);
        fields.remove(header::TRANSFER_ENCODING);
        return;
    }
    // As many values as names: no line stands twice.
    let doubled = fields.len() != fields.keys_len();
    let is_odd =
        |value: &HeaderValue| doubled || value.as_bytes().contains(&b',') || value.as_bytes().starts_with(b"0");
    if fields.get(header::CONTENT_LENGTH).is_some_and(is_odd)
        && let Some(length) = length(fields)
    {
        fields.insert(header::CONTENT_LENGTH, length.into());
    }
    // Of several codings, none but `chunked` is said twice by mistake only.
    if fields.get(header::TRANSFER_ENCODING).is_some_and(is_odd)
        && members(fields, &header::TRANSFER_ENCODING).all(|coding| coding.eq_ignore_ascii_case(b"chunked"))
    {
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The number that all of `Content-Length` says, however it is written (RFC 9110 §8.6).
fn length(fields: &HeaderMap) -> Option<u64> {
    let number = |member: &[u8]| {
        let digits = std::str::from_utf8(member).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits?.parse::<u64>().ok()
    };
    let mut lengths = members(fields, &header::CONTENT_LENGTH).map(number);
    let first = lengths.next()??;
    lengths.all(|other| other == Some(first)).then_some(first)
}

/// What a list says, on one line or on several.
fn members<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = fields.get_all(name).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
}

/// What the upstream says of its connection with the gateway is nothing to the client (RFC 9110 §7.6.1).
/// `Connection` itself is written anew by Pingora. `targets`: the fields by which the route's cache goes first.
fn remove_hop_by_hop(status: StatusCode, fields: &mut HeaderMap, targets: &[HeaderName]) {
    // One look at each name that is there costs less than a lookup of each that might be.
    let (mut connection, mut keep_alive, mut proxy_connection, mut upgrade) = (false, false, false, false);
    for name in fields.keys() {
        match name.as_str() {
            "connection" => connection = true,
            "keep-alive" => keep_alive = true,
            "proxy-connection" => proxy_connection = true,
            "upgrade" => upgrade = true,
            _ => {}
        }
    }
    if connection {
        remove_nominated(fields, targets);
        fields.remove(header::CONNECTION);
    }
    if keep_alive {
        fields.remove(KEEP_ALIVE);
    }
    if proxy_connection {
        fields.remove(PROXY_CONNECTION);
    }
    // 426 says there what the client should upgrade to (RFC 9110 §15.5.22).
    if upgrade && status != StatusCode::UPGRADE_REQUIRED {
        fields.remove(header::UPGRADE);
    }
}

/// Removes the fields that `Connection` names.
fn remove_nominated(fields: &mut HeaderMap, targets: &[HeaderName]) {
    let nominated: Vec<HeaderName> = members(fields, &header::CONNECTION)
        // By far the most frequent, and no names of fields that are to be found here.
        .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        // Where a body ends is not for the upstream to conceal.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING)
        .filter(|name| *name != header::UPGRADE)
        // Nor by whom and for how long it may be kept, and what a purge knows it by.
        .filter(|name| !storing::is_for_caches(name, targets) && *name != header::AGE && *name != header::SET_COOKIE)
        .collect();
    for name in nominated {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_coding_that_is_applied_twice_is_said_twice() {
        for cookies in [1, 2] {
            let mut fields = HeaderMap::new();
            fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("gzip, gzip"));
            for _ in 0..cookies {
                fields.append(header::SET_COOKIE, HeaderValue::from_static("a=b"));
            }
            normalise_framing(StatusCode::OK, &mut fields);
            assert_eq!(fields.get(header::TRANSFER_ENCODING).unwrap(), "gzip, gzip", "{cookies}");
        }
    }
}
