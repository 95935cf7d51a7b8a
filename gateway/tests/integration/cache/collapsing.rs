//! One request for one thing at a time.

use std::{
    io::Write,
    net::TcpListener,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{caching_from, reload, wire};
use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, open, read_request, tenants},
    support::{Client, Gateway},
};

/// An origin that answers once it is told to.
struct Patient {
    address: std::net::SocketAddr,
    asked: Arc<AtomicUsize>,
    go: Arc<AtomicBool>,
}

fn patient(answer: &str) -> Patient {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = Patient { address: listener.local_addr().unwrap(), asked: Arc::default(), go: Arc::default() };
    let (asked, go, answer) = (origin.asked.clone(), origin.go.clone(), wire(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (asked, go, answer) = (asked.clone(), go.clone(), answer.clone());
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while read_request(0, &mut std::io::BufReader::new(&stream)).is_some() {
                    asked.fetch_add(1, Ordering::SeqCst);
                    assert!(comes_true(|| go.load(Ordering::SeqCst)));
                    stream.write_all(&answer).unwrap();
                }
            });
        }
    });
    origin
}

/// Sends so many requests, has the origin answer once all are under way, and gives all answers.
fn together(origin: &Patient, gateway: &Gateway, many: usize, fields: &str) -> Vec<crate::support::Response> {
    let request = format!("GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n");
    let mut clients: Vec<Client> = (0..many).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(request.as_bytes());
    }
    let waiting = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize == many;
    assert!(comes_true(waiting));
    origin.go.store(true, Ordering::SeqCst);
    clients.iter_mut().map(|client| client.receive().unwrap()).collect()
}

#[test]
fn a_thousand_requests_for_what_is_not_stored_are_one_to_the_origin() {
    let origin = patient("200 OK\nCache-Control: max-age=3600\n\nbody");
    let gateway = caching_from(origin.address, "");
    let answers = together(&origin, &gateway, 1000, "");
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "body"));
    assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    let collapsed = answers.iter().filter(|answer| answer.cache_status().ends_with("; collapsed")).count();
    assert_eq!(collapsed, 999);
    assert!(answers.iter().all(|answer| answer.cache_status().starts_with("seiketsu; fwd=uri-miss")));
    assert!(comes_true(|| gateway.metric("seiketsu_cache_requests_total{tenant=\"acme\",result=\"collapsed\"}")
        as usize
        == 999));
}

#[test]
fn what_cannot_be_stored_does_not_hold_up_those_who_wait() {
    let origin = patient("200 OK\nCache-Control: no-store\n\nbody");
    let gateway = caching_from(origin.address, "");
    let answers = together(&origin, &gateway, 50, "");
    assert!(answers.iter().all(|answer| answer.text() == "body" && !answer.is_hit()));
    assert_eq!(origin.asked.load(Ordering::SeqCst), 50);
    // From now on nobody waits for anybody.
    origin.go.store(false, Ordering::SeqCst);
    let mut clients: Vec<Client> = (0..5).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    assert!(comes_true(|| origin.asked.load(Ordering::SeqCst) == 55));
    origin.go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().text(), "body");
    }
}

#[test]
fn who_waits_for_too_long_asks_the_origin() {
    let origin = patient("200 OK\nCache-Control: max-age=3600\n\nbody");
    let gateway = caching_from(origin.address, "collapse: 50ms");
    let mut first = gateway.connect();
    first.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(comes_true(|| origin.asked.load(Ordering::SeqCst) == 1));
    let mut second = gateway.connect();
    second.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(comes_true(|| origin.asked.load(Ordering::SeqCst) == 2));
    origin.go.store(true, Ordering::SeqCst);
    assert_eq!((first.receive().unwrap().status, second.receive().unwrap().status), (200, 200));
}

#[test]
fn who_asks_first_may_leave() {
    let origin = patient("200 OK\nCache-Control: max-age=3600\n\nbody");
    let gateway = caching_from(origin.address, "");
    let mut first = gateway.connect();
    first.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(comes_true(|| origin.asked.load(Ordering::SeqCst) == 1));
    let mut second = gateway.connect();
    second.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize == 2));
    drop(first);
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize == 1));
    origin.go.store(true, Ordering::SeqCst);
    assert_eq!(second.receive().unwrap().text(), "body");
}

#[test]
fn variants_that_are_known_do_not_wait_for_each_other_for_ever() {
    let origin = patient("200 OK\nCache-Control: max-age=3600\nVary: Foo\n\nbody");
    let gateway = Arc::new(caching_from(origin.address, ""));
    origin.go.store(true, Ordering::SeqCst);
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let (gateway, barrier) = (gateway.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                gateway.fetch("/v1/a", &format!("Foo: {number}\r\n")).text()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), "body");
    }
    assert_eq!(origin.asked.load(Ordering::SeqCst), 8);
}

#[test]
fn what_is_validated_each_time_is_validated_side_by_side() {
    const MANY: usize = 20;
    for cache_control in ["no-cache", "max-age=0", "max-age=0, must-revalidate"] {
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = asked.clone();
        let answer = wire(&format!("200 OK\nCache-Control: {cache_control}\nETag: \"1\"\n\nbody"));
        // All but the first are answered once all of them are there.
        let origin = Stub::start(move |request| {
            if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                return answer.clone();
            }
            assert!(comes_true(|| seen.load(Ordering::SeqCst) > MANY));
            assert_eq!(request.header("if-none-match"), Some("\"1\""));
            wire("304 Not Modified\nETag: \"1\"")
        });
        let gateway = caching_from(origin.address, "");
        gateway.fetch("/v1/a", "");
        let mut clients: Vec<Client> = (0..MANY).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().text(), "body", "{cache_control}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), MANY + 1);
    }
}

#[test]
fn those_who_wait_for_what_must_be_validated_each_time_are_let_go_together() {
    const MANY: usize = 20;
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, may_answer) = (asked.clone(), go.clone());
    let origin = Stub::start(move |_| {
        let is_first = seen.fetch_add(1, Ordering::SeqCst) == 0;
        let all_are_there = || seen.load(Ordering::SeqCst) == MANY;
        assert!(comes_true(|| if is_first { may_answer.load(Ordering::SeqCst) } else { all_are_there() }));
        wire("200 OK\nETag: \"1\"\n\nbody")
    });
    let gateway = caching_from(origin.address, "");
    let mut clients: Vec<Client> = (0..MANY).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    let in_flight = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize;
    assert!(comes_true(|| in_flight() == MANY));
    go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().text(), "body");
    }
}

#[test]
fn once_somebody_has_waited_in_vain_nobody_waits() {
    for fields in ["Cache-Control: max-age=3600", "Cache-Control: max-age=1\nETag: \"1\""] {
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = asked.clone();
        let (first, answer) =
            (wire(&format!("200 OK\n{fields}\n\nbody")), wire("200 OK\nCache-Control: max-age=60\n\nnew"));
        let is_stale = fields.contains("ETag");
        let origin = Stub::start(move |_| {
            if seen.fetch_add(1, Ordering::SeqCst) == 0 && is_stale {
                return first.clone();
            }
            // Until three ask at the same time.
            assert!(comes_true(|| seen.load(Ordering::SeqCst) >= 3 + usize::from(is_stale)));
            answer.clone()
        });
        let yaml = |collapse: &str| {
            let policies = format!("cache: {{ collapse: {collapse} }}, retries: {{ attempts: 0 }}");
            tenants(&demo(&[origin.address], ""), "", &open(&policies))
        };
        let gateway = Gateway::start(&yaml("50ms"));
        if is_stale {
            gateway.fetch("/v1/a", "");
            // Until it is stale.
            let_pass(Duration::from_millis(2100));
        }
        let ask = |asked_before: usize| {
            let mut client = gateway.connect();
            client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
            let reached = comes_true(|| asked.load(Ordering::SeqCst) > asked_before + usize::from(is_stale));
            assert!(reached, "{fields}: the one after {asked_before}");
            client
        };
        let mut clients = vec![ask(0), ask(1)];
        // As long as anybody likes, but there is nothing to be had by it.
        reload(&gateway, &yaml("1h"));
        clients.push(ask(2));
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().text(), "new");
        }
    }
}

#[test]
fn where_the_cache_is_full_of_what_is_asked_for_often_requests_are_one_all_the_same() {
    let go = Arc::new(AtomicBool::new(false));
    let (told, large) = (go.clone(), "x".repeat(50 << 10));
    let origin = Stub::start(move |seen| {
        let fields = "200 OK\nCache-Control: max-age=3600";
        if seen.target() == "/v1/a" {
            assert!(comes_true(|| told.load(Ordering::SeqCst)));
            return wire(&format!("{fields}\n\n{large}"));
        }
        wire(&format!("{fields}\n\n{}", "x".repeat(1 << 10)))
    });
    let memory = "policies: { cache: { memory: 1MiB, max_object: 64KiB } }";
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), memory, &open("cache: {}")));
    let mut client = gateway.connect();
    for _ in 0..20 {
        for number in 0..400 {
            let request = format!("GET /v1/{number} HTTP/1.1\r\nHost: acme.test\r\n\r\n");
            assert_eq!(client.request(&request).status, 200);
        }
    }
    let mut clients: Vec<Client> = (0..20).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize == 20));
    go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().body.len(), 50 << 10);
    }
    let asked = || origin.seen().iter().filter(|seen| seen.target() == "/v1/a").count();
    assert!(gateway.fetch("/v1/a", "").is_hit());
    assert_eq!(asked(), 1);
}

#[test]
fn what_turns_out_to_be_too_large_holds_up_those_who_wait_for_it_once() {
    let (go, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (told, asked) = (go.clone(), waits.clone());
    let origin = Stub::start(move |_| {
        // The first is answered when all wait for it, all others when they have come together.
        let number = asked.fetch_add(1, Ordering::SeqCst);
        assert!(comes_true(|| told.load(Ordering::SeqCst) && (number == 0 || asked.load(Ordering::SeqCst) == 8)));
        let piece = format!("{:x}\r\n{}\r\n", 80 << 10, "x".repeat(80 << 10));
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n{piece}0\r\n\r\n")
            .into_bytes()
    });
    let gateway = caching_from(origin.address, "max_object: 64KiB, collapse: 60s");
    let mut clients: Vec<Client> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize == 8));
    go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().body.len(), 80 << 10);
    }
}

#[test]
fn those_who_wait_for_an_origin_that_fails_are_let_go_together_and_those_who_come_then_wait() {
    const MANY: usize = 20;
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, told) = (asked.clone(), go.clone());
    let origin = Stub::start(move |_| {
        // The first fails once all wait for it, the others when they have come together; and the next one answers.
        let number = seen.fetch_add(1, Ordering::SeqCst);
        let fails = match number {
            0 => comes_true(|| told.load(Ordering::SeqCst) == 1),
            1..MANY => comes_true(|| seen.load(Ordering::SeqCst) >= MANY),
            _ => !comes_true(|| told.load(Ordering::SeqCst) == 2),
        };
        // Nothing, and the connection is closed.
        if fails { Vec::new() } else { wire("200 OK\nCache-Control: max-age=60\n\nbody") }
    });
    let gateway = caching_from(origin.address, "collapse: 60s");
    let in_flight = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize;
    for (told, status) in [(1, 502), (2, 200)] {
        assert!(comes_true(|| in_flight() == 0));
        let mut clients: Vec<Client> = (0..MANY).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        }
        assert!(comes_true(|| in_flight() == MANY));
        go.store(told, Ordering::SeqCst);
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().status, status);
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), MANY + 1);
}

#[test]
fn what_is_stale_when_it_comes_serves_those_who_wait_if_it_may_be_served_stale() {
    for fields in ["", "Cache-Control: no-cache\r\n"] {
        let origin = patient("200 OK\nCache-Control: max-age=0, stale-while-revalidate=60\n\nbody");
        let gateway = caching_from(origin.address, "");
        let answers = together(&origin, &gateway, 20, fields);
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "body"));
        assert_eq!(answers.iter().filter(|answer| answer.cache_status().ends_with("; collapsed")).count(), 19);
        assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn nobody_waits_for_the_body_of_what_is_validated_each_time() {
    const MANY: usize = 4;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked, go) =
        (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, may_end) = (asked.clone(), go.clone());
    let answer = wire("200 OK\nCache-Control: no-cache\nETag: \"x\"\n\nbody");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (seen, may_end, answer) = (seen.clone(), may_end.clone(), answer.clone());
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while read_request(0, &mut std::io::BufReader::new(&stream)).is_some() {
                    let (head, body) = answer.split_at(answer.len() - 4);
                    // The first one's body takes its time; the others' heads do, until they have come together.
                    let is_first = seen.fetch_add(1, Ordering::SeqCst) == 0;
                    assert!(is_first || comes_true(|| seen.load(Ordering::SeqCst) == MANY));
                    stream.write_all(head).unwrap();
                    assert!(comes_true(|| may_end.load(Ordering::SeqCst)));
                    stream.write_all(body).unwrap();
                }
            });
        }
    });
    let gateway = caching_from(address, "collapse: 60s");
    let mut clients: Vec<Client> = (0..MANY).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        if asked.load(Ordering::SeqCst) == 0 {
            assert_eq!(client.receive_head().status, 200);
        }
    }
    for client in &mut clients[1..] {
        assert_eq!(client.receive_head().status, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), MANY);
    go.store(true, Ordering::SeqCst);
}
