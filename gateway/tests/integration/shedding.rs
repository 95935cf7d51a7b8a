//! Load shedding: what one worker refuses when it is overloaded, and what never counts as load.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures::future::join_all;

use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, ok, open, tenants},
    support::{
        Gateway, Origin, Response,
        http2::{Answer, Http2},
    },
    websocket::{assert_echo, open_socket},
};

/// One worker with at most this many requests in flight, and a route of each priority.
fn gateway(upstream: SocketAddr, limit: u32, more: &str) -> Gateway {
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

/// An upstream that takes its time for `…/held`: longer than a request is counted.
fn slow() -> Stub {
    Stub::start(|seen| {
        if seen.target().ends_with("/held") {
            let_pass(Duration::from_millis(500));
        }
        ok("", b"served")
    })
}

/// Asks something while so many requests wait at the upstream and are counted. A machine that is busy with
/// something else gets further chances.
fn while_held<T>(gateway: &Gateway, upstream: &Stub, path: &str, many: usize, ask: impl Fn() -> T) -> T {
    for _ in 0..20 {
        let before = upstream.seen().len();
        let (time, answer) = std::thread::scope(|scope| {
            let began = Instant::now();
            for _ in 0..many {
                scope.spawn(|| assert_eq!(get(gateway, path).status, 200));
            }
            assert!(comes_true(|| upstream.seen().len() == before + many), "they were not let in");
            let answer = ask();
            (began.elapsed(), answer)
        });
        if time < Duration::from_millis(150) {
            return answer;
        }
    }
    panic!("this machine is too slow");
}

const OVERLOADED: &str = "temporary-reduced-capacity";

fn assert_shed(answer: &Answer, wait: &RangeInclusive<u64>) {
    assert_eq!((answer.status, answer.header("content-type")), (503, Some("application/problem+json")), "{answer:?}");
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["type"], format!("https://iana.org/assignments/http-problem-types#{OVERLOADED}"));
    assert_eq!(problem["instance"], answer.header("x-request-id").unwrap());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait.contains(&retry_after), "{retry_after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn low_priority_is_shed_first_and_critical_last() {
    let upstream = slow();
    let gateway = gateway(upstream.address, 20, "");
    let client = Http2::plain(&gateway).await;
    // Low priority may fill half of the limit, normal four fifths.
    let requests = [("normal", 9), ("low", 2), ("normal", 7), ("critical", 5)];
    let requests = requests.iter().flat_map(|(priority, many)| std::iter::repeat_n(format!("/{priority}/held"), *many));
    let requests: Vec<_> = requests.collect();
    let (mut answers, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        answers = join_all(requests.iter().map(|path| client.get("acme.test", path))).await;
        refused = (0..answers.len()).filter(|at| answers[*at].status != 200).collect();
        // A machine that is busy with something else lets the first grow old before the last is there.
        if refused.len() == 3 {
            break;
        }
    }
    assert_eq!(refused, [10, 17, 22]);
    for (at, wait) in [(10, 4..=12), (17, 2..=6), (22, 1..=3)] {
        assert_shed(&answers[at], &wait);
    }
    for priority in ["low", "normal", "critical"] {
        let shed = gateway.metric(&format!("seiketsu_shed_requests_total{{priority=\"{priority}\"}}"));
        assert!(shed > 0.5, "{priority}: {}", gateway.metrics());
    }
    assert!(gateway.metric("seiketsu_refusals_total{tenant=\"acme\",reason=\"temporary-reduced-capacity\"}") > 2.5);
    let id = answers[10].header("x-request-id").unwrap();
    assert!(comes_true(|| {
        let log = gateway.access_log();
        let line = log.lines().find(|line| line.contains(id));
        line.is_some_and(|line| line.contains("temporary-reduced-capacity") && line.contains("\"low\""))
    }));
    // Once they are served there is room again for all, and nothing is left behind.
    assert_eq!(client.get("acme.test", "/low/a").await.status, 200);
    let in_flight =
        |priority| gateway.metric(&format!("seiketsu_shedding_requests_in_flight{{priority=\"{priority}\"}}"));
    assert!(comes_true(|| ["low", "normal", "critical"].map(in_flight).iter().sum::<f64>() < 0.5));
}

#[test]
fn shedding_costs_no_connection_and_is_told_to_grpc_in_its_own_way() {
    let upstream = slow();
    let gateway = gateway(upstream.address, 4, "");
    let (shed, grpc, nowhere, operations) = while_held(&gateway, &upstream, "/critical/held", 4, || {
        let mut client = gateway.connect();
        let shed = [(); 2].map(|()| client.request("GET /normal/a HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
        let grpc = gateway.ask("POST", "/normal/Echo", "Content-Type: application/grpc\r\n", "");
        let nowhere = get(&gateway, "/nowhere").status;
        let operations = ["/livez", "/readyz", "/metrics"].map(|path| gateway.operations(path).status);
        (shed, grpc, nowhere, operations)
    });
    assert_eq!(shed.map(|answer| (answer.status, answer.problem())), [(); 2].map(|()| (503, OVERLOADED.to_owned())));
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")), "{grpc:?}");
    assert_eq!(grpc.header("content-type"), Some("application/grpc"));
    assert!(grpc.header("retry-after").is_some() && grpc.body.is_empty(), "{grpc:?}");
    assert_eq!((nowhere, operations), (404, [200; 3]));
}

#[test]
fn websockets_and_event_streams_take_no_place() {
    let origin = Origin::start("a");
    let gateway = gateway(origin.address, 3, "");
    let mut sockets: Vec<_> = (0..10).map(|_| open_socket(&gateway)).collect();
    for socket in &mut sockets {
        assert_echo(socket, "here".into());
    }
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
    let upstream = Stub::start(|seen| {
        let_pass(Duration::from_millis(if seen.target().ends_with("/held") { 3000 } else { 0 }));
        ok("", b"served")
    });
    let gateway = gateway(upstream.address, 4, "");
    let waiting = || gateway.metric("seiketsu_shedding_requests_in_flight{priority=\"normal\"}") > 2.5;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(get(&gateway, "/normal/held").status, 200));
        }
        assert!(comes_true(|| upstream.seen().len() == 3));
        assert!(comes_true(|| get(&gateway, "/normal/a").status == 200) && waiting());
    });
    assert!(!waiting());
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
        let overloaded = comes_true(|| shed.load(Relaxed) > 50);
        let critical: Vec<_> = (0..40).map(|_| get(&gateway, "/critical/a").status).collect();
        let limit = gateway.metric("seiketsu_shedding_limit{worker=\"0\"}");
        enough.store(true, Relaxed);
        assert!(overloaded, "nothing was shed: {}", gateway.metrics());
        assert!(limit < 100.0, "{limit}");
        critical
    });
    // When the limit falls, what is in flight may for a moment be more than all of it.
    assert!(critical.iter().filter(|status| **status == 200).count() >= 36, "{critical:?}");
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
        let answers = join_all((0..64).map(|_| client.get("acme.test", "/v1/delay/50"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    assert!(gateway.metrics().contains("seiketsu_shed_requests_total{priority=\"normal\"} 0\n"));
    assert!(gateway.metric("seiketsu_shedding_limit{worker=\"1\"}") > 1000.0);
}

#[test]
fn it_can_be_switched_off() {
    let upstream = slow();
    let gateway = gateway(upstream.address, 2, ", enabled: false");
    assert_eq!(while_held(&gateway, &upstream, "/low/held", 8, || get(&gateway, "/low/a").status), 200);
    assert!(!gateway.metrics().contains("seiketsu_shed"));
}
