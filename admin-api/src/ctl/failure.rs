//! What goes wrong with a command.

use std::{fmt, io, path::PathBuf};

use seiketsu_config::error::ConfigErrors;
use serde::Deserialize;
use serde_json::Value;

use super::client::ClientError;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server's refusal.
    #[error("{0}")]
    Problem(Box<Problem>),
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("no token: say gatewayctl login, or name a file with --token-file or SEIKETSU_TOKEN_FILE")]
    NoToken,
    #[error("there is no folder for the settings of this user: set HOME or XDG_CONFIG_HOME")]
    NoHome,
    #[error("{path} cannot be read as what gatewayctl login has written ({source}): say gatewayctl login again")]
    Settings { path: PathBuf, source: serde_json::Error },
    #[error("the audit trail is not intact:{0}")]
    Audit(String),
    #[error("the answer ended before the last entry of the audit trail")]
    BrokenOff,
    #[error("the server has answered what this version does not understand: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("name at least one limit: --rpm, --burst, --daily, --monthly")]
    NoLimit,
    #[error("not everything was fetched: the table says how far each node came, and why no further")]
    NotWarmed,
}

impl Failure {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(problem) if problem.is_not_applied_everywhere() => 3,
            _ => 1,
        }
    }
}

/// A problem document (RFC 9457), with what the control plane adds.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<PlaceError>,
    #[serde(default)]
    revision: Option<u64>,
    #[serde(default)]
    applied: Value,
    /// Who has carried out an order.
    #[serde(default)]
    carried: Value,
    /// All of it, for `--output json`.
    #[serde(skip)]
    pub(super) document: Value,
}

/// What is wrong at one place of what was sent.
#[derive(Debug, Deserialize)]
struct PlaceError {
    #[serde(default)]
    path: Value,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    fix: Option<String>,
}

impl Problem {
    /// Reads an answer that is not a success.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut problem = serde_json::from_value(document.clone()).unwrap_or_else(|_| Self::without_document());
        problem.document = document;
        // What stands between may answer in its own words.
        problem.status = status;
        problem
    }

    fn without_document() -> Self {
        Self {
            kind: String::new(),
            title: "the answer is no problem document; is this the control plane?".to_owned(),
            status: 0,
            detail: String::new(),
            errors: Vec::new(),
            revision: None,
            applied: Value::Null,
            carried: Value::Null,
            document: Value::Null,
        }
    }

    /// Whether the same may well succeed later.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.status, 429 | 500..)
    }

    fn is_not_applied_everywhere(&self) -> bool {
        self.kind.ends_with("not-applied-everywhere")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = if self.detail.is_empty() { &self.title } else { &self.detail };
        write!(f, "{told} ({})", self.status)?;
        for error in &self.errors {
            let path = match &error.path {
                Value::String(path) => path.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            write!(f, "\n  {path}{}{}", if path.is_empty() { "" } else { ": " }, error.detail)?;
            if let Some(fix) = &error.fix {
                write!(f, "\n      fix: {fix}")?;
            }
        }
        if self.is_not_applied_everywhere() {
            if let Some(revision) = self.revision {
                write!(f, "\n  the change stands, as revision {revision}")?;
            }
            for missing in self.applied["missing"].as_array().into_iter().flatten() {
                let node = missing["node"].as_str().unwrap_or_default();
                let revision = &missing["revision"];
                write!(f, "\n  node {node} is at revision {revision}")?;
                for error in refusals(&missing["refused"]) {
                    write!(f, "\n      refused: {error}")?;
                }
            }
            for missing in self.carried["missing"].as_array().into_iter().flatten() {
                let [node, reason] = ["node", "reason"].map(|name| missing[name].as_str().unwrap_or_default());
                write!(f, "\n  node {node}: {reason}")?;
            }
        }
        Ok(())
    }
}

/// The messages in a list of refused documents, each with the tenant that it is about.
pub(super) fn refusals(refused: &Value) -> Vec<String> {
    let mut told = Vec::new();
    for document in refused.as_array().into_iter().flatten() {
        let tenant = document["tenant"].as_str().unwrap_or("(head)");
        for error in document["errors"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            told.push(format!("{tenant}: {error}"));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_names_the_places() {
        let body = json!({
            "type": "about:blank", "title": "Unprocessable Content", "status": 422, "detail": "the tenant is wrong",
            "errors": [{ "path": "routes[0].upstream", "detail": "there is no upstream x", "fix": "add it" }],
        });
        let problem = Problem::read(422, body.to_string().as_bytes());
        let told = problem.to_string();
        assert_eq!(told, "the tenant is wrong (422)\n  routes[0].upstream: there is no upstream x\n      fix: add it");
        assert_eq!(Failure::Problem(Box::new(problem)).exit_code(), 1);
    }

    #[test]
    fn what_is_not_applied_everywhere_names_the_nodes() {
        let body = json!({
            "type": "/problems/not-applied-everywhere", "status": 504, "detail": "1 of 2 nodes has not applied it",
            "revision": 7,
            "applied": { "nodes": ["n1"], "missing": [{
                "node": "n2", "revision": 6, "refused": [{ "tenant": "acme", "errors": ["no such file: k"] }],
            }] },
        });
        let problem = Problem::read(504, body.to_string().as_bytes());
        let told = problem.to_string();
        for part in ["revision 7", "node n2 is at revision 6", "acme: no such file: k"] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(Failure::Problem(Box::new(problem)).exit_code(), 3);
    }

    #[test]
    fn an_answer_of_something_else_is_told_as_such() {
        let told = Problem::read(502, b"<html>").to_string();
        assert!(told.contains("is this the control plane?") && told.contains("502"), "{told}");
    }
}
