//! Replicas of the control plane on one store, and gateways that each subscribe to one of them.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::http::Connection;
use crate::{
    load::gateway::json_path,
    process::{Server, command, free_address, http_status},
};

/// How long a process may take to start; a gateway has its tenants then.
const PATIENCE: Duration = Duration::from_mins(1);

/// The tenant whose limit is changed. Its clients are never refused.
pub const HOST: &str = "changing.localhost";
pub const TENANT: &str = "changing";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub admin: PathBuf,
    pub gateway: PathBuf,
    pub origin: PathBuf,
}

#[derive(Debug)]
pub struct Replica {
    pub address: SocketAddr,
    _server: Server,
}

#[derive(Debug)]
pub struct Gateway {
    pub http: SocketAddr,
    /// From its start until it was ready with the whole configuration.
    pub ready_after: Duration,
    server: Server,
}

impl Gateway {
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}

#[derive(Debug)]
pub struct Cluster {
    pub replicas: Vec<Replica>,
    pub gateways: Vec<Gateway>,
    /// Beside the one whose limit changes.
    tenants: usize,
    origin: SocketAddr,
    /// Of the owner.
    token: String,
    _origin: Server,
}

impl Cluster {
    pub fn start(
        programs: &Programs,
        folder: &Path,
        database: &str,
        (replicas, gateways): (usize, usize),
        tenants: usize,
    ) -> anyhow::Result<Self> {
        let origin_address = free_address()?;
        let mut start = command(&programs.origin, None);
        start.args(["--listen", &origin_address.to_string(), "--region", "here"]);
        let mut origin = Server::start("the origin", start, &folder.join("origin.log"))?;
        origin.wait_until(|| crate::process::accepts_connections(origin_address))?;

        let replicas: Vec<Replica> = (0..replicas)
            .map(|number| start_replica(&programs.admin, &folder.join(format!("replica-{number}")), database))
            .collect::<Result<_, _>>()?;
        let first = folder.join("replica-0");
        let token = fs::read_to_string(first.join("admin-token")).context("the owner's token")?.trim().to_owned();
        let mut cluster =
            Self { replicas, gateways: Vec::new(), tenants, origin: origin_address, token, _origin: origin };

        cluster.import(100_000_000, "")?;
        for number in 0..gateways {
            let replica = &cluster.replicas[number % cluster.replicas.len()];
            let own = folder.join(format!("gateway-{number}"));
            let node = node_file(number, replica.address, &first.join("node-token"), &own);
            cluster.gateways.push(start_gateway(&programs.gateway, &own, &node)?);
        }
        Ok(cluster)
    }

    /// Puts all tenants, each with this rate.
    pub fn import(&self, rate: u64, query: &str) -> anyhow::Result<()> {
        let path = format!("/api/enterprise/import{query}");
        let answer =
            self.admin(0, "application/yaml")?.ask("POST", &path, &tenants_file(self.origin, self.tenants, rate))?;
        if answer.status != 200 {
            bail!("an import was answered with {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(())
    }

    /// A connection of the owner to one of the replicas.
    pub fn admin(&self, replica: usize, content_type: &str) -> anyhow::Result<Connection> {
        let address = self.replicas[replica % self.replicas.len()].address;
        let token = &self.token;
        let head = format!("host: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: {content_type}\r\n");
        Connection::open(address, head)
    }
}

fn start_replica(program: &Path, folder: &Path, database: &str) -> anyhow::Result<Replica> {
    fs::create_dir_all(folder)?;
    let address = free_address()?;
    let mut start = command(program, None);
    start.args(["--listen", &address.to_string(), "--state-dir"]).arg(folder).env("DATABASE_URL", database);
    // The same for all replicas.
    start.env("SEIKETSU_ADMIN_KEY", "5e1e7500".repeat(8));
    // One who changes as fast as it goes is no usual client.
    start.args(["--requests-per-second", "1000000"]);
    let mut server = Server::start("a replica", start, &folder.join("admin.log"))?;
    server
        .wait_until(|| http_status(address, "/readyz") == Some(200))
        .with_context(|| format!("see {}", folder.join("admin.log").display()))?;
    Ok(Replica { address, _server: server })
}

fn start_gateway(program: &Path, folder: &Path, node: &str) -> anyhow::Result<Gateway> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("node.yaml"), node)?;
    let mut start = command(program, None);
    start.arg("--config").arg(folder.join("node.yaml"));
    let log = folder.join("gateway.log");
    let begun = Instant::now();
    let mut server = Server::start("a gateway", start, &log)?;
    let (pid, path) = (server.pid(), folder.join("state/addresses.json"));
    let look = || {
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
        let address = |value: &serde_json::Value| value.as_str()?.parse().ok();
        (json["pid"] == pid).then_some(())?;
        let operations: SocketAddr = address(&json["operations"])?;
        (http_status(operations, "/readyz") == Some(200)).then_some(())?;
        address(&json["http"][0])
    };
    let (mut http, deadline) = (None, Instant::now() + PATIENCE);
    while http.is_none() {
        let waited = server.wait_until(|| {
            http = look();
            http.is_some() || Instant::now() > deadline
        });
        if http.is_none() && Instant::now() > deadline {
            bail!("a gateway is not ready, see {}", log.display());
        }
        // A large configuration takes longer than the patience of a server's start.
        waited.or_else(|error| if error.to_string().contains("ended") { Err(error) } else { Ok(()) })?;
    }
    let ready_after = begun.elapsed();
    Ok(Gateway { http: http.context("no address")?, ready_after, server })
}

fn node_file(number: usize, control_plane: SocketAddr, token: &Path, folder: &Path) -> String {
    format!(
        "id: node-{number}\n\
         listeners: {{ http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\n\
         control_plane: {{ url: 'http://{control_plane}', token: '${{file:{}}}' }}\n\
         state_dir: {}\nthreads: 1\n\
         egress: {{ allow_loopback: true }}\n\
         access_log: {{ sample: 0 }}\n\
         usage: {{ retain: 0 }}\n\
         shedding: {{ enabled: false }}\n\
         protection: {{ connections_per_address: 0, keepalive_requests: 10000000 }}\n",
        token.display(),
        json_path(&folder.join("state")),
    )
}

/// The tenant that changes, and others beside it.
fn tenants_file(origin: SocketAddr, others: usize, rate: u64) -> String {
    let mut file = format!(
        "revision: 1\n\
         defaults: {{ auth: {{ accept: [anonymous] }} }}\n\
         upstreams:\n  origin: {{ endpoints: [{{ address: '{origin}' }}] }}\n\
         tenants:\n"
    );
    let others = (0..others).map(|number| (format!("other-{number}"), format!("other-{number}.localhost")));
    for (id, host) in std::iter::once((TENANT.to_owned(), HOST.to_owned())).chain(others) {
        let _ = writeln!(
            file,
            "  - {{ id: {id}, hosts: ['{host}'], \
             policies: {{ limits: {{ rate: {{ requests: {rate}, per: 1m, burst: 1000 }} }} }}, \
             routes: [{{ id: all, match: {{ path: '/{{*rest}}' }}, upstream: origin }}] }}"
        );
    }
    file
}
