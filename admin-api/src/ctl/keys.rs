//! `gatewayctl keys`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    tenants::all_pages,
    wait::{Wait, written},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Keys, without what is secret.
    List(List),
    /// Make a key, and show it this once.
    Create(Create),
    /// Make another key in the place of one, and show it this once.
    Rotate(Rotate),
    /// Make a key worthless.
    Revoke {
        /// As lists show it: `<tenant>.<prefix>`.
        id: String,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those of this tenant.
    #[arg(long)]
    tenant: Option<Id>,
    /// Only those of this consumer.
    #[arg(long)]
    consumer: Option<Id>,
    /// Only those that expire, or have expired, before this time, as in 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    expires_before: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    tenant: Id,
    /// Whose it is.
    consumer: Id,
    /// Until when it is accepted, as in 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Only this scope of the consumer's; may be given more than once.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Option<Vec<String>>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// As lists show it: `<tenant>.<prefix>`.
    id: String,
    /// For how long the old key is accepted as well.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    grace: String,
    /// Until when the new one is accepted, as in 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List(List { tenant, consumer, expires_before }) => {
            let ask = || {
                Ask::get("/keys")
                    .query_if("tenant", tenant.as_ref())
                    .query_if("consumer", consumer.as_ref())
                    .query_if("expires_before", expires_before.as_ref())
            };
            let keys = Value::Array(all_pages(client, ask).await?);
            output.show(&keys, |keys| {
                let names = ["/id", "/consumer", "/state", "/created_at", "/expires_at", "/scopes"];
                table(&["ID", "CONSUMER", "STATE", "CREATED", "EXPIRES", "SCOPES"], &rows(keys, &names))
            })?;
        }
        Command::Create(Create { tenant, consumer, expires, scopes, wait }) => {
            let body = json!({ "tenant": tenant, "consumer": consumer, "expires_at": expires, "scopes": scopes });
            made(client, output, wait.apply(Ask::post("/keys").json(&body))).await?;
        }
        Command::Rotate(Rotate { id, grace, expires, wait }) => {
            let body = json!({ "grace": grace, "expires_at": expires });
            made(client, output, wait.apply(Ask::post(format!("/keys/{}/rotate", named(&id))).json(&body))).await?;
        }
        Command::Revoke { id, wait } => {
            let answer = client.json(wait.apply(Ask::delete(format!("/keys/{}", named(&id))))).await?;
            output.show(&answer, |answer| format!("{id} is worthless now: {}", written(answer)))?;
        }
    }
    Ok(Outcome::Done)
}

/// Shows the key, also if not all nodes have it yet: it is shown nowhere else.
async fn made(client: &Client, output: &Output, ask: Ask) -> Result<(), Failure> {
    match client.json(ask).await {
        Ok(answer) => output.show(&answer, |answer| cell(&answer["key"])),
        Err(Failure::Problem(problem)) if problem.document["key"].is_string() => {
            output.show(&problem.document, |document| cell(&document["key"]))?;
            Err(Failure::Problem(problem))
        }
        Err(failure) => Err(failure),
    }
}

/// As it goes into a path. Ids have nothing that needs escapes; whatever else was written is not found.
fn named(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' }).collect()
}
