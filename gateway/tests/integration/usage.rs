//! What callers have used: counted exactly, kept over every way to end, and taken over once.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::{
    fixtures::{comes_true, demo, key_hash, let_pass, open, tenants, with_policies},
    operations::{hand_over, wait_for_end},
    support::{Client, Gateway, Origin, Response},
    websocket::open_socket,
};

const REQUEST: &str = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

fn ask(operations: SocketAddr, method: &str, target: &str) -> Response {
    Client::connect(operations)
        .request(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"))
}

/// What a control plane keeps: records by their number, however often it is told of them.
#[derive(Default)]
struct Taker {
    log: Option<String>,
    next: Option<String>,
    records: BTreeMap<u64, Value>,
}

impl Taker {
    /// Reads on to the end.
    fn pull(&mut self, operations: SocketAddr) -> &mut Self {
        loop {
            let after = self.next.as_ref().map_or(String::new(), |next| format!("&after={next}"));
            let page = ask(operations, "GET", &format!("/usage?limit=50{after}"));
            assert_eq!(page.status, 200, "{page:?}");
            let page = page.json();
            assert_eq!(page.get("missing"), None, "{page}");
            let log = page["log"].as_str().unwrap();
            assert_eq!(self.log.get_or_insert(log.to_owned()), log, "there is one log");
            let records = page["records"].as_array().unwrap();
            for record in records {
                let sequence = record["sequence"].as_u64().unwrap();
                let last = self.records.last_key_value().map_or(0, |(sequence, _)| *sequence);
                assert_eq!(sequence, last + 1, "numbers have neither gaps nor repetitions");
                self.records.insert(sequence, record.clone());
            }
            self.next = Some(page["next"].as_str().unwrap().to_owned());
            if records.is_empty() {
                return self;
            }
        }
    }

    /// The sum of a number over the records of these route and consumer; of all, where they are empty.
    fn sum(&self, pointer: &str, route: &str, consumer: &str) -> u64 {
        let fits = |record: &&Value| {
            (route.is_empty() || record["route"] == route) && (consumer.is_empty() || record["consumer"] == consumer)
        };
        let numbers = self.records.values().filter(fits).filter_map(|record| record.pointer(pointer)?.as_u64());
        numbers.sum()
    }

    fn admitted(&self) -> u64 {
        self.sum("/admitted", "", "")
    }
}

fn key(n: usize) -> String {
    format!("sk_test{n:04}_0123456789abcdefghijklmnopqrstuv")
}

/// A gateway whose tenant has an open route, one that needs a key, and so many consumers.
fn with_consumers(origin: &Origin, many: usize, node: &str) -> Gateway {
    let consumers: Vec<String> = (0..many)
        .map(|n| format!("{{ id: c{n}, keys: [{{ prefix: test{n:04}, hash: '{}' }}] }}", key_hash(&key(n))))
        .collect();
    let routes = open("cors: { origins: ['https://app.test'] }")
        + "- id: secure\n  match: { path: '/v1/secure/{*rest}' }\n  upstream: demo\n  policies: { auth: { accept: [api_key] } }\n";
    let consumers = format!("consumers: [{}]\n", consumers.join(", "));
    Gateway::start_with(&tenants(&demo(&[origin.address], ""), &consumers, &routes), node)
}

fn requests(client: &mut Client, many: usize) {
    for _ in 0..many {
        assert_eq!(client.request(REQUEST).status, 200);
    }
}

fn start_again(gateway: &mut Gateway) {
    gateway.process = Gateway::spawn(gateway.folder.path(), &[]);
    (gateway.http, gateway.https, gateway.operations) =
        Gateway::wait_until_ready(gateway.folder.path(), gateway.process.0.id());
}

fn bytes_on_disk(gateway: &Gateway) -> u64 {
    let files = fs::read_dir(gateway.folder.path().join("state/usage")).unwrap().map(|entry| entry.unwrap());
    let segments = files.filter(|file| file.file_name().to_string_lossy().ends_with(".ndjson"));
    segments.map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn every_request_is_counted_once_and_for_the_right_caller() {
    let origin = Origin::start("a");
    let gateway = with_consumers(&origin, 3, "");
    let mut client = gateway.connect();
    requests(&mut client, 40);
    for n in 0..3 {
        for _ in 0..10 * (n + 1) {
            let fields = format!("Host: acme.test\r\nX-API-Key: {}\r\n", key(n));
            assert_eq!(client.request(&format!("GET /v1/secure/echo HTTP/1.1\r\n{fields}\r\n")).status, 200);
        }
    }
    for _ in 0..6 {
        assert_eq!(gateway.get("acme.test", "/v1/secure/echo", "").status, 401);
        assert_eq!(gateway.get("acme.test", "/nothing", "").status, 404);
        assert_eq!(gateway.get("acme.test", "/v1/status/503", "").status, 503);
        // Nobody's: a preflight, and a host that no tenant has.
        let preflight = "Origin: https://app.test\r\nAccess-Control-Request-Method: GET\r\n";
        assert_eq!(gateway.ask("OPTIONS", "/v1/echo", preflight, "").status, 204);
        assert_eq!(gateway.get("nobody.test", "/v1/echo", "").status, 404);
    }
    let posted = gateway.post_json("/v1/echo", &json!({ "a": "b".repeat(1000) }).to_string());
    assert_eq!(posted.status, 200);
    let bytes = gateway.ask("GET", "/v1/bytes/12345", "", "").body.len();

    let mut taker = Taker::default();
    let all = 40 + 60 + 6 + 2;
    assert!(comes_true(|| Taker::default().pull(gateway.operations).admitted() >= all));
    taker.pull(gateway.operations);
    assert_eq!((taker.admitted(), taker.sum("/cost", "", "")), (all, all));
    assert_eq!(taker.sum("/admitted", "open", ""), 48);
    for n in 0..3 {
        assert_eq!(taker.sum("/admitted", "secure", &format!("c{n}")), 10 * (n + 1));
    }
    assert_eq!((taker.sum("/refused/auth", "secure", ""), taker.sum("/refused/auth", "", "")), (6, 6));
    assert_eq!((taker.sum("/refused/other", "", ""), taker.sum("/refused/limit", "", "")), (6, 0));
    assert_eq!((taker.sum("/failures", "open", ""), taker.sum("/failures", "", "")), (6, 6));
    assert_eq!(taker.sum("/bytes_in", "", ""), 1008);
    assert!(taker.sum("/bytes_out", "open", "") > bytes as u64 && bytes == 12345);
    assert!(taker.records.values().all(|record| record["tenant"] == "acme"));
    let (written, now) = (gateway.metric("seiketsu_usage_records_total"), crate::fixtures::now());
    assert_eq!(written as usize, taker.records.len());
    assert!(taker.records.values().all(|record| (now - 60..=now).contains(&record["second"].as_u64().unwrap())));
}

#[test]
fn records_tell_statuses_latencies_and_what_quotas_have_back() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "limits: { quotas: { daily: 50 }, count_failures: false }");
    requests(&mut gateway.connect(), 5);
    for _ in 0..3 {
        assert_eq!(gateway.get("acme.test", "/v1/status/503", "").status, 503);
        assert_eq!(gateway.get("acme.test", "/nothing", "").status, 404);
    }
    let mut socket = open_socket(&gateway);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    assert!(comes_true(|| Taker::default().pull(gateway.operations).admitted() == 9));
    let mut taker = Taker::default();
    taker.pull(gateway.operations);
    let sum = |pointer: &str| taker.sum(pointer, "", "");
    assert_eq!((sum("/statuses/2xx"), sum("/statuses/4xx"), sum("/statuses/5xx")), (5, 3, 3));
    assert_eq!((sum("/statuses/1xx"), sum("/cost"), sum("/given_back")), (1, 9, 3));
    let timed: u64 = ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000", "5000", "inf"]
        .iter()
        .map(|bound| sum(&format!("/latency_ms/{bound}")))
        .sum();
    // Of admitted requests; a WebSocket lasts as long as its client likes.
    assert_eq!(timed, 8);
}

#[test]
fn kill_costs_the_last_second_at_most_and_no_number_comes_twice() {
    let origin = Origin::start("a");
    let mut gateway = with_policies(origin.address, "");
    let mut taker = Taker::default();
    let mut sent = 0;
    for round in 0..3 {
        let before = taker.pull(gateway.operations).admitted();
        requests(&mut gateway.connect(), 20);
        sent += 25;
        assert!(comes_true(|| Taker::default().pull(gateway.operations).admitted() >= before + 20));
        requests(&mut gateway.connect(), 5);
        gateway.process.signal("-KILL");
        wait_for_end(&mut gateway.process);
        start_again(&mut gateway);
        // Also what the control plane had seen before is still the same.
        taker.pull(gateway.operations);
        let kept = taker.admitted() - before;
        assert!((20..=25).contains(&kept), "{kept} of 25 in round {round}");
    }
    assert!(taker.admitted() <= sent);
    let mut anew = Taker::default();
    assert_eq!(anew.pull(gateway.operations).records, taker.records);
}

#[test]
fn a_node_that_is_told_to_end_writes_everything_first() {
    let origin = Origin::start("a");
    let mut gateway = with_policies(origin.address, "");
    let mut taker = Taker::default();
    for round in 1..=2 {
        requests(&mut gateway.connect(), 7);
        gateway.process.signal("-TERM");
        assert!(wait_for_end(&mut gateway.process).success());
        start_again(&mut gateway);
        assert_eq!(taker.pull(gateway.operations).admitted(), 7 * round);
    }
}

#[test]
fn an_upgrade_loses_nothing_while_both_processes_count() {
    let origin = Origin::start("a");
    let mut gateway = with_policies(origin.address, "");
    let mut taker = Taker::default();
    let mut socket = open_socket(&gateway);
    requests(&mut gateway.connect(), 10);
    let next = hand_over(&gateway);
    let (_, _, operations) = Gateway::wait_until_ready(gateway.folder.path(), next.0.id());
    assert!(comes_true(|| gateway.log().contains("draining")));
    // What the old process counts at its end comes out of the new one's log, among what that counts itself.
    requests(&mut gateway.connect(), 10);
    assert!(comes_true(|| Taker::default().pull(operations).admitted() == 20));
    taker.pull(operations);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    assert!(wait_for_end(&mut gateway.process).success());
    requests(&mut gateway.connect(), 10);
    assert!(comes_true(|| Taker::default().pull(operations).admitted() == 31));
    assert_eq!(taker.pull(operations).admitted(), 31);
}

#[test]
fn who_follows_the_log_is_told_at_once() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let log = ask(gateway.operations, "GET", "/usage?wait=0").json()["log"].as_str().unwrap().to_owned();
    let mut follower = Client::connect(gateway.operations);
    follower.send(format!("GET /usage?after={log}:0&wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    requests(&mut gateway.connect(), 1);
    // Well before the minute is over: the client's patience is shorter.
    let page = follower.receive().expect("an answer").json();
    assert_eq!((&page["records"][0]["admitted"], &page["next"]), (&json!(1), &json!(format!("{log}:1"))));
}

/// Each of many consumers calls once: a record for each.
fn call_of_each(gateway: &Gateway, many: usize) {
    let mut client = gateway.connect();
    for n in 0..many {
        let fields = format!("Host: acme.test\r\nX-API-Key: {}\r\n", key(n));
        assert_eq!(client.request(&format!("GET /v1/secure/echo HTTP/1.1\r\n{fields}\r\n")).status, 200);
    }
}

const SMALL: &str = "usage: { retain: 64KiB }\n";

#[test]
fn what_is_taken_over_takes_no_space() {
    let origin = Origin::start("a");
    let gateway = with_consumers(&origin, 100, SMALL);
    while bytes_on_disk(&gateway) < 24 << 10 {
        call_of_each(&gateway, 100);
    }
    assert!(gateway.metric("seiketsu_usage_oldest_timestamp_seconds") > 1.0);
    let mut taker = Taker::default();
    let before = bytes_on_disk(&gateway);
    // To the end of what was counted.
    let calls = gateway.metric(r#"seiketsu_requests_total{tenant="acme",route="secure",class="2xx"}"#) as u64;
    assert!(comes_true(|| Taker::default().pull(gateway.operations).admitted() == calls));
    let next = taker.pull(gateway.operations).next.clone().unwrap();
    let taken = ask(gateway.operations, "POST", &format!("/usage/taken?through={next}"));
    assert_eq!((taken.status, &taken.json()["taken"]), (200, &json!(next)));
    let after = bytes_on_disk(&gateway);
    assert!(after <= 8 << 10 && after < before, "{after} of {before} bytes are left");
    assert!((gateway.metric("seiketsu_usage_bytes") - after as f64).abs() < 0.5);
    assert!(gateway.metric("seiketsu_usage_oldest_timestamp_seconds") < 0.5);
    assert!(gateway.metric("seiketsu_usage_records_lost_total") < 0.5);
    assert_eq!(ask(gateway.operations, "GET", "/usage").json()["records"], json!([]));
    requests(&mut gateway.connect(), 1);
    assert!(comes_true(|| ask(gateway.operations, "GET", "/usage").json()["records"][0]["route"] == "open"));
}

#[test]
fn where_nobody_takes_over_the_oldest_go_first_and_it_is_told() {
    let origin = Origin::start("a");
    let gateway = with_consumers(&origin, 100, SMALL);
    let lost = || gateway.metric("seiketsu_usage_records_lost_total") as u64;
    while lost() == 0 {
        call_of_each(&gateway, 100);
        assert!(bytes_on_disk(&gateway) <= 64 << 10);
    }
    let log = ask(gateway.operations, "GET", "/usage").json()["log"].as_str().unwrap().to_owned();
    let read = || ask(gateway.operations, "GET", &format!("/usage?after={log}:0&limit=10000")).json();
    // Everything is written once it is the same for two seconds: counted before, and then nothing more.
    let written = || gateway.metric("seiketsu_usage_records_total") as u64;
    let before = std::cell::Cell::new(0);
    assert!(comes_true(|| {
        let_pass(Duration::from_secs(2));
        before.replace(written()) == written()
    }));
    let page = read();
    assert_eq!((&page["missing"]["from"], &page["missing"]["through"]), (&json!(1), &json!(lost())));
    assert_eq!(page["records"][0]["sequence"], lost() + 1);
    assert_eq!(lost() + page["records"].as_array().unwrap().len() as u64, written());
    assert!(gateway.logs("usage was dropped before it was taken over"), "{}", gateway.log());
}
