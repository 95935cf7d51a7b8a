//! API keys: made, replaced, revoked; and shown once.

use serde_json::{Value, json};

use crate::support::{Admin, Database, on_both, tenant};

fn with_consumer(database: &Database) -> Admin {
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    let consumer = json!({ "tenant": "acme", "id": "app", "scopes": ["read", "write"] });
    let made = client.post("/consumers", &consumer).is(201);
    assert_eq!(made.header("location"), Some("/api/enterprise/tenants/acme/consumers/app"));
    client.post("/consumers", &consumer).is_problem(409, ":conflict");
    admin
}

/// The document's entry of a key.
fn entry(admin: &Admin, id: &Value) -> Value {
    let prefix = id.as_str().unwrap().rsplit_once('.').unwrap().1;
    let document = admin.client().get("/tenants/acme").is(200).json();
    let keys = document["consumers"][0]["keys"].as_array().cloned().unwrap_or_default();
    keys.into_iter().find(|key| key["prefix"] == prefix).unwrap_or_default()
}

fn seconds(time: &Value) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(time.as_str().unwrap(), format).unwrap().unix_timestamp()
}

on_both! {
    fn a_key_is_shown_once_and_kept_as_its_hash(database) {
        let admin = with_consumer(database);
        let client = admin.client();
        let body = json!({ "tenant": "acme", "consumer": "app", "scopes": ["read"], "expires_at": "2099-01-01T00:00:00Z" });
        let made = client.post("/keys", &body).is(201).json();
        let (id, key) = (&made["id"], made["key"].as_str().unwrap());
        let prefix = key.split('_').nth(1).unwrap();
        assert_eq!(*id, format!("acme.{prefix}"));
        use sha2::Digest as _;
        let hash: String = sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = entry(&admin, id);
        assert_eq!((&kept["hash"], &kept["scopes"]), (&json!(format!("sha256:{hash}")), &json!(["read"])));
        let shown = client.get(&format!("/keys/{}", id.as_str().unwrap())).is(200).json();
        assert_eq!([&shown["consumer"], &shown["state"], &shown["expires_at"]], ["app", "active", "2099-01-01T00:00:00Z"]);
        assert!(!shown.to_string().contains(&hash), "{shown}");
        // Nowhere else.
        let secret = key.rsplit('_').next().unwrap();
        let trail = client.get("/audit").is(200).json();
        assert_eq!(trail["items"][0]["detail"]["key"], *id);
        for path in ["/audit", "/keys", "/tenants/acme", "/revisions/3", "/export"] {
            let answer = client.get(path).is(200);
            assert!(!answer.text().contains(secret), "{path}: {answer}");
        }
        assert!(!admin.log().contains(secret));
    }

    fn a_key_that_is_asked_for_twice_is_made_once_and_shown_once(database) {
        let admin = with_consumer(database);
        let client = admin.client();
        let post = |path: &str, key: &str, body: Value| {
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            client.send("POST", path, &headers, body.to_string().as_bytes()).is(201).json()
        };
        let body = json!({ "tenant": "acme", "consumer": "app" });
        let (first, again) = (post("/keys", "k1", body.clone()), post("/keys", "k1", body));
        assert!(first["key"].is_string());
        assert_eq!((&again["id"], &again["key"]), (&first["id"], &Value::Null));
        assert_eq!(client.get("/keys").json()["items"].as_array().unwrap().len(), 1);
        let rotate = format!("/keys/{}/rotate", first["id"].as_str().unwrap());
        let (new, again) = (post(&rotate, "k2", json!({ "grace": "1h" })), post(&rotate, "k2", json!({ "grace": "1h" })));
        assert_eq!((&again["id"], &again["key"], &again["consumer"]), (&new["id"], &Value::Null, &json!("app")));
        assert_eq!(client.get("/keys").json()["items"].as_array().unwrap().len(), 2);
    }

    fn a_key_is_replaced_and_the_old_one_ends_after_its_grace(database) {
        let admin = with_consumer(database);
        let client = admin.client();
        let made = client.post("/keys", &json!({ "tenant": "acme", "consumer": "app", "scopes": ["read"] })).is(201).json();
        let rotate = |id: &Value, grace: &str| {
            client.post(&format!("/keys/{}/rotate", id.as_str().unwrap()), &json!({ "grace": grace })).is(201).json()
        };
        let before = time::OffsetDateTime::now_utc().unix_timestamp();
        let new = rotate(&made["id"], "2h");
        assert_eq!((&new["replaces"]["id"], &entry(&admin, &new["id"])["scopes"]), (&made["id"], &json!(["read"])));
        let ends = seconds(&entry(&admin, &made["id"])["expires"]);
        assert!((before + 7200..before + 7300).contains(&ends), "{ends}");
        assert_eq!(seconds(&new["replaces"]["expires_at"]), ends);
        // To replace it again does not make it live longer.
        rotate(&made["id"], "9h");
        assert_eq!(seconds(&entry(&admin, &made["id"])["expires"]), ends);
        rotate(&made["id"], "0s");
        let shown = |query: &str| client.get(&format!("/keys{query}")).is(200).json()["items"].as_array().unwrap().clone();
        assert_eq!(shown("?tenant=acme&consumer=app").len(), 4);
        let expired = shown("?expires_before=2098-01-01T00:00:00Z");
        assert_eq!(expired.len(), 1);
        assert_eq!((&expired[0]["id"], &expired[0]["state"]), (&made["id"], &json!("expired")));
        let path = format!("/keys/{}", made["id"].as_str().unwrap());
        client.delete(&path).is(200);
        client.delete(&path).is_problem(404, ":not-found");
        client.get(&path).is_problem(404, ":not-found");
        assert_eq!(entry(&admin, &made["id"]), Value::Null);
        client.delete("/tenants/acme/consumers/app").is(200);
        assert_eq!(shown(""), [Value::Null; 0]);
    }

    fn what_no_key_can_be_made_of_is_refused(database) {
        let admin = with_consumer(database);
        let client = admin.client();
        let body = |key: &str, value: Value| {
            let mut body = json!({ "tenant": "acme", "consumer": "app" });
            body[key] = value;
            body
        };
        client.post("/keys", &body("consumer", json!("nobody"))).is_problem(404, ":not-found");
        client.post("/keys", &body("tenant", json!("nobody"))).is_problem(404, ":not-found");
        client.post("/keys", &body("expires_at", json!("2001-01-01T00:00:00Z"))).is_problem(422, ":invalid");
        client.post("/keys", &body("expires_at", json!("tomorrow"))).is_problem(422, ":invalid");
        client.post("/keys", &body("colour", json!("red"))).is_problem(422, ":invalid");
        client.post("/keys/acme.AAAAAAAA/rotate", &json!({ "grace": "1h" })).is_problem(404, ":not-found");
        client.post("/keys/acme.AAAAAAAA/rotate", &json!({ "grace": "soon" })).is_problem(422, ":invalid");
        client.post("/keys/nonsense/rotate", &json!({ "grace": "1h" })).is_problem(400, ":bad-request");
        client.get("/keys?expires_before=tomorrow").is_problem(400, ":bad-request");
        assert_eq!(client.get("/keys").json()["items"], json!([]));
    }
}
