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
    HeaderName, Request, Response, Uri, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::ClientConfig;
use seiketsu_config::tenant::UpstreamProtocol;
use tokio::{runtime::Handle, sync::Semaphore};
use tower_service::Service;

use super::{
    balance::Tried,
    connect::{Stream, TlsTarget, connect},
    endpoint::{Endpoint, Outcome},
    pool::UpstreamPool,
    profile::Profile,
    resolver::{LookupError, Resolver},
    tls::{SystemRoots, TlsError, server_name, trusting_client_config},
};

/// For one address of a host; the next is tried after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

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
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limits: Limits,
    ) -> Result<Response<Bytes>, OutboundError> {
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
    /// dropped. The `Host` in `parts` stays, unless the upstream sets its own.
    pub fn mirror(&self, parts: &Parts, body: Bytes, pool: &Arc<UpstreamPool>) -> Mirrored {
        let Ok(slot) = Arc::clone(&self.mirrored).try_acquire_owned() else { return Mirrored::TooMany };
        let Ok(permit) = pool.admit() else { return Mirrored::Unavailable };
        let Ok(endpoint) = pool.endpoint(&Tried::default(), None) else { return Mirrored::Unavailable };
        let request = match mirrored_request(parts, body, &endpoint) {
            Ok(request) => request,
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
            tls: profile.tls.as_ref().map_or_else(|| Arc::clone(&self.connector.tls), |tls| Arc::clone(&tls.client_config)),
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
