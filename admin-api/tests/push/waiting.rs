//! `?wait=applied`: what it says is so.

use seiketsu_config::push::{Applied, FromNode, Heartbeat};
use serde_json::json;

use crate::{
    admin::{Admin, Answer, eventually, tenant},
    node::{Connection, Holdings, Manner, Running, hello},
};

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_hears_of_it_when_all_nodes_have_it() {
    let admin = Admin::start().await;
    let nobody = admin.put(&tenant("acme", 1), "?wait=applied").await;
    assert_eq!((nobody.status, &nobody.json()["applied"]["nodes"]), (200, &json!([])), "{nobody:?}");
    let one = Running::start(&admin, "n1").await;
    let two = Running::start(&admin, "n2").await;
    for limit in 2..20 {
        let answer = admin.put(&tenant("acme", limit), "?wait=applied&timeout=20s").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        // No waiting here: it was waited for.
        for node in [&one, &two] {
            let holdings = node.holdings.borrow();
            assert!(holdings.revision() >= answer.revision(), "{answer:?}");
            assert_eq!(holdings.requests_per_minute("acme"), Some(limit));
        }
        let mut names: Vec<String> = serde_json::from_value(answer.json()["applied"]["nodes"].clone()).unwrap();
        names.sort();
        assert_eq!(names, ["n1", "n2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_is_told_which_node_refuses_and_which_is_behind() {
    let admin = Admin::start().await;
    let before = admin.put(&tenant("acme", 1), "").await.revision();
    let mut good = Running::start(&admin, "good").await;
    let refuses = Some(("acme".to_owned(), "no such file: key".to_owned()));
    let mut refusing = Running::start_with(&admin, &hello("refusing"), Manner { refuses, ..Manner::default() }).await;
    let mut behind = Running::start(&admin, "behind").await;
    for node in [&mut good, &mut refusing, &mut behind] {
        node.comes_to(before).await;
    }
    behind.manner.lock().unwrap().is_deaf = true;

    let answer = admin.put(&tenant("acme", 2), "?wait=applied&timeout=1s").await;
    assert_eq!(answer.status, 504, "{answer:?}");
    let problem = answer.json();
    assert!(problem["type"].as_str().unwrap().ends_with("not-applied-everywhere"), "{problem}");
    assert_eq!(problem["applied"]["nodes"], json!(["good"]), "{problem}");
    let missing = problem["applied"]["missing"].as_array().unwrap();
    let of = |node: &str| missing.iter().find(|missing| missing["node"] == node).unwrap_or_else(|| panic!("{problem}"));
    assert_eq!(missing.len(), 2, "{problem}");
    assert_eq!(of("behind")["revision"], before);
    assert!(of("refusing").to_string().contains("no such file: key"), "{problem}");
    // The change stands.
    assert_eq!(admin.get("/tenants/acme").await["policies"]["limits"]["rate"]["requests"], 2);

    // The refusal of one tenant does not hold up who changes another.
    behind.leave().await;
    let answer = admin.put(&tenant("globex", 2), "?wait=applied&timeout=20s").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

const WAIT: &str = "?wait=applied&timeout=20s";

/// That one of two nodes refuses the tenant.
#[track_caller]
fn is_refused(answer: &Answer) {
    assert_eq!(answer.status, 504, "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["applied"]["nodes"], json!(["good"]), "{problem}");
    let missing = problem["applied"]["missing"].as_array().unwrap();
    assert_eq!((missing.len(), &missing[0]["node"]), (1, &json!("refusing")), "{problem}");
    assert!(missing[0].to_string().contains("no such file: key"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refuses_is_never_said_to_be_applied_however_it_is_written_again() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    let _good = Running::start(&admin, "good").await;
    let refuses = || Manner { refuses: Some(("acme".to_owned(), "no such file: key".to_owned())), ..Manner::default() };
    let again = hello("refusing");
    let refusing = Running::start_with(&admin, &again, refuses()).await;
    let rollback = async || admin.ask("POST", &format!("/revisions/2/rollback{WAIT}"), None).await;
    let import = async |query: &str| {
        let file = json!({ "revision": 1, "tenants": [tenant("acme", 2)] }).to_string();
        admin.ask("POST", &format!("/import{WAIT}{query}"), Some(file.into())).await
    };

    is_refused(&admin.put(&tenant("acme", 2), WAIT).await);
    // Nothing is other than it was, and so is what the node makes of it.
    is_refused(&admin.put(&tenant("acme", 2), WAIT).await);
    let route = tenant("acme", 2)["routes"][0].clone();
    is_refused(&admin.ask("PUT", &format!("/tenants/acme/routes/all{WAIT}"), Some(route)).await);
    is_refused(&rollback().await);
    is_refused(&import("").await);
    is_refused(&import("&replace=true").await);
    assert_eq!(admin.get("/status").await["revision"], 2);
    // It is other, and then the same again.
    is_refused(&admin.put(&tenant("acme", 3), WAIT).await);
    is_refused(&rollback().await);
    assert_eq!(admin.ask("DELETE", "/tenants/acme", None).await.status, 200);
    is_refused(&admin.put(&tenant("acme", 2), WAIT).await);
    is_refused(&admin.put(&tenant("acme", 2), WAIT).await);
    // The node comes back, and refuses what it refused.
    drop(refusing);
    let refusing = Running::start_with(&admin, &again, refuses()).await;
    is_refused(&admin.put(&tenant("acme", 2), WAIT).await);
    // Nobody else waits for that.
    for _ in 0..2 {
        assert_eq!(admin.put(&tenant("globex", 2), WAIT).await.status, 200);
    }
    // It has come to like it.
    refusing.manner.lock().unwrap().refuses = None;
    assert_eq!(admin.put(&tenant("globex", 3), WAIT).await.status, 200);
    let answer = admin.put(&tenant("acme", 2), WAIT).await;
    assert_eq!((answer.status, &answer.json()["changed"]), (200, &json!([])), "{answer:?}");
    assert_eq!(answer.json()["applied"]["nodes"], json!(["good", "refusing"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_has_applied_nothing_whatever_revision_it_tells() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    let nonce = connection.update().await[0].nonce;
    // As after the store was set back: what is in force is of revisions that mean nothing any more.
    let lost = Applied { nonce, revision: 99, refused: Vec::new(), refused_more: 0, lost: true };
    connection.say(FromNode::Applied(lost)).await;
    connection.say(FromNode::Heartbeat(Heartbeat { revision: 99, ready: true, draining: false })).await;
    assert!(eventually(async || admin.get("/nodes/n1").await["ready"] == true).await);
    assert_eq!(admin.get("/nodes/n1").await["revision"], 0);
    let answer = admin.put(&tenant("acme", 1), "?wait=applied&timeout=500ms").await;
    assert_eq!(answer.status, 504, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_something_is_asked_again_until_it_does_not() {
    let admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    let refuses = Some(("acme".to_owned(), "no such file: key".to_owned()));
    let node = Running::start_with(&admin, &hello("n1"), Manner { refuses, ..Manner::default() }).await;
    let refused = async |count: usize| {
        eventually(async || admin.get("/nodes/n1").await["refused"].as_array().map(Vec::len) == Some(count)).await
    };
    assert!(refused(1).await);
    // The file is there now, and nothing else has changed.
    node.manner.lock().unwrap().refuses = None;
    assert!(refused(0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_between_two_connections_is_waited_for_and_one_that_said_goodbye_is_not() {
    let admin = Admin::start().await;
    let mut holdings = Holdings::default();
    for node in ["n1", "n2"] {
        let (mut connection, _) = Connection::greet(&admin, &hello(node)).await;
        connection.apply(&mut holdings).await;
        if node == "n2" {
            connection.say(FromNode::Heartbeat(Heartbeat { revision: 0, ready: true, draining: true })).await;
        }
    }
    let gone = async || {
        let nodes = admin.get("/nodes").await["items"].clone();
        nodes.as_array().unwrap().iter().all(|node| node["live"] == false) && nodes[1]["draining"] == true
    };
    assert!(eventually(gone).await, "{}", admin.get("/nodes").await);
    let answer = admin.put(&tenant("acme", 1), "?wait=applied&timeout=500ms").await;
    assert_eq!(answer.status, 504, "{answer:?}");
    let missing = answer.json()["applied"]["missing"].clone();
    assert_eq!(
        (missing.as_array().map(Vec::len), &missing[0]["node"], &missing[0]["live"]),
        (Some(1), &json!("n1"), &json!(false))
    );

    let changed = tenant("acme", 2);
    let (answer, _back) = tokio::join!(admin.put(&changed, "?wait=applied&timeout=20s"), async {
        // It is written, and waited for.
        assert!(eventually(async || admin.get("/status").await["revision"] == 2).await);
        Running::start(&admin, "n1").await
    });
    assert_eq!((answer.status, &answer.json()["applied"]["nodes"]), (200, &json!(["n1"])), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_can_be_forgotten_and_one_that_is_there_cannot() {
    let admin = Admin::start().await;
    let (mut connection, _) = Connection::greet(&admin, &hello("n1")).await;
    connection.apply(&mut Holdings::default()).await;
    let there = admin.ask("DELETE", "/nodes/n1", None).await;
    assert_eq!(there.status, 409, "{there:?}");
    drop(connection);
    assert!(eventually(async || admin.get("/nodes/n1").await["live"] == false).await);
    assert_eq!(admin.ctl(&["nodes", "n1", "--forget"]).status.code(), Some(0));
    assert_eq!(admin.ask("GET", "/nodes/n1", None).await.status, 404);
    assert_eq!(admin.ask("DELETE", "/nodes/n1", None).await.status, 404);
    let answer = admin.put(&tenant("acme", 1), "?wait=applied&timeout=20s").await;
    assert_eq!((answer.status, &answer.json()["applied"]["nodes"]), (200, &json!([])), "{answer:?}");
}
