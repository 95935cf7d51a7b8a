//! `gatewayctl audit`

use std::{
    fs,
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    audit_export::export,
    audit_file::{self, PublicKey},
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    transfer::{Take, save},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Whether an entry was altered, removed or moved; exit code 1 if one was.
    Verify {
        /// An exported trail instead of that of the control plane.
        #[arg(long, short = 'f')]
        file: Option<PathBuf>,
        /// What `gatewayctl audit key` has told; else it is asked for.
        #[arg(long, requires = "file")]
        key: Option<PathBuf>,
    },
    /// The public key that exported trails are verified with.
    Key,
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
    /// All entries as JSON lines. What breaks off is gone on with.
    Export {
        /// Instead of standard output.
        #[arg(long, short = 'f')]
        file: Option<PathBuf>,
    },
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Verify { file: Some(file), key } => {
            let key = match key {
                Some(key) => read_key(&key)?,
                None => serde_json::from_value(client.json(Ask::get("/audit/key")).await?)?,
            };
            return verify_file(&file, &key, output);
        }
        Command::Verify { file: None, .. } => tell(&client.json(Ask::get("/audit/verify")).await?, output)?,
        Command::Key => {
            let key = client.json(Ask::get("/audit/key")).await?;
            output.show(&key, ToString::to_string)?;
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
            save(&path, "exporting", async |take: &mut Take<'_>| export(client, take).await).await?;
        }
        Command::Export { file: None } => {
            let mut out = BufWriter::new(io::stdout());
            export(client, &mut |piece: &[u8]| Ok(out.write_all(piece)?)).await?;
            out.flush()?;
        }
    }
    Ok(Outcome::Done)
}

pub(super) fn read_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = fs::read(path).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    Ok(serde_json::from_slice(&text)?)
}

pub(super) fn verify_file(path: &Path, key: &PublicKey, output: &Output) -> Result<Outcome, Failure> {
    let file = fs::File::open(path).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    let read = audit_file::verify(BufReader::new(file), key);
    tell(&read.map_err(|source| Failure::Read { path: path.to_owned(), source })?, output)?;
    Ok(Outcome::Done)
}

fn tell(answer: &Value, output: &Output) -> Result<(), Failure> {
    let faults = answer["faults"].as_array().map_or(&[][..], Vec::as_slice);
    output.show(answer, |answer| {
        let entries = cell(&answer["entries"]);
        if faults.is_empty() { format!("intact: {entries} entries") } else { String::new() }
    })?;
    if faults.is_empty() {
        return Ok(());
    }
    let told = |fault: &Value| {
        let [table, row, what] = ["table", "row", "what"].map(|name| cell(&fault[name]));
        format!("\n  {table} {row}: {what}")
    };
    Err(Failure::Audit(faults.iter().map(told).collect()))
}
