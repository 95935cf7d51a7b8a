//! The demo origin: an upstream that answers what a gateway's tests need, and misbehaves on demand.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/echo`, `/v1/…/echo` | JSON of what arrived ([`echo`]) |
//! | `/v1/bytes/{n}`, `POST /v1/upload`, `/v1/trailers` | bodies of any size in constant memory ([`transfer`]) |
//! | `/v1/delay/{ms}`, `/v1/status/{code}`, `/v1/stream` | late answers, bad answers, server-sent events ([`timing`]) |
//! | `/v1/cache/{seconds}` | a cacheable answer that counts how often it was really made ([`cacheable`]) |
//! | `/v1/ws` | WebSocket echo ([`websocket`]) |
//! | `/seiketsu.demo.v1.Echo/*`, `/grpc.health.v1.Health/Check` | gRPC echo and health ([`grpc`]) |
//! | `/healthz`, `/control/*` | health, and how to switch it and everything else ([`control`]) |
//!
//! Every answer carries `x-origin-region`, so that a test sees which region answered.

pub mod body;
pub mod cacheable;
pub mod control;
pub mod echo;
pub mod grpc;
pub mod serve;
pub mod timing;
pub mod tls;
pub mod transfer;
pub mod websocket;

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;

use self::{
    body::{Response, problem},
    cacheable::OriginHits,
    control::{Control, Fate},
};

const REGION: HeaderName = HeaderName::from_static("x-origin-region");

/// One running origin: its region, its switches and its counters.
#[derive(Debug)]
pub struct Origin {
    region: HeaderValue,
    control: Control,
    cache_hits: OriginHits,
}

/// The connection a request came over.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    pub peer: SocketAddr,
    pub tls: bool,
}

/// The connection is to be closed without an answer, because `/control/behaviour` asks for it.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer, as /control/behaviour asks")]
pub struct Reset;

impl Origin {
    /// `region` is told in every answer; it must be a valid header value.
    pub fn new(region: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self {
            region: HeaderValue::from_str(region)?,
            control: Control::default(),
            cache_hits: OriginHits::default(),
        })
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Answers one request. [`Reset`] closes the connection (HTTP/2: resets the stream) without one.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>, from: Connection) -> Result<Response, Reset> {
        self.control.count(request.uri().path());
        let mut response = match self.fate_of(&request).await {
            Fate::Answer => self.route(request, from).await,
            Fate::Refuse(status) => problem(status, "this status was asked for with POST /control/behaviour"),
            Fate::Reset => return Err(Reset),
        };
        response.headers_mut().insert(REGION, self.region.clone());
        Ok(response)
    }

    async fn fate_of(&self, request: &Request<Incoming>) -> Fate {
        if request.uri().path().starts_with("/v1/") { self.control.fate().await } else { Fate::Answer }
    }

    async fn route(&self, request: Request<Incoming>, from: Connection) -> Response {
        let path = request.uri().path();
        if let Some(rest) = path.strip_prefix("/v1/") {
            let (first, argument) = rest.split_once('/').unwrap_or((rest, ""));
            return match first {
                "bytes" => transfer::bytes(argument, request.uri().query()),
                "upload" => transfer::upload(request).await,
                "trailers" => transfer::trailers(),
                "delay" => timing::delay(argument).await,
                "status" => timing::status(argument, request.uri().query()),
                "stream" => timing::stream(request.uri().query()),
                "cache" => cacheable::cache(&self.cache_hits, argument, &request),
                "ws" => websocket::echo(request),
                _ if rest == "echo" || rest.ends_with("/echo") => echo::echo(request, from, &self.region).await,
                _ => unknown(path),
            };
        }
        match path {
            "/healthz" => self.control.health(),
            "/control/health" => self.control.switch_health(request).await,
            "/control/behaviour" => self.control.switch_behaviour(request).await,
            "/control/stats" => self.control.stats(),
            _ if grpc::is_method(path) => grpc::call(request, self.control.is_healthy()).await,
            _ => unknown(path),
        }
    }
}

fn unknown(path: &str) -> Response {
    problem(StatusCode::NOT_FOUND, &format!("{path} is not served here; try /v1/echo"))
}

/// The value of a parameter in a query string, percent-decoded.
fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query?.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The same, as a number; one that cannot be read counts as absent.
fn query_number<T: std::str::FromStr>(query: Option<&str>, name: &str) -> Option<T> {
    query_value(query, name)?.parse().ok()
}
