//! What happens, told to whoever follows it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{Admin, Client, Database, PATIENCE, on_both, tenant, tenant_with_rate, wait_until};

/// A stream of server-sent events, line by line.
pub struct Stream(BufReader<TcpStream>);

impl Stream {
    pub fn open(client: &Client, query: &str, last: Option<u64>) -> Self {
        let mut stream = TcpStream::connect(client.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        let token = client.token.as_deref().unwrap();
        let last = last.map(|last| format!("last-event-id: {last}\r\n")).unwrap_or_default();
        let head = format!(
            "GET /api/enterprise/events{query} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {token}\r\n{last}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = Self(BufReader::new(stream));
        assert!(stream.line().unwrap().contains("200"));
        // Where it begins; from then on nothing is missed.
        while !stream.line().unwrap().starts_with("id: ") {}
        stream
    }

    /// None: it has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next event; none, if the stream has ended.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(data) = self.line()?.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }

    /// The next event of this kind.
    pub fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().expect("the stream goes on");
            if event["kind"] == kind {
                return event;
            }
        }
    }
}

fn number(event: &Value) -> u64 {
    event["number"].as_u64().unwrap()
}

fn kept(client: &Client, query: &str) -> Vec<Value> {
    let answer = client.get(&format!("/events?follow=false{query}")).is(200);
    answer
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

on_both! {
    fn what_happens_is_told_at_once_and_after_an_interruption_without_a_gap(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &tenant("before")).is(201);
        let mut stream = Stream::open(&owner, "", None);
        owner.post("/tenants", &tenant("acme")).is(201);
        let event = stream.next().unwrap();
        assert_eq!((&event["kind"], &event["tenants"]), (&json!("revision"), &json!(["acme"])));
        assert_eq!((&event["detail"]["revision"], &event["detail"]["author"]), (&json!(2), &json!("owner")));
        drop(stream);
        for rate in 1..5 {
            owner.put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
        }
        let mut stream = Stream::open(&owner, "", Some(number(&event)));
        for rate in 1..5 {
            let next = stream.next().unwrap();
            assert_eq!((number(&next), &next["detail"]["revision"]), (number(&event) + rate, &json!(rate + 2)));
        }
        owner.delete("/tenants/acme").is(200);
        assert_eq!(number(&stream.next().unwrap()), number(&event) + 5);
        // What changes nothing is told to nobody.
        assert_eq!(kept(&owner, "&kind=revision").len(), 7);
        assert_eq!(kept(&owner, "&kind=revision&tenant=before").len(), 1);
        owner.get("/events?kind=nonsense").is_problem(400, ":bad-request");
        owner.send("GET", "/events", &[("last-event-id", "x")], b"").is_problem(400, ":bad-request");
    }

    fn everybody_is_told_what_concerns_them_and_no_more(database) {
        let admin = database.admin();
        let owner = admin.client();
        for id in ["acme", "globex", "initech"] {
            owner.post("/tenants", &tenant(id)).is(201);
        }
        let globex = admin.operator("gil", "owner", Some(&["globex"]));
        let viewer = admin.operator("vic", "viewer", None);
        viewer.delete("/tenants/acme").is(403);
        let file = json!({ "revision": 1, "tenants": [tenant_with_rate("acme", 1), tenant_with_rate("globex", 1)] });
        owner.import("", &file.to_string()).is(200);
        let seen = kept(&globex, "");
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.iter().all(|event| event["tenants"] == json!(["globex"])), "{seen:?}");
        let all: Vec<Value> = kept(&owner, "");
        assert!(all.iter().any(|event| event["kind"] == "audit.refused" && event["detail"]["actor"] == "vic"));
        assert!(kept(&viewer, "").iter().all(|event| event["kind"] != "audit.refused"));
        globex.get("/events?tenant=acme").is_problem(403, ":forbidden");
    }

    fn a_token_that_is_revoked_ends_its_streams(database) {
        let admin = database.admin();
        let owner = admin.client();
        let viewer = admin.operator("vic", "viewer", None);
        let mut stream = Stream::open(&viewer, "?kind=revision", None);
        owner.post("/tenants", &tenant("acme")).is(201);
        assert_eq!(stream.next().unwrap()["kind"], "revision");
        let tokens = owner.get("/tokens").json();
        let token = tokens["items"].as_array().unwrap().iter().find(|token| token["name"] == "vic").unwrap();
        owner.delete(&format!("/tokens/{}", token["id"].as_str().unwrap())).is(204);
        assert_eq!(stream.next(), None);
    }

    fn the_oldest_events_go_and_that_is_told(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &tenant("acme")).is(201);
        let first = number(&kept(&owner, "")[0]);
        let at = "(SELECT at FROM events WHERE number = 1)";
        database.execute(&format!(
            "INSERT INTO events (number, at, kind, tenants, detail) VALUES (10500, {at}, 'node.left', NULL, '{{}}')"
        ));
        wait_until("the oldest is gone", || database.number("SELECT COUNT(*) AS number FROM events") == 1);
        let seen = kept(&owner, &format!("&after={}", first - 1));
        assert_eq!(seen[0], json!({ "after": 0, "next": 10500 }));
        assert_eq!(number(&seen[1]), 10500);
    }
}

#[test]
fn another_replica_tells_it_at_once() {
    let database = Database::postgres();
    let one = database.admin();
    let other = Admin::start(&database, tempfile::tempdir().unwrap(), &[]);
    let there = Client { token: Some(one.token.clone()), ..other.client() };
    let mut stream = Stream::open(&there, "", None);
    let start = std::time::Instant::now();
    let mut quickest = std::time::Duration::MAX;
    for rate in 1..10 {
        let begun = std::time::Instant::now();
        one.client().put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
        assert_eq!(stream.next().unwrap()["detail"]["revision"], rate);
        quickest = quickest.min(begun.elapsed());
    }
    // Notified, and not found a second later.
    assert!(quickest < std::time::Duration::from_millis(900), "{quickest:?} of {:?}", start.elapsed());
}

#[test]
fn whoever_does_not_read_is_cut_off_and_holds_nobody_up() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    owner.post("/tenants", &tenant("acme")).is(201);
    // More than the system keeps for a connection.
    database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 600) \
         INSERT INTO events (number, at, kind, detail) SELECT i, (SELECT at FROM events WHERE number = 1), 'node.left', \
         '{\"x\":\"' || hex(zeroblob(50000)) || '\"}' FROM n",
    );
    let mut deaf = Stream::open(&owner, "?after=0", None);
    let mut other = Stream::open(&owner, "?kind=revision", None);
    owner.delete("/tenants/acme").is(200);
    assert_eq!(other.next().unwrap()["detail"]["revision"], 2);
    wait_until("the one who does not read is cut off", || admin.log().contains("did not read"));
    let mut read = Vec::new();
    let _ = deaf.0.read_to_end(&mut read);
    assert!(read.len() < 600 * 100_000);
}

#[test]
fn streams_end_when_the_process_does() {
    let database = Database::sqlite();
    let mut admin = database.admin();
    let mut stream = Stream::open(&admin.client(), "", None);
    admin.process.signal("-TERM");
    assert_eq!(stream.next(), None);
    admin.process.wait();
}
