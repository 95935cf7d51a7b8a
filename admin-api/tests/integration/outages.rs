//! Stores that go away, and processes that are killed.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{Client, Database, on_both, tenant, wait_until};

/// What is asked while the store is away.
fn is_refused_in_time(client: &Client) {
    for ask in [
        &(|| client.get("/tenants/acme")) as &dyn Fn() -> _,
        &|| client.put("/tenants/acme", &tenant("acme")),
        &|| client.get("/export"),
        &|| client.send("GET", "//readyz", &[], b""),
    ] {
        let start = Instant::now();
        let answer = ask();
        let took = start.elapsed();
        let problem = answer.is_problem(503, ":store-unavailable");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(answer.header("retry-after").is_some());
        let told = problem.to_string().to_lowercase();
        assert!(!["sql", "pool", "127.0.0.1", "os error"].iter().any(|word| told.contains(word)), "{told}");
    }
    client.send("GET", "//livez", &[], b"").is(200);
}

fn comes_back(client: &Client) {
    wait_until("the store answers again", || client.get("/tenants/acme").status == 200);
    let written = client.put("/gateway/limits", &json!({ "tenant": "acme", "rate_limit_rpm": 9 })).is(200).json();
    assert_eq!(written["changed"], json!(["acme"]));
    assert_eq!(client.get("/audit/verify").is(200).json()["intact"], true);
}

#[test]
fn a_postgres_that_is_stopped_is_told_of_in_time_and_comes_back() {
    let mut database = Database::postgres();
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    let Database::Postgres(server) = &mut database else { unreachable!() };
    server.stop();
    is_refused_in_time(&client);
    server.run();
    comes_back(&client);
}

#[test]
fn a_postgres_that_hangs_is_told_of_in_time_and_comes_back() {
    let mut database = Database::postgres();
    let admin = database.admin();
    let client = admin.client();
    client.post("/tenants", &tenant("acme")).is(201);
    let Database::Postgres(server) = &mut database else { unreachable!() };
    // The whole server, and not only the process that accepts.
    let children = format!("/proc/{0}/task/{0}/children", server.process().0.id());
    let children = std::fs::read_to_string(children).unwrap();
    let signal = |signal: &str| {
        server.process().signal(signal);
        let all = std::process::Command::new("kill").arg(signal).args(children.split_whitespace()).status();
        let _ = all.unwrap();
    };
    signal("-STOP");
    is_refused_in_time(&client);
    signal("-CONT");
    comes_back(&client);
}

on_both! {
    fn a_change_during_which_the_process_is_killed_is_whole_or_not_at_all(database) {
        let mut admin = database.admin();
        let ids: Vec<String> = (0..200).map(|number| format!("t{number}")).collect();
        let file = |round: u64| {
            let tenants = ids.iter().map(|id| crate::support::tenant_with_rate(id, round).to_string());
            format!("revision: 1\ntenants: [{}]", tenants.collect::<Vec<_>>().join(","))
        };
        let start = Instant::now();
        admin.client().import("", &file(1)).is(200);
        let usual = start.elapsed();
        let (mut whole, mut none) = (0, 0);
        for round in 2..10 {
            let (client, text) = (admin.client(), file(round));
            let import = thread::spawn(move || std::panic::catch_unwind(|| client.import("", &text)).is_ok());
            // Somewhere between its beginning and its end.
            thread::park_timeout(usual.mul_f64(round as f64 / 9.0));
            admin.restart(database);
            let _ = import.join();
            let client = admin.client();
            let rates: Vec<Value> = ["t0", "t100", "t199"]
                .iter()
                .map(|id| client.get(&format!("/tenants/{id}")).json()["policies"]["limits"]["rate"]["requests"].clone())
                .collect();
            assert!(rates.iter().all(|rate| *rate == rates[0]), "{rates:?}");
            let revisions = client.get("/revisions").json()["items"].as_array().unwrap().len() as u64;
            assert_eq!(client.get("/status").json()["revision"], revisions);
            let imports = client.get("/audit?action=import_configuration").json()["items"].as_array().unwrap().len() as u64;
            assert_eq!(imports, revisions);
            assert_eq!(client.get("/audit/verify").json()["intact"], true);
            if rates[0] == round { whole += 1 } else { none += 1 }
        }
        assert_eq!(whole + none, 8);
    }
}
