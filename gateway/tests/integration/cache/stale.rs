//! RFC 9111 §4.2.4, RFC 5861: what may be served although it is stale.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use super::{breaking_off, caching, caching_from, in_turn, reload, wire};
use crate::{
    fixtures::{Stub, comes_true, demo, let_pass, open, tenants, upstream},
    support::{Client, Gateway, http2::Http2},
};

/// An origin whose first answer has these fields and is stale at once, and which then answers with this status.
fn failing(fields: &str, status: &str) -> Stub {
    in_turn(&[&format!("200 OK\n{fields}\nAge: 100\n\nold"), &format!("{status}\n\nerror")])
}

#[test]
fn stale_if_error_is_served_when_the_origin_answers_with_an_error() {
    for (status, served) in [
        ("500 Internal Server Error", true),
        ("502 Bad Gateway", true),
        ("503 Service Unavailable", true),
        ("504 Gateway Timeout", true),
        ("501 Not Implemented", false),
        ("404 Not Found", false),
    ] {
        let origin = failing("Cache-Control: max-age=60, stale-if-error=3600", status);
        let gateway = caching(&origin, "");
        gateway.fetch("/v1/a", "");
        let answer = gateway.fetch("/v1/a", "");
        assert_eq!(answer.text(), if served { "old" } else { "error" }, "{status} {answer:?}");
        if served {
            let code = &status[..3];
            assert!(
                answer.cache_status().starts_with(&format!("seiketsu; fwd=stale; fwd-status={code}; ttl=-4")),
                "{answer:?}"
            );
            assert!(answer.age().unwrap() >= 100);
        }
        assert_eq!(origin.asked(), 2);
    }
}

#[test]
fn stale_if_error_is_served_when_the_origin_cannot_be_reached_or_breaks_off() {
    // Answers once, then nobody is there any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = caching_from(address, "");
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        crate::fixtures::read_request(0, &mut std::io::BufReader::new(&stream)).unwrap();
        let answer = wire("200 OK\nConnection: close\nCache-Control: max-age=60, stale-if-error=3600\nAge: 100\n\nold");
        std::io::Write::write_all(&mut stream, &answer).unwrap();
    });
    assert_eq!(gateway.fetch("/v1/a", "").text(), "old");
    serve.join().unwrap();
    for _ in 0..3 {
        let answer = gateway.fetch("/v1/a", "");
        assert_eq!((answer.status, answer.text().as_str()), (200, "old"), "{answer:?}");
        assert!(answer.cache_status().starts_with("seiketsu; fwd=stale; ttl=-"), "{answer:?}");
    }
    // What is not stored is an error as before.
    assert_eq!(gateway.fetch("/v1/b", "").status, 503);
    // One that closes the connection instead of an answer.
    let broken = breaking_off("");
    let gateway = caching_from(broken.address, "");
    assert_eq!(gateway.fetch("/v1/a", "").status, 502);
}

#[test]
fn stale_if_error_is_served_while_the_breaker_is_open() {
    let status = Arc::new(AtomicU16::new(200));
    let answering = status.clone();
    let origin = Stub::start(move |_| {
        let status = answering.load(Ordering::SeqCst);
        wire(&format!("{status} Some\nCache-Control: max-age=60\nAge: 100\n\n{status}"))
    });
    let breaker = "breaker: { error_rate: 50, min_requests: 5, open_for: 1h }";
    let upstream = demo(&[origin.address], breaker);
    let gateway =
        Gateway::start(&tenants(&upstream, "", &open("cache: { stale_if_error: 1h }, retries: { attempts: 0 }")));
    assert_eq!(gateway.fetch("/v1/a", "").text(), "200");
    status.store(503, Ordering::SeqCst);
    assert!(comes_true(|| gateway.fetch("/v1/b", "").header("retry-after").is_some()), "the breaker opens");
    let asked = origin.asked();
    let answer = gateway.fetch("/v1/a", "");
    assert_eq!((answer.status, answer.text().as_str()), (200, "200"), "{answer:?}");
    assert_eq!(origin.asked(), asked);
}

#[test]
fn how_long_it_may_be_served_is_for_the_origin_to_say() {
    let served = |fields: &str, settings: &str, request: &str| {
        let origin = failing(fields, "503 Service Unavailable");
        let gateway = caching(&origin, settings);
        gateway.fetch("/v1/a", "");
        gateway.fetch("/v1/a", request).text() == "old"
    };
    assert!(!served("Cache-Control: max-age=60, stale-if-error=10", "", ""));
    assert!(!served("Cache-Control: max-age=60\nETag: \"1\"", "", ""));
    assert!(served("Cache-Control: max-age=60", "stale_if_error: 1h", ""));
    assert!(!served("Cache-Control: max-age=60, stale-if-error=0\nETag: \"1\"", "stale_if_error: 1h", ""));
    // The client may say so too.
    assert!(served("Cache-Control: max-age=60\nETag: \"1\"", "", "Cache-Control: stale-if-error=3600\r\n"));
    for strict in ["must-revalidate", "proxy-revalidate", "no-cache"] {
        let fields = format!("Cache-Control: max-age=60, stale-if-error=3600, {strict}\nETag: \"1\"");
        assert!(!served(&fields, "stale_if_error: 1h", "Cache-Control: stale-if-error=3600\r\n"), "{strict}");
    }
    // `s-maxage` forbids it, unless the origin allows it all the same.
    assert!(!served("Cache-Control: s-maxage=60\nETag: \"1\"", "stale_if_error: 1h", ""));
    assert!(served("Cache-Control: s-maxage=60, stale-if-error=3600", "", ""));
}

#[test]
fn stale_while_revalidate_is_served_at_once_and_validated_behind_it() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=60, stale-while-revalidate=3600\nAge: 100\nETag: \"1\"\n\nold",
        "200 OK\nCache-Control: max-age=3600\nETag: \"2\"\n\nnew",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "X-A: 1\r\nUser-Agent: me\r\n");
    let stale = gateway.fetch("/v1/a", "X-A: 1\r\nUser-Agent: me\r\n");
    assert_eq!(stale.text(), "old");
    assert!(stale.cache_status().starts_with("seiketsu; hit; ttl=-4"), "{stale:?}");
    assert!(comes_true(|| gateway.fetch("/v1/a", "").text() == "new"));
    assert_eq!(origin.asked(), 2);
    let seen = origin.last();
    assert_eq!((seen.header("if-none-match"), seen.header("user-agent")), (Some("\"1\""), Some("me")));
    assert_eq!((seen.header("x-forwarded-for"), seen.header("x-forwarded-proto")), (Some("127.0.0.1"), Some("http")));
    assert_eq!((seen.header("host"), seen.header("x-forwarded-host")), (Some("acme.test"), Some("acme.test")));
    // It is nobody's request.
    assert!(comes_true(|| gateway.access_log().matches("\"cache\":\"hit\"").count() >= 1));
    assert_eq!(gateway.access_log().matches("\"upstream\"").count(), 1);
}

#[tokio::test]
async fn stale_while_revalidate_works_over_http2_as_well() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=60, stale-while-revalidate=3600\nAge: 100\nETag: \"1\"\n\nold",
        "304 Not Modified\nCache-Control: max-age=3600\nETag: \"1\"\nX-A: new",
    ]);
    let gateway = caching(&origin, "");
    let client = Http2::plain(&gateway).await;
    for _ in 0..2 {
        assert_eq!(client.get("acme.test", "/v1/a").await.plain().text(), "old");
    }
    assert!(comes_true(|| gateway.fetch("/v1/a", "").header("x-a").is_some()));
    assert_eq!(origin.asked(), 2);
}

#[test]
fn stale_while_revalidate_ends_and_can_be_forbidden() {
    for (fields, settings) in [
        ("max-age=60, stale-while-revalidate=10", ""),
        ("max-age=60, stale-while-revalidate=3600, must-revalidate", ""),
        ("max-age=60, must-revalidate", "stale_while_revalidate: 1h"),
        ("s-maxage=60", "stale_while_revalidate: 1h"),
        ("max-age=60", ""),
    ] {
        let first = format!("200 OK\nCache-Control: {fields}\nAge: 100\nETag: \"1\"\n\nold");
        let origin = in_turn(&[&first, "200 OK\nCache-Control: max-age=3600\n\nnew"]);
        let gateway = caching(&origin, settings);
        assert_eq!(gateway.bodies("/v1/a", "", 2), ["old", "new"], "{fields}");
    }
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=60\nAge: 100\nETag: \"1\"\n\nold",
        "200 OK\nCache-Control: max-age=3600\n\nnew",
    ]);
    let gateway = caching(&origin, "stale_while_revalidate: 1h");
    assert_eq!(gateway.bodies("/v1/a", "", 2), ["old", "old"]);
    assert!(comes_true(|| gateway.fetch("/v1/a", "").text() == "new"));
}

#[test]
fn a_validation_that_fails_is_tried_again_later() {
    let origin = in_turn(&[
        "200 OK\nCache-Control: max-age=60, stale-while-revalidate=3600\nAge: 100\nETag: \"1\"\n\nold",
        "503 Service Unavailable\n\nerror",
        "503 Service Unavailable\n\nerror",
        "200 OK\nCache-Control: max-age=3600\n\nnew",
    ]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    assert!(comes_true(|| {
        let body = gateway.fetch("/v1/a", "").text();
        assert!(body == "old" || body == "new");
        body == "new"
    }));
}

/// What is fresh for a second is stale then.
const BRIEFLY_FRESH: Duration = Duration::from_millis(2100);

/// The bodies that so many clients get who ask at the same time. `are_there` is called once all of them have.
fn at_once(gateway: &Gateway, many: usize, are_there: impl Fn()) -> Vec<String> {
    let mut clients: Vec<_> = (0..many).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    }
    are_there();
    clients.iter_mut().map(|client| client.receive().unwrap().text()).collect()
}

/// An origin whose first answer is fresh for a second, and which then fails, once it is told to.
fn failing_on_command(asked: &Arc<AtomicUsize>, go: &Arc<AtomicBool>) -> Stub {
    let (asked, go) = (asked.clone(), go.clone());
    Stub::start(move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return wire("200 OK\nCache-Control: max-age=1\nETag: \"1\"\n\nold");
        }
        assert!(comes_true(|| go.load(Ordering::SeqCst)));
        wire("503 Service Unavailable\n\nerror")
    })
}

#[test]
fn stale_if_error_is_served_to_all_who_ask_at_once() {
    const MANY: usize = 60;
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let origin = failing_on_command(&asked, &go);
    let gateway = caching(&origin, "stale_if_error: 1h");
    gateway.fetch("/v1/a", "");
    let_pass(BRIEFLY_FRESH);
    let bodies = at_once(&gateway, MANY, || {
        let in_flight = || gateway.metric("seiketsu_requests_in_flight{tenant=\"acme\"}") as usize;
        assert!(comes_true(|| in_flight() == MANY));
        go.store(true, Ordering::SeqCst);
    });
    assert!(bodies.iter().all(|body| body == "old"), "{bodies:?}");
    // The others have heard what became of it.
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn stale_if_error_is_served_to_all_who_ask_at_once_when_nobody_is_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = caching_from(listener.local_addr().unwrap(), "stale_if_error: 1h");
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        crate::fixtures::read_request(0, &mut std::io::BufReader::new(&stream)).unwrap();
        let answer = wire("200 OK\nConnection: close\nCache-Control: max-age=1\n\nold");
        std::io::Write::write_all(&mut stream, &answer).unwrap();
    });
    assert_eq!(gateway.fetch("/v1/a", "").text(), "old");
    serve.join().unwrap();
    let_pass(BRIEFLY_FRESH);
    let bodies = at_once(&gateway, 300, || ());
    assert!(bodies.iter().all(|body| body == "old"), "{bodies:?}");
}

#[test]
fn stale_if_error_is_served_to_those_who_have_waited_in_vain() {
    const MANY: usize = 5;
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let origin = failing_on_command(&asked, &go);
    let gateway = caching(&origin, "stale_if_error: 1h, collapse: 50ms");
    gateway.fetch("/v1/a", "");
    let_pass(BRIEFLY_FRESH);
    let bodies = at_once(&gateway, MANY, || {
        assert!(comes_true(|| asked.load(Ordering::SeqCst) == 1 + MANY), "each asks for itself");
        go.store(true, Ordering::SeqCst);
    });
    assert!(bodies.iter().all(|body| body == "old"), "{bodies:?}");
    let answer = gateway.fetch("/v1/a", "");
    assert!(answer.cache_status().starts_with("seiketsu; fwd=stale; fwd-status=503; ttl=-"), "{answer:?}");
}

#[test]
fn what_was_purged_while_the_origin_failed_is_not_served() {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let origin = failing_on_command(&asked, &go);
    let gateway = caching(&origin, "stale_if_error: 1h");
    gateway.fetch("/v1/a", "");
    let_pass(BRIEFLY_FRESH);
    let bodies = at_once(&gateway, 1, || {
        assert!(comes_true(|| asked.load(Ordering::SeqCst) == 2));
        gateway.purge(&json!({ "tenant": "acme", "url": "http://acme.test/v1/a" }));
        go.store(true, Ordering::SeqCst);
    });
    assert_eq!(bodies, ["error"]);
}

#[test]
fn what_an_operator_allows_in_an_outage_counts_for_what_is_stored_already() {
    let origin = failing("Cache-Control: max-age=60\nETag: \"1\"", "503 Service Unavailable");
    let yaml = |settings: &str, more: &str| {
        tenants(
            &demo(&[origin.address], ""),
            "",
            &open(&format!("cache: {{ {settings} }}, retries: {{ attempts: 0 }}{more}")),
        )
    };
    let gateway = Gateway::start(&yaml("", ""));
    gateway.fetch("/v1/a", "");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "error");
    reload(&gateway, &yaml("stale_if_error: 1h", ", timeouts: { connect: 1s }"));
    assert!(comes_true(|| gateway.fetch("/v1/a", "").text() == "old"));
}

#[test]
fn an_origin_that_hangs_keeps_a_part_of_the_validations_and_leaves_the_rest_to_others() {
    const MANY: usize = 100;
    // Of 64 on each worker.
    const SHARE: usize = 16;
    let stale = || wire("200 OK\nCache-Control: max-age=60, stale-while-revalidate=3600\nAge: 100\n\nold");
    let hangs = Arc::new(AtomicBool::new(false));
    let waits = hangs.clone();
    let hanging = Stub::start(move |_| {
        assert!(comes_true(|| !waits.load(Ordering::SeqCst)));
        stale()
    });
    let other = Stub::start(move |_| stale());
    let upstreams = demo(&[hanging.address], "") + &upstream("other", &[other.address], "");
    let policies = "cache: {}, retries: { attempts: 0 }";
    let other_tenant = format!(
        "- id: other\n  hosts: [other.test]\n  routes:\n  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: other, policies: {{ {policies} }} }}\n"
    );
    let text = tenants(&upstreams, "", &open(policies)) + &other_tenant;
    let gateway = Gateway::start_with(&text, "threads: 1\n");
    let requests = |result: &str| {
        gateway.metric(&format!("seiketsu_cache_background_requests_total{{result=\"{result}\"}}")) as usize
    };
    let targets: Vec<String> = (0..MANY).map(|number| format!("/v1/{number}")).collect();
    for target in &targets {
        gateway.fetch(target, "");
    }
    gateway.get("other.test", "/v1/a", "");
    hangs.store(true, Ordering::SeqCst);
    for target in &targets {
        assert!(gateway.fetch(target, "").is_hit());
    }
    assert_eq!(requests("refused"), MANY - SHARE);
    assert!(comes_true(|| hanging.asked() == MANY + SHARE));
    assert!(gateway.get("other.test", "/v1/a", "").is_hit());
    assert!(comes_true(|| other.asked() == 2 && requests("answered") == 1));
    assert_eq!(hanging.asked(), MANY + SHARE);
    // Once it answers again, what is left is validated.
    hangs.store(false, Ordering::SeqCst);
    assert!(comes_true(|| requests("answered") == SHARE + 1));
    assert!(gateway.fetch(&targets[MANY - 1], "").is_hit());
    assert!(comes_true(|| hanging.asked() == MANY + SHARE + 1));
}

#[test]
fn an_outage_fills_the_log_with_neither_queries_nor_a_warning_for_each_request() {
    const MANY: usize = 20;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = caching_from(listener.local_addr().unwrap(), "");
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        crate::fixtures::read_request(0, &mut std::io::BufReader::new(&stream)).unwrap();
        let answer = wire("200 OK\nConnection: close\nCache-Control: max-age=60, stale-if-error=3600\nAge: 100\n\nold");
        std::io::Write::write_all(&mut stream, &answer).unwrap();
    });
    let stale = || gateway.fetch("/v1/a?token=SECRET123", "").text() == "old";
    let log_level = |filter: &str| {
        let length = filter.len();
        let change = format!("PUT /log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{filter}");
        assert_eq!(Client::connect(gateway.operations).request(&change).status, 200);
    };
    assert!(stale());
    serve.join().unwrap();
    // Whoever wants to see each of them sees it, without the query.
    log_level("info,pingora_proxy=warn");
    assert!(stale());
    assert!(gateway.logs("serving stale, GET /v1/a, Host: acme.test"));
    log_level("info");
    let warnings = || gateway.log().matches(" WARN ").count();
    let before = warnings();
    assert!((0..MANY).all(|_| stale()));
    // Lines come in order: what was said of the requests stands before this one.
    gateway.purge(&json!({ "tenant": "acme", "tag": "the-end" }));
    assert!(gateway.logs("the-end"));
    assert!(warnings() < before + MANY / 2, "{}", gateway.log());
    assert!(!gateway.log().contains("SECRET123"), "{}", gateway.log());
}

#[test]
fn a_configuration_that_is_refused_takes_nothing_from_what_is_stored() {
    let origin = failing("Cache-Control: max-age=3600", "503 Service Unavailable");
    let yaml = |memory: &str, more: &str| {
        let policies = format!("policies: {{ cache: {{ memory: {memory}, max_object: 1MiB }} }}");
        tenants(
            &demo(&[origin.address], ""),
            &policies,
            &open(&format!("cache: {{}}, retries: {{ attempts: 0 }}{more}")),
        )
    };
    let gateway = Gateway::start(&yaml("8MiB", ""));
    gateway.fetch("/v1/a", "");
    assert!(gateway.fetch("/v1/a", "").is_hit());
    let budget = || gateway.operations("/cache").json()["largest"][0]["budget_bytes"].as_u64();
    // Refused when the tenant has been compiled but for this.
    let wrong = yaml("4MiB", ", transform: { response_body: '][ wrong' }");
    gateway.write_tenants(&wrong.replace("revision: 1", "revision: 2"));
    gateway.process.signal("-HUP");
    assert!(comes_true(|| gateway.log().contains("jq program is wrong")), "{}", gateway.log());
    assert!(gateway.fetch("/v1/a", "").is_hit());
    assert_eq!(budget(), Some(8 << 20));
    // What is in force in the end counts, and takes nothing either.
    gateway.write_tenants(&yaml("4MiB", "").replace("revision: 1", "revision: 3"));
    gateway.process.signal("-HUP");
    assert!(comes_true(|| budget() == Some(4 << 20)), "{}", gateway.log());
    assert!(gateway.fetch("/v1/a", "").is_hit());
    assert!(gateway.metric("seiketsu_cache_stored_bytes{tenant=\"acme\"}") > 0.0);
}
