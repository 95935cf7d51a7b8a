//! What the upstream receives.

use http::{HeaderMap, HeaderValue, header, request::Parts};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_identity::{assertion::IDENTITY_HEADER, forged::remove_twins, plain_headers::plain_headers};

use super::{
    RequestContext, Shared, change_request,
    early_request::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID},
    response_cache,
};
use crate::{
    policy::Refusal,
    respond::{self, problem::ProblemKind},
    server::peer::Peer,
    tenancy::{
        compile::{CompiledPolicies, CompiledRoute},
        router,
    },
};

const TRACEPARENT: http::HeaderName = http::HeaderName::from_static("traceparent");
const TRACESTATE: http::HeaderName = http::HeaderName::from_static("tracestate");

/// Forwarding, request id, trace, identity.
const ADDED_FIELDS: usize = 6;

pub(super) fn filter(
    shared: &Shared,
    session: &Session,
    request: &mut RequestHeader,
    ctx: &mut RequestContext,
) -> Result<()> {
    change_request(request, |request| change(shared, session, request, ctx))
}

fn change(shared: &Shared, session: &Session, request: &mut Parts, ctx: &mut RequestContext) -> Result<()> {
    if let Some(fetch) = &mut ctx.cache.fetch {
        response_cache::begin(fetch, session.cache.phase());
    }
    let Some(tenant) = ctx.tenant() else { return Ok(()) };
    let Some(route) = ctx.route.and_then(|index| tenant.routes.get(index)) else { return Ok(()) };
    let policies = &route.policies;
    let fields = &mut request.headers;
    // A clone has no room for more; what follows mostly fits.
    fields.reserve(ADDED_FIELDS);

    let credentials = tenant.auth.credential_headers();
    // Nobody was known by them.
    remove_twins(fields, credentials);
    if !policies.auth.forward_credential {
        for name in credentials {
            fields.remove(name);
        }
    }
    forwarding(session, ctx, fields)?;
    // In HTTP/2 the client may have named it in `:authority` only.
    if !fields.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority()
    {
        let host = HeaderValue::from_str(authority.as_str());
        fields.insert(header::HOST, host.or_err(ErrorType::InvalidHTTPHeader, "the authority is no field value")?);
    }
    join_cookies(fields)?;
    fields.insert(X_REQUEST_ID, ctx.request_id.header_value());
    if let Some(traceparent) = ctx.trace.traceparent_for_upstream() {
        fields.insert(TRACEPARENT, traceparent);
    }
    if !ctx.trace.keeps_tracestate() {
        fields.remove(TRACESTATE);
    }
    let assertion = identity(shared, fields, ctx, route)?;
    if route.looks_at_body() {
        keep_type(session, fields);
    }
    // Pingora takes it for hop-by-hop; gRPC servers insist on it.
    if ctx.grpc {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if ctx.request_body.read.is_some() {
        // It is here already: there is nothing to ask the client for, again.
        fields.remove(header::EXPECT);
    }
    if let Some(replacement) = &ctx.request_body.replacement {
        fields.remove(header::TRANSFER_ENCODING);
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(replacement.len()));
    }
    if let Err(refused) = transform_target(request, route) {
        ctx.refusal = Some(refused);
        return Err(Error::explain(ErrorType::HTTPStatus(400), "the target cannot be transformed"));
    }
    // Before a change of headers gives the credential another name.
    let copy = (route.mirror.is_some() && policies.auth.forward_credential).then(|| {
        let mut copy = request.clone();
        for name in credentials {
            copy.headers.remove(name);
        }
        change_headers(&mut copy.headers, policies);
        copy
    });
    change_headers(&mut request.headers, policies);
    super::upstream_peer::mirror(shared, copy.as_ref().unwrap_or(request), ctx, route, assertion.as_ref());
    if let Some(host) = ctx.exchange.endpoint.as_ref().and_then(|endpoint| endpoint.host_header.clone()) {
        set_host(request, host);
    }
    Ok(())
}

fn change_headers(fields: &mut HeaderMap, policies: &CompiledPolicies) {
    policies.request_headers.apply(fields);
    if policies.response_body.is_some() {
        ask_for_whole_and_plain(fields);
    }
}

/// HTTP/2 clients may send each cookie in a field of its own; everybody else expects one (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) -> Result<()> {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return Ok(()) };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&joined).or_err(ErrorType::InvalidHTTPHeader, "joining cookies")?;
    fields.insert(header::COOKIE, joined);
    Ok(())
}

fn forwarding(session: &Session, ctx: &RequestContext, fields: &mut HeaderMap) -> Result<()> {
    let Some(peer) = Peer::of(session) else { return forwarding_of_cache(session, ctx, fields) };
    // A trusted proxy's list goes on and grows; anybody else's was removed, so it begins here.
    let list = if peer.trusted { longer_list(fields, &peer.address_text) } else { None };
    fields.insert(X_FORWARDED_FOR, list.unwrap_or_else(|| peer.address_text.clone()));
    if !peer.trusted || !fields.contains_key(X_FORWARDED_PROTO) {
        let proto = if peer.tls.is_some() { "https" } else { "http" };
        fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if (!peer.trusted || !fields.contains_key(X_FORWARDED_HOST))
        && let Some(host) = host_field(session.req_header())
    {
        fields.insert(X_FORWARDED_HOST, host);
    }
    Ok(())
}

/// What `X-Forwarded-For` says so far, with one more address. Several lines are one list (RFC 9110 §5.3), and what a
/// proxy adds may stand in a line of its own, behind what a stranger wrote.
fn longer_list(fields: &HeaderMap, last: &HeaderValue) -> Option<HeaderValue> {
    let mut list = Vec::new();
    for line in fields.get_all(X_FORWARDED_FOR).iter().filter(|line| !line.is_empty()) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return None;
    }
    list.extend_from_slice(last.as_bytes());
    HeaderValue::from_bytes(&list).ok()
}

/// A body that is transformed is needed whole and without a coding, whatever the client would take.
fn ask_for_whole_and_plain(fields: &mut HeaderMap) {
    fields.remove(header::RANGE);
    fields.remove(header::IF_RANGE);
    fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// For the client that is served what this request brings.
fn forwarding_of_cache(session: &Session, ctx: &RequestContext, fields: &mut HeaderMap) -> Result<()> {
    let Some(internal) = &ctx.cache.internal else { return Ok(()) };
    if !fields.contains_key(X_FORWARDED_FOR) {
        let client = HeaderValue::try_from(ctx.client.to_string());
        fields.insert(X_FORWARDED_FOR, client.or_err(ErrorType::InvalidHTTPHeader, "an address is no field value")?);
    }
    if !fields.contains_key(X_FORWARDED_PROTO) {
        let proto = if internal.secure { "https" } else { "http" };
        fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if !fields.contains_key(X_FORWARDED_HOST)
        && let Some(host) = host_field(session.req_header())
    {
        fields.insert(X_FORWARDED_HOST, host);
    }
    Ok(())
}

/// The host that the client named, as the value of a field.
fn host_field(request: &RequestHeader) -> Option<HeaderValue> {
    match request.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        // A clone of what is there copies nothing.
        None => request.headers.get(header::HOST).cloned(),
    }
}

/// A body that is looked at goes on as what it was taken for: no field with `_` for `-` says otherwise, and `Connection`
/// does not name the type away.
fn keep_type(session: &Session, fields: &mut HeaderMap) {
    remove_twins(fields, &[header::CONTENT_TYPE, header::CONTENT_ENCODING]);
    if let Some(kind) = session.req_header().headers.get(header::CONTENT_TYPE)
        && !fields.contains_key(header::CONTENT_TYPE)
    {
        fields.insert(header::CONTENT_TYPE, kind.clone());
    }
}

/// Gives back the assertion where a mirror must not get it.
fn identity(
    shared: &Shared,
    fields: &mut HeaderMap,
    ctx: &RequestContext,
    route: &CompiledRoute,
) -> Result<Option<HeaderValue>> {
    let Some(principal) = ctx.principal.as_deref() else { return Ok(None) };
    let auth = &route.policies.auth;
    let mut kept = None;
    if auth.forward_assertion {
        let audience = if ctx.exchange.canary { route.canary.as_ref().map(|c| &c.audience) } else { None };
        let assertion = shared.assertions.assertion(principal, audience.unwrap_or(&route.audience));
        // Without it the upstream would take the caller for nobody, or worse.
        let assertion = assertion.map_err(|error| Error::explain(ErrorType::InternalError, error.to_string()))?;
        kept = route.mirror.is_some().then(|| assertion.clone());
        fields.insert(IDENTITY_HEADER, assertion);
    }
    if auth.forward_headers {
        for (name, value) in plain_headers(principal) {
            fields.insert(name, value);
        }
    }
    Ok(kept)
}

fn transform_target(request: &mut Parts, route: &CompiledRoute) -> Result<(), Refusal> {
    let Some(transform) = &route.transform else { return Ok(()) };
    let target = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let parameters: Vec<&str> =
        router::parameters(&route.pattern, request.uri.path()).map(|(_, value)| value).collect();
    let changed = transform.apply(target, &parameters)?;
    if changed == target {
        return Ok(());
    }
    request.uri = respond::uri_with_target(&request.uri, &changed)
        .map_err(|_| Refusal::new(ProblemKind::UriTooLong, "The target is too long."))?;
    Ok(())
}

fn set_host(request: &mut Parts, host: HeaderValue) {
    if request.uri.authority().is_some() {
        // HTTP/2 carries it as `:authority`.
        let mut parts = request.uri.clone().into_parts();
        parts.authority = host.to_str().ok().and_then(|host| host.parse().ok());
        if let Ok(uri) = http::Uri::from_parts(parts) {
            request.uri = uri;
        }
    }
    request.headers.insert(header::HOST, host);
}
