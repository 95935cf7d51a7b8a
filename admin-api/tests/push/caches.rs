//! What nodes hold in their caches, purged and warmed by the control plane.

use std::net::SocketAddr;

use seiketsu_config::push::{Carried, FromNode, Hello, Purged, Task, ToNode};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    admin::{Admin, eventually, execute},
    gateway::{Gateway, Origin, field, served},
    node::{Connection, Running, hello},
    postgres::Postgres,
};

fn cached(id: &str, origin: SocketAddr) -> Value {
    let mut document = served(id, origin);
    document["policies"] = json!({ "auth": { "accept": ["anonymous"] }, "cache": {} });
    document
}

/// Whether it came from the cache. One that did not does now.
async fn is_stored(gateway: &Gateway, path: &str) -> bool {
    let answer = gateway.get("acme.test", path, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    field(&answer, "cache-status").is_some_and(|status| status.contains("hit"))
}

async fn store(gateways: &[&Gateway], path: &str) {
    for gateway in gateways {
        assert!(eventually(async || is_stored(gateway, path).await).await, "{path}");
    }
}

/// The way to the control plane, which can be cut.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Way {
    async fn to(there: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let is_open = open.subscribe();
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let mut far = TcpStream::connect(there).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open, task }
    }
}

async fn live(admin: &Admin, node: &str) -> bool {
    admin.get(&format!("/nodes/{node}")).await["live"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_is_gone_on_all_nodes_and_on_one_that_was_away_when_it_is_back() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    admin.put(&cached("acme", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let way = Way::to(admin.address).await;
    let one = Gateway::start(&admin, &folder.path().join("one")).await;
    let two = Gateway::start_by(&admin, way.address, &folder.path().join("two")).await;
    let ctl = |arguments: &[&str]| {
        let output = admin.ctl(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (path, what) in [
        ("/v1/cache/600?a", ["--url", "http://acme.test/v1/cache/600?a"]),
        ("/v1/cache/601", ["--prefix", "/v1/cache"]),
        ("/v1/cache/602", ["--prefix", "https://acme.test/v1/"]),
    ] {
        store(&[&one, &two], path).await;
        let told = ctl(&["purge", "acme", what[0], what[1], "--timeout", "20s"]);
        assert!(told.contains("one, two"), "{told}");
        for gateway in [&one, &two] {
            assert!(!is_stored(gateway, path).await, "{path}");
        }
    }

    // What cannot be purged is refused before a node is told, and the field is named.
    for (what, text) in [
        ("--url", "http://acme.test/../.."),
        ("--url", "http://acme.test/%zz"),
        ("--url", "http://globex.test/v1/cache/600"),
        ("--prefix", "http://globex.test/v1/"),
        ("--prefix", "/v1/*"),
        ("--tag", "t, u"),
    ] {
        let output = admin.ctl(&["purge", "acme", what, text]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains(&what[2..]), "{what} {text}: {told}");
        let mut body = json!({ "tenant": "acme" });
        body[&what[2..]] = text.into();
        assert_eq!(admin.ask("POST", "/cache/purge", Some(body)).await.status, 422, "{what} {text}");
    }

    let (kept, purged) = ("/v1/cache/603", "/v1/cache/604");
    store(&[&one, &two], kept).await;
    store(&[&one, &two], purged).await;
    way.open.send_replace(false);
    assert!(eventually(async || !live(&admin, "two").await).await, "it is away");
    let told = ctl(&["purge", "acme", "--url", &format!("http://acme.test{purged}")]);
    assert!(told.contains("one") && !told.contains("two"), "{told}");
    assert!(!is_stored(&one, purged).await);
    assert!(is_stored(&two, purged).await, "it cannot know yet");
    way.open.send_replace(true);
    assert!(eventually(async || live(&admin, "two").await).await, "it is back");
    // Told of again, since clocks may differ; whatever it was not told of stays.
    assert!(eventually(async || !is_stored(&two, purged).await).await, "it hears of it");
    assert!(is_stored(&two, kept).await);
    let trail = admin.get("/audit?action=purge_cache&tenant=acme").await;
    assert_eq!(trail["items"].as_array().unwrap().len(), 4, "{trail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_are_fetched_into_all_caches_before_anybody_asks() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    admin.put(&cached("acme", origin.address), "").await.revision();
    admin.put(&cached("globex", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let one = Gateway::start(&admin, &folder.path().join("one")).await;
    let two = Gateway::start(&admin, &folder.path().join("two")).await;
    let paths: Vec<String> = (600..620).map(|seconds| format!("/v1/cache/{seconds}")).collect();
    let file = folder.path().join("urls");
    let urls: Vec<String> = paths.iter().map(|path| format!("http://acme.test{path}\n")).collect();
    std::fs::write(&file, urls.concat()).unwrap();
    let warmed = admin.ctl(&["warm", "acme", "--file", file.to_str().unwrap(), "--output", "json"]);
    assert!(warmed.status.success(), "{warmed:?}");
    let warmed: Value = serde_json::from_slice(&warmed.stdout).unwrap();
    for node in 0..2 {
        assert_eq!((&warmed["nodes"][node]["state"], &warmed["nodes"][node]["stored"]), (&json!("done"), &json!(20)));
    }
    for gateway in [&one, &two] {
        for path in &paths {
            assert!(is_stored(gateway, path).await, "{path}");
        }
    }
    // What is not a response to be stored is told, and another tenant's URLs are not fetched.
    let failed = admin.ctl(&["warm", "acme", "http://acme.test/v1/nothing-here-at-all"]);
    assert!(String::from_utf8(failed.stdout.clone()).unwrap().contains("one"), "{failed:?}");
    let body = json!({ "tenant": "acme", "urls": ["http://globex.test/v1/cache/600"] });
    let refused = admin.ask("POST", "/cache/warm", Some(body)).await;
    assert_eq!(refused.status, 422, "{refused:?}");
}

/// A node that takes orders.
fn able(node: &str) -> Hello {
    Hello { orders: true, ..hello(node) }
}

async fn next_order(connection: &mut Connection) -> (uuid::Uuid, Task) {
    loop {
        if let ToNode::Order(order) = connection.next().await.unwrap() {
            return (order.id, order.task);
        }
    }
}

async fn purge(admin: &Admin, tag: &str, timeout: &str) -> crate::admin::Answer {
    let body = json!({ "tenant": "acme", "tag": tag });
    admin.ask("POST", &format!("/cache/purge?timeout={timeout}"), Some(body)).await
}

fn tagged(tag: &str) -> Task {
    Task::Purge { tenant: "acme".parse().unwrap(), what: Purged::Tag(tag.to_owned()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_have_not_carried_it_out_are_named_with_the_reason() {
    let admin = Admin::start().await;
    admin.put(&crate::admin::tenant("acme", 1), "").await.revision();
    let old = Running::start(&admin, "old").await;
    let (mut slow, _) = Connection::greet(&admin, &able("slow")).await;
    let answer = purge(&admin, "t1", "1s").await;
    assert_eq!(answer.status, 504, "{answer:?}");
    let missing = answer.json()["carried"]["missing"].clone();
    assert_eq!(missing[0], json!({ "node": "old", "reason": "its release takes no orders: upgrade it" }));
    assert_eq!(missing[1], json!({ "node": "slow", "reason": "it has not answered yet" }));
    drop(old);
    // A node of which nothing is known begins anew.
    assert!(matches!(next_order(&mut slow).await, (_, Task::PurgeEverything)));
    let (id, task) = next_order(&mut slow).await;
    assert_eq!(task, tagged("t1"));
    let error = Some("no disk".to_owned());
    slow.say(FromNode::Carried(Carried { id, done: true, error, warmed: None })).await;
    let answer = purge(&admin, "t1", "500ms").await;
    assert_eq!(answer.status, 504, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_reaches_the_nodes_of_all_replicas_and_is_told_again_until_it_is_answered() {
    let postgres = Postgres::start().await;
    let here = Admin::start_on(Some(&postgres.url), None).await;
    let there = Admin::start_on(Some(&postgres.url), Some(&here)).await;
    here.put(&crate::admin::tenant("acme", 1), "").await.revision();
    let greeting = able("n1");
    let (mut node, _) = Connection::greet(&there, &greeting).await;
    assert!(matches!(next_order(&mut node).await, (_, Task::PurgeEverything)));

    let asked = tokio::join!(purge(&here, "t1", "20s"), async {
        let (id, task) = next_order(&mut node).await;
        assert_eq!(task, tagged("t1"));
        node.say(FromNode::Carried(Carried { id, done: true, error: None, warmed: None })).await;
    });
    assert_eq!((asked.0.status, &asked.0.json()["nodes"]), (200, &json!(["n1"])));

    // It is lost on the way: the connection breaks before it is answered.
    let answer = purge(&here, "t2", "500ms").await;
    assert_eq!(answer.status, 504, "{answer:?}");
    drop(node);
    let (mut node, _) = Connection::greet(&here, &greeting).await;
    let (_, task) = next_order(&mut node).await;
    assert_eq!(task, tagged("t2"), "and what was answered is not told again");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_were_refused_hide_none_behind_them() {
    let admin = Admin::start().await;
    admin.put(&crate::admin::tenant("acme", 1), "").await.revision();
    let (mut node, _) = Connection::greet(&admin, &able("n1")).await;
    assert!(matches!(next_order(&mut node).await, (_, Task::PurgeEverything)));
    // More than are read at once, and none of them given by the control plane.
    let forged = "INSERT INTO orders (number, id, tenant, lasting, content, at) \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1100) \
         SELECT i, randomblob(16), 'acme', true, '{}', created_at FROM n, operators; \
         UPDATE control SET orders = 1100";
    execute(&admin.sqlite(), forged).await;
    // And some of them cannot even be read.
    execute(&admin.sqlite(), "UPDATE orders SET at = 'nonsense' WHERE number <= 700").await;
    let (answer, ()) = tokio::join!(purge(&admin, "t1", "20s"), async {
        let (id, task) = next_order(&mut node).await;
        assert_eq!(task, tagged("t1"));
        node.say(FromNode::Carried(Carried { id, done: true, error: None, warmed: None })).await;
    });
    assert_eq!((answer.status, &answer.json()["nodes"]), (200, &json!(["n1"])), "{answer:?}");
}
