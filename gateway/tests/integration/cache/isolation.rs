//! Never a foreign byte: not another tenant's, not another caller's.

use std::{
    collections::HashMap,
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::wire;
use crate::{
    fixtures::{Seen, Stub, comes_true, demo, ok, read_request},
    support::{Client, Gateway, Response},
};

/// What callers may be, and how they show it.
const CALLERS: [&str; 4] =
    ["", "Authorization: Basic YTph\r\n", "Authorization: Basic Yjpi\r\n", "Cookie: session=c\r\n"];
const TENANTS: [&str; 3] = ["a.test", "b.test", "c.test"];
const REQUESTS: usize = 120_000;
const THREADS: usize = 4;

/// Answers with everything that the answer may be chosen by, and as the path says. Its first segment after the
/// version is how it may be cached.
fn reveal(seen: &Seen) -> Vec<u8> {
    let caller = format!("{}{}", seen.header("authorization").unwrap_or("-"), seen.header("cookie").unwrap_or("-"));
    let kind = seen.target().split('/').nth(2).unwrap();
    let variant = seen.header("x-variant").unwrap_or("-");
    let body = format!("{}|{}|{caller}|{variant}", seen.header("host").unwrap(), seen.target());
    let cache_control = match kind {
        "fresh" => "max-age=3600",
        "private" => "private, max-age=3600",
        "unsaid" => "x=y",
        "brief" => "max-age=0, stale-while-revalidate=1",
        _ => "no-store",
    };
    wire(&format!("200 OK\nCache-Control: {cache_control}\nVary: X-Variant\nETag: \"{}\"\n\n{body}", body.len()))
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        // SplitMix64: the same run each time.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }
}

fn gateway(origin: &Stub) -> Gateway {
    let mut text = format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous], forward_credential: true }}, cache: {{ memory: 8MiB, ttl: 1h }} }}\nupstreams:\n  {}tenants:\n",
        demo(&[origin.address], "")
    );
    for host in TENANTS {
        let id = &host[..1];
        text.push_str(&format!(
            "- id: {id}\n  hosts: [{host}]\n  routes:\n  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n"
        ));
    }
    Gateway::start(&text)
}

/// One request, and everything that its answer must show.
fn ask(client: &mut Client, random: &mut Random) -> (Response, String) {
    let host = TENANTS[random.next(TENANTS.len())];
    let caller = CALLERS[random.next(CALLERS.len())];
    let kind = ["fresh", "fresh", "unsaid", "private", "brief", "no-store"][random.next(6)];
    let target = format!("/v1/{kind}/{}{}", random.next(40), ["", "?", "?q", "?q=1&r=2"][random.next(4)]);
    let variant = ["", "X-Variant: 1\r\n", "X-Variant: 2\r\n"][random.next(3)];
    let wish = ["", "", "", "Cache-Control: no-cache\r\n", "Cache-Control: max-stale\r\n"][random.next(5)];
    let answer = client.request(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{caller}{variant}{wish}\r\n"));
    let field = |name: &str| {
        let lines = caller.lines().chain(variant.lines());
        lines.filter_map(|line| line.split_once(": ")).find(|(have, _)| *have == name).map_or("-", |(_, value)| value)
    };
    let expected = format!("{host}|{target}|{}{}|{}", field("Authorization"), field("Cookie"), field("X-Variant"));
    (answer, expected)
}

#[test]
fn a_hundred_thousand_requests_of_three_tenants_and_four_callers_get_what_is_theirs() {
    let origin = Stub::start(reveal);
    let gateway = Arc::new(gateway(&origin));
    let hits = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (gateway, hits) = (gateway.clone(), hits.clone());
            std::thread::spawn(move || {
                let mut random = Random(thread as u64);
                let mut client = gateway.connect();
                for count in 0..REQUESTS / THREADS {
                    if count % 5000 == 4999 {
                        client = gateway.connect();
                    }
                    let (answer, expected) = ask(&mut client, &mut random);
                    assert_eq!((answer.status, answer.text()), (200, expected), "{}", answer.head);
                    hits.fetch_add(usize::from(answer.is_hit()), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // Not because nothing was cached.
    let hits = hits.load(Ordering::Relaxed);
    assert!(hits > REQUESTS / 20, "{hits} hits");
}

#[test]
fn identified_callers_of_one_tenant_share_only_what_the_origin_lets_them() {
    let keys = "  consumers:\n  - { id: one, keys: [{ prefix: keyone01, key: '${file:one}' }] }\n  - { id: two, keys: [{ prefix: keytwo01, key: '${file:two}' }] }\n";
    let count = AtomicUsize::new(0);
    let origin = Stub::start(move |seen| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let cache_control = if seen.target().contains("shared") { "s-maxage=3600" } else { "max-age=3600" };
        wire(&format!("200 OK\nCache-Control: {cache_control}\n\n{number}"))
    });
    let folder = tempfile::tempdir().unwrap();
    let key = |name: &str| format!("sk_{name}_0123456789abcdefghijklmnopqrstuv");
    for (file, name) in [("one", "keyone01"), ("two", "keytwo01")] {
        std::fs::write(folder.path().join(file), key(name)).unwrap();
    }
    let text = format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [api_key] }}, cache: {{}} }}\nupstreams:\n  {}tenants:\n- id: acme\n  hosts: [acme.test]\n{keys}  routes:\n  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n",
        demo(&[origin.address], "")
    );
    std::fs::write(folder.path().join("tenants.yaml"), text).unwrap();
    let gateway = Gateway::start_in(folder, "tenants.yaml", "", "");
    let fetch = |target: &str, name: &str| gateway.fetch(target, &format!("X-API-Key: {}\r\n", key(name)));
    let mut bodies = HashMap::new();
    for name in ["keyone01", "keytwo01"] {
        for target in ["/v1/own", "/v1/shared"] {
            bodies.insert((target, name), fetch(target, name).text());
        }
    }
    assert_ne!(bodies[&("/v1/own", "keyone01")], bodies[&("/v1/own", "keytwo01")]);
    assert_eq!(bodies[&("/v1/shared", "keyone01")], bodies[&("/v1/shared", "keytwo01")]);
    // Who may not call gets nothing of what is stored.
    let refused = gateway.fetch("/v1/shared", "");
    assert_eq!((refused.status, refused.header("cache-status")), (401, None));
}

#[test]
fn what_trusted_proxies_say_to_the_origin_tells_responses_apart() {
    let origin = Stub::start(|seen| {
        let host = seen.header("x-forwarded-host").unwrap_or("-");
        let proto = seen.header("x-forwarded-proto").unwrap_or("-");
        wire(&format!("200 OK\nCache-Control: max-age=3600\n\n{proto} {host}"))
    });
    let tenants = crate::fixtures::tenants(&demo(&[origin.address], ""), "", &crate::fixtures::open("cache: {}"));
    let gateway = Gateway::start_with(&tenants, "forwarding: { trusted_proxies: [127.0.0.0/8] }\n");
    for _ in 0..2 {
        for (fields, expected) in [
            ("", "http acme.test"),
            ("X-Forwarded-Proto: https\r\n", "https acme.test"),
            ("X-Forwarded-Host: evil.test\r\n", "http evil.test"),
        ] {
            assert_eq!(gateway.fetch("/v1/a", fields).text(), expected);
        }
    }
    assert_eq!(origin.seen().len(), 3);
    // Of others it is neither believed nor passed on.
    let gateway = Gateway::start(&tenants);
    assert_eq!(gateway.fetch("/v1/a", "X-Forwarded-Host: evil.test\r\n").text(), "http acme.test");
}

#[test]
fn whatever_trusted_proxies_say_of_user_and_target_tells_responses_apart() {
    let origin = Stub::start(|seen| {
        let told = ["x-forwarded-user", "forwarded"].map(|name| seen.header(name).unwrap_or("-").to_owned());
        wire(&format!("200 OK\nCache-Control: max-age=3600\n\n{}", told.join(" ")))
    });
    let tenants = crate::fixtures::tenants(&demo(&[origin.address], ""), "", &crate::fixtures::open("cache: {}"));
    let gateway = Gateway::start_with(&tenants, "forwarding: { trusted_proxies: [127.0.0.0/8] }\n");
    let asked = [
        ("", "- -"),
        ("X-Forwarded-User: alice\r\n", "alice -"),
        ("X-Forwarded-User: bob\r\n", "bob -"),
        ("Forwarded: host=a\r\n", "- host=a"),
        ("Forwarded: host=b\r\n", "- host=b"),
        ("Forwarded: for=192.0.2.1;host=a;proto=https\r\n", "- for=192.0.2.1;host=a;proto=https"),
        ("Forwarded: for=\"a;host=a\"\r\n", "- for=\"a;host=a\""),
    ];
    for round in 0..2 {
        for (fields, expected) in asked {
            let answer = gateway.fetch("/v1/a", fields);
            assert_eq!((answer.text().as_str(), answer.is_hit()), (expected, round == 1), "{fields}");
        }
    }
    // Who the client is does not choose a response by itself.
    assert!(gateway.fetch("/v1/a", "Forwarded: for=192.0.2.2;host=a;proto=https\r\n").is_hit());
}

#[test]
fn a_tenant_that_floods_leaves_the_hit_ratio_of_another_as_it_was() {
    const QUIET: usize = 100;
    let origin = Stub::start(|_| wire(&format!("200 OK\nCache-Control: max-age=3600\n\n{}", "x".repeat(8 << 10))));
    let tenants = |host: &str| {
        let id = &host[..1];
        format!(
            "- id: {id}\n  hosts: [{host}]\n  routes:\n  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n"
        )
    };
    let text = format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }}, cache: {{ memory: 64MiB, max_object: 64KiB }} }}\nupstreams:\n  {}tenants:\n{}{}",
        demo(&[origin.address], ""),
        tenants("a.test"),
        tenants("b.test")
    );
    // Room for some four hundred responses; the flood has ten times as many.
    let gateway = Gateway::start_with(&text, "cache: { memory: 4MiB }\n");
    let mut client = gateway.connect();
    let mut ask = |host: &str, number: usize| {
        let answer = client.request(&format!("GET /v1/{number} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.body.len(), 8 << 10);
        answer.is_hit()
    };
    for number in 0..QUIET {
        ask("a.test", number);
    }
    let mut hits = 0;
    for flood in 0..4000 {
        ask("b.test", flood);
        hits += usize::from(ask("a.test", flood % QUIET));
    }
    assert!(hits * 100 >= 4000 * 99, "{hits} of 4000");
    let stored = gateway.metric("seiketsu_cache_stored_bytes{tenant=\"a\"}")
        + gateway.metric("seiketsu_cache_stored_bytes{tenant=\"b\"}");
    let budget = gateway.metric("seiketsu_cache_budget_bytes");
    assert!(stored <= budget && stored > budget * 0.8, "{stored} of {budget}");
    assert!(gateway.metric("seiketsu_cache_evictions_total{tenant=\"b\"}") > 3000.0);
    assert!(gateway.metric("seiketsu_cache_evictions_total{tenant=\"a\"}") < 1.0);
}

/// The most memory that the process ever had resident, in bytes.
fn peak_memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn the_process_takes_no_more_memory_than_the_cache_may_have() {
    const BUDGET: u64 = 16 << 20;
    // Small bodies under many fields: what they take beside their texts is most of it.
    let origin = Stub::start(|seen| {
        let many: String = (0..10).map(|number| format!("X-Field-{number}: {}\n", seen.target())).collect();
        wire(&format!("200 OK\nCache-Control: max-age=3600\nETag: \"1\"\n{many}\n{}", "x".repeat(300)))
    });
    let text = crate::fixtures::tenants(&demo(&[origin.address], ""), "", &crate::fixtures::open("cache: {}"));
    let gateway = Gateway::start_with(&text, "cache: { memory: 16MiB }\n");
    let ask = |client: &mut Client, number: usize| {
        let answer = client.request(&format!("GET /v1/{number} HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
        assert_eq!(answer.body.len(), 300);
    };
    ask(&mut gateway.connect(), 0);
    let before = peak_memory(&gateway);
    let evictions = || gateway.metric("seiketsu_cache_evictions_total{tenant=\"acme\"}");
    let mut asked = 0;
    // Until what was stored is ten times what there is room for.
    while evictions() < 9.0 * gateway.operations("/cache").json()["largest"][0]["keys"].as_f64().unwrap() {
        let mut client = gateway.connect();
        for _ in 0..1000 {
            asked += 1;
            ask(&mut client, asked);
        }
    }
    let (grown, stored) =
        (peak_memory(&gateway) - before, gateway.metric("seiketsu_cache_stored_bytes{tenant=\"acme\"}"));
    // About as much as the cache may have in all, since two of its eighths lie idle here. The half on top is for what
    // the allocator holds back, and for connections.
    assert!(grown < BUDGET * 3 / 2, "{grown} for {BUDGET}, {stored} stored by {asked}");
}

#[test]
fn what_slow_clients_have_of_what_was_replaced_has_a_bound() {
    const LENGTH: usize = 4 << 20;
    const ROUNDS: usize = 40;
    let count = AtomicUsize::new(0);
    let origin = Stub::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        ok(&format!("Cache-Control: max-age=3600\r\nX-Number: {number}\r\n"), &vec![b'x'; LENGTH])
    });
    let text = crate::fixtures::tenants(&demo(&[origin.address], ""), "", &crate::fixtures::open("cache: {}"));
    let gateway = Gateway::start_with(&text, "cache: { memory: 64MiB }\n");
    let replace = || gateway.get("acme.test", "/v1/a", "Cache-Control: no-cache\r\n");
    replace();
    let before = peak_memory(&gateway);
    let slow: Vec<Client> = std::iter::repeat_with(|| {
        assert_eq!(replace().body.len(), LENGTH);
        let mut client = gateway.connect();
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        assert_eq!(client.receive_head().status, 200);
        client
    })
    .take(ROUNDS)
    .collect();
    let grown = peak_memory(&gateway) - before;
    // What the cache may have, and half as much for the allocator and for connections. All of them together are more.
    assert!(grown < 96 << 20, "{grown}");
    for mut client in slow {
        let mut body = vec![0; LENGTH];
        client.stream.read_exact(&mut body).unwrap();
        assert!(body.iter().all(|byte| *byte == b'x'));
    }
    // Once they have got it, what is new is stored again.
    assert!(comes_true(|| {
        let (new, again) = (replace(), gateway.get("acme.test", "/v1/a", ""));
        again.is_hit() && again.header("x-number") == new.header("x-number")
    }));
}

/// An origin of long bodies. Of those that are asked for as `slow` it sends the first byte, of those that are `late`
/// all but the last, and the rest once it is told to.
struct Trickling {
    address: SocketAddr,
    left: Arc<Mutex<Vec<(TcpStream, usize)>>>,
}

impl Trickling {
    const LENGTH: usize = 200 << 10;

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self { address: listener.local_addr().unwrap(), left: Arc::default() };
        let left = origin.left.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(seen) = read_request(0, &mut BufReader::new(&stream)) else { continue };
                let length = match seen.target().split('/').nth(2) {
                    Some("slow") => 1,
                    Some("late") => Self::LENGTH - 1,
                    _ => Self::LENGTH,
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    Self::LENGTH
                );
                stream.write_all((head + &"x".repeat(length)).as_bytes()).unwrap();
                left.lock().unwrap().push((stream, Self::LENGTH - length));
            }
        });
        origin
    }

    /// A gateway with two tenants, which has a mebibyte for all responses that are on their way.
    fn gateway(&self) -> Gateway {
        let tenants: String = ["a", "b"]
            .map(|id| {
                format!(
                    "- id: {id}\n  hosts: [{id}.test]\n  routes:\n  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}\n"
                )
            })
            .concat();
        let text = format!(
            "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }}, cache: {{}} }}\nupstreams:\n  {}tenants:\n{tenants}",
            demo(&[self.address], "")
        );
        Gateway::start_with(&text, "cache: { memory: 8MiB }\n")
    }

    /// Clients that have so many bytes of such a body, each of another one.
    fn begun(gateway: &Gateway, what: &str, many: usize, bytes: usize) -> Vec<Client> {
        let begin = |number| {
            let mut client = gateway.connect();
            client.send(format!("GET /v1/{what}/{number} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes());
            assert_eq!(client.receive_head().status, 200);
            client.stream.read_exact(&mut vec![0; bytes]).unwrap();
            client
        };
        (0..many).map(begin).collect()
    }

    fn finish(&self) {
        for (mut stream, left) in self.left.lock().unwrap().drain(..) {
            stream.write_all("x".repeat(left).as_bytes()).unwrap();
        }
    }
}

#[test]
fn an_origin_that_announces_much_and_sends_slowly_keeps_nothing_of_others_out() {
    let origin = Trickling::start();
    let gateway = origin.gateway();
    // Five of these announce as much as there is room for.
    let slow = Trickling::begun(&gateway, "slow", 10, 1);
    for host in ["b.test", "a.test"] {
        let answers = [(); 2].map(|()| gateway.get(host, "/v1/quick", ""));
        assert!(answers.iter().all(|answer| answer.body.len() == Trickling::LENGTH));
        assert!(answers[1].is_hit(), "{host} {}", answers[1].head);
    }
    drop(slow);
}

#[test]
fn what_finds_no_room_is_stored_at_another_time() {
    let origin = Trickling::start();
    let gateway = origin.gateway();
    // One tenant leaves as much as it takes: a third one finds no room any more.
    let late = Trickling::begun(&gateway, "late", 2, Trickling::LENGTH - 1);
    let ask = |host| gateway.get(host, "/v1/quick", "If-None-Match: \"1\"\r\n");
    for _ in 0..2 {
        let answer = ask("a.test");
        assert!(answer.body.len() == Trickling::LENGTH && !answer.is_hit(), "{}", answer.head);
    }
    ask("b.test");
    assert!(ask("b.test").is_hit());
    origin.finish();
    // It is not taken for what cannot be stored, for which conditions would go to the origin.
    assert!(comes_true(|| ask("a.test").is_hit()));
    drop(late);
}

#[test]
fn what_depends_on_a_field_that_the_gateway_writes_is_not_stored() {
    let origin = Stub::start(|seen| {
        let name = seen.target().rsplit('/').next().unwrap().to_owned();
        let value = seen.header(&name).unwrap_or("-").to_owned();
        wire(&format!("200 OK\nCache-Control: public, max-age=3600\nVary: {name}\n\n{value}"))
    });
    let policies =
        "auth: { accept: [api_key], forward_headers: true }, cache: {}, headers: { request: { rename: { x-a: x-b } } }";
    let keys = format!(
        "consumers:\n- {{ id: one, keys: [{{ prefix: keyone01, hash: '{}' }}] }}\n- {{ id: two, keys: [{{ prefix: keytwo01, hash: '{}' }}] }}\n",
        crate::fixtures::key_hash("sk_keyone01_0123456789abcdefghijklmnopqrstuv"),
        crate::fixtures::key_hash("sk_keytwo01_0123456789abcdefghijklmnopqrstuv")
    );
    let gateway = Gateway::start(&crate::fixtures::tenants(
        &demo(&[origin.address], ""),
        &keys,
        &crate::fixtures::open(policies),
    ));
    for name in ["x-gateway-consumer", "x-gateway-identity", "x-forwarded-for", "x-request-id", "x-b"] {
        let ask = |key: &str| {
            let key = format!("X-API-Key: sk_{key}_0123456789abcdefghijklmnopqrstuv\r\nX-A: {key}\r\n");
            gateway.fetch(&format!("/v1/{name}"), &key)
        };
        let (one, two) = (ask("keyone01"), ask("keytwo01"));
        assert!(!two.is_hit() && two.cache_status().ends_with("detail=vary"), "{name} {two:?}");
        if name == "x-gateway-consumer" || name == "x-b" {
            assert_ne!(one.text(), two.text(), "{name}");
        }
    }
}

#[test]
fn what_connection_names_does_not_choose_for_others() {
    let origin = Stub::start(|seen| {
        let language = seen.header("accept-language").unwrap_or("none").to_owned();
        wire(&format!("200 OK\nCache-Control: public, max-age=3600\nVary: Accept-Language\n\n{language}"))
    });
    let gateway = super::caching(&origin, "");
    let german = "Accept-Language: de\r\n";
    for options in ["accept-language", "keep-alive, Accept-Language", "close,\taccept-language"] {
        let answer = gateway.fetch("/v1/a", &format!("{german}Connection: {options}\r\n"));
        assert_eq!((answer.text().as_str(), answer.cache_status()), ("none", "seiketsu; fwd=bypass"), "{options}");
    }
    assert_eq!(gateway.bodies("/v1/a", german, 2), ["de", "de"]);
    assert!(gateway.fetch("/v1/a", &format!("{german}Connection: Keep-Alive, TE\r\nTE: trailers\r\n")).is_hit());
}
