//! Limits that change while they are in use, and wrong ones, which change nothing.

use std::{
    fs,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use super::{REQUEST, limited, passing, remaining};
use crate::{
    fixtures::{comes_true, demo, let_pass, open, tenants},
    support::{Client, Gateway, Origin, binary},
};

/// When an answer came, whether the request passed, and the burst that applied to it.
type Seen = (Instant, bool, u64);

/// Clients that ask some hundred times a second until they are told to stop, with what they see.
fn under_load(gateway: &Gateway, changes: impl FnOnce(&Mutex<Vec<Seen>>)) -> Vec<Seen> {
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::connect(gateway.http);
                while !stop.load(Relaxed) {
                    let answer = client.request(REQUEST);
                    assert!(matches!(answer.status, 200 | 429), "{answer:?}");
                    let policy = answer.header("ratelimit-policy").expect("a policy");
                    let burst = policy.split_once(";q=").unwrap().1.split(';').next().unwrap().parse().unwrap();
                    seen.lock().unwrap().push((Instant::now(), answer.status == 200, burst));
                    // Far more than is admitted, and fewer than a connection may serve.
                    std::thread::park_timeout(Duration::from_millis(3));
                }
            });
        }
        changes(&seen);
        stop.store(true, Relaxed);
    });
    seen.into_inner().unwrap()
}

/// Requests that passed under this burst, and for how long it applied.
fn passed(seen: &[Seen], burst: u64) -> (f64, f64) {
    let of_burst = || seen.iter().filter(|(_, _, of)| *of == burst);
    let (first, last) = (of_burst().map(|seen| seen.0).min().unwrap(), of_burst().map(|seen| seen.0).max().unwrap());
    (of_burst().filter(|(_, passed, _)| *passed).count() as f64, last.duration_since(first).as_secs_f64())
}

#[test]
fn a_changed_rate_applies_to_the_next_request_under_load() {
    let origin = Origin::start("a");
    // 1,000, 60 and again 1,000 a minute; bursts by which they are known.
    let revision = |revision: u32, requests: u32, burst: u32| {
        let limits = format!("rate: {{ requests: {requests}, per: 1m, burst: {burst} }}");
        limited(origin.address, &limits, "").replace("revision: 1", &format!("revision: {revision}"))
    };
    let gateway = Gateway::start(&revision(1, 1000, 100));
    let seen = under_load(&gateway, |seen| {
        let knows = |burst| comes_true(|| seen.lock().unwrap().iter().any(|seen| seen.2 == burst));
        assert!(knows(100));
        // The burst is used up.
        assert!(comes_true(|| seen.lock().unwrap().last().is_some_and(|seen| !seen.1)));
        let_pass(Duration::from_secs(1));
        for (number, requests, burst) in [(2, 60, 6), (3, 1000, 101)] {
            gateway.write_tenants(&revision(number, requests, burst));
            assert!(knows(u64::from(burst)), "{}", gateway.readyz().text());
            let_pass(Duration::from_secs(4));
        }
    });
    let (fast, took) = passed(&seen, 100);
    assert!(fast <= 100.0 + 1000.0 / 60.0 * took + 1.0, "{fast} in {took} s at 1,000 a minute");
    let (slow, took) = passed(&seen, 6);
    assert!(slow <= 6.0 + took + 1.0 && slow >= took - 2.0, "{slow} in {took} s at 60 a minute");
    let (fast, took) = passed(&seen, 101);
    // A full burst is not given; what comes comes at the new rate, at once.
    assert!(fast <= 6.0 + 1000.0 / 60.0 * took + 1.0, "{fast} in {took} s at 1,000 a minute");
    assert!(fast >= 0.95 * 1000.0 / 60.0 * took - 2.0, "{fast} in {took} s at 1,000 a minute");
}

#[test]
fn a_higher_quota_applies_at_once_and_a_lower_one_too() {
    let origin = Origin::start("a");
    let revision = |revision: u32, daily: u32| {
        let text = limited(origin.address, &format!("quotas: {{ daily: {daily} }}"), "");
        text.replace("revision: 1", &format!("revision: {revision}"))
    };
    let gateway = Gateway::start(&revision(1, 5));
    assert_eq!(passing(&gateway, "/v1/echo", "", 8), 5);
    let policy = || gateway.get("acme.test", "/v1/echo", "").header("ratelimit-policy").map(str::to_owned);
    // What was used stays used.
    gateway.write_tenants(&revision(2, 0));
    assert!(comes_true(|| policy().as_deref() == Some("\"day\";q=0")));
    gateway.write_tenants(&revision(3, 9));
    assert!(comes_true(|| gateway.operations("/config").json()["revision"] == json!(3)));
    assert_eq!(passing(&gateway, "/v1/echo", "", 8), 4);
}

#[test]
fn limits_of_a_lower_revision_are_refused_and_not_passed_over() {
    let origin = Origin::start("a");
    let revision = |revision: u32, daily: u32| {
        let text = limited(origin.address, &format!("quotas: {{ daily: {daily} }}"), "");
        text.replace("revision: 1", &format!("revision: {revision}"))
    };
    let gateway = Gateway::start(&revision(5, 3));
    assert_eq!(passing(&gateway, "/v1/echo", "", 5), 3);
    gateway.write_tenants(&revision(4, 9));
    let told = || gateway.readyz().json()["last_reload"]["errors"].to_string();
    assert!(comes_true(|| told().contains("(tenant acme): its limits are not those in force")), "{}", told());
    assert!(["revision 5", "revision 4", "write revision: 5"].iter().all(|part| told().contains(part)), "{}", told());
    assert_eq!(gateway.operations("/config").json()["revision"], json!(5));
    assert_eq!(passing(&gateway, "/v1/echo", "", 2), 0);
    // With the number that is asked for, they are put in force, and are held to.
    gateway.write_tenants(&revision(5, 9));
    assert!(comes_true(|| told() == "[]"), "{}", told());
    assert_eq!(passing(&gateway, "/v1/echo", "", 9), 6);
}

#[test]
fn a_reload_that_changes_something_else_gives_nothing_anew() {
    let origin = Origin::start("a");
    let limits = "rate: { requests: 1, per: 1h, burst: 12 }, quotas: { daily: 10 }";
    let text = limited(origin.address, limits, "");
    let gateway = Gateway::start(&text);
    assert_eq!(passing(&gateway, "/v1/echo", "", 4), 4);
    for revision in 2..6_u64 {
        let headers = format!("headers: {{ response: {{ set: {{ x-revision: '{revision}' }} }} }}");
        let next = text.replace("policies: { limits: {", &format!("policies: {{ {headers}, limits: {{"));
        gateway.write_tenants(&next.replace("revision: 1", &format!("revision: {revision}")));
        assert!(comes_true(|| gateway.operations("/config").json()["revision"] == json!(revision)));
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!((answer.status, answer.header("x-revision")), (200, Some(&*revision.to_string())));
        let used = revision + 3;
        assert_eq!((remaining(&answer, "day"), remaining(&answer, "rate")), (10 - used, 12 - used));
    }
    assert_eq!(passing(&gateway, "/v1/echo", "", 5), 2);
}

/// Limits that are wrong, and what is said of them.
const WRONG: [(&str, &[&str]); 8] = [
    (
        "rate: { requests: 0, per: 1m }",
        &["rate.requests", "0 is out of bounds: write a whole number from 1 to 1000000000"],
    ),
    ("rate: { requests: -1, per: 1m }", &["rate.requests", "-1", "a whole number from 1 to 1000000000"]),
    ("rate: { requests: 10, per: 1d }", &["rate.per", "write 1s to 1h"]),
    ("rate: { requests: 10, per: 1m, brust: 5 }", &["brust", "burst"]),
    ("quotas: { daily: -1 }", &["quotas.daily", "a whole number from 0 to 1125899906842624, or unlimited"]),
    ("calendar: { time_zone: Mars/Olympus }", &["calendar.time_zone", "Mars/Olympus", "not a time zone"]),
    ("unreachable: maybe", &["unreachable", "maybe", "share", "allow", "deny"]),
    ("keyed: [{ id: each, by: consumer }]", &["keyed[0]", "it limits nothing", "add rate, quotas or concurrency"]),
];

/// With these limits in the place of those of the tenant.
fn with_limits(origin: &Origin, limits: &str) -> String {
    let limits = format!("policies: {{ limits: {{ {limits} }} }}\n");
    tenants(&demo(&[origin.address], ""), &limits, &open(""))
}

#[test]
fn wrong_limits_are_told_with_place_value_and_remedy() {
    let origin = Origin::start("a");
    for (limits, parts) in WRONG {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tenants.yaml"), with_limits(&origin, limits)).unwrap();
        fs::write(folder.path().join("node.yaml"), "tenants: tenants.yaml\nstate_dir: state\n").unwrap();
        let output = Command::new(binary("seiketsu-gateway"))
            .args(["--config", "node.yaml", "--check-config"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{limits}: {said}");
        for part in parts.iter().chain(&["tenants.yaml:", "limits"]) {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
}

#[test]
fn wrong_limits_leave_those_that_are_in_force() {
    let origin = Origin::start("a");
    let good = with_limits(&origin, "rate: { requests: 1, per: 1h, burst: 20 }");
    let gateway = Gateway::start(&good);
    assert_eq!(passing(&gateway, "/v1/echo", "", 1), 1);
    for (n, (limits, parts)) in (1..).zip(WRONG) {
        gateway.write_tenants(&with_limits(&origin, limits).replace("revision: 1", "revision: 2"));
        let told = || gateway.readyz().json()["last_reload"]["errors"].to_string();
        assert!(comes_true(|| told().contains(parts[parts.len() - 1])), "{limits}: {}", told());
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!((answer.status, remaining(&answer, "rate")), (200, 19 - n), "{limits}");
    }
}
