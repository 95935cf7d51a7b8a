//! What one request carries from hook to hook.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{Method, StatusCode};
use pingora_http::RequestHeader;
use seiketsu_identity::principal::Principal;

use crate::{
    policy::{Refusal, compression::Encoder, request_limits::BodyCounter},
    respond::problem::ProblemKind,
    telemetry::{metrics::InFlight, request_id::RequestId, trace::TraceContext},
    tenancy::{
        compile::{CompiledPolicies, CompiledRoute, CompiledTenant},
        snapshot::TenantEntry,
    },
    upstream::{
        balance::Tried,
        breaker::Permit,
        endpoint::{AttemptGuard, Endpoint},
        pool::UpstreamPool,
    },
};

/// One request, from its head to its line in the access log.
pub struct RequestContext {
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
    pub(super) request_id: RequestId,
    pub(super) trace: TraceContext,
    /// The client's address: the peer's, or what a trusted proxy says.
    pub(super) client: std::net::IpAddr,
    /// The tenant that the request is for; the request keeps this revision of it to its end.
    pub(super) tenant: Option<Arc<TenantEntry<CompiledTenant>>>,
    /// The route that was matched, by its place in the tenant.
    pub(super) route: Option<usize>,
    /// The version that was picked, by its place among the tenant's.
    pub(super) version: Option<usize>,
    /// The request, as far as its tenant's metrics are concerned.
    pub(super) in_flight: Option<InFlight>,
    pub(super) principal: Option<Arc<Principal>>,
    /// Errors must be told in gRPC's own way.
    pub(super) grpc: bool,
    /// `Upgrade: websocket`.
    pub(super) websocket: bool,
    /// Nothing is to be read into it when the response stays quiet: an event stream, gRPC, a WebSocket.
    pub(super) may_be_quiet: bool,
    pub(super) request_body: RequestBody,
    pub(super) response_body: ResponseBody,
    pub(super) exchange: Exchange,
    /// Why the gateway answered itself, or will when an error comes back from Pingora.
    pub(super) refusal: Option<Refusal>,
    pub(super) refused: Option<ProblemKind>,
    /// A cookie that keeps the caller on one side of a canary.
    pub(super) sticky_cookie: Option<http::HeaderValue>,
}

/// The request's body, on its way to the upstream.
#[derive(Default)]
pub(super) struct RequestBody {
    pub(super) counter: Option<BodyCounter>,
    /// What is sent in place of what came.
    pub(super) replacement: Option<Bytes>,
    /// The body, where it was read before the request went on.
    pub(super) read: Option<Bytes>,
}

/// The response's body, on its way to the client.
#[derive(Default)]
pub(super) struct ResponseBody {
    /// What came so far of a body that is transformed as a whole.
    pub(super) collected: Option<Vec<u8>>,
    pub(super) encoder: Option<Encoder>,
}

/// The attempts to get a response from an upstream.
#[derive(Default)]
pub(super) struct Exchange {
    pub(super) pool: Option<Arc<UpstreamPool>>,
    pub(super) permit: Option<Permit>,
    pub(super) attempt: Option<AttemptGuard>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) tried: Tried,
    pub(super) attempts: u8,
    /// How long to wait before the next attempt.
    pub(super) backoff: Option<std::time::Duration>,
    pub(super) first_attempt_at: Option<Instant>,
    pub(super) status: Option<StatusCode>,
    pub(super) headers_after: Option<std::time::Duration>,
    pub(super) canary: bool,
    /// Sent again since a pooled connection had been closed meanwhile.
    pub(super) repeated: bool,
}

impl RequestContext {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            started_at: SystemTime::now(),
            request_id: RequestId::default(),
            trace: TraceContext::default(),
            client: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            tenant: None,
            route: None,
            version: None,
            in_flight: None,
            principal: None,
            grpc: false,
            websocket: false,
            may_be_quiet: false,
            request_body: RequestBody::default(),
            response_body: ResponseBody::default(),
            exchange: Exchange::default(),
            refusal: None,
            refused: None,
            sticky_cookie: None,
        }
    }

    pub(super) fn tenant(&self) -> Option<&CompiledTenant> {
        self.tenant.as_deref().map(TenantEntry::compiled)
    }

    pub(super) fn route(&self) -> Option<&CompiledRoute> {
        self.tenant()?.routes.get(self.route?)
    }

    /// The policies that apply: the route's, else the tenant's; none for a host that nobody has.
    pub(super) fn policies(&self) -> Option<&CompiledPolicies> {
        self.route().map(|route| &*route.policies).or_else(|| self.tenant().map(|tenant| &*tenant.policies))
    }
}

/// Whether an error must be told in gRPC's own way (the content type begins with `application/grpc`).
pub(super) fn is_grpc(request: &RequestHeader) -> bool {
    request.method == Method::POST
        && request
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc") && !value.as_bytes().starts_with(b"application/grpc-web"))
}
