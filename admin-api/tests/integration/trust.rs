//! What operators cannot do to nodes, to other tenants, to each other and to themselves.

use seiketsu_admin_api::store::{
    Author, ChangeSet, Principal, Store, WriteError,
    operators::{ManageError, OperatorSettings, Role},
    tokens::{NewToken, TokenKind},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    alerts::alert_of,
    support::{Admin, Client, Database, on_both, settings, tenant, wait_until},
};

fn with_hosts(id: &str, hosts: &[&str]) -> Value {
    let mut tenant = tenant(id);
    tenant["hosts"] = json!(hosts);
    tenant
}

on_both! {
    fn a_host_reaches_into_no_other_tenants_unless_an_operator_of_all_says_so(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &with_hosts("acme", &["*.b.example", "api.c.example"])).is(201);
        owner.post("/tenants", &with_hosts("globex", &["globex.example"])).is(201);
        let globex = admin.operator("globex", "operator", Some(&["globex", "initech"]));
        for (host, pattern) in [
            ("a.b.example", "*.b.example"),
            ("x.a.b.example", "*.b.example"),
            ("*.a.b.example", "*.b.example"),
            ("*.c.example", "api.c.example"),
            ("*.example", ""),
        ] {
            for refused in [
                globex.put("/tenants/globex", &with_hosts("globex", &["globex.example", host])),
                globex.post("/tenants", &with_hosts("initech", &[host])),
            ] {
                let problem = refused.is_problem(409, ":conflict");
                assert!(problem["detail"].as_str().unwrap().contains(pattern), "{problem}");
                assert_eq!(problem["host"], host);
            }
        }
        for host in ["b.example", "ab.example", "*.d.example", "other.c.example"] {
            globex.put("/tenants/globex", &with_hosts("globex", &["globex.example", host])).is(200);
        }
        // Below its own wildcard it may have what it likes; what an operator of all gave it stays.
        globex.put("/tenants/globex", &with_hosts("globex", &["*.g.example"])).is(200);
        globex.put("/tenants/globex", &with_hosts("globex", &["*.g.example", "a.g.example"])).is(200);
        owner.put("/tenants/globex", &with_hosts("globex", &["a.b.example"])).is(200);
        let mut again = with_hosts("globex", &["a.b.example"]);
        again["policies"]["limits"] = json!({ "rate": { "requests": 5, "per": "1m" } });
        globex.put("/tenants/globex", &again).is(200);
    }

    fn files_and_variables_of_the_node_are_out_of_reach(database) {
        let admin = database.admin();
        let owner = admin.client();
        let naming = |reference: &str| {
            let mut tenant = tenant("acme");
            tenant["consumers"] = json!([{ "id": "app", "keys": [{ "prefix": "abcdefgh", "key": reference }] }]);
            tenant
        };
        for reference in [
            "${file:/etc/shadow}", "${file:../var/admin/node-token}", "${file:files/globex/key}",
            "${file:files/acme/../globex/key}", "${env:DATABASE_URL}", "${env:SEIKETSU_TENANT_GLOBEX__KEY}",
        ] {
            let problem = owner.put("/tenants/acme", &naming(reference)).is_problem(422, ":invalid");
            assert_eq!(problem["errors"][0]["path"], "consumers[0].keys[0].key", "{reference}");
            assert!(problem["errors"][0]["fix"].is_string());
        }
        for reference in ["${file:files/acme/key}", "${env:SEIKETSU_TENANT_ACME__KEY}"] {
            owner.put("/tenants/acme", &naming(reference)).is(200);
        }
        let upstream = |ca: &str| json!({ "upstreams": { "shared": {
            "endpoints": [{ "address": "origin.example:443" }], "tls": { "ca": ca },
        } } });
        let problem = owner.put("/head", &upstream("/etc/ssl/ca.pem")).is_problem(422, ":invalid");
        assert_eq!(problem["errors"][0]["path"], "upstreams.shared.tls.ca");
        owner.put("/head", &upstream("files/_shared/ca.pem")).is(200);
    }

    fn what_was_exported_is_imported_again_only_if_nothing_was_changed_since(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &tenant("acme")).is(201);
        let exported = owner.get("/export").is(200);
        let etag = exported.etag().to_owned();
        assert_eq!(etag, "\"1\"");
        let import = |etag: &str| {
            let headers = [("content-type", "application/yaml"), ("if-match", etag)];
            owner.send("POST", "/import?replace=true", &headers, exported.text().as_bytes())
        };
        // Nothing is changed, and that is told as what it is.
        assert_eq!(import(&etag).is(200).etag(), etag);
        owner.post("/tenants", &tenant("globex")).is(201);
        let problem = import(&etag);
        assert_eq!(problem.is_problem(412, ":changed-meanwhile")["current"]["revision"], 2);
        assert_eq!(problem.etag(), "\"2\"");
        owner.get("/tenants/globex").is(200);
        let roll_back = |etag: &str| owner.send("POST", "/revisions/1/rollback", &[("if-match", etag)], b"");
        roll_back(&etag).is_problem(412, ":changed-meanwhile");
        assert_eq!(roll_back("\"2\"").is(200).etag(), "\"3\"");
        assert_eq!(import("\"3\"").is(200).etag(), "\"3\"");
    }

    fn somebody_can_always_let_others_in(database) {
        let admin = database.admin();
        let owner = admin.client();
        let tokens = |client: &Client| client.get("/tokens").is(200).json()["items"].clone();
        let of_owner = |all: &Value| {
            let first = all.as_array().unwrap().iter().find(|token| token["name"] == "first owner");
            format!("/tokens/{}", first.unwrap()["id"].as_str().unwrap())
        };
        let last = of_owner(&tokens(&owner));
        let refused = owner.delete(&last).is_problem(409, ":conflict");
        assert!(refused["detail"].as_str().unwrap().contains("nobody could let anybody in"), "{refused}");
        // Another owner without a token lets nobody in either.
        let ada = owner.post("/operators", &json!({ "name": "ada", "role": "owner" })).is(201).json();
        owner.delete(&last).is_problem(409, ":conflict");
        let me = owner.get("/operators").json()["items"][1]["id"].as_str().unwrap().to_owned();
        owner.delete(&format!("/operators/{me}")).is_problem(409, ":conflict");
        owner.post("/tokens", &json!({ "kind": "operator", "name": "x", "operator": ada["id"] })).is(201);
        owner.delete(&last).is(204);
        owner.get("/status").is(401);
    }
}

/// What somebody puts into the database who can write there: an owner, and a token that they know.
fn put_intruder(database: &Database) -> String {
    let token = format!("sa_{}", "x".repeat(43));
    let hash: String = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let (one, other) = match database {
        Database::Sqlite(_) => ("X'00112233445566778899AABBCCDDEEFF'", "X'00112233445566778899AABBCCDDEE00'"),
        Database::Postgres(_) => ("'00112233-4455-6677-8899-aabbccddeeff'", "'00112233-4455-6677-8899-aabbccddee00'"),
    };
    database.execute(&format!(
        "INSERT INTO operators (id, name, role, revision, created_at) \
         SELECT {one}, 'intruder', 'owner', 1, created_at FROM operators WHERE name = 'owner'; \
         INSERT INTO tokens (id, kind, name, operator_id, hash, created_at) \
         SELECT {other}, 'operator', 'intruder', {one}, '{hash}', created_at FROM operators WHERE name = 'owner'"
    ));
    token
}

fn named(client: &Client) -> Vec<(String, String)> {
    let verdict = client.get("/audit/verify").is(200).json();
    let text = |fault: &Value, name: &str| fault[name].as_str().unwrap().to_owned();
    verdict["faults"].as_array().unwrap().iter().map(|fault| (text(fault, "table"), text(fault, "what"))).collect()
}

/// What a release left behind that gave rows no MACs.
pub fn without_macs(database: &Database) {
    database.execute(
        "DELETE FROM schema_steps WHERE number >= 15; ALTER TABLE audit_log RENAME COLUMN request_id TO request",
    );
    for table in ["operators", "tokens", "orders", "alert_rules", "alerts", "webhooks", "siem_sinks"] {
        database.execute(&format!("ALTER TABLE {table} DROP COLUMN mac"));
    }
}

on_both! {
    fn who_can_write_into_the_store_can_give_nobody_rights(database) {
        let admin = database.admin();
        let owner = admin.client();
        let viewer = admin.operator("vic", "viewer", None);
        let with = |token: &str| Client { token: Some(token.to_owned()), ..owner.clone() };
        let intruder = with(&put_intruder(database));
        intruder.get("/status").is_problem(401, ":unauthenticated");
        let alert = alert_of(&owner, "audit-fault");
        assert_eq!(alert["state"], "open");
        let refused = owner.get("/audit?action=refuse_row").json()["items"][0].clone();
        assert_eq!((&refused["actor"], &refused["outcome"]), (&json!("row-guard"), &json!("refused")));
        assert_eq!(refused["detail"]["row"], "tokens/00112233-4455-6677-8899-aabbccddee00");
        let no_entry = "no entry tells that it was made, or one that it was removed".to_owned();
        assert_eq!(named(&owner).iter().filter(|(_, what)| *what == no_entry).count(), 2);
        // Nor does it count as an owner who is left.
        let tokens = owner.get("/tokens").json();
        let own = tokens["items"].as_array().unwrap().iter().find(|token| token["name"] == "first owner").unwrap();
        owner.delete(&format!("/tokens/{}", own["id"].as_str().unwrap())).is(409);
        database.execute("DELETE FROM tokens WHERE name = 'intruder'; DELETE FROM operators WHERE name = 'intruder'");

        // An operator that is raised is none any more.
        viewer.get("/status").is(200);
        database.execute("UPDATE operators SET role = 'owner' WHERE name = 'vic'");
        viewer.get("/operators").is_problem(401, ":unauthenticated");
        assert_eq!(named(&owner), [("operators".to_owned(), "it was altered".to_owned())]);
        database.execute("UPDATE operators SET role = 'viewer' WHERE name = 'vic'");
        // Nor one with the MAC of another row.
        let other = admin.operator("ada", "viewer", None);
        let mac = "mac = (SELECT mac FROM operators WHERE name = 'owner')";
        database.execute(&format!("UPDATE operators SET {mac}, role = 'owner' WHERE name = 'ada'"));
        other.get("/operators").is_problem(401, ":unauthenticated");
        // Nor is a token any that is given to somebody else.
        let another = admin.operator("gil", "viewer", None);
        let to = "operator_id = (SELECT id FROM operators WHERE name = 'owner')";
        database.execute(&format!("UPDATE tokens SET {to} WHERE name = 'gil'"));
        another.get("/operators").is_problem(401, ":unauthenticated");
    }

    fn an_operator_or_a_rule_that_was_altered_counts_again_when_it_is_written_as_it_is(database) {
        let admin = database.admin();
        let owner = admin.client();
        let viewer = admin.operator("vic", "viewer", None);
        let mine = json!({ "name": "mine", "condition": { "kind": "webhook_disabled" }, "severity": "info" });
        let rule = owner.post("/alerts/rules", &mine).is(201).json();
        database.execute("UPDATE operators SET role = 'auditor' WHERE name = 'vic'");
        database.execute("UPDATE alert_rules SET severity = 'critical' WHERE name = 'mine'");
        viewer.get("/status").is(401);
        let operators = owner.get("/operators").json();
        let vic = operators["items"].as_array().unwrap().iter().find(|one| one["name"] == "vic").unwrap().clone();
        let path = |list: &str, row: &Value| format!("{list}/{}", row["id"].as_str().unwrap());
        let put = |path: &str, body: &Value, revision: u64| {
            assert_eq!(owner.put(path, body).is(200).json()["revision"], revision, "{path}");
        };
        let (operator, rule) = (path("/operators", &vic), path("/alerts/rules", &rule));
        put(&operator, &json!({ "name": "vic", "role": "auditor" }), 2);
        let mine = json!({ "name": "mine", "condition": { "kind": "webhook_disabled" }, "severity": "critical" });
        put(&rule, &mine, 2);
        // A token that was refused is asked for anew after some seconds.
        wait_until("it counts again", || viewer.get("/operators").status == 200);
        assert_eq!(named(&owner), []);
        // Once more, there is nothing to change.
        put(&operator, &json!({ "name": "vic", "role": "auditor" }), 2);
        put(&rule, &mine, 2);
    }

    fn an_operator_who_is_not_taken_over_is_named_in_the_log(database) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::connect(&settings(database.url())).await.unwrap();
            store.first_tokens(folder.path()).await.unwrap();
        });
        drop(runtime);
        without_macs(database);
        put_intruder(database);
        let admin = Admin::start(database, folder, &[]);
        let warned = |what: &str| {
            let is_it = |line: &&str| line.contains("\"WARN\"") && line.contains(&format!("\"{what}\":\"intruder\""));
            admin.started.lines().filter(is_it).count()
        };
        assert_eq!((warned("operator"), warned("token")), (1, 1), "{}", admin.started);
        assert!(!admin.started.contains("\"operator\":\"owner\""), "{}", admin.started);
    }

    fn a_token_that_was_revoked_and_is_put_back_is_named(database) {
        let admin = database.admin();
        let owner = admin.client();
        admin.operator("vic", "viewer", None);
        database.execute("CREATE TABLE kept AS SELECT * FROM tokens WHERE name = 'vic'");
        let tokens = owner.get("/tokens").json();
        let token = tokens["items"].as_array().unwrap().iter().find(|token| token["name"] == "vic").unwrap()["id"].clone();
        owner.delete(&format!("/tokens/{}", token.as_str().unwrap())).is(204);
        assert_eq!(named(&owner), []);
        database.execute("INSERT INTO tokens SELECT * FROM kept; DROP TABLE kept");
        let no_entry = "no entry tells that it was made, or one that it was removed";
        assert_eq!(named(&owner), [("tokens".to_owned(), no_entry.to_owned())]);
    }

    fn a_store_of_an_earlier_release_is_taken_over_once_and_with_nobody_whom_the_trail_does_not_know(database) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::connect(&settings(database.url())).await.unwrap();
            store.first_tokens(folder.path()).await.unwrap();
        });
        drop(runtime);
        without_macs(database);
        // It wrote rules, and told of none.
        let id = match database {
            Database::Sqlite(_) => "randomblob(16)",
            Database::Postgres(_) => "gen_random_uuid()",
        };
        database.execute(&format!(
            "INSERT INTO alert_rules (id, name, condition, severity, enabled, revision, created_at) SELECT {id}, \
             'of-before', '{{\"kind\":\"webhook_disabled\"}}', 'info', true, 1, created_at FROM operators"
        ));
        let intruder = put_intruder(database);
        let mut admin = Admin::start(database, folder, &[]);
        let owner = admin.client();
        owner.get("/status").is(200);
        Client { token: Some(intruder.clone()), ..owner.clone() }.get("/status").is_problem(401, ":unauthenticated");
        let mut tables: Vec<String> = named(&owner).into_iter().map(|(table, _)| table).collect();
        tables.sort_unstable();
        assert_eq!(tables, ["operators", "tokens"]);
        let adopted = |client: &Client| client.get("/audit?action=adopt_rows").json()["items"].as_array().unwrap().len();
        assert_eq!(adopted(&owner), 1);
        // Nor does another start.
        database.execute("UPDATE operators SET mac = NULL WHERE name = 'intruder'; UPDATE tokens SET mac = NULL WHERE name = 'intruder'");
        admin.restart(database);
        let owner = admin.client();
        Client { token: Some(intruder), ..owner.clone() }.get("/status").is_problem(401, ":unauthenticated");
        assert_eq!(adopted(&owner), 1);
    }

    fn a_replica_of_an_earlier_release_that_still_runs_writes_no_row_without_a_mac(database) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::connect(&settings(database.url())).await.unwrap();
            store.first_tokens(folder.path()).await.unwrap();
        });
        drop(runtime);
        without_macs(database);
        let id = match database {
            Database::Sqlite(_) => "randomblob(16)",
            Database::Postgres(_) => "gen_random_uuid()",
        };
        // As it writes: what is changed, and its entry, in one transaction.
        let write = |end: &str| {
            database.try_to_execute(&format!(
                "BEGIN; INSERT INTO alert_rules (id, name, condition, severity, enabled, revision, created_at) SELECT {id}, \
                 'of-before', '{{\"kind\":\"webhook_disabled\"}}', 'info', true, 1, created_at FROM operators; \
                 INSERT INTO audit_log (number, at, actor, action, outcome, request, detail, hash) \
                 SELECT number + 1, at, actor, action, outcome, 'r', detail, hash FROM audit_log \
                 ORDER BY number DESC LIMIT 1; {end}"
            ))
        };
        write("ROLLBACK").unwrap();
        let admin = Admin::start(database, folder, &[]);
        let refused = write("COMMIT").unwrap_err();
        assert!(refused.contains("request"), "{refused}");
        assert_eq!(named(&admin.client()), []);
    }

    fn a_store_whose_macs_were_taken_away_is_not_taken_over_again(database) {
        let admin = database.admin();
        drop(admin);
        without_macs(database);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let refused = runtime.block_on(Store::connect(&settings(database.url()))).unwrap_err();
        assert!(refused.to_string().contains("restore a backup"), "{refused}");
    }

    fn a_key_of_the_trail_that_was_taken_away_is_not_made_anew(database) {
        let admin = database.admin();
        drop(admin);
        database.execute("UPDATE audit_log SET mac = NULL; DELETE FROM own_secrets");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let refused = runtime.block_on(Store::connect(&settings(database.url()))).unwrap_err();
        assert!(refused.to_string().contains("the key of the audit trail"), "{refused}");
    }

    fn a_trail_that_cannot_be_verified_opens_an_alert(database) {
        let mut admin = database.admin();
        database.execute("ALTER TABLE audit_seals RENAME TO elsewhere");
        admin.restart(database);
        let alert = alert_of(&admin.client(), "audit-fault");
        assert!(alert["summary"].as_str().unwrap().starts_with("the audit trail cannot be verified"), "{alert}");
        database.execute("ALTER TABLE elsewhere RENAME TO audit_seals");
        admin.restart(database);
        wait_until("it is over", || alert_of(&admin.client(), "audit-fault")["state"] == "resolved");
    }

    fn nothing_is_written_with_rights_that_were_taken_away_meanwhile(database) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::connect(&settings(database.url())).await.unwrap();
            let by = Author { id: None, name: "t".to_owned(), address: None, request: "r".to_owned(), action: "t" };
            let settings = |role| OperatorSettings { name: "ada".parse().unwrap(), role, tenants: None };
            let ada = store.create_operator(&by, Role::Owner, settings(Role::Admin), None).await.unwrap();
            let new = NewToken {
                kind: TokenKind::Operator, name: "t".to_owned(), operator: Some(ada.id), node: None, expires_at: None,
            };
            let (token, secret) = store.create_token(&by, Role::Owner, new, None).await.unwrap();
            // As a request is let in.
            let let_in = async || {
                let (operator, token) = store.operator_token(&secret).await.unwrap().unwrap();
                let principal = Principal { operator: operator.id, revision: operator.revision, token: token.id };
                Author { id: Some(principal), ..by.clone() }
            };
            let put = |rate: u64| {
                let tenant = serde_json::from_value(crate::support::tenant_with_rate("acme", rate)).unwrap();
                ChangeSet { put: vec![tenant], ..ChangeSet::default() }
            };
            let before = let_in().await;
            store.write(&before, put(1), None).await.unwrap();
            store.update_operator(&by, Role::Owner, ada.id, None, settings(Role::Viewer)).await.unwrap();
            let refused = store.write(&before, put(2), None).await.unwrap_err();
            assert!(matches!(&refused, WriteError::Store(error) if error.to_string().contains("rights")), "{refused}");
            let refused = store.create_operator(&before, Role::Admin, settings(Role::Admin), None).await.unwrap_err();
            assert!(matches!(&refused, ManageError::Store(error) if error.to_string().contains("rights")), "{refused}");
            let now = let_in().await;
            store.write(&now, put(3), None).await.unwrap();
            store.delete_token(&by, Role::Owner, token.id).await.unwrap();
            store.write(&now, put(4), None).await.unwrap_err();
            assert!(store.tenant(&"acme".parse().unwrap()).await.unwrap().unwrap().content.contains("\"requests\":3"));
            assert_eq!(store.verify_audit().await.unwrap().faults, []);
        });
    }
}

#[test]
fn refusals_are_kept_one_by_one_and_then_counted() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    for _ in 0..60 {
        owner.without_token().get("/status").is(401);
        owner.without_token().send("GET", "//internal/v1/subscribe", &[], b"").is(401);
    }
    let entries = |action: &str| {
        owner.get(&format!("/audit?limit=1000&action={action}")).is(200).json()["items"].as_array().unwrap().clone()
    };
    let told = || entries("refusals").iter().map(|entry| entry["detail"]["more"].as_u64().unwrap()).sum::<u64>();
    // As many as there were, however long it took.
    wait_until("all are told of", || (entries("get_status").len() + entries("subscribe").len()) as u64 + told() == 120);
    assert!(told() > 0);
    assert_eq!(entries("refusals")[0]["address"], "127.0.0.1");
    // Somebody else's are kept one by one.
    admin.operator("vic", "viewer", None).delete("/tenants/acme").is(403);
    assert_eq!(entries("delete_tenant").len(), 1);
}

#[test]
fn whoever_tries_tokens_of_nodes_is_slowed_down() {
    let database = Database::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let admin = Admin::start(&database, folder, &["--requests-per-second", "10"]);
    let nobody = Client { token: Some("sn_nonsense".to_owned()), ..admin.client() };
    let tried = (0..100).map(|_| nobody.send("GET", "//internal/v1/subscribe", &[], b""));
    let refused = tried.into_iter().find(|answer| answer.status == 429).expect("a hundred at once are too many");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}
