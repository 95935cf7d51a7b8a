//! Compares the CPU time per request of several gateways.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use seiketsu_load_tests::bench::{
    self, Plan,
    origin::Kind,
    peer::{Binaries, Peer},
    scenario::Scenario,
};

/// Each gateway alone on core 0 with one worker, generator and origin on core 1, rounds interleaved.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-bench-peers", version)]
struct Flags {
    /// What to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "plain,policies,cache-1k,cache-64k,tls-h1,tls-h2,handshakes,idle"
    )]
    scenario: Vec<Scenario>,
    /// Whom to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nginx,haproxy,envoy,bare-pingora,seiketsu")]
    peers: Vec<Peer>,
    /// How often; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement, after one second to warm up.
    #[arg(long, default_value_t = 5)]
    duration: u64,
    /// Connections of the scenario `idle`.
    #[arg(long, default_value_t = 10_000)]
    idle_connections: usize,
    /// The upstream.
    #[arg(long, value_enum, default_value = "nginx")]
    origin: Kind,
    /// Write all figures here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables here as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Where configurations and logs of the gateways go.
    #[arg(long, default_value = "var/bench-peers")]
    output: PathBuf,
    #[arg(long, env = "NGINX", default_value = "nginx")]
    nginx: PathBuf,
    #[arg(long, env = "HAPROXY", default_value = "haproxy")]
    haproxy: PathBuf,
    #[arg(long, env = "ENVOY", default_value = "envoy")]
    envoy: PathBuf,
    #[arg(long, env = "REDIS_SERVER", default_value = "redis-server")]
    redis: PathBuf,
    /// Default: the program of that name beside this one. The same holds for the next two.
    #[arg(long)]
    bare_pingora: Option<PathBuf>,
    #[arg(long)]
    gateway: Option<PathBuf>,
    #[arg(long)]
    demo_origin: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let own = std::env::current_exe()?;
    let beside = |name: &str| own.parent().unwrap_or(Path::new(".")).join(name);
    let plan = Plan {
        scenarios: flags.scenario,
        peers: flags.peers,
        rounds: flags.rounds.max(1),
        duration: Duration::from_secs(flags.duration.max(1)),
        idle_connections: flags.idle_connections,
        origin: flags.origin,
        binaries: Binaries {
            nginx: flags.nginx,
            haproxy: flags.haproxy,
            envoy: flags.envoy,
            redis: flags.redis,
            bare_pingora: flags.bare_pingora.unwrap_or_else(|| beside("bare-pingora")),
            seiketsu: flags.gateway.unwrap_or_else(|| beside("seiketsu-gateway")),
            demo_origin: flags.demo_origin.unwrap_or_else(|| beside("seiketsu-demo-origin")),
        },
        folder: std::path::absolute(flags.output)?,
    };
    let mut log = std::io::stderr();
    for peer in &plan.peers {
        writeln!(log, "{peer}: {}", plan.binaries.version(*peer))?;
    }
    let table = bench::run(&plan, |step| {
        let _ = writeln!(log, "{step}");
    })?;
    write!(std::io::stdout(), "\n{table}")?;
    let save = |path: Option<PathBuf>, text: String| match path {
        Some(path) => fs::write(&path, text).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(()),
    };
    save(flags.json, serde_json::to_string_pretty(&table)? + "\n")?;
    save(flags.markdown, table.markdown())
}
