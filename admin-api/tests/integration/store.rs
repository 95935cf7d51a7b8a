//! What the hub gets of the store.

use secrecy::SecretString;
use seiketsu_admin_api::store::{
    Author, ChangeSet, Changes, HeadDocument, Store, StoreSettings, StoredDocument, secrets::KeySource,
};
use seiketsu_config::{
    push::{Applied, Heartbeat, Hello, Sum},
    tenant::Tenant,
    values::Id,
};
use uuid::Uuid;

use crate::support::{self, Database, on_both};

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(database: &Database) -> Store {
    Store::connect(&StoreSettings { url: database.url().into(), key: KeySource::Given(support::KEY.into()) })
        .await
        .unwrap()
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

            let changes = store.changes_since(1).await.unwrap();
            assert_eq!((names(&changes.put), &changes.gone[..], changes.head), (vec![("a", 3)], &[id("c")][..], None));
            let whole = store.whole().await.unwrap();
            assert_eq!((names(&whole.put), whole.to.revision, whole.to.sum), (vec![("a", 3), ("b", 1)], 4, sum(&whole)));
            assert_eq!((changes.to, store.id()), (whole.to, whole.to.store));

            let head: HeadDocument = serde_json::from_value(serde_json::json!({ "plans": { "gold": {} } })).unwrap();
            let written = store.write(&by(), ChangeSet { head: Some(head), ..put(&[("c", 9)]) }, None).await.unwrap();
            assert_eq!((written.revision, written.head, &written.changed[..]), (5, true, &[id("c")][..]));
            let changes = store.changes_since(3).await.unwrap();
            assert_eq!((names(&changes.put), changes.gone.len()), (vec![("c", 5)], 0));
            assert!(changes.head.unwrap().content.contains("gold"));
            let whole = store.whole().await.unwrap();
            assert_eq!(whole.to.sum, sum(&whole));
            let nothing = store.changes_since(5).await.unwrap();
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
            let hello = Hello {
                node: id("eu-1"),
                run: Uuid::now_v7(),
                version: "0.1.0".to_owned(),
                region: Some(id("eu")),
                zone: None,
                schemas: vec![1],
                holds: None,
            };
            store.node_connected(&hello, replica).await.unwrap();
            let node = &store.nodes().await.unwrap()[0];
            assert_eq!((node.live, node.ready, node.revision, node.replica), (true, false, 0, Some(replica)));
            let applied = Applied { nonce: 1, revision: 7, refused: Vec::new(), lost: false };
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
fn the_tables_of_a_later_release_are_left_alone() {
    let database = Database::sqlite();
    run(async { drop(open(&database).await) });
    database.execute("INSERT INTO schema_steps (number) VALUES (99)");
    let refused = run(async {
        Store::connect(&StoreSettings { url: database.url().into(), key: KeySource::Given(support::KEY.into()) })
            .await
            .unwrap_err()
    });
    assert!(refused.to_string().contains("newer release"), "{refused}");
}
