//! Load shedding: what one worker refuses when it is overloaded, and what never counts as load.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, ok, open, tenants},
    support::{Client, Gateway, Origin, Response, http2::Http2},
    websocket::{assert_echo, open_socket},
};

/// One worker with at most this many requests in flight, and a route of each priority.
fn gateway(upstream: std::net::SocketAddr, limit: u32, more: &str) -> Gateway {
    let route = |priority: &str| {
        let policies = "policies: { compression: {} }";
        format!(
            "- {{ id: {priority}, match: {{ path: '/{priority}/{{*rest}}' }}, upstream: demo, priority: {priority}, {policies} }}\n"
        )
    };
    let routes = ["critical", "normal", "low"].map(route).concat() + &open("");
    let node = format!("threads: 1\nshedding: {{ min_limit: 2, max_limit: {limit}{more} }}\n");
    Gateway::start_with(&tenants(&demo(&[upstream], ""), "", &routes), &node)
}

fn get(gateway: &Gateway, path: &str) -> Response {
    gateway.ask("GET", path, "", "")
}

/// An upstream that lets requests for `…/held` wait until it is told otherwise.
struct Holding {
    stub: Stub,
    door: Arc<(Mutex<bool>, Condvar)>,
}

impl Holding {
    fn start() -> Self {
        let door = Arc::new((Mutex::new(false), Condvar::new()));
        let of_stub = door.clone();
        let stub = Stub::start(move |seen| {
            if seen.target().ends_with("/held") {
                let (open, changed) = &*of_stub;
                drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
            }
            ok("", b"served")
        });
        Self { stub, door }
    }

    /// Clients whose requests wait at the upstream.
    fn hold(&self, gateway: &Gateway, path: &str, many: usize) -> Vec<Client> {
        let before = self.stub.seen().len();
        let ask = |_| {
            let mut client = gateway.connect();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: acme.test\r\n\r\n").as_bytes());
            client
        };
        let clients = (0..many).map(ask).collect();
        assert!(comes_true(|| self.stub.seen().len() == before + many), "they were not let in");
        clients
    }

    fn let_go(&self, clients: Vec<Client>) {
        *self.door.0.lock().unwrap() = true;
        self.door.1.notify_all();
        for mut client in clients {
            assert_eq!(client.receive().expect("an answer").status, 200);
        }
        *self.door.0.lock().unwrap() = false;
    }
}

/// Runs a scenario that must not take as long as a request is counted. A machine that is busy with something
/// else gets further chances.
fn swiftly<T>(scenario: impl Fn() -> T) -> T {
    for _ in 0..10 {
        let began = Instant::now();
        let result = scenario();
        if began.elapsed() < Duration::from_millis(1200) {
            return result;
        }
    }
    panic!("this machine is too slow");
}

fn assert_shed(answer: &Response, wait: RangeInclusive<u64>) {
    assert_eq!((answer.status, answer.problem().as_str()), (503, "temporary-reduced-capacity"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity");
    assert_eq!(problem["instance"], answer.header("x-request-id").unwrap());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait.contains(&retry_after), "{retry_after}");
}

#[test]
fn low_priority_is_shed_first_and_critical_last() {
    let upstream = Holding::start();
    let gateway = gateway(upstream.stub.address, 20, "");
    let shed = |priority: &str| gateway.metric(&format!("seiketsu_shed_requests_total{{priority=\"{priority}\"}}"));
    let answers = swiftly(|| {
        let ask = || ["/low/a", "/normal/a", "/critical/a"].map(|path| get(&gateway, path));
        // 60, 85 and 100 percent of the limit.
        let mut held = upstream.hold(&gateway, "/normal/held", 11);
        let mut answers = vec![ask()];
        for more in [1, 5, 3] {
            held.extend(upstream.hold(&gateway, "/critical/held", more));
            answers.push(ask());
        }
        upstream.let_go(held);
        answers
    });
    let statuses: Vec<_> = answers.iter().map(|answers| answers.clone().map(|answer| answer.status)).collect();
    assert_eq!(statuses, [[200, 200, 200], [503, 200, 200], [503, 503, 200], [503, 503, 503]]);
    let [low, normal, critical] = &answers[3];
    assert_shed(low, 4..=12);
    assert_shed(normal, 2..=6);
    assert_shed(critical, 1..=3);
    assert!(shed("low") > 2.5 && shed("normal") > 1.5 && shed("critical") > 0.5, "{}", gateway.metrics());
    assert!(gateway.metric("seiketsu_refusals_total{tenant=\"acme\",reason=\"temporary-reduced-capacity\"}") > 5.5);
    let line = format!("\"request_id\":\"{}\"", low.header("x-request-id").unwrap());
    assert!(comes_true(|| {
        let log = gateway.access_log();
        let line = log.lines().find(|log| log.replace(": ", ":").contains(&line)).map(str::to_owned);
        line.is_some_and(|line| line.contains("temporary-reduced-capacity") && line.contains("\"low\""))
    }));
    // Once they are served there is room again for all.
    assert!(comes_true(|| get(&gateway, "/low/a").status == 200));
    let in_flight =
        |priority| gateway.metric(&format!("seiketsu_shedding_requests_in_flight{{priority=\"{priority}\"}}"));
    assert!(comes_true(|| ["low", "normal", "critical"].map(in_flight).iter().sum::<f64>() < 0.5));
}

#[test]
fn shedding_costs_the_client_no_connection_and_is_told_to_grpc_in_its_own_way() {
    let upstream = Holding::start();
    let gateway = gateway(upstream.stub.address, 4, "");
    let (shed, grpc, operations) = swiftly(|| {
        let held = upstream.hold(&gateway, "/critical/held", 4);
        let mut client = gateway.connect();
        let shed: Vec<_> =
            (0..2).map(|_| client.request("GET /normal/a HTTP/1.1\r\nHost: acme.test\r\n\r\n")).collect();
        let grpc = gateway.ask("POST", "/normal/Echo", "Content-Type: application/grpc\r\n", "");
        let operations = ["/livez", "/readyz", "/metrics"].map(|path| gateway.operations(path).status);
        upstream.let_go(held);
        (shed, grpc, operations)
    });
    shed.iter().for_each(|answer| assert_shed(answer, 2..=6));
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")), "{grpc:?}");
    assert_eq!(grpc.header("content-type"), Some("application/grpc"));
    assert!(grpc.header("retry-after").is_some() && grpc.body.is_empty());
    assert_eq!(operations, [200; 3]);
}

#[test]
fn websockets_and_event_streams_take_no_place() {
    let origin = Origin::start("a");
    let gateway = gateway(origin.address, 3, "");
    let mut sockets: Vec<_> = (0..10).map(|_| open_socket(&gateway)).collect();
    sockets.iter_mut().for_each(|socket| assert_echo(socket, "here".into()));
    let streams: Vec<_> = (0..10)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(b"GET /v1/stream?count=100000&interval_ms=1000 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
            assert_eq!(client.receive_head().status, 200);
            client
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(get(&gateway, "/v1/bytes/1").status, 200);
    }
    assert!(gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") > 19.5);
    assert!(gateway.metric("seiketsu_shedding_requests_in_flight{priority=\"normal\"}") < 0.5);
    drop((sockets, streams));
}

#[test]
fn who_waits_for_long_takes_no_place() {
    let upstream = Holding::start();
    let gateway = gateway(upstream.stub.address, 4, "");
    let held = upstream.hold(&gateway, "/normal/held", 3);
    assert!(comes_true(|| get(&gateway, "/normal/a").status == 200));
    let next = upstream.hold(&gateway, "/normal/held", 3);
    assert!(comes_true(|| get(&gateway, "/normal/a").status == 200));
    assert!(gateway.metric("seiketsu_shedding_requests_in_flight{priority=\"normal\"}") > 5.5);
    upstream.let_go([held, next].into_iter().flatten().collect());
}

/// Each answer of these costs the worker some milliseconds, since it is compressed.
#[test]
fn a_worker_that_cannot_keep_up_serves_the_critical_ones() {
    let text: String = (0..60_000u32).map(|number| format!("{} ", number.wrapping_mul(2_654_435_761))).collect();
    let upstream = Stub::answering("Content-Type: text/plain\r\n", text);
    let gateway = gateway(upstream.address, 1000, ", target_lag: 10ms");
    let (enough, served, shed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let critical = std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                while !enough.load(Relaxed) {
                    match gateway.ask("GET", "/low/a", "Accept-Encoding: br\r\n", "").status {
                        200 => served.fetch_add(1, Relaxed),
                        503 => shed.fetch_add(1, Relaxed),
                        status => panic!("{status}"),
                    };
                }
            });
        }
        let overloaded = comes_true(|| shed.load(Relaxed) > 20);
        let critical: Vec<_> = (0..20).map(|_| get(&gateway, "/critical/a").status).collect();
        let limit = gateway.metric("seiketsu_shedding_limit{worker=\"0\"}");
        enough.store(true, Relaxed);
        assert!(overloaded, "nothing was shed: {}", gateway.metrics());
        assert!(limit < 100.0, "{limit}");
        critical
    });
    assert_eq!(critical, [200; 20]);
    assert!(served.load(Relaxed) > 0);
    assert!(gateway.logs("a worker is overloaded and has shed requests"));
    // It recovers by itself.
    assert!(comes_true(|| gateway.metric("seiketsu_shedding_limit{worker=\"0\"}") > 999.0));
    assert_eq!(get(&gateway, "/low/a").status, 200);
}

#[tokio::test]
async fn a_healthy_node_sheds_nothing() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open("")));
    for _ in 0..4 {
        let client = Http2::plain(&gateway).await;
        let answers = futures::future::join_all((0..64).map(|_| client.get("acme.test", "/v1/delay/50"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    assert!(gateway.metrics().contains("seiketsu_shed_requests_total{priority=\"normal\"} 0\n"));
    assert!(gateway.metric("seiketsu_shedding_limit{worker=\"1\"}") > 1000.0);
}

#[test]
fn it_can_be_switched_off() {
    let upstream = Holding::start();
    let gateway = gateway(upstream.stub.address, 2, ", enabled: false");
    let held = upstream.hold(&gateway, "/low/held", 8);
    assert_eq!(get(&gateway, "/low/a").status, 200);
    assert!(!gateway.metrics().contains("seiketsu_shed"));
    let_pass(Duration::from_millis(50));
    upstream.let_go(held);
}
