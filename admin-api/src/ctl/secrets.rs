//! `gatewayctl secrets`

use clap::Subcommand;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new data key, and seal every secret in the store with it that opens.
    Rotate,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Rotate => {
            let answer = client.json(Ask::post("/secrets/rotate")).await?;
            output.show(&answer, |answer| {
                let sealed = format!(
                    "{} secrets are sealed with the new key {}",
                    cell(&answer["resealed"]),
                    cell(&answer["key"])
                );
                let named = answer["unopened_secrets"].as_array().into_iter().flatten();
                let name = |secret: &Value| {
                    let [table, column, row] = ["table", "column", "row"].map(|name| cell(&secret[name]));
                    format!("\n  {table} {row}: {column} does not open, and is as it was")
                };
                named.map(name).fold(sealed, |told, name| told + &name)
            })?;
        }
    }
    Ok(Outcome::Done)
}
