//! Requests to addresses that operators have chosen: one request, one connection, no redirects, a bounded answer.
//!
//! Names are resolved here, and the connection goes to the address that was looked at: who chooses a name cannot make this
//! process reach what only it can reach.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};
use url::{Host, Url};

/// What of an answer is read.
const MOST_ANSWER_BYTES: usize = 8 << 10;

/// How often the system's authorities are read again.
const AUTHORITIES_READ: Duration = Duration::from_hours(1);

/// What may be reached, and whom to believe.
#[derive(Debug, Clone, Default)]
pub struct OutboundSettings {
    /// Also addresses that only this network has, and those without TLS.
    pub allow_private: bool,
    /// PEM file of authorities beside those of the system.
    pub ca: Option<PathBuf>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("the address {0} is none: write https://host/path")]
    Address(Url),
    #[error("{0} is not reached: it leads to an address of a private network")]
    Private(String),
    #[error("{0} is neither a name nor an address that a certificate could be of")]
    Host(String),
    #[error("the name {0} leads to no address: {1}")]
    Name(String, io::Error),
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no answer came within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("cannot read the certificates in {path}: {message}")]
    Authorities { path: PathBuf, message: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// An answer, as much of it as is of interest.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// A connection, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Which addresses are reached beside those of the public network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Public,
    /// Those of private networks and of this machine; none that only a link has, where clouds tell machines their secrets.
    Private,
}

/// Whom to believe: the system's authorities, and those of the file. They are read once, and again when the file has
/// changed, or after an hour.
struct Authorities {
    ca: Option<PathBuf>,
    read: Mutex<Read>,
}

struct Read {
    roots: Arc<rustls::RootCertStore>,
    tls: TlsConnector,
    at: Instant,
    file: Option<SystemTime>,
}

impl Authorities {
    fn new(ca: Option<PathBuf>) -> Result<Self, OutboundError> {
        let read = Mutex::new(Read::new(ca.as_ref())?);
        Ok(Self { ca, read })
    }

    fn now(&self) -> (Arc<rustls::RootCertStore>, TlsConnector) {
        let mut read = self.read.lock();
        let file = modified(self.ca.as_ref());
        if read.file != file || read.at.elapsed() >= AUTHORITIES_READ {
            match Read::new(self.ca.as_ref()) {
                Ok(again) => *read = again,
                Err(error) => {
                    tracing::warn!(%error, "the authorities cannot be read again; those that were read stay");
                    (read.at, read.file) = (Instant::now(), file);
                }
            }
        }
        (Arc::clone(&read.roots), read.tls.clone())
    }
}

impl Read {
    fn new(ca: Option<&PathBuf>) -> Result<Self, OutboundError> {
        // What is written meanwhile is read the next time.
        let (at, file) = (Instant::now(), modified(ca));
        let roots = Arc::new(roots(ca)?);
        let config = client_config(Arc::clone(&roots))?.with_no_client_auth();
        Ok(Self { roots, tls: TlsConnector::from(Arc::new(config)), at, file })
    }
}

fn modified(path: Option<&PathBuf>) -> Option<SystemTime> {
    fs::metadata(path?).and_then(|metadata| metadata.modified()).ok()
}

/// Who sends them.
#[derive(Clone)]
pub struct Outbound {
    allow_private: bool,
    authorities: Arc<Authorities>,
    /// What is shown and whom to believe, where that was chosen for one receiver.
    chosen: Option<TlsConnector>,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("allow_private", &self.allow_private).finish_non_exhaustive()
    }
}

impl Outbound {
    pub fn new(settings: &OutboundSettings) -> Result<Self, OutboundError> {
        let authorities = Arc::new(Authorities::new(settings.ca.clone())?);
        Ok(Self { allow_private: settings.allow_private, authorities, chosen: None })
    }

    /// With whom to believe, and what to show, chosen for one receiver.
    pub(crate) fn with(&self, config: Arc<rustls::ClientConfig>) -> Self {
        Self { chosen: Some(TlsConnector::from(config)), ..self.clone() }
    }

    /// Whom to believe.
    pub(crate) fn roots(&self) -> Arc<rustls::RootCertStore> {
        self.authorities.now().0
    }

    fn tls(&self) -> TlsConnector {
        self.chosen.clone().unwrap_or_else(|| self.authorities.now().1)
    }

    /// With TLS.
    pub(crate) async fn secure(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, OutboundError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| OutboundError::Host(host.to_owned()))?;
        self.tls().connect(name, stream).await.map_err(OutboundError::Connect)
    }

    /// What is wrong with an address that somebody wants to be told at.
    pub(crate) fn fault(&self, url: &Url) -> Option<&'static str> {
        if !url.username().is_empty() || url.password().is_some() {
            return Some("an address holds no password");
        }
        match (url.scheme(), url.host()) {
            (_, None) => Some("there is no host in it"),
            ("https", Some(Host::Ipv4(address))) if !self.may_reach(address.into(), Reach::Public) => Some(PRIVATE),
            ("https", Some(Host::Ipv6(address))) if !self.may_reach(address.into(), Reach::Public) => Some(PRIVATE),
            ("https", _) => None,
            ("http", _) if self.allow_private => None,
            _ => Some("it has to begin with https://"),
        }
    }

    fn may_reach(&self, address: IpAddr, reach: Reach) -> bool {
        self.allow_private
            || match reach {
                Reach::Public => is_public(address),
                Reach::Private => is_of_one(carried(address)),
            }
    }

    pub(crate) async fn post(
        &self,
        url: &Url,
        reach: Reach,
        headers: HeaderMap,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, OutboundError> {
        let exchange = Box::pin(self.exchange(url, reach, headers, body));
        timeout(patience, exchange).await.map_err(|_| OutboundError::Slow(patience))?
    }

    async fn exchange(
        &self,
        url: &Url,
        reach: Reach,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, OutboundError> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(OutboundError::Address(url.clone()));
        };
        let host = host.trim_matches(['[', ']']);
        let stream = self.connect(host, port, reach).await?;
        let stream: Box<dyn Stream> =
            if url.scheme() == "https" { Box::new(self.secure(host, stream).await?) } else { Box::new(stream) };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header(header::HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
            .header(header::USER_AGENT, concat!("seiketsu-admin/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        request.headers_mut().extend(headers);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let (mut body, mut read) = (response.into_body(), BytesMut::new());
        while read.len() < MOST_ANSWER_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            if let Ok(data) = frame.into_data() {
                read.extend_from_slice(&data[..data.len().min(MOST_ANSWER_BYTES - read.len())]);
            }
        }
        // What more there is is not wanted.
        connection.abort();
        Ok(Answer { status, body: String::from_utf8_lossy(&read).into_owned() })
    }

    /// To the first of the addresses that may be reached.
    pub(crate) async fn connect(&self, host: &str, port: u16, reach: Reach) -> Result<TcpStream, OutboundError> {
        let unknown = |error| OutboundError::Name(host.to_owned(), error);
        // Off the request path; whom the name leads to is looked at below.
        #[allow(clippy::disallowed_methods)]
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.collect();
        let may = |address: &&SocketAddr| self.may_reach(address.ip(), reach);
        let mut last = OutboundError::Private(host.to_owned());
        for address in addresses.iter().filter(may) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = OutboundError::Connect(error),
            }
        }
        Err(last)
    }
}

const PRIVATE: &str = "it is an address of a private network";

fn roots(ca: Option<&PathBuf>) -> Result<rustls::RootCertStore, OutboundError> {
    let mut roots = rustls::RootCertStore::empty();
    // A system without any is no error where a file is named.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let refused = |message: String| OutboundError::Authorities { path: path.clone(), message };
        let text = fs::read(path).map_err(|error| refused(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| refused(error.to_string()))?;
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
        }
    }
    Ok(roots)
}

pub(crate) fn client_config(
    roots: Arc<rustls::RootCertStore>,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

/// Whether an address is one of the public network (IANA's registries of special-purpose addresses).
fn is_public(address: IpAddr) -> bool {
    match carried(address) {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Whether it is the address of one machine that is reached by its network: also a private one, or this machine.
fn is_of_one(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !is_link_local && !address.is_multicast() && !address.is_unspecified()
}

/// An address of IPv6 that carries one of IPv4, which packets to it come to, is that one: mapped, translated (RFC 6052,
/// RFC 8215, RFC 2765), 6to4, and what ISATAP makes of one.
fn carried(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let ([0, 0, 0, 0, 0, 0xffff, high, low]
    | [0, 0, 0, 0, 0xffff, 0, high, low]
    | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
    | [0x64, 0xff9b, 1, _, _, _, high, low]
    | [0x2002, high, low, ..]
    | [_, _, _, _, 0 | 0x200, 0x5efe, high, low]) = six.segments()
    else {
        return address;
    };
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d).into()
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Teredo and its neighbours, documentation.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        // Only this part is given out at all.
        [first, ..] => first & 0xe000 == 0x2000 && first != 0x3fff,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_addresses_of_the_public_network_are_public() {
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "100.63.0.1",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:0:0:0:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "2002:a9fe:a9fe::1",
            "2606:4700::5efe:10.0.0.1",
            "2606:4700::200:5efe:127.0.0.1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_address_is_https_and_public_unless_it_is_allowed_not_to_be() {
        let strict = Outbound::new(&OutboundSettings::default()).unwrap();
        let lax = Outbound::new(&OutboundSettings { allow_private: true, ca: None }).unwrap();
        let fault = |outbound: &Outbound, url: &str| outbound.fault(&url.parse().unwrap()).is_some();
        assert!(!fault(&strict, "https://hooks.example/x"));
        for url in [
            "http://hooks.example/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://0x7f000001/",
            "https://2130706433/",
            "ftp://a/",
            "https://u:p@a/",
        ] {
            assert!(fault(&strict, url), "{url}");
        }
        assert!(!fault(&lax, "http://127.0.0.1:1/") && fault(&lax, "ftp://127.0.0.1/"));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_reached() {
        let strict = Outbound::new(&OutboundSettings::default()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = strict.connect("localhost", port, Reach::Public).await;
        assert!(matches!(refused, Err(OutboundError::Private(_))), "{refused:?}");
        assert!(strict.connect("127.0.0.1", port, Reach::Private).await.is_ok());
    }

    /// Where it is connected to counts, however that is written.
    #[tokio::test]
    async fn no_form_of_a_private_address_is_connected_to() {
        let strict = Outbound::new(&OutboundSettings::default()).unwrap();
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "127.0.0.1",
            "127.1",
            "0.0.0.0",
            "0",
            "2130706433",
            "0x7f000001",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::1",
            "fe80::1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "10.0.0.1",
        ] {
            let refused = strict.connect(host, port, Reach::Public).await;
            // What a resolver does not take for an address leads nowhere either.
            assert!(matches!(refused, Err(OutboundError::Private(_) | OutboundError::Name(..))), "{host}: {refused:?}");
        }
        for host in
            ["169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]
        {
            let refused = strict.connect(host, port, Reach::Private).await;
            assert!(matches!(refused, Err(OutboundError::Private(_))), "{host}: {refused:?}");
        }
    }

    #[test]
    fn authorities_are_read_once_and_again_when_their_file_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let write = |text: &str, second: u64| {
            fs::write(&path, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        let pem = || {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let one = pem();
        write(&one, 1000);
        let outbound = Outbound::new(&OutboundSettings { allow_private: false, ca: Some(path.clone()) }).unwrap();
        let first = outbound.roots();
        assert!(Arc::ptr_eq(&first, &outbound.roots()), "nothing is read again that has not changed");
        write(&format!("{one}{}", pem()), 2000);
        let second = outbound.roots();
        assert_eq!(second.len(), first.len() + 1);
        write("-----BEGIN CERTIFICATE-----\nnonsense", 3000);
        assert!(Arc::ptr_eq(&second, &outbound.roots()), "what cannot be read takes nothing away");
    }
}
