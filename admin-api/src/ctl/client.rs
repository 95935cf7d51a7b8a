//! One request, one connection: HTTP/1.1, over TLS where the address says https.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls};
use url::{Host, Url};

use super::{
    API,
    failure::{Failure, Problem},
    progress::{Counted, Progress},
    settings::Settings,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// To the head of the answer: an import of very many tenants takes its time, and so does a write that waits for nodes.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(5);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot connect to {server}: {source}; is the control plane running there? --server names another")]
    Connect { server: Url, source: io::Error },
    #[error("cannot connect to {server}: nobody answered in {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout { server: Url },
    #[error("{server} did not answer in {} s", ANSWER_TIMEOUT.as_secs())]
    AnswerTimeout { server: Url },
    #[error("the connection to {server} broke: {source}")]
    Broken { server: Url, source: hyper::Error },
    #[error("{server} is no address of a control plane: write http://host:port or https://host:port")]
    Address { server: Url },
    #[error(
        "{server} is another machine, and http would show the token to everybody on the way: use https, or say --insecure-plain-http"
    )]
    PlainHttp { server: Url },
    #[error("cannot read the certificates in {path}: {message}")]
    Authorities { path: PathBuf, message: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the token has characters that no token has: look at the file that it comes from")]
    Token,
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Ask {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Bytes,
    content_type: Option<&'static str>,
    if_match: Option<String>,
}

impl Ask {
    /// `path` begins after [`API`]. What is put into it needs no escapes: ids and numbers.
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), body: Bytes::new(), content_type: None, if_match: None }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    #[allow(clippy::needless_pass_by_value)] // Numbers as well as references are passed.
    pub(super) fn query(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    /// Where there is a value.
    pub(super) fn query_if(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    pub(super) fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into();
        self.content_type = Some("application/json");
        self
    }

    pub(super) fn yaml(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.content_type = Some("application/yaml");
        self
    }

    pub(super) fn if_match(mut self, etag: Option<String>) -> Self {
        self.if_match = etag;
        self
    }
}

/// The answer to a request that went well.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, Failure> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&self.body)?)
    }
}

pub(super) struct Client {
    settings: Settings,
    authorization: HeaderValue,
    tls: Option<TlsConnector>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, ClientError> {
        let server = || settings.server.clone();
        let tls = match settings.server.scheme() {
            "https" => Some(connector(settings.ca.as_ref())?),
            "http" if settings.insecure_plain_http || is_loopback(&settings.server) => None,
            "http" => return Err(ClientError::PlainHttp { server: server() }),
            _ => return Err(ClientError::Address { server: server() }),
        };
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", settings.token.expose_secret()))
            .map_err(|_| ClientError::Token)?;
        authorization.set_sensitive(true);
        Ok(Self { settings, authorization, tls })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The whole answer.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        self.ask_with(ask, &Progress::none()).await
    }

    pub(super) async fn json(&self, ask: Ask) -> Result<Value, Failure> {
        self.ask(ask).await?.json()
    }

    /// What is sent is counted.
    pub(super) async fn ask_with(&self, ask: Ask, sent: &Progress) -> Result<Answer, Failure> {
        let mut body = BytesMut::new();
        let read = self.read(ask, sent, |piece| {
            body.extend_from_slice(piece);
            Ok(())
        });
        read.await?;
        Ok(Answer { body: body.freeze() })
    }

    /// Hands out the answer piece by piece, as it comes.
    pub(super) async fn read(
        &self,
        ask: Ask,
        sent: &Progress,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let broken = |source| ClientError::Broken { server: self.settings.server.clone(), source };
        let (status, mut body) = self.exchange(ask, sent).await?;
        let mut refusal = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if status.is_success() {
                take(&data)?;
            } else {
                refusal.extend_from_slice(&data);
            }
        }
        if status.is_success() {
            Ok(())
        } else {
            Err(Failure::Problem(Box::new(Problem::read(status.as_u16(), &refusal))))
        }
    }

    async fn exchange(&self, ask: Ask, sent: &Progress) -> Result<(StatusCode, Incoming), ClientError> {
        let server = &self.settings.server;
        let request = self.request(ask, sent)?;
        let (host, port) = match (server.host_str(), server.port_or_known_default()) {
            (Some(host), Some(port)) => (host.trim_matches(['[', ']']).to_owned(), port),
            _ => return Err(ClientError::Address { server: server.clone() }),
        };
        let connect = |source| ClientError::Connect { server: server.clone(), source };
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return Ok::<Box<dyn Stream>, io::Error>(Box::new(stream)) };
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Ok(Box::new(tls.connect(name, stream).await?))
        };
        let stream = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| ClientError::ConnectTimeout { server: server.clone() })?
            .map_err(connect)?;

        let broken = |source| ClientError::Broken { server: server.clone(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the answer's body, or with the process.
        tokio::spawn(connection);
        let response = timeout(ANSWER_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|_| ClientError::AnswerTimeout { server: server.clone() })?
            .map_err(broken)?;
        Ok((response.status(), response.into_body()))
    }

    fn request(&self, ask: Ask, sent: &Progress) -> Result<Request<Counted>, ClientError> {
        let mut url = self.settings.server.clone();
        url.set_path(&format!("{}{API}{}", self.settings.server.path().trim_end_matches('/'), ask.path));
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let mut request = Request::builder()
            .method(ask.method)
            .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::USER_AGENT, concat!("gatewayctl/", env!("CARGO_PKG_VERSION")));
        if let Some(content_type) = ask.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(etag) = ask.if_match {
            request = request.header(header::IF_MATCH, etag);
        }
        Ok(request.body(Counted::new(ask.body, sent.clone()))?)
    }
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn is_loopback(server: &Url) -> bool {
    match server.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn connector(ca: Option<&PathBuf>) -> Result<TlsConnector, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    // A system without any is no error where a file is named.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let refused = |message: String| ClientError::Authorities { path: path.clone(), message };
        let text = fs::read(path).map_err(|error| refused(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| refused(error.to_string()))?;
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(server: &str) -> Result<Client, ClientError> {
        Client::new(Settings {
            server: server.parse().unwrap(),
            token: "sa_secret".to_owned().into(),
            ca: None,
            insecure_plain_http: false,
        })
    }

    #[test]
    fn a_token_goes_to_another_machine_over_tls_only() {
        for server in ["http://127.0.0.1:9080", "http://localhost:1", "http://[::1]:1", "https://admin.example"] {
            assert!(client(server).is_ok(), "{server}");
        }
        for server in ["http://admin.example", "http://10.0.0.1:9080", "http://localhost.example"] {
            assert!(matches!(client(server), Err(ClientError::PlainHttp { .. })), "{server}");
        }
        assert!(matches!(client("ftp://localhost"), Err(ClientError::Address { .. })));
    }

    #[test]
    fn a_request_is_written_below_the_address_of_the_server() {
        let client = client("http://localhost:9080/control/").unwrap();
        let ask = Ask::get("/tenants/acme").query("wait", "applied").query("timeout", "5 s&");
        let request = client.request(ask, &Progress::none()).unwrap();
        assert_eq!(request.uri().to_string(), "/control/api/enterprise/tenants/acme?wait=applied&timeout=5+s%26");
        assert_eq!(request.headers()["host"], "localhost:9080");
        assert!(!format!("{request:?}").contains("sa_secret"));
    }
}
