//! What operators are told of limits: metrics, access log, usage.

use std::fs;

use serde_json::{Value, json};

use super::{answers, limited, passing, statuses, still};
use crate::{
    fixtures::{comes_true, demo, key_hash, open, tenants},
    support::{Gateway, Origin},
};

const KEY: &str = "sk_consumera_0123456789abcdefghijklmnopqrstuv";

/// The lines of the access log, once there are so many.
fn lines(gateway: &Gateway, many: usize) -> Vec<Value> {
    assert!(comes_true(|| gateway.access_log().lines().count() >= many), "{}", gateway.access_log());
    gateway.access_log().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn metrics_tell_decisions_and_whose_limit_refused() {
    let origin = Origin::start("a");
    let routes = format!(
        "- {{ id: narrow, match: {{ path: /v1/status/200 }}, upstream: demo, policies: {{ limits: {{ {} }} }} }}\n",
        still(1)
    );
    let limits = format!("quotas: {{ daily: 4 }}, keyed: [{{ id: each, by: {{ header: x-device }}, {} }}]", still(1));
    let gateway = Gateway::start(&limited(origin.address, &limits, &routes));
    let refusals = |scope: &str, limit: &str| {
        gateway.metric(&format!("seiketsu_limit_refusals_total{{scope=\"{scope}\",limit=\"{limit}\"}}")) as u64
    };
    assert_eq!(statuses(&gateway, "/v1/status/200", "", 3), [200, 429, 429]);
    assert_eq!(statuses(&gateway, "/v1/echo", "X-Device: a\r\n", 4), [200, 429, 429, 429]);
    assert_eq!(passing(&gateway, "/v1/echo", "", 7), 2);
    let counts = [("route", "rate"), ("keyed", "rate"), ("tenant", "day")].map(|(scope, limit)| refusals(scope, limit));
    assert_eq!(counts, [2, 3, 5]);
    let refused = gateway.metric("seiketsu_refusals_total{tenant=\"acme\",reason=\"quota-exceeded\"}") as u64;
    assert_eq!(refused, 10, "{}", gateway.metrics());
    let decided: f64 = ["lease", "coordinator", "alone"]
        .iter()
        .map(|by| gateway.metric(&format!("seiketsu_limit_decisions_total{{by=\"{by}\"}}")))
        .sum();
    assert_eq!(decided as u64, 14, "{}", gateway.metrics());
    assert!(gateway.metric("seiketsu_limit_exchanges_total{result=\"answered\"}") > 0.5);
    assert!(gateway.metric("seiketsu_limit_coordinator_up") > 0.5);
    assert_eq!(gateway.metric("seiketsu_limit_gateways") as u64, 1);
}

#[test]
fn refusals_are_told_apart_whatever_routes_and_consumers_are_called() {
    let origin = Origin::start("a");
    let of_route = "policies: { limits: { quotas: { daily: 0 } } }";
    let routes = format!("- {{ id: rate, match: {{ path: /v1/status/200 }}, upstream: demo, {of_route} }}\n");
    let tenant = format!(
        "consumers: [{{ id: keyed, keys: [{{ prefix: consumera, hash: '{}' }}], limits: {{ {} }} }}]\n",
        key_hash(KEY),
        still(1),
    );
    let routes = routes + &open("auth: { accept: [anonymous, api_key] }");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), &tenant, &routes));
    assert_eq!(statuses(&gateway, "/v1/status/200", "", 2), [429, 429]);
    assert_eq!(statuses(&gateway, "/v1/echo", &format!("X-API-Key: {KEY}\r\n"), 4), [200, 429, 429, 429]);
    let metrics = gateway.metrics();
    let refusals = metrics.lines().filter(|line| line.starts_with("seiketsu_limit_refusals_total{"));
    let counted: Vec<&str> = refusals.filter(|line| !line.ends_with(" 0")).collect();
    assert_eq!(
        counted,
        [
            "seiketsu_limit_refusals_total{scope=\"route\",limit=\"day\"} 2",
            "seiketsu_limit_refusals_total{scope=\"consumer\",limit=\"rate\"} 3",
        ],
        "{metrics}"
    );
}

#[test]
fn metrics_tell_that_what_is_used_cannot_be_written_down() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 1000 }", ""));
    let exchanges =
        |result: &str| gateway.metric(&format!("seiketsu_limit_exchanges_total{{result=\"{result}\"}}")) as u64;
    let is_up = || gateway.metric("seiketsu_limit_coordinator_up") > 0.5;
    // Each request asks for more sooner or later, and more has to be written down before it is given.
    let comes_after_requests = |question: &dyn Fn() -> bool| {
        comes_true(|| {
            assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
            question()
        })
    };
    assert_eq!(passing(&gateway, "/v1/echo", "", 5), 5);
    assert!(is_up() && exchanges("answered") > 0 && exchanges("failed") == 0, "{}", gateway.metrics());

    let journal = gateway.folder.path().join("state/quotas.journal");
    let aside = journal.with_extension("aside");
    fs::rename(&journal, &aside).unwrap();
    fs::create_dir(&journal).unwrap();
    assert!(comes_after_requests(&|| !is_up()), "{}", gateway.metrics());
    let (answered, failed) = (exchanges("answered"), exchanges("failed"));
    assert!(failed > 0, "{}", gateway.metrics());
    assert!(comes_after_requests(&|| exchanges("failed") > failed), "{}", gateway.metrics());
    assert!(gateway.log().contains("counters of quotas cannot be written"), "{}", gateway.log());

    fs::remove_dir(&journal).unwrap();
    fs::rename(&aside, &journal).unwrap();
    assert!(comes_after_requests(&is_up), "{}", gateway.metrics());
    assert!(exchanges("answered") > answered, "{}", gateway.metrics());
}

#[test]
fn the_access_log_tells_what_was_decided_how_and_by_which_limit() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 2 }", ""));
    let _ = answers(&gateway, "/v1/echo", "", 3);
    let lines = lines(&gateway, 3);
    for line in &lines {
        let limit = &line["limit"];
        assert!(["lease", "coordinator", "alone"].contains(&limit["by"].as_str().unwrap()), "{line}");
        assert!(limit["wait_ms"].as_f64().is_some_and(|millis| millis < 1000.0), "{line}");
    }
    assert_eq!((&lines[0]["limit"]["refused_by"], &lines[0]["refusal"]), (&Value::Null, &Value::Null));
    assert_eq!(lines[2]["limit"]["refused_by"], "day");
    assert_eq!((&lines[2]["status"], &lines[2]["refusal"]), (&json!(429), &json!("quota-exceeded")));
}

#[test]
fn usage_tells_what_requests_weighed_and_how_many_limits_refused() {
    let origin = Origin::start("a");
    let routes =
        "- { id: heavy, match: { path: '/v1/status/200' }, upstream: demo, policies: { limits: { cost: 5 } } }\n";
    let gateway = Gateway::start(&limited(origin.address, "quotas: { daily: 17 }", routes));
    assert_eq!(statuses(&gateway, "/v1/status/200", "", 5), [200, 200, 200, 429, 429]);
    assert_eq!(passing(&gateway, "/v1/echo", "", 5), 2);
    let sum = |route: &str, pointer: &str| -> u64 {
        let page = gateway.operations("/usage").json();
        let records = page["records"].as_array().unwrap().iter().filter(|record| record["route"] == route);
        records.filter_map(|record| record.pointer(pointer)?.as_u64()).sum()
    };
    assert!(comes_true(|| sum("heavy", "/refused/limit") == 2 && sum("open", "/refused/limit") == 3));
    assert_eq!((sum("heavy", "/admitted"), sum("heavy", "/cost")), (3, 15));
    assert_eq!((sum("open", "/admitted"), sum("open", "/cost")), (2, 2));
}
