//! What the hub gets of the store.

use std::collections::BTreeMap;

use secrecy::SecretString;
use seiketsu_admin_api::store::{
    Author, ChangeSet, Changes, HeadDocument, Store, StoredDocument, operators::ManageError,
};
use seiketsu_config::{
    push::{Applied, Heartbeat, Hello, Refused, Sum, Task},
    tenant::Tenant,
    values::Id,
};
use uuid::Uuid;

use crate::support::{self, Database, hello, on_both};

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(database: &Database) -> Store {
    Store::connect(&support::settings(database.url())).await.unwrap()
}

fn by() -> Author {
    Author { id: None, name: "test".to_owned(), address: None, request: "r".to_owned(), action: "test" }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn tenant(name: &str, rate: u64) -> Tenant {
    serde_json::from_value(support::tenant_with_rate(name, rate)).unwrap()
}

fn put(tenants: &[(&str, u64)]) -> ChangeSet {
    ChangeSet { put: tenants.iter().map(|(name, rate)| tenant(name, *rate)).collect(), ..ChangeSet::default() }
}

fn names(documents: &[StoredDocument]) -> Vec<(&str, u64)> {
    documents.iter().map(|document| (document.tenant.as_ref().unwrap().as_str(), document.revision)).collect()
}

fn sum(whole: &Changes) -> Sum {
    let documents = whole.head.iter().chain(&whole.put);
    documents.fold(Sum::default(), |sum, document| sum.with(Sum::of(document.tenant.as_ref(), &document.content)))
}

on_both! {
    fn what_has_changed_since_a_revision_is_told_once(database) {
        run(async {
            let store = open(database).await;
            let empty = store.whole().await.unwrap();
            assert_eq!((empty.to.revision, empty.to.sum, empty.put.len()), (0, sum(&empty), 0));
            store.write(&by(), put(&[("b", 1), ("a", 1), ("c", 1)]), None).await.unwrap();
            store.write(&by(), put(&[("a", 2)]), None).await.unwrap();
            store.write(&by(), put(&[("a", 3)]), None).await.unwrap();
            let remove = ChangeSet { remove: vec![id("c"), id("never")], ..ChangeSet::default() };
            store.write(&by(), remove, None).await.unwrap();

            let changes = store.changes_since(1, 2).await.unwrap().unwrap();
            assert_eq!((names(&changes.put), &changes.gone[..], changes.head), (vec![("a", 3)], &[id("c")][..], None));
            let whole = store.whole().await.unwrap();
            assert_eq!((names(&whole.put), whole.to.revision, whole.to.sum), (vec![("a", 3), ("b", 1)], 4, sum(&whole)));
            assert_eq!((changes.to, store.id()), (whole.to, whole.to.store));

            let head: HeadDocument = serde_json::from_value(serde_json::json!({ "plans": { "gold": {} } })).unwrap();
            let written = store.write(&by(), ChangeSet { head: Some(head), ..put(&[("c", 9)]) }, None).await.unwrap();
            assert_eq!((written.revision, written.head, &written.changed[..]), (5, true, &[id("c")][..]));
            let changes = store.changes_since(3, 99).await.unwrap().unwrap();
            assert_eq!((names(&changes.put), changes.gone.len()), (vec![("c", 5)], 0));
            assert!(changes.head.unwrap().content.contains("gold"));
            let whole = store.whole().await.unwrap();
            assert_eq!(whole.to.sum, sum(&whole));
            assert!(store.changes_since(1, 1).await.unwrap().is_none(), "two are more than one");
            let nothing = store.changes_since(5, 0).await.unwrap().unwrap();
            assert!(nothing.put.is_empty() && nothing.gone.is_empty() && nothing.head.is_none());
        });
    }

    fn another_replica_hears_of_a_change_at_once(database) {
        run(async {
            let (one, other) = (open(database).await, open(database).await);
            assert_eq!(one.id(), other.id());
            let mut newest = other.newest();
            assert_eq!(*newest.borrow_and_update(), 0);
            one.write(&by(), put(&[("a", 1)]), None).await.unwrap();
            assert_eq!(*one.newest().borrow(), 1);
            tokio::time::timeout(support::PATIENCE, newest.wait_for(|newest| *newest == 1)).await.unwrap().unwrap();
        });
    }

    fn nodes_are_live_while_they_are_connected_and_heard_of(database) {
        run(async {
            let store = open(database).await;
            let replica = Uuid::now_v7();
            let hello = hello("eu-1", Some("eu"));
            store.node_connected(&hello, replica).await.unwrap();
            let node = &store.nodes().await.unwrap()[0];
            assert_eq!((node.live, node.ready, node.revision, node.replica), (true, false, 0, Some(replica)));
            let applied = Applied { nonce: 1, revision: 7, refused: Vec::new(), refused_more: 0, lost: false };
            let mut told = store.applied();
            store.node_applied(&hello.node, hello.run, &applied).await.unwrap();
            assert!(told.has_changed().unwrap());
            told.mark_unchanged();
            let heartbeat = Heartbeat { revision: 7, ready: true, draining: false };
            store.node_heard(&hello.node, hello.run, &heartbeat).await.unwrap();
            let node = store.node(&hello.node).await.unwrap().unwrap();
            assert_eq!((node.live, node.ready, node.revision, node.region.as_deref()), (true, true, 7, Some("eu")));
            // What comes late of a run before is passed over.
            let next = Hello { run: Uuid::now_v7(), ..hello.clone() };
            store.node_connected(&next, replica).await.unwrap();
            store.node_applied(&hello.node, hello.run, &applied).await.unwrap();
            store.node_left(&hello.node, hello.run, replica).await.unwrap();
            let node = store.node(&hello.node).await.unwrap().unwrap();
            assert_eq!((node.live, node.revision, node.run), (true, 0, next.run));
            // And of a connection to another replica, which it had before.
            store.node_left(&hello.node, next.run, Uuid::now_v7()).await.unwrap();
            assert!(store.nodes().await.unwrap()[0].live);
            store.node_left(&hello.node, next.run, replica).await.unwrap();
            assert!(!store.nodes().await.unwrap()[0].live);
        });
    }

    fn a_heartbeat_that_comes_late_of_a_connection_before_tells_nothing_of_what_is_in_force(database) {
        run(async {
            let store = open(database).await;
            let hello = hello("eu-1", None);
            let refused = vec![Refused { tenant: Some(id("acme")), errors: vec!["no such file".to_owned()] }];
            let applied = Applied { nonce: 1, revision: 7, refused, refused_more: 0, lost: false };
            store.node_connected(&hello, Uuid::now_v7()).await.unwrap();
            store.node_applied(&hello.node, hello.run, &applied).await.unwrap();
            // Connected anew, it has not answered yet what it refuses.
            store.node_connected(&hello, Uuid::now_v7()).await.unwrap();
            let heartbeat = Heartbeat { revision: 7, ready: true, draining: false };
            store.node_heard(&hello.node, hello.run, &heartbeat).await.unwrap();
            let node = store.node(&hello.node).await.unwrap().unwrap();
            assert_eq!((node.ready, node.revision, node.refused.len()), (true, 0, 0));
        });
    }

    fn nodes_are_heard_of_while_very_much_is_written(database) {
        run(async {
            let store = open(database).await;
            let hello = hello("eu-1", None);
            store.node_connected(&hello, Uuid::now_v7()).await.unwrap();
            let names: Vec<String> = (0..3000).map(|number| format!("t{number}")).collect();
            let change = put(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
            let writing = { let store = store.clone(); tokio::spawn(async move { store.write(&by(), change, None).await }) };
            // The write has begun when it holds its turn: another one does not get it.
            let heartbeat = Heartbeat { revision: 0, ready: true, draining: false };
            let mut heard = 0;
            while !writing.is_finished() {
                let before = store.node(&hello.node).await.unwrap().unwrap().heard_at;
                store.node_heard(&hello.node, hello.run, &heartbeat).await.unwrap();
                let node = store.node(&hello.node).await.unwrap().unwrap();
                assert!(node.live && node.ready && node.heard_at >= before);
                heard += usize::from(!writing.is_finished());
                tokio::task::yield_now().await;
            }
            assert_eq!(writing.await.unwrap().unwrap().changed.len(), 3000);
            assert!(heard > 3, "{heard}");
        });
    }

    fn a_tenant_is_given_so_much_to_do_in_a_day_and_others_have_theirs(database) {
        run(async {
            let store = open(database).await;
            let list = |tenant: &str| Task::Warm {
                urls: vec![format!("https://{tenant}.example/{}", "x".repeat(1 << 20))],
                headers: BTreeMap::default(),
            };
            let (acme, globex) = (id("acme"), id("globex"));
            let mut given = 0;
            let refused = loop {
                match store.give_order(&by(), &acme, list("acme"), None).await {
                    Ok(_) => given += 1,
                    Err(error) => break error,
                }
                assert!(given < 100, "without end");
            };
            assert!(matches!(refused, ManageError::Orders(tenant) if tenant == acme) && given > 20, "{given}");
            store.give_order(&by(), &globex, list("globex"), None).await.unwrap();
            // After a day there is room again.
            database.execute("UPDATE orders SET at = '2020-01-01T00:00:00Z'");
            store.give_order(&by(), &acme, list("acme"), None).await.unwrap();
        });
    }

    fn nodes_that_were_not_heard_of_for_long_are_forgotten(database) {
        let admin = support::Admin::start(database, tempfile::tempdir().unwrap(), &["--forget-nodes-after", "2s"]);
        run(async {
            // Another replica, to which it was connected.
            let store = open(database).await;
            let hello = hello("eu-1", None);
            store.node_connected(&hello, Uuid::now_v7()).await.unwrap();
        });
        let client = admin.client();
        client.get("/nodes/eu-1").is(200);
        support::wait_until("it is forgotten", || client.get("/nodes/eu-1").status == 404);
        assert_eq!(database.number("SELECT CAST(COUNT(*) AS BIGINT) AS number FROM nodes"), 0);
    }

    fn a_token_for_nodes_is_none_for_operators(database) {
        run(async {
            let store = open(database).await;
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(store.first_tokens(folder.path()).await.unwrap().len(), 2);
            assert_eq!(store.first_tokens(folder.path()).await.unwrap().len(), 0);
            let read = |file: &str| -> SecretString {
                std::fs::read_to_string(folder.path().join(file)).unwrap().trim().to_owned().into()
            };
            let (node, operator) = (read("node-token"), read("admin-token"));
            assert!(store.node_token(&node).await.unwrap().is_some());
            assert!(store.node_token(&operator).await.unwrap().is_none());
            assert!(store.operator_token(&node).await.unwrap().is_none());
            assert_eq!(store.operator_token(&operator).await.unwrap().unwrap().0.name, id("owner"));
        });
    }
}

#[test]
fn a_replica_that_starts_waits_for_one_that_brings_the_tables_up_to_date() {
    let database = Database::postgres();
    run(async {
        use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
        let other = sea_orm::Database::connect(database.url()).await.unwrap();
        let migrating = other.begin().await.unwrap();
        let lock = 0x5e1e_7500_i64;
        migrating.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({lock})")).await.unwrap();
        let url = database.url();
        let starting = tokio::spawn(async move { Store::connect(&support::settings(url)).await.is_ok() });
        // Longer than any request may wait for a lock.
        let waits = "SELECT CAST(COUNT(*) AS BIGINT) AS number FROM pg_stat_activity \
                     WHERE wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '2s'";
        let until = std::time::Instant::now() + support::PATIENCE;
        loop {
            let ask = sea_orm::Statement::from_string(other.get_database_backend(), waits);
            let row = other.query_one_raw(ask).await.unwrap().unwrap();
            if row.try_get::<i64>("", "number").unwrap() > 0 {
                break;
            }
            assert!(!starting.is_finished() && std::time::Instant::now() < until, "it does not wait");
            tokio::task::yield_now().await;
        }
        migrating.commit().await.unwrap();
        assert!(starting.await.unwrap());
    });
}

#[test]
fn the_tables_of_a_later_release_are_left_alone() {
    let database = Database::sqlite();
    run(async { drop(open(&database).await) });
    database.execute("INSERT INTO schema_steps (number) VALUES (99)");
    let refused = run(async { Store::connect(&support::settings(database.url())).await.unwrap_err() });
    assert!(refused.to_string().contains("newer release"), "{refused}");
}
