//! The one HTTP client for requests of the gateway's own: key sets, metadata, webhooks, mirrored requests.
//!
//! Every connection goes through the node's resolver and egress policy, whatever the URL says and wherever
//! it came from. Redirects are not followed: they come back as answers, and whoever follows one passes the
//! same checks again.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, Uri, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::ClientConfig;
use seiketsu_config::tenant::{UpstreamProtocol, UpstreamTls};
use tokio::{runtime::Handle, sync::Semaphore};
use tower_service::Service;

use super::{
    balance::Tried,
    connect::{Stream, TlsTarget, connect},
    endpoint::{Endpoint, Outcome},
    pool::UpstreamPool,
    profile::Profile,
    resolver::{LookupError, Resolver},
    tls::{SystemRoots, TlsError, TlsMaterial, server_name, trusting_client_config},
};

/// For one address of a host; the next is tried after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Mirrored requests in flight at once; more are not mirrored.
const MIRRORED_AT_ONCE: usize = 256;

const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);

/// A mirrored answer is read to its end to keep the connection, but no further than this.
const MIRROR_MAX_BODY: usize = 1 << 20;

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer broke off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the request failed: {}", chain(.0))]
    Request(#[from] legacy::Error),
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} is not an http or https URL with a host")]
    Url(Uri),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{address} does not answer within {CONNECT_TIMEOUT:?}")]
    Timeout { address: SocketAddr },
    #[error("cannot connect to {address}: {source}")]
    Io { address: SocketAddr, source: io::Error },
}

/// How much a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the start to the end of the body.
    pub timeout: Duration,
    pub max_body: usize,
}

/// Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct OutboundClient {
    client: HttpClient,
    connector: Connector,
    runtime: Handle,
    mirrored: Arc<Semaphore>,
}

/// What became of a request to be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirrored {
    Sent,
    /// As many as may be are in flight.
    TooMany,
    /// The second upstream has no endpoint to go to, or refuses requests.
    Unavailable,
}

impl OutboundClient {
    /// Trusts the system's authorities. Mirrored requests are sent from `runtime`.
    pub fn new(resolver: Resolver, roots: &SystemRoots, runtime: Handle) -> Result<Self, TlsError> {
        let connector = Connector { resolver, tls: default_tls(None, roots)?, server_name: None };
        Ok(Self {
            client: client(connector.clone(), false),
            connector,
            runtime,
            mirrored: Arc::new(Semaphore::new(MIRRORED_AT_ONCE)),
        })
    }

    /// The same client, but it trusts only the authorities of this PEM file. Has connections of its own.
    pub fn trusting(&self, ca: &Path, roots: &SystemRoots) -> Result<Self, TlsError> {
        let connector = Connector { tls: default_tls(Some(ca), roots)?, ..self.connector.clone() };
        Ok(Self { client: client(connector.clone(), false), connector, ..self.clone() })
    }

    /// Sends a request and reads the whole answer. The URL must be absolute.
    pub async fn send(&self, request: Request<Full<Bytes>>, limits: Limits) -> Result<Response<Bytes>, OutboundError> {
        let exchange = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, limits.max_body).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    OutboundError::TooLong(limits.max_body)
                } else {
                    OutboundError::Body(error)
                }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(limits.timeout, exchange).await.unwrap_or(Err(OutboundError::Timeout(limits.timeout)))
    }

    /// Sends a copy of a request to another upstream and forgets about it: nobody waits, the answer is
    /// dropped. The `Host` in `parts` stays, unless the upstream sets its own. Where a field has the first value
    /// of `instead`, whatever its name, the copy has the second.
    pub fn mirror(
        &self,
        parts: &Parts,
        body: Bytes,
        pool: &Arc<UpstreamPool>,
        instead: Option<(&HeaderValue, HeaderValue)>,
    ) -> Mirrored {
        let Ok(slot) = Arc::clone(&self.mirrored).try_acquire_owned() else { return Mirrored::TooMany };
        let Ok(permit) = pool.admit() else { return Mirrored::Unavailable };
        let Ok(endpoint) = pool.endpoint(&Tried::default(), None) else { return Mirrored::Unavailable };
        let request = match mirrored_request(parts, body, &endpoint) {
            Ok(mut request) => {
                if let Some((original, copy)) = instead {
                    let values = request.headers_mut().values_mut();
                    values.filter(|value| *value == original).for_each(|value| value.clone_from(&copy));
                }
                request
            }
            Err(error) => {
                tracing::debug!(%error, "a request could not be mirrored");
                return Mirrored::Unavailable;
            }
        };
        let client = endpoint.profile.mirror.get_or_init(|| self.client_of(&endpoint.profile)).clone();
        self.runtime.spawn(async move {
            let guard = endpoint.begin(&permit);
            let outcome = mirrored_outcome(client.request(request)).await;
            guard.finish(outcome);
            drop((permit, slot));
        });
        Mirrored::Sent
    }

    /// A client that connects as an upstream wants it, over the same resolver.
    fn client_of(&self, profile: &Profile) -> HttpClient {
        let connector = Connector {
            resolver: self.connector.resolver.clone(),
            tls: profile
                .tls
                .as_ref()
                .map_or_else(|| Arc::clone(&self.connector.tls), |tls| Arc::clone(&tls.client_config)),
            server_name: profile.tls.as_ref().and_then(|tls| tls.server_name.as_deref().map(Arc::from)),
        };
        client(connector, profile.tls.is_none() && profile.config.protocol == UpstreamProtocol::Http2)
    }
}

/// What sends requests; keeps idle connections.
pub type HttpClient = Client<Connector, Full<Bytes>>;

fn client(connector: Connector, http2_with_prior_knowledge: bool) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .http2_only(http2_with_prior_knowledge)
        .build(connector)
}

fn default_tls(ca: Option<&Path>, roots: &SystemRoots) -> Result<Arc<ClientConfig>, TlsError> {
    trusting_client_config(ca, &[b"h2", b"http/1.1"], roots).map(Arc::new)
}

/// Fields that belong to the connection that the original came on (RFC 9110 §7.6.1) or that the client
/// sets itself.
const NOT_MIRRORED: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

fn mirrored_request(parts: &Parts, body: Bytes, endpoint: &Endpoint) -> Result<Request<Full<Bytes>>, http::Error> {
    let scheme = if endpoint.profile.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(endpoint.authority.to_string())
        .path_and_query(parts.uri.path_and_query().map_or("/", PathAndQuery::as_str))
        .build()?;
    let mut request = Request::builder().method(parts.method.clone()).uri(uri).body(Full::new(body))?;
    let headers = request.headers_mut();
    headers.clone_from(&parts.headers);
    for name in &NOT_MIRRORED {
        headers.remove(name);
    }
    if let Some(host) = &endpoint.host_header {
        headers.insert(header::HOST, host.clone());
    }
    Ok(request)
}

async fn mirrored_outcome(response: legacy::ResponseFuture) -> Outcome {
    let exchange = async {
        match response.await {
            Ok(response) => {
                let status = response.status();
                let body = Limited::new(response.into_body(), MIRROR_MAX_BODY).collect().await;
                if body.is_err_and(|error| !error.is::<LengthLimitError>()) {
                    return Outcome::Reset;
                }
                Outcome::Status(status)
            }
            Err(error) if error.is_connect() => Outcome::ConnectFailed,
            Err(_) => Outcome::Reset,
        }
    };
    tokio::time::timeout(MIRROR_TIMEOUT, exchange).await.unwrap_or(Outcome::Timeout)
}

/// Opens connections for the HTTP client: resolves, asks the egress policy, shakes hands.
#[derive(Debug, Clone)]
pub struct Connector {
    resolver: Resolver,
    tls: Arc<ClientConfig>,
    /// Instead of the URL's host.
    server_name: Option<Arc<str>>,
}

impl Connector {
    /// For connections that become WebSockets. Blocks.
    pub fn for_websockets(resolver: Resolver, tls: &UpstreamTls, roots: &SystemRoots) -> Result<Self, TlsError> {
        let tls = TlsMaterial::load(tls, &[b"http/1.1"], roots)?.client_config;
        Ok(Self { resolver, tls, server_name: None })
    }

    /// An open connection to the host of an absolute URL.
    pub async fn open(self, uri: Uri) -> Result<Stream, ConnectError> {
        self.connect(uri).await.map(TokioIo::into_inner)
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let (Some(host), Some(scheme)) = (uri.host(), uri.scheme()) else { return Err(ConnectError::Url(uri)) };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let (tls, default_port) = if *scheme == Scheme::HTTPS {
            let server_name = server_name(self.server_name.as_deref().unwrap_or(bare))?;
            (Some(TlsTarget { config: Arc::clone(&self.tls), server_name }), 443)
        } else if *scheme == Scheme::HTTP {
            (None, 80)
        } else {
            return Err(ConnectError::Url(uri));
        };
        let port = uri.port_u16().unwrap_or(default_port);
        let mut last = None;
        for ip in self.resolver.lookup(bare).await?.iter() {
            let address = SocketAddr::new(*ip, port);
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(address, tls.clone())).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(source)) => last = Some(ConnectError::Io { address, source }),
                Err(_) => last = Some(ConnectError::Timeout { address }),
            }
        }
        Err(last.unwrap_or_else(|| LookupError::NoAddress { host: host.to_owned() }.into()))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// An error with its causes: the client's own message says only which step failed.
fn chain(error: &legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderMap;
    use rustls_pki_types::PrivateKeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::upstream::{
        egress::EgressPolicy,
        testing::{Behaviour, NameServer, OPEN, put, registry, registry_with, resolver, server, until},
    };

    const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), max_body: 1000 };

    fn outbound(resolver: Resolver) -> OutboundClient {
        OutboundClient::new(resolver, &SystemRoots::default(), Handle::current()).unwrap()
    }

    fn open() -> OutboundClient {
        outbound(resolver(&["127.0.0.1:9".parse().unwrap()], OPEN))
    }

    async fn get(client: &OutboundClient, url: &str) -> Result<Response<Bytes>, OutboundError> {
        client.send(Request::get(url).body(Full::default()).unwrap(), LIMITS).await
    }

    #[tokio::test]
    async fn answers_come_whole_and_connections_are_reused() {
        let server = server(Behaviour { body: "hello".into(), ..Behaviour::default() }, None).await;
        let client = open();
        for _ in 0..3 {
            let answer = get(&client, &format!("http://localhost:{}/jwks?x=1", server.address.port())).await.unwrap();
            assert_eq!(answer.body(), "hello");
        }
        let requests = server.requests.lock();
        assert_eq!(requests[0].0.uri, "/jwks?x=1");
        assert_eq!(requests[0].0.headers["host"], format!("localhost:{}", server.address.port()));
        assert_eq!(server.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn denied_addresses_are_never_connected_to() {
        let server = server(Behaviour::default(), None).await;
        let dns = NameServer::start().await;
        dns.set(&["127.0.0.1", "::ffff:127.0.0.1"]);
        let client = outbound(resolver(&[dns.address], EgressPolicy::default()));
        let port = server.address.port();
        for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "rebound.test"] {
            let error = get(&client, &format!("http://{host}:{port}/")).await.unwrap_err();
            assert!(error.to_string().contains("may not be connected to"), "{host}: {error}");
        }
        for url in ["http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/"] {
            let error = get(&open(), url).await.unwrap_err();
            assert!(error.to_string().contains("metadata"), "{url}: {error}");
        }
        assert!(server.requests.lock().is_empty());
    }

    #[tokio::test]
    async fn redirects_are_answers() {
        let elsewhere = server(Behaviour::default(), None).await;
        let location = HeaderValue::try_from(format!("http://{}/", elsewhere.address)).unwrap();
        let redirecting = Behaviour {
            headers: HeaderMap::from_iter([(header::LOCATION, location.clone())]),
            ..Behaviour::status(302)
        };
        let server = server(redirecting, None).await;
        let answer = get(&open(), &format!("http://{}/", server.address)).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (302, &location));
        assert!(elsewhere.requests.lock().is_empty());
    }

    #[tokio::test]
    async fn long_and_late_answers_are_cut_off() {
        let server = server(Behaviour { body: vec![b'x'; 1001].into(), ..Behaviour::default() }, None).await;
        let error = get(&open(), &format!("http://{}/", server.address)).await.unwrap_err();
        assert!(matches!(error, OutboundError::TooLong(1000)), "{error}");
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = Request::get(format!("http://{}/", silent.local_addr().unwrap())).body(Full::default()).unwrap();
        let limits = Limits { timeout: Duration::from_millis(50), max_body: 1 };
        assert!(matches!(open().send(request, limits).await, Err(OutboundError::Timeout(_))));
    }

    #[tokio::test]
    async fn other_schemes_are_refused() {
        for url in ["ftp://localhost/", "/no/host"] {
            assert!(get(&open(), url).await.is_err(), "{url}");
        }
    }

    /// A server certificate for localhost, and the file that makes it trusted.
    fn certificate(folder: &Path) -> (TlsAcceptor, std::path::PathBuf) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = folder.join("ca.pem");
        std::fs::write(&path, made.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        (TlsAcceptor::from(Arc::new(config)), path)
    }

    #[tokio::test]
    async fn certificates_are_checked_against_the_given_authorities() {
        let folder = tempfile::tempdir().unwrap();
        let (acceptor, ca) = certificate(folder.path());
        let server = server(Behaviour::default(), Some(acceptor)).await;
        let port = server.address.port();
        let client = open();
        assert!(get(&client, &format!("https://localhost:{port}/")).await.is_err(), "not trusted by the system");
        let client = client.trusting(&ca, &SystemRoots::default()).unwrap();
        get(&client, &format!("https://localhost:{port}/")).await.unwrap();
        assert_eq!(server.requests.lock()[0].0.version, http::Version::HTTP_2);
        assert!(get(&client, &format!("https://127.0.0.1:{port}/")).await.is_err(), "a name it does not have");
    }

    fn original() -> Parts {
        let request = Request::post("http://ignored.example/v1/orders?x=1")
            .header("host", "acme.example")
            .header("x-kept", "yes")
            .header("connection", "keep-alive")
            .header("transfer-encoding", "chunked")
            .body(())
            .unwrap();
        request.into_parts().0
    }

    #[tokio::test]
    async fn mirrored_requests_arrive_without_what_belongs_to_the_connection() {
        let server = server(Behaviour::status(500), None).await;
        for protocol in ["http1", "http2"] {
            let registry = registry();
            let json = format!(r#"{{"endpoints":[{{"address":"{}"}}],"protocol":"{protocol}"}}"#, server.address);
            let pool = put(&registry, "t", &json);
            assert_eq!(open().mirror(&original(), "body".into(), &pool, None), Mirrored::Sent);
            until("arrived and counted", || pool.status().endpoints[0].attempts == 1).await;
            let (parts, body) = server.requests.lock().pop().unwrap();
            assert_eq!((parts.method.as_str(), &body[..]), ("POST", &b"body"[..]));
            assert_eq!(parts.uri.path_and_query().unwrap(), "/v1/orders?x=1");
            assert_eq!(parts.headers["x-kept"], "yes");
            assert_eq!(parts.headers.get("transfer-encoding"), None);
            assert_eq!(parts.version == http::Version::HTTP_2, protocol == "http2");
            until("given back", || pool.status().in_flight == 0 && pool.status().endpoints[0].in_flight == 0).await;
        }
    }

    #[tokio::test]
    async fn mirrored_requests_are_bounded_and_need_an_endpoint() {
        let registry = registry_with(resolver(&[], OPEN));
        let client = open();
        let none = put(&registry, "none", r#"{"endpoints":[]}"#);
        assert_eq!(client.mirror(&original(), Bytes::new(), &none, None), Mirrored::Unavailable);
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let json = format!(r#"{{"endpoints":[{{"address":"{}"}}]}}"#, silent.local_addr().unwrap());
        let pool = put(&registry, "t", &json);
        for _ in 0..MIRRORED_AT_ONCE {
            assert_eq!(client.mirror(&original(), Bytes::new(), &pool, None), Mirrored::Sent);
        }
        assert_eq!(client.mirror(&original(), Bytes::new(), &pool, None), Mirrored::TooMany);
    }

    #[tokio::test]
    async fn mirrors_over_tls_trust_what_the_upstream_says() {
        let folder = tempfile::tempdir().unwrap();
        let (acceptor, ca) = certificate(folder.path());
        let server = server(Behaviour::default(), Some(acceptor)).await;
        let json = format!(
            r#"{{"endpoints":[{{"address":"{}"}}],"tls":{{"ca":{ca:?},"server_name":"localhost"}}}}"#,
            server.address
        );
        let registry = registry();
        let pool = put(&registry, "t", &json);
        assert_eq!(open().mirror(&original(), Bytes::new(), &pool, None), Mirrored::Sent);
        until("counted", || pool.status().endpoints[0].attempts == 1).await;
        assert_eq!(pool.status().endpoints[0].failures, 0);
    }
}
