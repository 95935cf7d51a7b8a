//! Before anything is decided: time-outs, who the client is, and what it may not claim to be.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, Method, Version, header, request};
use pingora_proxy::Session;
use seiketsu_config::forwarded;
use seiketsu_identity::forged::{self, is_spelled};

use super::{Downstream, RequestContext, Shared, context, parts};
use crate::{fields, server::peer::Peer, telemetry::request_id::RequestId};

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A body that is left over when the answer is out is read for this long, to keep the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that sends nothing of its body is waited for no longer.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) fn filter(shared: &Shared, session: &mut Session, ctx: &mut Box<RequestContext>) {
    match Peer::of(session).map(Peer::take_begun) {
        // A request of the cache's own.
        None => {
            ctx.request_id = RequestId::generate(ctx.started_at);
            return;
        }
        Some(Some(begun)) => begun.go_on(session, ctx),
        Some(None) => {
            // Names go on in lower case.
            parts::change_request(session.req_header_mut(), |_| ());
            identify(shared, session, ctx);
        }
    }
    let downstream = session.as_downstream_mut();
    let is_http2 = downstream.req_header().version == Version::HTTP_2;
    ctx.has_untold_body = is_http2 && !downstream.is_body_empty();
    downstream.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
    // Clients of HTTP/1.0 do not know interim responses (RFC 9110 §15.2).
    downstream.set_ignore_info_resp(downstream.req_header().version == Version::HTTP_10);
    // The silence of a WebSocket or of a gRPC stream is not a slow body. Neither is to be had by a word in the
    // head: the one needs an upgrade, the other HTTP/2.
    let may_pause = ctx.websocket || ctx.grpc && is_http2;
    downstream.set_read_timeout((!may_pause).then_some(READ_TIMEOUT));
    if is_http2 {
        // In HTTP/1 the transport sees to it; here one stream may be stuck while others go on.
        downstream.set_write_timeout(Some(shared.node.protection.write_timeout.get()));
    }
    if may_pause && let Some(peer) = Peer::of(session) {
        peer.watch.body_ended();
    }
}

/// Finds out who the client is, and takes from the head what it may not claim.
pub(super) fn identify(shared: &Shared, downstream: &mut impl Downstream, ctx: &mut RequestContext) {
    let Some(peer) = downstream.peer() else { return };
    let (client, trusted) = (peer.ip(), peer.trusted);
    ctx.client = if trusted { forwarded_for(&downstream.head().headers, client, shared) } else { client };
    let request = downstream.head();
    let fields = &request.headers;
    let upgrades = fields::has(fields, &header::UPGRADE);
    ctx.websocket = upgrades && is_websocket(request);
    let sent = trusted.then(|| sent_request_id(fields)).flatten();
    ctx.request_id = sent.unwrap_or_else(|| RequestId::generate(ctx.started_at));
    ctx.trace = shared.tracer.begin(fields);
    ctx.grpc = request.method == Method::POST && context::is_grpc(fields);
    ctx.may_be_quiet = ctx.grpc || ctx.websocket || accepts_event_stream(fields);
    let mut removed = forged::forged_headers(fields);
    removed.append(&mut foreign_forwarding(fields, trusted));
    if upgrades && !ctx.websocket {
        // To Pingora the field alone is an upgrade; nothing else is passed on.
        removed.push(header::UPGRADE);
    }
    for name in removed {
        downstream.head_mut().remove_header(&name);
    }
}

/// What a client says about whom it speaks for, as far as it is not believed: everything from those that are not
/// trusted. Nor does anybody write `_` for `-` in good faith: servers that hand headers on as variables do not
/// tell them apart, and would take it for ours.
fn foreign_forwarding(headers: &HeaderMap, trusted: bool) -> Vec<HeaderName> {
    let believed = |name: &str| trusted && !name.contains('_');
    headers.keys().filter(|name| is_forwarding(name.as_str()) && !believed(name.as_str())).cloned().collect()
}

fn is_forwarding(name: &str) -> bool {
    const FAMILY: &str = "x-forwarded";
    /// Not by any standard: how other proxies tell the client's address, and the target that was asked for.
    const OF_OTHERS: [&str; 6] = [
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-original-url",
        "x-rewrite-url",
    ];
    match name.as_bytes() {
        [b'f', ..] => name == "forwarded",
        [b't', ..] => is_spelled(name, "true-client-ip"),
        [b'c', b'f', ..] => is_spelled(name, "cf-connecting-ip"),
        [b'x', ..] => {
            OF_OTHERS.iter().any(|wanted| is_spelled(name, wanted))
                || is_spelled(name, X_REQUEST_ID.as_str()) && name.contains('_')
                || name.get(..FAMILY.len()).is_some_and(|start| is_spelled(start, FAMILY))
                    && matches!(name.as_bytes().get(FAMILY.len()), None | Some(b'-' | b'_'))
        }
        _ => false,
    }
}

fn forwarded_for(fields: &HeaderMap, peer: IpAddr, shared: &Shared) -> IpAddr {
    let lines = fields.get_all(X_FORWARDED_FOR);
    let list: Vec<&str> = lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).collect();
    forwarded::client(list, peer, |address| shared.trusts(address))
}

fn sent_request_id(fields: &HeaderMap) -> Option<RequestId> {
    RequestId::parse(fields.get(X_REQUEST_ID)?.to_str().ok()?)
}

/// RFC 6455 §4.1. The check of the head and Pingora must agree with this, or the two would differ on where the
/// request ends.
fn is_websocket(request: &request::Parts) -> bool {
    let fields = &request.headers;
    let mut upgrades = fields.get_all(header::UPGRADE).iter();
    let options = || fields.get_all(header::CONNECTION).iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    upgrades.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && upgrades.next().is_none()
        && request.version == Version::HTTP_11
        && request.method == Method::GET
        && options().any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

fn accepts_event_stream(fields: &HeaderMap) -> bool {
    let accept = fields::get(fields, &header::ACCEPT);
    accept.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_a_forwarding_field_passes() {
        let names = ["forwarded", "x-real-ip", "x_real_ip", "x-forwarded-for", "x_forwarded-for", "x_forwarded_proto"];
        let more = ["x-forwarded-port", "x-forwarded-prefix", "x-forwarded-ssl", "x-forwarded", "x_request_id"];
        let of_others = ["true-client-ip", "true_client_ip", "cf-connecting-ip", "x-client-ip", "x_client-ip"];
        let and_more = ["x-cluster-client-ip", "x-envoy-external-address", "x-original-url", "x_rewrite_url"];
        for name in names.into_iter().chain(more).chain(of_others).chain(and_more) {
            let name = HeaderName::from_static(name);
            let headers: HeaderMap = [(name.clone(), http::HeaderValue::from_static("1"))].into_iter().collect();
            assert_eq!(foreign_forwarding(&headers, false), std::slice::from_ref(&name));
            // Of those that are trusted, what could be taken for another field.
            assert_eq!(foreign_forwarding(&headers, true).is_empty(), !name.as_str().contains('_'), "{name}");
        }
        for name in [
            "x-forwardedfor",
            "x-real-ips",
            "forwarded-for",
            "x-request-id",
            "x-forward",
            "from",
            "x",
            "te",
            "cf-ray",
            "cookie",
        ] {
            assert!(!is_forwarding(name), "{name}");
        }
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(forwarded::address(text).map(|a| a.to_string()).as_deref(), expected, "{text:?}");
        }
    }
}
