//! `gatewayctl nodes`

use clap::Args;
use seiketsu_config::values::Id;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::{Failure, refusals},
    output::{Output, cell, table},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this one, with what it refuses.
    node: Option<Id>,
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    if let Some(node) = arguments.node {
        let node = client.json(Ask::get(format!("/nodes/{node}"))).await?;
        output.show(&node, |node| {
            let refused: Vec<String> =
                refusals(&node["refused"]).iter().map(|error| format!("refused: {error}\n")).collect();
            listed(std::slice::from_ref(node)) + &refused.concat()
        })?;
    } else {
        let nodes = client.json(Ask::get("/nodes")).await?;
        output.show(&nodes, |nodes| listed(nodes["items"].as_array().map_or(&[][..], Vec::as_slice)))?;
    }
    Ok(Outcome::Done)
}

fn listed(nodes: &[Value]) -> String {
    let row = |node: &Value| {
        let flag = |name: &str| if node[name] == true { "yes" } else { "no" }.to_owned();
        let refused = node["refused"].as_array().map_or(0, Vec::len);
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
