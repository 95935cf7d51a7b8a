//! What the upstream receives.

use http::{HeaderValue, header};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_identity::{assertion::IDENTITY_HEADER, plain_headers::plain_headers};

use super::{
    RequestContext, Shared,
    early_request::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID},
    request,
};
use crate::{
    respond,
    server::peer::Peer,
    tenancy::{compile::CompiledRoute, router},
};

const TRACEPARENT: http::HeaderName = http::HeaderName::from_static("traceparent");
const TRACESTATE: http::HeaderName = http::HeaderName::from_static("tracestate");

pub(super) fn filter(
    shared: &Shared,
    session: &Session,
    request: &mut RequestHeader,
    ctx: &mut RequestContext,
) -> Result<()> {
    let Some(entry) = ctx.tenant.clone() else { return Ok(()) };
    let tenant = entry.compiled();
    let Some(route) = ctx.route.and_then(|index| tenant.routes.get(index)) else { return Ok(()) };
    let policies = &route.policies;

    if !policies.auth.forward_credential {
        for name in tenant.auth.credential_headers() {
            request.remove_header(name);
        }
    }
    forwarding(session, request)?;
    // In HTTP/2 the client may have named it in `:authority` only.
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority()
    {
        request.insert_header(
            header::HOST,
            HeaderValue::from_str(authority.as_str())
                .or_err(ErrorType::InvalidHTTPHeader, "the authority is no field value")?,
        )?;
    }
    join_cookies(request)?;
    request.insert_header(X_REQUEST_ID, ctx.request_id.header_value())?;
    if let Some(traceparent) = ctx.trace.traceparent_for_upstream() {
        request.insert_header(TRACEPARENT, traceparent)?;
    }
    if !ctx.trace.keeps_tracestate() {
        request.remove_header(&TRACESTATE);
    }
    identity(shared, request, ctx, route)?;
    // Pingora takes it for hop-by-hop; gRPC servers insist on it.
    if ctx.grpc {
        request.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
    }
    transform_target(request, route)?;
    if ctx.request_body.read.is_some() {
        // It is here already: there is nothing to ask the client for, again.
        request.remove_header(&header::EXPECT);
    }
    if let Some(replacement) = &ctx.request_body.replacement {
        request.remove_header(&header::TRANSFER_ENCODING);
        request.insert_header(header::CONTENT_LENGTH, HeaderValue::from(replacement.len()))?;
    }
    policies.request_headers.apply_to_request(request);
    super::upstream_peer::mirror(shared, request, ctx, route);
    if let Some(host) = ctx.exchange.endpoint.as_ref().and_then(|endpoint| endpoint.host_header.clone()) {
        set_host(request, host)?;
    }
    Ok(())
}

/// HTTP/2 clients may send each cookie in a field of its own; everybody else expects one (RFC 9113 §8.2.3).
fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let mut fields = request.headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (fields.next(), fields.next()) else { return Ok(()) };
    let mut joined = first.as_bytes().to_vec();
    for field in std::iter::once(second).chain(fields) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(field.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&joined).or_err(ErrorType::InvalidHTTPHeader, "joining cookies")?;
    request.insert_header(header::COOKIE, joined)
}

fn forwarding(session: &Session, request: &mut RequestHeader) -> Result<()> {
    let Some(peer) = Peer::of(session) else { return Ok(()) };
    let peer_address = peer.ip();
    // A trusted proxy's list goes on and grows; anybody else's was removed, so it begins here.
    let list = request.headers.get(X_FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let list = match list {
        Some(list) => format!("{list}, {peer_address}"),
        None => peer_address.to_string(),
    };
    request.insert_header(X_FORWARDED_FOR, list)?;
    if !peer.trusted || !request.headers.contains_key(X_FORWARDED_PROTO) {
        let proto = if peer.tls.is_some() { "https" } else { "http" };
        request.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(proto))?;
    }
    if !peer.trusted || !request.headers.contains_key(X_FORWARDED_HOST) {
        let host = request::request_host(session.req_header()).and_then(|host| HeaderValue::from_bytes(host).ok());
        if let Some(host) = host {
            request.insert_header(X_FORWARDED_HOST, host)?;
        }
    }
    Ok(())
}

fn identity(shared: &Shared, request: &mut RequestHeader, ctx: &RequestContext, route: &CompiledRoute) -> Result<()> {
    let Some(principal) = ctx.principal.as_deref() else { return Ok(()) };
    let auth = &route.policies.auth;
    if auth.forward_assertion {
        let audience = if ctx.exchange.canary { route.canary.as_ref().map(|c| &c.audience) } else { None };
        let assertion = shared.assertions.assertion(principal, audience.unwrap_or(&route.audience));
        // Without it the upstream would take the caller for nobody, or worse.
        let assertion = assertion.map_err(|error| Error::explain(ErrorType::InternalError, error.to_string()))?;
        request.insert_header(IDENTITY_HEADER, assertion)?;
    }
    if auth.forward_headers {
        for (name, value) in plain_headers(principal) {
            request.insert_header(name, value)?;
        }
    }
    Ok(())
}

fn transform_target(request: &mut RequestHeader, route: &CompiledRoute) -> Result<()> {
    let Some(transform) = &route.transform else { return Ok(()) };
    let target = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let parameters: Vec<&str> =
        router::parameters(&route.pattern, request.uri.path()).map(|(_, value)| value).collect();
    let changed = transform
        .apply(target, &parameters)
        .map_err(|error| Error::explain(ErrorType::InternalError, error.to_string()))?;
    if changed == target {
        return Ok(());
    }
    let uri = respond::uri_with_target(&request.uri, &changed)
        .map_err(|error| Error::explain(ErrorType::InternalError, error.to_string()))?;
    request.set_uri(uri);
    Ok(())
}

fn set_host(request: &mut RequestHeader, host: HeaderValue) -> Result<()> {
    if request.uri.authority().is_some() {
        // HTTP/2 carries it as `:authority`.
        let mut parts = request.uri.clone().into_parts();
        parts.authority = host.to_str().ok().and_then(|host| host.parse().ok());
        if let Ok(uri) = http::Uri::from_parts(parts) {
            request.set_uri(uri);
        }
    }
    request.insert_header(header::HOST, host)
}
