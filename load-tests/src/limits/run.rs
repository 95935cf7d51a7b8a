//! One scenario after another: gateways, load, fault, and what is to be said of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::runtime::Handle;

use super::{
    Micros,
    cluster::{Cluster, tenants_file},
    driver::{self, Answered, Driving},
    events::{self, Event},
    micros,
    origin::Origin,
    outcome::{Outcome, Seen},
    pause,
    proxy::Proxy,
    redis::{DURABLE, Redis},
    scenario::{CROWD_RATE, Fault, Scenario, Setting, Tenant, crowd},
    seconds,
    sentinel::Sentinel,
    stalls::Stalls,
    trace, wall,
};

/// What to do, as the command line has it.
#[derive(Debug)]
pub struct Plan {
    pub gateway: PathBuf,
    pub redis: PathBuf,
    /// Where the run's files go.
    pub folder: PathBuf,
    pub quick: bool,
    /// Only these, if there are any.
    pub scenarios: Vec<String>,
    /// Tenants in the crowd; 0: leaves it out.
    pub crowd: usize,
    pub seed: u64,
}

/// A new Redis gives nothing for so long, and then what has come since.
const REDIS_OPENS_AFTER: Duration = Duration::from_secs(3);

/// Of one that takes over. In its first half minute it gives nothing of quotas until it was told everything, however it
/// came to be the master; an older one must not give too much either.
const REPLICA_AGE: Duration = Duration::from_secs(35);

/// Lines of an access log come a moment after what they tell of.
const LOG_PATIENCE: Duration = Duration::from_secs(3);

/// What gateways and Redis write; begun anew with each run.
const FILES: &str = "run";

/// Runs what the plan says; calls `done` with each outcome.
pub fn run(plan: &Plan, mut done: impl FnMut(&Outcome)) -> anyhow::Result<Vec<Outcome>> {
    let scenarios: Vec<Scenario> = super::scenario::all(plan.quick && plan.scenarios.is_empty(), plan.crowd)
        .into_iter()
        .filter(|scenario| plan.scenarios.is_empty() || plan.scenarios.iter().any(|name| name == scenario.name))
        .collect();
    if scenarios.is_empty() {
        bail!("there is no such scenario; --list names them");
    }
    let files = plan.folder.join(FILES);
    if files.exists() {
        fs::remove_dir_all(&files).with_context(|| format!("cannot remove {}", files.display()))?;
    }
    fs::create_dir_all(&files)?;
    crate::process::raise_file_limit();
    let runtimes = [Background::start("driver")?, Background::start("origin")?];
    let mut stage = Stage::start(plan, &scenarios, &runtimes[0].handle, &runtimes[1].handle)?;
    let mut outcomes = Vec::new();
    for scenario in &scenarios {
        let outcome = stage.play(scenario).with_context(|| format!("scenario {}", scenario.name))?;
        done(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// A runtime on a thread of its own, so that driver and origin do not wait for each other.
#[derive(Debug)]
struct Background {
    handle: Handle,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Background {
    fn start(name: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }
}

/// What scenarios are played with.
struct Stage<'a> {
    plan: &'a Plan,
    scenarios: &'a [Scenario],
    driver: Handle,
    origin: Origin,
    /// One that never fails, and one that does.
    steady: Redis,
    faulty: Redis,
    proxy: Proxy,
    /// Where a scenario needs it.
    sentinel: Option<Sentinel>,
    cluster: Option<(Setting, Cluster)>,
    stalls: Stalls,
    revision: u64,
    next_number: u64,
}

impl<'a> Stage<'a> {
    fn start(plan: &'a Plan, scenarios: &'a [Scenario], driver: &Handle, origin: &Handle) -> anyhow::Result<Self> {
        let files = plan.folder.join(FILES);
        let steady = Redis::start(&plan.redis, &files.join("redis"), &[])?;
        let faulty = Redis::start(&plan.redis, &files.join("redis-faulty"), &DURABLE)?;
        let is_watched = scenarios.iter().any(|scenario| scenario.setting == Setting::Sentinel);
        let sentinel = is_watched.then(|| Sentinel::start(&plan.redis, &files.join("redis-watched"))).transpose()?;
        Ok(Self {
            plan,
            scenarios,
            driver: driver.clone(),
            origin: Origin::start(origin)?,
            proxy: Proxy::start(faulty.address(), origin)?,
            steady,
            faulty,
            sentinel,
            cluster: None,
            stalls: Stalls::watch()?,
            revision: 1,
            next_number: 1,
        })
    }

    fn redis(&self, setting: Setting) -> &Redis {
        match (setting, &self.sentinel) {
            (Setting::Faulty, _) => &self.faulty,
            (Setting::Sentinel, Some(sentinel)) => sentinel.master(),
            _ => &self.steady,
        }
    }

    /// Gateways for this setting: those that run, if they are.
    fn set(&mut self, setting: Setting) -> anyhow::Result<()> {
        if self.cluster.as_ref().is_some_and(|(is, _)| *is == setting) {
            return Ok(());
        }
        // First these end, so that they count no more.
        self.cluster = None;
        let (steady, faulty) = (self.steady.url(), self.faulty.url());
        let (name, redis) = match setting {
            Setting::Three => ("three", vec![steady; 3]),
            Setting::Faulty => ("faulty", vec![faulty.clone(), faulty, self.proxy.url()]),
            Setting::Sentinel => ("sentinel", vec![self.sentinel()?.url(); 3]),
            Setting::Clocks => ("clocks", vec![steady; 3]),
            Setting::Twenty => ("twenty", vec![steady; 20]),
            Setting::Crowd(_) => ("crowd", vec![steady; 3]),
        };
        let library = if setting == Setting::Clocks { Some(faketime()?) } else { None };
        self.revision = 1;
        let file = self.tenants_file(setting, None);
        let folder = self.plan.folder.join(FILES).join(name);
        let cluster = Cluster::start(&self.plan.gateway, &folder, &redis, &file, library.as_deref())?;
        self.cluster = Some((setting, cluster));
        Ok(())
    }

    /// Of this setting's scenarios; of one of them the first tenant may have another limit.
    fn tenants_file(&self, setting: Setting, other: Option<(&Scenario, super::scenario::Limit)>) -> String {
        let mut tenants: Vec<Tenant> = self
            .scenarios
            .iter()
            .filter(|scenario| scenario.setting == setting)
            .flat_map(|scenario| scenario.tenants.clone())
            .collect();
        if let Some((scenario, limit)) = other {
            let changed = &scenario.tenants[0].id;
            for tenant in tenants.iter_mut().filter(|tenant| tenant.id == *changed) {
                tenant.limit = Some(limit);
            }
        }
        if let Setting::Crowd(count) = setting {
            tenants.extend(crowd(count));
        }
        tenants_file(self.origin.address(), self.revision, &tenants)
    }

    fn sentinel(&mut self) -> anyhow::Result<&mut Sentinel> {
        self.sentinel.as_mut().context("no sentinel")
    }

    fn cluster(&mut self) -> anyhow::Result<&mut Cluster> {
        Ok(&mut self.cluster.as_mut().context("no gateways")?.1)
    }

    fn play(&mut self, scenario: &Scenario) -> anyhow::Result<Outcome> {
        let started = wall();
        self.set(scenario.setting)?;
        let mut remarks = Vec::new();
        if matches!(scenario.setting, Setting::Crowd(_)) {
            remarks.push(format!("the gateways were ready after {:.1} s", seconds(wall() - started)));
        }
        self.wait_for_full_buckets(scenario)?;
        let (tenants, planned) = self.trace(scenario);
        let hosts = Arc::new(tenants.iter().map(Tenant::host).collect::<Vec<_>>());
        let first = self.next_number;
        self.next_number += planned.len() as u64;
        let scripts_before = self.redis(scenario.setting).scripts_run().ok();
        let (addresses, driver) = (self.cluster()?.addresses(), self.driver.clone());
        let before = self.cluster()?.counted()?;
        self.stalls.take();
        let driving = driver::start(planned, hosts, &addresses, first, &driver);
        let mut seen = Seen {
            events: Vec::new(),
            stalls: Vec::new(),
            began: driving.began,
            nodes: scenario.setting.nodes(),
            from: None,
            until: None,
            taken: None,
            before,
            steady: None,
            after: None,
        };
        if scenario.fault.is_none() {
            driving.wait_until(scenario.steady_after.min(scenario.lasts * 2 / 3));
            seen.steady = Some((self.cluster()?.counted()?, wall()));
        }
        let mut happened = Vec::new();
        if let Some(fault) = scenario.fault {
            self.fail(scenario, fault, &driving, &mut seen, &mut happened)?;
        }
        driving.wait_until(scenario.lasts);
        if !matches!(scenario.fault, Some(Fault::NodeKilled { .. })) {
            seen.after = Some((self.cluster()?.counted()?, wall()));
        }
        let answered = driving.finish()?;
        let scripts_after = self.redis(scenario.setting).scripts_run().ok();
        seen.stalls = self.stalls.take();
        seen.events = self.events(&answered, &mut remarks)?;
        if matches!(scenario.fault, Some(Fault::NodeKilled { .. })) {
            let last = seen.nodes - 1;
            self.cluster()?.start_again(last)?;
        }
        // A new process counts anew.
        let is_new =
            matches!(scenario.fault, Some(Fault::RedisAway { hung: false, .. } | Fault::RedisRestarted { .. }));
        let scripts_after = scripts_after.filter(|_| !is_new);
        let scripts_run = scripts_before.zip(scripts_after).and_then(|(before, after)| after.checked_sub(before));
        Outcome::of(scenario, &tenants, &seen, &answered, (scripts_run, happened, remarks))
    }

    /// Tenants and their requests.
    fn trace(&self, scenario: &Scenario) -> (Vec<Tenant>, Vec<trace::Planned>) {
        let (nodes, lasts) = (scenario.setting.nodes(), scenario.lasts);
        let mut tenants = scenario.tenants.clone();
        let mut traces: Vec<_> = tenants
            .iter()
            .enumerate()
            .map(|(index, tenant)| {
                trace::of_tenant(index, tenant.rate, tenant.arrivals, scenario.spread, nodes, lasts, self.plan.seed)
            })
            .collect();
        if let Setting::Crowd(count) = scenario.setting {
            traces.push(trace::zipf(tenants.len(), count, CROWD_RATE, nodes, lasts, self.plan.seed));
            tenants.extend(crowd(count));
        }
        (tenants, trace::merged(traces))
    }

    /// A tenant that is new to Redis has what would have come since Redis began.
    fn wait_for_full_buckets(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let limits = scenario.tenants.iter().filter_map(|tenant| tenant.limit);
        let fill = limits.map(|limit| limit.burst as f64 / limit.per_second()).fold(0.0, f64::max);
        let fill = if matches!(scenario.setting, Setting::Crowd(_)) { 10.0 } else { fill };
        let mut needed = REDIS_OPENS_AFTER + Duration::from_secs_f64(fill);
        if scenario.setting == Setting::Sentinel {
            needed = needed.max(REPLICA_AGE);
        }
        pause(needed.saturating_sub(self.redis(scenario.setting).age()));
        self.cluster()?.wait_until_together()
    }

    fn fail(
        &mut self,
        scenario: &Scenario,
        fault: Fault,
        driving: &Driving,
        seen: &mut Seen,
        happened: &mut Vec<(f64, String)>,
    ) -> anyhow::Result<()> {
        let mut note = |what: &str| {
            happened.push((seconds(wall().saturating_sub(driving.began)), what.to_owned()));
            wall()
        };
        match fault {
            Fault::NodeKilled { at } => {
                driving.wait_until(at);
                let last = seen.nodes - 1;
                seen.from = Some(note("a node is killed"));
                self.cluster()?.kill(last)?;
            }
            Fault::RedisRestarted { at, with_data } => {
                driving.wait_until(at);
                seen.from = Some(note("Redis is killed"));
                self.faulty.kill()?;
                if !with_data {
                    self.faulty.lose_data()?;
                }
                self.faulty.start_again()?;
                seen.until = Some(note("Redis is back"));
            }
            Fault::RedisAway { at, back, hung } => {
                driving.wait_until(at);
                seen.from = Some(note(if hung { "Redis hangs" } else { "Redis is killed" }));
                if hung {
                    self.faulty.hang()?;
                } else {
                    self.faulty.kill()?;
                }
                driving.wait_until(back);
                if hung {
                    self.faulty.go_on()?;
                } else {
                    self.faulty.start_again()?;
                }
                seen.until = Some(note("Redis is back"));
            }
            Fault::FailedOver { at } => {
                driving.wait_until(at);
                seen.from = Some(note("the master is killed"));
                self.sentinel()?.kill_master()?;
                self.sentinel()?.wait_until_promoted()?;
                seen.until = Some(note("its replica is the master"));
            }
            Fault::Cut { at, back } => {
                driving.wait_until(at);
                seen.from = Some(note("a node is cut off"));
                self.proxy.cut();
                driving.wait_until(back);
                self.proxy.mend();
                seen.until = Some(note("the way is open again"));
            }
            Fault::ClocksMoved { at } => {
                driving.wait_until(at);
                self.cluster()?.move_clock(1, 5)?;
                self.cluster()?.move_clock(2, -5)?;
                note("clocks are moved");
            }
            Fault::LimitChanged { at, back, to } => {
                driving.wait_until(at);
                note("the file is changed");
                let first = self.change(scenario, Some(to))?;
                note("all nodes have it");
                driving.wait_until(back);
                seen.from = Some(first);
                seen.until = Some(note("the file is changed back"));
                let second = self.change(scenario, None)?;
                note("all nodes have it");
                seen.taken = Some((first, second));
            }
        }
        Ok(())
    }

    fn change(&mut self, scenario: &Scenario, to: Option<super::scenario::Limit>) -> anyhow::Result<Micros> {
        self.revision += 1;
        let file = self.tenants_file(scenario.setting, to.map(|to| (scenario, to)));
        let revision = self.revision;
        self.cluster()?.change(&file, revision)
    }

    /// Waits for the logs of all that was answered.
    fn events(&mut self, answered: &[Answered], remarks: &mut Vec<String>) -> anyhow::Result<Vec<Event>> {
        let mut logged = HashMap::new();
        let deadline = wall() + micros(LOG_PATIENCE);
        let missing = loop {
            self.cluster()?.read_logs(&mut logged)?;
            let missing = answered.iter().filter(|one| one.status != 0 && !logged.contains_key(&one.number)).count();
            if missing == 0 || wall() > deadline {
                break missing;
            }
            pause(Duration::from_millis(100));
        };
        if missing > 0 {
            remarks.push(format!("{missing} answered requests are in no log; they are judged by client and origin"));
        }
        let came: HashMap<u64, Micros> = self.origin.take().into_iter().collect();
        Ok(events::joined(answered, &logged, &came))
    }
}

/// The library that moves clocks (Debian: faketime).
fn faketime() -> anyhow::Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    folders
        .chain([Path::new("/usr/lib").to_owned(), Path::new("/usr/local/lib").to_owned()])
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .context("libfaketimeMT.so.1 is missing: apt-get install faketime")
}
