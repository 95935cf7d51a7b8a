//! What the tests of several modules need: registries, a name server, HTTP servers, waiting.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use seiketsu_config::{
    node::{Dns, NodeConfig},
    tenant::Upstream,
    values::Span,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    runtime::Handle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    balance::Tried,
    egress::EgressPolicy,
    peer::PeerTimeouts,
    pool::{Selection, UpstreamPool},
    registry::{Owner, PoolKey, UpstreamRegistry},
    resolver::Resolver,
    tls::SystemRoots,
};
use crate::telemetry::metrics::{Counters, DnsFailure, Metrics};

pub(super) const OPEN: EgressPolicy = EgressPolicy { allow_loopback: true, allow_private: true };

/// What upstream tests use for addresses that nobody connects to.
pub(super) const TIMEOUTS: PeerTimeouts =
    PeerTimeouts { connect: Duration::from_secs(1), read: Some(Duration::from_secs(2)), write: None };

pub(super) fn upstream(json: &str) -> Arc<Upstream> {
    Arc::new(serde_json::from_str(json).unwrap())
}

pub(super) fn key(tenant: &str) -> PoolKey {
    PoolKey { owner: Owner::Tenant(tenant.parse().unwrap()), upstream: "api".parse().unwrap() }
}

pub(super) fn resolver(servers: &[SocketAddr], egress: EgressPolicy) -> Resolver {
    let dns = Dns {
        servers: servers.iter().map(|server| server.to_string().parse().unwrap()).collect(),
        min_refresh: Span::from_millis(10),
        max_refresh: Span::from_millis(50),
    };
    Resolver::new(&dns, egress, failures(), Handle::current()).unwrap()
}

/// Counts for nobody else.
pub(super) fn failures() -> Counters<DnsFailure> {
    Metrics::new(1, [].into()).unwrap().node.dns_failures.clone()
}

pub(super) fn registry_with(resolver: Resolver) -> UpstreamRegistry {
    let node = NodeConfig {
        region: Some("eu".parse().unwrap()),
        zone: Some("eu-1".parse().unwrap()),
        ..NodeConfig::default()
    };
    UpstreamRegistry::new(&node, resolver, SystemRoots::default(), Handle::current())
}

/// A registry that may go anywhere but knows no name server.
pub(super) fn registry() -> UpstreamRegistry {
    registry_with(resolver(&["127.0.0.1:9".parse().unwrap()], OPEN))
}

/// Puts an upstream in force and returns its pool.
pub(super) fn put(registry: &UpstreamRegistry, tenant: &str, json: &str) -> Arc<UpstreamPool> {
    let prepared = registry.prepare(&key(tenant), &upstream(json)).unwrap();
    let pool = Arc::clone(prepared.pool());
    registry.apply(vec![prepared], &[]);
    pool
}

pub(super) fn selection(tried: &Tried) -> Selection<'_> {
    Selection { hash_key: None, tried, timeouts: TIMEOUTS, caller_speaks_http2: false }
}

/// Waits until something holds, or fails after ten seconds.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(), "still not: {what}");
}

type Zone = HashMap<RecordType, Result<Vec<IpAddr>, ResponseCode>>;

/// A name server whose answers can be changed.
#[derive(Clone)]
pub(super) struct NameServer {
    pub(super) address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    pub(super) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: socket.local_addr().unwrap(), zone: Arc::default(), asked: Arc::default() };
        let this = server.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                this.asked.fetch_add(1, Relaxed);
                socket.send_to(&this.answer(question).to_vec().unwrap(), from).await.unwrap();
            }
        });
        server
    }

    fn answer(&self, question: Message) -> Message {
        let query = question.queries[0].clone();
        let zone = self.zone.lock();
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.queries = question.queries;
        match zone.get(&query.query_type()) {
            Some(Ok(addresses)) => {
                for address in addresses {
                    let data = match address {
                        IpAddr::V4(v4) => RData::A((*v4).into()),
                        IpAddr::V6(v6) => RData::AAAA((*v6).into()),
                    };
                    answer.add_answer(Record::from_rdata(query.name().clone(), 0, data));
                }
            }
            Some(Err(code)) => answer.metadata.response_code = *code,
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer
    }

    /// From now on every name has these addresses.
    pub(super) fn set(&self, addresses: &[&str]) {
        let all: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let (v4, v6) = all.into_iter().partition(IpAddr::is_ipv4);
        *self.zone.lock() = HashMap::from([(RecordType::A, Ok(v4)), (RecordType::AAAA, Ok(v6))]);
    }

    pub(super) fn fail(&self, family: RecordType, code: ResponseCode) {
        self.zone.lock().insert(family, Err(code));
    }

    /// From now on no name exists.
    pub(super) fn forget(&self) {
        self.zone.lock().clear();
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

/// What a [`server`] answers.
#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { status: 200, headers: HeaderMap::new(), body: Bytes::new(), trailers: None }
    }
}

impl Behaviour {
    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// `grpc.health.v1`: 1 is SERVING, 2 `NOT_SERVING`.
    pub(super) fn grpc(status: &'static str, serving: u8) -> Self {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
        Self { body: Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving]), trailers: Some(trailers), ..Self::default() }
    }
}

/// An HTTP server (1.1 and 2 with prior knowledge) that can change its mind and notes what it is asked.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) requests: Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

pub(super) async fn server(behaviour: Behaviour, tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        address: listener.local_addr().unwrap(),
        connections: Arc::default(),
        requests: Arc::default(),
        behaviour: Arc::new(Mutex::new(behaviour)),
    };
    let this = server.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            this.connections.fetch_add(1, Relaxed);
            let (this, tls) = (this.clone(), tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| this.clone().answer(request));
                let http = auto::Builder::new(TokioExecutor::new());
                // Probes come and go; how their connections end does not matter.
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(tcp).await {
                            let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
                    None => {
                        let _ = http.serve_connection(TokioIo::new(tcp), service).await;
                    }
                }
            });
        }
    });
    server
}

impl Server {
    pub(super) fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.requests.lock().push((parts, body));
        let behaviour = self.behaviour.lock().clone();
        let body = Full::new(behaviour.body).with_trailers(async move { behaviour.trailers.map(Ok) });
        let mut response = Response::new(body.boxed());
        *response.status_mut() = behaviour.status.try_into().unwrap();
        *response.headers_mut() = behaviour.headers;
        Ok(response)
    }
}
