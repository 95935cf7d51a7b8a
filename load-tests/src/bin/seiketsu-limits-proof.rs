//! The proof that limits are exact over many nodes: exit code 0 when all promises were kept, 1 when one was
//! broken, 2 when it could not be run.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use seiketsu_load_tests::limits::{
    report::{self, Report},
    run::{self, Plan},
    scenario,
};

/// Gateways, a Redis, faults, and one exact bucket to judge by.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-limits-proof", version)]
struct Flags {
    /// Fewer and shorter scenarios: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Only this scenario, at its full length. May be said more than once.
    #[arg(long)]
    scenario: Vec<String>,
    /// Names the scenarios, and runs none.
    #[arg(long)]
    list: bool,
    /// Tenants in the scenario `crowd`; 0 leaves it out.
    #[arg(long, default_value_t = 100_000)]
    crowd: usize,
    /// Of the random traces: the same number gives the same requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report goes, and the run's files.
    #[arg(long, default_value = "var/limits-proof")]
    output: PathBuf,
    /// The gateway to start. Default: the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// The Redis server to start: 7.0 or later.
    #[arg(long, env = "REDIS_SERVER", default_value = "redis-server")]
    redis: PathBuf,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut out = std::io::stdout();
    if flags.list {
        for scenario in scenario::all(flags.quick, flags.crowd) {
            let _ = writeln!(out, "{:<16} {:>4} s  {}", scenario.name, scenario.lasts.as_secs(), scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    match prove(flags) {
        Ok(passed) => ExitCode::from(u8::from(!passed)),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "limits-proof: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn prove(flags: Flags) -> anyhow::Result<bool> {
    let own = std::env::current_exe()?;
    let beside = || own.parent().unwrap_or(Path::new(".")).join("seiketsu-gateway");
    let plan = Plan {
        gateway: flags.gateway.unwrap_or_else(beside),
        redis: flags.redis,
        folder: std::path::absolute(flags.output)?,
        quick: flags.quick,
        scenarios: flags.scenario,
        crowd: flags.crowd,
        seed: flags.seed,
    };
    let mut out = std::io::stdout();
    let outcomes = run::run(&plan, |outcome| {
        let _ = writeln!(out, "{}", report::text(outcome));
    })?;
    let report = Report::new(&plan.gateway, plan.seed, outcomes);
    report.write(&plan.folder)?;
    let _ = writeln!(out, "{}report  {}", report.broken(), plan.folder.join("report.html").display());
    Ok(report.passed)
}
