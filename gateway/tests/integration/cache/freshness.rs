//! RFC 9111 §4.2, §5.1, §5.2.2, §5.3, RFC 9213: how long a response is fresh.

use super::{at, caching, counting};

/// Whether a response with these fields is served again from the cache.
fn is_reused(fields: &str, settings: &str) -> bool {
    let origin = counting(fields);
    let gateway = caching(&origin, settings);
    let bodies = gateway.bodies("/v1/a", "", 2);
    assert_eq!(bodies[0], "0");
    assert_eq!(origin.asked(), if bodies[1] == "0" { 1 } else { 2 }, "{fields}");
    bodies[1] == "0"
}

fn assert_reused(cases: &[(&str, bool)]) {
    for (fields, expected) in cases {
        assert_eq!(is_reused(fields, ""), *expected, "{fields:?}");
    }
}

#[test]
fn max_age() {
    assert_reused(&[
        ("Cache-Control: max-age=3600\r\n", true),
        ("Cache-Control: max-age=0\r\n", false),
        ("cache-control: MAX-AGE=3600\r\n", true),
        ("Cache-Control: max-age=\"3600\"\r\n", true),
        ("Cache-Control: foo, max-age=3600, bar=baz\r\n", true),
        ("Cache-Control: foo\r\nCache-Control: max-age=3600\r\n", true),
        ("Cache-Control: extension=\"max-age=3600\"\r\n", false),
        ("Cache-Control: extension=\"max-age=0\", max-age=3600\r\n", true),
        ("Cache-Control: max-age=99999999999\r\n", true),
        ("Cache-Control: max-age=00003600\r\n", true),
    ]);
}

#[test]
fn s_maxage_counts_before_max_age_and_expires() {
    let (past, ahead) = (at(-3600), at(3600));
    assert_reused(&[
        ("Cache-Control: s-maxage=3600, max-age=0\r\n", true),
        ("Cache-Control: s-maxage=0, max-age=3600\r\n", false),
        (&format!("Cache-Control: s-maxage=3600\r\nExpires: {past}\r\n"), true),
        (&format!("Cache-Control: s-maxage=0\r\nExpires: {ahead}\r\n"), false),
        ("Cache-Control: s-maxage=x, max-age=3600\r\n", false),
    ]);
}

#[test]
fn expires() {
    let (now, past, ahead) = (at(0), at(-3600), at(3600));
    assert_reused(&[
        (&format!("Expires: {ahead}\r\n"), true),
        (&format!("Expires: {past}\r\n"), false),
        (&format!("Expires: {now}\r\nDate: {now}\r\n"), false),
        ("Expires: 0\r\n", false),
        (&format!("Expires: {ahead}\r\nDate: {ahead}\r\n"), false),
        (&format!("Expires: {ahead}\r\nDate: nonsense\r\n"), true),
        (&format!("Expires: {ahead}\r\nCache-Control: max-age=0\r\n"), false),
        (&format!("Expires: {past}\r\nCache-Control: max-age=3600\r\n"), true),
        (&format!("Expires: {past}\r\nCache-Control: foo\r\n"), false),
        (&format!("Expires: {ahead}\r\nExpires: {ahead}\r\n"), true),
        (&format!("Expires: {ahead}\r\nExpires: {past}\r\n"), false),
    ]);
}

#[test]
fn expires_in_every_form_of_a_date_and_in_no_other() {
    assert_reused(&[
        ("Expires: Thu, 18 Aug 2050 02:01:18 GMT\r\n", true),
        ("Expires: Thursday, 18-Aug-50 02:01:18 GMT\r\n", true),
        ("Expires: Thu Aug 18 02:01:18 2050\r\n", true),
        ("Expires: Thu, 18 Aug 2050 02:01:18 UTC\r\n", false),
        ("Expires: Thu, 18 Aug 2050 02:01:18\r\n", false),
        ("Expires: 18 Aug 2050 02:01:18 GMT\r\n", false),
        ("Expires: Thu, 18 Aug 50 02:01:18 GMT\r\n", false),
        ("Expires: soon\r\n", false),
        ("Expires: \r\n", false),
    ]);
}

#[test]
fn lifetimes_that_are_malformed_or_contradict_make_it_stale() {
    let ahead = at(3600);
    assert_reused(&[
        (&format!("Cache-Control: max-age=foo\r\nExpires: {ahead}\r\n"), false),
        ("Cache-Control: max-age=3600.5\r\n", false),
        ("Cache-Control: max-age=-3600\r\n", false),
        ("Cache-Control: max-age='3600'\r\n", false),
        ("Cache-Control: max-age=\r\n", false),
        ("Cache-Control: max-age= 3600\r\n", false),
        ("Cache-Control: max-age=3600, max-age=1800\r\n", false),
        ("Cache-Control: max-age=3600\r\nCache-Control: max-age=0\r\n", false),
        ("Cache-Control: max-age=3600, max-age=3600\r\n", true),
    ]);
}

#[test]
fn what_says_nothing_is_fresh_for_a_tenth_of_its_age() {
    let (past, recent, ahead) = (at(-3_600_000), at(-5), at(3600));
    assert_reused(&[
        ("", false),
        (&format!("Last-Modified: {past}\r\n"), true),
        (&format!("Last-Modified: {recent}\r\n"), false),
        (&format!("Last-Modified: {ahead}\r\n"), false),
        ("Last-Modified: nonsense\r\n", false),
        (&format!("Last-Modified: {past}\r\nCache-Control: foo=bar\r\n"), true),
        (&format!("Last-Modified: {past}\r\nCache-Control: max-age=0\r\n"), false),
        (&format!("Last-Modified: {past}\r\nExpires: 0\r\n"), false),
    ]);
}

#[test]
fn the_tenant_may_say_how_long_what_says_nothing_is_fresh() {
    assert!(is_reused("", "ttl: 1h"));
    assert!(!is_reused("Cache-Control: max-age=0\r\n", "ttl: 1h"));
    assert!(!is_reused("Cache-Control: no-cache\r\n", "ttl: 1h"));
    assert!(!is_reused("Expires: 0\r\n", "ttl: 1h"));
    assert!(!is_reused("Set-Cookie: a=b\r\n", "ttl: 1h"));
    assert!(!is_reused(&format!("Last-Modified: {}\r\n", at(-3_600_000)), "ttl: 0s"));
    for (status, public, stored) in [
        (404, "", true),
        (410, "", true),
        (201, "", false),
        (302, "", false),
        (500, "", false),
        (503, "", false),
        (302, "Cache-Control: public", true),
    ] {
        let answer = format!("{status} Some\n{public}\n\nbody");
        let origin = super::in_turn(&[&answer]);
        let gateway = caching(&origin, "ttl: 1h");
        gateway.fetch("/v1/a", "");
        assert_eq!(gateway.fetch("/v1/a", "").is_hit(), stored, "{status} {public}");
    }
}

#[test]
fn age_counts() {
    assert_reused(&[
        ("Cache-Control: max-age=3600\r\nAge: 1800\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: 3600\r\n", false),
        ("Cache-Control: max-age=3600\r\nAge: 0, 7200\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: 7200, 0\r\n", false),
        ("Cache-Control: max-age=3600\r\nAge: 0\r\nAge: 7200\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: nonsense\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: -7200\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: 1800.5\r\n", true),
        ("Cache-Control: max-age=3600\r\nAge: 99999999999999999999\r\n", false),
    ]);
}

#[test]
fn the_date_shows_how_old_a_response_is() {
    assert_reused(&[
        (&format!("Cache-Control: max-age=3600\r\nDate: {}\r\n", at(-7200)), false),
        (&format!("Cache-Control: max-age=3600\r\nDate: {}\r\n", at(-1800)), true),
        // A clock that goes ahead makes nothing younger than it is.
        (&format!("Cache-Control: max-age=3600\r\nDate: {}\r\n", at(7200)), true),
        (&format!("Cache-Control: max-age=3600\r\nDate: {}\r\nAge: 7200\r\n", at(7200)), false),
    ]);
}

#[test]
fn the_age_that_clients_are_told_includes_that_of_other_caches() {
    let origin = counting("Cache-Control: max-age=3600\r\nAge: 100\r\n");
    let gateway = caching(&origin, "");
    gateway.fetch("/v1/a", "");
    let hit = gateway.fetch("/v1/a", "");
    assert!((100..105).contains(&hit.age().unwrap()) && hit.all("age").len() == 1, "{hit:?}");
}

#[test]
fn targeted_fields_count_alone() {
    let past = at(-3600);
    assert_reused(&[
        ("CDN-Cache-Control: max-age=3600\r\nCache-Control: no-store\r\n", true),
        ("CDN-Cache-Control: no-store\r\nCache-Control: max-age=3600\r\n", false),
        ("CDN-Cache-Control: private\r\nCache-Control: max-age=3600\r\n", false),
        ("CDN-Cache-Control: no-cache\r\nCache-Control: max-age=3600\r\n", false),
        ("CDN-Cache-Control: max-age=0\r\nCache-Control: max-age=3600\r\n", false),
        (&format!("CDN-Cache-Control: max-age=3600\r\nExpires: {past}\r\n"), true),
        ("CDN-Cache-Control: s-maxage=3600, max-age=0\r\n", true),
        // Not a dictionary, or an empty one: as if it were not there.
        ("CDN-Cache-Control: max-age=,\r\nCache-Control: max-age=3600\r\n", true),
        ("CDN-Cache-Control: MAX-AGE=0\r\nCache-Control: max-age=3600\r\n", true),
        ("CDN-Cache-Control: \r\nCache-Control: max-age=3600\r\n", true),
        ("CDN-Cache-Control: max-age=\"0\"\r\nCache-Control: max-age=3600\r\n", false),
    ]);
    let own = "targeted_fields: [acme-cache-control, cdn-cache-control]";
    assert!(is_reused("Acme-Cache-Control: max-age=60\r\nCDN-Cache-Control: max-age=0\r\n", own));
    assert!(!is_reused("CDN-Cache-Control: max-age=60\r\n", "targeted_fields: []"));
    // They are passed on: other caches may be meant as well.
    let origin = counting("CDN-Cache-Control: max-age=60\r\n");
    let gateway = caching(&origin, "");
    assert_eq!(gateway.fetch("/v1/a", "").header("cdn-cache-control"), Some("max-age=60"));
    assert_eq!(gateway.fetch("/v1/a", "").header("cdn-cache-control"), Some("max-age=60"));
}

#[test]
fn fresh_responses_of_any_status_are_reused_and_assumed_lifetimes_only_where_allowed() {
    let origin = |status: u16, fields: String| {
        let answer = format!("{status} Some\n{fields}\n\nbody");
        super::in_turn(&[&answer])
    };
    for status in [200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 418, 499, 500, 502, 503, 504, 599] {
        let origin = origin(status, "Cache-Control: max-age=3600".to_owned());
        let gateway = caching(&origin, "");
        assert_eq!(gateway.fetch("/v1/a", "").status, status);
        let again = gateway.fetch("/v1/a", "");
        assert!(again.is_hit() && again.status == status, "{status} {again:?}");
    }
    let assumed = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
    for status in (200..=205).chain(300..=308).chain([400, 401, 403, 404, 405, 410, 414, 500, 501, 503]) {
        if status == 304 {
            continue;
        }
        let origin = origin(status, format!("Last-Modified: {}", at(-3_600_000)));
        let gateway = caching(&origin, "");
        gateway.fetch("/v1/a", "");
        assert_eq!(gateway.fetch("/v1/a", "").is_hit(), assumed.contains(&status), "{status}");
    }
}
