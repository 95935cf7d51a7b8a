//! `?wait=applied`: the answer is as true as what the nodes say.

use std::thread;

use seiketsu_admin_api::store::{Store, StoreSettings, secrets::KeySource};
use seiketsu_config::push::{Applied, Hello, Refused};
use serde_json::json;
use uuid::Uuid;

use crate::support::{KEY, on_both, tenant};

on_both! {
    fn a_change_is_waited_for_until_all_live_nodes_have_it(database) {
        let admin = database.admin();
        let client = admin.client();
        let written = client.post("/tenants?wait=applied", &tenant("acme")).is(201).json();
        assert_eq!(written["applied"], json!({ "nodes": [], "missing": [] }));

        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        // Another replica, to which the nodes are connected.
        let replica = runtime.block_on(Store::connect(&StoreSettings { url: database.url().into(), key: KeySource::Given(KEY.into()) })).unwrap();
        let node = |name: &str| Hello {
            node: name.parse().unwrap(),
            run: Uuid::now_v7(),
            version: "0.1.0".to_owned(),
            region: None,
            zone: None,
            schemas: vec![1],
            holds: None,
        };
        let (eu, us) = (node("eu"), node("us"));
        let applied = |node: &Hello, revision: u64, refused: &[&str]| {
            let errors = vec!["no such upstream".to_owned()];
            let refused = refused.iter().map(|id| Refused { tenant: Some(id.parse().unwrap()), errors: errors.clone() });
            let applied = Applied { nonce: 1, revision, refused: refused.collect(), lost: false };
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
        assert_eq!(late["applied"]["missing"], json!([{ "node": "us", "revision": 0, "refused": [] }]));
        assert_eq!(client.get("/gateway/configure?tenant=acme").json()["rate_limit_rpm"], 6);

        // One that refuses it is named at once.
        connect();
        applied(&eu, 4, &[]);
        applied(&us, 4, &["acme"]);
        let limits = json!({ "tenant": "acme", "rate_limit_rpm": 7 });
        let refused = client.put("/gateway/limits?wait=applied&timeout=20s", &limits);
        let refused = refused.is_problem(504, ":not-applied-everywhere");
        assert_eq!(refused["applied"]["missing"][0]["refused"][0]["errors"], json!(["no such upstream"]));
        let health = client.get("/gateway/health").is(200).json();
        assert_eq!((&health["status"], &health["live"]), (&json!("critical"), &json!(2)));
    }
}
