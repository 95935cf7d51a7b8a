//! The head of a response on its way to the client. Answers of the gateway's own are made in
//! [`crate::respond`] and get the same headers there.

use http::{HeaderValue, StatusCode, Version, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{RequestContext, request};
use crate::respond;

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
    let policies = &route.policies;
    let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;

    policies.response_headers.apply_to_response(response);
    if let Some(versions) = &tenant.versions
        && let Some(version) = ctx.version
    {
        versions.apply(version, response);
    }
    if let Some(cookie) = ctx.sticky_cookie.take() {
        response.append_header(header::SET_COOKIE, cookie)?;
    }
    if let Some(cors) = &policies.cors {
        cors.remove_foreign(response);
    }
    respond::common_headers(session, ctx, policies, response)?;
    if upgraded {
        return Ok(());
    }
    let has_body = respond::may_have_body(session.req_header(), response.status);
    if policies.response_body.is_some()
        && response.headers.get(header::CONTENT_TYPE).is_some_and(request::is_json_type)
        && !response.headers.contains_key(header::CONTENT_ENCODING)
    {
        // Also to HEAD: they speak of bytes that nobody will get.
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::ETAG);
        if has_body {
            ctx.response_body.collected = Some(Vec::new());
            chunked(session, response)?;
        }
    }
    if let Some(compression) = &policies.compression {
        let accepted = crate::policy::compression::AcceptedEncodings::of(&session.req_header().headers);
        ctx.response_body.encoder = compression.apply(accepted, &session.req_header().method, response);
        if ctx.response_body.encoder.is_some() {
            chunked(session, response)?;
        }
    }
    if has_body && session.req_header().version == Version::HTTP_10 {
        end_with_connection(session, response);
    }
    Ok(())
}

/// What is removed from responses must not get out ahead of them: interim ones carry links and nothing
/// else (RFC 8297 §2).
fn only_hints(response: &mut ResponseHeader) -> Result<()> {
    let links: Vec<HeaderValue> = response.headers.get_all(header::LINK).iter().cloned().collect();
    *response = ResponseHeader::build(response.status, Some(links.len()))?;
    links.into_iter().try_for_each(|link| response.append_header(header::LINK, link).map(drop))
}

/// HTTP/1.0 knows no chunks (RFC 9112 §7.1): a body of unknown length ends with the connection.
fn end_with_connection(session: &mut Session, response: &mut ResponseHeader) {
    response.remove_header(&header::TRANSFER_ENCODING);
    if !response.headers.contains_key(header::CONTENT_LENGTH) {
        session.set_keepalive(None);
    }
}

/// A body whose length is not known in advance: chunked in HTTP/1.1.
fn chunked(session: &Session, response: &mut ResponseHeader) -> Result<()> {
    if session.req_header().version == Version::HTTP_11 {
        response.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(())
}
