//! The proof that changes reach all nodes at once: exit code 0 when the promise was kept, 1 when it was broken, 2 when it
//! could not be run.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use seiketsu_load_tests::push::{
    cluster::{Cluster, Programs},
    costs,
    postgres::Postgres,
    report, run,
};

/// A Postgres, replicas of the control plane, gateways, and changes of a limit.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-push-proof", version)]
struct Flags {
    #[arg(long, default_value_t = 1000)]
    changes: usize,
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// Beside the one whose limit changes.
    #[arg(long, default_value_t = 1000)]
    tenants: usize,
    /// Where logs go, and what the processes keep.
    #[arg(long, default_value = "var/push-proof")]
    output: PathBuf,
}

fn main() -> ExitCode {
    match prove(&Flags::parse()) {
        Ok(kept) => ExitCode::from(u8::from(!kept)),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "push-proof: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn prove(flags: &Flags) -> anyhow::Result<bool> {
    let own = std::env::current_exe()?;
    let beside = |name: &str| own.parent().unwrap_or(Path::new(".")).join(name);
    let programs = Programs {
        admin: beside("seiketsu-admin"),
        gateway: beside("seiketsu-gateway"),
        origin: beside("seiketsu-demo-origin"),
    };
    let folder = std::path::absolute(&flags.output)?;
    // What an earlier run has kept would be taken for this one's.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let postgres = Postgres::start(&folder.join("postgres.log"))?;
    let counts = (flags.replicas.max(1), flags.gateways);
    let cluster = Cluster::start(&programs, &folder, &postgres.url, counts, flags.tenants)?;
    let mut out = std::io::stdout();
    let (gateways, replicas, tenants) = (flags.gateways, counts.0, flags.tenants + 1);
    writeln!(out, "{gateways} gateways, {replicas} replicas on one Postgres, {tenants} tenants\n")?;
    let measured = run::run(&cluster, flags.changes)?;
    // What is known by now is not lost with what comes.
    write!(out, "{}", report::text(&measured))?;
    let costs = costs::measure(&cluster, (flags.changes / 5).max(1))?;
    let kept = report::kept(&measured) && report::kept_cheaply(&costs);
    writeln!(
        out,
        "{}\n{}: p50 {:?} and p99 {:?} at most, every answer true; a whole configuration within {:?} and {} MiB, {:?} of \
         processor time for a change, no answer later than {:?}",
        report::text_of(&costs),
        if kept { "kept" } else { "BROKEN" },
        report::PROMISED_HALF,
        report::PROMISED_MOST,
        report::PROMISED_READY,
        report::PROMISED_BYTES >> 20,
        report::PROMISED_CPU,
        report::PROMISED_REQUEST,
    )?;
    Ok(kept)
}
