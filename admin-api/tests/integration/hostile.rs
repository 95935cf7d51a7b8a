//! What must not be sent: a clear refusal each time, and nothing changed.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{Admin, Client, Database, on_both, tenant, wait_until};

const JSON: (&str, &str) = ("content-type", "application/json");

/// What is refused leaves no trace but in the audit trail.
fn unchanged(client: &Client, what: impl FnOnce()) {
    let state =
        || ["/tenants", "/head", "/revisions", "/operators", "/tokens"].map(|path| client.get(path).is(200).json());
    let before = state();
    what();
    assert_eq!(state(), before);
    assert_eq!(client.get("/audit/verify").json()["intact"], true);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    let with = |key: &str, value: Value| {
        let mut document = tenant("acme");
        document[key] = value;
        document
    };
    unchanged(&client, || {
        for (document, path) in [
            (with("hosts", json!("acme.example")), "hosts"),
            (with("hosts", json!([1])), "hosts[0]"),
            (with("hosts", json!([])), "hosts"),
            (with("routes", json!({})), "routes"),
            (
                with("policies", json!({ "limits": { "rate": { "requests": -1, "per": "1m" } } })),
                "policies.limits.rate.requests",
            ),
            (
                with("policies", json!({ "limits": { "rate": { "requests": 1, "per": "1y" } } })),
                "policies.limits.rate.per",
            ),
            (with("policies", json!({ "no_such_policy": 1 })), "policies.no_such_policy"),
            (with("no_such_key", json!(1)), "no_such_key"),
            (with("plan", json!("no-such-plan")), "plan"),
            (with("id", json!("Acme")), "id"),
            (with("id", json!("globex")), "id"),
            (with("hosts", json!(["'; DROP TABLE tenants; --"])), "hosts[0]"),
            (with("hosts", json!(["{{7*7}}.example"])), "hosts[0]"),
            (
                with("upstreams", json!({ "own": { "endpoints": [{ "address": "${jndi:ldap://x}" }] } })),
                "upstreams.own.endpoints[0].address",
            ),
            (
                with("consumers", json!([{ "id": "a", "keys": [{ "prefix": "abcdefgh", "key": "hunter2" }] }])),
                "consumers[0].keys[0]",
            ),
        ] {
            let answer = client.put("/tenants/acme", &document);
            let problem = answer.is_problem(422, ":invalid");
            let place = problem["errors"][0]["path"].as_str().unwrap();
            assert!(place == path || path.starts_with(place) || place.starts_with(path), "{path}: {answer}");
            assert!(!problem["errors"][0]["detail"].as_str().unwrap().is_empty());
            assert!(!answer.text().contains("hunter2"));
        }
        for body in [
            json!(null),
            json!([]),
            json!(1),
            json!("x"),
            json!({}),
            json!({ "tenant": "acme", "rate_limit_rpm": "5" }),
        ] {
            for path in ["/gateway/limits", "/head", "/tenants/acme"] {
                if (path, &body) != ("/head", &json!({})) {
                    client.put(path, &body).is_problem(422, ":invalid");
                }
            }
        }
        for body in [
            json!({ "name": "x", "role": "god" }),
            json!({ "name": "X", "role": "viewer" }),
            json!({ "name": "x", "role": "viewer", "tenants": "acme" }),
            json!({ "name": "x", "role": "viewer", "admin": true }),
        ] {
            client.post("/operators", &body).is_problem(422, ":invalid");
        }
        for body in [
            json!({ "kind": "operator", "name": "x" }),
            json!({ "kind": "node", "name": "" }),
            json!({ "kind": "node", "name": "a\nb" }),
            json!({ "kind": "node", "name": "x", "node": "No Such Name" }),
            json!({ "kind": "node", "name": "x", "expires_at": "yesterday" }),
            json!({ "kind": "node", "name": "x", "expires_at": "2001-01-01T00:00:00Z" }),
        ] {
            client.post("/tokens", &body).is_problem(422, ":invalid");
        }
    });
}

#[test]
fn what_cannot_be_read_is_refused() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    unchanged(&client, || {
        let send = |method: &str, path: &str, body: &[u8]| client.send(method, path, &[JSON], body);
        for body in [
            &b""[..],
            b"{",
            b"{}{}",
            b"\xff\xfe{}",
            b"{\"id\": \"\xc3\x28\"}",
            b"\0",
            b"// no",
            b"{\"id\": 1e999}",
            b"NaN",
        ] {
            for (method, path) in
                [("POST", "/tenants"), ("PUT", "/head"), ("PUT", "/gateway/limits"), ("POST", "/operators")]
            {
                let answer = send(method, path, body);
                assert!(matches!(answer.status, 400 | 422), "{answer}");
                answer.is_problem(answer.status, if answer.status == 400 { ":bad-request" } else { ":invalid" });
            }
        }
        // Deep: as unknown keys, where nothing is looked at, and where the model itself is deep.
        let deep = |open: &str, times: usize| open.repeat(times);
        for body in [
            deep("[", 500_000),
            deep("{\"a\":", 200_000),
            format!("{{\"defaults\":{}", deep("{\"cors\":", 100_000)),
            format!("{{\"defaults\":{{\"validation\":{{\"body_schema\":{}", deep("{\"not\":", 100_000)),
        ] {
            let answer = send("PUT", "/head", body.as_bytes());
            assert!(matches!(answer.status, 400 | 422), "{answer}");
        }
        // Large: said so before, or found out while it is read.
        let large = format!("{{\"id\": \"{}\"}}", "x".repeat(1 << 20));
        assert_eq!(
            send("POST", "/tenants", large.as_bytes()).is_problem(413, ":payload-too-large")["max-bytes"],
            1 << 20
        );
        // Of another kind.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/yaml", ""] {
            let answer = client.send("POST", "/tenants", &[("content-type", kind)], b"{}");
            answer.is_problem(415, ":unsupported-media-type");
        }
        client
            .send("POST", "/import", &[("content-type", "text/html")], b"x")
            .is_problem(415, ":unsupported-media-type");
        for yaml in
            ["", "revision: 1\ntenants: [{", "a: &a [*a, *a]", "revision: 1\ntenants:\n  - id: x\n", "\u{feff}%TAG ! x"]
        {
            client.import("", yaml).is_problem(422, ":invalid");
        }
        let bomb = (0..30).fold("a0: &a0 [x]\n".to_owned(), |text, level| {
            let last = format!("*a{level}");
            format!("{text}a{0}: &a{0} [{last},{last},{last},{last}]\n", level + 1)
        });
        client.import("", &bomb).is_problem(422, ":invalid");
        let error =
            client.import("", "revision: 1\ntenants:\n  - id: acme\n    hosts: [acme.example]\n    ruotes: []\n");
        let error = error.is_problem(422, ":invalid")["errors"][0].clone();
        assert_eq!((&error["line"], &error["column"]), (&json!(5), &json!(5)));
        assert!(error["fix"].as_str().unwrap().contains("did you mean routes?"), "{error}");
    });
}

#[test]
fn paths_and_queries_are_no_way_in() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    unchanged(&client, || {
        for id in
            ["'%20OR%201=1", "acme'--", "..%2F..%2Fetc", "%00", "%FF", "{{7*7}}", "ACME", "a%0d%0ab", &"a".repeat(64)]
        {
            let answer = client.get(&format!("/tenants/{id}"));
            answer.is_problem(400, ":bad-request");
            client.put(&format!("/tenants/{id}"), &tenant("acme")).is_problem(400, ":bad-request");
            client.delete(&format!("/tenants/{id}")).is_problem(400, ":bad-request");
        }
        for query in [
            "?limit=-1",
            "?limit=1e3",
            "?limit=1&limit=2",
            "?host='--",
            "?cursor=%FF",
            "?x=1",
            "?limit=99999999999999999999",
        ] {
            client.get(&format!("/tenants{query}")).is_problem(400, ":bad-request");
        }
        client.get("/audit?actor='%20OR%20'1'='1").is(200);
        assert_eq!(client.get("/audit?actor='%20OR%20'1'='1").json()["items"], json!([]));
        assert_eq!(client.get("/audit?action=%25").json()["items"], json!([]));
        client.get("/revisions/99999999999999999999").is_problem(400, ":bad-request");
        client.get("/revisions/9223372036854775808").is_problem(404, ":not-found");
        client.get("/operators/1").is_problem(400, ":bad-request");
        client.put_if("/tenants/acme", &tenant("acme"), Some("W/\"1\"")).is_problem(400, ":bad-request");
        client.put("/tenants/acme?wait=applied&timeout=1h", &tenant("acme")).is_problem(400, ":bad-request");
        client.put("/tenants/acme?wait=maybe", &tenant("acme")).is_problem(400, ":bad-request");
        client.send("POST", "/tenants", &[JSON, ("idempotency-key", "")], b"{}").is_problem(400, ":bad-request");
        client
            .send("POST", "/tenants", &[JSON, ("idempotency-key", &"x".repeat(256))], b"{}")
            .is_problem(400, ":bad-request");
    });
}

#[test]
fn what_is_not_there_is_told_as_a_problem_too() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    for path in ["/nothing", "//", "//api", "/tenants/a/b", "//etc/passwd", "/tenants/"] {
        client.get(path).is_problem(404, ":not-found");
        client.without_token().get(path).is_problem(404, ":not-found");
    }
    let answer = client.send("PATCH", "/tenants/acme", &[JSON], b"{}");
    answer.is_problem(405, ":method-not-allowed");
    let allowed = answer.header("allow").unwrap();
    assert!(["GET", "PUT", "DELETE"].iter().all(|method| allowed.contains(method)), "{allowed}");
    client.send("POST", "//livez", &[], b"").is_problem(405, ":method-not-allowed");
    client.send("BREW", "/tenants", &[], b"").is_problem(405, ":method-not-allowed");
    let head = client.send("HEAD", "/status", &[], b"").is(200);
    assert!(head.body.is_empty());
}

/// More than the system takes for a client that does not read.
fn put_much(client: &Client) {
    for number in 0..12 {
        let mut large = tenant(&format!("large-{number}"));
        let route = |route: usize| {
            let path = format!("/{route}/{}", "segment".repeat(25));
            json!({ "id": format!("route-{route}"), "match": { "path": path }, "upstream": "own" })
        };
        large["routes"] = (0..2500).map(route).collect();
        client.put(&format!("/tenants/large-{number}"), &large).is(200);
    }
}

#[test]
fn heavy_answers_of_one_operator_come_a_few_at_a_time_whatever_tokens_and_hold_up_nobody_else() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    put_much(&owner);
    let vic = admin.operator("vic", "viewer", None);
    let begin = |client: &Client| {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let token = client.token.as_deref().unwrap();
        let request =
            format!("GET /api/enterprise/export HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    // It takes nothing more of them.
    let mut slow = vec![begin(&vic), begin(&vic)];
    let operators = owner.get("/operators").json();
    let id = operators["items"].as_array().unwrap().iter().find(|one| one["name"] == "vic").unwrap()["id"].clone();
    let other = owner.post("/tokens", &json!({ "kind": "operator", "name": "other", "operator": id })).is(201);
    let other = Client { token: Some(other.json()["token"].as_str().unwrap().to_owned()), ..vic.clone() };
    let refused = vic.get("/export");
    refused.is_problem(429, "#quota-exceeded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    other.get("/revisions/1/diff").is_problem(429, "#quota-exceeded");
    other.get("/status").is(200);
    owner.get("/export").is(200);
    slow.pop();
    wait_until("one of them has ended", || vic.get("/export").status == 200);
}

#[test]
fn a_body_that_comes_slowly_holds_up_no_heavy_request() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    let begin = |client: &Client| {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let request = format!(
            "POST /api/enterprise/validate HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {}\r\n\
             content-type: application/yaml\r\ncontent-length: 100\r\n\r\n{{",
            client.token.as_deref().unwrap()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    // As many as there may be heavy requests.
    let slow: Vec<(Client, [TcpStream; 2])> = (0..4)
        .map(|number| {
            let client = admin.operator(&format!("slow-{number}"), "viewer", Some(&["acme"]));
            let streams = [begin(&client), begin(&client)];
            (client, streams)
        })
        .collect();
    let valid = |client: &Client| {
        client.send("POST", "/validate", &[("content-type", "application/yaml")], b"revision: 1\ntenants: []\n")
    };
    wait_until("all are arriving", || slow.iter().all(|(client, _)| valid(client).status == 429));
    let vic = admin.operator("vic", "viewer", Some(&["acme"]));
    valid(&vic).is(200);
    vic.get("/usage").is(200);
    owner.get("/export").is(200);
    // Their own, too.
    slow[0].0.get("/usage").is(200);
    drop(slow);
}

#[test]
fn an_operator_has_so_many_requests_at_a_time() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    owner.post("/tenants", &tenant("acme")).is(201);
    let vic = admin.operator("vic", "operator", None);
    // Bodies that do not come.
    let slow: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = TcpStream::connect(admin.address).unwrap();
            let request = format!(
                "PUT /api/enterprise/gateway/limits HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {}\r\n\
                 content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
                vic.token.as_deref().unwrap()
            );
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    wait_until("all are under way", || vic.get("/status").status == 429);
    owner.get("/status").is(200);
    drop(slow);
    wait_until("they have ended", || vic.get("/status").status == 200);
}

#[test]
fn an_empty_list_of_tenants_or_kinds_is_refused_wherever_one_may_stand() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    let operator = client.post("/operators", &json!({ "name": "vic", "role": "viewer", "tenants": ["acme"] })).is(201);
    let hook = json!({ "name": "hook", "url": "https://hooks.example/x", "tenants": ["acme"] });
    let hook = client.post("/webhooks", &hook).is(201).json();
    let (operator, hook) = (operator.json()["id"].clone(), hook["id"].clone());
    unchanged(&client, || {
        for (method, path, body, place) in [
            ("POST", "/operators".to_owned(), json!({ "name": "x", "role": "viewer", "tenants": [] }), "tenants"),
            (
                "PUT",
                format!("/operators/{}", operator.as_str().unwrap()),
                json!({ "name": "vic", "role": "viewer", "tenants": [] }),
                "tenants",
            ),
            (
                "POST",
                "/webhooks".to_owned(),
                json!({ "name": "x", "url": "https://hooks.example/x", "tenants": [] }),
                "tenants",
            ),
            (
                "POST",
                "/webhooks".to_owned(),
                json!({ "name": "x", "url": "https://hooks.example/x", "kinds": [] }),
                "kinds",
            ),
            (
                "PUT",
                format!("/webhooks/{}", hook.as_str().unwrap()),
                json!({ "name": "hook", "url": "https://hooks.example/x", "tenants": [] }),
                "tenants",
            ),
        ] {
            let problem = client.send(method, &path, &[JSON], body.to_string().as_bytes()).is_problem(422, ":invalid");
            assert_eq!(problem["errors"][0]["path"], place, "{method} {path}");
        }
    });
}

#[test]
fn an_address_has_so_many_connections_and_who_takes_no_answer_loses_its_own() {
    let database = Database::sqlite();
    let setup = database.admin();
    put_much(&setup.client());
    let arguments = ["--connections-per-address", "1", "--write-timeout", "1s"];
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &arguments);
    let is_served = || {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    };
    assert!(is_served());
    let mut slow = None;
    wait_until("the one before is gone", || {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let token = setup.token.as_str();
        let request =
            format!("GET /api/enterprise/export HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut first = [0; 12];
        let begun = stream.read_exact(&mut first).is_ok() && &first == b"HTTP/1.1 200";
        slow = begun.then_some(stream);
        begun
    });
    assert!(!is_served(), "it has its one connection");
    // It takes nothing more, and does not close either.
    wait_until("it is cut off", is_served);
    drop(slow);
}

#[test]
fn a_websocket_counts_as_a_connection_until_it_ends() {
    let database = Database::sqlite();
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &["--connections-per-address", "2"]);
    let is_served = || {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    };
    let socket = || {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        let request = format!(
            "GET /api/enterprise/events/ws HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            admin.token
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut first = [0; 12];
        (stream.read_exact(&mut first).is_ok() && &first == b"HTTP/1.1 101").then_some(stream)
    };
    let mut sockets: Vec<TcpStream> = Vec::new();
    wait_until("both are open", || {
        sockets.extend(socket());
        sockets.len() == 2
    });
    assert!(!is_served(), "it has its two connections");
    sockets.pop();
    wait_until("one of them has ended", is_served);
}

on_both! {
    fn names_are_compared_byte_by_byte_and_quotes_are_text(database) {
        let admin = database.admin();
        let client = admin.client();
        let reason = "?reason=%27%29%3B%20DROP%20TABLE%20tenants%3B--%20%7B%7B7*7%7D%7D%20%F0%9F%A6%80";
        let ids = ["a-b", "a.b", "a_b", "ab", "a0"];
        let tenants: Vec<String> = ids.iter().map(|id| tenant(id).to_string().replace("a_b.example", "a-c.example")).collect();
        client.import(reason, &format!("revision: 1\ntenants: [{}]", tenants.join(","))).is(200);
        let listed = client.get("/tenants").json();
        let listed: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
        let mut sorted = ids;
        sorted.sort_unstable();
        assert_eq!(listed, sorted);
        let revision = client.get("/revisions/1").json();
        assert_eq!(revision["reason"], "'); DROP TABLE tenants;-- {{7*7}} 🦀");
        // A character that Postgres cannot keep.
        client.import("?reason=a%00b", client.get("/export").text()).is_problem(400, ":bad-request");
        client.get("/audit?actor=%00").is_problem(400, ":bad-request");
        client.get("/operators?cursor=AA").is_problem(400, ":bad-request");
    }
}
