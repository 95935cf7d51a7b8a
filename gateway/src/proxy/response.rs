//! The head of a response on its way to the client. Answers of the gateway's own are made in
//! [`crate::respond`] and get the same headers there.

use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, StatusCode, Version, header, response::Parts};
use pingora_cache::NoCacheReason;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{Downstream, RequestContext, change_response, request, response_cache};
use crate::{
    policy::compression,
    respond,
    tenancy::compile::{CompiledRoute, CompiledTenant},
};

/// Request id, limits, what the cache says, CORS, security headers.
const ADDED_FIELDS: usize = 14;

pub(super) fn filter(session: &mut Session, response: &mut ResponseHeader, ctx: &mut RequestContext) -> Result<()> {
    let interim = response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS;
    // Pingora takes an answer before the end of the request for a reason to close; a go-ahead is none.
    session.as_downstream_mut().set_close_on_response_before_downstream_finish(!interim);
    if interim {
        return only_hints(response);
    }
    let Some(entry) = ctx.tenant.clone() else { return Ok(()) };
    let tenant = entry.compiled();
    let Some(route) = ctx.route.and_then(|index| tenant.routes.get(index)) else { return Ok(()) };
    if let Some(fetch) = ctx.cache.fetch.as_ref().filter(|fetch| fetch.frees_others) {
        // Nor need those who come before it is stored.
        response_cache::let_pass(fetch);
        // To Pingora, what nobody else needs to wait for.
        session.cache.release_write_lock(NoCacheReason::OriginNotCache);
    }
    change_response(response, |response| change(session, response, ctx, tenant, route));
    Ok(())
}

/// What the client gets of a head, whether it comes from an upstream or from the cache.
pub(super) fn change(
    downstream: &mut impl Downstream,
    response: &mut Parts,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
) {
    let policies = &route.policies;
    let fields = &mut response.headers;
    // The map has room for what came with it; what follows mostly fits into that much more.
    fields.reserve(ADDED_FIELDS);

    if let Some(fetch) = &mut ctx.cache.fetch {
        if let Some(stored) = &fetch.serving {
            // Of a part, and for whoever has it already, the fields are others.
            if let Some(told) = fetch.told.take_if(|_| response.status == stored.status) {
                *fields = told;
            }
            fields.insert(header::AGE, HeaderValue::from(stored.rules.age(SystemTime::now().into())));
        }
        // Pingora asks for a whole response also where the client wants a head alone.
        ctx.cache.head_only = !respond::may_have_body(downstream.head(), response.status);
    }
    policies.response_headers.apply(fields);
    if let Some(versions) = &tenant.versions
        && let Some(version) = ctx.version
    {
        versions.apply(version, fields);
    }
    if let Some(cookie) = ctx.sticky_cookie.take() {
        fields.append(header::SET_COOKIE, cookie);
    }
    if let Some(cors) = &policies.cors {
        cors.remove_foreign(fields);
    }
    respond::common_headers(downstream, ctx, policies, fields);
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let has_body = respond::may_have_body(downstream.head(), response.status);
    // What could not be transformed does not come as far as this.
    if policies.response_body.is_some() && fields.get(header::CONTENT_TYPE).is_some_and(request::is_json_type) {
        fields.remove(header::CONTENT_ENCODING);
        // Also to HEAD: they speak of bytes that nobody will get.
        fields.remove(header::CONTENT_LENGTH);
        fields.remove(header::ETAG);
        if has_body {
            ctx.response_body.collected = Some(Vec::new());
            chunked(downstream, fields);
        }
    }
    if let Some(policy) = &policies.compression {
        let accepted = compression::AcceptedEncodings::of(&downstream.head().headers);
        ctx.response_body.encoder = policy.apply(accepted, &downstream.head().method, response);
        if ctx.response_body.encoder.is_some() {
            chunked(downstream, &mut response.headers);
        }
    }
    if has_body && downstream.head().version == Version::HTTP_10 {
        end_with_connection(downstream, &mut response.headers);
    }
}

/// Whether a route that transforms bodies cannot transform this one: it is a part of one, or has a coding although the
/// request said that it may have none. Neither was asked for, and it must not pass as it is.
pub(super) fn defies_transform(status: StatusCode, fields: &HeaderMap) -> bool {
    match status {
        StatusCode::PARTIAL_CONTENT => true,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => false,
        _ => fields.get(header::CONTENT_TYPE).is_some_and(request::is_json_type) && !compression::is_plain(fields),
    }
}

/// What is removed from responses must not get out ahead of them: interim ones carry links and nothing
/// else (RFC 8297 §2).
fn only_hints(response: &mut ResponseHeader) -> Result<()> {
    let links: Vec<HeaderValue> = response.headers.get_all(header::LINK).iter().cloned().collect();
    *response = ResponseHeader::build(response.status, Some(links.len()))?;
    links.into_iter().try_for_each(|link| response.append_header(header::LINK, link).map(drop))
}

/// HTTP/1.0 knows no chunks (RFC 9112 §7.1): a body of unknown length ends with the connection.
fn end_with_connection(downstream: &mut impl Downstream, fields: &mut HeaderMap) {
    fields.remove(header::TRANSFER_ENCODING);
    if !fields.contains_key(header::CONTENT_LENGTH) {
        downstream.close_after();
    }
}

/// A body whose length is not known in advance: chunked in HTTP/1.1.
fn chunked(downstream: &impl Downstream, fields: &mut HeaderMap) {
    if downstream.head().version == Version::HTTP_11 {
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}
