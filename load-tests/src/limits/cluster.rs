//! Several gateways with one file of tenants: real processes, each with its own state and its own log.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Micros,
    events::{Logged, read_log},
    pause,
    scenario::Tenant,
    wall,
};
use crate::{
    load::gateway::json_path,
    process::{Server, command},
};

/// How long a gateway may take to start, or to take a changed file.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    tenants: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    folder: PathBuf,
    server: Option<Server>,
    http: SocketAddr,
    operations: SocketAddr,
    /// The log was read up to here.
    log_read: u64,
    /// Its clock can be moved.
    clock: Option<PathBuf>,
}

/// What gateways have counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub exchanges: u64,
    /// The fewest gateways that one of them knows of, itself included; 0: it is not connected.
    pub live: u64,
}

impl Cluster {
    /// One gateway for each URL of Redis. With `clocks` these can be moved.
    pub fn start(
        program: &Path,
        folder: &Path,
        redis: &[String],
        tenants: &str,
        clocks: Option<&Path>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let tenants_file = folder.join("tenants.yaml");
        fs::write(&tenants_file, tenants)?;
        let mut cluster = Self { program: program.to_owned(), tenants: tenants_file, nodes: Vec::new() };
        for (number, redis) in redis.iter().enumerate() {
            let own = folder.join(format!("node-{number}"));
            fs::create_dir_all(&own)?;
            fs::write(own.join("node.yaml"), cluster.node_file(number, redis, &own))?;
            let clock = clocks.map(|_| own.join("clock"));
            if let Some(clock) = &clock {
                fs::write(clock, "+0\n")?;
            }
            let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
            let mut node = Node { folder: own, server: None, http: nowhere, operations: nowhere, log_read: 0, clock };
            cluster.spawn(&mut node, clocks)?;
            cluster.nodes.push(node);
        }
        for node in &mut cluster.nodes {
            node.wait_until_ready()?;
        }
        Ok(cluster)
    }

    fn node_file(&self, number: usize, redis: &str, folder: &Path) -> String {
        format!(
            "id: node-{number}\n\
             listeners: {{ http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\n\
             tenants: {}\nstate_dir: {}\nthreads: 1\n\
             egress: {{ allow_loopback: true }}\n\
             access_log: {{ output: {{ file: {} }}, sample: 100 }}\n\
             usage: {{ retain: 0 }}\n\
             # Beside limits nothing is to refuse anything.\n\
             shedding: {{ enabled: false }}\n\
             protection: {{ connections_per_address: 0, keepalive_requests: 10000000 }}\n\
             limits: {{ redis: {{ url: '{redis}' }} }}\n",
            json_path(&self.tenants),
            json_path(&folder.join("state")),
            json_path(&folder.join("access.log")),
        )
    }

    fn spawn(&self, node: &mut Node, clocks: Option<&Path>) -> anyhow::Result<()> {
        let mut start = command(&self.program, None);
        start.arg("--config").arg(node.folder.join("node.yaml"));
        if let (Some(library), Some(clock)) = (clocks, &node.clock) {
            start.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            start.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let log = node.folder.join("gateway.log");
        node.server = Some(Server::start("seiketsu-gateway", start, &log)?);
        Ok(())
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    /// As if power had failed.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let server = self.nodes[node].server.take().context("the gateway does not run")?;
        let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::KILL)?;
        Ok(())
    }

    /// After it was killed.
    pub fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        let mut taken = self.nodes.remove(node);
        let started = self.spawn(&mut taken, None).and_then(|()| taken.wait_until_ready());
        self.nodes.insert(node, taken);
        started
    }

    /// Moves a node's clock by so many seconds from where it is right. It notices within a second.
    pub fn move_clock(&self, node: usize, seconds: i64) -> anyhow::Result<()> {
        let clock = self.nodes[node].clock.as_ref().context("this clock cannot be moved")?;
        // Anew, so that never half of it is read.
        let next = clock.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n"))?;
        Ok(fs::rename(next, clock)?)
    }

    /// Returns when all gateways are connected and know of each other.
    pub fn wait_until_together(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.counted()?.live != self.nodes.len() as u64 {
            if Instant::now() > deadline {
                bail!("the gateways have not found each other: {:?} instead of {}", self.counted()?, self.nodes.len());
            }
            pause(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Of all gateways that run.
    pub fn counted(&self) -> anyhow::Result<Counted> {
        let mut all = Counted { live: u64::MAX, exchanges: 0 };
        for node in self.nodes.iter().filter(|node| node.server.is_some()) {
            let metrics = get(node.operations, "/metrics")?;
            all.exchanges += sum(&metrics, "seiketsu_limit_exchanges_total");
            let is_up = sum(&metrics, "seiketsu_limit_coordinator_up") == 1;
            all.live = all.live.min(if is_up { sum(&metrics, "seiketsu_limit_gateways") } else { 0 });
        }
        Ok(all)
    }

    /// Writes other tenants of this revision. Returns when all gateways have taken them, and the moment of that.
    pub fn change(&self, tenants: &str, revision: u64) -> anyhow::Result<Micros> {
        let next = self.tenants.with_extension("next");
        fs::write(&next, tenants)?;
        fs::rename(next, &self.tenants)?;
        let deadline = Instant::now() + PATIENCE;
        for node in &self.nodes {
            let wanted = format!("\"revision\":{revision}");
            while !get(node.operations, "/config")?.replace(' ', "").contains(&wanted) {
                if Instant::now() > deadline {
                    bail!("a gateway does not take revision {revision}");
                }
                pause(Duration::from_millis(2));
            }
        }
        Ok(wall())
    }

    /// What the logs have to say since they were last read.
    pub fn read_logs(&mut self, to: &mut HashMap<u64, Logged>) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.log_read = read_log(&node.folder.join("access.log"), node.log_read, to)?;
        }
        Ok(())
    }
}

impl Node {
    /// Reads the addresses that the process wrote.
    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let Some(server) = &mut self.server else { bail!("the gateway does not run") };
        let (path, pid) = (self.folder.join("state/addresses.json"), server.pid());
        let mut found = None;
        let log = self.folder.join("gateway.log");
        let deadline = Instant::now() + PATIENCE;
        while found.is_none() {
            let mut look = || {
                let text = fs::read_to_string(&path).ok()?;
                let json: serde_json::Value = serde_json::from_str(&text).ok()?;
                let address = |value: &serde_json::Value| value.as_str()?.parse().ok();
                (json["pid"] == pid).then_some(())?;
                let operations = address(&json["operations"])?;
                get(operations, "/readyz").ok()?.starts_with("HTTP/1.1 200").then_some(())?;
                found = Some((address(&json["http"][0])?, operations));
                Some(())
            };
            let waited = server.wait_until(|| look().is_some() || Instant::now() > deadline);
            if waited.is_err() && Instant::now() < deadline {
                // A large configuration takes longer than the patience of a server's start.
                waited
                    .with_context(|| format!("see {}", log.display()))
                    .or_else(|error| if error.to_string().contains("ended") { Err(error) } else { Ok(()) })?;
            } else if found.is_none() {
                bail!("a gateway is not ready, see {}", log.display());
            }
        }
        let (http, operations) = found.context("no address")?;
        (self.http, self.operations) = (http, operations);
        Ok(())
    }
}

/// The tenants' file: each tenant has one route, to the origin.
pub fn tenants_file<'a>(origin: SocketAddr, revision: u64, tenants: impl IntoIterator<Item = &'a Tenant>) -> String {
    let mut file = format!(
        "revision: {revision}\n\
         defaults: {{ auth: {{ accept: [anonymous] }} }}\n\
         upstreams:\n  origin: {{ endpoints: [{{ address: '{origin}' }}] }}\n\
         tenants:\n"
    );
    for tenant in tenants {
        let rate = tenant.limit.map(|limit| {
            let (requests, burst) = (limit.per_minute, limit.burst);
            format!("rate: {{ requests: {requests}, per: 1m, burst: {burst} }}")
        });
        let quota = tenant.quota.map(|quota| format!("quotas: {{ daily: {quota} }}"));
        let limits: Vec<String> = rate.into_iter().chain(quota).collect();
        let limits = match limits.as_slice() {
            [] => String::new(),
            limits => format!("policies: {{ limits: {{ {} }} }}, ", limits.join(", ")),
        };
        let _ = writeln!(
            file,
            "  - {{ id: {}, hosts: ['{}'], {limits}routes: [{{ id: all, match: {{ path: '/{{*rest}}' }}, upstream: origin }}] }}",
            tenant.id,
            tenant.host()
        );
    }
    file
}

/// A whole answer, head and body.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Of all series of this name.
fn sum(metrics: &str, name: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}
