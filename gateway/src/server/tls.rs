//! Which certificate a client gets, and whose client certificates are accepted.
//!
//! The choice is made from the server name in the client's hello (SNI), in the same table of hosts that
//! requests are looked up in: a tenant's own certificates first, then the node's.

use std::{
    path::Path,
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;
use seiketsu_config::tenant::CertificateFiles;
use seiketsu_identity::certificate::ClientCertificate;

pub(crate) use crate::tenancy::tls::TlsError;
use crate::tenancy::{
    Live,
    compile::CompiledTenant,
    hosts::{HostBuffer, normalise},
    tls::{self, Certificates, Coming, Resolver, Verification},
};

/// What the node's certificate for clients that send no name, or one that nobody has, is found under.
const NO_NAME: &str = "";

/// The certificates in use. Connections that are open keep theirs when they are replaced.
#[derive(Debug)]
pub(crate) struct LiveTls {
    live: Arc<Live<CompiledTenant>>,
    certificates: Arc<CertificateFinder>,
    /// For all names whose tenant asks for no client certificate.
    open: Arc<ServerConfig>,
    coming: Arc<Coming>,
}

impl LiveTls {
    /// Without certificates of the node; [`Self::load_node`] gives it some.
    pub(crate) fn new(live: &Arc<Live<CompiledTenant>>) -> Result<Self, TlsError> {
        let certificates = Arc::new(CertificateFinder { live: Arc::downgrade(live), node: ArcSwap::default() });
        let resolver: Resolver = certificates.clone();
        Ok(Self { live: live.clone(), certificates, open: tls::open_config(&resolver)?, coming: Arc::default() })
    }

    /// Replaces the certificates of the node; none of them, if one cannot be used.
    pub(crate) fn load_node(&self, files: &[CertificateFiles]) -> Result<(), TlsError> {
        let mut node = Certificates::default();
        let before = self.certificates.node.load();
        for certificate in &tls::read_all(files, &self.coming)? {
            for (name, wildcard) in &certificate.names {
                node.show(name, *wildcard, certificate, Some(&before));
            }
            node.show(NO_NAME, false, certificate, Some(&before));
        }
        self.certificates.node.store(Arc::new(node));
        Ok(())
    }

    /// What the configurations of tenants find certificates with.
    pub(crate) fn resolver(&self) -> Resolver {
        self.certificates.clone()
    }

    /// When those of the node and of tenants become valid, or give way to others.
    pub(crate) fn coming(&self) -> &Arc<Coming> {
        &self.coming
    }

    /// The configuration for a client that asks for this name, and how it verifies clients, if it does.
    pub(crate) fn config_for(&self, server_name: Option<&str>) -> (Arc<ServerConfig>, Option<Verification>) {
        let snapshot = self.live.load();
        let tenant = server_name.and_then(|name| snapshot.find(name.as_bytes()).ok().flatten());
        match tenant.and_then(|tenant| tenant.compiled().tls.as_ref()?.verified()) {
            Some((config, verification)) => (config.clone(), Some(verification)),
            None => (self.open.clone(), None),
        }
    }

    /// The certificates in use that expire first, so many at most.
    pub(crate) fn first_to_expire(&self, most: usize) -> Vec<Expiry> {
        let (snapshot, node) = (self.live.load(), self.certificates.node.load());
        let of_tenants = snapshot.tenants().filter_map(|tenant| {
            let certificates = tenant.compiled().tls.as_ref()?.certificates();
            Some(certificates.expiries().map(|(at, host)| (at, Some(tenant.id().as_str()), host)))
        });
        let of_node = node.expiries().map(|(at, host)| (at, None, host));
        let mut all: Vec<_> = of_tenants.flatten().chain(of_node).collect();
        all.sort_unstable();
        let first = all.into_iter().take(most);
        first
            .map(|(at, tenant, host)| Expiry { at, tenant: tenant.map(str::to_owned), host: host.to_owned() })
            .collect()
    }
}

/// Until when a certificate in use is valid.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// As a Unix time.
    pub(crate) at: i64,
    /// None: the node's.
    pub(crate) tenant: Option<String>,
    /// The first that it is shown for.
    pub(crate) host: String,
}

/// Finds the certificate for a client's hello.
#[derive(Debug)]
struct CertificateFinder {
    /// Not held: the tenants in it hold this.
    live: Weak<Live<CompiledTenant>>,
    node: ArcSwap<Certificates>,
}

impl CertificateFinder {
    /// Of the tenants that have a host which is or covers this name, that with the closest one among those
    /// that bring certificates.
    fn of_tenant(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let live = self.live.upgrade()?;
        let snapshot = live.load();
        let mut buffer = HostBuffer::default();
        let name = normalise(name.as_bytes(), &mut buffer).ok()?;
        snapshot.matches(name).find_map(|tenant| tenant.compiled().tls.as_ref()?.key(name)).cloned()
    }
}

impl ResolvesServerCert for CertificateFinder {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        name.and_then(|name| self.of_tenant(name)).or_else(|| {
            let node = self.node.load();
            name.and_then(|name| node.key(name)).or_else(|| node.key(NO_NAME)).cloned()
        })
    }
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
