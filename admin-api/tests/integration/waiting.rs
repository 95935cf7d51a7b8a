//! `?wait=applied`: the answer is as true as what the nodes say.

use std::{thread, time::Duration};

use seiketsu_admin_api::store::Store;
use seiketsu_config::push::{Applied, Hello, Refused};
use serde_json::json;
use uuid::Uuid;

use crate::support::{hello, on_both, settings, tenant};

on_both! {
    fn whoever_waits_for_nodes_holds_no_turn(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let replica = runtime.block_on(Store::connect(&settings(database.url()))).unwrap();
        let eu = hello("eu", None);
        runtime.block_on(replica.node_connected(&eu, Uuid::nil())).unwrap();
        // More than an operator may have under way; of heavy ones too.
        let tenants = json!({ "revision": 1, "tenants": [tenant("acme")] }).to_string();
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let (client, tenants) = (client.clone(), tenants.clone());
                thread::spawn(move || match number % 4 {
                    0 => client.import("?wait=applied&timeout=60s", &tenants),
                    _ => client.put("/tenants/acme?wait=applied&timeout=60s", &tenant("acme")),
                })
            })
            .collect();
        // Longer than a turn is waited for: whoever had none is told so by now.
        thread::park_timeout(Duration::from_secs(7));
        assert!(!waiting.iter().any(thread::JoinHandle::is_finished), "all of them wait");
        client.get("/export").is(200);
        let applied = Applied { nonce: 1, revision: 1, refused: Vec::new(), refused_more: 0, lost: false };
        runtime.block_on(replica.node_applied(&eu.node, eu.run, &applied)).unwrap();
        for one in waiting {
            one.join().unwrap().is(200);
        }
    }

    fn a_change_is_waited_for_until_all_live_nodes_have_it(database) {
        let admin = database.admin();
        let client = admin.client();
        let written = client.post("/tenants?wait=applied", &tenant("acme")).is(201).json();
        assert_eq!(written["applied"], json!({ "nodes": [], "missing": [] }));

        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        // Another replica, to which the nodes are connected.
        let replica = runtime.block_on(Store::connect(&settings(database.url()))).unwrap();
        let (eu, us) = (hello("eu", None), hello("us", None));
        let applied = |node: &Hello, revision: u64, refused: &[&str]| {
            let errors = vec!["no such upstream".to_owned()];
            let refused = refused.iter().map(|id| Refused { tenant: Some(id.parse().unwrap()), errors: errors.clone() });
            let applied = Applied { nonce: 1, revision, refused: refused.collect(), refused_more: 0, lost: false };
            runtime.block_on(replica.node_applied(&node.node, node.run, &applied)).unwrap();
        };
        let connect = || {
            for node in [&eu, &us] {
                runtime.block_on(replica.node_connected(node, Uuid::nil())).unwrap();
            }
        };
        connect();
        let waiting = {
            let client = client.clone();
            let limits = json!({ "tenant": "acme", "rate_limit_rpm": 5 });
            thread::spawn(move || client.put("/gateway/limits?wait=applied&timeout=20s", &limits))
        };
        crate::support::wait_until("it is written", || client.get("/status").json()["revision"] == 2);
        applied(&eu, 2, &[]);
        assert!(!waiting.is_finished(), "one of two nodes has it");
        applied(&us, 2, &["globex"]);
        let answer = waiting.join().unwrap().is(200).json();
        assert_eq!(answer["applied"], json!({ "nodes": ["eu", "us"], "missing": [] }));

        // One that does not come is named when the time is over, and the change stands.
        connect();
        applied(&eu, 3, &[]);
        let limits = json!({ "tenant": "acme", "rate_limit_rpm": 6 });
        let late = client.put("/gateway/limits?wait=applied&timeout=300ms", &limits);
        let late = late.is_problem(504, ":not-applied-everywhere");
        assert_eq!((&late["revision"], &late["applied"]["nodes"]), (&json!(3), &json!(["eu"])));
        assert_eq!(late["applied"]["missing"], json!([{ "node": "us", "live": true, "revision": 0, "refused": [] }]));
        assert_eq!(client.get("/gateway/configure?tenant=acme").json()["rate_limit_rpm"], 6);

        // Whoever repeats a request waits as well: that it was written is not that it is applied.
        connect();
        let once = || {
            let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
            let body = tenant("globex").to_string();
            client.send("POST", "/tenants?wait=applied&timeout=300ms", &headers, body.as_bytes())
        };
        once().is_problem(504, ":not-applied-everywhere");
        once().is_problem(504, ":not-applied-everywhere");
        for node in [&eu, &us] {
            applied(node, 4, &[]);
        }
        let repeated = once().is(201).json();
        assert_eq!((&repeated["revision"], &repeated["applied"]["nodes"]), (&json!(4), &json!(["eu", "us"])));

        // What a node refuses and does not name may be what was written.
        connect();
        applied(&eu, 5, &[]);
        let much = Applied { nonce: 1, revision: 5, refused: Vec::new(), refused_more: 9, lost: false };
        runtime.block_on(replica.node_applied(&us.node, us.run, &much)).unwrap();
        let limits = json!({ "tenant": "acme", "rate_limit_rpm": 8 });
        let unknown = client.put("/gateway/limits?wait=applied&timeout=20s", &limits);
        let unknown = unknown.is_problem(504, ":not-applied-everywhere");
        assert_eq!(unknown["applied"]["missing"][0]["refused_more"], 9);

        // One that refuses it is named at once.
        connect();
        applied(&eu, 6, &[]);
        applied(&us, 6, &["acme"]);
        let limits = json!({ "tenant": "acme", "rate_limit_rpm": 7 });
        let refused = client.put("/gateway/limits?wait=applied&timeout=20s", &limits);
        let refused = refused.is_problem(504, ":not-applied-everywhere");
        assert_eq!(refused["applied"]["missing"][0]["refused"][0]["errors"], json!(["no such upstream"]));
        let health = client.get("/gateway/health").is(200).json();
        assert_eq!((&health["status"], &health["live"]), (&json!("critical"), &json!(2)));
    }
}
