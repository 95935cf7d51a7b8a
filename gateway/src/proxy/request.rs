//! Which tenant and route a request is for, who is calling, and whether it may go on.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_cache::stored::Stored;
use seiketsu_config::policy::ValidationMode;
use seiketsu_identity::{assertion::JWKS_PATH, failure::AuthFailure};
use seiketsu_limits::shedding::{Shed, Shedder};

use super::{
    Downstream, RequestContext, Shared, cache,
    context::{Progress, RequestBody},
    upstream_peer,
};
use crate::{
    cache::background,
    fields,
    limits::{
        check::{self, Asking},
        told,
    },
    policy::{Refusal, body_transform::Body, cors::Preflight, json_body, validation::Request as RequestToValidate},
    respond::{self, problem::ProblemKind},
    tenancy::{
        compile::{CompiledRoute, CompiledTenant},
        path,
        router::{Outcome, RouteRequest},
    },
};

/// The largest body that is read before a request goes on: what Pingora can replay.
const MAX_READ_BODY: usize = 64 << 10;

/// What becomes of a request.
pub(crate) enum Decision {
    Proxy,
    /// Answered by the gateway itself, with these headers and body.
    Answer(StatusCode, Vec<(http::HeaderName, HeaderValue)>, bytes::Bytes),
    /// From what is stored.
    Serve(Arc<Stored>),
}

/// `true`: the request was answered here.
pub(super) async fn filter(
    shared: &Shared,
    shedder: Option<&Arc<Shedder>>,
    worker: usize,
    session: &mut Session,
    ctx: &mut RequestContext,
) -> Result<bool> {
    if let Some(internal) = background::take(session) {
        return Ok(!cache::internal(shared, session, ctx, internal));
    }
    let decision = match std::mem::take(&mut ctx.progress) {
        Progress::Arrived => match decide(shared, shedder, session, ctx) {
            Ok(Decision::Proxy) => admit_with_body(shared, worker, session, ctx).await?,
            other => other,
        },
        Progress::Decided => admit_with_body(shared, worker, session, ctx).await?,
        Progress::Judged(decision) => decision,
    };
    match decision {
        Ok(Decision::Proxy) => Ok(false),
        Ok(Decision::Serve(stored)) => {
            // Boxed, here and below, so that what an answer needs makes no room in the future of all.
            Box::pin(cache::serve(session, ctx, &stored)).await?;
            Ok(true)
        }
        Ok(Decision::Answer(status, headers, body)) => {
            Box::pin(respond::answer(shared, session, ctx, status, headers, body)).await?;
            Ok(true)
        }
        Err(refusal) => {
            Box::pin(respond::refuse(shared, session, ctx, &refusal)).await?;
            Ok(true)
        }
    }
}

/// Everything that can be decided from the head alone, without waiting.
pub(super) fn decide(
    shared: &Shared,
    shedder: Option<&Arc<Shedder>>,
    downstream: &mut impl Downstream,
    ctx: &mut RequestContext,
) -> Result<Decision, Refusal> {
    find_tenant(shared, downstream, ctx)?;
    // In HTTP/1 they were counted before anything was parsed.
    if downstream.head().headers.len() > usize::from(shared.node.protection.max_header_fields) {
        return Err(Refusal::new(ProblemKind::HeadersTooLarge, "The request has too many header fields."));
    }
    let request = downstream.head();
    // The answer would hold what the gateway adds for the upstream's eyes (RFC 9110 §9.3.8).
    if request.method == Method::TRACE {
        return Err(Refusal::new(ProblemKind::MethodNotAllowed, "TRACE is not supported."));
    }
    if conceals_framing(&request.headers) {
        let detail = "Content-Length and Transfer-Encoding are written with a hyphen.";
        return Err(Refusal::new(ProblemKind::BadRequest, detail));
    }
    normalise_path(downstream)?;
    let Some(entry) = ctx.tenant.clone() else { return Err(Refusal::new(ProblemKind::Internal, "")) };
    let tenant = entry.compiled();
    let request = downstream.head();
    if fields::get(&request.headers, &header::EXPECT)
        .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Refusal::new(ProblemKind::ExpectationFailed, "Only 100-continue can be expected."));
    }
    if request.uri.path() == JWKS_PATH && matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(Decision::Answer(StatusCode::OK, jwks_headers(), shared.assertions.jwks()));
    }
    let preflight_for = preflight_method(request);
    // A preflight asks about the method that it announces.
    let index = pick_route(request, ctx, tenant, preflight_for.as_ref().unwrap_or(&request.method))?;
    let Some(route) = tenant.routes.get(index) else { return Err(Refusal::new(ProblemKind::Internal, "")) };
    if let Some(access) = &route.policies.access {
        access.check(ctx.client)?;
    }
    if preflight_for.is_some()
        && let Some(cors) = &route.policies.cors
    {
        match cors.preflight(request) {
            Preflight::No => {}
            Preflight::Allowed(headers) => {
                return Ok(Decision::Answer(StatusCode::NO_CONTENT, headers, bytes::Bytes::new()));
            }
            Preflight::Refused(refusal) => return Err(refusal),
        }
    }
    route.policies.request.check(request)?;
    // What was answered or refused so far cost no more than to be shed; what comes now does.
    if let Some(shedder) = shedder {
        ctx.admitted = Some(shedder.admit(route.priority).map_err(overloaded)?);
    }
    ctx.request_body = RequestBody { counter: Some(route.policies.request.body_counter()), ..RequestBody::default() };
    Ok(Decision::Proxy)
}

/// Which version and route of its tenant a request is for.
fn pick_route(
    request: &RequestHeader,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    method: &Method,
) -> Result<usize, Refusal> {
    if let Some(versions) = &tenant.versions {
        ctx.version = Some(versions.pick(request)?);
    }
    let version = ctx.version.and_then(|index| tenant.versions.as_ref()?.id(index));
    let outcome = tenant.router.find(&RouteRequest {
        method,
        path: request.uri.path(),
        query: request.uri.query(),
        headers: &request.headers,
        version,
    });
    let index = match outcome {
        Outcome::Route(index) => index,
        Outcome::MethodNotAllowed(methods) => return Err(method_not_allowed(&methods)),
        Outcome::NotFound => return Err(Refusal::new(ProblemKind::NoRoute, "No route of this API matches.")),
    };
    ctx.route = Some(index);
    Ok(index)
}

/// Tenant and route of a request that the cache makes itself: there is no connection and no caller to be checked.
pub(super) fn find_route(shared: &Shared, session: &mut Session, ctx: &mut RequestContext) -> Result<(), Refusal> {
    let no_host = || Refusal::new(ProblemKind::UnknownHost, "No API is served under this host.");
    let host = request_host(session.req_header()).ok_or_else(no_host)?;
    let tenant = shared.live.find(host).ok().flatten().ok_or_else(no_host)?;
    normalise_path(session)?;
    let request = session.req_header();
    pick_route(request, ctx, tenant.compiled(), &request.method)?;
    ctx.tenant = Some(tenant);
    Ok(())
}

/// Who is calling, whether the body is what the route wants, and what is stored.
async fn admit_with_body(
    shared: &Shared,
    worker: usize,
    session: &mut Session,
    ctx: &mut RequestContext,
) -> Result<Result<Decision, Refusal>> {
    let (Some(entry), Some(index)) = (ctx.tenant.clone(), ctx.route) else {
        return Ok(Err(Refusal::new(ProblemKind::Internal, "")));
    };
    let tenant = entry.compiled();
    let Some(route) = tenant.routes.get(index) else { return Ok(Err(Refusal::new(ProblemKind::Internal, ""))) };
    if let Err(refusal) = admit(shared, session, ctx, tenant, route).await {
        return Ok(Err(refusal));
    }
    if route.looks_at_body()
        && let Err(refusal) = Box::pin(check_body(session, ctx, route)).await?
    {
        return Ok(Err(refusal));
    }
    Ok(look_up(shared, worker, session, ctx, tenant, route))
}

/// Who is calling, and whether the limits let it.
pub(super) async fn admit(
    shared: &Shared,
    downstream: &impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
) -> Result<(), Refusal> {
    limit_address(shared, ctx, route).await?;
    authenticate(downstream, ctx, tenant, route).await.map_err(|failure| unauthenticated(&failure))?;
    limit_caller(shared, downstream, ctx, tenant, route).await
}

/// All checks are passed: where the request goes, if what is stored does not answer it.
pub(super) fn look_up(
    shared: &Shared,
    worker: usize,
    downstream: &impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
) -> Result<Decision, Refusal> {
    ctx.weight = Some(route.limits.cost);
    upstream_peer::choose_side(downstream, ctx, route);
    let decision = match &route.cache {
        None => Decision::Proxy,
        Some(cache) => cache::decide(shared, worker, downstream, ctx, tenant, route, cache)?,
    };
    if let Decision::Proxy = decision {
        ctx.exchange.pool.get_or_insert_with(|| route.pool.clone());
    }
    Ok(decision)
}

fn find_tenant(shared: &Shared, downstream: &mut impl Downstream, ctx: &mut RequestContext) -> Result<(), Refusal> {
    let request = downstream.head();
    let bad_host = || Refusal::new(ProblemKind::BadRequest, "The Host field is missing or is not a host name.");
    let host = request_host(request).ok_or_else(bad_host)?;
    // The fast path has looked for it already.
    let tenant = match ctx.tenant.take() {
        None => shared.live.find(host).map_err(|_| bad_host())?,
        found => found,
    };
    let Some(tenant) = tenant else {
        return Err(Refusal::new(ProblemKind::UnknownHost, "No API is served under this host."));
    };
    // A connection whose certificate was checked for one tenant must not carry requests for another.
    let named = downstream.peer().and_then(|peer| peer.tls.as_ref()?.server_name.as_deref());
    if let Some(named) = named
        && !same_host(named, host)
    {
        match shared.live.find(named.as_bytes()).ok().flatten() {
            Some(of_name) if of_name.id() == tenant.id() => {}
            Some(_) => {
                return Err(Refusal::new(ProblemKind::Misdirected, "This connection was made for another host."));
            }
            None if tenant.compiled().asks_for_client_certificate => {
                return Err(Refusal::new(ProblemKind::Misdirected, "This host needs a connection made for it."));
            }
            None => {}
        }
    } else if named.is_none() {
        let tls = downstream.peer().is_some_and(|peer| peer.tls.is_some());
        let compiled = tenant.compiled();
        if tls && compiled.asks_for_client_certificate || compiled.requires_client_certificate {
            return Err(Refusal::new(
                ProblemKind::Misdirected,
                "This host needs a TLS connection made for it, with its name (SNI).",
            ));
        }
    }
    check_verification(downstream, tenant.compiled())?;
    ctx.in_flight = Some(tenant.compiled().metrics.begin());
    ctx.tenant = Some(tenant);
    Ok(())
}

/// Refuses what comes on a connection whose client was verified in another way than the tenant does it now: for another
/// tenant, by other authorities, or not at all. What was found out then says nothing any more.
fn check_verification(downstream: &mut impl Downstream, tenant: &CompiledTenant) -> Result<(), Refusal> {
    let Some(peer) = downstream.peer() else { return Ok(()) };
    let present = tenant.tls.as_ref().and_then(|tls| Some(tls.verified()?.1));
    if peer.tls.as_ref().is_none_or(|tls| tls.verification == present) {
        return Ok(());
    }
    peer.outdate();
    downstream.close_after();
    let detail = "How this host verifies its clients has changed; it needs a new connection.";
    Err(Refusal::new(ProblemKind::Misdirected, detail))
}

/// The host that the request names: `:authority` in HTTP/2, else `Host`. Both were checked to agree.
pub(super) fn request_host(request: &RequestHeader) -> Option<&[u8]> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => fields::get(&request.headers, &header::HOST).map(HeaderValue::as_bytes),
    }
}

fn same_host(server_name: &str, host: &[u8]) -> bool {
    host.len() >= server_name.len()
        && host[..server_name.len()].eq_ignore_ascii_case(server_name.as_bytes())
        && matches!(host.get(server_name.len()), None | Some(b':'))
}

/// One form of the path for everything behind: matching, access control, upstream.
fn normalise_path(downstream: &mut impl Downstream) -> Result<(), Refusal> {
    let request = downstream.head();
    let rewritten = {
        let raw = request.raw_path();
        if raw == b"*" {
            return Err(Refusal::new(ProblemKind::NoRoute, "There is nothing to ask about the server as a whole."));
        }
        let normal = path::normalise(raw).map_err(|error| match error {
            path::PathError::TooLong => Refusal::new(ProblemKind::UriTooLong, "The path is too long."),
            error => Refusal::new(ProblemKind::BadRequest, error.to_string()),
        })?;
        normal.is_rewritten().then(|| match normal.query() {
            Some(query) => format!("{}?{query}", normal.as_str()),
            None => normal.as_str().to_owned(),
        })
    };
    if let Some(target) = rewritten {
        let uri = respond::uri_with_target(&downstream.head().uri, &target)
            .map_err(|_| Refusal::new(ProblemKind::BadRequest, "The path is not one."))?;
        downstream.head_mut().set_uri(uri);
    }
    Ok(())
}

/// Whether a field says `_` for `-` to tell the upstream another length of the body: servers that hand headers on as
/// variables take it for the real one. In HTTP/1 the check of the head has refused it; HTTP/2 takes any name.
fn conceals_framing(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| matches!(name.as_str(), "content_length" | "transfer_encoding"))
}

/// The method that a CORS preflight announces.
fn preflight_method(request: &RequestHeader) -> Option<Method> {
    if request.method != Method::OPTIONS || !request.headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

async fn authenticate(
    downstream: &impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
) -> Result<(), AuthFailure> {
    let certificate = downstream.peer().and_then(|peer| peer.tls.as_ref()?.certificate.as_deref());
    let auth = &route.policies.auth;
    let principal = tenant.auth.authenticate(&downstream.head().headers, certificate, &auth.accept).await?;
    tenant.auth.authorise(&principal, &auth.scopes, &auth.roles)?;
    ctx.principal = Some(principal);
    Ok(())
}

/// Whether the limits of the client's address admit it.
async fn limit_address(shared: &Shared, ctx: &mut RequestContext, route: &CompiledRoute) -> Result<(), Refusal> {
    let checked =
        check::check_address(&shared.limits, &route.limits, ctx.client, ctx.websocket, &mut ctx.limited).await;
    checked.map_err(|reason| told::refusal(ctx.limited.as_ref(), reason))
}

/// Whether all other limits that apply admit it.
async fn limit_caller(
    shared: &Shared,
    downstream: &impl Downstream,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
) -> Result<(), Refusal> {
    let asking =
        Asking { principal: ctx.principal.as_deref(), headers: &downstream.head().headers, websocket: ctx.websocket };
    let limits = tenant.limits.as_ref();
    let checked = check::check_caller(&shared.limits, limits, &route.limits, asking, &mut ctx.limited).await;
    checked.map_err(|reason| told::refusal(ctx.limited.as_ref(), reason))
}

fn unauthenticated(failure: &AuthFailure) -> Refusal {
    tracing::debug!(reason = %failure, "caller refused");
    let kind = match failure.status() {
        StatusCode::BAD_REQUEST => ProblemKind::BadRequest,
        StatusCode::FORBIDDEN => ProblemKind::Forbidden,
        StatusCode::SERVICE_UNAVAILABLE => ProblemKind::UpstreamUnavailable,
        _ => ProblemKind::Unauthenticated,
    };
    let mut refusal = Refusal::new(kind, failure.detail());
    for challenge in failure.challenges() {
        refusal.headers.push((header::WWW_AUTHENTICATE, challenge.clone()));
    }
    refusal
}

fn overloaded(shed: Shed) -> Refusal {
    let refusal = Refusal::new(ProblemKind::Overloaded, "The gateway is handling as many requests as it can.");
    refusal.with_header(header::RETRY_AFTER, HeaderValue::from(shed.retry_after.as_secs()))
}

fn method_not_allowed(methods: &[Method]) -> Refusal {
    let list = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let refusal = Refusal::new(ProblemKind::MethodNotAllowed, "This method is not allowed here; see the Allow header.");
    match HeaderValue::try_from(list) {
        Ok(allow) => refusal.with_header(header::ALLOW, allow),
        Err(_) => refusal,
    }
}

fn jwks_headers() -> Vec<(http::HeaderName, HeaderValue)> {
    vec![
        (header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60")),
    ]
}

fn to_validate<'r>(request: &'r RequestHeader, body: &'r [u8]) -> RequestToValidate<'r> {
    RequestToValidate {
        method: &request.method,
        path: request.uri.path(),
        query: request.uri.query(),
        headers: &request.headers,
        body,
    }
}

/// Whether the body must be there, whole, before the request may go on.
fn wants_body(session: &mut Session, route: &CompiledRoute) -> bool {
    let is_small = is_small(session);
    let request = session.req_header();
    let policies = &route.policies;
    // Who only reports refuses nothing, so a body that cannot be read first goes on unread.
    let validates = policies.validation.as_ref().is_some_and(|validation| {
        (validation.mode() == ValidationMode::Enforce || is_small) && validation.wants_body(&to_validate(request, b""))
    });
    policies.request_body.is_some() && is_json(request) || validates || route.mirror.is_some() && is_small
}

/// Whether a body may come where bodies are transformed: by its word about its type, the client does not decide whether
/// this one is.
fn takes_transform(session: &mut Session, ctx: &RequestContext) -> Result<(), Refusal> {
    let request = session.req_header();
    if request.headers.get_all(header::CONTENT_TYPE).iter().nth(1).is_some() {
        return Err(Refusal::new(ProblemKind::BadRequest, "Content-Type stands more than once."));
    }
    let is_plain_json = is_json(request) && json_body::is_unambiguous(&request.headers);
    if is_plain_json || ctx.websocket || session.as_downstream_mut().is_body_empty() {
        return Ok(());
    }
    let detail = "Bodies are taken here as application/json, text/json, or of a type that ends in +json, in UTF-8 and \
                  without a content coding.";
    Err(Refusal::new(ProblemKind::UnsupportedMediaType, detail))
}

/// Reads the body, if it is small, checks it and prepares what is sent in its place.
async fn check_body(
    session: &mut Session,
    ctx: &mut RequestContext,
    route: &CompiledRoute,
) -> Result<Result<(), Refusal>> {
    if route.policies.request_body.is_some()
        && let Err(refusal) = takes_transform(session, ctx)
    {
        return Ok(Err(refusal));
    }
    let body = if wants_body(session, route) {
        match read_body(session, route).await? {
            Ok(body) => Some(body),
            Err(refusal) => return Ok(Err(refusal)),
        }
    } else {
        None
    };
    let request = session.req_header();
    if let Some(validation) = &route.policies.validation {
        let to_validate = to_validate(request, body.as_deref().unwrap_or_default());
        let checked = if body.is_some() { validation.check(&to_validate) } else { validation.check_head(&to_validate) };
        if let Err(nonconformity) = checked {
            match validation.mode() {
                ValidationMode::Enforce => return Ok(Err(nonconformity.into())),
                ValidationMode::Report => {
                    if let Some(in_flight) = &ctx.in_flight {
                        in_flight.nonconforming();
                    }
                    tracing::info!(route = %route.id, %nonconformity, "a request does not conform");
                }
            }
        }
    }
    let Some(body) = body else { return Ok(Ok(())) };
    if let Some(transform) = &route.policies.request_body
        && !body.is_empty()
        && is_json(request)
    {
        match transform.run(body.clone()).await {
            Ok(replacement) => ctx.request_body.replacement = Some(replacement),
            Err(failure) => {
                tracing::info!(route = %route.id, %failure, "a request body could not be transformed");
                return Ok(Err(failure.refusal(Body::OfRequest)));
            }
        }
    }
    ctx.request_body.read = Some(body);
    Ok(Ok(()))
}

/// Reads a body up to the route's bound, or what can be replayed if that is less.
async fn read_body(session: &mut Session, route: &CompiledRoute) -> Result<Result<bytes::Bytes, Refusal>> {
    let mut counter = route.policies.request.body_counter_up_to(MAX_READ_BODY as u64);
    let downstream = session.as_downstream_mut();
    let announced = downstream.req_header().headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if let Some(length) = announced
        && let Err(exceeded) = counter.clone().count(length)
    {
        return Ok(Err(exceeded.into()));
    }
    // What is read here is kept by Pingora and sent upstream again.
    downstream.enable_retry_buffering();
    if downstream.req_header().headers.contains_key(header::EXPECT) && !downstream.is_body_done() {
        // Pingora takes an answer before the end of the request for a reason to close; a go-ahead is none.
        downstream.set_close_on_response_before_downstream_finish(false);
        let told = downstream.write_continue_response().await;
        downstream.set_close_on_response_before_downstream_finish(true);
        told.map_err(Error::into_down)?;
    }
    let mut body = bytes::BytesMut::new();
    while let Some(piece) = downstream.read_request_body().await.map_err(Error::into_down)? {
        if let Err(exceeded) = counter.count(piece.len()) {
            return Ok(Err(exceeded.into()));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Ok(body.freeze()))
}

/// Whether the body's length is known, and small enough for it to be read before the request goes on.
fn is_small(session: &mut Session) -> bool {
    let announced = session.req_header().headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    match announced {
        Some(length) => length <= MAX_READ_BODY,
        // HTTP/2 need not announce what it sends.
        None => session.as_downstream_mut().is_body_empty(),
    }
}

fn is_json(request: &RequestHeader) -> bool {
    request.headers.get(header::CONTENT_TYPE).is_some_and(is_json_type)
}

pub(super) fn is_json_type(value: &HeaderValue) -> bool {
    json_body::is_json(value.as_bytes())
}
