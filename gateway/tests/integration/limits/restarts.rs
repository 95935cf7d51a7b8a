//! What a node that counts by itself still knows of quotas after its end.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use super::{REQUEST, drain, limited, passing, remaining, start_again};
use crate::{
    fixtures::comes_true,
    operations::{hand_over, wait_for_end},
    support::{Client, Gateway, Origin},
};

fn kill(gateway: &mut Gateway) {
    gateway.process.signal("-KILL");
    wait_for_end(&mut gateway.process);
    start_again(gateway);
}

fn end(gateway: &mut Gateway) {
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    start_again(gateway);
}

#[test]
fn a_node_that_is_killed_never_counts_anything_again() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 50, monthly: 5000 }", ""));
    let mut passed = 0;
    for _ in 0..4 {
        passed += passing(&gateway, "/v1/echo", "", 10);
        kill(&mut gateway);
    }
    assert_eq!(passed, 40);
    passed += drain(gateway.http);
    // What was given to be spent when the process died may be lost, and never comes twice.
    assert!((46..=50).contains(&passed), "{passed}");
    kill(&mut gateway);
    assert_eq!(passing(&gateway, "/v1/echo", "", 10), 0);
}

#[test]
fn of_a_large_quota_a_crash_costs_a_few_thousandths_at_most() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 10000, monthly: 300000 }", ""));
    assert_eq!(passing(&gateway, "/v1/echo", "", 200), 200);
    kill(&mut gateway);
    let answer = gateway.get("acme.test", "/v1/echo", "");
    let (day, month) = (remaining(&answer, "day"), remaining(&answer, "month"));
    assert!((9800 - 40..9800).contains(&day), "{day}");
    assert!((299_800 - 1200..299_800).contains(&month), "{month}");
}

#[test]
fn a_node_that_is_told_to_end_knows_exactly_what_was_used() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 5000, monthly: 90000 }", ""));
    for round in 1..=3_u64 {
        assert_eq!(passing(&gateway, "/v1/echo", "", 99), 99);
        end(&mut gateway);
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!((answer.status, remaining(&answer, "day")), (200, 5000 - 100 * round));
        assert_eq!(remaining(&answer, "month"), 90_000 - 100 * round);
    }
    let journal = fs::read_to_string(gateway.folder.path().join("state/quotas.journal")).unwrap();
    assert!(journal.contains("acme"), "{journal}");
}

#[test]
fn a_quota_that_is_used_up_stays_so() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 20 }", ""));
    assert_eq!(drain(gateway.http), 20);
    for restart in [kill, end, kill] {
        restart(&mut gateway);
        assert_eq!(passing(&gateway, "/v1/echo", "", 5), 0);
    }
}

#[test]
fn a_second_node_that_is_started_by_mistake_makes_the_first_forget_nothing() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 40 }", ""));
    assert_eq!(passing(&gateway, "/v1/echo", "", 10), 10);
    let mut second = Gateway::spawn(gateway.folder.path(), &["--http", &gateway.http.to_string()]);
    assert!(!wait_for_end(&mut second).success(), "the port is taken");
    assert_eq!(passing(&gateway, "/v1/echo", "", 10), 10);
    kill(&mut gateway);
    let passed = drain(gateway.http);
    assert!((18..=20).contains(&passed), "{passed}");
}

#[test]
fn an_upgrade_keeps_what_was_used_before_it() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 40 }", ""));
    for _ in 0..2 {
        assert_eq!(passing(&gateway, "/v1/echo", "", 10), 10);
        let next = hand_over(&gateway);
        assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
        gateway.process = next;
    }
    let passed = drain(gateway.http);
    assert!((16..=20).contains(&passed), "{passed}");
}

/// Asks again and again, and counts what passes, until it is refused after the end was told.
fn press(address: SocketAddr, passed: &AtomicUsize, end: &AtomicBool) {
    let mut client = Client::connect(address);
    loop {
        let answer = client.request(REQUEST);
        match answer.status {
            200 => passed.fetch_add(1, SeqCst),
            429 if end.load(SeqCst) => return,
            429 => 0,
            status => panic!("{status}"),
        };
        if answer.header("connection") == Some("close") {
            client = Client::connect(address);
        }
        // Slow enough for the quota to last over the change.
        thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn two_processes_of_an_upgrade_under_load_hold_to_one_quota() {
    let origin = Origin::start("a");
    let mut gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 5000 }", ""));
    let (passed, end) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| press(gateway.http, &passed, &end));
        }
        assert!(comes_true(|| passed.load(SeqCst) > 500));
        let next = hand_over(&gateway);
        assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
        gateway.process = next;
        end.store(true, SeqCst);
    });
    let passed = passed.into_inner();
    assert!((4980..=5000).contains(&passed), "{passed}");
}
