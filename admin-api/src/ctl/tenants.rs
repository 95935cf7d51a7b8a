//! `gatewayctl tenants`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    transfer::read_input,
    wait::{Wait, written},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All tenants, or those with a host name.
    List {
        /// Only the tenant that this host name leads to.
        #[arg(long)]
        host: Option<String>,
    },
    /// One tenant's document.
    Get { tenant: Id },
    /// Write a tenant's document, as JSON.
    Put(Put),
    /// Remove a tenant.
    Delete {
        tenant: Id,
        /// Only if it is still as it was in this revision.
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub(super) struct Put {
    tenant: Id,
    /// The document; - is standard input.
    file: PathBuf,
    /// Only if the tenant is still as it was in this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List { host } => {
            let tenants = all_pages(client, || Ask::get("/tenants").query_if("host", host.as_ref())).await?;
            let tenants = Value::Array(tenants);
            output.show(&tenants, |list| {
                table(&["TENANT", "REVISION", "HOSTS"], &rows(list, &["/id", "/revision", "/hosts"]))
            })?;
        }
        Command::Get { tenant } => {
            let document = client.json(Ask::get(format!("/tenants/{tenant}"))).await?;
            output.show(&document, |document| serde_json::to_string_pretty(document).unwrap_or_default())?;
        }
        Command::Put(put) => {
            let document: Value = serde_json::from_slice(&read_input(&put.file)?)?;
            let ask = Ask::put(format!("/tenants/{}", put.tenant)).json(&document).if_match(etag(put.if_revision));
            let answer = client.json(put.wait.apply(ask)).await?;
            output.show(&answer, |answer| format!("{}: {}", put.tenant, written(answer)))?;
        }
        Command::Delete { tenant, if_revision, wait } => {
            let ask = Ask::delete(format!("/tenants/{tenant}")).if_match(etag(if_revision));
            let answer = client.json(wait.apply(ask)).await?;
            output.show(&answer, |answer| format!("{tenant} is gone: {}", written(answer)))?;
        }
    }
    Ok(Outcome::Done)
}

fn etag(revision: Option<u64>) -> Option<String> {
    revision.map(|revision| format!("\"{revision}\""))
}

/// Every item of a list that comes in pages.
pub(super) async fn all_pages(client: &Client, ask: impl Fn() -> Ask) -> Result<Vec<Value>, Failure> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut page = client.json(ask().query("limit", 1000).query_if("cursor", cursor.as_ref())).await?;
        match page["items"].take() {
            Value::Array(more) => items.extend(more),
            _ => return Ok(items),
        }
        match &page["next"] {
            Value::Null => return Ok(items),
            next => cursor = Some(cell(next)),
        }
    }
}
