//! The HTTP client of the exporter: one connection for each batch, HTTP/1.1, with or without TLS.
//!
//! The exporter's thread is no runtime's, so the client brings a small runtime of its own and drives it
//! while a batch is sent. The collector is the operator's choice, made in the process' environment: the
//! egress policy, which is about what tenants may reach, does not apply to it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};
use tokio_rustls::TlsConnector;

/// For a whole batch, from connecting to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of the collector's answer.
const MAX_ANSWER: usize = 1 << 20;

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the authorities in {path} cannot be read: {source}; name a PEM file in OTEL_EXPORTER_OTLP_CERTIFICATE")]
    Authorities { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a runtime cannot be started: {0}")]
    Runtime(#[from] io::Error),
}

pub(super) struct CollectorClient {
    runtime: Runtime,
    tls: TlsConnector,
}

impl fmt::Debug for CollectorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorClient").finish_non_exhaustive()
    }
}

impl CollectorClient {
    /// `authorities`: a PEM file of those that the collector's certificate must come from; absent: those
    /// of the system.
    pub(super) fn new(authorities: Option<&Path>) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = authorities {
            let unreadable = |source| ClientError::Authorities { path: path.to_owned(), source };
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                roots.add(certificate.map_err(unreadable)?)?;
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or("the collector's URL has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await?;
        if secure {
            let name = ServerName::try_from(host.to_owned())?;
            exchange(TokioIo::new(self.tls.connect(name, tcp).await?), request).await
        } else {
            exchange(TokioIo::new(tcp), request).await
        }
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.block_on(async { timeout(TIMEOUT, self.send(request)).await? })
    }
}

async fn exchange<T: Read + Write + Unpin + Send + 'static>(
    io: T,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = http1::handshake(io).await?;
    // Ends with the connection, which ends when the sender is dropped.
    tokio::spawn(connection);
    let response = sender.send_request(in_origin_form(request)?).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

/// The target without scheme and host, and the host as a field of its own (RFC 9112 §3.2.1).
fn in_origin_form(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, HttpError> {
    let (mut head, body) = request.into_parts();
    let host = head.uri.host().ok_or("the collector's URL has no host")?;
    let host = match head.uri.port() {
        Some(port) => HeaderValue::try_from(format!("{host}:{port}"))?,
        None => HeaderValue::from_str(host)?,
    };
    head.headers.insert(header::HOST, host);
    let target = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    head.uri = Uri::from(target);
    Ok(Request::from_parts(head, Full::new(body)))
}
