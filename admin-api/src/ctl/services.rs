//! `gatewayctl services`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, table},
    tenants::all_pages,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What routes send requests to; those without a tenant are for all.
    List(List),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those of this tenant.
    #[arg(long)]
    tenant: Option<Id>,
    /// Only those with an endpoint at this address, as in orders.example:8443.
    #[arg(long)]
    address: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let Command::List(List { tenant, address }) = command;
    let ask = || Ask::get("/services").query_if("tenant", tenant.as_ref()).query_if("address", address.as_ref());
    let services = Value::Array(all_pages(client, ask).await?);
    output.show(&services, |services| {
        let row = |service: &Value| {
            let endpoints = service["endpoints"].as_array().into_iter().flatten();
            let addresses: Vec<String> = endpoints.map(|endpoint| cell(&endpoint["address"])).collect();
            let [tenant, id, protocol, health] =
                ["tenant", "id", "protocol", "health"].map(|name| cell(&service[name]));
            vec![tenant, id, protocol, health, addresses.join(", ")]
        };
        let rows: Vec<Vec<String>> = services.as_array().into_iter().flatten().map(row).collect();
        table(&["TENANT", "SERVICE", "PROTOCOL", "HEALTH", "ENDPOINTS"], &rows)
    })?;
    Ok(Outcome::Done)
}
