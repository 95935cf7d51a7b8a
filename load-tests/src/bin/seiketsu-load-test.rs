//! One open-loop load test with a verdict: exit code 0 when it passed, 1 when a bound was missed, 2 when
//! it could not be run.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use seiketsu_load_tests::load::{self, Plan};
use url::Url;

/// Ten thousand users of one tenant, and a verdict.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-load-test", version)]
struct Flags {
    /// A gateway that runs already, as in `http://127.0.0.1:8080`. Default: start one, with two origins.
    #[arg(long)]
    target: Option<Url>,
    /// Connections kept open.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Requests a second, over all connections.
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// Seconds.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// The tenant, by the first label of its host: `umbrella` means `umbrella.localhost`.
    #[arg(long, default_value = "umbrella")]
    tenant: String,
    /// What is asked for.
    #[arg(long, default_value = "/v1/bytes/1024")]
    path: String,
    /// Where the report and the measurements go.
    #[arg(long, default_value = "var/load-test")]
    output: PathBuf,
    /// The generator.
    #[arg(long, env = "OHA", default_value = "oha")]
    oha: PathBuf,
    /// The gateway to start. Default: the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// The origin to start. Default: the one beside this program.
    #[arg(long)]
    origin: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let folder = flags.output.clone();
    match plan(flags).and_then(|plan| load::run(&plan)) {
        Ok(verdict) => {
            let _ = writeln!(
                std::io::stdout(),
                "{verdict}    report               {}",
                folder.join("report.html").display()
            );
            ExitCode::from(u8::from(!verdict.passed))
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "load-test: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn plan(flags: Flags) -> anyhow::Result<Plan> {
    let own = std::env::current_exe()?;
    let beside = |name: &str| own.parent().unwrap_or(Path::new(".")).join(name);
    Ok(Plan {
        target: flags.target,
        tenant: flags.tenant,
        path: flags.path,
        connections: flags.connections,
        rate: flags.rate,
        duration_seconds: flags.duration,
        folder: std::path::absolute(flags.output)?,
        oha: flags.oha,
        gateway: flags.gateway.unwrap_or_else(|| beside("seiketsu-gateway")),
        origin: flags.origin.unwrap_or_else(|| beside("seiketsu-demo-origin")),
    })
}
