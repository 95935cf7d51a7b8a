//! What is done to a request and its response, apart from where it goes.
//!
//! Each file holds one policy: a `compile` step that takes the checked configuration and does all work
//! that can be done ahead, and functions that the proxy's hooks call. Nothing here knows a session, a
//! tenant or a snapshot, waits for the network or takes a lock.
//!
//! # The order in which they run
//!
//! On the way in, cheapest and most general refusal first:
//!
//! 1. [`access`]: may this address call at all?
//! 2. [`request_limits`]: is the head within bounds, the method allowed?
//! 3. [`versioning`]: which version of the API is meant? (Routes match by version, so before routing.)
//! 4. [`cors`]: a preflight is answered here, before authentication, since browsers send none with it.
//! 5. Authentication, limits and quotas, which live elsewhere.
//! 6. [`validation`]: does the request conform to what was published? It sees what the client sent.
//! 7. [`transform`], [`headers`], [`body_transform`]: what the upstream receives.
//!
//! On the way back:
//!
//! 1. [`body_transform`], then [`headers`]: what the client receives.
//! 2. [`versioning`], [`cors`], [`security_headers`]: ours replace what the upstream said.
//! 3. [`compression`]: last, since it works on the final bytes and changes validators and framing.
//!
//! Refusals and other responses of the gateway's own get [`cors`] and [`security_headers`] as well.

pub mod access;
pub mod body_transform;
pub mod compression;
pub mod cors;
pub mod headers;
pub mod request_limits;
pub mod security_headers;
pub mod transform;
pub mod validation;
pub mod versioning;

mod vary;

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, StatusCode};

/// A request that a policy refuses. The response is built from it in one place, elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: ProblemKind,
    /// For the client: what is wrong with this request and what would be right. Holds nothing secret.
    pub detail: Cow<'static, str>,
    /// Headers that the specification of the status asks for, such as `Allow`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), headers: Vec::new() }
    }

    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }
}

/// Why a policy refuses: one of these per problem type (RFC 9457 §3.1.1) that clients can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    AddressDenied,
    OriginDenied,
    MethodNotAllowed,
    HeaderMissing,
    HeadersTooLarge,
    TargetTooLong,
    BodyTooLarge,
    InvalidContentLength,
    WebSocketDenied,
    InvalidTarget,
    VersionUnknown,
    VersionNotAcceptable,
    VersionRetired,
    RequestInvalid,
    BodyUntransformable,
    TransformOverloaded,
    UpstreamBodyUntransformable,
}

impl ProblemKind {
    pub fn status(self) -> StatusCode {
        match self {
            Self::AddressDenied | Self::OriginDenied | Self::WebSocketDenied => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeaderMissing | Self::InvalidContentLength | Self::InvalidTarget | Self::RequestInvalid => {
                StatusCode::BAD_REQUEST
            }
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::VersionUnknown => StatusCode::NOT_FOUND,
            Self::VersionNotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::VersionRetired => StatusCode::GONE,
            Self::BodyUntransformable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TransformOverloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamBodyUntransformable => StatusCode::BAD_GATEWAY,
        }
    }

    /// The stable last part of the problem type's URI.
    pub fn slug(self) -> &'static str {
        match self {
            Self::AddressDenied => "address-denied",
            Self::OriginDenied => "origin-denied",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::HeaderMissing => "header-missing",
            Self::HeadersTooLarge => "headers-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::BodyTooLarge => "body-too-large",
            Self::InvalidContentLength => "invalid-content-length",
            Self::WebSocketDenied => "websocket-denied",
            Self::InvalidTarget => "invalid-target",
            Self::VersionUnknown => "version-unknown",
            Self::VersionNotAcceptable => "version-not-acceptable",
            Self::VersionRetired => "version-retired",
            Self::RequestInvalid => "request-invalid",
            Self::BodyUntransformable => "body-untransformable",
            Self::TransformOverloaded => "transform-overloaded",
            Self::UpstreamBodyUntransformable => "upstream-body-untransformable",
        }
    }

    /// The problem type's title, the same for every occurrence.
    pub fn title(self) -> &'static str {
        match self {
            Self::AddressDenied => "Your address may not call this API",
            Self::OriginDenied => "Cross-origin request refused",
            Self::MethodNotAllowed => "Method not allowed",
            Self::HeaderMissing => "A required header is missing",
            Self::HeadersTooLarge => "The headers are too large",
            Self::TargetTooLong => "The path and query are too long",
            Self::BodyTooLarge => "The body is too large",
            Self::InvalidContentLength => "Content-Length is not valid",
            Self::WebSocketDenied => "WebSocket connections are not allowed here",
            Self::InvalidTarget => "The path is not valid",
            Self::VersionUnknown | Self::VersionNotAcceptable => "There is no such API version",
            Self::VersionRetired => "This API version has been retired",
            Self::RequestInvalid => "The request does not conform to the API's description",
            Self::BodyUntransformable => "The body cannot be transformed",
            Self::TransformOverloaded => "Too many bodies are being transformed",
            Self::UpstreamBodyUntransformable => "The upstream's body cannot be transformed",
        }
    }
}
