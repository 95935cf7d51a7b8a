//! `gatewayctl tokens`

use clap::{Args, Subcommand, ValueEnum};
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

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All tokens, without what is secret.
    List,
    /// Make a token, and show it this once.
    Create(Create),
    /// Make a token worthless.
    Delete { id: Uuid },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[arg(long, value_enum)]
    kind: Kind,
    /// What it is for.
    #[arg(long)]
    name: String,
    /// Whose it is, for tokens of operators: the operator's id.
    #[arg(long, required_if_eq("kind", "operator"))]
    operator: Option<Uuid>,
    /// The one node that it is for, for tokens of nodes. Without it, the token is for any node.
    #[arg(long, conflicts_with = "operator")]
    node: Option<Id>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Operator,
    Node,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::List => {
            let tokens = Value::Array(all_pages(client, || Ask::get("/tokens")).await?);
            output.show(&tokens, |tokens| {
                let names = ["/id", "/kind", "/name", "/operator", "/node", "/created_at", "/expires_at"];
                table(&["ID", "KIND", "NAME", "OPERATOR", "NODE", "CREATED", "EXPIRES"], &rows(tokens, &names))
            })?;
        }
        Command::Create(create) => {
            let kind = match create.kind {
                Kind::Operator => "operator",
                Kind::Node => "node",
            };
            let body = json!({ "kind": kind, "name": create.name, "operator": create.operator, "node": create.node });
            let answer = client.json(Ask::post("/tokens").json(&body)).await?;
            // The one place that shows one: it was made for this.
            output.show(&answer, |answer| cell(&answer["token"]))?;
        }
        Command::Delete { id } => {
            client.ask(Ask::delete(format!("/tokens/{id}"))).await?;
            output.show(&json!({ "deleted": id }), |_| format!("{id} is worthless now"))?;
        }
    }
    Ok(Outcome::Done)
}
