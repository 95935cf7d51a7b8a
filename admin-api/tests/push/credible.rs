//! What a node may say, and how much of it.

use std::time::{SystemTime, UNIX_EPOCH};

use seiketsu_config::push::{
    Applied, FromNode, Hello, Refused, ToNode,
    usage::{Counts, UsagePage, UsageRecord, UsageTaken},
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    admin::{Admin, eventually, tenant},
    node::{Connection, applied, hello},
};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn record(sequence: u64, tenant: &str, second: u64) -> UsageRecord {
    let counts = Counts { admitted: 1, cost: 1, ..Counts::default() };
    UsageRecord { sequence, second, tenant: tenant.to_owned(), counts, ..UsageRecord::default() }
}

fn page(log: &str, records: Vec<UsageRecord>) -> FromNode {
    let next = records.last().map_or(0, |last| last.sequence);
    FromNode::Usage(UsagePage { log: log.to_owned(), missing: None, records, next })
}

async fn taken(connection: &mut Connection) -> UsageTaken {
    loop {
        match connection.next().await {
            Ok(ToNode::Update(_)) => {}
            Ok(ToNode::UsageTaken(taken)) => return taken,
            other => panic!("{other:?}"),
        }
    }
}

async fn admitted(admin: &Admin) -> u64 {
    admin.get("/gateway/analytics?step=hour").await["totals"]["admitted"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_no_tenant_or_of_no_time_does_not_count_and_the_node_is_told() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    admin.put(&tenant("former", 1), "").await.revision();
    assert_eq!(admin.ask("DELETE", "/tenants/former", None).await.status, 200);
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    let (now, day) = (now() - 1, 86_400);
    let records = vec![
        record(1, "acme", now),
        record(2, "nobody", now),
        record(3, "", now),
        record(4, "acme", now + day),
        record(5, "acme", now - 200 * day),
        // It may come late that somebody was served who is there no more.
        record(6, "former", now),
        record(7, "acme", now),
    ];
    connection.say(page("0a", records.clone())).await;
    let first = taken(&mut connection).await;
    assert_eq!((first.log.as_str(), first.next), ("0a", 7));
    let why = first.refused.unwrap();
    assert!(why.contains("4 records") && why.contains("there is no such tenant"), "{why}");
    assert_eq!(admitted(&admin).await, 3);
    // Once, however often it comes.
    connection.say(page("0a", records)).await;
    assert_eq!(taken(&mut connection).await.next, 7);
    connection.say(page("0a", vec![record(8, "acme", now)])).await;
    assert_eq!(taken(&mut connection).await, UsageTaken { log: "0a".to_owned(), next: 8, refused: None });
    assert_eq!(admitted(&admin).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_there_keeps_its_log_of_usage_to_itself() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    let (mut owner, _) = Connection::greet(&admin, &hello("n1")).await;
    owner.say(page("0a", vec![record(1, "acme", now())])).await;
    assert_eq!(taken(&mut owner).await.next, 1);
    let (mut other, _) = Connection::greet(&admin, &hello("n2")).await;
    // It would keep what the owner sends from being counted.
    other.say(page("0a", vec![record(900, "acme", now())])).await;
    let (code, reason) = other.end().await;
    assert_eq!(code, CloseCode::Protocol);
    assert!(reason.contains("is that of the node n1"), "{reason}");
    owner.say(page("0a", vec![record(2, "acme", now())])).await;
    assert_eq!(taken(&mut owner).await.next, 2);
    assert_eq!(admitted(&admin).await, 2);
    // Under another name, with what it had kept.
    drop(owner);
    assert!(eventually(async || admin.get("/nodes/n1").await["live"] == false).await);
    let (mut renamed, _) = Connection::greet(&admin, &hello("n3")).await;
    renamed.say(page("0a", vec![record(3, "acme", now())])).await;
    assert_eq!(taken(&mut renamed).await.next, 3);
    assert_eq!(admitted(&admin).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_more_than_nodes_say_is_sent_away_and_told_why() {
    let admin = Admin::start().await;
    let end = async |said: Vec<FromNode>| {
        let mut connection = Connection::open(&admin, Some(&admin.node_token)).await.unwrap();
        for message in said {
            connection.say(message).await;
        }
        connection.end().await
    };
    let hi = FromNode::Hello(hello("n1"));
    let long = FromNode::Hello(Hello { version: "1".repeat(1 << 20), ..hello("n1") });
    let many = FromNode::Hello(Hello { schemas: (0..1000).collect(), ..hello("n1") });
    let records = |many: u64| (1..=many).map(|sequence| record(sequence, "acme", now())).collect();
    let backwards = vec![record(2, "acme", now()), record(1, "acme", now())];
    for (said, why) in [
        (vec![long], "its version"),
        (vec![many], "more forms of documents"),
        (vec![hi.clone(), page("0a", records(1001))], "more records"),
        (vec![hi.clone(), page(&"a".repeat(100), records(1))], "no log"),
        (vec![hi.clone(), page("0a", backwards)], "no order"),
    ] {
        let (code, reason) = end(said).await;
        assert!(code == CloseCode::Protocol && reason.contains(why), "{why}: {reason}");
    }
    // Small on its way, and large when it is there.
    let refused = vec![Refused { tenant: None, errors: vec!["x".repeat(9 << 20)] }];
    let bomb = FromNode::Applied(Applied { nonce: 1, revision: 1, refused, refused_more: 0, lost: false });
    let (_, reason) = end(vec![hi, bomb]).await;
    assert!(reason.contains("larger than"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_a_node_refuses_so_much_is_kept_listed_and_told_of() {
    let admin = Admin::start().await;
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    let nonce = connection.update().await[0].nonce;
    let answer = |revision: u64| {
        let refused = (0..20_000).map(|number| Refused {
            tenant: Some(format!("t{number}").parse().unwrap()),
            errors: if number < 2000 { vec![format!("{revision}{}", "x".repeat(2000))] } else { Vec::new() },
        });
        Applied { nonce, revision, refused: refused.collect(), refused_more: 0, lost: false }
    };
    for revision in 1..=10 {
        connection.say(FromNode::Applied(answer(revision))).await;
    }
    assert!(eventually(async || admin.get("/nodes/n1").await["revision"] == 10).await);
    let node = admin.ask("GET", "/nodes/n1", None).await;
    assert!(node.text.len() < 4 << 20, "{}", node.text.len());
    assert_eq!(node.json()["refused"].as_array().map(Vec::len), Some(10_000));
    assert_eq!(node.json()["refused_more"], 10_000);
    let listed = admin.get("/nodes").await["items"][0].clone();
    assert_eq!((listed["refused"].as_array().map(Vec::len), &listed["refused_more"]), (Some(20), &19_980.into()));
    let logged = admin.log().lines().filter(|line| line.contains("a node refuses a document")).count();
    assert!((100..200).contains(&logged), "{logged}");
    // Of a node that answers without end, a part is told: what others do is told too.
    for revision in 0..3000 {
        connection.say(FromNode::Applied(applied(nonce, revision % 2))).await;
    }
    connection.say(FromNode::Applied(applied(nonce, 77))).await;
    assert!(eventually(async || admin.get("/nodes/n1").await["revision"] == 77).await);
    let kept = admin.ask("GET", "/events?follow=false", None).await.text;
    let events = kept.lines().filter(|line| line.starts_with("event: node.")).count();
    assert!((400..1500).contains(&events), "{events}");
}
