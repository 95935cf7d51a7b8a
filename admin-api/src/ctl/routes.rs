//! `gatewayctl routes`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, rows, table},
    tenants::all_pages,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Which requests go where.
    List(List),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those of this tenant.
    #[arg(long)]
    tenant: Option<Id>,
    /// Only those that send something to this service.
    #[arg(long)]
    upstream: Option<Id>,
    /// Only those of the tenant that this host name leads to.
    #[arg(long)]
    host: Option<String>,
    /// Only those whose path, as it is written, begins with this.
    #[arg(long)]
    path: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let Command::List(List { tenant, upstream, host, path }) = command;
    let ask = || {
        Ask::get("/routes")
            .query_if("tenant", tenant.as_ref())
            .query_if("upstream", upstream.as_ref())
            .query_if("host", host.as_ref())
            .query_if("path", path.as_ref())
    };
    output.show(&Value::Array(all_pages(client, ask).await?), |routes| {
        let names = ["/tenant", "/id", "/hosts", "/methods", "/path", "/upstream", "/canary"];
        table(&["TENANT", "ROUTE", "HOSTS", "METHODS", "PATH", "SERVICE", "CANARY"], &rows(routes, &names))
    })?;
    Ok(Outcome::Done)
}
