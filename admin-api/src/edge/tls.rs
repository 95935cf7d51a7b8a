//! TLS 1.2 and 1.3, with the certificate that lies in the files now. A pair that cannot be used is told of in the log, and the
//! one before stays.

use std::{fmt, future::poll_fn, io, path::PathBuf, pin::pin, sync::Arc, task::Poll, time::Duration};

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
    LazyConfigAcceptor, StartHandshake,
    rustls::{
        self, RootCertStore, ServerConfig,
        server::{Acceptor, WebPkiClientVerifier},
    },
    server::TlsStream,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// To the end of a handshake that has begun, with the time that it waits for others.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes cost CPU time, which those who are connected need too: so many are worked on at once.
const HANDSHAKES: usize = 4;
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

/// Who has said what TLS it speaks (its `ClientHello`: RFC 8446, section 4.1.2). Nothing was computed for it yet.
pub(crate) struct Hello(Box<StartHandshake<TcpStream>>);

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

    /// Waits for as long as the client says nothing.
    pub(crate) async fn hello(stream: TcpStream) -> io::Result<Hello> {
        Ok(Hello(Box::new(LazyConfigAcceptor::new(Acceptor::default(), stream).await?)))
    }

    /// The connection, and the certificate that the client has shown, if any: one of our authorities, and of now.
    pub(crate) async fn accept(
        &self,
        Hello(start): Hello,
    ) -> io::Result<(TlsStream<TcpStream>, Option<NodeCertificate>)> {
        let config = Arc::clone(&self.config.borrow());
        let handshake = in_turns(&self.handshakes, async { start.into_stream(config).await });
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| NodeCertificate::of(chain.first()?));
        Ok((stream, shown))
    }
}

/// Works on it whenever it is its turn. While it waits for the other end, it takes up nobody's place.
async fn in_turns<F: Future>(places: &Semaphore, work: F) -> F::Output {
    let mut work = pin!(work);
    loop {
        // Never closed, so there is always a permit to wait for.
        let place = places.acquire().await;
        let polled = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        drop(place);
        if let Poll::Ready(done) = polled {
            return done;
        }
        woken().await;
    }
}

/// Until something that was polled before, by the same task, has become ready.
async fn woken() {
    let mut is_polled_again = false;
    poll_fn(|_| if std::mem::replace(&mut is_polled_again, true) { Poll::Ready(()) } else { Poll::Pending }).await;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_the_other_end_takes_up_no_place() {
        let places = Arc::new(Semaphore::new(1));
        let (answer, answered) = oneshot::channel::<u8>();
        let begun = Arc::new(Notify::new());
        let waiting = {
            let (places, begun) = (Arc::clone(&places), Arc::clone(&begun));
            tokio::spawn(async move {
                in_turns(&places, async {
                    begun.notify_one();
                    answered.await.unwrap()
                })
                .await
            })
        };
        begun.notified().await;
        assert_eq!(in_turns(&places, async { 1 }).await, 1);
        // What comes while others have all places is not overlooked.
        let place = places.acquire().await.unwrap();
        answer.send(2).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(place);
        assert_eq!(waiting.await.unwrap(), 2);
    }
}
