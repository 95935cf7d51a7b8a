//! What a proxy on Pingora gets wrong unless it takes care: retries, interim responses, refusals, names.

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    examples::{Authority, tls_origin},
    fixtures::{Seen, Stub, comes_true, demo, ok, open, tenants, with_policies},
    support::{Client, Gateway, KEY, Origin, receive, tls::connect_tls, two_tenants},
};

#[test]
fn a_name_that_means_nothing_is_refused_at_once_and_holds_nobody_up() {
    let origin = Origin::start("a");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstreams =
        format!("{}lost: {{ endpoints: [{{ address: 'lost.internal:80' }}] }}\n", demo(&[origin.address], ""));
    let routes = format!("{}- {{ id: lost, match: {{ path: /lost }}, upstream: lost }}\n", open(""));
    // A name server that never answers.
    let node = format!("dns: {{ servers: ['{}'] }}\n", silent.local_addr().unwrap());
    let gateway = Gateway::start_with(&tenants(&upstreams, "", &routes), &node);
    let began = Instant::now();
    for _ in 0..3 {
        let answer = gateway.get("acme.test", "/lost", "");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "upstream-unavailable"));
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_connection_made_under_one_tls_policy_serves_no_other() {
    let files = tempfile::tempdir().unwrap();
    let (known, other) = (Authority::new(), Authority::new());
    let (address, _origin) = tls_origin(&known, "orders.internal", files.path());
    let ca = |name: &str, authority: &Authority| {
        let path = files.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path.display().to_string()
    };
    let upstream = |name: &str, tls: &str| {
        format!(
            "{name}: {{ endpoints: [{{ address: '{address}' }}], tls: {{ {tls} }}, outliers: {{ consecutive_failures: 0 }} }}\n"
        )
    };
    let (known, other) = (ca("known.pem", &known), ca("other.pem", &other));
    let upstreams = [
        upstream("right", &format!("server_name: orders.internal, ca: '{known}'")),
        upstream("careless", "server_name: orders.internal, insecure_skip_verify: true"),
        upstream("wrong_authority", &format!("server_name: orders.internal, ca: '{other}'")),
        upstream("wrong_name", &format!("server_name: payments.internal, ca: '{known}'")),
    ];
    let names = ["right", "careless", "wrong_authority", "wrong_name"];
    let routes = names.map(|name| {
        format!("- {{ id: {}, match: {{ path: /v1/{name}/echo }}, upstream: {name} }}\n", name.replace('_', "-"))
    });
    let gateway = Gateway::start(&tenants(&upstreams.concat(), "", &routes.concat()));
    for wrong in ["wrong_authority", "wrong_name"] {
        for _ in 0..4 {
            // One connection is one worker, and that has a connection to the upstream by now.
            let mut client = gateway.connect();
            for right in ["right", "careless", "right"] {
                let answer = client.request(&format!("GET /v1/{right}/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
                assert_eq!(answer.status, 200, "{right}: {}", gateway.log());
            }
            let answer = client.request(&format!("GET /v1/{wrong}/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
            assert_eq!(answer.status, 502, "{wrong}");
        }
    }
}

#[test]
fn the_second_head_of_a_connection_has_a_deadline_too() {
    let origin = Origin::start("a");
    let node = "protection: { head_timeout: 500ms }\n";
    let gateway = Gateway::start_with(&tenants(&demo(&[origin.address], ""), "", &open("")), node);
    let mut client = gateway.connect();
    assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
    client.send(b"GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nX-Slow: ");
    // Each byte comes well before any limit for one read; the head as a whole does not.
    let began = Instant::now();
    client.stream.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let answer = loop {
        client.send_what_fits(b"x");
        let mut first = [0];
        match client.stream.get_ref().peek(&mut first) {
            Ok(_) => break client.receive().expect("an answer"),
            Err(_) => assert!(began.elapsed() < crate::support::PATIENCE, "never cut"),
        }
    };
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    assert!(client.is_closed());
    assert!(gateway.metric("seiketsu_early_errors_total{reason=\"head_timeout\"}") > 0.5);
}

#[test]
fn every_refusal_carries_what_every_answer_carries_and_keeps_the_connection() {
    let origin = Origin::start("a");
    let tenants = two_tenants(&[origin.address], KEY).replace(
        "  - { id: only-get,",
        "  - { id: small, match: { path: /small }, upstream: demo, policies: { request: { max_body: 4 } } }\n  - { id: only-get,",
    );
    let gateway = Gateway::start(&tenants);
    let mut client = gateway.connect();
    let mut ids = std::collections::BTreeSet::new();
    for (method, target, body, status) in [
        ("GET", "/v1/secure/echo", "", 401),
        ("POST", "/v1/secure/echo", "hello", 401),
        ("GET", "/nothing", "", 404),
        ("POST", "/only", "hello", 405),
        ("POST", "/small", "hello", 413),
        ("GET", "/v1/%zz", "", 400),
        ("GET", "/v1/echo", "", 200),
    ] {
        let answer = client.request(&format!(
            "{method} {target} HTTP/1.1\r\nHost: acme.test\r\nOrigin: https://app.acme.test\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("connection"), Some("keep-alive"), "{target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.acme.test"), "{target}");
        assert!(answer.header("vary").is_some_and(|vary| vary.to_ascii_lowercase().contains("origin")), "{target}");
        assert!(ids.insert(answer.header("x-request-id").unwrap().to_owned()), "the same id twice");
    }
}

#[test]
fn failures_of_the_upstream_carry_it_too_and_say_how_the_connection_goes_on() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closes = Stub::start(|_| Vec::new());
    let garbage = Stub::start(|_| b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec());
    for (address, status) in [(nobody, 503), (closes.address, 502), (garbage.address, 502)] {
        let gateway = Gateway::start(&two_tenants(&[address], KEY));
        let mut client = gateway.connect();
        let answer =
            client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nOrigin: https://app.acme.test\r\n\r\n");
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.acme.test"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.json()["instance"].as_str(), answer.header("x-request-id"));
        // Whatever it says holds.
        if answer.header("connection") == Some("close") {
            assert!(client.is_closed());
        } else {
            assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, status);
        }
    }
}

#[test]
fn an_upstream_that_is_down_costs_no_client_its_connection() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closes = Stub::start(|_| Vec::new());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let requests = [
        "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n",
        "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello",
        "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n",
    ];
    for (address, status) in [(nobody, 503), (closes.address, 502), (silent.local_addr().unwrap(), 504)] {
        let policies = "timeouts: { per_try: 200ms }, retries: { attempts: 0 }";
        let gateway = Gateway::start(&tenants(&demo(&[address], ""), "", &open(policies)));
        let mut client = gateway.connect();
        let mut tls = BufReader::new(connect_tls(gateway.https));
        for request in requests {
            let answer = client.request(request);
            assert_eq!((answer.status, answer.header("connection")), (status, Some("keep-alive")), "{request}");
            tls.get_mut().write_all(request.as_bytes()).unwrap();
            let answer = receive(&mut tls).expect("an answer on the same connection");
            assert_eq!((answer.status, answer.header("connection")), (status, Some("keep-alive")), "{request}");
        }
        // What was sent ahead waits for its turn, as ever.
        client.send(requests.concat().as_bytes());
        for _ in requests {
            assert_eq!(client.receive().expect("an answer").status, status);
        }
        assert_eq!(gateway.metric("seiketsu_connections_accepted_total") as u64, 2);
    }
}

#[test]
fn a_failure_in_the_midst_of_an_upload_ends_its_connection() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = with_policies(nobody, "");
    let mut client = gateway.connect();
    // Its end is not in sight: what comes next could be its body or another request.
    client.send(b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    let answer = client.receive().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert!(client.is_closed());
}

#[test]
fn a_body_that_does_not_conform_never_reaches_the_upstream() {
    let origin = Origin::start("a");
    let gateway =
        with_policies(origin.address, "validation: { body_schema: { inline: { type: object, required: [name] } } }");
    let head = "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\n";
    let mut client = gateway.connect();
    for body in [
        "Content-Length: 2\r\n\r\n{}",
        "Content-Length: 5\r\n\r\n{\"a\":",
        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    ] {
        let answer = client.request(&format!("{head}{body}"));
        assert!((400..500).contains(&answer.status), "{answer:?}");
        if answer.header("connection") == Some("close") {
            client = gateway.connect();
        }
    }
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(70_000));
    assert_eq!(gateway.post_json("/v1/echo", &large).status, 413);
    assert_eq!(origin.requests("/v1/echo"), 0);
    assert_eq!(gateway.post_json("/v1/echo", "{\"name\":1}").status, 200);
    assert_eq!(origin.requests("/v1/echo"), 1);
}

/// Breaks off the first exchange after it has read the whole request, and answers all others.
fn breaks_first() -> Stub {
    let count = AtomicUsize::new(0);
    Stub::start(move |seen: &Seen| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            Vec::new()
        } else {
            ok("", seen.body.len().to_string().as_bytes())
        }
    })
}

#[test]
fn what_may_have_arrived_is_sent_again_only_if_that_is_safe() {
    let retries = "retries: { attempts: 3, on: [connect_failure, reset, gateway_error], budget: 100, backoff: 0ms }";
    for (method, status) in [("GET", 200), ("PUT", 200), ("DELETE", 200), ("POST", 502), ("PATCH", 502)] {
        let stub = breaks_first();
        let gateway = with_policies(stub.address, retries);
        let body = if matches!(method, "GET" | "DELETE") { "" } else { "hello" };
        assert_eq!(gateway.ask(method, "/v1/x", "", body).status, status, "{method}");
        let bodies: Vec<usize> = stub.seen().iter().map(|seen| seen.body.len()).collect();
        assert!(bodies.iter().all(|length| *length == body.len()), "{method}: {bodies:?}");
        assert_eq!(bodies.len(), if status == 200 { 2 } else { 1 }, "{method}");
    }
}

#[test]
fn a_body_too_large_to_be_kept_is_never_sent_again_in_part() {
    let retries = "retries: { attempts: 3, on: [connect_failure, reset, gateway_error], budget: 100, backoff: 0ms }";
    for (length, status) in [(65_536, 200), (65_537, 502), (200_000, 502)] {
        let stub = breaks_first();
        let gateway = with_policies(stub.address, retries);
        let body = "x".repeat(length);
        assert_eq!(gateway.ask("PUT", "/v1/x", "", &body).status, status, "{length}");
        assert!(stub.seen().iter().all(|seen| seen.body.len() == length), "{length}");
    }
}

#[test]
fn what_cannot_have_arrived_is_sent_to_another_endpoint() {
    let refuses = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stub = Stub::start(|seen| ok("", seen.body.len().to_string().as_bytes()));
    let upstream = "balance: round_robin, outliers: { consecutive_failures: 0 }";
    let policies = "retries: { attempts: 2, on: [connect_failure], budget: 100, backoff: 0ms }";
    let gateway = Gateway::start(&tenants(&demo(&[refuses, stub.address], upstream), "", &open(policies)));
    for length in [0, 5, 60_000, 300_000] {
        for chunked in [false, true] {
            for _ in 0..4 {
                let mut client = gateway.connect();
                let body = "x".repeat(length);
                let framing =
                    if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {length}") };
                client.send(format!("POST /v1/x HTTP/1.1\r\nHost: acme.test\r\n{framing}\r\n\r\n").as_bytes());
                if chunked && length > 0 {
                    client.send_what_fits(format!("{length:x}\r\n{body}\r\n").as_bytes());
                } else {
                    client.send_what_fits(body.as_bytes());
                }
                if chunked {
                    client.send_what_fits(b"0\r\n\r\n");
                }
                let answer = client.receive().expect("an answer");
                assert_eq!((answer.status, answer.text()), (200, length.to_string()), "chunked: {chunked}");
            }
        }
    }
}

#[test]
fn interim_responses_neither_leak_nor_double_anything() {
    let stub = Stub::start(|_| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nX-Secret: hint\r\n\r\n";
        let goes_on = "HTTP/1.1 100 Continue\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Mine: once\r\n\r\nhello";
        [hints, goes_on, hints, answer].concat().into_bytes()
    });
    let policies = "headers: { response: { add: { x-added: 'yes' }, set: { x-set: 'yes' } } }, \
                    cors: { origins: ['https://app.acme.test'] }";
    let gateway = with_policies(stub.address, policies);
    let mut client = gateway.connect();
    for _ in 0..3 {
        client.send(b"GET /v1/x HTTP/1.1\r\nHost: acme.test\r\nOrigin: https://app.acme.test\r\n\r\n");
        for status in [103, 100, 103] {
            let interim = client.receive().unwrap();
            let head = interim.head.to_ascii_lowercase();
            let fields: Vec<&str> = head.lines().skip(1).collect();
            let expected: &[&str] = if status == 103 { &["link: </a.css>; rel=preload"] } else { &[] };
            assert_eq!((interim.status, fields.as_slice()), (status, expected));
        }
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        for name in ["x-mine", "x-added", "x-set", "x-request-id", "access-control-allow-origin", "date", "connection"]
        {
            assert_eq!(answer.all(name).len(), 1, "{name}: {}", answer.head);
        }
        assert_eq!((answer.header("link"), answer.header("x-secret")), (None, None));
    }
    // Clients of HTTP/1.0 do not know them (RFC 9110 §15.2).
    let old = gateway.connect().request("GET /v1/x HTTP/1.0\r\nHost: acme.test\r\n\r\n");
    assert_eq!((old.status, old.text().as_str()), (200, "hello"));
}

#[test]
fn an_answer_before_the_end_of_the_upload_is_passed_on() {
    // Answers after the head, and reads nothing of the body.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (done, until_done) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            let mut piece = [0; 1];
            stream.read_exact(&mut piece).unwrap();
            head.push(piece[0]);
        }
        stream.write_all(b"HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\n\r\nstop").unwrap();
        let _ = until_done.recv();
    });
    let gateway = with_policies(address, "");
    let mut client = gateway.connect();
    client.send(b"POST /v1/x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 1000\r\n\r\nhello");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (409, "stop"));
    drop(done);
}

#[test]
fn one_bad_client_costs_the_others_nothing() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let failed = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                let mut client = gateway.connect();
                client.send_what_fits(match n % 4 {
                    0 => b"\x16\x03\x01\x02\x00\x01",
                    1 => b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 10\r\n\r\nx",
                    2 => b"GET /v1/bytes/10000000 HTTP/1.1\r\nHost: acme.test\r\n\r\n",
                    _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense",
                });
            }
        });
        scope.spawn(|| {
            let mut client: Client = gateway.connect();
            for _ in 0..500 {
                if client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status != 200 {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(comes_true(|| gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") < 0.5));
}

#[test]
fn no_word_in_the_head_lets_a_body_trickle() {
    let origin = Origin::start("a");
    // The body is read before the request goes on, so nothing but its pace ends it.
    let yaml = tenants(&demo(&[origin.address], ""), "", &open("transform: { request_body: '.' }"));
    let gateway = Gateway::start_with(&yaml, "protection: { min_body_rate: 1KiB }\n");
    let words = ["", "Upgrade: websocket\r\n", "Accept: text/event-stream\r\n"];
    let types = ["application/json", "application/grpc+json"];
    let mut clients: Vec<Client> = Vec::new();
    for (fields, kind) in words.iter().flat_map(|fields| types.map(|kind| (fields, kind))) {
        let mut client = gateway.connect();
        client.send(
            format!(
                "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\n{fields}Content-Type: {kind}\r\nContent-Length: 100\r\n\r\n{{"
            )
            .as_bytes(),
        );
        clients.push(client);
    }
    for mut client in clients {
        let answer = client.receive().expect("a refusal in time");
        // gRPC has its own word for it.
        let refused = answer.status == 408 || answer.header("grpc-status") == Some("4");
        assert!(refused, "{answer:?}");
    }
}
