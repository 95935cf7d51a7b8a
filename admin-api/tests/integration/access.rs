//! Who may do what: every operation without a token, with a role that is not enough, and for another tenant.

use serde_json::{Value, json};

use crate::support::{Admin, Answer, Client, Database, mode, tenant};

/// How an operation is called for the tenant acme: method, path, body.
struct Call {
    id: &'static str,
    method: &'static str,
    path: String,
    body: Option<Value>,
    /// The role that is just not enough; none, if every role is.
    below: Option<&'static str>,
    /// What an operator gets who is for the tenant globex only.
    elsewhere: Elsewhere,
}

enum Elsewhere {
    /// 403.
    Refused,
    /// 200, and nothing of acme.
    WithoutIt,
    /// It is about no tenant of the store.
    AboutNone,
}

/// Ids of what was made to be called about.
struct Made {
    operator: String,
    token: String,
    key: String,
    list: String,
    rule: String,
    alert: String,
    hook: String,
    delivery: String,
    sink: String,
}

#[allow(clippy::too_many_lines)] // One line for each operation.
fn calls(made: &Made) -> Vec<Call> {
    let Made { operator, token, key, list, rule, alert, hook, delivery, sink } = made;
    use Elsewhere::{AboutNone, Refused, WithoutIt};
    let (viewer, auditor, worker) = (Some("viewer"), Some("auditor"), Some("operator"));
    let limits = json!({ "tenant": "acme", "rate_limit_rpm": 5 });
    let somebody = json!({ "name": "somebody", "role": "viewer" });
    let node_token = json!({ "kind": "node", "name": "somebody" });
    let file = json!({ "revision": 1, "tenants": [tenant("acme")] });
    let service = tenant("acme")["upstreams"]["own"].clone();
    let consumer = json!({ "tenant": "acme", "id": "another" });
    let new_key = json!({ "tenant": "acme", "consumer": "app" });
    let urls = json!({ "tenant": "acme", "urls": ["http://acme.example/"] });
    let call = |id, method, path: &str, body: Option<&Value>, below, elsewhere| Call {
        id,
        method,
        path: path.to_owned(),
        body: body.cloned(),
        below,
        elsewhere,
    };
    let operator = format!("/operators/{operator}");
    let token = format!("/tokens/{token}");
    let hook = format!("/webhooks/{hook}");
    let new_hook = crate::webhooks::hook("somebody", "https://hooks.invalid/", Some("acme"));
    let sink = format!("/siem/{sink}");
    let new_sink = json!({ "name": "somebody", "url": "https://siem.invalid/" });
    let new_rule = crate::alerts::expiring("somebody", Some("acme"), 20);
    let rule = format!("/alerts/rules/{rule}");
    vec![
        call("list_tenants", "GET", "/tenants", None, None, WithoutIt),
        call("create_tenant", "POST", "/tenants", Some(&tenant("acme")), auditor, Refused),
        call("get_tenant", "GET", "/tenants/acme", None, None, Refused),
        call("put_tenant", "PUT", "/tenants/acme", Some(&tenant("acme")), auditor, Refused),
        call("delete_tenant", "DELETE", "/tenants/acme", None, auditor, Refused),
        call("get_head", "GET", "/head", None, None, Refused),
        call("put_head", "PUT", "/head", Some(&json!({})), worker, Refused),
        call("configure_gateway", "POST", "/gateway/configure", Some(&limits), auditor, Refused),
        call("get_gateway_configuration", "GET", "/gateway/configure?tenant=acme", None, None, Refused),
        call("put_limits", "PUT", "/gateway/limits", Some(&limits), auditor, Refused),
        call("get_gateway_health", "GET", "/gateway/health", None, None, WithoutIt),
        call("import_configuration", "POST", "/import", Some(&file), worker, Refused),
        call("export_configuration", "GET", "/export", None, None, Refused),
        call("validate", "POST", "/validate", Some(&file), None, AboutNone),
        call("list_revisions", "GET", "/revisions", None, None, Refused),
        call("get_revision", "GET", "/revisions/1", None, None, Refused),
        call("diff_revisions", "GET", "/revisions/0/diff", None, None, Refused),
        call("rollback", "POST", "/revisions/0/rollback", None, worker, Refused),
        call("list_nodes", "GET", "/nodes", None, None, Refused),
        call("get_node", "GET", "/nodes/eu-1", None, None, Refused),
        call("delete_node", "DELETE", "/nodes/eu-1", None, worker, Refused),
        call("get_status", "GET", "/status", None, None, WithoutIt),
        call("list_audit", "GET", "/audit?tenant=acme", None, viewer, Refused),
        call("verify_audit", "GET", "/audit/verify", None, viewer, Refused),
        call("export_audit", "GET", "/audit/export", None, viewer, Refused),
        call("list_operators", "GET", "/operators", None, viewer, Refused),
        call("create_operator", "POST", "/operators", Some(&somebody), worker, Refused),
        call("get_operator", "GET", &operator, None, viewer, Refused),
        call("put_operator", "PUT", &operator, Some(&somebody), worker, Refused),
        call("delete_operator", "DELETE", &operator, None, worker, Refused),
        call("list_tokens", "GET", "/tokens", None, viewer, Refused),
        call("create_token", "POST", "/tokens", Some(&node_token), worker, Refused),
        call("delete_token", "DELETE", &token, None, worker, Refused),
        call("get_audit_key", "GET", "/audit/key", None, viewer, AboutNone),
        call("rotate_secrets", "POST", "/secrets/rotate", None, Some("admin"), Refused),
        call("list_services", "GET", "/services", None, None, WithoutIt),
        call("get_service", "GET", "/tenants/acme/services/own", None, None, Refused),
        call("put_service", "PUT", "/tenants/acme/services/own", Some(&service), auditor, Refused),
        call("delete_service", "DELETE", "/tenants/acme/services/own", None, auditor, Refused),
        call("list_routes", "GET", "/routes", None, None, WithoutIt),
        call("get_route", "GET", "/tenants/acme/routes/all", None, None, Refused),
        call("put_route", "PUT", "/tenants/acme/routes/all", Some(&tenant("acme")["routes"][0]), auditor, Refused),
        call("delete_route", "DELETE", "/tenants/acme/routes/all", None, auditor, Refused),
        call("list_consumers", "GET", "/consumers", None, None, WithoutIt),
        call("create_consumer", "POST", "/consumers", Some(&consumer), auditor, Refused),
        call("get_consumer", "GET", "/tenants/acme/consumers/app", None, None, Refused),
        call("delete_consumer", "DELETE", "/tenants/acme/consumers/app", None, auditor, Refused),
        call("list_keys", "GET", "/keys", None, None, WithoutIt),
        call("create_key", "POST", "/keys", Some(&new_key), auditor, Refused),
        call("get_key", "GET", &format!("/keys/{key}"), None, None, Refused),
        call("rotate_key", "POST", &format!("/keys/{key}/rotate"), Some(&json!({ "grace": "1h" })), auditor, Refused),
        call("delete_key", "DELETE", &format!("/keys/{key}"), None, auditor, Refused),
        call("purge_cache", "POST", "/cache/purge", Some(&json!({ "tenant": "acme", "all": true })), auditor, Refused),
        call("warm_cache", "POST", "/cache/warm", Some(&urls), auditor, Refused),
        call("get_warming", "GET", &format!("/cache/warm/{list}"), None, None, Refused),
        call("get_analytics", "GET", "/gateway/analytics?tenant=acme", None, None, Refused),
        call("list_usage", "GET", "/usage", None, None, WithoutIt),
        call("export_usage", "GET", "/usage/export?tenant=acme", None, None, Refused),
        call("list_performance", "GET", "/performance?tenant=acme", None, None, Refused),
        call("list_objectives", "GET", "/performance/objectives", None, None, WithoutIt),
        call("follow_events", "GET", "/events?follow=false&tenant=acme", None, None, Refused),
        call("follow_events_socket", "GET", "/events/ws?tenant=acme", None, None, Refused),
        call("list_alerts", "GET", "/alerts", None, None, WithoutIt),
        call("acknowledge_alert", "POST", &format!("/alerts/{alert}/acknowledge"), None, auditor, Refused),
        call("list_alert_rules", "GET", "/alerts/rules", None, None, WithoutIt),
        call("create_alert_rule", "POST", "/alerts/rules", Some(&new_rule), auditor, Refused),
        call("get_alert_rule", "GET", &rule, None, None, Refused),
        call("put_alert_rule", "PUT", &rule, Some(&new_rule), auditor, Refused),
        call("delete_alert_rule", "DELETE", &rule, None, auditor, Refused),
        call("list_webhooks", "GET", "/webhooks", None, worker, WithoutIt),
        call("create_webhook", "POST", "/webhooks", Some(&new_hook), worker, Refused),
        call("get_webhook", "GET", &hook, None, worker, Refused),
        call("put_webhook", "PUT", &hook, Some(&new_hook), worker, Refused),
        call("delete_webhook", "DELETE", &hook, None, worker, Refused),
        call("rotate_webhook_secret", "POST", &format!("{hook}/rotate-secret"), Some(&json!({})), worker, Refused),
        call("test_webhook", "POST", &format!("{hook}/test"), None, worker, Refused),
        call("list_deliveries", "GET", &format!("{hook}/deliveries"), None, worker, Refused),
        call("replay_delivery", "POST", &format!("{hook}/deliveries/{delivery}/replay"), None, worker, Refused),
        call("list_siem_sinks", "GET", "/siem", None, worker, Refused),
        call("create_siem_sink", "POST", "/siem", Some(&new_sink), worker, Refused),
        call("get_siem_sink", "GET", &sink, None, worker, Refused),
        call("put_siem_sink", "PUT", &sink, Some(&new_sink), worker, Refused),
        call("delete_siem_sink", "DELETE", &sink, None, worker, Refused),
    ]
}

impl Call {
    fn by(&self, client: &Client) -> Answer {
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        client.send(self.method, &self.path, &[("content-type", "application/json")], body.as_bytes())
    }
}

struct World {
    database: Database,
    admin: Admin,
    calls: Vec<Call>,
}

fn world() -> World {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    owner.post("/tenants", &tenant("acme")).is(201);
    owner.post("/tenants", &tenant("globex")).is(201);
    let operator = owner.post("/operators", &json!({ "name": "victim", "role": "viewer" })).is(201).json();
    let operator = operator["id"].as_str().unwrap();
    let token = json!({ "kind": "operator", "name": "victim", "operator": operator });
    let token = owner.post("/tokens", &token).is(201).json();
    let rule = owner.post("/alerts/rules", &crate::alerts::expiring("acme-keys", Some("acme"), 30)).is(201).json();
    owner.put("/tenants/acme", &crate::alerts::with_key("acme", 10)).is(200);
    let alert = crate::alerts::alert_of(&owner, "acme-keys");
    let key = owner.post("/keys", &json!({ "tenant": "acme", "consumer": "app" })).is(201).json();
    let list = json!({ "tenant": "acme", "urls": ["http://acme.example/"] });
    let list = owner.post("/cache/warm", &list).is(202).json();
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let hook = crate::webhooks::hook("acme", "https://hooks.invalid/", Some("acme"));
    let hook = owner.post("/webhooks", &hook).is(201).json();
    let delivery = owner.post(&format!("/webhooks/{}/test", id(&hook)), &json!({})).is(202).json();
    let sink = owner
        .post("/siem", &json!({ "name": "acme", "url": "https://siem.invalid/", "enabled": false }))
        .is(201)
        .json();
    let calls = calls(&Made {
        operator: operator.to_owned(),
        token: id(&token),
        key: id(&key),
        list: id(&list),
        rule: id(&rule),
        alert: id(&alert),
        hook: id(&hook),
        delivery: id(&delivery),
        sink: id(&sink),
    });
    World { database, admin, calls }
}

/// Everything that a refused call could have changed.
fn state(client: &Client) -> Vec<Value> {
    let lists = [
        "/tenants",
        "/head",
        "/revisions",
        "/operators",
        "/tokens",
        "/consumers",
        "/keys",
        "/alerts/rules",
        "/webhooks",
        "/siem",
    ];
    let mut state = lists.map(|path| client.get(path).is(200).json()).to_vec();
    // Whether a webhook is heard is no matter of who calls.
    for hook in state[8]["items"].as_array_mut().unwrap() {
        hook["failing_since"].take();
    }
    state
}

#[test]
fn every_operation_has_its_cases_here() {
    let world = world();
    let described = world.admin.client().without_token().get("/openapi.json").is(200).json();
    let mut operations: Vec<&str> = described["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let mut covered: Vec<&str> = world.calls.iter().map(|call| call.id).collect();
    operations.sort_unstable();
    covered.sort_unstable();
    assert_eq!(covered, operations);
}

#[test]
fn nobody_gets_anywhere_without_a_token_that_holds() {
    let world = world();
    let owner = world.admin.client();
    let expired = owner.get("/operators").json()["items"][0]["id"].clone();
    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(1);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    let expiring = json!({ "kind": "operator", "name": "x", "operator": expired, "expires_at": soon });
    let expiring = owner.post("/tokens", &expiring).is(201).json()["token"].as_str().unwrap().to_owned();
    let node = std::fs::read_to_string(world.admin.folder.path().join("node-token")).unwrap().trim().to_owned();
    let expired = Client { token: Some(expiring), ..owner.clone() };
    crate::support::wait_until("the token expires", || expired.get("/status").status == 401);
    let before = state(&owner);
    for call in &world.calls {
        for token in [None, Some("sa_nonsense".to_owned()), Some(node.clone()), expired.token.clone()] {
            let answer = call.by(&Client { token, ..owner.clone() });
            answer.is_problem(401, ":unauthenticated");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"seiketsu\""), "{}", call.id);
        }
    }
    assert_eq!(state(&owner), before);
    for scheme in ["Basic", "bearer:", ""] {
        let headers = [("authorization", &*format!("{scheme} {}", owner.token.as_deref().unwrap()))];
        owner.without_token().send("GET", "/status", &headers, b"").is_problem(401, ":unauthenticated");
    }
}

#[test]
fn a_role_that_is_not_enough_is_refused_and_the_least_that_is_passes() {
    let world = world();
    let owner = world.admin.client();
    let roles = ["viewer", "auditor", "operator", "admin", "owner"];
    let clients = roles.map(|role| world.admin.operator(&format!("a-{role}"), role, None));
    let before = state(&owner);
    let place = |role: &str| roles.iter().position(|one| *one == role).unwrap();
    for call in &world.calls {
        for client in call.below.map(|below| &clients[..=place(below)]).unwrap_or_default() {
            call.by(client).is_problem(403, ":forbidden");
        }
    }
    assert_eq!(state(&owner), before);
    // What destroys others' world comes last.
    let (last, first): (Vec<_>, Vec<_>) = world
        .calls
        .iter()
        .partition(|call| matches!(call.id, "rollback" | "delete_tenant" | "delete_token" | "delete_operator"));
    for call in first.into_iter().chain(last.into_iter().rev()) {
        let least = call.below.map_or(0, |below| place(below) + 1);
        let answer = call.by(&clients[least]);
        assert!(!matches!(answer.status, 401 | 403 | 500..), "{}: {answer}", call.id);
    }
}

#[test]
fn an_operator_of_another_tenant_sees_and_changes_nothing_of_this_one() {
    let world = world();
    let owner = world.admin.client();
    // Of the highest role: it is not the role that refuses.
    let globex = world.admin.operator("globex-owner", "owner", Some(&["globex"]));
    let before = state(&owner);
    for call in &world.calls {
        let answer = call.by(&globex);
        match call.elsewhere {
            Elsewhere::Refused => {
                answer.is_problem(403, ":forbidden");
            }
            Elsewhere::WithoutIt => assert!(!answer.clone().is(200).text().contains("acme"), "{}: {answer}", call.id),
            Elsewhere::AboutNone => {
                answer.is(200);
            }
        }
    }
    assert_eq!(state(&owner), before);
    // Whether there is a tenant or not is not told either.
    let refused = |id: &str| globex.get(&format!("/tenants/{id}")).is_problem(403, ":forbidden")["detail"].clone();
    assert_eq!(refused("acme").as_str().unwrap().replace("acme", "nobody"), refused("nobody").as_str().unwrap());
    // And its own it may have.
    globex.get("/tenants/globex").is(200);
    globex.put("/gateway/limits", &json!({ "tenant": "globex", "rate_limit_rpm": 5 })).is(200);
    globex.get("/audit?tenant=globex").is(200);
    globex.get("/audit").is_problem(403, ":forbidden");
    assert_eq!(globex.get("/status").json()["tenants"], 1);
}

#[test]
fn the_first_start_makes_tokens_that_only_this_user_may_read() {
    let database = Database::sqlite();
    let mut admin = database.admin();
    for file in ["admin-token", "node-token"] {
        assert_eq!(mode(&admin.folder.path().join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(admin.folder.path()), 0o700);
    let client = admin.client();
    let token = admin.token.clone();
    client.get("/status").is(200);
    // The token is kept nowhere: neither in the store nor in the log.
    let store = std::fs::read(database.url().trim_start_matches("sqlite:")).unwrap();
    assert!(!store.windows(token.len()).any(|window| window == token.as_bytes()));
    assert!(!admin.log().contains(&token));
    // The next start makes no others.
    admin.restart(&database);
    admin.client().get("/status").is(200);
    assert_eq!(admin.client().get("/tokens").json()["items"].as_array().unwrap().len(), 2);
}

#[test]
fn too_many_requests_are_told_when_to_come_back() {
    let database = Database::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let admin = Admin::start(&database, folder, &["--requests-per-second", "10"]);
    let client = admin.client();
    let limited = |client: &Client| {
        let refused = (0..100).map(|_| client.get("/status")).find(|answer| answer.status == 429);
        let refused = refused.expect("a hundred requests at once are too many");
        refused.is_problem(429, "#quota-exceeded");
        assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    };
    limited(&client);
    // Whoever has no token is slowed down by address, and others' tokens are their own.
    limited(&client.without_token());
    client.send("GET", "//livez", &[], b"").is(200);
}

#[test]
fn every_answer_forbids_browsers_what_they_need_not_do() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    for path in
        ["/status", "/nothing", "//docs", "//docs/style.css", "//livez", "//readyz", "//metrics", "/openapi.json"]
    {
        let answer = client.get(path);
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {answer}");
        }
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    }
    let metrics = client.get("//metrics").is(200);
    assert!(metrics.text().contains("seiketsu_admin_requests_total{operation=\"get_status\",status=\"200\"} 1"));
    assert!(client.get("//docs").is(200).text().contains("put_limits"));
}
