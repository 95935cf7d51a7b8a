//! `gatewayctl revisions`

use clap::Subcommand;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    compare::{self, difference},
    failure::Failure,
    output::{Output, cell, rows, table},
    wait::{Wait, written},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The last changes, the newest first.
    List {
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// What one revision has changed.
    Show { revision: u64 },
    /// What has changed from one revision to another.
    Diff { from: u64, to: u64 },
    /// Make everything as it was in a revision, by a new one.
    Rollback {
        revision: u64,
        /// Stands with the new revision.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List { limit } => {
            let page = client.json(Ask::get("/revisions").query("limit", limit)).await?;
            output.show(&page, |page| {
                let names = ["/revision", "/at", "/author", "/changed", "/reason"];
                table(&["REVISION", "AT", "BY", "CHANGED", "REASON"], &rows(&page["items"], &names))
            })?;
        }
        Command::Show { revision } => {
            let shown = all_changes(client, || Ask::get(format!("/revisions/{revision}"))).await?;
            output.show(&shown, changes)?;
        }
        Command::Diff { from, to } => {
            let shown = all_changes(client, || Ask::get(format!("/revisions/{from}/diff")).query("to", to)).await?;
            output.show(&shown, changes)?;
        }
        Command::Rollback { revision, reason, wait } => {
            let ask = Ask::post(format!("/revisions/{revision}/rollback")).query_if("reason", reason);
            let answer = client.json(wait.apply(ask)).await?;
            output.show(&answer, |answer| format!("as in revision {revision} again: {}", written(answer)))?;
        }
    }
    Ok(Outcome::Done)
}

/// The answer with the changes of all its pages.
async fn all_changes(client: &Client, ask: impl Fn() -> Ask) -> Result<Value, Failure> {
    let mut all = client.json(ask()).await?;
    while let Value::String(cursor) = all["next"].take() {
        let mut page = client.json(ask().query("cursor", cursor)).await?;
        if let (Value::Array(all), Value::Array(more)) = (&mut all["changes"], page["changes"].take()) {
            all.extend(more);
        }
        all["next"] = page["next"].take();
    }
    Ok(all)
}

/// Each changed document, with what is different in it.
fn changes(shown: &Value) -> String {
    let mut told = String::new();
    for change in shown["changes"].as_array().into_iter().flatten() {
        let name = match &change["tenant"] {
            Value::Null => "(head)".to_owned(),
            tenant => cell(tenant),
        };
        told.push_str(&compare::told(&name, &difference(&change["before"], &change["after"])));
    }
    told
}
