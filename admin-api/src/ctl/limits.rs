//! `gatewayctl limits`

use clap::{Args, Subcommand};
use seiketsu_config::values::Id;
use serde_json::{Map, Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, table},
    wait::{Wait, written},
};

/// The columns that are limits, and what they are called here.
const LIMITS: [(&str, &str); 4] = [
    ("rate_limit_rpm", "requests per minute"),
    ("burst_limit", "burst"),
    ("quota_daily", "requests per day"),
    ("quota_monthly", "requests per month"),
];

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the limits of a tenant.
    Get { tenant: Id },
    /// Change those that are named; the others stay.
    Set(Set),
}

#[derive(Debug, Args)]
pub(super) struct Set {
    tenant: Id,
    /// Requests per minute, or unlimited.
    #[arg(long, value_name = "NUMBER", value_parser = limit)]
    rpm: Option<Limit>,
    /// Requests at once.
    #[arg(long, value_name = "NUMBER", value_parser = limit)]
    burst: Option<Limit>,
    /// Requests per calendar day, or unlimited.
    #[arg(long, value_name = "NUMBER", value_parser = limit)]
    daily: Option<Limit>,
    /// Requests per calendar month, or unlimited.
    #[arg(long, value_name = "NUMBER", value_parser = limit)]
    monthly: Option<Limit>,
    #[command(flatten)]
    wait: Wait,
}

/// None: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "unlimited" => Ok(Limit(None)),
        number => {
            let number = number.parse().map_err(|_| "write a number, or unlimited".to_owned())?;
            Ok(Limit(Some(number)))
        }
    }
}

pub(super) async fn run(command: Command, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Get { tenant } => {
            let configuration = client.json(Ask::get("/gateway/configure").query("tenant", tenant)).await?;
            output.show(&configuration, shown)?;
        }
        Command::Set(set) => {
            let answer = client.json(set.wait.apply(Ask::put("/gateway/limits").json(&set.body()?))).await?;
            output.show(&answer, |answer| format!("{}: {}", set.tenant, written(answer)))?;
        }
    }
    Ok(Outcome::Done)
}

impl Set {
    fn body(&self) -> Result<Value, Failure> {
        let named = [self.rpm, self.burst, self.daily, self.monthly];
        if named.iter().all(Option::is_none) {
            return Err(Failure::NoLimit);
        }
        let mut body = Map::from_iter([("tenant".to_owned(), json!(self.tenant))]);
        for ((column, _), limit) in LIMITS.iter().zip(named) {
            if let Some(Limit(limit)) = limit {
                body.insert((*column).to_owned(), json!(limit));
            }
        }
        Ok(body.into())
    }
}

fn shown(configuration: &Value) -> String {
    let row = |(column, name): &(&str, &str)| {
        let limit = &configuration[column];
        vec![(*name).to_owned(), if limit.is_null() { "unlimited".to_owned() } else { cell(limit) }]
    };
    table(&["LIMIT", "VALUE"], &LIMITS.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        set: Set,
    }

    #[test]
    fn only_what_is_named_changes() {
        let body = |line: &[&str]| Line::try_parse_from([&["set", "acme"], line].concat()).map(|line| line.set.body());
        let named = body(&["--rpm", "500", "--daily", "unlimited"]).unwrap().unwrap();
        assert_eq!(named, json!({ "tenant": "acme", "rate_limit_rpm": 500, "quota_daily": null }));
        assert!(matches!(body(&[]).unwrap(), Err(Failure::NoLimit)));
        assert!(body(&["--rpm", "-1"]).is_err());
    }
}
