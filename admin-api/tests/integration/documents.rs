//! Tenants, the head, and what the columns show of them.

use std::thread;

use serde_json::{Value, json};

use crate::support::{on_both, tenant, tenant_with_rate};

on_both! {
    fn a_tenant_is_added_changed_and_removed(database) {
        let admin = database.admin();
        let client = admin.client();
        let made = client.post("/tenants", &tenant("acme")).is(201);
        assert_eq!(made.json(), json!({ "revision": 1, "changed": ["acme"], "head": false }));
        assert_eq!((made.etag(), made.header("location")), ("\"1\"", Some("/api/enterprise/tenants/acme")));
        client.post("/tenants", &tenant("acme")).is_problem(409, ":conflict");

        let read = client.get("/tenants/acme").is(200);
        assert_eq!(read.etag(), "\"1\"");
        let mut document = read.json();
        document["policies"]["limits"] = json!({ "rate": { "requests": 7, "per": "1s" } });
        let changed = client.put_if("/tenants/acme", &document, Some(read.etag())).is(200);
        assert_eq!((changed.json()["revision"].as_u64(), changed.etag()), (Some(2), "\"2\""));
        assert_eq!(client.get("/tenants/acme").is(200).json(), document);

        client.delete("/tenants/acme").is(200);
        client.get("/tenants/acme").is_problem(404, ":not-found");
        client.delete("/tenants/acme").is_problem(404, ":not-found");
    }

    fn of_two_operators_who_edit_a_tenant_the_second_sees_both_versions(database) {
        let admin = database.admin();
        let (one, other) = (admin.operator("one", "operator", None), admin.operator("other", "operator", None));
        one.post("/tenants", &tenant_with_rate("acme", 1)).is(201);
        let seen = one.get("/tenants/acme");
        one.put_if("/tenants/acme", &tenant_with_rate("acme", 2), Some(seen.etag())).is(200);
        let late = other.put_if("/tenants/acme", &tenant_with_rate("acme", 3), Some(seen.etag()));
        let problem = late.is_problem(412, ":changed-meanwhile");
        assert_eq!(problem["given"], json!({ "revision": 1 }));
        assert_eq!(problem["current"]["revision"], 2);
        assert_eq!(problem["current"]["document"]["policies"]["limits"]["rate"]["requests"], 2);
        assert_eq!(late.etag(), "\"2\"");
        // Having seen it, the second may have it their way.
        other.put_if("/tenants/acme", &tenant_with_rate("acme", 3), Some(late.etag())).is(200);

        other.delete("/tenants/acme").is(200);
        let gone = one.put_if("/tenants/acme", &tenant_with_rate("acme", 4), Some("\"3\""));
        assert_eq!(gone.is_problem(412, ":changed-meanwhile")["current"], Value::Null);
    }

    fn a_change_that_changes_nothing_is_no_revision(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        let again = client.put("/tenants/acme", &tenant("acme")).is(200);
        assert_eq!(again.json(), json!({ "revision": 1, "changed": [], "head": false }));
        assert_eq!(again.etag(), "\"1\"");
        client.put("/head", &client.get("/head").json()).is(200);
        client.import("", client.get("/export").text()).is(200);
        assert_eq!(client.get("/revisions").json()["items"].as_array().unwrap().len(), 1);
    }

    fn twenty_writers_at_the_same_time_make_twenty_revisions_in_a_row(database) {
        let admin = database.admin();
        let client = admin.client();
        let writers: Vec<_> = (0..20)
            .map(|number| {
                let client = client.clone();
                thread::spawn(move || client.post("/tenants", &tenant(&format!("t{number}"))).is(201).json())
            })
            .collect();
        let answers = writers.into_iter().map(|writer| writer.join().unwrap()["revision"].as_u64().unwrap());
        let mut revisions: Vec<u64> = answers.collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=20).collect::<Vec<_>>());
        let verdict = client.get("/audit/verify").is(200).json();
        assert_eq!((&verdict["intact"], &verdict["faults"]), (&json!(true), &json!([])));
    }

    fn limits_change_by_their_columns_and_nothing_else_does(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        client.post("/gateway/configure", &json!({ "tenant": "acme", "custom_headers": { "X-Brand": "acme" } })).is(200);
        let shown = client.get("/gateway/configure?tenant=acme").is(200).json();
        assert_eq!(
            shown,
            json!({
                "tenant": "acme", "rate_limit_rpm": 1000, "burst_limit": 100, "quota_daily": 100_000,
                "quota_monthly": 1_000_000, "custom_headers": { "x-brand": "acme" }, "cors_config": {},
                "caching_enabled": true, "cache_ttl_seconds": 300,
                "notes": [{ "column": "cors_config", "note": shown["notes"][0]["note"] }],
            })
        );
        client.put("/gateway/limits", &json!({ "tenant": "acme", "rate_limit_rpm": 500, "quota_daily": null })).is(200);
        let limits = client.get("/tenants/acme").json()["policies"]["limits"].clone();
        assert_eq!(limits["rate"], json!({ "requests": 500, "per": "1m", "burst": 100 }));
        assert_eq!(limits["quotas"], json!({ "daily": "unlimited", "monthly": 1_000_000 }));
        assert_eq!(client.get("/tenants/acme").json()["routes"], tenant("acme")["routes"]);

        let problem = client.put("/gateway/limits", &json!({ "tenant": "acme", "rate_limit_rpm": 0 }));
        let problem = problem.is_problem(422, ":invalid");
        assert_eq!(problem["errors"][0]["path"], "rate_limit_rpm");
        client.put("/gateway/limits", &json!({ "tenant": "nobody", "rate_limit_rpm": 1 })).is_problem(404, ":not-found");
        client.put("/gateway/limits", &json!({ "tenant": "acme" })).is_problem(422, ":invalid");
        let rows = "SELECT COUNT(*) AS number FROM api_gateway_config \
            WHERE rate_limit_rpm = 500 AND quota_daily IS NULL AND caching_enabled AND cache_ttl_seconds = 300";
        assert_eq!(database.number(rows), 1);
    }

    fn a_host_belongs_to_one_tenant(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        let mut other = tenant("other");
        other["hosts"] = json!(["other.example", "ACME.example."]);
        let problem = client.post("/tenants", &other).is_problem(422, ":invalid");
        assert_eq!(problem["errors"][0]["path"], "hosts[1]");
        assert!(!problem["errors"].to_string().contains("tenant acme"), "whose it is, is told to nobody: {problem}");

        let found = |host: &str| client.get(&format!("/tenants?host={host}")).is(200).json()["items"][0]["id"].clone();
        other["hosts"] = json!(["*.acme.example"]);
        client.post("/tenants", &other).is(201);
        assert_eq!([found("acme.example"), found("a.b.acme.example"), found("nowhere.example")], [
            json!("acme"), json!("other"), Value::Null
        ]);
        // A host may move within one change.
        let moved = format!("revision: 1\ntenants: [{}, {}]", {
            let mut acme = tenant("acme");
            acme["hosts"] = json!(["*.acme.example"]);
            acme
        }, {
            other["hosts"] = json!(["acme.example"]);
            other
        });
        client.import("", &moved).is(200);
        assert_eq!(found("acme.example"), "other");
    }

    fn the_head_is_checked_against_every_tenant(database) {
        let admin = database.admin();
        let client = admin.client();
        let head = json!({ "plans": { "gold": {} } });
        client.put("/head", &head).is(200);
        let mut acme = tenant("acme");
        acme["plan"] = json!("gold");
        client.post("/tenants", &acme).is(201);
        let problem = client.put("/head", &json!({})).is_problem(422, ":invalid");
        assert_eq!((&problem["errors"][0]["path"], &problem["errors"][0]["tenant"]), (&json!("plan"), &json!("acme")));
        let read = client.get("/head");
        assert_eq!(read.json()["plans"], head["plans"]);
        let problem = client.put_if("/head", &json!({ "plans": { "gold": {}, "iron": {} } }), Some("\"0\""));
        assert_eq!(problem.is_problem(412, ":changed-meanwhile")["current"]["revision"], 1);
        client.put_if("/head", &json!({ "plans": { "gold": {}, "iron": {} } }), Some(read.etag())).is(200);
    }

    fn what_was_exported_is_imported_as_it_was(database) {
        let admin = database.admin();
        let client = admin.client();
        let mut tricky = tenant("tricky");
        tricky["policies"]["headers"] = json!({ "response": { "set": {
            "x-a": "yes", "x-b": "0x1F", "x-c": "~", "x-d": "1e3", "x-e": " : # - ' \" ", "x-f": "null", "x-g": "2027-01-01",
        } } });
        tricky["policies"]["transform"] = json!({ "request_body": "# jq\n.a |= (\n  . + 1\n)\n" });
        let mut gold = tenant_with_rate("acme", 60);
        gold["plan"] = json!("gold");
        let head = json!({ "defaults": { "cors": { "origins": ["https://a.example"] } }, "plans": { "gold": {} } });
        client.put("/head", &head).is(200);
        for one in [&tricky, &gold, &tenant("plain")] {
            client.post("/tenants", one).is(201);
        }
        let exported = client.get("/export").is(200);
        assert_eq!(exported.header("content-type"), Some("application/yaml"));
        let documents = |client: &crate::support::Client| {
            ["/head", "/tenants/tricky", "/tenants/acme", "/tenants/plain"].map(|path| client.get(path).is(200).json())
        };
        let before = documents(&client);
        client.send("POST", "/validate", &[("content-type", "application/yaml")], &exported.body).is(200);

        let elsewhere = crate::support::Database::sqlite();
        let copy = elsewhere.admin();
        copy.client().post("/tenants", &tenant("other")).is(201);
        let dry = copy.client().import("?replace=true&dry_run=true", exported.text()).is(200).json();
        assert_eq!((&dry["dry_run"], &dry["changed"]), (&json!(true), &json!(["acme", "other", "plain", "tricky"])));
        copy.client().get("/tenants/acme").is(404);
        copy.client().import("?replace=true", exported.text()).is(200);
        assert_eq!(documents(&copy.client()), before);
        copy.client().get("/tenants/other").is(404);
        let again = copy.client().import("?replace=true", exported.text()).is(200).json();
        assert_eq!((&again["changed"], &again["head"]), (&json!([]), &json!(false)));
    }

    fn a_request_that_is_repeated_is_carried_out_once(database) {
        let admin = database.admin();
        let client = admin.client();
        let post = |path: &str, key: &str, body: &Value| {
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            client.send("POST", path, &headers, body.to_string().as_bytes())
        };
        let first = post("/tenants", "k1", &tenant("acme")).is(201);
        let again = post("/tenants", "k1", &tenant("acme")).is(201);
        assert_eq!(again.json(), first.json());
        post("/tenants", "k1", &tenant("globex")).is_problem(422, ":idempotency-key-used");
        post("/operators", "k1", &json!({ "name": "x", "role": "viewer" })).is_problem(422, ":idempotency-key-used");
        // At the same time, too.
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || {
                    let headers = [("content-type", "application/json"), ("idempotency-key", "k2")];
                    client.send("POST", "/tenants", &headers, tenant("globex").to_string().as_bytes()).is(201).json()
                })
            })
            .collect();
        for writer in writers {
            assert_eq!(writer.join().unwrap()["revision"], 2);
        }
        // What changes nothing is remembered as well.
        let configure = json!({ "tenant": "acme" });
        post("/gateway/configure", "k3", &configure).is(200);
        post("/gateway/configure", "k4", &configure).is(200);
        post("/gateway/configure", "k4", &json!({ "tenant": "globex" })).is_problem(422, ":idempotency-key-used");
        let token = json!({ "kind": "node", "name": "n" });
        assert!(post("/tokens", "k5", &token).is(201).json()["token"].is_string());
        assert_eq!(post("/tokens", "k5", &token).is(201).json()["token"], Value::Null);
        assert_eq!(client.get("/tokens").json()["items"].as_array().unwrap().len(), 3);
        assert_eq!(client.get("/status").json()["revision"], 3);
    }

    fn lists_come_in_pages(database) {
        let admin = database.admin();
        let client = admin.client();
        let tenants: Vec<String> = (0..7).map(|number| tenant(&format!("t{number}")).to_string()).collect();
        client.import("", &format!("revision: 1\ntenants: [{}]", tenants.join(","))).is(200);
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/tenants?limit=3{cursor}")).is(200).json();
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, (0..7).map(|number| format!("t{number}")).collect::<Vec<_>>());
        client.get("/tenants?limit=0").is_problem(400, ":bad-request");
        client.get("/tenants?cursor=nonsense").is_problem(400, ":bad-request");
        client.get("/tenants?colour=red").is_problem(400, ":bad-request");
    }
}
