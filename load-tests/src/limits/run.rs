//! One scenario after another: gateways, load, fault, and what is to be said of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::runtime::Handle;

use super::{
    Micros,
    cluster::{Cluster, Counted, tenants_file},
    driver::{self, Answered, Driving},
    events::{self, Event},
    judgement::Figures,
    micros,
    origin::Origin,
    pause,
    promises::{self, Check},
    proxy::Proxy,
    redis::{DURABLE, Redis},
    scenario::{Fault, Scenario, Setting, Tenant, crowd},
    seconds,
    sentinel::Sentinel,
    stalls::{Stall, Stalls},
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

/// What became of one scenario.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub name: &'static str,
    pub about: &'static str,
    pub nodes: usize,
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// For a thousand admitted requests of limited tenants, while traffic went its way; unknown where it did not.
    pub exchanges_per_thousand: Option<f64>,
    /// For each gateway, tenant and second, while traffic went its way.
    pub exchanges_per_second: Option<f64>,
    /// Scripts that Redis ran, heartbeats included.
    pub scripts_run: Option<u64>,
    /// The machine had no processor to spare: in all, and at a time, in milliseconds.
    pub stalled_ms: f64,
    pub longest_stall_ms: f64,
    /// One in a hundred requests was sent at least so much later than planned.
    pub slip_p99_ms: f64,
    pub checks: Vec<Check>,
    /// What happened, and when, in seconds.
    pub happened: Vec<(f64, String)>,
    pub remarks: Vec<String>,
}

/// One tenant, or all of a crowd.
#[derive(Debug, Serialize)]
pub struct Row {
    pub tenant: String,
    pub limit: Option<super::scenario::Limit>,
    pub quota: Option<u64>,
    /// Requests a second that were asked for.
    pub rate: f64,
    pub figures: Figures,
    /// What clients waited longer than those of the unlimited tenant.
    pub added_p50_ms: Option<f64>,
    pub added_p99_ms: Option<f64>,
    /// In each second: admitted and refused.
    pub by_second: Vec<(u64, u64)>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.kept)
    }
}

/// Everything that was seen of a scenario; moments by this machine's clock.
#[derive(Debug)]
pub struct Seen {
    pub events: Vec<Event>,
    pub stalls: Vec<Stall>,
    pub began: Micros,
    pub nodes: usize,
    /// When the fault began and ended; how it was seen.
    pub from: Option<Micros>,
    pub until: Option<Micros>,
    /// When a changed limit had been taken by all nodes, both times.
    pub taken: Option<(Micros, Micros)>,
    /// Counters before, when traffic went its way (and when that was), and after.
    pub before: Counted,
    pub steady: Option<(Counted, Micros)>,
    pub after: Option<(Counted, Micros)>,
}

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
        Self::outcome(scenario, &tenants, &seen, &answered, (scripts_run, happened, remarks))
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

    fn outcome(
        scenario: &Scenario,
        tenants: &[Tenant],
        seen: &Seen,
        answered: &[Answered],
        (scripts_run, happened, remarks): (Option<u64>, Vec<(f64, String)>, Vec<String>),
    ) -> anyhow::Result<Outcome> {
        let mut by_tenant: Vec<Vec<&Event>> = vec![Vec::new(); tenants.len()];
        for event in &seen.events {
            by_tenant[event.tenant].push(event);
        }
        let named = scenario.tenants.len();
        let mut rows = Vec::new();
        for (tenant, events) in tenants.iter().zip(&by_tenant).take(named) {
            rows.push(Row::of(tenant, events, seen.began)?);
        }
        if tenants.len() > named {
            rows.push(Row::of_crowd(&tenants[named..], &by_tenant[named..], seen.began)?);
        }
        let unlimited = rows
            .iter()
            .find(|row| row.limit.is_none() && row.quota.is_none())
            .map(|row| (row.figures.p50_ms, row.figures.p99_ms));
        for row in rows.iter_mut().filter(|row| row.limit.is_some()) {
            row.added_p50_ms = unlimited.map(|(p50, _)| row.figures.p50_ms - p50);
            row.added_p99_ms = unlimited.map(|(_, p99)| row.figures.p99_ms - p99);
        }
        let limited = rows.iter().filter(|row| row.limit.is_some());
        let exchanges_per_thousand = seen.steady.zip(seen.after).map(|((steady, from), (after, to))| {
            let within = |event: &&Event| event.admitted && (from..to).contains(&event.came);
            let of_limited = |event: &&Event| tenants[event.tenant].limit.is_some();
            let admitted = seen.events.iter().filter(within).filter(of_limited).count().max(1);
            after.exchanges.saturating_sub(steady.exchanges) as f64 * 1000.0 / admitted as f64
        });
        // Of a crowd most tenants are asked for nothing in any second.
        let known = seen.steady.zip(seen.after).filter(|_| tenants.len() == named);
        let exchanges_per_second = known.map(|((steady, from), (after, to))| {
            let each = seen.nodes as f64 * limited.count() as f64;
            after.exchanges.saturating_sub(steady.exchanges) as f64 / each / seconds(to - from)
        });
        let mut slips: Vec<f64> = answered.iter().map(|one| one.slip as f64 / 1000.0).collect();
        slips.sort_unstable_by(f64::total_cmp);
        let mut outcome = Outcome {
            name: scenario.name,
            about: scenario.about,
            nodes: seen.nodes,
            seconds: scenario.lasts.as_secs_f64(),
            rows,
            exchanges_per_thousand,
            exchanges_per_second,
            scripts_run,
            stalled_ms: seen.stalls.iter().map(|stall| (stall.1 - stall.0) as f64 / 1000.0).sum(),
            longest_stall_ms: seen.stalls.iter().map(|stall| (stall.1 - stall.0) as f64 / 1000.0).fold(0.0, f64::max),
            slip_p99_ms: super::judgement::quantile(&slips, 0.99),
            checks: Vec::new(),
            happened,
            remarks,
        };
        let alone: u64 = outcome.rows.iter().map(|row| row.figures.alone).sum();
        if alone > 0 && matches!(scenario.fault, None | Some(Fault::ClocksMoved { .. } | Fault::LimitChanged { .. })) {
            outcome.remarks.push(format!(
                "{alone} decisions were made without Redis although nothing was wrong with it: it, or the gateway itself, \
                 took more than 10 ms. Then each node goes on with its share, as when it is cut off, and the bound is B + R·W·k/N"
            ));
        }
        outcome.checks = promises::checks(scenario, seen, &by_tenant, &outcome)?;
        outcome.remarks.extend(promises::worst_seconds(scenario, seen, &by_tenant, &outcome.rows)?);
        Ok(outcome)
    }
}

/// Requests a second of all tenants of the crowd.
const CROWD_RATE: f64 = 600.0;

impl Row {
    fn of(tenant: &Tenant, events: &[&Event], began: Micros) -> anyhow::Result<Self> {
        let bucket = tenant.limit.map(super::scenario::Limit::bucket).transpose()?;
        Ok(Self {
            tenant: tenant.id.clone(),
            limit: tenant.limit,
            quota: tenant.quota,
            rate: tenant.rate,
            figures: Figures::of(events, bucket.as_ref()),
            added_p50_ms: None,
            added_p99_ms: None,
            by_second: by_second(events.iter().copied(), began),
        })
    }

    /// Each by its own bucket, all together; the worst of them, where worst is what is told.
    fn of_crowd(tenants: &[Tenant], events: &[Vec<&Event>], began: Micros) -> anyhow::Result<Self> {
        let all: Vec<&Event> = events.iter().flatten().copied().collect();
        let mut figures = Figures::of(&all, None);
        figures.ideal = 0;
        figures.over_in_windows = [f64::MIN; 3];
        let mut seen = 0;
        for (tenant, events) in tenants.iter().zip(events).filter(|(_, events)| !events.is_empty()) {
            let bucket = tenant.limit.context("no limit")?.bucket()?;
            let one = Figures::of(events, Some(&bucket));
            figures.ideal += one.ideal;
            figures.over = figures.over.max(one.over);
            figures.over_at_face_value = figures.over_at_face_value.max(one.over_at_face_value);
            figures.refused_with_tokens += one.refused_with_tokens;
            for (worst, own) in figures.over_in_windows.iter_mut().zip(one.over_in_windows) {
                *worst = worst.max(own);
            }
            seen += 1;
        }
        let limit = tenants.first().and_then(|tenant| tenant.limit);
        let by_second = by_second(all.into_iter(), began);
        let tenant = format!("{seen} of {} tenants", tenants.len());
        Ok(Self {
            tenant,
            limit,
            quota: None,
            rate: CROWD_RATE,
            figures,
            added_p50_ms: None,
            added_p99_ms: None,
            by_second,
        })
    }
}

fn by_second<'a>(events: impl Iterator<Item = &'a Event>, began: Micros) -> Vec<(u64, u64)> {
    let mut seconds = Vec::new();
    for event in events {
        let second = usize::try_from(event.came.saturating_sub(began) / 1_000_000).unwrap_or_default();
        if seconds.len() <= second {
            seconds.resize(second + 1, (0, 0));
        }
        seconds[second].0 += u64::from(event.admitted);
        seconds[second].1 += u64::from(event.refused);
    }
    seconds
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
