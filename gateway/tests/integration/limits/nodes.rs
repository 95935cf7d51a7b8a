//! Several nodes on one Redis: together they admit what one would.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{REQUEST, drain, limited, passing, remaining, violated};
use crate::{
    fixtures::{comes_true, let_pass},
    operations::wait_for_end,
    support::{Client, Gateway, Origin, Process, binary},
};

/// Decisions that a node made by itself.
const ALONE: &str = "seiketsu_limit_decisions_total{by=\"alone\"}";

/// A real Redis on a free port, without data on disk.
pub struct Redis {
    port: u16,
    password: &'static str,
    process: Process,
    folder: tempfile::TempDir,
    pub(super) began: Instant,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with_password("")
    }

    fn start_with_password(password: &'static str) -> Self {
        // Another process may take the port before the server does.
        let started = (0..10).find_map(|_| {
            let folder = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let process = Process(Self::spawn(port, password, folder.path()));
            let mut redis = Self { port, password, process, folder, began: Instant::now() };
            redis.answers().then_some(redis)
        });
        started.expect("redis-server starts")
    }

    fn spawn(port: u16, password: &str, folder: &std::path::Path) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(folder);
        if !password.is_empty() {
            command.args(["--requirepass", password]);
        }
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed: script/test does")
    }

    fn answers(&mut self) -> bool {
        comes_true(|| std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok())
            && self.process.0.try_wait().unwrap().is_none()
    }

    pub fn url(&self) -> String {
        let credentials = if self.password.is_empty() { String::new() } else { format!(":{}@", self.password) };
        format!("redis://{credentials}127.0.0.1:{}", self.port)
    }

    /// At once, with everything that it knew.
    pub fn kill(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }

    pub fn start_again(&mut self) {
        self.process = Process(Self::spawn(self.port, self.password, self.folder.path()));
        self.began = Instant::now();
        assert!(self.answers());
    }

    /// So many nodes that share their limits through it, and know each other.
    pub(super) fn nodes(&self, tenants: &str, many: usize) -> Vec<Gateway> {
        let node = format!("limits: {{ redis: {{ url: '{}' }} }}\n", self.url());
        let nodes: Vec<Gateway> = (0..many).map(|_| Gateway::start_with(tenants, &node)).collect();
        for gateway in &nodes {
            assert!(comes_true(|| knows(gateway, many)), "{}", gateway.metrics());
        }
        nodes
    }

    /// An account that Redis has not known begins empty when leases of before have ended. This is when such a
    /// bucket is full.
    pub fn let_buckets_fill(&self, time_to_fill: Duration) {
        // Redis tells its age in whole seconds, and a lease lasts one and a half.
        let full = self.began + Duration::from_millis(2600) + time_to_fill;
        let_pass(full.saturating_duration_since(Instant::now()));
    }
}

/// Whether a node is connected and knows of so many, itself included.
pub(super) fn knows(gateway: &Gateway, many: usize) -> bool {
    gateway.metric("seiketsu_limit_coordinator_up") > 0.5 && gateway.metric("seiketsu_limit_gateways") as usize == many
}

/// Lets each node be asked at the same time until it refuses; how many requests pass together. Where one has refused by
/// itself, since this machine kept Redis' answer from it, it is asked again.
fn drain_all(nodes: &[&Gateway]) -> usize {
    let by_themselves = || nodes.iter().map(|node| node.metric(ALONE)).sum::<f64>();
    let mut passed = 0;
    loop {
        let before = by_themselves();
        passed += std::thread::scope(|scope| {
            let drained: Vec<_> = nodes.iter().map(|node| scope.spawn(|| drain(node.http))).collect();
            drained.into_iter().map(|drained| drained.join().unwrap()).sum::<usize>()
        });
        if by_themselves() <= before {
            return passed;
        }
    }
}

#[test]
fn together_they_admit_exactly_a_burst() {
    let origin = Origin::start("a");
    let redis = Redis::start();
    // Ten tokens a second: full in three seconds.
    let nodes = redis.nodes(&limited(origin.address, "rate: { requests: 600, per: 1m, burst: 30 }", ""), 3);
    redis.let_buckets_fill(Duration::from_secs(3));
    let began = Instant::now();
    let passed: usize = std::thread::scope(|scope| {
        let ask = |gateway: &Gateway| {
            let mut client = Client::connect(gateway.http);
            (0..40).filter(|_| client.request(REQUEST).status == 200).count()
        };
        let asked: Vec<_> = nodes.iter().map(|gateway| scope.spawn(move || ask(gateway))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).sum()
    });
    let new = began.elapsed().as_secs_f64() * 10.0;
    assert!(passed >= 30 && passed as f64 <= 30.0 + new, "{passed}, of which {new} at most came meanwhile");
    let refused = nodes.iter().find_map(|gateway| {
        let answer = gateway.get("acme.test", "/v1/echo", "");
        (answer.status == 429).then_some(answer)
    });
    assert_eq!(violated(&refused.expect("a refusal")), ["rate"]);
}

#[test]
fn who_is_refused_is_not_told_of_what_others_have() {
    let origin = Origin::start("a");
    let redis = Redis::start();
    let nodes = redis.nodes(&limited(origin.address, "rate: { requests: 6000, per: 1m, burst: 60 }", ""), 2);
    redis.let_buckets_fill(Duration::ZERO);
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                let mut client = Client::connect(node.http);
                let mut refused = 0;
                while refused < 500 {
                    let answer = client.request(REQUEST);
                    if answer.status == 429 {
                        refused += 1;
                        assert_eq!(remaining(&answer, "rate"), 0, "{}", answer.head);
                    }
                }
            });
        }
    });
}

#[test]
fn together_they_admit_exactly_a_quota() {
    let origin = Origin::start("a");
    let redis = Redis::start();
    let limits = "quotas: { daily: 2000, monthly: 60 }";
    let nodes = redis.nodes(&limited(origin.address, limits, ""), 3);
    redis.let_buckets_fill(Duration::ZERO);
    assert_eq!(drain_all(&nodes.iter().collect::<Vec<_>>()), 60);
    // With a month that suffices, the day is next; the sixty count.
    let larger = limited(origin.address, "quotas: { daily: 2000, monthly: 5000 }", "");
    for gateway in &nodes {
        gateway.write_tenants(&larger.replace("revision: 1", "revision: 2"));
        assert!(comes_true(|| gateway.operations("/config").json()["revision"] == 2));
    }
    assert_eq!(drain_all(&nodes.iter().collect::<Vec<_>>()), 1940);
}

#[test]
fn a_node_that_is_killed_takes_a_thousandth_of_a_quota_with_it_at_most() {
    let origin = Origin::start("a");
    let redis = Redis::start();
    let mut nodes = redis.nodes(&limited(origin.address, "quotas: { daily: 2000 }", ""), 3);
    redis.let_buckets_fill(Duration::ZERO);
    let mut passed: usize = nodes.iter().map(|gateway| passing(gateway, "/v1/echo", "", 100)).sum();
    assert_eq!(passed, 300);
    let mut killed = nodes.remove(0);
    killed.process.signal("-KILL");
    wait_for_end(&mut killed.process);
    passed += drain_all(&nodes.iter().collect::<Vec<_>>());
    assert!((1998..=2000).contains(&passed), "{passed}");
    assert!(comes_true(|| knows(&nodes[0], 2)), "it is missed after a while");
}

#[test]
fn a_node_that_ends_gives_back_what_it_holds_at_once() {
    let origin = Origin::start("a");
    let redis = Redis::start();
    let mut nodes = redis.nodes(&limited(origin.address, "quotas: { daily: 30000 }", ""), 2);
    redis.let_buckets_fill(Duration::ZERO);
    assert_eq!(passing(&nodes[0], "/v1/echo", "", 100), 100);
    assert_eq!(passing(&nodes[1], "/v1/echo", "", 1), 1);
    let mut ended = nodes.remove(0);
    ended.process.signal("-TERM");
    assert!(wait_for_end(&mut ended.process).success(), "{}", ended.log());
    // Renewals tell what is left for all: what the one that is left holds, and what is left in Redis.
    let left = || 30_000 - u64::try_from(passing_so_far(&nodes[0])).unwrap() - 100;
    assert!(comes_true(|| {
        let answer = nodes[0].get("acme.test", "/v1/echo", "");
        remaining(&answer, "day") == left()
    }));
}

/// Requests that this node has admitted.
fn passing_so_far(gateway: &Gateway) -> usize {
    let series = "seiketsu_requests_total{tenant=\"acme\",route=\"open\",class=\"2xx\"}";
    gateway.metric(series) as usize
}

#[test]
fn a_url_comes_from_the_environment_and_its_password_stays_there() {
    const PASSWORD: &str = "s3cret-0f-redis";
    let origin = Origin::start("a");
    let redis = Redis::start_with_password(PASSWORD);
    for (url, connects) in [(redis.url(), true), (redis.url().replace("s3cret-0f", "s3cret-0f-no"), false)] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tenants.yaml"), limited(origin.address, "quotas: { daily: 1000 }", "")).unwrap();
        let node = "listeners: { http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '127.0.0.1:0' }\n\
                    tls: { development_certificate: true }\ntenants: tenants.yaml\nstate_dir: state\nthreads: 1\n\
                    egress: { allow_loopback: true }\naccess_log: { output: { file: access.log } }\n";
        fs::write(folder.path().join("node.yaml"), node).unwrap();
        let log = fs::File::create(folder.path().join("gateway.log")).unwrap();
        let child = Command::new(binary("seiketsu-gateway"))
            .arg("--config")
            .arg(folder.path().join("node.yaml"))
            .env("REDIS_URL", &url)
            .env("SEIKETSU_LOG", "debug")
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process(child);
        let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
        let gateway = Gateway { folder, http, https, operations, process };
        if connects {
            assert!(comes_true(|| knows(&gateway, 1)), "{}", gateway.log());
        } else {
            assert!(gateway.logs("Redis"), "what is wrong is told");
            assert!(gateway.metric("seiketsu_limit_coordinator_up") < 0.5);
        }
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
        let shown = [
            gateway.operations("/config").text(),
            gateway.operations("/config?tenant=acme&route=open").text(),
            gateway.readyz().text(),
            gateway.metrics(),
            gateway.access_log(),
            gateway.log(),
        ];
        for text in shown {
            assert!(!text.contains("s3cret"), "{text}");
        }
    }
}

#[test]
fn a_password_is_not_written_into_the_nodes_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tenants.yaml"), "revision: 1\ntenants: []\n").unwrap();
    for (url, parts) in [
        ("redis://:s3cret@127.0.0.1:6379", &["limits.redis.url", "${env:REDIS_URL}"][..]),
        ("http://127.0.0.1:6379", &["limits.redis.url", "redis://"]),
    ] {
        let node = format!("tenants: tenants.yaml\nstate_dir: state\nlimits: {{ redis: {{ url: '{url}' }} }}\n");
        fs::write(folder.path().join("node.yaml"), node).unwrap();
        let output = Command::new(binary("seiketsu-gateway"))
            .args(["--config", "node.yaml", "--check-config"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("s3cret"), "{said}");
    }
}
