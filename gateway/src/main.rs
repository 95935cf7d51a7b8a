//! `seiketsu-gateway`: read, check, run, drain.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use secrecy::ExposeSecret;
use seiketsu_gateway::bootstrap::{self, Arguments};
use seiketsu_identity::api_key;

/// Serving means many small allocations on many threads; the system's allocator is measurably slower at that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To the terminal too when logging is off or goes elsewhere: this is why it ended.
            let _ = writeln!(std::io::stderr(), "error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes. Those that it repeats in its own words are left out.
fn with_causes(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn start(arguments: &Arguments) -> Result<()> {
    if arguments.new_api_key {
        return print_new_api_key();
    }
    let node = bootstrap::node(arguments)?;
    let log = bootstrap::Log::start(&arguments.log).context("--log")?;
    if arguments.check_config {
        bootstrap::try_state_dir(&node)?;
        let summary = seiketsu_gateway::check_config(&node)?;
        writeln!(std::io::stdout(), "{summary}")?;
        return Ok(());
    }
    bootstrap::create_state_dir(&node)?;
    seiketsu_gateway::run(node, arguments.upgrade, log.level())?;
    Ok(())
}

fn print_new_api_key() -> Result<()> {
    let key = api_key::generate()?;
    writeln!(
        std::io::stdout(),
        "Give this to the caller; it is not stored anywhere:\n\n    {}\n\n\
         Write this under the consumer's `keys`:\n\n    - prefix: {}\n      hash: {}\n",
        key.key.expose_secret(),
        key.prefix,
        key.hash
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let inner = || io::Error::other("the disk is full");
        let repeats = bootstrap::BootstrapError::StateDir { path: "/var/gateway".into(), source: inner() };
        assert_eq!(with_causes(&repeats.into()).matches("the disk is full").count(), 1);
        assert_eq!(with_causes(&anyhow::Error::from(inner()).context("--log")), "--log: the disk is full");
    }
}
