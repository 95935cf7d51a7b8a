//! Which certificate a client gets, and whose client certificates are accepted.
//!
//! The choice is made from the server name in the client's hello (SNI): a tenant's own certificates
//! first, then the node's. Tenants that ask for client certificates get a configuration of their own,
//! so that a session resumed there was verified against that tenant's authorities.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use seiketsu_config::{
    tenant::{CertificateFiles, Tenant},
    values::{HostPattern, Id},
};
use seiketsu_identity::certificate::ClientCertificate;
use sha2::{Digest, Sha256};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// Why certificates could not be put to use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} from {path}: {reason}; give a PEM file that the gateway may read")]
    Read { what: &'static str, path: PathBuf, reason: String },
    #[error(
        "the key {key} does not belong to the certificate {certificate}, or is of a kind that cannot sign: {reason}"
    )]
    KeyMismatch { certificate: PathBuf, key: PathBuf, reason: rustls::Error },
    #[error("the authorities in {path} cannot be used to verify clients: {reason}")]
    ClientCa { path: PathBuf, reason: String },
    #[error("cannot make a development certificate: {0}")]
    Development(String),
    #[error("this build offers no TLS: {0}")]
    Provider(rustls::Error),
}

/// The certificates in use. Replaced as a whole; connections that are open keep theirs.
#[derive(Debug)]
pub(crate) struct LiveTls {
    current: ArcSwap<Store>,
}

impl LiveTls {
    pub(crate) fn new(store: Store) -> Self {
        Self { current: ArcSwap::from_pointee(store) }
    }

    pub(crate) fn current(&self) -> Arc<Store> {
        self.current.load_full()
    }

    pub(crate) fn replace(&self, store: Store) {
        self.current.store(Arc::new(store));
    }

    /// The configuration for a client that asks for this name.
    pub(crate) fn config_for(&self, server_name: Option<&str>) -> Arc<ServerConfig> {
        let store = self.current.load();
        let verified = server_name.and_then(|name| store.verified.find(name));
        verified.unwrap_or(&store.open).clone()
    }
}

/// Names, exact and with a wildcard, and what belongs to them.
#[derive(Debug)]
struct Names<T> {
    exact: HashMap<Box<str>, T, RandomState>,
    /// By the part behind `*.`.
    wildcard: HashMap<Box<str>, T, RandomState>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), wildcard: HashMap::default() }
    }
}

impl<T> Names<T> {
    fn insert(&mut self, name: &str, wildcard: bool, value: T) {
        let names = if wildcard { &mut self.wildcard } else { &mut self.exact };
        names.entry(name.to_ascii_lowercase().into()).or_insert(value);
    }

    fn find(&self, name: &str) -> Option<&T> {
        let lower;
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        if let Some(found) = self.exact.get(name) {
            return Some(found);
        }
        // The longest suffix wins: `*.eu.example.com` before `*.example.com`.
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(found) = self.wildcard.get(suffix) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

/// Everything TLS for one revision of configuration.
#[derive(Debug)]
pub(crate) struct Store {
    /// For all names whose tenant asks for no client certificate.
    open: Arc<ServerConfig>,
    /// For those whose tenant does, and for the others that would be found under a wildcard of these.
    verified: Names<Arc<ServerConfig>>,
    tickets: Tickets,
}

/// The keys of session tickets, by what a session that they resume was verified against. They outlive a
/// revision in which that has not changed, or every change of any tenant would cost all clients a handshake.
type Tickets = HashMap<TicketKey, Arc<dyn ProducesTickets>, RandomState>;

/// `None` where clients are not verified; else the tenant, and a digest of its authorities.
type TicketKey = Option<(Id, [u8; 32])>;

impl Store {
    /// Reads every certificate that is named, and refuses the lot if one cannot be used. `before` is what
    /// this takes the place of.
    pub(crate) fn load<'a>(
        before: Option<&Self>,
        node: &[CertificateFiles],
        tenants: impl Iterator<Item = &'a Tenant>,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let mut resolver = Resolver::default();
        for files in node {
            let (key, names) = certified_key(files, &provider)?;
            let key = Arc::new(key);
            for (name, wildcard) in names {
                resolver.node.insert(&name, wildcard, key.clone());
            }
            resolver.fallback.get_or_insert(key);
        }
        let (mut asking, mut not_asking) = (Vec::new(), Vec::new());
        for tenant in tenants {
            let tls = tenant.tls.as_ref();
            if tls.is_none_or(|tls| tls.client_ca.is_none()) {
                not_asking.push(tenant);
            }
            let Some(tls) = tls else { continue };
            let mut keys = Vec::new();
            for files in &tls.certificates {
                let (key, names) = certified_key(files, &provider)?;
                keys.push((Arc::new(key), names));
            }
            for host in &tenant.hosts {
                let fits = keys.iter().find(|(_, names)| names.iter().any(|name| covers(name, host)));
                // A certificate that names other hosts is still better than another tenant's.
                if let Some((key, _)) = fits.or(keys.first()) {
                    resolver.tenants.insert(host.name(), host.is_wildcard(), key.clone());
                }
            }
            if let Some(ca) = &tls.client_ca {
                asking.push((tenant, ca.as_path(), tls.require_client_certificate));
            }
        }
        let resolver = Arc::new(resolver);
        let mut tickets = Tickets::default();
        let mut ticketer = |key: TicketKey| -> Result<Arc<dyn ProducesTickets>, TlsError> {
            let kept = before.and_then(|before| before.tickets.get(&key)).cloned();
            let ticketer =
                kept.map_or_else(rustls::crypto::aws_lc_rs::Ticketer::new, Ok).map_err(TlsError::Provider)?;
            tickets.insert(key, ticketer.clone());
            Ok(ticketer)
        };
        let open = Arc::new(config(&provider, &resolver, None, ticketer(None)?)?);
        let mut verified = Names::default();
        for (tenant, ca, required) in asking {
            let authorities = read_certificates(ca)?;
            let mut digest = Sha256::new();
            digest.update([u8::from(required)]);
            for authority in &authorities {
                digest.update(authority);
            }
            let ticketer = ticketer(Some((tenant.id.clone(), digest.finalize().into())))?;
            let clients = Clients { ca, authorities, required };
            let config = Arc::new(config(&provider, &resolver, Some(clients), ticketer)?);
            for host in &tenant.hosts {
                verified.insert(host.name(), host.is_wildcard(), config.clone());
            }
        }
        // A wildcard of a tenant that asks also covers hosts that other tenants have below it.
        for host in not_asking.into_iter().flat_map(|tenant| &tenant.hosts) {
            let covered = if host.is_wildcard() { format!("*.{}", host.name()) } else { host.name().to_owned() };
            if verified.find(&covered).is_some() {
                verified.insert(host.name(), host.is_wildcard(), open.clone());
            }
        }
        Ok(Self { open, verified, tickets })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whose client certificates are accepted.
struct Clients<'a> {
    ca: &'a Path,
    authorities: Vec<CertificateDer<'static>>,
    required: bool,
}

fn config(
    provider: &Arc<CryptoProvider>,
    resolver: &Arc<Resolver>,
    clients: Option<Clients<'_>>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Provider)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(Clients { ca, authorities, required }) => {
            let refused = |reason: String| TlsError::ClientCa { path: ca.to_owned(), reason };
            let mut roots = RootCertStore::empty();
            for certificate in authorities {
                roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(error.to_string()))?)
        }
    };
    let mut config = builder.with_cert_resolver(resolver.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Resumption without a store: tickets under a key of this configuration, rotated by rustls.
    config.ticketer = ticketer;
    // One ticket instead of two: a client resumes with the latest, and each costs CPU and a packet.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Finds the certificate for a client's hello.
#[derive(Debug, Default)]
struct Resolver {
    tenants: Names<Arc<CertifiedKey>>,
    node: Names<Arc<CertifiedKey>>,
    /// For clients that send no name, or one that nobody has.
    fallback: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.tenants.find(name).or_else(|| self.node.find(name)));
        named.or(self.fallback.as_ref()).cloned()
    }
}

fn covers((name, wildcard): &(String, bool), host: &HostPattern) -> bool {
    match (*wildcard, host.is_wildcard()) {
        (false, false) | (true, true) => name == host.name(),
        // A wildcard certificate stands for exactly one label (RFC 9525 §6.3).
        (true, false) => host.name().split_once('.').is_some_and(|(_, rest)| rest == name),
        (false, true) => false,
    }
}

/// A chain with its key, and the DNS names of its first certificate (behind `*.` where they are wildcards).
fn certified_key(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, Vec<(String, bool)>), TlsError> {
    let chain = read_certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::Read {
        what: "a private key",
        path: files.key.clone(),
        reason: error.to_string(),
    })?;
    let names = chain.first().map(|first| dns_names(first)).unwrap_or_default();
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|reason| TlsError::KeyMismatch {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        reason,
    })?;
    Ok((key, names))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |reason: String| TlsError::Read { what: "certificates", path: path.to_owned(), reason };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| refused(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refused("it holds none".to_owned()));
    }
    Ok(certificates)
}

fn dns_names(certificate: &CertificateDer<'_>) -> Vec<(String, bool)> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names
        .map(|name| match name.strip_prefix("*.") {
            Some(rest) => (rest.to_owned(), true),
            None => (name, false),
        })
        .collect()
}

/// What a verified client certificate says of its owner.
pub(super) fn client_certificate(der: &CertificateDer<'_>) -> Option<ClientCertificate> {
    ClientCertificate::from_der(der).ok()
}

/// The certificate for `localhost` and `*.localhost` that trials use; made once, kept in `folder`.
pub(crate) fn development_certificate(folder: &Path) -> Result<CertificateFiles, TlsError> {
    let files = CertificateFiles { certificate: folder.join("development.crt"), key: folder.join("development.key") };
    if files.certificate.exists() && files.key.exists() {
        return Ok(files);
    }
    let failed = |error: &dyn std::fmt::Display| TlsError::Development(error.to_string());
    let names = ["localhost", "*.localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
    std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    crate::files::write_secret(&files.key, made.signing_key.serialize_pem().as_bytes())
        .map_err(|error| failed(&error))?;
    std::fs::write(&files.certificate, made.cert.pem()).map_err(|error| failed(&error))?;
    Ok(files)
}
