//! Who the client is, for limits and for the audit trail.

use crate::support::{Admin, Answer, Client, Database};

/// Of the form of a token, and none.
fn guess(number: usize) -> String {
    format!("sa_{number:043}")
}

fn guessing(client: &Client, number: usize, fields: &[(&str, &str)]) -> Answer {
    let client = Client { token: Some(guess(number)), ..client.clone() };
    client.send("GET", "/status", fields, b"")
}

#[track_caller]
fn is_slowed_down(client: &Client, fields: &[(&str, &str)]) {
    let refused = (0..100).find(|number| guessing(client, *number, fields).status == 429);
    assert!(refused.is_some(), "a hundred guesses are too many: {fields:?}");
}

#[test]
fn who_tries_tokens_does_not_lock_out_those_who_have_one_behind_the_same_address() {
    let database = Database::sqlite();
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &["--requests-per-second", "10"]);
    let client = admin.client();
    is_slowed_down(&client, &[]);
    client.get("/status").is(200);
    // The same guess again, no token at all, and what is none by its form.
    assert_eq!(guessing(&client, 0, &[]).status, 429);
    for token in [None, Some("sa_x".to_owned()), Some("x".repeat(10_000))] {
        assert_eq!(Client { token, ..client.clone() }.get("/status").status, 429);
    }
    client.get("/status").is(200);
}

#[test]
fn behind_trusted_proxies_each_client_is_counted_and_told_of_by_its_own_address() {
    let database = Database::sqlite();
    let flags = ["--requests-per-second", "10", "--trusted-proxies", "127.0.0.1,10.0.0.0/8"];
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &flags);
    let client = admin.client();
    is_slowed_down(&client, &[("x-forwarded-for", "198.51.100.9, 192.0.2.1, 10.1.1.1")]);
    assert_eq!(guessing(&client, 1, &[("x-forwarded-for", "198.51.100.9, 192.0.2.2")]).status, 401);
    // What a client writes in front does not make it another one.
    assert_eq!(guessing(&client, 1, &[("x-forwarded-for", "203.0.113.7, 192.0.2.1")]).status, 429);
    // A network of IPv6 is one client.
    is_slowed_down(&client, &[("forwarded", "for=\"[2001:db8:1:2::7]:4711\";proto=https")]);
    assert_eq!(guessing(&client, 1, &[("forwarded", "for=\"[2001:db8:1:2:3:4:5:6]\"")]).status, 429);
    assert_eq!(guessing(&client, 1, &[("forwarded", "for=\"[2001:db8:1:3::7]\"")]).status, 401);
    let audit = client.get("/audit?limit=1000").is(200).json();
    let addresses: Vec<&str> =
        audit["items"].as_array().unwrap().iter().filter_map(|entry| entry["address"].as_str()).collect();
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::7", "2001:db8:1:3::7"] {
        assert!(addresses.contains(&address), "{address}: {addresses:?}");
    }
}

#[test]
fn nobody_else_is_believed_about_the_address() {
    let database = Database::sqlite();
    let flags = ["--requests-per-second", "10", "--trusted-proxies", "10.0.0.0/8"];
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &flags);
    let client = admin.client();
    let refused = (0..100).find(|number| {
        let address = format!("192.0.2.{number}");
        guessing(&client, *number, &[("x-forwarded-for", &address), ("forwarded", "for=192.0.2.1")]).status == 429
    });
    assert!(refused.is_some());
    let audit = client.get("/audit?limit=1000").is(200);
    assert!(audit.text().contains("127.0.0.1") && !audit.text().contains("192.0.2."), "{audit}");
}
