//! `gatewayctl siem`

use std::{fs, path::PathBuf};

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    tenants::all_pages,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All sinks, and how far each has come.
    List,
    /// Add a sink, or change the one with this name.
    Set(Box<Set>),
    /// Send nothing there any more.
    Delete { id: Uuid },
}

#[derive(Debug, Args)]
pub(super) struct Set {
    name: Id,
    /// `syslogs://host:6514` or `https://host/path`
    url: Url,
    /// File with the token that is sent by HTTP.
    #[arg(long)]
    sink_token: Option<PathBuf>,
    /// PEM file of authorities that the receiver's certificate may come from.
    #[arg(long)]
    sink_ca: Option<PathBuf>,
    /// PEM file of the certificate that is shown to the receiver.
    #[arg(long, requires = "private_key")]
    certificate: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, requires = "certificate")]
    private_key: Option<PathBuf>,
    /// For a new sink: send also what came after this entry; 0 is everything.
    #[arg(long)]
    after: Option<u64>,
    /// Keep it, and send nothing.
    #[arg(long)]
    disabled: bool,
}

fn read(path: Option<PathBuf>) -> Result<Option<String>, Failure> {
    let Some(path) = path else { return Ok(None) };
    fs::read_to_string(&path).map(Some).map_err(|source| Failure::Read { path, source })
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List => {
            let sinks = json!({ "items": all_pages(client, || Ask::get("/siem")).await? });
            output.show(&sinks, |sinks| {
                let names = ["/id", "/name", "/url", "/enabled", "/delivered", "/failing_since", "/last_error"];
                let titles = ["ID", "NAME", "URL", "ENABLED", "DELIVERED", "FAILING SINCE", "ERROR"];
                table(&titles, &rows(&sinks["items"], &names))
            })?;
        }
        Command::Set(set) => {
            let set = *set;
            let token = read(set.sink_token)?.map(|token| token.trim().to_owned());
            let body = json!({
                "name": set.name, "url": set.url, "token": token, "ca": read(set.sink_ca)?,
                "certificate": read(set.certificate)?, "private_key": read(set.private_key)?,
                "after": set.after, "enabled": !set.disabled,
            });
            let there = all_pages(client, || Ask::get("/siem")).await?;
            let ask = match there.iter().find(|sink| sink["name"] == body["name"]) {
                Some(sink) => {
                    let etag = format!("\"{}\"", sink["revision"]);
                    Ask::put(format!("/siem/{}", cell(&sink["id"]))).if_match(Some(etag))
                }
                None => Ask::post("/siem"),
            };
            let sink = client.json(ask.json(&body)).await?;
            output.show(&sink, |sink| format!("{}: after entry {}", cell(&sink["id"]), cell(&sink["delivered"])))?;
        }
        Command::Delete { id } => {
            client.ask(Ask::delete(format!("/siem/{id}"))).await?;
            output.show(&json!({ "deleted": id }), |_| format!("{id} is gone"))?;
        }
    }
    Ok(Outcome::Done)
}
