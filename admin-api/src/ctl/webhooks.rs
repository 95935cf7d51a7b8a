//! `gatewayctl webhooks`

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
use crate::store::events::EventKind;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All webhooks.
    List,
    /// Add a webhook, and show its secret this once.
    Create(Create),
    /// Tell it nothing any more.
    Delete { id: Uuid },
    /// What it was told last, and how that went.
    Deliveries {
        id: Uuid,
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Tell it once more.
    Replay { id: Uuid, delivery: Uuid },
    /// Tell it something that nothing has caused.
    Test { id: Uuid },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    name: Id,
    url: Url,
    /// Only these kinds of events.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<EventKind>,
    /// Only what concerns these tenants.
    #[arg(long, value_delimiter = ',')]
    tenant: Vec<Id>,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List => {
            let hooks = json!({ "items": all_pages(client, || Ask::get("/webhooks")).await? });
            output.show(&hooks, |hooks| {
                let names = ["/id", "/name", "/url", "/enabled", "/tenants", "/failing_since", "/disabled_reason"];
                let titles = ["ID", "NAME", "URL", "ENABLED", "TENANTS", "FAILING SINCE", "DISABLED"];
                table(&titles, &rows(&hooks["items"], &names))
            })?;
        }
        Command::Create(create) => {
            let kinds = (!create.kind.is_empty()).then_some(create.kind);
            let tenants = (!create.tenant.is_empty()).then_some(create.tenant);
            let body = json!({ "name": create.name, "url": create.url, "kinds": kinds, "tenants": tenants });
            let hook = client.json(Ask::post("/webhooks").json(&body)).await?;
            // The one place that shows it: it was made for this.
            output.show(&hook, |hook| format!("{}\n{}", cell(&hook["id"]), cell(&hook["secret"])))?;
        }
        Command::Delete { id } => {
            client.ask(Ask::delete(format!("/webhooks/{id}"))).await?;
            output.show(&json!({ "deleted": id }), |_| format!("{id} is gone"))?;
        }
        Command::Deliveries { id, limit } => {
            let page = client.json(Ask::get(format!("/webhooks/{id}/deliveries")).query("limit", limit)).await?;
            output.show(&page, |page| {
                let names =
                    ["/id", "/event", "/kind", "/state", "/attempts", "/last_status", "/next_at", "/last_error"];
                let titles = ["ID", "EVENT", "KIND", "STATE", "ATTEMPTS", "STATUS", "NEXT", "ERROR"];
                table(&titles, &rows(&page["items"], &names))
            })?;
        }
        Command::Replay { id, delivery } => {
            let ask = Ask::post(format!("/webhooks/{id}/deliveries/{delivery}/replay"));
            let delivery = client.json(ask).await?;
            output.show(&delivery, |delivery| format!("{} will be tried", cell(&delivery["id"])))?;
        }
        Command::Test { id } => {
            let delivery = client.json(Ask::post(format!("/webhooks/{id}/test"))).await?;
            output.show(&delivery, |delivery| format!("{} will be tried", cell(&delivery["id"])))?;
        }
    }
    Ok(Outcome::Done)
}
