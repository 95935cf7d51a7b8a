//! Writes the report of a load test anew from what it measured, and prints the verdict: exit code 0 when
//! it passed, 1 when a bound was missed, 2 when the folder cannot be read.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;
use seiketsu_load_tests::report;

/// From the folder of a load test to `report.html` and `report.json`.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-load-report", version)]
struct Flags {
    /// The folder with `run.json`, `oha.json`, `requests.csv` and `samples.jsonl`.
    #[arg(default_value = "var/load-test")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    match report::write(&Flags::parse().folder) {
        Ok(verdict) => {
            let _ = write!(std::io::stdout(), "{verdict}");
            ExitCode::from(u8::from(!verdict.passed))
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "load-report: {error:#}");
            ExitCode::from(2)
        }
    }
}
