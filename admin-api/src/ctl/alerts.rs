//! `gatewayctl alerts`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use uuid::Uuid;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
};
use crate::store::{alert_rules::Severity, alerts::AlertState};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The last alerts, the newest first.
    List(List),
    /// Say that somebody sees to it.
    Ack { id: Uuid },
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[arg(long, value_enum)]
    state: Option<AlertState>,
    #[arg(long, value_enum)]
    severity: Option<Severity>,
    #[arg(long)]
    tenant: Option<Id>,
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List(list) => {
            let ask = Ask::get("/alerts")
                .query("limit", list.limit)
                .query_if("state", list.state.map(AlertState::as_str))
                .query_if("severity", list.severity.map(Severity::as_str))
                .query_if("tenant", list.tenant);
            let page = client.json(ask).await?;
            output.show(&page, |page| {
                let names = ["/id", "/severity", "/state", "/opened_at", "/rule", "/tenant", "/summary"];
                let titles = ["ID", "SEVERITY", "STATE", "OPENED", "RULE", "TENANT", "SUMMARY"];
                table(&titles, &rows(&page["items"], &names))
            })?;
        }
        Command::Ack { id } => {
            let alert = client.json(Ask::post(format!("/alerts/{id}/acknowledge"))).await?;
            output.show(&alert, |alert| {
                format!("{} sees to it: {}", cell(&alert["acknowledged_by"]), cell(&alert["summary"]))
            })?;
        }
    }
    Ok(Outcome::Done)
}
