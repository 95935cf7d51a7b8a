//! Where requests go: balancing, health, retries, breakers, names that change their addresses.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    fixtures::{Stub, comes_true, demo, ok, open, tenants},
    support::{Client, Gateway, Origin},
};

const REGION: &str = "x-origin-region";

fn start(endpoints: &[SocketAddr], upstream: &str, policies: &str) -> Gateway {
    Gateway::start(&tenants(&demo(endpoints, upstream), "", &open(policies)))
}

/// How many of so many requests each region answered.
fn shares(gateway: &Gateway, requests: usize, fields: &str) -> BTreeMap<String, usize> {
    let mut client = gateway.connect();
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        let answer = client.request(&format!("GET /v1/bytes/1 HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n"));
        assert_eq!(answer.status, 200, "{answer:?}");
        *shares.entry(answer.header(REGION).unwrap().to_owned()).or_default() += 1;
    }
    shares
}

fn share(shares: &BTreeMap<String, usize>, region: &str) -> usize {
    shares.get(region).copied().unwrap_or(0)
}

#[test]
fn round_robin_keeps_to_the_weights_exactly() {
    let (a, b, c) = (Origin::start("a"), Origin::start("b"), Origin::start("c"));
    let upstream = format!(
        "demo: {{ balance: round_robin, endpoints: [{{ address: '{}', weight: 5 }}, {{ address: '{}', weight: 2 }}, {{ address: '{}' }}] }}\n",
        a.address, b.address, c.address
    );
    let gateway = Gateway::start(&tenants(&upstream, "", &open("")));
    let shares = shares(&gateway, 80, "");
    assert_eq!((share(&shares, "a"), share(&shares, "b"), share(&shares, "c")), (50, 20, 10));
}

#[test]
fn the_faster_endpoint_gets_most_of_the_requests() {
    let (fast, slow) = (Origin::start("fast"), Origin::start("slow"));
    slow.behave(&json!({ "delay_ms": 50 }));
    let gateway = start(&[fast.address, slow.address], "", "");
    let shares = shares(&gateway, 200, "");
    assert!(share(&shares, "fast") > 150, "{shares:?}");
}

#[test]
fn a_hash_keeps_callers_on_their_endpoint_and_moves_few_when_one_leaves() {
    let origins: Vec<Origin> = ["a", "b", "c", "d"].into_iter().map(Origin::start).collect();
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    let hashed = "balance: { consistent_hash: { header: x-user } }";
    let gateway = start(&addresses, hashed, "");
    let ask = |gateway: &Gateway| -> HashMap<usize, String> {
        let mut client = gateway.connect();
        (0..400)
            .map(|user| {
                let request = format!("GET /v1/bytes/1 HTTP/1.1\r\nHost: acme.test\r\nX-User: {user}\r\n\r\n");
                (user, client.request(&request).header(REGION).unwrap().to_owned())
            })
            .collect()
    };
    let before = ask(&gateway);
    assert_eq!(before, ask(&gateway), "the same caller, the same endpoint");
    for region in ["a", "b", "c", "d"] {
        let users = before.values().filter(|have| *have == region).count();
        assert!((50..=150).contains(&users), "{region}: {users} of 400");
    }
    let yaml = tenants(&demo(&addresses[..3], hashed), "", &open("")).replace("revision: 1", "revision: 2");
    gateway.write_tenants(&yaml);
    assert!(comes_true(|| gateway.metric("seiketsu_config_revision") > 1.5), "{}", gateway.log());
    let after = ask(&gateway);
    let moved = before.iter().filter(|(user, region)| *region != "d" && after[*user] != **region).count();
    assert_eq!(moved, 0, "only those of the endpoint that left");
    assert!(after.values().all(|region| region != "d"));
}

#[test]
fn an_endpoint_that_fails_its_health_check_gets_nothing_until_it_is_well() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let health = "balance: round_robin, health: { probe: { http: { path: /healthz } }, interval: 50ms, timeout: 5s, healthy_after: 2, unhealthy_after: 2 }";
    let gateway = start(&[a.address, b.address], health, "");
    assert_eq!(share(&shares(&gateway, 10, ""), "a"), 5);
    a.control("health", &json!({ "healthy": false }));
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "a") == 0), "{}", gateway.log());
    assert_eq!(share(&shares(&gateway, 20, ""), "a"), 0);
    assert!(gateway.operations("/config?tenant=acme&route=open").text().replace(' ', "").contains("\"healthy\":false"));
    a.control("health", &json!({ "healthy": true }));
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "a") == 2), "{}", gateway.log());
}

#[test]
fn an_endpoint_that_fails_real_requests_is_set_aside_and_comes_back() {
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    let outliers = "balance: round_robin, outliers: { consecutive_failures: 3, base_ejection: 2s, max_ejection: 2s }";
    let gateway = start(&[good.address, bad.address], outliers, "retries: { attempts: 0 }");
    bad.behave(&json!({ "status": 503 }));
    let mut client = gateway.connect();
    let mut ask = || client.request("GET /v1/bytes/1 HTTP/1.1\r\nHost: acme.test\r\n\r\n").status;
    let failures = (0..40).filter(|_| ask() == 503).count();
    assert_eq!(failures, 3, "{}", gateway.log());
    assert!(gateway.metric("seiketsu_upstream_endpoints_ejected") > 0.5);
    bad.behave(&json!({}));
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "bad") == 2), "{}", gateway.log());
}

#[test]
fn a_failed_attempt_is_repeated_on_another_endpoint_if_that_is_safe() {
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    bad.behave(&json!({ "status": 503 }));
    let upstream = "balance: round_robin, outliers: { consecutive_failures: 0 }";
    let gateway = start(
        &[good.address, bad.address],
        upstream,
        "retries: { on: [connect_failure, reset, gateway_error], budget: 100 }",
    );
    for _ in 0..10 {
        assert_eq!(gateway.ask("GET", "/v1/echo", "", "").status, 200);
        assert_eq!(gateway.ask("PUT", "/v1/echo", "", "hello").json()["body"], "hello");
    }
    let posts: Vec<u16> = (0..10).map(|_| gateway.ask("POST", "/v1/echo", "", "hello").status).collect();
    assert!(posts.contains(&503), "a POST that arrived is not repeated: {posts:?}");

    bad.behave(&json!({ "reset_share": 1.0 }));
    for _ in 0..10 {
        assert_eq!(gateway.ask("GET", "/v1/echo", "", "").status, 200);
    }
    let posts: Vec<u16> = (0..10).map(|_| gateway.ask("POST", "/v1/echo", "", "hello").status).collect();
    assert!(posts.contains(&502), "{posts:?}");
}

#[test]
fn a_body_that_is_sent_again_counts_once() {
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    bad.behave(&json!({ "status": 503 }));
    let gateway = start(
        &[good.address, bad.address],
        "balance: round_robin, outliers: { consecutive_failures: 0 }",
        "request: { max_body: 1KiB }, retries: { on: [gateway_error], budget: 100 }",
    );
    let body = "x".repeat(700);
    for _ in 0..6 {
        let answer = gateway.ask("PUT", "/v1/echo", "", &body);
        assert_eq!((answer.status, answer.json()["length"].as_u64()), (200, Some(700)), "{answer:?}");
    }
    assert!(bad.requests("/v1/echo") >= 2, "nothing was sent again");
}

#[test]
fn an_upstream_that_always_fails_gets_no_storm_of_retries() {
    const REQUESTS: u64 = 300;
    let origin = Origin::start("a");
    origin.behave(&json!({ "status": 503 }));
    let upstream = "outliers: { consecutive_failures: 0 }";
    let retries = "retries: { attempts: 5, on: [gateway_error], budget: 20, backoff: 0ms }";
    let gateway = start(&[origin.address], upstream, retries);
    let mut client = gateway.connect();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 503);
    }
    let attempts = origin.requests("/v1/echo");
    // A fifth more, and the ten that are always allowed, once for each ten seconds.
    assert!(attempts > REQUESTS, "{attempts}: nothing was tried again");
    assert!(attempts <= REQUESTS + REQUESTS / 5 + 20, "{attempts} attempts for {REQUESTS} requests");
    assert!(gateway.metric("seiketsu_upstream_retries_denied_total") > 0.5);
}

#[test]
fn each_attempt_and_all_of_them_together_have_a_time_limit() {
    let (fast, hanging) = (Origin::start("fast"), Origin::start("hanging"));
    hanging.behave(&json!({ "delay_ms": 600_000 }));
    let upstream = "balance: round_robin, outliers: { consecutive_failures: 0 }";
    let gateway = start(
        &[fast.address, hanging.address],
        upstream,
        "timeouts: { per_try: 300ms, total: 30s }, retries: { on: [timeout] }",
    );
    for _ in 0..4 {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200, "the second attempt is on the other");
    }
    let alone = start(
        &[hanging.address],
        upstream,
        "timeouts: { per_try: 300ms, total: 700ms }, retries: { attempts: 5, on: [timeout], backoff: 0ms }",
    );
    let (began, before) = (Instant::now(), hanging.requests("/v1/echo"));
    let answer = alone.get("acme.test", "/v1/echo", "");
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
    assert!(began.elapsed() >= Duration::from_millis(700) && began.elapsed() < Duration::from_secs(10));
    assert!(hanging.requests("/v1/echo") - before <= 3, "no attempt begins after the time is over");
}

#[test]
fn a_body_that_stops_half_way_has_a_time_limit() {
    let stub =
        Stub::start(|_| b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf".to_vec());
    let gateway = start(&[stub.address], "", "timeouts: { idle: 300ms }");
    let began = Instant::now();
    let answer = gateway.raw("GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    // Nobody takes it for a whole one: of an announced length, what has come may still wait to be sent.
    assert!(answer.is_empty() || answer.ends_with(b"half"), "{}", String::from_utf8_lossy(&answer));
    // Long before an attempt's own limit.
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_open_breaker_answers_at_once_and_closes_when_the_upstream_recovers() {
    let origin = Origin::start("a");
    let upstream =
        "outliers: { consecutive_failures: 0 }, breaker: { error_rate: 50, min_requests: 10, open_for: 1500ms }";
    let gateway = start(&[origin.address], upstream, "retries: { attempts: 0 }");
    origin.behave(&json!({ "status": 503 }));
    let opened = crate::support::wait_for(&|| {
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!(answer.status, 503);
        (answer.text().contains("breaker-open")).then_some(answer)
    });
    let refused = opened.expect("the breaker opens");
    // Whoever waits as long as it says must not come too early.
    assert_eq!(refused.header("retry-after"), Some("2"));
    let asked = origin.requests("/v1/echo");
    assert!((10..=12).contains(&asked), "{asked}");
    assert!(gateway.metric("seiketsu_breakers_open") > 0.5);
    for _ in 0..20 {
        let _ = gateway.get("acme.test", "/v1/echo", "");
    }
    assert!(origin.requests("/v1/echo") <= asked + 1, "an open breaker lets nothing through");
    origin.behave(&json!({}));
    assert!(comes_true(|| gateway.get("acme.test", "/v1/echo", "").status == 200));
    assert!(comes_true(
        || gateway.get("acme.test", "/v1/echo", "").status == 200 && gateway.metric("seiketsu_breakers_open") < 0.5
    ));
    for _ in 0..20 {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    }
}

#[test]
fn more_requests_in_flight_than_allowed_are_turned_away() {
    let origin = Origin::start("a");
    let gateway = start(&[origin.address], "breaker: { max_concurrent: 2 }", "");
    let mut busy: Vec<Client> = (0..2).map(|_| gateway.connect()).collect();
    for client in &mut busy {
        client.send(b"GET /v1/delay/3000 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    assert!(comes_true(|| origin.requests("/v1/delay/3000") == 2));
    let refused = gateway.get("acme.test", "/v1/echo", "");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "temporary-reduced-capacity"));
    assert!(refused.header("retry-after").is_some());
    assert!(busy.iter_mut().all(|client| client.receive().unwrap().status == 200));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[test]
fn killing_an_origin_under_load_costs_no_idempotent_request_and_it_is_used_again_when_it_is_back() {
    let (stays, goes) = (Origin::start("stays"), Origin::start("goes"));
    let upstream =
        "balance: round_robin, outliers: { consecutive_failures: 3, base_ejection: 500ms, max_ejection: 500ms }";
    let gateway = start(&[stays.address, goes.address], upstream, "");
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
                        assert_eq!(answer.status, 200, "{answer:?}");
                        served.fetch_add(1, Ordering::Relaxed);
                        if answer.header("connection") == Some("close") {
                            client = gateway.connect();
                        }
                    }
                })
            })
            .collect();
        let more = |by| {
            let before = served.load(Ordering::Relaxed);
            // A worker that has failed says so itself when the scope ends.
            assert!(comes_true(|| workers.iter().any(std::thread::ScopedJoinHandle::is_finished)
                || served.load(Ordering::Relaxed) > before + by));
        };
        more(200);
        let address = goes.address.to_string();
        drop(goes);
        more(400);
        let back = Origin::start_on(&address, "goes");
        let seen = comes_true(|| back.requests("/v1/echo") > 50);
        stop.store(true, Ordering::Relaxed);
        assert!(seen, "it is not used again: {}", gateway.log());
    });
}

#[test]
fn connections_to_an_upstream_never_serve_two_tenants() {
    let stub = Stub::answering("", "x");
    let tenant = |id: &str| {
        format!(
            "- id: {id}\n  hosts: [{id}.test]\n  routes: [{{ id: open, match: {{ path: '/{{*rest}}' }}, upstream: demo }}]\n"
        )
    };
    let yaml = format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\nupstreams:\n  {}tenants:\n{}{}",
        demo(&[stub.address], ""),
        tenant("acme"),
        tenant("globex"),
    );
    let gateway = Gateway::start(&yaml);
    for round in 0..20 {
        for host in ["acme.test", "globex.test"] {
            assert_eq!(gateway.get(host, &format!("/{round}"), "").status, 200);
        }
    }
    let mut owners: HashMap<usize, String> = HashMap::new();
    for seen in stub.seen() {
        let host = seen.header("host").unwrap().to_owned();
        let owner = owners.entry(seen.connection).or_insert_with(|| host.clone());
        assert_eq!(*owner, host, "connection {}", seen.connection);
    }
    // And they are reused: at most one for each tenant and worker.
    assert!(owners.len() <= 4, "{} connections", owners.len());
}

/// A name server that gives these addresses for every name, with a TTL of nothing.
fn name_server(addresses: Arc<Mutex<Vec<Ipv4Addr>>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let question_end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let wants_a = buffer[question_end - 4..question_end - 2] == [0, 1];
            let answers = if wants_a { addresses.lock().unwrap().clone() } else { Vec::new() };
            let mut reply = buffer[..question_end].to_vec();
            // A response, recursion available, no error; one question and the answers, nothing else.
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::try_from(answers.len()).unwrap(), 0, 0, 0, 0]);
            for answer in answers {
                // The name of the question, type A, class IN, TTL 0, four bytes.
                reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend_from_slice(&answer.octets());
            }
            socket.send_to(&reply, client).unwrap();
        }
    });
    address
}

#[test]
fn a_name_that_changes_its_addresses_is_followed() {
    let first = Origin::start_on("127.0.0.2:0", "first");
    let port = first.address.port();
    let second = Origin::start_on(&format!("127.0.0.3:{port}"), "second");
    let addresses = Arc::new(Mutex::new(vec![Ipv4Addr::new(127, 0, 0, 2)]));
    let server = name_server(addresses.clone());
    let upstream = format!("demo: {{ endpoints: [{{ address: 'calls.internal:{port}' }}], balance: round_robin }}\n");
    let node = format!("dns: {{ servers: ['{server}'], min_refresh: 1s, max_refresh: 2s }}\n");
    let gateway = Gateway::start_with(&tenants(&upstream, "", &open("")), &node);
    assert!(
        comes_true(|| gateway.get("acme.test", "/v1/echo", "").header(REGION) == Some("first")),
        "{}",
        gateway.log()
    );
    addresses.lock().unwrap().push(Ipv4Addr::new(127, 0, 0, 3));
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "second") == 2), "{}", gateway.log());
    *addresses.lock().unwrap() = vec![Ipv4Addr::new(127, 0, 0, 3)];
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "second") == 4));
    // No answer is no reason to forget the last one.
    addresses.lock().unwrap().clear();
    let asked = Instant::now();
    assert!(comes_true(|| {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
        asked.elapsed() > Duration::from_secs(4)
    }));
    drop((first, second));
}

#[test]
fn addresses_that_the_node_may_not_connect_to_are_refused() {
    let origin = Origin::start("a");
    let port = origin.address.port();
    let addresses = Arc::new(Mutex::new(vec![Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(10, 0, 0, 1)]));
    let server = name_server(addresses.clone());
    let upstream = format!("demo: {{ endpoints: [{{ address: 'rebound.internal:{port}' }}] }}\n");
    let node = format!("dns: {{ servers: ['{server}'], min_refresh: 1s, max_refresh: 2s }}\n");
    let gateway = Gateway::start_with(&tenants(&upstream, "", &open("")), &node);
    let began = Instant::now();
    let answer = gateway.get("acme.test", "/v1/echo", "");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "upstream-unavailable"));
    assert!(began.elapsed() < Duration::from_secs(2), "nothing was connected to");
    assert!(!answer.text().contains("169.254") && !answer.text().contains("10.0.0.1"), "{}", answer.text());
    // What the name is allowed to mean is used as soon as it does.
    *addresses.lock().unwrap() = vec![Ipv4Addr::LOCALHOST];
    assert!(comes_true(|| gateway.get("acme.test", "/v1/echo", "").status == 200), "{}", gateway.log());
}

#[test]
fn a_name_without_an_address_is_counted_and_told_once_in_a_while() {
    let server = name_server(Arc::default());
    let upstream = "demo: { endpoints: [{ address: 'slip.internal:80' }] }\n";
    let node = format!("dns: {{ servers: ['{server}'], min_refresh: 1ms, max_refresh: 10ms }}\n");
    let gateway = Gateway::start_with(&tenants(upstream, "", &open("")), &node);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 503);
    let counted = || gateway.metric("seiketsu_dns_failures_total{reason=\"no_address\"}");
    assert!(comes_true(|| counted() > 5.0), "{}", gateway.metrics());
    let told = || gateway.log().matches("a name does not exist, or has no address").count();
    assert!(comes_true(|| told() > 0) && gateway.log().contains("slip.internal"), "{}", gateway.log());
    assert_eq!(told(), 1, "{}", gateway.log());
}

#[test]
fn an_endpoint_that_egress_refuses_is_one_error_and_not_two() {
    let origin = Origin::start("a");
    let good = tenants(&demo(&[origin.address], ""), "", &open(""));
    let gateway = Gateway::start(&good);
    let metadata = origin.address.to_string().replace("127.0.0.1", "169.254.169.254");
    gateway.write_tenants(&good.replace(&origin.address.to_string(), &metadata).replace("revision: 1", "revision: 2"));
    assert!(comes_true(|| gateway.readyz().text().contains("169.254.169.254")), "{}", gateway.readyz().text());
    let errors = gateway.readyz().json()["last_reload"]["errors"].clone();
    assert_eq!(errors.as_array().unwrap().len(), 1, "{errors}");
    assert!(!errors.to_string().contains("there is no upstream"), "{errors}");
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[test]
fn endpoints_of_a_lower_priority_stand_in() {
    let (main, spare) = (Origin::start("main"), Origin::start("spare"));
    let upstream = format!(
        "demo: {{ endpoints: [{{ address: '{}' }}, {{ address: '{}', priority: 1 }}], panic_threshold: 0, outliers: {{ consecutive_failures: 2, base_ejection: 1s, max_ejection: 1s }} }}\n",
        main.address, spare.address
    );
    let gateway = Gateway::start(&tenants(&upstream, "", &open("")));
    assert_eq!(share(&shares(&gateway, 20, ""), "main"), 20);
    let address = main.address.to_string();
    drop(main);
    assert_eq!(share(&shares(&gateway, 20, ""), "spare"), 20);
    let _back = Origin::start_on(&address, "main");
    assert!(comes_true(|| share(&shares(&gateway, 4, ""), "main") == 4), "{}", gateway.log());
}

#[test]
fn the_host_header_is_the_clients_the_endpoints_or_a_fixed_one() {
    let stub = Stub::start(|seen| ok("", seen.header("host").unwrap().as_bytes()));
    for (setting, expected) in [
        ("host_header: client", "acme.test".to_owned()),
        ("host_header: endpoint", stub.address.to_string()),
        ("host_header: { fixed: legacy.internal }", "legacy.internal".to_owned()),
    ] {
        let gateway = start(&[stub.address], setting, "");
        assert_eq!(gateway.get("acme.test", "/v1/x", "").text(), expected);
        let seen = stub.seen().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-host"), Some("acme.test"));
    }
}
