//! `gatewayctl purge` and `gatewayctl warm`

use std::{path::PathBuf, time::Duration};

use clap::Args;
use seiketsu_config::values::Id;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, table},
    progress::Progress,
    transfer::read_input,
};

/// How often it is looked how far a list is.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Purge {
    tenant: Id,
    #[command(flatten)]
    what: What,
    /// How long nodes are waited for; exit code 3 if some have not purged it by then.
    #[arg(long, value_name = "TIMEOUT", default_value = "5s")]
    timeout: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One URL.
    #[arg(long)]
    url: Option<String>,
    /// All paths below this URL, or below this path of all hosts.
    #[arg(long)]
    prefix: Option<String>,
    /// All responses with this tag.
    #[arg(long)]
    tag: Option<String>,
    /// Everything that is stored for the tenant.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Warm {
    tenant: Id,
    #[arg(value_name = "URL", required_unless_present = "file")]
    urls: Vec<String>,
    /// A file with a URL in each line; - is standard input.
    #[arg(long)]
    file: Option<PathBuf>,
    /// A header field of the requests, as in `Accept-Language: de`; may be given more than once.
    #[arg(long = "header", value_name = "FIELD", value_parser = field)]
    headers: Vec<(String, String)>,
    /// Return as soon as nodes have been told.
    #[arg(long)]
    no_wait: bool,
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as Name: value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) async fn purge(arguments: Purge, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let Purge { tenant, what: What { url, prefix, tag, all }, timeout } = arguments;
    let mut body = Map::from_iter([("tenant".to_owned(), json!(tenant))]);
    for (name, value) in [("url", url), ("prefix", prefix), ("tag", tag)] {
        body.extend(value.map(|value| (name.to_owned(), value.into())));
    }
    if all {
        body.insert("all".to_owned(), true.into());
    }
    let ask = Ask::post("/cache/purge").query("timeout", timeout).json(&body.into());
    let answer = client.json(ask).await?;
    output.show(&answer, |answer| match answer["nodes"].as_array().map_or(0, Vec::len) {
        0 => "no node is connected".to_owned(),
        _ => format!("purged by {}", cell(&answer["nodes"])),
    })?;
    Ok(Outcome::Done)
}

pub(super) async fn warm(arguments: Warm, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let Warm { tenant, mut urls, file, headers, no_wait } = arguments;
    if let Some(file) = file {
        let text = read_input(&file)?;
        let lines = String::from_utf8_lossy(&text);
        urls.extend(lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let headers: Map<String, Value> = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
    let body = json!({ "tenant": tenant, "urls": urls, "headers": headers });
    let told = client.json(Ask::post("/cache/warm").json(&body)).await?;
    if no_wait {
        output.show(&told, |told| cell(&told["id"]))?;
        return Ok(Outcome::Done);
    }
    let progress = Progress::of("fetching", urls.len() as u64);
    let path = format!("/cache/warm/{}", cell(&told["id"]));
    let warming = loop {
        let warming = client.json(Ask::get(&*path)).await?;
        let (done, of) = fetched(&warming);
        progress.reach(done, of);
        if warming["done"] == true {
            break warming;
        }
        sleep(LOOK).await;
    };
    progress.end();
    output.show(&warming, shown)?;
    let failed = nodes(&warming).any(|node| node["failed"] != 0 || !matches!(node["state"].as_str(), Some("done")));
    if failed {
        return Err(Failure::NotWarmed);
    }
    Ok(Outcome::Done)
}

fn nodes(warming: &Value) -> impl Iterator<Item = &Value> {
    warming["nodes"].as_array().into_iter().flatten()
}

/// By all nodes together.
fn fetched(warming: &Value) -> (u64, u64) {
    let urls = warming["urls"].as_u64().unwrap_or_default();
    let counts = ["stored", "not_stored", "failed"];
    let of_node = |node: &Value| counts.iter().filter_map(|count| node[*count].as_u64()).sum::<u64>();
    (nodes(warming).map(of_node).sum(), urls * nodes(warming).count() as u64)
}

fn shown(warming: &Value) -> String {
    let names = ["node", "state", "stored", "not_stored", "failed", "error"];
    let rows: Vec<Vec<String>> = nodes(warming).map(|node| names.map(|name| cell(&node[name])).to_vec()).collect();
    table(&["NODE", "STATE", "STORED", "NOT STORED", "FAILED", "WHY"], &rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        purge: Purge,
    }

    #[test]
    fn it_is_clear_what_is_purged() {
        let read = |line: &[&str]| Line::try_parse_from([&["purge", "acme"], line].concat()).is_ok();
        assert!(read(&["--all"]) && read(&["--prefix", "/v1"]));
        assert!(!read(&[]) && !read(&["--all", "--tag", "t"]));
    }
}
