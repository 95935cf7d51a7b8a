//! `gatewayctl consumers`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, rows, table},
    tenants::all_pages,
    wait::{Wait, written},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Callers that tenants know by name.
    List {
        /// Only those of this tenant.
        #[arg(long)]
        tenant: Option<Id>,
    },
    /// Let a tenant know another one. It gets its keys with `keys create`.
    Create(Create),
    /// Let a tenant know one no more; its keys go with it.
    Delete {
        tenant: Id,
        consumer: Id,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    tenant: Id,
    consumer: Id,
    /// May be given more than once.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// May be given more than once.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List { tenant } => {
            let consumers = all_pages(client, || Ask::get("/consumers").query_if("tenant", tenant.as_ref())).await?;
            output.show(&Value::Array(consumers), |consumers| {
                let names = ["/tenant", "/id", "/keys", "/certificates", "/scopes", "/roles"];
                table(&["TENANT", "CONSUMER", "KEYS", "CERTIFICATES", "SCOPES", "ROLES"], &rows(consumers, &names))
            })?;
        }
        Command::Create(Create { tenant, consumer, scopes, roles, wait }) => {
            let body = json!({ "tenant": tenant, "id": consumer, "scopes": scopes, "roles": roles });
            let answer = client.json(wait.apply(Ask::post("/consumers").json(&body))).await?;
            output.show(&answer, |answer| format!("{consumer}: {}", written(answer)))?;
        }
        Command::Delete { tenant, consumer, wait } => {
            let ask = Ask::delete(format!("/tenants/{tenant}/consumers/{consumer}"));
            let answer = client.json(wait.apply(ask)).await?;
            output.show(&answer, |answer| format!("{consumer} is gone: {}", written(answer)))?;
        }
    }
    Ok(Outcome::Done)
}
