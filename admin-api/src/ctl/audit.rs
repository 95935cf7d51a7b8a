//! `gatewayctl audit`

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use clap::Subcommand;
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    progress::Progress,
    transfer::save,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Whether an entry was altered, removed or moved; exit code 1 if one was.
    Verify,
    /// The last entries, the newest first.
    List {
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Only what this operator has done.
        #[arg(long)]
        actor: Option<String>,
        /// Only this kind of action.
        #[arg(long)]
        action: Option<String>,
        /// Only what concerns this tenant.
        #[arg(long)]
        tenant: Option<Id>,
    },
    /// All entries as JSON lines.
    Export {
        /// Instead of standard output.
        #[arg(long, short = 'f')]
        file: Option<PathBuf>,
    },
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Verify => {
            let answer = client.json(Ask::get("/audit/verify")).await?;
            let faults = answer["faults"].as_array().map_or(&[][..], Vec::as_slice);
            output.show(&answer, |answer| {
                let entries = cell(&answer["entries"]);
                if faults.is_empty() { format!("intact: {entries} entries") } else { String::new() }
            })?;
            if !faults.is_empty() {
                let told = |fault: &Value| format!("\n  entry {}: {}", cell(&fault["number"]), cell(&fault["what"]));
                return Err(Failure::Audit(faults.iter().map(told).collect()));
            }
        }
        Command::List { limit, actor, action, tenant } => {
            let ask = Ask::get("/audit")
                .query("limit", limit)
                .query_if("actor", actor)
                .query_if("action", action)
                .query_if("tenant", tenant);
            let page = client.json(ask).await?;
            output.show(&page, |page| {
                let names = ["/number", "/at", "/actor", "/action", "/tenant", "/outcome"];
                table(&["ENTRY", "AT", "BY", "ACTION", "TENANT", "OUTCOME"], &rows(&page["items"], &names))
            })?;
        }
        Command::Export { file: Some(path) } => {
            save(client, Ask::get("/audit/export"), &path, "exporting").await?;
        }
        Command::Export { file: None } => {
            let mut out = BufWriter::new(io::stdout());
            client.read(Ask::get("/audit/export"), &Progress::none(), |piece| Ok(out.write_all(piece)?)).await?;
            out.flush()?;
        }
    }
    Ok(Outcome::Done)
}
