//! The response cache, as clients and origins see it. `docs/cache-conformance.md` names the test of each rule.
//!
//! | file | promises |
//! |---|---|
//! | `collapsing.rs` | one request for one thing at a time |
//! | `fast_path.rs` | hits that need no session are answered as all others |
//! | `freshness.rs` | how long a response is fresh |
//! | `invalidation.rs` | what unsafe requests make invalid |
//! | `isolation.rs` | never a foreign byte |
//! | `purging.rs` | purges and warming, by operators |
//! | `ranges.rs` | parts of what is stored |
//! | `requests.rs` | what clients may ask of the cache |
//! | `serving.rs` | what is stored is served, with the headers that belong to it |
//! | `stale.rs` | what may be served although it is stale |
//! | `storing.rs` | what is stored, and what is not |
//! | `validation.rs` | conditions, and answers to them |
//! | `variants.rs` | `Vary` |

mod collapsing;
mod fast_path;
mod freshness;
mod invalidation;
mod isolation;
mod purging;
mod ranges;
mod requests;
mod serving;
mod stale;
mod storing;
mod validation;
mod variants;

use std::{
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    fixtures::{Seen, Stub, comes_true, demo, open, read_request, tenants},
    support::{Gateway, Response},
};

/// An origin that answers with these fields and the number of the answer as its body.
fn counting(fields: &str) -> Stub {
    let (fields, count) = (fields.to_owned(), AtomicUsize::new(0));
    Stub::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst).to_string();
        format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{number}", number.len()).into_bytes()
    })
}

/// An origin that gives these answers, one after the other, and the last of them again and again. Each is a status
/// line without the version, fields, an empty line and a body, with `\n` at the end of lines.
fn in_turn(answers: &[&str]) -> Stub {
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| wire(answer)).collect();
    let next = AtomicUsize::new(0);
    Stub::start(move |_| {
        let turn = next.fetch_add(1, Ordering::SeqCst);
        answers[turn.min(answers.len() - 1)].clone()
    })
}

/// A response in short, as bytes.
fn wire(answer: &str) -> Vec<u8> {
    let (head, body) = answer.split_once("\n\n").unwrap_or((answer, ""));
    let (status, fields) = head.split_once('\n').unwrap_or((head, ""));
    let fields: String = fields.lines().map(|line| format!("{}\r\n", line.trim())).collect();
    let length = if status.starts_with("304") || status.starts_with("204") || fields.contains("Content-Length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status}\r\n{fields}{length}\r\n{body}").into_bytes()
}

/// A gateway that caches what comes from this origin, with these settings.
fn caching(origin: &Stub, settings: &str) -> Gateway {
    caching_from(origin.address, settings)
}

fn caching_from(origin: SocketAddr, settings: &str) -> Gateway {
    let policies = format!("cache: {{ {settings} }}, retries: {{ attempts: 0 }}");
    Gateway::start(&tenants(&demo(&[origin], ""), "", &open(&policies)))
}

/// Puts this configuration in the place of the first one.
fn reload(gateway: &Gateway, tenants: &str) {
    gateway.write_tenants(&tenants.replace("revision: 1", "revision: 2"));
    gateway.process.signal("-HUP");
    assert!(comes_true(|| gateway.metric("seiketsu_config_revision") > 1.5), "{}", gateway.log());
}

/// An origin that closes the connection after these bytes.
struct BreakingOff {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl BreakingOff {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn breaking_off(answer: &str) -> BreakingOff {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = BreakingOff { address: listener.local_addr().unwrap(), asked: Arc::default() };
    let (asked, answer) = (origin.asked.clone(), answer.as_bytes().to_vec());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = read_request(0, &mut BufReader::new(&stream));
            if head.is_some() {
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(&answer);
            }
        }
    });
    origin
}

impl Gateway {
    fn fetch(&self, target: &str, fields: &str) -> Response {
        self.get("acme.test", target, fields)
    }

    /// The bodies of so many answers to the same request.
    fn bodies(&self, target: &str, fields: &str, many: usize) -> Vec<String> {
        (0..many).map(|_| self.fetch(target, fields).text()).collect()
    }
}

impl Response {
    /// What the cache says that it did.
    fn cache_status(&self) -> &str {
        self.all("cache-status").last().copied().unwrap_or_default()
    }

    fn is_hit(&self) -> bool {
        self.cache_status().starts_with("seiketsu; hit")
    }

    fn age(&self) -> Option<u64> {
        self.header("age").map(|age| age.parse().unwrap())
    }
}

impl Stub {
    fn asked(&self) -> usize {
        self.seen().len()
    }

    fn last(&self) -> Seen {
        self.seen().last().unwrap().clone()
    }
}

/// Now, moved by so many seconds, as HTTP writes it.
fn at(seconds: i64) -> String {
    let now = std::time::SystemTime::now();
    let distance = std::time::Duration::from_secs(seconds.unsigned_abs());
    httpdate::fmt_http_date(if seconds < 0 { now - distance } else { now + distance })
}

#[test]
fn every_row_of_the_conformance_table_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("../docs/cache-conformance.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |"));
    let mut count = 0;
    for row in rows {
        let named: Vec<&str> = row.split('`').filter(|word| word.contains("::")).collect();
        assert!(!named.is_empty(), "no test is named in {row}");
        for name in named {
            let (file, test) = name.split_once("::").unwrap();
            let path = root.join(format!("tests/integration/cache/{file}.rs"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{name}: there is no such file"));
            assert!(has_test(&text, test), "{name} does not exist, or is no test");
        }
        count += 1;
    }
    assert!(count > 60, "only {count} rows were found");
}

/// Whether a file has this test: a function that nothing runs proves nothing.
fn has_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}()");
    let mut runs = false;
    for line in text.lines() {
        if line.contains(&head) {
            return runs;
        }
        // It may have other attributes as well.
        runs = line.starts_with("#[test]") || line.starts_with("#[tokio::test") || runs && line.starts_with("#[");
    }
    false
}

#[test]
fn a_function_that_nothing_runs_is_no_test() {
    assert!(has_test("#[test]\nfn a() {", "a"));
    assert!(has_test("#[tokio::test]\n#[allow(x)]\nasync fn a() {", "a"));
    assert!(!has_test("#[test]\nfn b() {}\n\nfn a() {", "a"));
    assert!(!has_test("#[test]\nfn b() {", "a"));
}
