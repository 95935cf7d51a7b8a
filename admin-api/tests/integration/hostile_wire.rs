//! What is hostile before it is JSON: heads, framings and encodings. What cannot be one request is none.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{Admin, Database, PATIENCE, on_both, tenant};

/// Everything that comes back for these bytes, until the server closes. The client does not: it would be taken for gone.
fn exchange(admin: &Admin, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(admin.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be refused before all of it is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    let heads = answer.match_indices("HTTP/1.1 ").map(|(at, found)| &answer[at + found.len()..]);
    heads.filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

#[test]
fn no_request_hides_in_another() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    let authorization = format!("authorization: Bearer {}", admin.token);
    let hidden = format!("DELETE /api/enterprise/tenants/acme HTTP/1.1\r\nhost: a\r\n{authorization}\r\n\r\n");
    client.post("/tenants", &tenant("acme")).is(201);
    let length = hidden.len() + 5;
    for framing in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
        format!("content-length: {length}\r\ntransfer-encoding: xchunked"),
        format!("content-length: {length}\r\ntransfer-encoding: chunked, identity"),
        format!("content-length: {length}\r\ntransfer-encoding : chunked"),
        format!("content-length: {length}\r\ncontent-length: 5"),
        format!("content-length: 5, {length}\r\ntransfer-encoding: chunked"),
        "content-length: +5".to_owned(),
        "content-length: 0x5".to_owned(),
        "content-length: -1".to_owned(),
        "content-length: 99999999999999999999".to_owned(),
        format!("x: y\r\n content-length: {length}\r\ntransfer-encoding: chunked"),
        format!("x: y\u{0}\r\ncontent-length: {length}"),
    ] {
        let request = format!(
            "POST /api/enterprise/validate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{authorization}\r\n\
             {framing}\r\n\r\n0\r\n\r\n{hidden}"
        );
        let answer = exchange(&admin, request.as_bytes());
        let statuses = statuses(&answer);
        assert!(
            statuses.len() <= 1 && statuses.iter().all(|status| (400..500).contains(status)),
            "{framing}: {answer}"
        );
        client.get("/tenants/acme").is(200);
    }
}

#[test]
fn a_head_that_is_none_or_too_large_is_refused_and_others_are_served_on() {
    let database = Database::sqlite();
    let admin = database.admin();
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let line =
        |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n");
    for (request, expected) in [
        // Whoever speaks HTTP/2 learns at once that nobody here does: the connection ends, which is 0 here.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(), &[0][..]),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), &[400, 505]),
        ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(), &[0, 400]),
        ("GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), &[400]),
        (line("/livez", &many), &[431]),
        // The answer can be lost on the way, since not all that was sent is read.
        (line("/livez", &format!("x: {}\r\n", "y".repeat(1 << 20))), &[0, 431]),
        (line(&format!("/{}", "y".repeat(1 << 20)), ""), &[0, 414, 431]),
        (line("/livez", "expect: nonsense\r\n"), &[200, 417]),
        (
            "POST /api/enterprise/tenants HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}"
                .to_owned(),
            &[401],
        ),
        ("CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\nconnection: close\r\n\r\n".to_owned(), &[400, 404, 405]),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(), &[400, 404, 405]),
    ] {
        let answer = exchange(&admin, request.as_bytes());
        let found = match &*statuses(&answer) {
            [] => 0,
            [status] => *status,
            more => panic!("{request:.60}: {more:?}"),
        };
        assert!(expected.contains(&found), "{request:.60}: {answer}");
    }
    admin.client().get("/status").is(200);
}

#[test]
fn whoever_sends_a_head_byte_by_byte_is_cut_off_and_holds_up_nobody() {
    let database = Database::sqlite();
    let admin = database.admin();
    let mut slow = TcpStream::connect(admin.address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nx: ").unwrap();
    let begun = Instant::now();
    let mut answer = [0; 1024];
    // It keeps on sending, so that it is never silent for long.
    loop {
        assert!(begun.elapsed() < PATIENCE * 3, "it was never cut off");
        if slow.write_all(b"y").is_err() {
            break;
        }
        match slow.read(&mut answer) {
            Ok(0) => break,
            Ok(length) => assert!(answer[..length].starts_with(b"HTTP/1.1 408"), "{:?}", &answer[..length]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        admin.client().get("/status").is(200);
    }
}

#[test]
fn what_json_leaves_open_is_refused_or_kept_exactly() {
    let database = Database::sqlite();
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    let before = client.get("/tenants/acme").is(200).json();
    let put =
        |path: &str, text: &str| client.send("PUT", path, &[("content-type", "application/json")], text.as_bytes());
    // Twice the same key: readers differ on which counts.
    for text in [
        r#"{"tenant": "acme", "rate_limit_rpm": 1, "rate_limit_rpm": 2}"#,
        r#"{"tenant": "acme", "tenant": "globex", "rate_limit_rpm": 2}"#,
        r#"{"tenant": "acme", "rate_limit_rpm": 1, "rate\u005flimit_rpm": 2}"#,
    ] {
        put("/gateway/limits", text).is_problem(422, ":invalid");
    }
    let twice = before.to_string().replacen("\"hosts\"", "\"hosts\": [\"evil.example\"], \"hosts\"", 1);
    put("/tenants/acme", &twice).is_problem(422, ":invalid");
    // Numbers that some readers would round, or that are not whole.
    for number in
        ["9007199254740993", "18446744073709551615", "18446744073709551616", "1e3", "1.0", "0.1", "-0", "1e400"]
    {
        let answer = put("/gateway/limits", &format!(r#"{{"tenant": "acme", "quota_daily": {number}}}"#));
        match answer.status {
            200 => {
                let now = client.get("/tenants/acme").json();
                assert_eq!(now["policies"]["limits"]["quotas"]["daily"].to_string(), number, "{now}");
            }
            _ => assert!((400..500).contains(&answer.status), "{number}: {answer}"),
        }
    }
}

on_both! {
    fn the_character_nul_is_refused_or_kept_wherever_a_text_may_stand(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        let revision = || client.get("/status").is(200).json()["revision"].clone();
        let before = revision();
        let with = |change: &dyn Fn(&mut Value)| {
            let mut document = tenant("acme");
            change(&mut document);
            document
        };
        for document in [
            with(&|it| it["hosts"][0] = json!("a\0.example")),
            with(&|it| it["routes"][0]["id"] = json!("a\0")),
            with(&|it| it["routes"][0]["match"]["path"] = json!("/\0")),
            with(&|it| it["upstreams"]["own"]["endpoints"][0]["address"] = json!("a\0:1")),
            with(&|it| it["policies"]["headers"] = json!({ "response": { "set": { "x-a": "\0" } } })),
            with(&|it| it["a\0"] = json!(1)),
            json!("\0"),
        ] {
            client.put("/tenants/acme", &document).is_problem(422, ":invalid");
        }
        client.put("/gateway/limits", &json!({ "tenant": "a\0", "rate_limit_rpm": 1 })).is_problem(422, ":invalid");
        client.post("/operators", &json!({ "name": "a\0", "role": "viewer" })).is_problem(422, ":invalid");
        client.post("/operators", &json!({ "name": "a", "role": "viewer\0" })).is_problem(422, ":invalid");
        client.post("/tokens", &json!({ "kind": "node", "name": "a\0" })).is_problem(422, ":invalid");
        assert_eq!(revision(), before);
        // A schema is JSON of the tenant's own, in which it may stand.
        let schema = json!({ "const": "a\0b" });
        let document = with(&|it| it["policies"]["validation"] = json!({ "body_schema": schema }));
        let answer = client.put("/tenants/acme", &document);
        if answer.status == 200 {
            assert_eq!(client.get("/tenants/acme").json()["policies"]["validation"]["body_schema"], schema);
            client.get("/revisions/2").is(200);
        } else {
            answer.is_problem(422, ":invalid");
        }
    }
}
