//! One open-loop run: a gateway with two origins (or one that runs already), a generator that keeps its
//! schedule, a sampler beside it, and a folder with all they measured.

pub mod gateway;
pub mod generator;
pub mod sampler;

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use url::Url;

use self::{gateway::OwnGateway, generator::Generator, sampler::Sampler};
use crate::{
    process,
    report::{self, REQUESTS, RUN, Run, SAMPLES, SUMMARY, verdict::Verdict},
};

/// What to do, as the command line has it.
#[derive(Debug)]
pub struct Plan {
    /// A gateway that runs already; without it one is started.
    pub target: Option<Url>,
    pub tenant: String,
    pub path: String,
    pub connections: usize,
    pub rate: f64,
    pub duration_seconds: u64,
    /// Where the run's files go.
    pub folder: PathBuf,
    pub oha: PathBuf,
    pub gateway: PathBuf,
    pub origin: PathBuf,
}

/// File descriptors that the generator needs beside its connections.
const SPARE_FILES: u64 = 200;

/// Carries the plan out and writes the report into its folder.
pub fn run(plan: &Plan) -> anyhow::Result<Verdict> {
    fs::create_dir_all(&plan.folder).with_context(|| format!("cannot make {}", plan.folder.display()))?;
    let file_limit = process::raise_file_limit();
    if (plan.connections as u64) + SPARE_FILES > file_limit {
        bail!(
            "{} connections need {} open files and this machine allows {file_limit}: raise it with `ulimit -Hn` as root, or ask for fewer with --connections",
            plan.connections,
            plan.connections as u64 + SPARE_FILES,
        );
    }

    let own = match &plan.target {
        Some(_) => None,
        None => Some(OwnGateway::start(plan)?),
    };
    let base = match (&plan.target, &own) {
        (Some(target), _) => target.clone(),
        (None, Some(own)) => Url::parse(&format!("http://{}", own.address()))?,
        (None, None) => bail!("no gateway"),
    };
    let target = base.join(&plan.path).with_context(|| format!("{:?} is not a path", plan.path))?;
    let port = target.port_or_known_default().context("the target has no port")?;
    let pid =
        own.as_ref().map(OwnGateway::pid).or_else(|| local(&target).then(|| process::listener_of(port)).flatten());

    let generator = Generator { oha: &plan.oha, target: &target, host: &format!("{}.localhost", plan.tenant) };
    generator.check()?;
    let run = Run {
        target: target.to_string(),
        host: generator.host.to_owned(),
        connections: plan.connections,
        rate: plan.rate,
        duration_seconds: plan.duration_seconds,
        began: now(),
        generator: generator.version()?,
        machine: machine(),
        file_limit,
    };
    fs::write(plan.folder.join(RUN), serde_json::to_string_pretty(&run)?)?;

    let sampler = Sampler::start(pid, port, &plan.folder.join(SAMPLES))?;
    generator.run(&run, &plan.folder.join(SUMMARY), &plan.folder.join(REQUESTS))?;
    sampler.stop()?;
    drop(own);
    report::write(&plan.folder)
}

fn local(target: &Url) -> bool {
    match target.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

fn now() -> String {
    time::OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .ok()
        .and_then(|now| now.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// "2 × AMD EPYC": cores and processor.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    format!("{cores} × {}", model.as_deref().unwrap_or("unknown processor"))
}
