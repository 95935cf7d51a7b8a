//! The generator: oha, open-loop, with its requests on record.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, bail};
use url::Url;

use crate::{process, report::Run};

/// Requests without an answer after this count as failed.
const TIMEOUT: &str = "10s";

#[derive(Debug)]
pub struct Generator<'a> {
    pub oha: &'a Path,
    pub target: &'a Url,
    pub host: &'a str,
}

impl Generator<'_> {
    pub fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(self.oha)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", self.oha.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// One request before thousands: a target that cannot answer is named at once.
    pub fn check(&self) -> anyhow::Result<()> {
        let output = Command::new(self.oha)
            .args(["--no-tui", "--output-format", "json", "-n", "1", "-c", "1", "-t", TIMEOUT])
            .args(["-H", &format!("Host: {}", self.host), "--insecure", self.target.as_str()])
            .output()
            .with_context(|| format!("cannot run {}", self.oha.display()))?;
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("oha said: {}", String::from_utf8_lossy(&output.stderr)))?;
        let statuses = &summary["statusCodeDistribution"];
        if statuses.get("200").is_none() {
            bail!(
                "{} does not answer a first request for host {} with 200: {statuses} {}",
                self.target,
                self.host,
                summary["errorDistribution"]
            );
        }
        Ok(())
    }

    /// Runs to the end; `summary` gets oha's own JSON, `requests` one line `due,end,status` for each answer.
    pub fn run(&self, run: &Run, summary: &Path, requests: &Path) -> anyhow::Result<()> {
        let database = summary.with_file_name("requests.sqlite");
        if database.exists() {
            fs::remove_file(&database)?;
        }
        let mut oha = process::command(self.oha, None);
        oha.args([
            "--no-tui",
            "--output-format",
            "json",
            "--latency-correction",
            "--disable-compression",
            "--insecure",
        ])
        // Requests in flight at the end are waited for, so that slow ones are not lost.
        .args(["--wait-ongoing-requests-after-deadline", "-t", TIMEOUT, "--connect-timeout", TIMEOUT])
        .args([
            "-q",
            &run.rate.to_string(),
            "-c",
            &run.connections.to_string(),
            "-z",
            &format!("{}s", run.duration_seconds),
        ])
        .args(["-H", &format!("Host: {}", self.host)])
        .arg("--output")
        .arg(summary)
        .arg("--db-url")
        .arg(&database)
        .arg(self.target.as_str());
        let output = oha.output().with_context(|| format!("cannot run {}", self.oha.display()))?;
        if !output.status.success() {
            bail!("oha ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        export(&database, requests)?;
        fs::remove_file(&database).or_else(|error| if database.exists() { Err(error) } else { Ok(()) })?;
        Ok(())
    }
}

fn export(database: &Path, requests: &Path) -> anyhow::Result<()> {
    // oha makes no table when nothing was answered.
    let query = "SELECT coalesce(start_latency_correction, start), end, status FROM oha ORDER BY 1";
    let output = Command::new("sqlite3")
        .args(["-batch", "-csv"])
        .arg(database)
        .arg(query)
        .output()
        .context("cannot run sqlite3: apt-get install sqlite3")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !complaint.contains("no such table") {
        bail!("sqlite3: {complaint}");
    }
    fs::write(requests, output.stdout).with_context(|| format!("cannot write {}", requests.display()))
}
