//! `seiketsu-admin`: read, open the store, serve, end.

use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use seiketsu_admin_api::settings::Settings;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start(&Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: &Settings) -> Result<()> {
    let filter: EnvFilter = settings.log.parse().context("--log")?;
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(seiketsu_admin_api::run(settings))
}
