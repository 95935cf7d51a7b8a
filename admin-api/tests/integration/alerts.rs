//! Rules, and what they find.

use secrecy::SecretString;
use seiketsu_admin_api::store::{Store, StoreSettings, secrets::KeySource};
use seiketsu_config::push::{Applied, Heartbeat, Hello, Refused};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    events::Stream,
    support::{Admin, Client, Database, KEY, on_both, tenant, wait_until},
};

/// A rule about what expires.
pub fn expiring(name: &str, tenant: Option<&str>, days: u32) -> Value {
    json!({
        "name": name, "severity": "warning", "tenant": tenant,
        "condition": { "kind": "expiring", "within_days": days },
    })
}

fn in_days(days: i64) -> String {
    (OffsetDateTime::now_utc() + Duration::days(days)).format(&Rfc3339).unwrap()
}

/// A tenant with a key that expires.
pub fn with_key(id: &str, days: i64) -> Value {
    let mut tenant = tenant(id);
    let hash = "0".repeat(64);
    tenant["consumers"] = json!([{ "id": "app", "keys": [{ "prefix": "testkey1", "hash": format!("sha256:{hash}"), "expires": in_days(days) }] }]);
    tenant
}

fn alerts(client: &Client, rule: &str) -> Vec<Value> {
    let all = client.get("/alerts?limit=1000").is(200).json();
    all["items"].as_array().unwrap().iter().filter(|alert| alert["rule"] == rule).cloned().collect()
}

/// The alert of a rule, when there is one.
pub fn alert_of(client: &Client, rule: &str) -> Value {
    wait_until("the rule finds something", || !alerts(client, rule).is_empty());
    alerts(client, rule).remove(0)
}

fn comes_to(client: &Client, rule: &str, state: &str) -> Value {
    wait_until(&format!("the alert of {rule} is {state}"), || {
        alerts(client, rule).first().is_some_and(|alert| alert["state"] == state)
    });
    alerts(client, rule).remove(0)
}

fn rule(name: &str, condition: Value) -> Value {
    json!({ "name": name, "severity": "critical", "condition": condition })
}

/// The nodes of a control plane, without any: what it is told of them.
struct Nodes {
    runtime: tokio::runtime::Runtime,
    store: Store,
    replica: Uuid,
}

impl Nodes {
    fn of(database: &Database) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let key = KeySource::Given(KEY.into());
        let settings = StoreSettings { url: SecretString::from(database.url()), key };
        let store = runtime.block_on(Store::connect(&settings)).unwrap();
        Self { runtime, store, replica: Uuid::now_v7() }
    }

    fn connect(&self, name: &str, region: &str) -> Hello {
        let hello = Hello {
            node: name.parse().unwrap(),
            run: Uuid::now_v7(),
            version: "0.1.0".to_owned(),
            region: Some(region.parse().unwrap()),
            zone: None,
            schemas: vec![1],
            holds: None,
            orders: false,
            usage: false,
        };
        self.runtime.block_on(self.store.node_connected(&hello, self.replica)).unwrap();
        hello
    }

    fn beat(&self, hello: &Hello, ready: bool, draining: bool) {
        let heartbeat = Heartbeat { revision: 0, ready, draining };
        self.runtime.block_on(self.store.node_heard(&hello.node, hello.run, &heartbeat)).unwrap();
    }

    fn apply(&self, hello: &Hello, revision: u64, refused: Vec<Refused>) {
        let applied = Applied { nonce: 1, revision, refused, refused_more: 0, lost: false };
        self.runtime.block_on(self.store.node_applied(&hello.node, hello.run, &applied)).unwrap();
    }

    fn leave(&self, hello: &Hello) {
        self.runtime.block_on(self.store.node_left(&hello.node, hello.run, self.replica)).unwrap();
    }
}

on_both! {
    fn an_alert_opens_is_acknowledged_and_is_resolved_when_it_is_over(database) {
        let admin = database.admin();
        let owner = admin.client();
        let mut stream = Stream::open(&owner, "?kind=alert.opened,alert.acknowledged,alert.resolved", None);
        owner.post("/tenants", &with_key("acme", 10)).is(201);
        owner.post("/alerts/rules", &expiring("keys", Some("acme"), 30)).is(201);
        let alert = alert_of(&owner, "keys");
        assert_eq!((&alert["state"], &alert["tenant"], &alert["severity"]), (&json!("open"), &json!("acme"), &json!("warning")));
        assert!(alert["summary"].as_str().unwrap().contains("testkey1"), "{alert}");
        let path = format!("/alerts/{}/acknowledge", alert["id"].as_str().unwrap());
        let acknowledged = owner.post(&path, &json!({})).is(200).json();
        assert_eq!((&acknowledged["state"], &acknowledged["acknowledged_by"]), (&json!("acknowledged"), &json!("owner")));
        owner.post(&path, &json!({})).is(200);
        // A change that leaves it so opens no other one.
        owner.put("/tenants/acme", &with_key("acme", 9)).is(200);
        owner.put("/tenants/acme", &tenant("acme")).is(200);
        let over = comes_to(&owner, "keys", "resolved");
        assert_ne!(over["resolved_at"], Value::Null);
        owner.post(&path, &json!({})).is_problem(409, ":conflict");
        assert_eq!(alerts(&owner, "keys").len(), 1);
        assert_eq!(owner.get("/alerts?state=open&tenant=acme").json()["items"], json!([]));
        let id = |event: &Value| event["detail"]["alert"].clone();
        for kind in ["alert.opened", "alert.acknowledged", "alert.resolved"] {
            let event = loop {
                let event = stream.next_of(kind);
                if event["detail"]["rule"] == "keys" { break event }
            };
            assert_eq!((id(&event), &event["tenants"]), (alert["id"].clone(), &json!(["acme"])));
        }
        for action in ["open_alert", "acknowledge_alert", "resolve_alert"] {
            assert!(owner.get(&format!("/audit?tenant=acme&action={action}")).json()["items"][0]["detail"].is_object(), "{action}");
        }
        assert_eq!(owner.get("/audit/verify").json()["intact"], true);
    }

    fn what_is_wrong_with_nodes_is_found_and_what_was_planned_is_not(database) {
        let admin = database.admin();
        let owner = admin.client();
        for (name, condition) in [
            ("gone", json!({ "kind": "node_gone", "for_seconds": 0 })),
            ("unready", json!({ "kind": "node_not_ready", "for_seconds": 0 })),
            ("refuses", json!({ "kind": "node_refuses", "for_seconds": 0 })),
            ("behind", json!({ "kind": "node_behind", "for_seconds": 0 })),
            ("region", json!({ "kind": "region_without_node", "for_seconds": 0 })),
            ("nowhere", json!({ "kind": "region_without_node", "for_seconds": 0, "region": "moon" })),
        ] {
            owner.post("/alerts/rules", &rule(name, condition)).is(201);
        }
        let newest = owner.post("/tenants", &tenant("acme")).is(201).json()["revision"].as_u64().unwrap();
        let nodes = Nodes::of(database);
        let (one, planned) = (nodes.connect("n1", "eu"), nodes.connect("n2", "us"));
        assert!(comes_to(&owner, "behind", "open")["summary"].as_str().unwrap().contains("newest revision"));
        let refused = Refused { tenant: Some("acme".parse().unwrap()), errors: vec!["no such file".to_owned()] };
        for node in [&one, &planned] {
            nodes.apply(node, newest, Vec::new());
        }
        comes_to(&owner, "unready", "open");
        comes_to(&owner, "behind", "resolved");
        nodes.apply(&one, newest, vec![refused]);
        let found = comes_to(&owner, "refuses", "open");
        assert_eq!(found["tenant"], "acme");
        assert!(found["summary"].as_str().unwrap().contains("no such file"), "{found}");
        nodes.apply(&one, newest, Vec::new());
        comes_to(&owner, "refuses", "resolved");
        nodes.beat(&planned, true, true);
        nodes.leave(&planned);
        nodes.beat(&one, true, false);
        nodes.leave(&one);
        comes_to(&owner, "unready", "resolved");
        comes_to(&owner, "gone", "open");
        wait_until("both regions are without nodes", || alerts(&owner, "region").len() == 2);
        assert_eq!(alerts(&owner, "nowhere")[0]["subject"], "region moon");
        nodes.connect("n1", "eu");
        comes_to(&owner, "gone", "resolved");
        assert_eq!(alerts(&owner, "gone").len(), 1, "the node that said that it ends is not missed");
    }

    fn logins_tokens_and_the_trail_are_watched(database) {
        let mut admin = database.admin();
        let owner = admin.client();
        let window = json!({ "kind": "login_failures", "count": 10, "window_seconds": 60 });
        owner.post("/alerts/rules", &rule("stuffing", window)).is(201);
        for _ in 0..10 {
            owner.without_token().get("/status").is(401);
        }
        let me = owner.get("/operators").json()["items"][0]["id"].clone();
        let token = json!({ "kind": "operator", "name": "old", "operator": me, "expires_at": in_days(3) });
        let token = owner.post("/tokens", &token).is(201).json();
        assert!(comes_to(&owner, "expiring", "open")["summary"].as_str().unwrap().contains("\"old\""));
        assert!(alerts(&owner, "stuffing").is_empty(), "ten are not more than ten");
        owner.without_token().get("/status").is(401);
        assert!(comes_to(&owner, "stuffing", "open")["summary"].as_str().unwrap().contains("127.0.0.1"));
        owner.delete(&format!("/tokens/{}", token["id"].as_str().unwrap())).is(204);
        comes_to(&owner, "expiring", "resolved");
        assert!(alerts(&owner, "audit-fault").is_empty());
        database.execute("UPDATE audit_log SET actor = 'somebody' WHERE number = 2");
        admin.restart(database);
        let found = comes_to(&admin.client(), "audit-fault", "open");
        assert!(found["summary"].as_str().unwrap().contains("audit_log 2"), "{found}");
    }

    fn rules_are_changed_as_everything_else_is(database) {
        let mut admin = database.admin();
        let owner = admin.client();
        let first = owner.get("/alerts/rules").json()["items"].as_array().unwrap().len();
        assert!(first >= 9);
        let body = expiring("mine", None, 30);
        let key = [("idempotency-key", "k"), ("content-type", "application/json")];
        let made = owner.send("POST", "/alerts/rules", &key, body.to_string().as_bytes()).is(201);
        assert_eq!(owner.send("POST", "/alerts/rules", &key, body.to_string().as_bytes()).is(201).json(), made.json());
        owner.post("/alerts/rules", &body).is_problem(409, ":conflict");
        let path = format!("/alerts/rules/{}", made.json()["id"].as_str().unwrap());
        let etag = owner.get(&path).is(200).etag().to_owned();
        owner.put_if(&path, &expiring("mine", None, 5), Some(&etag)).is(200);
        let refused = owner.put_if(&path, &expiring("mine", None, 6), Some(&etag)).is_problem(412, ":changed-meanwhile");
        assert_eq!(refused["current"]["condition"]["within_days"], 5);
        for (wrong, place) in [
            (expiring("mine", None, 0), "condition.within_days"),
            (json!({ "name": "x", "severity": "warning", "tenant": "acme", "condition": { "kind": "node_gone" } }), "tenant"),
        ] {
            assert_eq!(owner.post("/alerts/rules", &wrong).is_problem(422, ":invalid")["errors"][0]["path"], place);
        }
        owner.post("/alerts/rules", &rule("x", json!({ "kind": "nonsense" }))).is_problem(422, ":invalid");
        // An operator of one tenant makes rules for that one, and for no other, nor for all.
        let globex = admin.operator("gil", "operator", Some(&["globex"]));
        globex.post("/alerts/rules", &expiring("mine", Some("globex"), 5)).is(201);
        globex.post("/alerts/rules", &expiring("mine", None, 5)).is_problem(403, ":forbidden");
        globex.get(&path).is_problem(403, ":forbidden");
        globex.delete(&path).is_problem(403, ":forbidden");
        owner.delete(&path).is(204);
        owner.get(&path).is_problem(404, ":not-found");
        // What was deleted of the first ones does not come back.
        let rules = owner.get("/alerts/rules").json();
        owner.delete(&format!("/alerts/rules/{}", rules["items"][0]["id"].as_str().unwrap())).is(204);
        admin.restart(database);
        assert_eq!(admin.client().get("/alerts/rules").json()["items"].as_array().unwrap().len(), first);
    }
}

#[test]
fn one_replica_watches_and_another_takes_over_when_it_dies() {
    let database = Database::postgres();
    let mut one = database.admin();
    let two = Admin::start(&database, tempfile::tempdir().unwrap(), &[]);
    let there = Client { token: Some(one.token.clone()), ..two.client() };
    // It may not have been written to yet.
    let log = |admin: &Admin| std::fs::read_to_string(admin.folder.path().join("log")).unwrap_or_default();
    let leads = |admin: &Admin| log(admin).contains("this replica leads now");
    wait_until("one of them leads", || leads(&one) || leads(&two));
    there.post("/tenants", &with_key("acme", 10)).is(201);
    there.post("/alerts/rules", &expiring("first", Some("acme"), 30)).is(201);
    assert_eq!(alert_of(&there, "first")["state"], "open");
    assert!(leads(&one) && !leads(&two), "the first one that came leads");
    one.process.0.kill().unwrap();
    one.process.wait();
    wait_until("the other one leads", || leads(&two));
    there.post("/alerts/rules", &expiring("second", Some("acme"), 30)).is(201);
    comes_to(&there, "second", "open");
    // What the one has found stays one alert.
    assert_eq!(alerts(&there, "first").len(), 1);
    assert_eq!(alerts(&there, "first")[0]["state"], "open");
}

#[test]
fn a_store_that_did_not_take_what_was_written_is_told_of_when_it_does_again() {
    let mut database = Database::postgres();
    let admin = database.admin();
    let client = admin.client();
    let condition = json!({ "kind": "store_writes", "failures": 2, "window_seconds": 20 });
    client.post("/alerts/rules", &rule("writes", condition)).is(201);
    wait_until("it leads", || admin.log().contains("this replica leads now"));
    let Database::Postgres(server) = &mut database else { unreachable!() };
    server.stop();
    wait_until("it is noticed", || admin.log().matches("a trial of the store failed").count() >= 2);
    server.run();
    wait_until("it answers again", || client.get("/status").status == 200);
    comes_to(&client, "writes", "open");
    comes_to(&client, "writes", "resolved");
}
