//! Whether a command returns before the nodes have what it changed.

use clap::Args;
use serde_json::Value;

use super::{client::Ask, output::cell};

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Return when all live nodes have applied the change, or after this time (default 5s) with exit code 3.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, default_missing_value = "5s", require_equals = true)]
    wait: Option<String>,
}

impl Wait {
    pub(super) fn apply(&self, ask: Ask) -> Ask {
        match &self.wait {
            Some(timeout) => ask.query("wait", "applied").query("timeout", timeout),
            None => ask,
        }
    }
}

/// The revision of a change, and who has applied it, if that was waited for.
pub(super) fn written(answer: &Value) -> String {
    let mut told = format!("revision {}", cell(&answer["revision"]));
    if let Some(nodes) = answer["applied"]["nodes"].as_array() {
        let by = match nodes.as_slice() {
            [] => "no node is connected".to_owned(),
            [node] => format!("applied by {}", cell(node)),
            nodes => format!("applied by all {} nodes", nodes.len()),
        };
        told = format!("{told}, {by}");
    }
    told
}
