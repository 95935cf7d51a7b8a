//! Usage on its way from nodes into the ledger.

use std::time::{SystemTime, UNIX_EPOCH};

use seiketsu_config::push::{
    FromNode, Hello, ToNode,
    usage::{AskUsed, Counts, UsagePage, UsageRecord, UsageTaken, Used},
};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;

use crate::{
    admin::{Admin, PATIENCE, eventually, tenant},
    gateway::{Gateway, Origin, served},
    node::{Connection, Holdings, hello},
    postgres::Postgres,
};

/// Yesterday at 14:00.
fn second() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now / 86_400 - 1) * 86_400 + 14 * 3600
}

/// The day that it is of, from its beginning to its end.
fn day() -> (String, String) {
    let at = |second: u64| {
        let at = OffsetDateTime::from_unix_timestamp(i64::try_from(second).unwrap()).unwrap();
        at.format(&Rfc3339).unwrap()
    };
    let start = second() - 14 * 3600;
    (at(start), at(start + 86_400))
}

fn page(sequences: std::ops::RangeInclusive<u64>) -> UsagePage {
    let next = *sequences.end();
    let second = second();
    let record = |sequence| UsageRecord {
        sequence,
        second,
        tenant: "acme".to_owned(),
        counts: Counts { admitted: 1, cost: 1, ..Counts::default() },
        ..UsageRecord::default()
    };
    UsagePage { log: "0a".to_owned(), missing: None, records: sequences.map(record).collect(), next }
}

/// The next message that is about usage.
async fn heard(connection: &mut Connection) -> ToNode {
    loop {
        match connection.next().await {
            Ok(ToNode::Update(_)) => {}
            Ok(message) => return message,
            Err(end) => panic!("{end:?}"),
        }
    }
}

async fn taken(connection: &mut Connection) -> u64 {
    match heard(connection).await {
        ToNode::UsageTaken(UsageTaken { log, next, refused: None }) if log == "0a" => next,
        other => panic!("{other:?}"),
    }
}

async fn admitted(admin: &Admin) -> u64 {
    let (from, to) = day();
    let told = admin.get(&format!("/gateway/analytics?step=day&from={from}&to={to}")).await;
    told["totals"]["admitted"].as_u64().unwrap_or_else(|| panic!("{told}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_counts_once_to_whomever_it_is_sent() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    one.put(&tenant("acme", 5), "").await.revision();
    let (mut at_one, welcome) = Connection::greet(&one, &hello("n1")).await;
    assert!(welcome.usage);
    let (mut at_two, _) = Connection::greet(&two, &hello("n1")).await;
    for connection in [&mut at_one, &mut at_two] {
        connection.say(FromNode::Usage(page(1..=100))).await;
    }
    assert_eq!((taken(&mut at_one).await, taken(&mut at_two).await), (100, 100));
    at_two.say(FromNode::Usage(page(50..=120))).await;
    assert_eq!(taken(&mut at_two).await, 120);
    assert_eq!((admitted(&one).await, admitted(&two).await), (120, 120));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_taken_is_there_after_a_kill() {
    let mut admin = Admin::start().await;
    admin.put(&tenant("acme", 5), "").await.revision();
    for round in 1..=3 {
        let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
        connection.say(FromNode::Usage(page(1..=round * 300))).await;
        assert_eq!(taken(&mut connection).await, round * 300);
        connection.say(FromNode::Usage(page(1 + round * 300..=100 + round * 300))).await;
        admin.restart().await;
        let there = admitted(&admin).await;
        assert!(there == round * 300 || there == round * 300 + 100, "all of a page or nothing: {there}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_release_before_and_one_that_says_what_nobody_knows_are_served() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 5), "").await.revision();
    let (mut connection, _) = Connection::greet(&admin, &Hello { usage: false, ..hello("old") }).await;
    connection.apply(&mut Holdings::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_wait_is_told_to_go() {
    let admin = Admin::start().await;
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    for _ in 0..5000 {
        connection.say(FromNode::Usage(page(1..=1))).await;
    }
    let (_, reason) = connection.end().await;
    assert!(reason.contains("usage"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_while_usage_is_stored() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 50), "").await.revision();
    let (mut busy, _) = Connection::greet(&admin, &hello("n1")).await;
    let mut holdings = Holdings::default();
    let mut stored = 0;
    for limit in 1..30 {
        let next = stored + 1000;
        busy.say(FromNode::Usage(page(stored + 1..=next))).await;
        let revision = admin.put(&tenant("acme", limit), "").await.revision();
        // In whatever order they come.
        let mut is_taken = false;
        while !is_taken || holdings.revision() < revision {
            match timeout(PATIENCE, busy.next()).await.unwrap().unwrap() {
                ToNode::UsageTaken(taken) => is_taken = taken.next == next,
                ToNode::Update(update) => {
                    let nonce = update.nonce;
                    holdings.take(vec![*update]);
                    busy.say(FromNode::Applied(crate::node::applied(nonce, holdings.revision()))).await;
                }
                other => panic!("{other:?}"),
            }
        }
        stored = next;
    }
    assert_eq!(admitted(&admin).await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_told_what_a_tenant_has_used_since() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 5), "").await.revision();
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.say(FromNode::Usage(page(1..=60))).await;
    taken(&mut connection).await;
    // The records are of 14:00.
    for (since, expected) in [(second() - 5400, 60), (second(), 60), (second() + 60, 0)] {
        connection.say(FromNode::AskUsed(AskUsed { tenant: "acme".parse().unwrap(), since })).await;
        match heard(&mut connection).await {
            ToNode::Used(Used { since: of, used, .. }) => assert_eq!((of, used), (since, expected)),
            other => panic!("{other:?}"),
        }
    }
}

/// Everything that was counted of a tenant in the last day.
async fn counted(admin: &Admin, tenant: &str) -> u64 {
    let told = admin.get(&format!("/gateway/analytics?tenant={tenant}&step=hour")).await;
    told["totals"]["admitted"].as_u64().unwrap_or_else(|| panic!("{told}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_real_gateways_count_is_in_the_ledger_exactly_whatever_goes_away_meanwhile() {
    let origin = Origin::start("a");
    let mut admin = Admin::start().await;
    admin.put(&served("acme", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let gateway = Gateway::start(&admin, &one).await;
    let other = Gateway::start(&admin, &two).await;
    let ask = async |gateway: &Gateway, many: usize| {
        for _ in 0..many {
            assert_eq!(gateway.get("acme.test", "/v1/echo", "").await.status, 200);
        }
    };
    ask(&gateway, 20).await;
    ask(&other, 7).await;
    assert!(eventually(async || counted(&admin, "acme").await == 27).await, "{}", admin.log());
    // While the control plane is away, nodes keep it, over their own ends too.
    admin.process.0.kill().unwrap();
    admin.process.0.wait().unwrap();
    ask(&gateway, 10).await;
    gateway.process.signal("-TERM");
    drop(other);
    let mut gateway = gateway;
    gateway.process.0.wait().unwrap();
    let gateway = Gateway::start_in(&one).await;
    ask(&gateway, 3).await;
    admin.restart().await;
    assert!(eventually(async || counted(&admin, "acme").await == 40).await, "{}", counted(&admin, "acme").await);
    // A node whose state is lost counts beside what it had counted.
    drop(gateway);
    std::fs::remove_dir_all(one.join("state")).unwrap();
    let gateway = Gateway::start_in(&one).await;
    ask(&gateway, 5).await;
    assert!(eventually(async || counted(&admin, "acme").await == 45).await);
    let told = admin.get("/gateway/analytics?tenant=acme&step=hour").await;
    assert_eq!((&told["gaps"], &told["totals"]["statuses"]["2xx"]), (&json!([]), &json!(45)));
    assert!(told["totals"]["latency_ms"]["p99"]["above"].is_u64(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_hands_its_last_usage_over_first() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    admin.put(&served("acme", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(&admin, &folder.path().join("one")).await;
    for _ in 0..9 {
        gateway.get("acme.test", "/v1/echo", "").await;
    }
    gateway.process.signal("-TERM");
    gateway.process.0.wait().unwrap();
    // It never comes back, and its disk has gone with it.
    assert!(eventually(async || counted(&admin, "acme").await == 9).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_shown_in_a_terminal() {
    let admin = Admin::start().await;
    let mut acme = tenant("acme", 5);
    acme["policies"]["limits"]["quotas"] = json!({ "daily": 5000 });
    admin.put(&acme, "").await.revision();
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.say(FromNode::Usage(page(1..=7))).await;
    taken(&mut connection).await;
    let shown = |arguments: &[&str]| {
        let output = admin.ctl(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let quotas = shown(&["usage"]);
    let words: Vec<&str> = quotas.lines().nth(1).unwrap().split_whitespace().collect();
    // Yesterday was of this month, or of another one.
    assert_eq!((&words[..3], words[4]), (&["acme", "0", "5000"][..], "unlimited"), "{quotas}");
    assert!(matches!(words[3], "0" | "7"), "{quotas}");
    let (from, to) = day();
    let span = ["usage", "acme", "--from", &from, "--to", &to, "--step", "day"];
    let series = shown(&span);
    assert!(series.lines().nth(1).unwrap().starts_with(&format!("{from}  7")), "{series}");
    let json: serde_json::Value = serde_json::from_str(&shown(&[&span[..], &["--output", "json"]].concat())).unwrap();
    assert_eq!(json["totals"]["admitted"], 7);
    assert!(!admin.ctl(&["usage", "--from", &from]).status.success(), "of whom?");
}
