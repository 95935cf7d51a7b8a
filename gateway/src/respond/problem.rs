//! Errors as clients see them: problem details for HTTP APIs (RFC 9457).
//!
//! A [`ProblemKind`] is a promise: its type URI, status and meaning stay what they are from release
//! to release, and `docs/problems.md` lists every one. The detail of a [`Problem`] may say what was
//! wrong with the request; it never names an upstream address or another tenant.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use seiketsu_config::problem::{Details, MEDIA_TYPE};
use serde::Serialize;
use serde_json::Value;

pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static(MEDIA_TYPE);

seiketsu_config::problem_kinds! {
    /// What went wrong, as a stable kind with one type URI, one title and one status.
    pub enum ProblemKind;

    /// The head of the request is malformed: request line, header field, path or host.
    BadRequest = BAD_REQUEST, "urn:seiketsu:problem:bad-request", "The request is malformed",
        "Correct the request; `detail` says which part cannot be read.";
    /// The request does not conform to the schema or API description of its route.
    ValidationFailed = BAD_REQUEST, "urn:seiketsu:problem:validation-failed",
        "The request does not conform to the API description",
        "Correct what `errors` lists: each entry names the place and the rule.";
    /// The request names an API version that does not exist.
    UnsupportedVersion = BAD_REQUEST, "urn:seiketsu:problem:unsupported-version",
        "The API version does not exist", "Use one of the versions in `supported`.";
    /// No credential, or one that does not hold.
    Unauthenticated = UNAUTHORIZED, "urn:seiketsu:problem:unauthenticated", "Authentication is required",
        "Send a valid credential of a kind that `WWW-Authenticate` names.";
    /// The caller is known but may not do this, or may not call from this address.
    Forbidden = FORBIDDEN, "urn:seiketsu:problem:forbidden", "The caller may not do this",
        "Ask the API's owner for the scope, role or address range that is missing.";
    /// No tenant is served under the host of the request.
    UnknownHost = NOT_FOUND, "urn:seiketsu:problem:unknown-host", "No API is served under this host",
        "Check the host name of the URL.";
    /// The tenant has no route for the path.
    NoRoute = NOT_FOUND, "urn:seiketsu:problem:no-route", "No route matches this request",
        "Check path, query and headers against the API's documentation.";
    /// The path exists, the method does not.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "urn:seiketsu:problem:method-not-allowed",
        "The method is not allowed here", "Use one of the methods that `Allow` lists.";
    /// Nothing that the client accepts can be sent.
    NotAcceptable = NOT_ACCEPTABLE, "urn:seiketsu:problem:not-acceptable",
        "No acceptable representation exists", "Accept one of the media types that the API offers.";
    /// The request did not arrive in time.
    RequestTimeout = REQUEST_TIMEOUT, "urn:seiketsu:problem:request-timeout",
        "The request took too long to arrive", "Send the request again, without pauses.";
    /// The version that the request names no longer works.
    VersionRetired = GONE, "urn:seiketsu:problem:version-retired", "The API version has been retired",
        "Move to one of the versions in `supported`.";
    /// The body is larger than the route allows.
    PayloadTooLarge = PAYLOAD_TOO_LARGE, "urn:seiketsu:problem:payload-too-large",
        "The request body is too large", "Send a body of at most `max-bytes` bytes.";
    /// Path and query are longer than the route allows.
    UriTooLong = URI_TOO_LONG, "urn:seiketsu:problem:uri-too-long", "The request target is too long",
        "Move parameters from the query into the body.";
    /// The route does not take bodies of this media type or coding.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "urn:seiketsu:problem:unsupported-media-type",
        "The media type of the body is not supported", "Send a body of a media type that the API takes.";
    /// `Expect` asks for something other than `100-continue`.
    ExpectationFailed = EXPECTATION_FAILED, "urn:seiketsu:problem:expectation-failed",
        "The expectation cannot be met", "Leave out `Expect`, or send `100-continue`.";
    /// The connection was made for another host than the request names.
    Misdirected = MISDIRECTED_REQUEST, "urn:seiketsu:problem:misdirected-request",
        "The connection cannot serve this host", "Open a new connection for this host.";
    /// A rate limit or quota is used up.
    QuotaExceeded = TOO_MANY_REQUESTS, "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "The request exceeds a limit or quota",
        "Wait as long as `Retry-After` says; `violated-policies` names the limits.";
    /// The header fields are larger than allowed, or too many.
    HeadersTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE, "urn:seiketsu:problem:headers-too-large",
        "The header fields are too large", "Send fewer or shorter header fields; often it is cookies.";
    /// The gateway failed.
    Internal = INTERNAL_SERVER_ERROR, "urn:seiketsu:problem:internal-error", "The gateway failed",
        "Try again later; report `instance` if it stays.";
    /// The request uses a part of HTTP that the gateway does not implement, such as an unknown
    /// transfer coding.
    NotImplemented = NOT_IMPLEMENTED, "urn:seiketsu:problem:not-implemented",
        "The request needs something that is not implemented", "Send the body with no transfer coding but `chunked`.";
    /// The upstream's answer was broken or broke off.
    UpstreamError = BAD_GATEWAY, "urn:seiketsu:problem:upstream-error",
        "The service behind the gateway gave no valid answer",
        "Try again if the request may be repeated; report `instance` if it stays.";
    /// No endpoint of the upstream can be reached.
    UpstreamUnavailable = SERVICE_UNAVAILABLE, "urn:seiketsu:problem:upstream-unavailable",
        "The service behind the gateway cannot be reached", "Try again later.";
    /// The circuit breaker of the upstream is open.
    BreakerOpen = SERVICE_UNAVAILABLE, "urn:seiketsu:problem:breaker-open",
        "The service behind the gateway is being given time to recover",
        "Try again after the time that `Retry-After` gives.";
    /// The gateway sheds load.
    Overloaded = SERVICE_UNAVAILABLE,
        "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "The service is working at reduced capacity", "Try again after the time that `Retry-After` gives.";
    /// The upstream did not answer in time.
    UpstreamTimeout = GATEWAY_TIMEOUT, "urn:seiketsu:problem:upstream-timeout",
        "The service behind the gateway did not answer in time",
        "Try again if the request may be repeated.";
    /// The client wants a stored response only, and none may be served.
    NotCached = GATEWAY_TIMEOUT, "urn:seiketsu:problem:not-cached", "No stored response can be served",
        "Leave out `only-if-cached` to have the service asked.";
    /// The request is in a version of HTTP that the gateway does not speak.
    VersionNotSupported = HTTP_VERSION_NOT_SUPPORTED, "urn:seiketsu:problem:http-version-not-supported",
        "The HTTP version is not supported", "Use HTTP/1.1 or HTTP/2.";
}

impl ProblemKind {
    pub const COUNT: usize = Self::ALL.len();

    /// The short name in logs and metrics: the last part of the type URI.
    pub fn name(self) -> &'static str {
        let uri = self.type_uri();
        uri.rfind([':', '#']).map_or(uri, |at| &uri[at + 1..])
    }

    /// The gRPC status code of a trailers-only answer, by
    /// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>, so that gRPC
    /// callers see what their own library would make of the HTTP status; where we know better than
    /// that table (limits, time-outs), the code that says so.
    pub const fn grpc_status(self) -> u8 {
        match self.status().as_u16() {
            400 => 13,       // INTERNAL
            401 => 16,       // UNAUTHENTICATED
            403 => 7,        // PERMISSION_DENIED
            404 => 12,       // UNIMPLEMENTED
            429 => 8,        // RESOURCE_EXHAUSTED
            502 | 503 => 14, // UNAVAILABLE
            408 | 504 => 4,  // DEADLINE_EXCEEDED
            _ => 2,          // UNKNOWN
        }
    }
}

/// One occurrence of a problem, ready to be written as a body.
#[derive(Debug, Clone)]
pub(crate) struct Problem<'a> {
    kind: ProblemKind,
    detail: Cow<'a, str>,
    instance: Option<&'a str>,
    extensions: Vec<(&'static str, Value)>,
}

impl<'a> Problem<'a> {
    /// `detail` is for the client developer: what in this very request was wrong, and the fix.
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<Cow<'a, str>>) -> Self {
        Self { kind, detail: detail.into(), instance: None, extensions: Vec::new() }
    }

    /// The request id, by which the occurrence is found in the log (RFC 9457 §3.1.5).
    #[must_use]
    pub(crate) fn with_instance(mut self, request_id: &'a str) -> Self {
        self.instance = Some(request_id);
        self
    }

    /// An extension member (RFC 9457 §3.2), written after the standard ones.
    #[must_use]
    pub(crate) fn with_extension(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        debug_assert!(!["type", "title", "status", "detail", "instance"].contains(&name));
        self.extensions.push((name, value.into()));
        self
    }

    /// The body, as `application/problem+json`.
    pub(crate) fn body(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// `grpc-message` of a trailers-only answer: the detail, percent-encoded as in
    /// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses>.
    pub(crate) fn grpc_message(&self) -> HeaderValue {
        const NOT_PLAIN: &AsciiSet = &CONTROLS.add(b'%');
        let encoded = utf8_percent_encode(&self.detail, NOT_PLAIN).to_string();
        HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
    }
}

impl Serialize for Problem<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let details = Details {
            type_uri: self.kind.type_uri(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            instance: self.instance,
        };
        details.serialize(serializer, self.extensions.iter().map(|(name, value)| (*name, value)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use percent_encoding::percent_decode;
    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/problems.md");

    fn row(kind: ProblemKind) -> String {
        format!(
            "| `{}` | {} | {} | {} | {} |",
            kind.type_uri(),
            kind.status().as_u16(),
            kind.title(),
            kind.grpc_status(),
            kind.remedy()
        )
    }

    #[test]
    fn the_document_lists_every_problem_and_no_other() {
        let written: Vec<&str> = DOCUMENT.lines().filter(|line| line.starts_with("| `")).collect();
        let expected: Vec<String> = ProblemKind::ALL.iter().map(|kind| row(*kind)).collect();
        assert_eq!(written, expected, "docs/problems.md should have these rows:\n{}", expected.join("\n"));
    }

    #[test]
    fn every_problem_has_a_type_of_its_own_and_an_error_status() {
        let types: HashSet<_> = ProblemKind::ALL.iter().map(|kind| kind.type_uri()).collect();
        let names: HashSet<_> = ProblemKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!((types.len(), names.len()), (ProblemKind::COUNT, ProblemKind::COUNT));
        for kind in ProblemKind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{kind:?}");
            assert!(kind.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{kind:?}");
        }
        assert_eq!(ProblemKind::QuotaExceeded.name(), "quota-exceeded");
        assert_eq!(ProblemKind::NoRoute.name(), "no-route");
    }

    #[test]
    fn the_body_has_the_members_of_rfc_9457_in_their_order() {
        let problem = Problem::new(ProblemKind::QuotaExceeded, "60 requests a minute are allowed")
            .with_instance("0199-ab")
            .with_extension("violated-policies", vec!["minute"]);
        assert_eq!(
            problem.body(),
            concat!(
                r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","#,
                r#""title":"The request exceeds a limit or quota","status":429,"#,
                r#""detail":"60 requests a minute are allowed","instance":"0199-ab","#,
                r#""violated-policies":["minute"]}"#
            )
        );
    }

    #[test]
    fn absent_members_are_left_out() {
        let body: Value = serde_json::from_slice(&Problem::new(ProblemKind::Internal, "").body()).unwrap();
        assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["status", "title", "type"]);
    }

    proptest! {
        #[test]
        fn any_detail_survives_json_and_grpc(detail in any::<String>()) {
            let problem = Problem::new(ProblemKind::BadRequest, detail.as_str());
            let body: Value = serde_json::from_slice(&problem.body()).unwrap();
            prop_assert_eq!(body["detail"].as_str().unwrap_or_default(), &detail);
            let message = problem.grpc_message();
            prop_assert!(message.as_bytes().iter().all(|b| (b' '..=b'~').contains(b)));
            prop_assert_eq!(percent_decode(message.as_bytes()).decode_utf8().unwrap(), detail);
        }
    }
}
