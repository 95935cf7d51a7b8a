//! A store that is set back, as by a backup, while replicas run on it.

use seiketsu_config::push::{Applied, FromNode, Hello};
use serde_json::json;

use crate::{
    admin::{Admin, eventually, execute, tenant},
    node::{Connection, Holdings, applied, hello},
    postgres::Postgres,
};

const BACKUP: &str = "CREATE TABLE kept_control AS SELECT * FROM control; \
    CREATE TABLE kept_tenants AS SELECT * FROM tenants;";

/// Tenants are the same ones, with other contents.
const RESTORE: &str = "BEGIN; \
    UPDATE tenants SET \
        revision = (SELECT kept.revision FROM kept_tenants kept WHERE kept.id = tenants.id), \
        content = (SELECT kept.content FROM kept_tenants kept WHERE kept.id = tenants.id); \
    DELETE FROM revision_changes WHERE revision > (SELECT revision FROM kept_control); \
    DELETE FROM revisions WHERE number > (SELECT revision FROM kept_control); \
    DELETE FROM audit_log WHERE number > (SELECT audit_number FROM kept_control); \
    DELETE FROM control; \
    INSERT INTO control SELECT * FROM kept_control; \
    COMMIT;";

/// Each node at another replica of the store.
async fn is_noticed(replicas: &[&Admin], database: &str) {
    let admin = replicas[0];
    admin.put(&tenant("acme", 1), "").await.revision();
    execute(database, BACKUP).await;
    for limit in 2..5 {
        admin.put(&tenant("acme", limit), "").await.revision();
    }
    let mut nodes = Vec::new();
    for (number, replica) in replicas.iter().enumerate() {
        let greeting = hello(&format!("n{number}"));
        let (mut connection, welcome) = Connection::greet(replica, &greeting).await;
        let mut holdings = Holdings::default();
        connection.apply(&mut holdings).await;
        assert_eq!((holdings.revision(), holdings.requests_per_minute("acme")), (4, Some(4)));
        nodes.push((greeting, connection, holdings, welcome.store));
    }
    let all_told = async || {
        let nodes = admin.get("/nodes").await;
        nodes["items"].as_array().unwrap().iter().all(|node| node["revision"] == 4)
    };
    assert!(eventually(all_told).await);

    execute(database, RESTORE).await;
    // The number that it gives is one that the nodes have, and means another thing.
    let lie = admin.put(&tenant("acme", 9), "?wait=applied&timeout=500ms").await;
    assert_eq!(lie.status, 504, "{lie:?}");
    let missing = lie.json()["applied"]["missing"].clone();
    assert_eq!(
        (missing.as_array().map(Vec::len), &missing[0]["revision"]),
        (Some(replicas.len()), &json!(0)),
        "{lie:?}"
    );
    assert_eq!(lie.json()["revision"], 2);
    for ((greeting, mut connection, mut holdings, store), replica) in nodes.into_iter().zip(replicas) {
        assert!(connection.end().await.1.contains("set back"));
        let greeting = Hello { holds: holdings.held, ..greeting };
        let (mut connection, welcome) = Connection::greet(replica, &greeting).await;
        assert_ne!(welcome.store, store, "its revisions are not those of the former one");
        let update = connection.apply(&mut holdings).await;
        assert_eq!(update[0].after, None, "the whole configuration");
        assert_eq!((holdings.revision(), holdings.requests_per_minute("acme")), (2, Some(9)));
    }
    let noted = async || admin.get("/audit?action=store_set_back").await["items"].as_array().unwrap().len() == 1;
    assert!(eventually(noted).await, "once, whichever replica was first");
    assert_eq!(admin.get("/audit/verify").await["intact"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_that_is_set_back_is_noticed_and_nodes_get_all_of_it() {
    let admin = Admin::start().await;
    is_noticed(&[&admin], &admin.sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_set_back_is_noticed_by_all_replicas() {
    let postgres = Postgres::start().await;
    let one = Admin::start_on(Some(&postgres.url), None).await;
    let two = Admin::start_on(Some(&postgres.url), Some(&one)).await;
    is_noticed(&[&one, &two], &postgres.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_set_back_while_nothing_ran_sends_nodes_what_it_has() {
    let mut admin = Admin::start().await;
    admin.put(&tenant("acme", 1), "").await.revision();
    execute(&admin.sqlite(), BACKUP).await;
    for limit in 2..5 {
        admin.put(&tenant("acme", limit), "").await.revision();
    }
    let greeting = hello("n1");
    let (mut connection, _) = Connection::greet(&admin, &greeting).await;
    let mut holdings = Holdings::default();
    connection.apply(&mut holdings).await;
    drop(connection);
    admin.process.0.kill().unwrap();
    admin.process.0.wait().unwrap();
    execute(&admin.sqlite(), RESTORE).await;
    admin.restart().await;

    // Revision 4 is beyond what the store has.
    let ahead = Hello { holds: holdings.held, ..greeting.clone() };
    let (mut connection, _) = Connection::greet(&admin, &ahead).await;
    let update = connection.update().await;
    assert_eq!((update[0].after, update[0].to.revision), (None, 1));
    drop(connection);

    // One that comes back later finds a revision 4 that is another one: the number says nothing. Its acme is not the one
    // that the store has, and was not changed since: it sees that it is not led to what it should be.
    for limit in 11..16 {
        admin.put(&tenant("globex", limit), "").await.revision();
    }
    let (mut connection, _) = Connection::greet(&admin, &ahead).await;
    let update = connection.update().await;
    let nonce = update[0].nonce;
    assert_eq!((update[0].after, update[0].to.revision), (Some(4), 6));
    assert!(!holdings.clone().take_if_it_fits(update));
    connection.say(FromNode::Applied(Applied { lost: true, ..applied(nonce, 4) })).await;
    let update = connection.apply(&mut holdings).await;
    assert_eq!((update[0].after, holdings.revision()), (None, 6));
    assert_eq!((holdings.requests_per_minute("acme"), holdings.requests_per_minute("globex")), (Some(1), Some(15)));
}
