//! Rate limits, quotas and concurrency, as clients and operators see them.
//!
//! | file | promises |
//! |---|---|
//! | `answers.rs` | what clients are told |
//! | `counting.rs` | what counts, for whom, against which limit |
//! | `concurrency.rs` | requests and WebSockets at the same time |
//! | `changes.rs` | limits that change, and wrong ones |
//! | `restarts.rs` | what a node by itself still knows after its end |
//! | `nodes.rs` | several nodes on one Redis |
//! | `outages.rs` | nodes without their Redis |
//! | `telling.rs` | metrics, access log, usage |

mod answers;
mod changes;
mod concurrency;
mod counting;
mod nodes;
mod outages;
mod restarts;
mod telling;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

pub use self::nodes::Redis;
use crate::{
    fixtures::{demo, now, open, tenants},
    support::{Client, Gateway, Response},
};

const REQUEST: &str = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

/// A bucket that gets no new token while a test lasts.
fn still(burst: u64) -> String {
    format!("rate: {{ requests: 1, per: 1h, burst: {burst} }}")
}

/// A calendar in whose time zone it is about noon, so that no day ends while a test lasts.
fn noon() -> String {
    let ahead = 12 - i64::try_from(now() / 3600 % 24).unwrap();
    // The names of these zones have the sign turned round.
    let zone = match ahead {
        0 => "Etc/GMT".to_owned(),
        1.. => format!("Etc/GMT-{ahead}"),
        _ => format!("Etc/GMT+{}", -ahead),
    };
    format!("calendar: {{ time_zone: {zone}, month_starts_on: 1 }}")
}

/// One tenant with these limits and an open route; `routes` are more.
fn limited(origin: SocketAddr, limits: &str, routes: &str) -> String {
    let limits = format!("policies: {{ limits: {{ {}, {limits} }} }}\n", noon());
    tenants(&demo(&[origin], ""), &limits, &(routes.to_owned() + &open("")))
}

fn request(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: acme.test\r\n{fields}\r\n")
}

/// The answers to so many requests, one after the other on one connection.
fn answers(gateway: &Gateway, target: &str, fields: &str, many: usize) -> Vec<Response> {
    let mut client = gateway.connect();
    (0..many).map(|_| client.request(&request(target, fields))).collect()
}

fn statuses(gateway: &Gateway, target: &str, fields: &str, many: usize) -> Vec<u16> {
    answers(gateway, target, fields, many).iter().map(|answer| answer.status).collect()
}

/// How many of so many requests pass; the others get 429.
fn passing(gateway: &Gateway, target: &str, fields: &str, many: usize) -> usize {
    let statuses = statuses(gateway, target, fields, many);
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

/// Asks until it is refused; how many requests pass.
fn drain(address: SocketAddr) -> usize {
    let mut client = Client::connect(address);
    for passed in 0.. {
        match client.request(REQUEST).status {
            200 => {}
            429 => return passed,
            status => panic!("{status}"),
        }
    }
    unreachable!()
}

/// What a client is told to remain of a limit.
fn remaining(answer: &Response, limit: &str) -> u64 {
    let told = answer.header("ratelimit").unwrap_or_else(|| panic!("no limits in {answer:?}"));
    let item = told.split(", ").find_map(|item| item.strip_prefix(&format!("\"{limit}\";r=")));
    let item = item.unwrap_or_else(|| panic!("{limit} is not in {told}"));
    item.split(';').next().unwrap().parse().unwrap()
}

/// The limits that refused a request.
fn violated(answer: &Response) -> Vec<String> {
    assert_eq!((answer.status, answer.problem().as_str()), (429, "quota-exceeded"), "{answer:?}");
    let violated = answer.json()["violated-policies"].clone();
    serde_json::from_value(violated).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// What was admitted of many requests, and in which time.
#[derive(Debug, Default)]
struct Flood {
    passed: usize,
    refused: usize,
    unavailable: usize,
    took: Duration,
    slowest: Duration,
}

/// Asks some hundred times a second for so long, on one connection: far more than is admitted, and not so much
/// that the machine has no time for anything else.
fn flood(address: SocketAddr, time: Duration) -> Flood {
    let mut client = Client::connect(address);
    let (mut flood, began) = (Flood::default(), Instant::now());
    while began.elapsed() < time {
        let asked = Instant::now();
        match client.request(REQUEST).status {
            200 => flood.passed += 1,
            429 => flood.refused += 1,
            503 => flood.unavailable += 1,
            status => panic!("{status}"),
        }
        flood.slowest = flood.slowest.max(asked.elapsed());
        std::thread::park_timeout(Duration::from_millis(3));
    }
    flood.took = began.elapsed();
    flood
}

fn start_again(gateway: &mut Gateway) {
    gateway.process = Gateway::spawn(gateway.folder.path(), &[]);
    (gateway.http, gateway.https, gateway.operations) =
        Gateway::wait_until_ready(gateway.folder.path(), gateway.process.0.id());
}
