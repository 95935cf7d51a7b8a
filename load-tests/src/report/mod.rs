//! From the files of one run to a verdict, `report.json` and `report.html`.
//!
//! A run's folder holds what was asked for (`run.json`, [`Run`]), the generator's own summary
//! (`oha.json`), every request that got an answer (`requests.csv`) and the gateway's CPU time, memory and
//! connections once a second (`samples.jsonl`, [`Sample`]). [`measured`] reads them, [`verdict`] judges,
//! [`page`] draws with [`plot`].

pub mod measured;
pub mod page;
pub mod plot;
pub mod verdict;

use std::{fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use self::{measured::Measured, verdict::Verdict};

/// What was asked for, and of whom.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Run {
    /// URL that was asked for.
    pub target: String,
    /// The `Host` field, which chooses the tenant.
    pub host: String,
    pub connections: usize,
    /// Requests a second, started on schedule whether or not earlier ones have been answered.
    pub rate: f64,
    pub duration_seconds: u64,
    /// When it began, RFC 3339.
    pub began: String,
    pub generator: String,
    pub machine: String,
    /// Open files that the generator may have.
    pub file_limit: u64,
}

/// The gateway's process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Sample {
    /// Since the generator was started; below zero for what was seen before.
    pub seconds: f64,
    /// User and system time since the process began.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// Established connections to its port; counted less often than once a second, for it costs time.
    pub connections: Option<usize>,
}

pub const RUN: &str = "run.json";
pub const SUMMARY: &str = "oha.json";
pub const REQUESTS: &str = "requests.csv";
pub const SAMPLES: &str = "samples.jsonl";

/// Reads the folder, writes `report.json` and `report.html` into it, and gives the verdict.
pub fn write(folder: &Path) -> anyhow::Result<Verdict> {
    let measured = Measured::read(folder)?;
    let verdict = Verdict::of(&measured);
    let save = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    save("report.json", serde_json::to_string_pretty(&verdict)? + "\n")?;
    save("report.html", page::render(&measured, &verdict))?;
    Ok(verdict)
}
