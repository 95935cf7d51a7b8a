//! `gatewayctl alert-rules`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    tenants::all_pages,
};
use crate::store::alert_rules::Severity;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All rules.
    List,
    /// Add a rule, or change the one with this name.
    Set(Set),
    /// Watch for it no more.
    Delete { id: Uuid },
}

#[derive(Debug, Args)]
pub(super) struct Set {
    name: Id,
    /// As in `node_gone` or `expiring`; /docs of the control plane lists the kinds.
    #[arg(long)]
    kind: String,
    /// What belongs to the kind, as in `within_days=30`.
    #[arg(value_parser = setting, value_name = "SETTING=VALUE")]
    settings: Vec<(String, Value)>,
    #[arg(long, value_enum, default_value_t = Severity::Warning)]
    severity: Severity,
    /// Only for this tenant.
    #[arg(long)]
    tenant: Option<Id>,
    /// Keep it, and do not watch for it.
    #[arg(long)]
    disabled: bool,
}

/// Numbers are numbers, `true` and `false` are what they are, and everything else is text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text}: write it as in within_days=30"))?;
    let number = value.parse::<u32>().map(Value::from);
    let read = number.or_else(|_| value.parse::<bool>().map(Value::from));
    Ok((name.to_owned(), read.unwrap_or_else(|_| value.into())))
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List => {
            let rules = Value::Array(all_pages(client, || Ask::get("/alerts/rules")).await?);
            output.show(&rules, |rules| {
                let names = ["/id", "/name", "/severity", "/enabled", "/tenant", "/condition"];
                table(&["ID", "NAME", "SEVERITY", "ENABLED", "TENANT", "CONDITION"], &rows(rules, &names))
            })?;
        }
        Command::Set(set) => {
            let mut condition = json!({ "kind": set.kind });
            for (name, value) in set.settings {
                condition[name] = value;
            }
            let body = json!({
                "name": set.name, "condition": condition, "severity": set.severity, "tenant": set.tenant,
                "enabled": !set.disabled,
            });
            let there = all_pages(client, || Ask::get("/alerts/rules")).await?;
            let there = there.iter().find(|rule| rule["name"] == body["name"] && rule["tenant"] == body["tenant"]);
            let ask = match there {
                Some(rule) => {
                    let etag = format!("\"{}\"", rule["revision"]);
                    Ask::put(format!("/alerts/rules/{}", cell(&rule["id"]))).if_match(Some(etag))
                }
                None => Ask::post("/alerts/rules"),
            };
            let rule = client.json(ask.json(&body)).await?;
            output.show(&rule, |rule| format!("{}: {}", cell(&rule["id"]), cell(&rule["name"])))?;
        }
        Command::Delete { id } => {
            client.ask(Ask::delete(format!("/alerts/rules/{id}"))).await?;
            output.show(&json!({ "deleted": id }), |_| format!("{id} is gone"))?;
        }
    }
    Ok(Outcome::Done)
}
