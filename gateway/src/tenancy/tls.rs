//! What a tenant brings for TLS: certificates for its hosts, and whose client certificates it accepts.
//!
//! Tenants that ask for client certificates get a configuration of their own, so that a session resumed
//! there was verified against that tenant's authorities.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use seiketsu_config::{
    regular,
    tenant::{CertificateFiles, Tenant},
    values::HostPattern,
};
use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::{Validity, X509Certificate},
    extensions::GeneralName,
    prelude::FromDer,
    time::ASN1Time,
};

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

/// Finds the certificate for a client's hello.
pub(crate) type Resolver = Arc<dyn ResolvesServerCert>;

/// The TLS of one tenant.
#[derive(Debug)]
pub(crate) struct TenantTls {
    /// By the tenant's hosts.
    certificates: Certificates,
    verified: Option<Verified>,
}

/// How clients of a tenant are verified.
#[derive(Debug)]
struct Verified {
    verification: Verification,
    config: Arc<ServerConfig>,
}

/// Tells ways to verify clients apart: a digest of the tenant, its authorities, and whether it insists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verification([u8; 32]);

impl Verification {
    fn of(tenant: &Tenant, authorities: &[CertificateDer<'_>], required: bool) -> Self {
        let mut digest = Sha256::new();
        digest.update(tenant.id.as_str());
        digest.update([u8::from(required)]);
        for authority in authorities {
            digest.update(authority);
        }
        Self(digest.finalize().into())
    }
}

impl TenantTls {
    /// Reads the tenant's certificates. `before` is the TLS that this takes the place of.
    pub(crate) fn compile(
        tenant: &Tenant,
        before: Option<&Self>,
        resolver: &Resolver,
        coming: &Coming,
    ) -> Result<Option<Self>, TlsError> {
        let Some(tls) = &tenant.tls else { return Ok(None) };
        let listed = read_all(&tls.certificates, coming)?;
        for certificate in listed.iter().filter(|it| !tenant.hosts.iter().any(|host| it.serves(host))) {
            let (path, tenant) = (certificate.path.display(), tenant.id.as_str());
            tracing::warn!(%path, tenant, "a certificate covers none of the tenant's hosts, and clients refuse it; give one that names them");
        }
        let mut certificates = Certificates::default();
        for host in &tenant.hosts {
            let fits = listed.iter().find(|it| it.names.iter().any(|name| covers(name, host)));
            // A certificate that names other hosts is still better than another tenant's.
            if let Some(certificate) = fits.or(listed.first()) {
                let before = before.map(|before| &before.certificates);
                certificates.show(host.name(), host.is_wildcard(), certificate, before);
            }
        }
        let required = tls.require_client_certificate;
        let verified = tls.client_ca.as_deref().map(|ca| {
            let authorities = read_certificates(ca)?;
            let verification = Verification::of(tenant, &authorities, required);
            let before = before.and_then(|before| before.verified.as_ref());
            let config = match before.filter(|before| before.verification == verification) {
                // With its ticket keys, or every change of the tenant would cost all its clients a handshake.
                Some(before) => before.config.clone(),
                None => config(resolver, Some(Clients { ca, authorities, required }))?,
            };
            Ok(Verified { verification, config })
        });
        Ok(Some(Self { certificates, verified: verified.transpose()? }))
    }

    /// The certificate for this name, if one of the tenant's hosts is or covers it.
    pub(crate) fn key(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.certificates.key(name)
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// For tenants that ask for client certificates: the configuration of its own that such a tenant has.
    pub(crate) fn verified(&self) -> Option<(&Arc<ServerConfig>, Verification)> {
        self.verified.as_ref().map(|verified| (&verified.config, verified.verification))
    }
}

/// The configuration for all who need not show a certificate.
pub(crate) fn open_config(resolver: &Resolver) -> Result<Arc<ServerConfig>, TlsError> {
    config(resolver, None)
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

    /// What belongs to exactly this.
    fn exactly(&self, name: &str, wildcard: bool) -> Option<&T> {
        if wildcard { self.wildcard.get(name) } else { self.exact.get(name) }
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

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whose client certificates are accepted.
struct Clients<'a> {
    ca: &'a Path,
    authorities: Vec<CertificateDer<'static>>,
    required: bool,
}

/// A configuration with ticket keys of its own.
fn config(resolver: &Resolver, clients: Option<Clients<'_>>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
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
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(error.to_string()))?)
        }
    };
    let mut config = builder.with_cert_resolver(resolver.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Resumption without a store: tickets under a key of this configuration, rotated by rustls.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Provider)?;
    // One ticket instead of two: a client resumes with the latest, and each costs CPU and a packet.
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

fn covers((name, wildcard): &(String, bool), host: &HostPattern) -> bool {
    match (*wildcard, host.is_wildcard()) {
        (false, false) | (true, true) => name == host.name(),
        // A wildcard certificate stands for exactly one label (RFC 9525 §6.3).
        (true, false) => host.name().split_once('.').is_some_and(|(_, rest)| rest == name),
        (false, true) => false,
    }
}

/// The certificates of a tenant, or those of the node.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    by_name: Names<Arc<Certificate>>,
    /// Those that are shown, each with the first name that it is shown for.
    shown: Vec<(String, Arc<Certificate>)>,
}

impl Certificates {
    /// Shows this certificate for this name, unless another one already is. `before` are those that these take the
    /// place of.
    ///
    /// One that is not valid now does not take the place of one that is: it is no renewal, but a mistake, or comes too
    /// early. Where there is no such other it is shown, for a client that looks away is served better than one that
    /// finds nobody.
    pub(crate) fn show(&mut self, name: &str, wildcard: bool, certificate: &Arc<Certificate>, before: Option<&Self>) {
        if self.by_name.exactly(name, wildcard).is_some() {
            return;
        }
        let in_use = before.and_then(|before| before.by_name.exactly(name, wildcard));
        let certificate = match in_use {
            Some(in_use) if in_use.is_valid() && !certificate.is_valid() => in_use,
            _ => certificate,
        };
        self.by_name.insert(name, wildcard, certificate.clone());
        if !self.shown.iter().any(|(_, shown)| Arc::ptr_eq(shown, certificate)) {
            let name = if wildcard { format!("*.{name}") } else { name.to_owned() };
            self.shown.push((name, certificate.clone()));
        }
    }

    pub(crate) fn key(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.by_name.find(name).map(|certificate| &certificate.key)
    }

    /// Until when those that are shown are valid, as Unix times, each with the first name that it is shown for.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = (i64, &str)> {
        let shown = self.shown.iter();
        shown.filter_map(|(name, certificate)| {
            Some((certificate.validity.as_ref()?.not_after.timestamp(), name.as_str()))
        })
    }
}

/// A chain with its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    key: Arc<CertifiedKey>,
    /// The DNS names of the first certificate, and whether they are wildcards; of these the part behind `*.`.
    pub(crate) names: Vec<(String, bool)>,
    validity: Option<Validity>,
    path: PathBuf,
}

/// Whether clients take a certificate now.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// Until then, as far as that is known.
    Valid(Option<ASN1Time>),
    /// Not before then.
    Coming(ASN1Time),
    /// Since then.
    Expired(ASN1Time),
}

/// When certificates become valid, or give way to others since they no longer are: what depends on them is looked at
/// again then.
#[derive(Debug, Default)]
pub(crate) struct Coming(Mutex<HashMap<PathBuf, ASN1Time>>);

impl Coming {
    fn add(&self, path: &Path, at: ASN1Time) {
        self.0.lock().insert(path.to_owned(), at);
    }

    /// Takes out those whose time has come.
    pub(crate) fn take_due(&self) -> HashSet<PathBuf> {
        let now = ASN1Time::now();
        self.0.lock().extract_if(|_, at| *at < now).map(|(path, _)| path).collect()
    }
}

impl Certificate {
    fn standing(&self) -> Standing {
        let now = ASN1Time::now();
        match self.validity {
            Some(Validity { not_before, .. }) if now < not_before => Standing::Coming(not_before),
            Some(Validity { not_after, .. }) if now > not_after => Standing::Expired(not_after),
            Some(Validity { not_after, .. }) => Standing::Valid(Some(not_after)),
            None => Standing::Valid(None),
        }
    }

    fn is_valid(&self) -> bool {
        matches!(self.standing(), Standing::Valid(_))
    }

    /// Whether it is good for this host, or for some of the names that a wildcard host stands for.
    fn serves(&self, host: &HostPattern) -> bool {
        let is_below = |name: &str| name.strip_suffix(host.name()).is_some_and(|rest| rest.ends_with('.'));
        self.names.iter().any(|name| covers(name, host) || host.is_wildcard() && is_below(&name.0))
    }
}

/// Reads certificates. Those that are not valid now come last, so that they are shown only where no other fits.
pub(crate) fn read_all(files: &[CertificateFiles], coming: &Coming) -> Result<Vec<Arc<Certificate>>, TlsError> {
    let mut all = files.iter().map(|files| read(files).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    for certificate in &all {
        let path = certificate.path.display();
        match certificate.standing() {
            Standing::Valid(until) => {
                // Another one may be shown then.
                if let Some(until) = until.filter(|_| all.len() > 1) {
                    coming.add(&certificate.path, until);
                }
            }
            Standing::Coming(from) => {
                coming.add(&certificate.path, from);
                tracing::warn!(%path, %from, "a certificate is not valid yet, and is shown only where no valid one is in use; if that is too late, set the clock or renew it");
            }
            Standing::Expired(on) => {
                tracing::warn!(%path, %on, "a certificate has expired, and is shown only where no valid one is in use; renew it");
            }
        }
    }
    all.sort_by_key(|certificate| !certificate.is_valid());
    Ok(all)
}

fn read(files: &CertificateFiles) -> Result<Certificate, TlsError> {
    let chain = read_certificates(&files.certificate)?;
    let key = regular::open(&files.key).map_err(pem::Error::Io).and_then(PrivateKeyDer::from_pem_reader);
    let key = key.map_err(|error| TlsError::Read {
        what: "a private key",
        path: files.key.clone(),
        reason: error.to_string(),
    })?;
    let (names, validity) = match chain.first().map(|first| X509Certificate::from_der(first)) {
        Some(Ok((_, first))) => (dns_names(&first), Some(first.validity().clone())),
        _ => (Vec::new(), None),
    };
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|reason| TlsError::KeyMismatch {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        reason,
    })?;
    Ok(Certificate { key: Arc::new(key), names, validity, path: files.certificate.clone() })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |reason: String| TlsError::Read { what: "certificates", path: path.to_owned(), reason };
    let certificates = regular::open(path).map_err(pem::Error::Io);
    let certificates =
        certificates.and_then(|file| CertificateDer::pem_reader_iter(file).collect::<Result<Vec<_>, _>>());
    let certificates = certificates.map_err(|error| refused(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refused("it holds none".to_owned()));
    }
    Ok(certificates)
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<(String, bool)> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
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
