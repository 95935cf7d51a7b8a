//! `gatewayctl nodes`

use clap::Args;
use seiketsu_config::values::Id;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::{Failure, refusals},
    output::{Output, cell, table},
    tenants::all_pages,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this one, with what it refuses.
    node: Option<Id>,
    /// Know it no longer: it is gone for good.
    #[arg(long, requires = "node")]
    forget: bool,
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    if let Some(node) = arguments.node.as_ref().filter(|_| arguments.forget) {
        client.ask(Ask::delete(format!("/nodes/{node}"))).await?;
        output.show(&json!({ "forgotten": node }), |_| format!("{node} is known no longer"))?;
    } else if let Some(node) = arguments.node {
        let node = client.json(Ask::get(format!("/nodes/{node}"))).await?;
        output.show(&node, |node| {
            let refused: Vec<String> =
                refusals(&node["refused"]).iter().map(|error| format!("refused: {error}\n")).collect();
            listed(std::slice::from_ref(node)) + &refused.concat()
        })?;
    } else {
        let nodes = json!({ "items": all_pages(client, || Ask::get("/nodes")).await? });
        output.show(&nodes, |nodes| listed(nodes["items"].as_array().map_or(&[][..], Vec::as_slice)))?;
    }
    Ok(Outcome::Done)
}

fn listed(nodes: &[Value]) -> String {
    let row = |node: &Value| {
        let flag = |name: &str| if node[name] == true { "yes" } else { "no" }.to_owned();
        let more = node["refused_more"].as_u64().unwrap_or_default();
        let refused = node["refused"].as_array().map_or(0, |refused| refused.len() as u64) + more;
        vec![
            cell(&node["id"]) + if node["twin"] == true { " (another one with this id runs as well)" } else { "" },
            flag("live"),
            flag("ready"),
            cell(&node["revision"]),
            refused.to_string(),
            cell(&node["region"]),
            cell(&node["version"]),
            cell(&node["heard_at"]),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["NODE", "LIVE", "READY", "REVISION", "REFUSED", "REGION", "VERSION", "HEARD"], &rows)
}
