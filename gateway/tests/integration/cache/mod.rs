//! The response cache, as clients and origins see it. `docs/cache-conformance.md` names the test of each rule.
//!
//! | file | promises |
//! |---|---|
//! | `serving.rs` | what is stored is served, with the headers that belong to it |

mod serving;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{
    fixtures::{Seen, Stub, demo, open, tenants},
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
    let policies = format!("cache: {{ {settings} }}");
    Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open(&policies)))
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
