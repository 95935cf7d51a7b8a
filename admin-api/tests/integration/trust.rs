//! What operators cannot do to nodes, to other tenants, to each other and to themselves.

use serde_json::{Value, json};

use crate::support::{on_both, tenant};

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
        let tokens = |client: &crate::support::Client| client.get("/tokens").is(200).json()["items"].clone();
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

#[test]
fn refusals_are_kept_one_by_one_and_then_counted() {
    let database = crate::support::Database::sqlite();
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
    crate::support::wait_until("all are told of", || {
        (entries("get_status").len() + entries("subscribe").len()) as u64 + told() == 120
    });
    assert!(told() > 0);
    assert_eq!(entries("refusals")[0]["address"], "127.0.0.1");
    // Somebody else's are kept one by one.
    admin.operator("vic", "viewer", None).delete("/tenants/acme").is(403);
    assert_eq!(entries("delete_tenant").len(), 1);
}

#[test]
fn whoever_tries_tokens_of_nodes_is_slowed_down() {
    let database = crate::support::Database::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let admin = crate::support::Admin::start(&database, folder, &["--requests-per-second", "10"]);
    let nobody = crate::support::Client { token: Some("sn_nonsense".to_owned()), ..admin.client() };
    let tried = (0..100).map(|_| nobody.send("GET", "//internal/v1/subscribe", &[], b""));
    let refused = tried.into_iter().find(|answer| answer.status == 429).expect("a hundred at once are too many");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}
