//! `gatewayctl secrets`

use clap::Subcommand;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new data key, and seal every secret in the store with it.
    Rotate,
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Rotate => {
            let answer = client.json(Ask::post("/secrets/rotate")).await?;
            output.show(&answer, |answer| {
                format!("{} secrets are sealed with the new key {}", cell(&answer["resealed"]), cell(&answer["key"]))
            })?;
        }
    }
    Ok(Outcome::Done)
}
