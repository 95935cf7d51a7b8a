//! The command-line client of the control plane.
//!
//! It speaks nothing but the API that everybody else has. Exit codes: 0 done, 1 an error, 2 `diff` has found a
//! difference, 3 the change stands, and not all nodes have applied it.

mod alert_rules;
mod alerts;
mod audit;
mod audit_export;
mod audit_file;
mod cache;
mod client;
mod compare;
mod consumers;
mod failure;
mod keys;
mod limits;
mod login;
mod nodes;
mod output;
mod progress;
mod revisions;
mod routes;
mod secrets;
mod services;
mod settings;
mod siem;
mod tail;
mod tenants;
mod tokens;
mod transfer;
mod usage;
mod wait;
mod webhooks;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::{
    client::Client,
    failure::Failure,
    output::{Format, Output},
    settings::Connection,
};

/// Where everything is.
const API: &str = "/api/enterprise";

/// Operates the gateways of a control plane.
///
/// Exit codes: 0 done, 1 error, 2 `diff` found a difference, 3 the change stands but not all nodes have applied it.
#[derive(Debug, Parser)]
#[command(name = "gatewayctl", version)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remember server and token for this user; the token is asked for, or read from standard input.
    Login,
    /// The tenants, as documents.
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// Rates and quotas of a tenant.
    #[command(subcommand)]
    Limits(limits::Command),
    /// Gateway nodes: who is there, and what they have applied.
    Nodes(nodes::Arguments),
    /// What was changed when, and back again.
    #[command(subcommand)]
    Revisions(revisions::Command),
    /// Write the whole configuration as YAML, as a gateway reads it from a file.
    Export(transfer::Export),
    /// Take configuration over from YAML, as a gateway reads it from a file.
    Import(transfer::Import),
    /// Compare a file with what the control plane has; exit code 2 if they differ.
    Diff(compare::Arguments),
    /// Say what is wrong with a file; changes nothing.
    Validate(transfer::Validate),
    /// The audit trail.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Tokens of operators and nodes.
    #[command(subcommand)]
    Tokens(tokens::Command),
    /// Secrets in the store.
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// API keys of consumers: made, replaced, revoked.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Callers that tenants know by name.
    #[command(subcommand)]
    Consumers(consumers::Command),
    /// Routes of tenants.
    #[command(subcommand)]
    Routes(routes::Command),
    /// Services: what routes send requests to.
    #[command(subcommand)]
    Services(services::Command),
    /// Serve something no more from the caches of the nodes.
    Purge(cache::Purge),
    /// Fetch URLs into the caches of the nodes, before anybody asks for them.
    Warm(cache::Warm),
    /// What tenants have used of their quotas, or what the callers of one did.
    Usage(usage::Arguments),
    /// Follow what happens, until it is interrupted.
    Tail(tail::Arguments),
    /// What rules have found.
    #[command(subcommand)]
    Alerts(alerts::Command),
    /// What is watched.
    #[command(subcommand)]
    AlertRules(alert_rules::Command),
    /// Whom to tell what happens.
    #[command(subcommand)]
    Webhooks(webhooks::Command),
    /// Where the audit trail is sent to.
    #[command(subcommand)]
    Siem(siem::Command),
    /// Write completions for a shell to standard output.
    Completions { shell: Shell },
}

/// What a command has found, where it has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Drift,
}

/// Reads the command line, does what it says, and tells how that went.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Not clap's own 2, which means a difference here.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let output = Output::new(arguments.output);
    match run(arguments, &output) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Drift) => ExitCode::from(2),
        // Who reads has seen enough, as in `gatewayctl … | head`.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{}", output.failure(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments, output: &Output) -> Result<Outcome, Failure> {
    if let Command::Completions { shell } = arguments.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "gatewayctl", &mut script);
        io::stdout().write_all(&script)?;
        return Ok(Outcome::Done);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(call(arguments, output))
}

async fn call(arguments: Arguments, output: &Output) -> Result<Outcome, Failure> {
    let connection = arguments.connection;
    if let Command::Login = arguments.command {
        return login::run(&connection, output).await;
    }
    if let Command::Audit(audit::Command::Verify { file: Some(file), key: Some(key) }) = &arguments.command {
        return audit::verify_file(file, &audit::read_key(key)?, output);
    }
    let client = Client::new(connection.resolve()?)?;
    match arguments.command {
        Command::Tenants(command) => tenants::run(command, &client, output).await,
        Command::Limits(command) => limits::run(command, &client, output).await,
        Command::Nodes(arguments) => nodes::run(arguments, &client, output).await,
        Command::Revisions(command) => revisions::run(command, &client, output).await,
        Command::Export(arguments) => transfer::export(arguments, &client, output).await,
        Command::Import(arguments) => transfer::import(arguments, &client, output).await,
        Command::Validate(arguments) => transfer::validate(arguments, &client, output).await,
        Command::Diff(arguments) => compare::run(arguments, &client, output).await,
        Command::Audit(command) => audit::run(command, &client, output).await,
        Command::Tokens(command) => tokens::run(command, &client, output).await,
        Command::Secrets(command) => secrets::run(command, &client, output).await,
        Command::Keys(command) => keys::run(command, &client, output).await,
        Command::Consumers(command) => consumers::run(command, &client, output).await,
        Command::Routes(command) => routes::run(command, &client, output).await,
        Command::Services(command) => services::run(command, &client, output).await,
        Command::Purge(arguments) => cache::purge(arguments, &client, output).await,
        Command::Warm(arguments) => cache::warm(arguments, &client, output).await,
        Command::Usage(arguments) => usage::run(arguments, &client, output).await,
        Command::Tail(arguments) => tail::run(arguments, &client, output).await,
        Command::Alerts(command) => alerts::run(command, &client, output).await,
        Command::AlertRules(command) => alert_rules::run(command, &client, output).await,
        Command::Webhooks(command) => webhooks::run(command, &client, output).await,
        Command::Siem(command) => siem::run(command, &client, output).await,
        Command::Login | Command::Completions { .. } => Ok(Outcome::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
