//! What one request carries from hook to hook.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use seiketsu_identity::principal::Principal;
use seiketsu_limits::shedding;

use super::request::Decision;
use crate::{
    cache::request::CacheContext,
    limits::check::Limited,
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
        joining::Place,
        pool::UpstreamPool,
    },
};

/// How far the checks of a request have got: on the [fast path](super::fast_path), or nowhere yet.
#[derive(Default)]
pub(crate) enum Progress {
    #[default]
    Arrived,
    /// `request::decide` has let it pass.
    Decided,
    /// All of them are done.
    Judged(Result<Decision, Refusal>),
}

/// One request, from its head to its line in the access log.
pub(crate) struct RequestContext {
    pub(crate) progress: Progress,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) request_id: RequestId,
    pub(crate) trace: TraceContext,
    /// The client's address: the peer's, or what a trusted proxy says.
    pub(crate) client: std::net::IpAddr,
    /// The tenant that the request is for; the request keeps this revision of it to its end.
    pub(crate) tenant: Option<Arc<TenantEntry<CompiledTenant>>>,
    /// The route that was matched, by its place in the tenant.
    pub(crate) route: Option<usize>,
    /// The version that was picked, by its place among the tenant's.
    pub(crate) version: Option<usize>,
    /// The request, as far as its tenant's metrics are concerned.
    pub(crate) in_flight: Option<InFlight>,
    /// The request's place among those that its worker serves, as long as it is one of those that keep it busy.
    pub(crate) admitted: Option<shedding::Permit>,
    pub(crate) principal: Option<Arc<Principal>>,
    /// What limits made of it, if any apply.
    pub(crate) limited: Option<Limited>,
    pub(crate) cache: CacheContext,
    /// What the request weighs, once it has passed all checks.
    pub(crate) weight: Option<u64>,
    /// Errors must be told in gRPC's own way.
    pub(crate) grpc: bool,
    /// `Upgrade: websocket`.
    pub(crate) websocket: bool,
    /// In HTTP/2, the stream goes on after the head although no field tells of a body (RFC 9113 §8.1).
    pub(crate) has_untold_body: bool,
    /// Nothing is to be read into it when the response stays quiet: an event stream, gRPC, a WebSocket.
    pub(crate) may_be_quiet: bool,
    pub(crate) request_body: RequestBody,
    pub(crate) response_body: ResponseBody,
    pub(crate) exchange: Exchange,
    /// Why the gateway answered itself, or will when an error comes back from Pingora.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) refused: Option<ProblemKind>,
    /// A cookie that keeps the caller on one side of a canary.
    pub(crate) sticky_cookie: Option<http::HeaderValue>,
}

/// The request's body, on its way to the upstream.
#[derive(Default)]
pub(crate) struct RequestBody {
    pub(crate) counter: Option<BodyCounter>,
    /// What is sent in place of what came.
    pub(crate) replacement: Option<Bytes>,
    /// The body, where it was read before the request went on.
    pub(crate) read: Option<Bytes>,
}

/// The response's body, on its way to the client.
#[derive(Default)]
pub(crate) struct ResponseBody {
    /// What came so far of a body that is transformed as a whole.
    pub(crate) collected: Option<Vec<u8>>,
    pub(crate) encoder: Option<Encoder>,
    /// What is sent in place of trailers.
    pub(crate) last: Option<Bytes>,
}

/// The attempts to get a response from an upstream.
#[derive(Default)]
pub(crate) struct Exchange {
    pub(crate) pool: Option<Arc<UpstreamPool>>,
    pub(crate) permit: Option<Permit>,
    pub(crate) attempt: Option<AttemptGuard>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// On an HTTP/2 connection that is shared with other requests.
    pub(crate) place: Option<Place>,
    pub(crate) tried: Tried,
    pub(crate) attempts: u8,
    /// How long to wait before the next attempt.
    pub(crate) backoff: Option<std::time::Duration>,
    pub(crate) first_attempt_at: Option<Instant>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers_after: Option<std::time::Duration>,
    /// Why the last attempt failed, in a word.
    pub(crate) failure: Option<&'static str>,
    pub(crate) canary: bool,
    /// Sent again since a pooled connection had been closed meanwhile.
    pub(crate) repeated: bool,
}

impl ResponseBody {
    /// Whether there is something to be compressed yet.
    pub(crate) fn is_left(&self) -> bool {
        self.encoder.as_ref().is_some_and(|encoder| !encoder.has_ended())
    }
}

impl RequestContext {
    pub(crate) fn new() -> Self {
        Self {
            progress: Progress::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            request_id: RequestId::default(),
            trace: TraceContext::default(),
            client: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            tenant: None,
            route: None,
            version: None,
            in_flight: None,
            admitted: None,
            principal: None,
            limited: None,
            cache: CacheContext::default(),
            weight: None,
            grpc: false,
            websocket: false,
            has_untold_body: false,
            may_be_quiet: false,
            request_body: RequestBody::default(),
            response_body: ResponseBody::default(),
            exchange: Exchange::default(),
            refusal: None,
            refused: None,
            sticky_cookie: None,
        }
    }

    pub(crate) fn tenant(&self) -> Option<&CompiledTenant> {
        self.tenant.as_deref().map(TenantEntry::compiled)
    }

    pub(crate) fn route(&self) -> Option<&CompiledRoute> {
        self.tenant()?.routes.get(self.route?)
    }

    /// The policies that apply: the route's, else the tenant's; none for a host that nobody has.
    pub(crate) fn policies(&self) -> Option<&CompiledPolicies> {
        self.route().map(|route| &*route.policies).or_else(|| self.tenant().map(|tenant| &*tenant.policies))
    }
}

/// Whether a POST with these fields is a call of gRPC, to which errors are told in gRPC's own way (the
/// content type begins with `application/grpc`).
pub(super) fn is_grpc(fields: &HeaderMap) -> bool {
    fields.get(http::header::CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().starts_with(b"application/grpc") && !value.as_bytes().starts_with(b"application/grpc-web")
    })
}
