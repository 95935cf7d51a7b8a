//! What nodes are sent.

use seiketsu_config::push::{FromNode, Held, Sum, Update};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    admin::{Admin, eventually, tenant},
    node::{Connection, Holdings, Running, applied, hello},
};

fn put(update: &[Update]) -> Vec<String> {
    update
        .iter()
        .flat_map(|part| &part.put)
        .filter_map(|document| Some(document.tenant.as_ref()?.to_string()))
        .collect()
}

fn gone(update: &[Update]) -> Vec<String> {
    update.iter().flat_map(|part| &part.gone).map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_pushed_and_acknowledged() {
    let admin = Admin::start().await;
    let mut node = Running::start(&admin, "n1").await;
    let revision = admin.put(&tenant("acme", 1000), "").await.revision();
    assert_eq!(node.comes_to(revision).await.requests_per_minute("acme"), Some(1000));
    let revision = admin.put(&tenant("acme", 500), "").await.revision();
    assert_eq!(node.comes_to(revision).await.requests_per_minute("acme"), Some(500));
    // And it is known that the node has it.
    let known = async || admin.get("/nodes").await["items"][0]["revision"] == revision;
    assert!(eventually(known).await, "{}", admin.get("/nodes").await);
    let shown = &admin.get("/nodes").await["items"][0];
    assert_eq!((&shown["live"], &shown["ready"]), (&json!(true), &json!(true)), "{shown}");

    // A change that changes nothing is sent to nobody.
    assert_eq!(admin.put(&tenant("acme", 500), "").await.revision(), revision);
    let revision = admin.ask("DELETE", "/tenants/acme", None).await.revision();
    assert_eq!(node.comes_to(revision).await.tenant("acme"), None);
    // The node has it before its acknowledgement arrives.
    let acknowledged = async || admin.metrics().await.contains("seiketsu_push_acknowledgement_seconds_count 4");
    assert!(eventually(acknowledged).await, "{}", admin.metrics().await);
    let metrics = admin.metrics().await;
    assert!(metrics.contains("seiketsu_push_nodes 1"), "{metrics}");
    assert!(metrics.contains("seiketsu_push_updates_total{kind=\"changes\"} 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_configuration_comes_in_parts() {
    let admin = Admin::start().await;
    // About six megabytes of documents.
    let route = |number: usize| {
        let path = format!("/{}/{number}", "long-segment-of-a-path".repeat(8));
        json!({ "id": format!("route-{number}"), "match": { "path": path }, "upstream": "own" })
    };
    let routes: Vec<Value> = (0..2500).map(route).collect();
    for number in 0..10 {
        let mut large = tenant(&format!("large-{number}"), 1000);
        large["routes"] = json!(routes);
        admin.put(&large, "").await.revision();
    }
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    let mut holdings = Holdings::default();
    let parts = connection.apply(&mut holdings).await;
    assert!(parts.len() > 1, "{} part", parts.len());
    assert!(parts.iter().all(|part| part.after.is_none()));
    assert_eq!(put(&parts).len(), 10);
    assert_eq!(holdings.documents.len(), 11, "ten tenants and the head");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_gets_only_what_has_changed() {
    let admin = Admin::start().await;
    for id in ["acme", "globex", "initech"] {
        admin.put(&tenant(id, 100), "").await.revision();
    }
    let mut holdings = Holdings::default();
    let mut greeting = hello("n1");
    let (mut connection, _) = Connection::greet(&admin, &greeting).await;
    assert_eq!(put(&connection.apply(&mut holdings).await), ["acme", "globex", "initech"]);
    drop(connection);

    // It was changed three times, and comes once.
    for limit in [1, 2, 3] {
        admin.put(&tenant("acme", limit), "").await.revision();
    }
    let newest = admin.ask("DELETE", "/tenants/globex", None).await.revision();
    greeting.holds = holdings.held;
    let (mut connection, _) = Connection::greet(&admin, &greeting).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!((put(&update), gone(&update)), (vec!["acme".to_owned()], vec!["globex".to_owned()]));
    assert!(update.iter().all(|part| part.head.is_none()), "the head has not changed");
    assert_eq!((holdings.revision(), holdings.requests_per_minute("acme")), (newest, Some(3)));
    drop(connection);

    // It holds everything: it is asked what of it is in force.
    greeting.holds = holdings.held;
    let (mut connection, _) = Connection::greet(&admin, &greeting).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!((update.len(), put(&update).len(), update[0].after), (1, 0, Some(newest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_the_whole_if_what_it_holds_means_nothing_here() {
    let admin = Admin::start().await;
    let newest = admin.put(&tenant("acme", 100), "").await.revision();
    let (mut connection, welcome) = Connection::greet(&admin, &hello("n1")).await;
    let mut holdings = Holdings::default();
    connection.apply(&mut holdings).await;
    let held = holdings.held.unwrap();
    assert_eq!(held.store, welcome.store);

    let another_store = Held { store: Uuid::now_v7(), ..held };
    let beyond = Held { revision: newest + 100, ..held };
    let different = Held { sum: held.sum.with(Sum::of(None, "x")), ..held };
    for (what, holds) in
        [("another store", another_store), ("a later revision", beyond), ("other documents", different)]
    {
        let greeting = seiketsu_config::push::Hello { holds: Some(holds), ..hello("n2") };
        let (mut connection, _) = Connection::greet(&admin, &greeting).await;
        let update = connection.update().await;
        assert_eq!((update[0].after, put(&update)), (None, vec!["acme".to_owned()]), "{what}");
    }

    // And if it says that it has lost it.
    admin.put(&tenant("acme", 200), "").await.revision();
    let update = connection.update().await;
    assert_eq!(update[0].after, Some(newest));
    let mut lost = applied(update[0].nonce, 0);
    lost.lost = true;
    connection.say(FromNode::Applied(lost)).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!((update[0].after, holdings.requests_per_minute("acme")), (None, Some(200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_gets_states_and_not_a_queue() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    let mut holdings = Holdings::default();
    let slow = connection.update().await;
    let mut newest = 0;
    for limit in 2..30 {
        newest = admin.put(&tenant("acme", limit), "").await.revision();
    }
    let nonce = slow[0].nonce;
    holdings.take(slow);
    connection.say(FromNode::Applied(applied(nonce, holdings.revision()))).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!((update[0].to.revision, put(&update)), (newest, vec!["acme".to_owned()]));
    assert_eq!(holdings.requests_per_minute("acme"), Some(29));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_nodes_lack_is_read_once() {
    let admin = Admin::start().await;
    let mut nodes = Vec::new();
    for number in 0..20 {
        nodes.push(Running::start(&admin, &format!("n{number}")).await);
    }
    let revision = admin.put(&tenant("acme", 1), "").await.revision();
    for node in &mut nodes {
        node.comes_to(revision).await;
    }
    // Those that asked for the same were sent the same.
    let metrics = admin.metrics().await;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let sent =
        value("seiketsu_push_updates_total{kind=\"changes\"}") + value("seiketsu_push_updates_total{kind=\"whole\"}");
    assert!(sent >= 40.0, "{metrics}");
    assert!(value("seiketsu_push_updates_prepared_total") <= 6.0, "{metrics}");
}
