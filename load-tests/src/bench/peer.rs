//! The gateways that are compared: how each is configured and started.
//!
//! Each serves three ports (seiketsu-gateway two, it tells tenants apart by host): plain HTTP, HTTP with
//! policies, TLS. Their configurations stand in `load-tests/peers/`.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

use super::{GATEWAY_CORE, scenario::Scenario};
use crate::{
    limits::redis::Redis,
    load::gateway::{fill, json_path},
    process::{self, Server, accepts_connections, command, free_address},
};

const NGINX: &str = include_str!("../../peers/nginx.conf");
const HAPROXY: &str = include_str!("../../peers/haproxy.cfg");
const ENVOY: &str = include_str!("../../peers/envoy.yaml");
const SEIKETSU_NODE: &str = include_str!("../../peers/seiketsu-node.yaml");
const SEIKETSU_TENANTS: &str = include_str!("../../peers/seiketsu-tenants.yaml");

/// Of the caller in the scenario with policies. It opens nothing else.
pub const API_KEY: &str = "sk_benchapp_9Xr2TqLw7Zk4Vn8Hd3Fs6Gj1Pb5Mc0Ya";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    Nginx,
    Haproxy,
    Envoy,
    BarePingora,
    Seiketsu,
}

impl Peer {
    /// Whether there is something to be measured.
    pub fn takes_part(self, scenario: Scenario) -> bool {
        // Caches are compared with nginx's: the others have none, or one for small objects.
        !matches!(scenario, Scenario::Cache1k | Scenario::Cache64k) || matches!(self, Self::Nginx | Self::Seiketsu)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::BarePingora => "bare Pingora",
            Self::Seiketsu => "Seiketsu",
        })
    }
}

#[derive(Debug)]
pub struct Binaries {
    pub nginx: PathBuf,
    pub haproxy: PathBuf,
    pub envoy: PathBuf,
    pub bare_pingora: PathBuf,
    pub seiketsu: PathBuf,
    pub demo_origin: PathBuf,
    /// Counts the limits of Seiketsu.
    pub redis: PathBuf,
}

impl Binaries {
    fn of(&self, peer: Peer) -> &Path {
        match peer {
            Peer::Nginx => &self.nginx,
            Peer::Haproxy => &self.haproxy,
            Peer::Envoy => &self.envoy,
            Peer::BarePingora => &self.bare_pingora,
            Peer::Seiketsu => &self.seiketsu,
        }
    }

    /// First line of what the peer says its version is.
    pub fn version(&self, peer: Peer) -> String {
        let flag = if matches!(peer, Peer::Nginx | Peer::Haproxy) { "-v" } else { "--version" };
        let Ok(output) = Command::new(self.of(peer)).arg(flag).output() else { return "not found".to_owned() };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text)
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim()
            .to_owned()
    }
}

/// A peer that runs, on its own core, until the value is dropped.
#[derive(Debug)]
pub struct Running {
    server: Server,
    /// Ends after the gateway, which gives back what it holds.
    _redis: Option<Redis>,
    plain: SocketAddr,
    policies: SocketAddr,
    cached: SocketAddr,
    tls: SocketAddr,
}

impl Running {
    /// Waits until it answers a request.
    pub fn start(peer: Peer, binaries: &Binaries, origin: u16, folder: &Path) -> anyhow::Result<Self> {
        let (plain, tls, operations) = (free_address()?, free_address()?, free_address()?);
        let policies = if peer == Peer::Seiketsu { plain } else { free_address()? };
        let cached = if peer == Peer::Seiketsu { plain } else { free_address()? };
        let redis = match peer {
            Peer::Seiketsu => Some(Redis::start(&binaries.redis, &folder.join("redis"), &[])?),
            _ => None,
        };
        let values = [
            ("plain", plain.port().to_string()),
            ("policies", policies.port().to_string()),
            ("cached", cached.port().to_string()),
            ("tls", tls.port().to_string()),
            ("operations", operations.port().to_string()),
            ("origin", origin.to_string()),
            ("folder", folder.display().to_string()),
            ("tenants", json_path(&folder.join("seiketsu-tenants.yaml"))),
            ("api_key", API_KEY.to_owned()),
            ("redis", redis.as_ref().map(|redis| redis.address().to_string()).unwrap_or_default()),
        ];
        let write = |name: &str, template: &str| {
            let path = folder.join(name);
            fs::write(&path, fill(template, &values)).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let mut start = command(binaries.of(peer), Some(GATEWAY_CORE));
        match peer {
            Peer::Nginx => start.arg("-p").arg(folder).arg("-c").arg(write("nginx.conf", NGINX)?),
            Peer::Haproxy => start.arg("-db").arg("-f").arg(write("haproxy.cfg", HAPROXY)?),
            Peer::Envoy => start
                .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "--config-path"])
                .arg(write("envoy.yaml", ENVOY)?),
            Peer::BarePingora => start
                .args(["--plain", &plain.to_string(), "--policies", &policies.to_string(), "--tls", &tls.to_string()])
                .args(["--origin", &format!("127.0.0.1:{origin}")])
                .arg("--certificate")
                .arg(folder.join("certificate.pem"))
                .arg("--key")
                .arg(folder.join("key.pem")),
            Peer::Seiketsu => {
                fs::write(folder.join("api-key"), API_KEY)?;
                write("seiketsu-tenants.yaml", SEIKETSU_TENANTS)?;
                start.arg("--config").arg(write("seiketsu-node.yaml", SEIKETSU_NODE)?)
            }
        };
        let log = folder.join(format!("{}.log", binaries.of(peer).file_name().unwrap_or_default().to_string_lossy()));
        let mut server = Server::start(&peer.to_string(), start, &log)?;
        server
            .wait_until(|| match peer {
                // Limits open once a Redis without data can no longer owe anything to a node that it has forgotten.
                Peer::Seiketsu => {
                    let host = format!("Host: {}", Scenario::Policies.host());
                    let headers = [host.as_str(), &format!("X-API-Key: {API_KEY}")];
                    process::http_status_with(plain, Scenario::Policies.path(), &headers) == Some(200)
                }
                _ => accepts_connections(tls) && process::http_status(plain, "/v1/bytes/1024") == Some(200),
            })
            .with_context(|| format!("see {}", log.display()))?;
        Ok(Self { server, _redis: redis, plain, policies, cached, tls })
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub fn address(&self, scenario: Scenario) -> SocketAddr {
        match scenario {
            Scenario::Plain | Scenario::Idle => self.plain,
            Scenario::Policies => self.policies,
            Scenario::Cache1k | Scenario::Cache64k => self.cached,
            Scenario::TlsH1 | Scenario::TlsH2 | Scenario::Handshakes => self.tls,
        }
    }
}

/// A self-signed certificate (ECDSA P-256) for all peers: `certificate.pem`, `key.pem`, and both in one.
pub fn write_certificate(folder: &Path) -> anyhow::Result<()> {
    let names = ["localhost", "plain.localhost", "policies.localhost"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(folder.join("both.pem"), format!("{certificate}{key}"))?;
    fs::write(folder.join("certificate.pem"), certificate)?;
    Ok(fs::write(folder.join("key.pem"), key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        let names =
            ["plain", "policies", "cached", "tls", "operations", "origin", "folder", "tenants", "api_key", "redis"];
        let values = names.map(|name| (name, String::new()));
        for template in [NGINX, HAPROXY, ENVOY, SEIKETSU_NODE, SEIKETSU_TENANTS] {
            assert!(!fill(template, &values).contains("{{"), "{template}");
        }
    }
}
