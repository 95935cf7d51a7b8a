//! TLS towards upstreams: what `tls:` of an upstream says, read from its files once per configuration.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use pingora_core::{
    protocols::tls::CaType,
    utils::tls::{CertKey, WrappedX509, parse_x509},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject},
};
use seiketsu_config::{regular, tenant::UpstreamTls};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why the TLS material of an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} from {path}: {source}; give a readable PEM file")]
    Pem { what: &'static str, path: PathBuf, source: pem::Error },
    #[error("{path} holds no {what}; give a PEM file with at least one")]
    Empty { what: &'static str, path: PathBuf },
    #[error("{path} holds a certificate that cannot be parsed; replace it")]
    Certificate { path: PathBuf },
    #[error("{path} does not hold the key of its certificate, or one of a kind that is not supported: {source}")]
    Key { path: PathBuf, source: rustls::Error },
    #[error("{name:?} is no name that a certificate can be checked for; set tls.server_name")]
    ServerName { name: String },
}

/// The authorities of the operating system, read when first needed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SystemRoots {
    store: Arc<OnceLock<Arc<RootCertStore>>>,
}

impl SystemRoots {
    fn get(&self) -> Arc<RootCertStore> {
        Arc::clone(self.store.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "some of the system's certificate authorities could not be read");
            }
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(found.certs);
            Arc::new(store)
        }))
    }
}

/// The TLS of one upstream, in the forms that Pingora and our own client need.
#[derive(Debug)]
pub struct TlsMaterial {
    /// Name for SNI and verification in place of the endpoint's host.
    pub server_name: Option<String>,
    pub verify: bool,
    pub ca: Option<Arc<CaType>>,
    pub client: Option<Arc<CertKey>>,
    /// For probes and mirrored requests; offers HTTP/2 or HTTP/1.1 as asked for in [`Self::load`].
    pub client_config: Arc<ClientConfig>,
    /// SHA-256 over all that decides whom the gateway trusts and as whom it appears: file contents, not
    /// their names. Connections are shared only where this is equal.
    pub digest: [u8; 32],
}

impl TlsMaterial {
    /// Reads the files. Blocks: call it off the request path.
    pub fn load(tls: &UpstreamTls, alpn: &[&[u8]], roots: &SystemRoots) -> Result<Self, TlsError> {
        if let Some(name) = &tls.server_name {
            server_name(name)?;
        }
        let ca = tls.ca.as_deref().map(|path| certificates(path, "certificate authority")).transpose()?;
        let client = match &tls.client_certificate {
            None => None,
            Some(files) => {
                let chain = certificates(&files.certificate, "certificate")?;
                let pem = |source| TlsError::Pem { what: "a private key", path: files.key.clone(), source };
                let file = regular::open(&files.key).map_err(|error| pem(pem::Error::Io(error)))?;
                let key = PrivateKeyDer::from_pem_reader(file).map_err(pem)?;
                Some((chain, key))
            }
        };

        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        part(tls.server_name.as_deref().unwrap_or_default().as_bytes());
        part(&[u8::from(tls.insecure_skip_verify)]);
        part(b"ca");
        ca.iter().flatten().for_each(|certificate| part(certificate));
        part(b"client");
        if let Some((chain, key)) = &client {
            for certificate in chain {
                part(certificate);
            }
            part(key.secret_der());
        }

        let config = client_config(
            trusted(ca.as_deref(), tls, roots)?,
            client.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key())),
            tls.insecure_skip_verify,
            alpn,
        )
        .map_err(|source| TlsError::Key {
            path: tls.client_certificate.as_ref().map(|files| files.key.clone()).unwrap_or_default(),
            source,
        })?;

        Ok(Self {
            server_name: tls.server_name.clone(),
            verify: !tls.insecure_skip_verify,
            ca: ca.map(|list| list.iter().map(|c| WrappedX509::new(c.to_vec(), parse_x509)).collect::<Vec<_>>().into()),
            client: client.map(|(chain, key)| {
                let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
            }),
            client_config: Arc::new(config),
            digest: digest.finalize().into(),
        })
    }
}

/// A client configuration that trusts the system's authorities, or those of a PEM file.
pub fn trusting_client_config(
    ca: Option<&Path>,
    alpn: &[&[u8]],
    roots: &SystemRoots,
) -> Result<ClientConfig, TlsError> {
    let tls = UpstreamTls { ca: ca.map(Path::to_path_buf), ..UpstreamTls::default() };
    let ca = ca.map(|path| certificates(path, "certificate authority")).transpose()?;
    client_config(trusted(ca.as_deref(), &tls, roots)?, None, false, alpn)
        .map_err(|source| TlsError::Key { path: PathBuf::new(), source })
}

/// A DNS name or IP address (without brackets) as a certificate is checked for it.
pub fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName { name: name.to_owned() })
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { what, path: path.to_owned(), source };
    let file = regular::open(path).map_err(|error| pem(pem::Error::Io(error)))?;
    let list: Vec<_> = CertificateDer::pem_reader_iter(file).collect::<Result<_, _>>().map_err(pem)?;
    if list.is_empty() {
        return Err(TlsError::Empty { what, path: path.to_owned() });
    }
    // Pingora parses them again later and would panic on a bad one.
    if list.iter().all(|certificate| X509Certificate::from_der(certificate).is_ok()) {
        Ok(list)
    } else {
        Err(TlsError::Certificate { path: path.to_owned() })
    }
}

fn trusted(
    ca: Option<&[CertificateDer<'static>]>,
    tls: &UpstreamTls,
    roots: &SystemRoots,
) -> Result<Arc<RootCertStore>, TlsError> {
    let Some(ca) = ca else { return Ok(roots.get()) };
    let mut store = RootCertStore::empty();
    for certificate in ca {
        store
            .add(certificate.clone())
            .map_err(|_| TlsError::Certificate { path: tls.ca.clone().unwrap_or_default() })?;
    }
    Ok(Arc::new(store))
}

fn client_config(
    roots: Arc<RootCertStore>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    accept_any: bool,
    alpn: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if accept_any {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny { provider }))
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = match client {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// What `insecure_skip_verify` asks for: any certificate will do, its signatures must still be right.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::tenant::CertificateFiles;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn load(tls: &UpstreamTls) -> Result<TlsMaterial, TlsError> {
        TlsMaterial::load(tls, &[b"http/1.1"], &SystemRoots::default())
    }

    #[test]
    fn the_digest_follows_the_content_of_the_files_not_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let pem = |host: &str| rcgen::generate_simple_self_signed([host.to_owned()]).unwrap().cert.pem();
        let (one, two) = (pem("one"), pem("two"));
        let a = write(folder.path(), "a.pem", &one);
        let b = write(folder.path(), "b.pem", &one);
        let digest =
            |ca: &Path| load(&UpstreamTls { ca: Some(ca.to_owned()), ..UpstreamTls::default() }).unwrap().digest;
        assert_eq!(digest(&a), digest(&b));
        let before = digest(&a);
        write(folder.path(), "a.pem", &two);
        assert_ne!(before, digest(&a));
    }

    #[test]
    fn every_setting_changes_the_digest() {
        let plain = UpstreamTls::default();
        let named = UpstreamTls { server_name: Some("x.example".to_owned()), ..plain.clone() };
        let lax = UpstreamTls { insecure_skip_verify: true, ..plain.clone() };
        let digests = [plain, named, lax].map(|tls| load(&tls).unwrap().digest);
        assert_ne!(digests[0], digests[1]);
        assert_ne!(digests[0], digests[2]);
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let empty = write(folder.path(), "empty.pem", "");
        let junk = write(folder.path(), "junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        for path in [empty, junk, folder.path().join("missing.pem")] {
            let error = load(&UpstreamTls { ca: Some(path.clone()), ..UpstreamTls::default() }).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_client_certificate_with_a_foreign_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["two".to_owned()]).unwrap();
        let files = CertificateFiles {
            certificate: write(folder.path(), "one.pem", &one.cert.pem()),
            key: write(folder.path(), "two.key", &two.signing_key.serialize_pem()),
        };
        let tls = UpstreamTls { client_certificate: Some(files), ..UpstreamTls::default() };
        assert!(matches!(load(&tls).unwrap_err(), TlsError::Key { .. }));
    }
}
