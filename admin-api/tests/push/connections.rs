//! Who may connect, and for how long.

use std::time::{Duration, Instant};

use seiketsu_config::push::{FromNode, Heartbeat, Hello, Sum};
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use uuid::Uuid;

use crate::{
    admin::{Admin, eventually, tenant},
    node::{Connection, Holdings, Running, hello},
};

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_token_of_a_node_is_let_in() {
    let admin = Admin::start().await;
    for token in [None, Some(""), Some("nonsense"), Some(admin.token.as_str())] {
        let refused = Connection::open(&admin, token).await.err();
        assert_eq!(refused, Some(401), "{token:?}");
    }
    assert!(Connection::open(&admin, Some(&admin.node_token)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_say_hello_is_sent_away() {
    let admin = Admin::start().await;
    let mut silent = Connection::open(&admin, Some(&admin.node_token)).await.unwrap();
    let mut confused = Connection::open(&admin, Some(&admin.node_token)).await.unwrap();
    confused.say_raw("{}").await;
    assert_eq!(confused.end().await.0, CloseCode::Protocol);
    let (code, reason) = silent.end().await;
    assert_eq!(code, CloseCode::Policy);
    assert!(reason.contains("no hello"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_no_form_of_documents_is_told_which_are_known() {
    let admin = Admin::start().await;
    let mut connection = Connection::open(&admin, Some(&admin.node_token)).await.unwrap();
    connection.say(FromNode::Hello(Hello { schemas: vec![70, 71], ..hello("n1") })).await;
    let (code, reason) = connection.end().await;
    assert_eq!(code, CloseCode::Policy);
    assert!(reason.contains("knows [1]") && reason.contains("[70, 71]"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_falls_silent_is_cut_off() {
    let admin = Admin::start().await;
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.apply(&mut Holdings::default()).await;
    let live = async |wanted: bool| eventually(async || admin.get("/nodes").await["items"][0]["live"] == wanted).await;
    assert!(live(true).await);
    let begun = Instant::now();
    let (code, reason) = connection.end().await;
    assert_eq!(code, CloseCode::Policy);
    assert!(reason.contains("nothing was heard"), "{reason}");
    assert!(begun.elapsed() > Duration::from_secs(4), "three heartbeats");
    assert!(live(false).await, "{}", admin.get("/nodes").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_read_is_cut_off_though_it_says_that_it_is_there() {
    let admin = Admin::start().await;
    // More than the system takes for it, and nothing that gets much smaller.
    for number in 0..30 {
        let mut large = tenant(&format!("large-{number}"), 1);
        let route = |route: usize| {
            let path: String =
                (0..3).map(|part| Sum::of(None, &format!("{number}.{route}.{part}")).to_string()).collect();
            json!({ "id": format!("route-{route}"), "match": { "path": format!("/{path}") }, "upstream": "own" })
        };
        large["routes"] = (0..2500).map(route).collect();
        admin.put(&large, "").await.revision();
    }
    let mut connection = Connection::open_with_little_room(&admin).await;
    connection.say(FromNode::Hello(hello("n1"))).await;
    let alive = tokio::spawn(async move {
        loop {
            connection.say(FromNode::Heartbeat(Heartbeat { revision: 0, ready: true, draining: false })).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    assert!(admin.logs("did not read").await, "{}", admin.log());
    alive.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_takes_the_place_of_a_node_and_two_that_both_run_are_noticed() {
    let admin = Admin::start().await;
    let (first, second) = (hello("n1"), Hello { run: Uuid::now_v7(), ..hello("n1") });
    let (mut one, _) = Connection::greet(&admin, &first).await;
    let (mut two, _) = Connection::greet(&admin, &second).await;
    let (_, reason) = one.end().await;
    assert!(reason.contains("took its place"), "{reason}");
    assert!(!admin.log().contains("have the same id"));
    let (_three, _) = Connection::greet(&admin, &first).await;
    assert!(two.end().await.1.contains("took its place"));
    assert!(admin.logs("have the same id").await, "{}", admin.log());
    assert!(eventually(async || admin.get("/nodes/n1").await["twin"] == true).await);
    assert!(String::from_utf8(admin.ctl(&["nodes"]).stdout).unwrap().contains("runs as well"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_ends_says_goodbye_and_nodes_find_it_again() {
    let mut admin = Admin::start().await;
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.apply(&mut Holdings::default()).await;
    admin.process.signal("-TERM");
    assert_eq!(connection.end().await.0, CloseCode::Away);
    drop(connection);
    assert!(eventually(async || std::net::TcpStream::connect(admin.address).is_err()).await);
    admin.restart().await;
    let mut node = Running::start(&admin, "n1").await;
    let revision = admin.put(&tenant("acme", 1), "").await.revision();
    node.comes_to(revision).await;
}
