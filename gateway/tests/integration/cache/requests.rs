//! RFC 9111 §5.2.1, §5.4, RFC 8246: what clients may ask of the cache.

use super::{caching, counting, in_turn};

/// How the second of two requests is answered, where the first has stored a response with these fields.
fn second(answer: &str, request: &str) -> String {
    let origin = counting(answer);
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "0");
    let answer = gateway.fetch("/v1/a", request);
    format!("{} {}", answer.status, answer.text().chars().take(1).collect::<String>())
}

const HIT: &str = "200 0";
const FETCHED: &str = "200 1";

#[test]
fn max_age() {
    let old = "Cache-Control: max-age=3600\r\nAge: 100\r\n";
    assert_eq!(second(old, "Cache-Control: max-age=200\r\n"), HIT);
    assert_eq!(second(old, "Cache-Control: max-age=50\r\n"), FETCHED);
    assert_eq!(second("Cache-Control: max-age=3600\r\n", "Cache-Control: max-age=0\r\n"), FETCHED);
    assert_eq!(second("Cache-Control: max-age=3600\r\n", "Cache-Control: max-age=x\r\n"), FETCHED);
}

#[test]
fn min_fresh() {
    let old = "Cache-Control: max-age=1000\r\nAge: 100\r\n";
    assert_eq!(second(old, "Cache-Control: min-fresh=500\r\n"), HIT);
    assert_eq!(second(old, "Cache-Control: min-fresh=950\r\n"), FETCHED);
}

#[test]
fn max_stale() {
    let stale = "Cache-Control: max-age=1000\r\nAge: 1100\r\nETag: \"1\"\r\n";
    assert_eq!(second(stale, ""), FETCHED);
    assert_eq!(second(stale, "Cache-Control: max-stale\r\n"), HIT);
    assert_eq!(second(stale, "Cache-Control: max-stale=1000\r\n"), HIT);
    assert_eq!(second(stale, "Cache-Control: max-stale=50\r\n"), FETCHED);
    assert_eq!(second(stale, "Cache-Control: max-stale=x\r\n"), FETCHED);
    for forbidding in
        ["must-revalidate, max-age=1000", "proxy-revalidate, max-age=1000", "s-maxage=1000", "no-cache, max-age=1000"]
    {
        let strict = format!("Cache-Control: {forbidding}\r\nAge: 1100\r\nETag: \"1\"\r\n");
        assert_eq!(second(&strict, "Cache-Control: max-stale\r\n"), FETCHED, "{forbidding}");
    }
}

#[test]
fn no_cache_and_pragma() {
    let fresh = "Cache-Control: max-age=3600\r\n";
    assert_eq!(second(fresh, "Cache-Control: no-cache\r\n"), FETCHED);
    assert_eq!(second(fresh, "Pragma: no-cache\r\n"), FETCHED);
    assert_eq!(second(fresh, "Pragma: foo\r\n"), HIT);
    // It counts only where there is no Cache-Control.
    assert_eq!(second(fresh, "Pragma: no-cache\r\nCache-Control: max-age=60\r\n"), HIT);
    // In a response it means nothing.
    assert_eq!(second("Cache-Control: max-age=3600\r\nPragma: no-cache\r\n", ""), HIT);
    // What is fetched is stored for others.
    let origin = counting(fresh);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let forced = gateway.fetch("/v1/a", "Cache-Control: no-cache\r\n");
    assert_eq!(forced.cache_status(), "seiketsu; fwd=request; stored");
    assert_eq!(gateway.fetch("/v1/a", "").text(), "1");
}

#[test]
fn no_store() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let gateway = caching(&origin, "");
    let answer = gateway.fetch("/v1/a", "Cache-Control: no-store\r\n");
    assert_eq!((answer.text().as_str(), answer.cache_status()), ("0", "seiketsu; fwd=request"));
    assert_eq!(gateway.bodies("/v1/a", "", 2), ["1", "1"]);
}

#[test]
fn only_if_cached() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let gateway = caching(&origin, "");
    let missing = gateway.fetch("/v1/a", "Cache-Control: only-if-cached\r\n");
    assert_eq!((missing.status, missing.problem().as_str()), (504, "not-cached"));
    assert_eq!(origin.asked(), 0);
    gateway.fetch("/v1/a", "");
    assert!(gateway.fetch("/v1/a", "Cache-Control: only-if-cached\r\n").is_hit());
    let fresher = gateway.fetch("/v1/a", "Cache-Control: only-if-cached, max-age=0\r\n");
    assert_eq!((fresher.status, origin.asked()), (504, 1));
}

#[test]
fn a_tenant_may_leave_clients_no_say() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let gateway = caching(&origin, "client_directives: false");
    gateway.fetch("/v1/a", "");
    for wish in [
        "Cache-Control: no-cache\r\n",
        "Cache-Control: no-store\r\n",
        "Cache-Control: max-age=0\r\n",
        "Pragma: no-cache\r\n",
    ] {
        assert!(gateway.fetch("/v1/a", wish).is_hit(), "{wish}");
    }
}

#[test]
fn what_is_immutable_is_not_reloaded_while_it_is_fresh() {
    let answer = "Cache-Control: max-age=3600, immutable\r\n";
    assert_eq!(second(answer, "Cache-Control: max-age=0\r\n"), HIT);
    assert_eq!(second(answer, "Cache-Control: no-cache\r\n"), FETCHED);
    let stale = "Cache-Control: max-age=3600, immutable\r\nAge: 3600\r\nETag: \"1\"\r\n";
    assert_eq!(second(stale, "Cache-Control: max-age=0\r\n"), FETCHED);
}

#[test]
fn a_forced_validation_is_a_conditional_request() {
    let origin =
        in_turn(&["200 OK\nCache-Control: max-age=3600\nETag: \"1\"\n\nbody", "304 Not Modified\nETag: \"1\""]);
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let forced = gateway.fetch("/v1/a", "Cache-Control: max-age=0\r\n");
    assert_eq!(
        (forced.text().as_str(), forced.cache_status()),
        ("body", "seiketsu; fwd=request; fwd-status=304; stored")
    );
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""));
}

#[test]
fn queries_are_part_of_the_key_in_their_order_unless_it_is_said_not_to_matter() {
    let origin = counting("Cache-Control: max-age=3600\r\n");
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a?x=1&y=2", "").text(), "0");
    assert_eq!(gateway.fetch("/v1/a?x=1&y=2", "").text(), "0");
    assert_eq!(gateway.fetch("/v1/a?y=2&x=1", "").text(), "1");
    assert_eq!(gateway.fetch("/v1/a?x=1", "").text(), "2");
    let gateway = caching(&origin, "sort_query: true");
    assert_eq!(gateway.fetch("/v1/a?x=1&y=2", "").text(), "3");
    assert_eq!(gateway.fetch("/v1/a?y=2&x=1", "").text(), "3");
    // The upstream gets it as it was sent.
    assert_eq!(origin.last().target(), "/v1/a?x=1&y=2");
}
