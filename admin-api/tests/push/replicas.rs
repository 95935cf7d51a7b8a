//! Several replicas of the control plane on one Postgres.

use std::time::{Duration, Instant};

use crate::{
    admin::{Admin, eventually, tenant},
    node::{Connection, Holdings, Running, hello},
    postgres::Postgres,
};

#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_one_store_push_the_same() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    let mut at_one = Running::start(&one, "n1").await;
    let mut at_two = Running::start(&two, "n2").await;
    for limit in 1..20 {
        // By turns, and each waits for the nodes of both.
        let admin = if limit % 2 == 0 { &one } else { &two };
        let answer = admin.put(&tenant("acme", limit), "?wait=applied&timeout=20s").await;
        let revision = answer.revision();
        for node in [&mut at_one, &mut at_two] {
            let holdings = node.holdings.borrow();
            assert!(holdings.revision() >= revision, "{answer:?}");
            assert_eq!(holdings.requests_per_minute("acme"), Some(limit));
        }
    }
    let (one, two) = (at_one.holdings.borrow().clone(), at_two.holdings.borrow().clone());
    assert_eq!((one.held, one.documents), (two.held, two.documents));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_at_another_replica_where_it_was() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    for id in ["acme", "globex"] {
        one.put(&tenant(id, 1), "").await.revision();
    }
    let mut greeting = hello("n1");
    let mut holdings = Holdings::default();
    let (mut connection, _) = Connection::greet(&one, &greeting).await;
    connection.apply(&mut holdings).await;
    drop((connection, one));
    let newest = two.put(&tenant("acme", 2), "").await.revision();
    greeting.holds = holdings.held;
    let (mut connection, _) = Connection::greet(&two, &greeting).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!(update.iter().map(|part| part.put.len()).sum::<usize>(), 1);
    assert_eq!((holdings.revision(), holdings.requests_per_minute("acme")), (newest, Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_other_replica_at_once() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    let mut node = Running::start(&two, "n1").await;
    let mut quickest = Duration::MAX;
    for limit in 1..10 {
        let begun = Instant::now();
        let revision = one.put(&tenant("acme", limit), "").await.revision();
        node.comes_to(revision).await;
        quickest = quickest.min(begun.elapsed());
    }
    // Notified, and not found a second later.
    assert!(quickest < Duration::from_millis(900), "{quickest:?}");
    assert!(eventually(async || two.get("/nodes").await["items"][0]["live"] == true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_id_are_noticed_also_at_different_replicas() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    let _first = Running::start(&one, "n1").await;
    assert_eq!(one.get("/nodes/n1").await["twin"], false);
    let _second = Running::start(&two, "n1").await;
    assert!(eventually(async || two.get("/nodes/n1").await["twin"] == true).await);
    assert!(one.logs("have the same id").await, "{}", one.log());
}
