//! Active health checks: each endpoint of a pool is asked how it is, at intervals, once for all tenants.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use seiketsu_config::tenant::{HealthCheck, HostHeader, Probe, UpstreamProtocol};
use tokio::task::AbortHandle;

use super::{
    connect::{Stream, connect},
    endpoint::{Endpoint, EndpointState},
    pool::UpstreamPool,
    tls::TlsError,
};

/// More than any health answer needs.
const MAX_BODY: usize = 64 << 10;

/// The standing of an endpoint with its health check. Healthy until shown otherwise, so that a fresh
/// node serves at once.
#[derive(Debug, Default)]
pub struct Health {
    unhealthy: AtomicBool,
    /// Results in a row that speak against the present standing.
    contrary: AtomicU32,
}

impl Health {
    pub fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Relaxed)
    }

    /// Counts a result; `Some` if the standing has changed with it, to healthy or not.
    pub fn record(&self, good: bool, check: &HealthCheck) -> Option<bool> {
        if good == self.is_healthy() {
            self.contrary.store(0, Relaxed);
            return None;
        }
        let needed = if good { check.healthy_after } else { check.unhealthy_after };
        if self.contrary.fetch_add(1, Relaxed) + 1 < u32::from(needed) {
            return None;
        }
        self.contrary.store(0, Relaxed);
        self.unhealthy.store(!good, Relaxed);
        Some(good)
    }

    /// There is no check any more, so nothing speaks against the endpoint.
    pub fn forget(&self) {
        self.contrary.store(0, Relaxed);
        self.unhealthy.store(false, Relaxed);
    }
}

/// Why a probe did not find the endpoint well.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the path or host cannot be put into a request: {0}")]
    Request(#[from] http::Error),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("the body cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("grpc-status {0:?}")]
    GrpcStatus(Option<HeaderValue>),
    #[error("the gRPC service is not SERVING")]
    NotServing,
}

/// A running check; dropped, it ends.
#[derive(Debug)]
pub struct Checker {
    task: AbortHandle,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// Probes `endpoint` until dropped, and tells the pool when its standing changes.
    pub fn start(endpoint: Arc<Endpoint>, check: HealthCheck, runtime: &tokio::runtime::Handle) -> Self {
        let task = runtime.spawn(async move {
            let pool = endpoint.pool.clone();
            let state = Arc::clone(&endpoint.state);
            // Not all nodes and endpoints at once, but soon: the first result is worth most.
            let first = check.interval.get().min(Duration::from_secs(1));
            tokio::time::sleep(first.mul_f64(fastrand::f64())).await;
            loop {
                let result = probe_in_time(&endpoint, &check).await;
                report(&pool, &state, &endpoint, &check, &result);
                tokio::time::sleep(check.interval.get().mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            }
        });
        Self { task: task.abort_handle() }
    }
}

fn report(
    pool: &Weak<UpstreamPool>,
    state: &EndpointState,
    endpoint: &Endpoint,
    check: &HealthCheck,
    result: &Result<(), ProbeError>,
) {
    if let Err(error) = result {
        tracing::debug!(address = %endpoint.address, %error, "a health check failed");
    }
    if let Some(healthy) = state.health.record(result.is_ok(), check)
        && let Some(pool) = pool.upgrade()
    {
        pool.health_changed(endpoint, healthy, result.as_ref().err());
    }
}

async fn probe_in_time(endpoint: &Endpoint, check: &HealthCheck) -> Result<(), ProbeError> {
    tokio::time::timeout(check.timeout.get(), probe(endpoint, &check.probe)).await.unwrap_or(Err(ProbeError::Timeout))
}

/// Each probe opens a connection of its own: that this works is part of the question.
async fn probe(endpoint: &Endpoint, probe: &Probe) -> Result<(), ProbeError> {
    if matches!(probe, Probe::Tcp) {
        connect(endpoint.address, None).await?;
        return Ok(());
    }
    let tls = endpoint.profile.tls_target(endpoint.authority.host())?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let stream = connect(endpoint.address, tls).await?;
    let host = host_of(endpoint);
    match probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path } => {
            let speaks_http2 = stream.is_http2()
                || matches!((endpoint.profile.config.protocol, &stream), (UpstreamProtocol::Http2, Stream::Plain(_)));
            if speaks_http2 {
                let request = Request::get(format!("{scheme}://{host}{path}")).body(Full::default())?;
                answered(send_http2(stream, request).await?.status())
            } else {
                let request = Request::get(path.as_str())
                    .header(header::HOST, host)
                    .header(header::CONNECTION, "close")
                    .body(Full::default())?;
                answered(send_http1(stream, request).await?.status())
            }
        }
        Probe::Grpc { service } => {
            let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .body(Full::new(health_check_request(service)))?;
            grpc_answered(send_http2(stream, request).await?).await
        }
    }
}

/// `Host` or `:authority` as requests of clients would carry it, as far as it does not come from them.
fn host_of(endpoint: &Endpoint) -> String {
    match endpoint.profile.host_header() {
        HostHeader::Fixed(value) => value.to_string(),
        HostHeader::Client | HostHeader::Endpoint => endpoint.authority.to_string(),
    }
}

fn answered(status: StatusCode) -> Result<(), ProbeError> {
    if status.is_success() { Ok(()) } else { Err(ProbeError::Status(status)) }
}

type Answer = http::Response<hyper::body::Incoming>;

async fn send_http1(stream: Stream, request: Request<Full<Bytes>>) -> Result<Answer, ProbeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

async fn send_http2(stream: Stream, request: Request<Full<Bytes>>) -> Result<Answer, ProbeError> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

async fn grpc_answered(response: Answer) -> Result<(), ProbeError> {
    answered(response.status())?;
    let in_head = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(ProbeError::Body)?;
    let status = in_head.or_else(|| body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
    if status.as_ref().is_none_or(|status| status != "0") {
        return Err(ProbeError::GrpcStatus(status));
    }
    if is_serving(&body.to_bytes()) { Ok(()) } else { Err(ProbeError::NotServing) }
}

/// A gRPC message (uncompressed, with its length in front) that holds a `HealthCheckRequest`: the name of
/// the service as protobuf field 1.
fn health_check_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            #[allow(clippy::cast_possible_truncation)] // Seven bits at a time.
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        #[allow(clippy::cast_possible_truncation)]
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

/// Whether a `HealthCheckResponse` says SERVING: protobuf field 1 with the value 1. It is the message's
/// only field, so nothing else needs to be understood.
fn is_serving(framed: &[u8]) -> bool {
    framed == [0, 0, 0, 0, 2, 0x08, 0x01]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use proptest::prelude::*;
    use seiketsu_config::values::Span;
    use tokio::net::TcpListener;

    use super::*;
    use crate::upstream::{
        registry::{EventKind, UpstreamRegistry},
        testing::{Behaviour, put, registry, server, until},
    };

    fn check(healthy_after: u8, unhealthy_after: u8) -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp,
            interval: Span::from_millis(10),
            timeout: Span::from_secs(1),
            healthy_after,
            unhealthy_after,
        }
    }

    proptest! {
        #[test]
        fn the_standing_changes_after_as_many_results_in_a_row_as_configured(
            results in prop::collection::vec(any::<bool>(), 0..60), healthy_after in 1u8..5, unhealthy_after in 1u8..5
        ) {
            let (health, check) = (Health::default(), check(healthy_after, unhealthy_after));
            let mut seen = Vec::new();
            let mut healthy = true;
            for good in results {
                seen.push(good);
                let needed = usize::from(if healthy { unhealthy_after } else { healthy_after });
                let changes = seen.len() >= needed && seen.iter().rev().take(needed).all(|good| *good != healthy);
                if changes {
                    healthy = !healthy;
                    seen.clear();
                }
                prop_assert_eq!(health.record(good, &check), changes.then_some(healthy));
                prop_assert_eq!(health.is_healthy(), healthy);
            }
        }
    }

    fn config(address: SocketAddr, protocol: &str, probe: &str, extra: &str) -> String {
        format!(
            r#"{{"endpoints":[{{"address":"{address}"}}],"protocol":"{protocol}",{extra}"health":{{"probe":{probe},"interval":"10ms","timeout":"1s"}}}}"#
        )
    }

    async fn becomes(registry: &UpstreamRegistry, healthy: bool) {
        until(&format!("healthy: {healthy}"), || registry.status()[0].endpoints[0].healthy == healthy).await;
    }

    #[tokio::test]
    async fn http_probes_follow_the_status_and_tell_of_changes() {
        let server = server(Behaviour::default(), None).await;
        for protocol in ["http1", "http2"] {
            let registry = registry();
            let mut events = registry.events();
            put(&registry, "t", &config(server.address, protocol, r#"{"http":{"path":"/healthz?deep"}}"#, ""));
            server.set(Behaviour::status(503));
            becomes(&registry, false).await;
            let unhealthy = events.recv().await.unwrap().kind;
            assert!(
                matches!(&unhealthy, EventKind::Health { healthy: false, reason: Some(reason), .. } if reason.contains("503")),
                "{unhealthy:?}"
            );
            server.set(Behaviour::status(204));
            becomes(&registry, true).await;
            let asked = server.requests.lock().drain(..).next_back().unwrap().0;
            assert_eq!(asked.uri.path_and_query().unwrap(), "/healthz?deep");
            assert_eq!(asked.version == http::Version::HTTP_2, protocol == "http2");
        }
    }

    #[tokio::test]
    async fn grpc_probes_want_serving_and_status_zero() {
        let server = server(Behaviour::grpc("0", 1), None).await;
        let registry = registry();
        put(&registry, "t", &config(server.address, "http2", r#"{"grpc":{"service":"voice.v1"}}"#, ""));
        for sick in [Behaviour::grpc("0", 2), Behaviour::grpc("5", 1), Behaviour::default(), Behaviour::status(500)] {
            server.set(sick);
            becomes(&registry, false).await;
            server.set(Behaviour::grpc("0", 1));
            becomes(&registry, true).await;
        }
        let (asked, body) = server.requests.lock().pop().unwrap();
        assert_eq!(asked.uri.path(), "/grpc.health.v1.Health/Check");
        assert_eq!(asked.headers["content-type"], "application/grpc");
        assert_eq!(&body[..], b"\0\0\0\0\x0a\x0a\x08voice.v1");
    }

    #[tokio::test]
    async fn tcp_probes_want_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let registry = registry();
        put(&registry, "t", &config(address, "http1", r#""tcp""#, ""));
        drop(listener);
        becomes(&registry, false).await;
        let _again = TcpListener::bind(address).await.unwrap();
        becomes(&registry, true).await;
    }

    #[tokio::test]
    async fn a_silent_endpoint_is_unhealthy() {
        // Accepts in the kernel, but never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = registry();
        let config = config(listener.local_addr().unwrap(), "http1", r#"{"http":{"path":"/"}}"#, "");
        put(&registry, "t", &config.replace(r#""timeout":"1s""#, r#""timeout":"20ms""#));
        becomes(&registry, false).await;
    }

    #[tokio::test]
    async fn without_its_check_an_endpoint_counts_as_healthy_again() {
        let registry = registry();
        let dead = "127.0.0.1:9".parse().unwrap();
        put(&registry, "t", &config(dead, "http1", r#""tcp""#, ""));
        becomes(&registry, false).await;
        put(&registry, "t", r#"{"endpoints":[{"address":"127.0.0.1:9"}]}"#);
        assert!(registry.status()[0].endpoints[0].healthy);
    }

    #[test]
    fn long_service_names_are_framed_with_their_length() {
        let service = "s".repeat(300);
        let framed = health_check_request(&service);
        assert_eq!(framed[..5], [0, 0, 0, 1, 47]);
        assert_eq!(framed[5..8], [0x0a, 0xac, 0x02]);
        assert_eq!(framed.len(), 5 + 303);
        assert_eq!(&health_check_request("")[..], [0, 0, 0, 0, 0]);
    }
}
