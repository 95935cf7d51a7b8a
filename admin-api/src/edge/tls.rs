//! TLS 1.2 and 1.3, with the certificate that lies in the files now. A pair that cannot be used is told of in the log, and the
//! one before stays.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretSlice};
use seiketsu_config::values::Id;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, RootCertStore, ServerConfig, server::WebPkiClientVerifier},
    server::TlsStream,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// To the end of a handshake, with the time that it waits for others.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes cost CPU time, which those who are connected need too: so many are under way at once.
const HANDSHAKES: usize = 64;
/// How often it is looked whether the files have changed.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {path}: {source}; see that it exists and this user may read it")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds no {what} in PEM form")]
    Pem { path: PathBuf, what: &'static str },
    #[error("the certificate in {certificate} and the key in {key} cannot be used together: {source}")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("the authorities in {path} cannot be used: {why}")]
    Authorities { path: PathBuf, why: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// Where everything is read from.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// What was in the files.
struct Contents {
    certificate: Vec<u8>,
    key: SecretSlice<u8>,
    client_ca: Option<Vec<u8>>,
}

/// Takes TLS connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tls {
    config: watch::Receiver<Arc<ServerConfig>>,
    handshakes: Arc<Semaphore>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// With what is in the files now, and from then on with what comes there.
    pub(crate) async fn start(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = files.read().await?;
        let (sender, config) = watch::channel(Arc::new(files.config(&contents)?));
        tokio::spawn(follow(files, contents.digest(), sender));
        Ok(Self { config, handshakes: Arc::new(Semaphore::new(HANDSHAKES)) })
    }

    /// The connection, and the certificate that the client has shown, if any: one of our authorities, and of now.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<NodeCertificate>)> {
        let handshake = async {
            // Never closed, so there is always a permit to wait for.
            let _permit = self.handshakes.acquire().await;
            let acceptor = TlsAcceptor::from(Arc::clone(&self.config.borrow()));
            acceptor.accept(stream).await
        };
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| NodeCertificate::of(chain.first()?));
        Ok((stream, shown))
    }
}

async fn follow(files: TlsFiles, mut known: [u8; 32], sender: watch::Sender<Arc<ServerConfig>>) {
    let mut told = None;
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = sender.closed() => return,
        }
        let read = files.read().await.and_then(|contents| {
            let digest = contents.digest();
            Ok(if digest == known { None } else { Some((files.config(&contents)?, digest)) })
        });
        match read {
            Ok(Some((config, digest))) => {
                known = digest;
                told = None;
                sender.send_replace(Arc::new(config));
                tracing::info!(certificate = %files.certificate.display(), "the certificate was replaced");
            }
            Ok(None) => told = None,
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::warn!(error, "the certificate is not replaced: the one before stays");
                    told = Some(error);
                }
            }
        }
    }
}

impl TlsFiles {
    async fn read(&self) -> Result<Contents, TlsError> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|source| TlsError::Read { path: path.clone(), source })
        };
        Ok(Contents {
            certificate: read(&self.certificate).await?,
            key: read(&self.key).await?.into(),
            client_ca: match &self.client_ca {
                Some(path) => Some(read(path).await?),
                None => None,
            },
        })
    }

    fn config(&self, contents: &Contents) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates(&contents.certificate)
            .ok_or_else(|| TlsError::Pem { path: self.certificate.clone(), what: "certificate" })?;
        let key = PrivateKeyDer::from_pem_slice(contents.key.expose_secret())
            .map_err(|_| TlsError::Pem { path: self.key.clone(), what: "private key" })?;
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(text)) => {
                let refused = |why: String| TlsError::Authorities { path: path.clone(), why };
                let pem = || TlsError::Pem { path: path.clone(), what: "certificate" };
                let mut roots = RootCertStore::empty();
                for authority in certificates(text).ok_or_else(pem)? {
                    roots.add(authority).map_err(|error| refused(error.to_string()))?;
                }
                // Operators show tokens, and nodes may: who has to show one is asked when it is known who it is.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| refused(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let pair = |source| TlsError::Pair { certificate: self.certificate.clone(), key: self.key.clone(), source };
        let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().ok()?;
    (!list.is_empty()).then_some(list)
}

impl Contents {
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let parts = [&*self.certificate, self.key.expose_secret(), self.client_ca.as_deref().unwrap_or_default()];
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

/// What a client has shown in the handshake: whose it is, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeCertificate {
    names: Arc<[String]>,
    until: OffsetDateTime,
}

impl NodeCertificate {
    /// The DNS names, or else the common names.
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let until = OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()?;
        let alternatives = certificate.subject_alternative_name().ok()?;
        let names: Vec<String> = match alternatives {
            Some(alternatives) => {
                let dns = alternatives.value.general_names.iter().filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                });
                dns.collect()
            }
            None => certificate
                .subject()
                .iter_common_name()
                .filter_map(|name| Some(name.as_str().ok()?.to_owned()))
                .collect(),
        };
        Some(Self { names: names.into(), until })
    }

    pub(crate) fn is_for(&self, node: &Id) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(node.as_str()))
    }

    /// Connections may outlive the certificate that they were made with.
    pub(crate) fn holds(&self) -> bool {
        OffsetDateTime::now_utc() < self.until
    }
}
