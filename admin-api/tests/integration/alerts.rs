//! Rules, and what they find.

use std::{collections::HashMap, sync::Arc};

use secrecy::SecretString;
use seiketsu_admin_api::store::{Store, StoreSettings, secrets::KeySource};
use seiketsu_config::push::{
    Applied, Heartbeat, Hello, Refused,
    usage::{Counts, Statuses, UsagePage, UsageRecord},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    events::Stream,
    support::{Admin, Client, Database, KEY, hello, on_both, tenant, wait_until},
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

/// The nodes of a control plane, without any: what it is told of them. Those that are connected beat until the test ends,
/// so that none is gone because a test takes its time.
struct Nodes {
    runtime: tokio::runtime::Runtime,
    store: Store,
    replica: Uuid,
    connected: Arc<Mutex<HashMap<Uuid, (Hello, Heartbeat)>>>,
}

impl Nodes {
    fn of(database: &Database) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let key = KeySource::Given(KEY.into());
        let settings = StoreSettings { url: SecretString::from(database.url()), key };
        let store = runtime.block_on(Store::connect(&settings)).unwrap();
        let connected = Arc::<Mutex<HashMap<Uuid, (Hello, Heartbeat)>>>::default();
        let (beating, all) = (store.clone(), Arc::clone(&connected));
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                ticks.tick().await;
                // Held, so that none beats that has just left.
                for (hello, heartbeat) in all.lock().await.values() {
                    // The store may be away for a moment; the next beat tells.
                    let _ = beating.node_heard(&hello.node, hello.run, heartbeat).await;
                }
            }
        });
        Self { runtime, store, replica: Uuid::now_v7(), connected }
    }

    fn connect(&self, name: &str, region: &str) -> Hello {
        let hello = hello(name, Some(region));
        self.runtime.block_on(async {
            let mut connected = self.connected.lock().await;
            self.store.node_connected(&hello, self.replica).await.unwrap();
            let heartbeat = Heartbeat { revision: 0, ready: false, draining: false };
            connected.insert(hello.run, (hello.clone(), heartbeat));
        });
        hello
    }

    fn beat(&self, hello: &Hello, ready: bool, draining: bool) {
        self.change(hello, |heartbeat| (heartbeat.ready, heartbeat.draining) = (ready, draining));
    }

    fn apply(&self, hello: &Hello, revision: u64, refused: Vec<Refused>) {
        self.change(hello, |heartbeat| heartbeat.revision = revision);
        let applied = Applied { nonce: 1, revision, refused, refused_more: 0, lost: false };
        self.runtime.block_on(self.store.node_applied(&hello.node, hello.run, &applied)).unwrap();
    }

    /// What it says from now on.
    fn change(&self, hello: &Hello, change: impl FnOnce(&mut Heartbeat)) {
        self.runtime.block_on(async {
            let mut connected = self.connected.lock().await;
            let (_, heartbeat) = connected.get_mut(&hello.run).unwrap();
            change(heartbeat);
            self.store.node_heard(&hello.node, hello.run, heartbeat).await.unwrap();
        });
    }

    fn leave(&self, hello: &Hello) {
        self.runtime.block_on(async {
            self.connected.lock().await.remove(&hello.run);
            self.store.node_left(&hello.node, hello.run, self.replica).await.unwrap();
        });
    }
}

/// Rules of another tenant, which come before all others.
fn add_rules(database: &Database, from: i64, to: i64, are_enabled: bool) {
    let id = match database {
        Database::Sqlite(_) => "unhex(printf('%032x', i))",
        Database::Postgres(_) => "CAST(lpad(to_hex(i), 32, '0') AS UUID)",
    };
    database.execute(&format!(
        "WITH RECURSIVE numbers (i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM numbers WHERE i < {to}) \
         INSERT INTO alert_rules (id, name, condition, severity, tenant, enabled, revision, created_at) \
         SELECT {id}, 'n' || i, '{{\"kind\":\"node_gone\"}}', 'info', 'initech', {are_enabled}, 1, \
         (SELECT MIN(created_at) FROM alert_rules) FROM numbers"
    ));
}

/// Usage, as a node tells it.
fn take_usage(nodes: &Nodes, log: &str, sequence: u64, second: u64, tenant: &str, counts: Counts) {
    let record = UsageRecord { sequence, second, tenant: tenant.to_owned(), counts, ..UsageRecord::default() };
    let page = UsagePage { log: log.to_owned(), missing: None, records: vec![record], next: sequence };
    nodes.runtime.block_on(nodes.store.take_usage(&"n1".parse().unwrap(), None, page)).unwrap();
}

fn now() -> u64 {
    OffsetDateTime::now_utc().unix_timestamp().try_into().unwrap()
}

/// So many requests, answered with 2xx, 4xx and 5xx.
fn answered(good: u64, client_errors: u64, server_errors: u64) -> Counts {
    let all = good + client_errors + server_errors;
    Counts {
        admitted: all,
        cost: all,
        statuses: Statuses([0, good, 0, client_errors, server_errors]),
        ..Counts::default()
    }
}

/// From now on, no usage of a tenant can be read.
fn break_usage(database: &Database, tenant: &str) {
    let error = match database {
        Database::Sqlite(_) => "abs(-9223372036854775807 - length(tenant) / length(tenant))",
        Database::Postgres(_) => "1 / (length(tenant) - length(tenant))",
    };
    database.execute(&format!(
        "ALTER TABLE usage_sums RENAME TO kept_sums; CREATE VIEW usage_sums AS SELECT step, since, tenant, route, consumer, \
         region, given_back, status_1xx, status_2xx, status_3xx, status_4xx, \
         CASE WHEN tenant = '{tenant}' THEN {error} ELSE cost END AS cost, \
         CASE WHEN tenant = '{tenant}' THEN {error} ELSE status_5xx END AS status_5xx FROM kept_sums"
    ));
}

fn with_quota(id: &str, daily: u64) -> Value {
    let mut tenant = tenant(id);
    tenant["policies"]["limits"] = json!({ "quotas": { "daily": daily } });
    tenant
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

    fn a_quota_that_is_nearly_used_up_is_told_of_until_there_is_more(database) {
        let admin = database.admin();
        let owner = admin.client();
        let nodes = Nodes::of(database);
        for name in ["acme", "globex"] {
            owner.post("/tenants", &with_quota(name, 100)).is(201);
        }
        owner.post("/alerts/rules", &json!({
            "name": "nearly", "severity": "warning", "tenant": "acme", "condition": { "kind": "quota_used", "percent": 50 },
        })).is(201);
        take_usage(&nodes, "0a", 1, now(), "acme", answered(49, 0, 0));
        take_usage(&nodes, "0a", 2, now(), "globex", answered(80, 0, 0));
        let first = comes_to(&owner, "quota-used", "open");
        assert_eq!((&first["tenant"], &first["subject"]), (&json!("globex"), &json!("daily quota of tenant globex")));
        assert!(alerts(&owner, "nearly").is_empty(), "49 of 100 are not half of it");
        take_usage(&nodes, "0a", 3, now(), "acme", answered(1, 0, 0));
        let found = comes_to(&owner, "nearly", "open");
        assert!(found["summary"].as_str().unwrap().contains("50 % of its daily quota of 100"), "{found}");
        owner.put("/tenants/acme", &with_quota("acme", 1000)).is(200);
        comes_to(&owner, "nearly", "resolved");
        owner.put("/head", &json!({ "defaults": { "limits": { "quotas": { "monthly": 10 } } } })).is(200);
        let found = comes_to(&owner, "nearly", "open");
        assert_eq!(found["subject"], "monthly quota of tenant acme");
        owner.delete("/tenants/globex").is(200);
        wait_until("those of a tenant that is gone are over", || {
            alerts(&owner, "quota-used").iter().all(|alert| alert["tenant"] != "globex" || alert["state"] == "resolved")
        });
    }

    fn errors_and_sudden_rises_are_found_of_all_of_each_and_of_one(database) {
        let admin = database.admin();
        let owner = admin.client();
        let nodes = Nodes::of(database);
        let minutes_ago = |minutes: u64| now() - minutes * 60;
        // An hour of 10 requests a minute. Of 100 in the last minutes, eleven failed; of one tenant, too few to say.
        take_usage(&nodes, "0a", 1, minutes_ago(30), "acme", answered(590, 5, 5));
        take_usage(&nodes, "0a", 2, now(), "acme", answered(89, 0, 11));
        take_usage(&nodes, "0a", 3, now(), "globex", answered(40, 1, 9));
        let rise = |class: Value| json!({ "kind": "sudden_rise", "factor": 3, "least": 50, "class": class });
        owner.post("/alerts/rules", &rule("more", rise(Value::Null))).is(201);
        owner.post("/alerts/rules", &rule("worse", rise("5xx".into()))).is(201);
        let mut one = rule("one", json!({ "kind": "error_rate", "class": "4xx", "percent": 0, "least_requests": 1 }));
        one["tenant"] = "globex".into();
        owner.post("/alerts/rules", &one).is(201);
        let rate = |each| json!({ "kind": "error_rate", "percent": 10, "least_requests": 100, "each_tenant": each });
        owner.post("/alerts/rules", &rule("each", rate(true))).is(201);
        owner.post("/alerts/rules", &rule("all", rate(false))).is(201);
        let found = comes_to(&owner, "each", "open");
        assert_eq!((&found["tenant"], &found["subject"]), (&json!("acme"), &json!("requests of tenant acme")));
        let found = comes_to(&owner, "all", "open");
        assert_eq!((&found["tenant"], &found["subject"]), (&Value::Null, &json!("all requests")));
        assert!(found["summary"].as_str().unwrap().contains("20 of 150 requests within 5 min"), "{found}");
        assert_eq!(comes_to(&owner, "one", "open")["tenant"], "globex");
        assert!(alerts(&owner, "more").is_empty(), "three times as many are not more than that");
        assert!(alerts(&owner, "worse").is_empty(), "twenty are not fifty");
        take_usage(&nodes, "0a", 4, now(), "acme", answered(1000, 0, 50));
        comes_to(&owner, "all", "resolved");
        comes_to(&owner, "more", "open");
        let found = comes_to(&owner, "worse", "open");
        assert!(found["summary"].as_str().unwrap().contains("70 5xx"), "{found}");
        assert_eq!(alerts(&owner, "each").len(), 1);
        for (wrong, place) in [
            (json!({ "kind": "error_rate", "percent": 100 }), "condition.percent"),
            (json!({ "kind": "error_rate", "window_minutes": 61 }), "condition.window_minutes"),
            (json!({ "kind": "sudden_rise", "factor": 0 }), "condition.factor"),
            (json!({ "kind": "sudden_rise", "least": 0 }), "condition.least"),
            (json!({ "kind": "quota_used", "percent": 0 }), "condition.percent"),
            (json!({ "kind": "replica_lag", "more_than_seconds": 0 }), "condition.more_than_seconds"),
        ] {
            assert_eq!(owner.post("/alerts/rules", &rule("x", wrong)).is_problem(422, ":invalid")["errors"][0]["path"], place);
        }
        owner.post("/alerts/rules", &rule("x", json!({ "kind": "error_rate", "class": "3xx" }))).is_problem(422, ":invalid");
    }

    fn usage_that_cannot_be_read_of_some_tenants_neither_opens_nor_ends_alerts_of_theirs_and_holds_up_no_others(database) {
        let admin = database.admin();
        let owner = admin.client();
        let nodes = Nodes::of(database);
        let names: Vec<String> = (0..600).map(|number| format!("t{number:03}")).collect();
        let tenants: Vec<Value> = names.iter().map(|name| with_quota(name, 100)).collect();
        owner.import("", &json!({ "revision": 1, "tenants": tenants }).to_string()).is(200);
        owner.post("/alerts/rules", &rule("each", json!({ "kind": "error_rate", "each_tenant": true }))).is(201);
        // A while ahead, so that it is new in each round. Of the first and the last tenants, one each has errors, and has
        // nearly used up its quota.
        let records = (1..).zip(&names).map(|(sequence, tenant)| {
            let is_bad = tenant == "t001" || tenant == "t599";
            let counts = Counts {
                cost: if is_bad { 90 } else { 1 },
                ..if is_bad { answered(0, 0, 200) } else { answered(200, 0, 0) }
            };
            UsageRecord { sequence, second: now() + 540, tenant: tenant.clone(), counts, ..UsageRecord::default() }
        });
        let page = UsagePage { log: "0a".to_owned(), missing: None, records: records.collect(), next: 600 };
        nodes.runtime.block_on(nodes.store.take_usage(&"n1".parse().unwrap(), None, page)).unwrap();
        let states = |tenant: &str| -> Vec<Value> {
            let of = |rule: &str| alerts(&owner, rule).into_iter().filter(|alert| alert["tenant"] == tenant);
            of("quota-used").chain(of("each")).map(|alert| alert["state"].clone()).collect()
        };
        let become_ = |tenant: &str, state: &str| {
            wait_until(&format!("{tenant} is {state}"), || states(tenant) == [json!(state), json!(state)]);
        };
        become_("t001", "open");
        become_("t599", "open");
        break_usage(database, "t002");
        database.execute("UPDATE kept_sums SET cost = 1, status_5xx = 0 WHERE tenant IN ('t001', 't599')");
        become_("t599", "resolved");
        assert_eq!(states("t001"), ["open", "open"]);
        database.execute("DROP VIEW usage_sums; ALTER TABLE kept_sums RENAME TO usage_sums");
        become_("t001", "resolved");
    }

    fn a_rule_about_one_tenant_asks_for_nothing_of_others(database) {
        let admin = database.admin();
        let owner = admin.client();
        let nodes = Nodes::of(database);
        for (tenant, sequence) in [("acme", 1), ("globex", 2)] {
            owner.post("/tenants", &with_quota(tenant, 100)).is(201);
            take_usage(&nodes, "0a", sequence, now() + 540, tenant, Counts { cost: 90, ..answered(0, 0, 200) });
        }
        break_usage(database, "globex");
        for (name, condition) in [("quota", json!({ "kind": "quota_used" })), ("errors", json!({ "kind": "error_rate" }))] {
            let mut rule = rule(name, condition);
            rule["tenant"] = "acme".into();
            owner.post("/alerts/rules", &rule).is(201);
        }
        comes_to(&owner, "quota", "open");
        comes_to(&owner, "errors", "open");
        assert!(alerts(&owner, "error-rate").is_empty(), "of all together it is not known");
    }

    fn a_store_of_an_earlier_release_gets_rules_of_the_new_kinds_once(database) {
        let mut admin = database.admin();
        let names = |client: &Client| -> Vec<String> {
            let rules = client.get("/alerts/rules?limit=1000").is(200).json();
            rules["items"].as_array().unwrap().iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
        };
        let all = names(&admin.client());
        for name in ["quota-used", "error-rate", "sudden-4xx", "sudden-5xx", "replica-lag", "node-gone"] {
            assert!(all.iter().any(|there| there == name), "{name}: {all:?}");
        }
        // As it was before: without them, and with one of its own that has such a name.
        let new = "condition LIKE '%quota_used%' OR condition LIKE '%error_rate%' OR condition LIKE '%sudden_rise%' \
            OR condition LIKE '%replica_lag%' OR name = 'node-gone'";
        database.execute(&format!("DELETE FROM alert_rules WHERE {new}"));
        database.execute("UPDATE cursors SET number = 1 WHERE name = 'first-alert-rules'");
        admin.client().post("/alerts/rules", &expiring("error-rate", None, 3)).is(201);
        admin.restart(database);
        let owner = admin.client();
        let there = names(&owner);
        assert!(there.contains(&"error-rate-2".to_owned()) && there.contains(&"quota-used".to_owned()), "{there:?}");
        assert!(!there.contains(&"node-gone".to_owned()), "what was deleted before does not come back");
        assert_eq!(there.len(), all.len());
        for rule in owner.get("/alerts/rules?limit=1000").json()["items"].as_array().unwrap() {
            if rule["condition"]["kind"] == "quota_used" {
                owner.delete(&format!("/alerts/rules/{}", rule["id"].as_str().unwrap())).is(204);
            }
        }
        admin.restart(database);
        assert_eq!(names(&admin.client()).len(), all.len() - 1);
    }

    fn rules_are_as_many_as_they_may_be_and_all_are_looked_at(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &with_key("acme", 10)).is(201);
        for number in 0..50 {
            owner.post("/alerts/rules", &expiring(&format!("r{number}"), Some("acme"), 30)).is(201);
        }
        let refused = owner.post("/alerts/rules", &expiring("more", Some("acme"), 30)).is_problem(409, ":limit-reached");
        assert_eq!(refused["most"], 50);
        let other = owner.post("/alerts/rules", &expiring("other", Some("globex"), 30)).is(201).json();
        let path = format!("/alerts/rules/{}", other["id"].as_str().unwrap());
        owner.put(&path, &expiring("other", Some("acme"), 30)).is_problem(409, ":limit-reached");
        owner.put(&path, &expiring("other", Some("globex"), 29)).is(200);
        // So many that they are read in pages, and then as many as there may be.
        add_rules(database, 1, 1100, true);
        let mut last = expiring("last", None, 30);
        // It comes before the many that are found in the same round.
        last["severity"] = json!("critical");
        owner.post("/alerts/rules", &last).is(201);
        assert_eq!(alert_of(&owner, "last")["state"], "open");
        let there = database.number("SELECT COUNT(*) AS number FROM alert_rules");
        add_rules(database, 1101, 1100 + 5000 - there, false);
        let refused = owner.post("/alerts/rules", &expiring("beyond", None, 30)).is_problem(409, ":limit-reached");
        assert_eq!(refused["most"], 5000);
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
