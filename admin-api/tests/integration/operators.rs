//! Operators and their tokens.

use serde_json::{Value, json};

use crate::support::{Client, on_both};

on_both! {
    fn an_operator_is_added_changed_and_removed_with_its_tokens(database) {
        let admin = database.admin();
        let owner = admin.client();
        let made = owner.post("/operators", &json!({ "name": "ada", "role": "operator", "tenants": ["acme"] })).is(201);
        assert_eq!(made.etag(), "\"1\"");
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let path = format!("/operators/{id}");
        owner.post("/operators", &json!({ "name": "ada", "role": "viewer" })).is_problem(409, ":conflict");
        let token = owner.post("/tokens", &json!({ "kind": "operator", "name": "laptop", "operator": id })).is(201).json();
        let ada = Client { token: token["token"].as_str().map(str::to_owned), ..owner.clone() };
        ada.get("/tenants/acme").is(404);
        ada.get("/head").is(403);

        let wider = json!({ "name": "ada", "role": "auditor" });
        owner.put_if(&path, &wider, Some("\"1\"")).is(200);
        let late = owner.put_if(&path, &wider, Some("\"1\"")).is_problem(412, ":changed-meanwhile");
        assert_eq!(late["current"]["revision"], 2);
        ada.get("/head").is(200);
        ada.get("/operators").is(200);

        let listed = owner.get("/tokens").json().to_string();
        assert!(!listed.contains(token["token"].as_str().unwrap()) && listed.contains("laptop"));
        let second = owner.post("/tokens", &json!({ "kind": "operator", "name": "phone", "operator": id })).is(201).json();
        let phone = Client { token: second["token"].as_str().map(str::to_owned), ..owner.clone() };
        owner.delete(&format!("/tokens/{}", token["id"].as_str().unwrap())).is(204);
        ada.get("/status").is(401);
        phone.get("/status").is(200);
        owner.delete(&path).is(204);
        phone.get("/status").is(401);
        owner.get(&path).is_problem(404, ":not-found");
    }

    fn nobody_is_raised_above_those_who_raise_them(database) {
        let admin = database.admin();
        let owner = admin.client();
        let ada = admin.operator("ada", "admin", None);
        ada.post("/operators", &json!({ "name": "x", "role": "owner" })).is_problem(403, ":forbidden");
        let operators = owner.get("/operators").json();
        let id = |name: &str| {
            let found = operators["items"].as_array().unwrap().iter().find(|operator| operator["name"] == name);
            found.unwrap()["id"].as_str().unwrap().to_owned()
        };
        let me = format!("/operators/{}", id("ada"));
        ada.put(&me, &json!({ "name": "ada", "role": "owner" })).is_problem(403, ":forbidden");
        let them = format!("/operators/{}", id("owner"));
        ada.put(&them, &json!({ "name": "owner", "role": "viewer" })).is_problem(403, ":forbidden");
        ada.delete(&them).is_problem(403, ":forbidden");
        let token = json!({ "kind": "operator", "name": "x", "operator": id("owner") });
        ada.post("/tokens", &token).is_problem(403, ":forbidden");
        let theirs = owner.get("/tokens").json()["items"][0]["id"].as_str().unwrap().to_owned();
        ada.delete(&format!("/tokens/{theirs}")).is_problem(403, ":forbidden");
        ada.post("/operators", &json!({ "name": "x", "role": "admin" })).is(201);
        // The last owner cannot go, nor become less.
        owner.delete(&them).is_problem(409, ":conflict");
        owner.put(&them, &json!({ "name": "owner", "role": "admin" })).is_problem(409, ":conflict");
        owner.put(&them, &json!({ "name": "owner", "role": "owner", "tenants": ["acme"] })).is_problem(409, ":conflict");
        owner.put(&me, &json!({ "name": "ada", "role": "owner" })).is(200);
        ada.delete(&them).is(204);
        assert_eq!(ada.get("/operators").json()["items"].as_array().map(Vec::len), Some(2));
        assert_ne!(ada.get("/audit?action=put_operator").json()["items"][0]["detail"]["before"], Value::Null);
    }
}
