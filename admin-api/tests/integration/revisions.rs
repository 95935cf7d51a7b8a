//! What was changed, and the way back.

use serde_json::{Value, json};

use crate::support::{on_both, tenant, tenant_with_rate};

on_both! {
    fn a_rollback_brings_back_what_was(database) {
        let admin = database.admin();
        let client = admin.client();
        let state = || {
            let tenants = ["acme", "globex", "initech"].map(|id| client.get(&format!("/tenants/{id}")));
            let tenants = tenants.map(|answer| (answer.status, if answer.status == 200 { answer.json() } else { Value::Null }));
            (client.get("/head").json(), tenants)
        };
        let empty = state();
        client.put("/head", &json!({ "plans": { "gold": {} } })).is(200);
        client.post("/tenants", &tenant_with_rate("acme", 1)).is(201);
        client.post("/tenants", &tenant("globex")).is(201);
        let third = state();
        client.put("/tenants/acme", &tenant_with_rate("acme", 2)).is(200);
        client.delete("/tenants/globex").is(200);
        client.post("/tenants", &tenant("initech")).is(201);
        client.put("/head", &json!({})).is(200);
        let seventh = state();

        let back = client.post("/revisions/3/rollback?reason=trial", &Value::Null).is(200).json();
        assert_eq!(back, json!({ "revision": 8, "changed": ["acme", "globex", "initech"], "head": true }));
        assert_eq!(state(), third);
        client.post("/revisions/7/rollback", &Value::Null).is(200);
        assert_eq!(state(), seventh);
        client.post("/revisions/0/rollback", &Value::Null).is(200);
        assert_eq!(state(), empty);
        client.post("/revisions/99/rollback", &Value::Null).is_problem(404, ":not-found");
        let listed = client.get("/revisions?limit=3").json();
        assert_eq!(listed["items"][2]["reason"], "trial");
        assert_eq!(client.get("/audit/verify").json()["intact"], true);
    }

    fn what_changed_comes_in_pages_and_each_document_once(database) {
        let admin = database.admin();
        let client = admin.client();
        let file = |names: &[String], rate: u64| {
            let tenants: Vec<_> = names.iter().map(|name| tenant_with_rate(name, rate)).collect();
            json!({ "revision": 1, "plans": { "gold": {} }, "tenants": tenants }).to_string()
        };
        let names: Vec<String> = (0..45).map(|number| format!("t{number:02}")).collect();
        client.import("", &file(&names, 1)).is(200);
        client.import("", &file(&names[..10], 2)).is(200);
        let all = |path: &str| {
            let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let page = client.get(&format!("{path}limit=20{cursor}")).is(200).json();
                let changes = page["changes"].as_array().unwrap();
                assert!(changes.len() <= 20, "{}", changes.len());
                found.extend(changes.iter().map(|change| change["tenant"].as_str().unwrap_or_default().to_owned()));
                pages += 1;
                match page["next"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => return (found, pages),
                }
            }
        };
        let mut expected = vec![String::new()];
        expected.extend(names.iter().cloned());
        assert_eq!(all("/revisions/1?"), (expected.clone(), 3));
        assert_eq!(all("/revisions/0/diff?to=2&"), (expected, 3));
        assert_eq!(all("/revisions/1/diff?"), (names[..10].to_vec(), 1));
        assert_eq!(client.get("/revisions/1").json()["changes"].as_array().unwrap().len(), 46);
        client.get("/revisions/1?limit=0").is_problem(400, ":bad-request");
        client.get("/revisions/1?cursor=%3F").is_problem(400, ":bad-request");
    }

    fn a_revision_tells_what_it_changed(database) {
        let admin = database.admin();
        let client = admin.operator("ada", "admin", None);
        client.post("/tenants", &tenant_with_rate("acme", 1)).is(201);
        client.put("/gateway/limits", &json!({ "tenant": "acme", "rate_limit_rpm": 2 })).is(200);
        let revision = client.get("/revisions/2").is(200).json();
        assert_eq!((&revision["author"], &revision["action"]), (&json!("ada"), &json!("put_limits")));
        let change = &revision["changes"][0];
        assert_eq!((&change["tenant"], change["before"]["id"].as_str()), (&json!("acme"), Some("acme")));
        assert_eq!(
            change["places"],
            json!([{ "path": "policies.limits.rate.requests", "before": 1, "after": 2 }])
        );
        client.delete("/tenants/acme").is(200);
        let forward = client.get("/revisions/1/diff").is(200).json();
        assert_eq!((&forward["to"], &forward["changes"][0]["after"]), (&json!(3), &Value::Null));
        let backward = client.get("/revisions/2/diff?to=1").is(200).json();
        assert_eq!(backward["changes"][0]["places"][0]["after"], 1);
        // Made and removed since: nothing differs.
        assert_eq!(client.get("/revisions/0/diff").is(200).json()["changes"], json!([]));
        client.get("/revisions/9").is_problem(404, ":not-found");
        client.get("/revisions/9/diff").is_problem(404, ":not-found");
        client.get("/revisions/-1").is_problem(400, ":bad-request");
    }
}
