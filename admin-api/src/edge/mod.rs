//! What lies between the network and the API: TLS, and who the client is.

mod client;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

pub(crate) use self::{
    client::client,
    tls::{Hello, NodeCertificate, Tls, TlsFiles},
};

#[derive(Debug, Clone, Args)]
pub struct EdgeSettings {
    /// PEM file with the certificate that is shown, and those that lead to its authority. Read again when it changes.
    #[arg(long, env = "SEIKETSU_ADMIN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's key. Read again when it changes.
    #[arg(long, env = "SEIKETSU_ADMIN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// PEM file of the authorities of nodes' certificates. Such a certificate, with the node's id as its DNS name, or as its
    /// common name if it has none, lets the node in without a token.
    #[arg(long, env = "SEIKETSU_ADMIN_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,

    /// Whether nodes have to show such a certificate.
    #[arg(long, env = "SEIKETSU_ADMIN_NODE_CERTIFICATES", default_value = "optional", value_name = "WHETHER")]
    pub node_certificates: NodeCertificates,

    /// Listen to other machines without TLS: whoever sits between reads tokens. For listeners behind a proxy that does TLS.
    #[arg(long, env = "SEIKETSU_ADMIN_INSECURE_HTTP")]
    pub insecure_http: bool,

    /// Networks of proxies in front: of these, `X-Forwarded-For` and `Forwarded` are believed.
    #[arg(long, env = "SEIKETSU_ADMIN_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',')]
    #[arg(value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeCertificates {
    /// A certificate or a token.
    Optional,
    /// A certificate; a token alone is not enough.
    Required,
}

/// What every connection is met with.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(crate) tls: Option<Tls>,
    pub(crate) trusted_proxies: Arc<[IpNet]>,
}

impl Edge {
    /// Whether the address is that of a proxy in front.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}

impl EdgeSettings {
    /// Reads the files, and follows their changes from then on.
    pub(crate) async fn start(&self, listen: SocketAddr) -> Result<Edge> {
        let trusted_proxies = self.trusted_proxies.as_slice().into();
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let files =
                TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: self.client_ca.clone() };
            return Ok(Edge { tls: Some(Tls::start(files).await?), trusted_proxies });
        }
        if !listen.ip().is_loopback() && !self.insecure_http {
            bail!(
                "without TLS, tokens could be read on the way to {listen}: give --tls-cert and --tls-key, listen on \
                 127.0.0.1, or say --insecure-http where a proxy does TLS"
            );
        }
        Ok(Edge { tls: None, trusted_proxies })
    }

    /// Whether a token alone lets no node in.
    pub(crate) fn requires_node_certificates(&self) -> Result<bool> {
        let required = self.node_certificates == NodeCertificates::Required;
        if required && self.client_ca.is_none() {
            bail!("--node-certificates required: say with --client-ca which authorities they come from");
        }
        Ok(required)
    }
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    let told = || format!("{text:?} is no network: write one like 10.0.0.0/8 or 2001:db8::/32");
    text.parse().ok().or_else(single).ok_or_else(told)
}
