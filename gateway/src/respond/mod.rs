//! The only place that makes a response of the gateway's own.
//!
//! Pingora's filters for responses do not see them, so what every response owes its client (request id,
//! CORS, security headers) is added here, for these and for those that come from upstreams.

pub(crate) mod problem;

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header, uri::PathAndQuery};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use self::problem::{Problem, ProblemKind};
use crate::{
    limits::told,
    policy::Refusal,
    proxy::{Downstream, RequestContext, Shared},
    telemetry::request_id::RequestId,
    tenancy::compile::CompiledPolicies,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A body up to this size is read to its end after a refusal, so that the connection can stay open.
const DRAINED_BODY: u64 = 64 << 10;

/// Tells the client why it is not served: problem+json, or trailers only for gRPC.
pub(crate) async fn refuse(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut RequestContext,
    refusal: &Refusal,
) -> Result<()> {
    ctx.refused = Some(refusal.kind);
    let id = ctx.request_id;
    let problem = Problem::new(refusal.kind, &*refusal.detail).with_instance(id.as_str());
    let problem = refusal.extensions().fold(problem, |problem, (name, value)| problem.with_extension(name, value));
    let mut headers = refusal.headers.clone();
    headers.push((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    if ctx.grpc {
        headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")));
        headers.push((GRPC_STATUS, HeaderValue::from(u16::from(refusal.kind.grpc_status()))));
        headers.push((GRPC_MESSAGE, problem.grpc_message()));
        return answer(shared, session, ctx, StatusCode::OK, headers, Bytes::new()).await;
    }
    headers.push((header::CONTENT_TYPE, problem::CONTENT_TYPE));
    answer(shared, session, ctx, refusal.status(), headers, problem.body()).await
}

/// Sends a whole response.
pub(crate) async fn answer(
    _shared: &Shared,
    session: &mut Session,
    ctx: &mut RequestContext,
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
) -> Result<()> {
    let mut response = Response::new(()).into_parts().0;
    response.status = status;
    let fields = &mut response.headers;
    fields.reserve(headers.len() + 16);
    for (name, value) in headers {
        fields.append(name, value);
    }
    if status != StatusCode::NO_CONTENT {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let entry = ctx.tenant.clone();
    let route = ctx.route;
    if let Some(tenant) = entry.as_deref().map(crate::tenancy::snapshot::TenantEntry::compiled) {
        let policies = route.and_then(|index| tenant.routes.get(index)).map_or(&tenant.policies, |r| &r.policies);
        common_headers(session, ctx, policies, fields);
    } else {
        fields.insert(X_REQUEST_ID, ctx.request_id.header_value());
        default_security_headers(fields);
    }
    keep_open_if_cheap(session);
    let no_body = body.is_empty() || !may_have_body(session.req_header(), status);
    session.write_response_header(Box::new(response.into()), no_body).await?;
    if !no_body {
        session.write_response_body(Some(body), true).await?;
    } else if session.req_header().version == http::Version::HTTP_2 {
        // Else the stream is taken for one that broke off.
        session.write_response_body(None, true).await?;
    }
    Ok(())
}

/// What every response carries, whoever made it.
pub(crate) fn common_headers(
    downstream: &impl Downstream,
    ctx: &RequestContext,
    policies: &CompiledPolicies,
    fields: &mut HeaderMap,
) {
    fields.insert(X_REQUEST_ID, ctx.request_id.header_value());
    if let Some(limited) = &ctx.limited {
        told::write(limited, fields);
    }
    if let Some(status) = &ctx.cache.status {
        status.write(fields);
    }
    if let Some(cors) = &policies.cors {
        cors.apply(downstream.head().headers.get(header::ORIGIN), fields);
    }
    let tls = downstream.peer().is_some_and(|peer| peer.tls.is_some());
    policies.security_headers.apply(fields, tls);
}

/// For hosts that nobody has: there is no tenant whose settings could apply.
fn default_security_headers(fields: &mut HeaderMap) {
    fields.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    fields.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    fields.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// Whether a response to this request can have a body (RFC 9110 §6.4.1).
pub(crate) fn may_have_body(request: &RequestHeader, status: StatusCode) -> bool {
    request.method != http::Method::HEAD
        && !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

/// Pingora closes the connection when a response is sent before the request's body was read. Where the
/// body is small, reading it costs less than a new connection.
fn keep_open_if_cheap(session: &mut Session) {
    let headers = &session.req_header().headers;
    // Whoever waits for a go-ahead may send the body or not (RFC 9110 §10.1.1): what comes next could be
    // either it or another request.
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length <= DRAINED_BODY) {
        session.as_downstream_mut().set_close_on_response_before_downstream_finish(false);
    }
}

/// The same URI with another path and query.
pub(crate) fn uri_with_target(uri: &Uri, target: &str) -> Result<Uri, http::Error> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target)?);
    Ok(Uri::from_parts(parts)?)
}

/// The answer to a request that was not even understood.
pub(crate) struct EarlyError {
    pub(crate) kind: ProblemKind,
    pub(crate) id: RequestId,
    pub(crate) at: SystemTime,
    body: Bytes,
}

impl EarlyError {
    /// `reason` is for the client.
    pub(crate) fn new(status: u16, reason: &str) -> Self {
        let kind = match status {
            405 => ProblemKind::MethodNotAllowed,
            408 => ProblemKind::RequestTimeout,
            414 => ProblemKind::UriTooLong,
            431 => ProblemKind::HeadersTooLarge,
            501 => ProblemKind::NotImplemented,
            505 => ProblemKind::VersionNotSupported,
            _ => ProblemKind::BadRequest,
        };
        let at = SystemTime::now();
        let id = RequestId::generate(at);
        let body = Problem::new(kind, reason).with_instance(id.as_str()).body();
        Self { kind, id, at, body }
    }

    /// All of it as bytes of HTTP/1; the connection is closed after it.
    pub(crate) fn http1(&self) -> Vec<u8> {
        let status = self.kind.status();
        let head = format!(
            "HTTP/1.1 {} {}\r\n\
             Content-Type: application/problem+json\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             X-Request-Id: {}\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'\r\n\
             Referrer-Policy: no-referrer\r\n\
             Date: {}\r\n\
             Connection: close\r\n\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or("Error"),
            self.body.len(),
            self.id,
            httpdate::fmt_http_date(self.at),
        );
        [head.as_bytes(), &self.body].concat()
    }

    /// Head and body for HTTP/2.
    pub(crate) fn into_response(self) -> (Box<ResponseHeader>, Bytes) {
        let mut response = Response::new(()).into_parts().0;
        response.status = self.kind.status();
        let fields = &mut response.headers;
        fields.insert(header::CONTENT_TYPE, problem::CONTENT_TYPE);
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(X_REQUEST_ID, self.id.header_value());
        default_security_headers(fields);
        (Box::new(response.into()), self.body)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_early_error_is_a_whole_response() {
        let answer = EarlyError::new(431, "too large").http1();
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 "));
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(head.contains("Connection: close"));
        assert!(body.contains("headers-too-large"));
    }

    #[test]
    fn a_new_target_keeps_the_authority() {
        let uri = uri_with_target(&"https://a.example/x?y".parse().unwrap(), "/z?q=1").unwrap();
        assert_eq!(uri.to_string(), "https://a.example/z?q=1");
    }
}
