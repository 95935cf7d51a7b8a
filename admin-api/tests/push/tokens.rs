//! What tokens of nodes are good for, and until when.

use std::time::{Duration, Instant};

use seiketsu_config::push::FromNode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    admin::Admin,
    node::{Connection, Holdings, applied, hello},
    postgres::Postgres,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_ends_the_connection_at_once() {
    let admin = Admin::start().await;
    let (token, id) = admin.new_node_token(None).await;
    let (mut other, _) = Connection::greet(&admin, &hello("n1")).await;
    let (mut connection, _) = Connection::greet_with(&admin, &token, &hello("n2")).await;
    // It says nothing at all, and is not silent for long enough to be cut off for that.
    let begun = Instant::now();
    assert_eq!(admin.ask("DELETE", &format!("/tokens/{id}"), None).await.status, 204);
    let (code, reason) = connection.end().await;
    assert_eq!((code, reason.as_str()), (CloseCode::Policy, "the token was revoked"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(Connection::open(&admin, Some(&token)).await.err(), Some(401));
    // Others' tokens hold.
    other.apply(&mut Holdings::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_elsewhere_ends_the_connection_soon_though_no_heartbeat_comes() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    let (token, id) = one.new_node_token(None).await;
    let (mut connection, _) = Connection::greet_with(&two, &token, &hello("n1")).await;
    let mut holdings = Holdings::default();
    let update = connection.update().await;
    let nonce = update[0].nonce;
    holdings.take(update);
    assert_eq!(one.ask("DELETE", &format!("/tokens/{id}"), None).await.status, 204);
    let begun = Instant::now();
    let mut again = tokio::time::interval(Duration::from_secs(1));
    let (_, reason) = loop {
        tokio::select! {
            end = connection.end() => break end,
            _ = again.tick() => {}
        }
        // Never a heartbeat.
        connection.say(FromNode::Applied(applied(nonce, holdings.revision()))).await;
    };
    assert_eq!(reason, "the token was revoked");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_node_lets_in_that_node_and_no_other() {
    let admin = Admin::start().await;
    let (token, _) = admin.new_node_token(Some("n1")).await;
    let mut stranger = Connection::open(&admin, Some(&token)).await.unwrap();
    stranger.say(FromNode::Hello(hello("n2"))).await;
    let (code, reason) = stranger.end().await;
    assert_eq!((code, reason.as_str()), (CloseCode::Policy, "the token is for the node n1 alone"));
    assert_eq!(admin.get("/nodes").await["items"].as_array().map(Vec::len), Some(0), "it took no place");
    let (mut connection, _) = Connection::greet_with(&admin, &token, &hello("n1")).await;
    connection.apply(&mut Holdings::default()).await;
    assert_eq!(admin.get("/tokens").await["items"][2]["node"], "n1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_any_node_does_not_take_the_place_of_a_node_that_has_its_own() {
    let admin = Admin::start().await;
    let (token, id) = admin.new_node_token(Some("n1")).await;
    let (mut owner, _) = Connection::greet_with(&admin, &token, &hello("n1")).await;
    let mut thief = Connection::open(&admin, Some(&admin.node_token)).await.unwrap();
    thief.say(FromNode::Hello(hello("n1"))).await;
    let (code, reason) = thief.end().await;
    assert!(code == CloseCode::Policy && reason.contains("has a token of its own"), "{reason}");
    owner.apply(&mut Holdings::default()).await;
    drop(owner);
    assert_eq!(admin.ask("DELETE", &format!("/tokens/{id}"), None).await.status, 204);
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.apply(&mut Holdings::default()).await;
}
