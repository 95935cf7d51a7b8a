//! Which tenant and route a request is for, however it is spelt.

use crate::{
    fixtures::{demo, tenants},
    support::{Gateway, KEY, Origin, two_tenants},
};

/// A route that says in its answers that it is the one.
fn route(id: &str, conditions: &str) -> String {
    format!(
        "- {{ id: {id}, match: {{ {conditions} }}, upstream: demo, \
         policies: {{ headers: {{ response: {{ set: {{ x-route: {id} }} }} }} }} }}\n"
    )
}

#[test]
fn an_exact_host_beats_a_wildcard_and_its_spelling_does_not_matter() {
    let origin = Origin::start("a");
    let tenant = |id: &str, host: &str| {
        format!(
            "- id: {id}\n  hosts: ['{host}']\n  policies: {{ headers: {{ response: {{ set: {{ x-tenant: {id} }} }} }} }}\n  \
             routes: [{{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}]\n"
        )
    };
    let gateway = Gateway::start(&format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\nupstreams:\n  {}tenants:\n{}{}",
        demo(&[origin.address], ""),
        tenant("wild", "*.acme.test"),
        tenant("exact", "api.acme.test"),
    ));
    for (host, expected) in [
        ("api.acme.test", Some("exact")),
        ("API.Acme.TEST", Some("exact")),
        ("api.acme.test:8080", Some("exact")),
        ("api.acme.test.", Some("exact")),
        ("api.acme.test.:80", Some("exact")),
        ("other.acme.test", Some("wild")),
        ("OTHER.acme.test.", Some("wild")),
        ("acme.test", None),
        ("xacme.test", None),
        ("api.acme.test.evil.test", None),
    ] {
        let answer = gateway.get(host, "/v1/echo", "");
        assert_eq!(answer.header("x-tenant"), expected, "{host}: {answer:?}");
        assert_eq!(answer.status, if expected.is_some() { 200 } else { 404 }, "{host}");
    }
    for host in
        ["api acme.test", "api..acme.test", "api.acme.test:port", "[::1", "api.acme.test/x", "user@api.acme.test"]
    {
        let status = gateway.get(host, "/v1/echo", "").status;
        assert!(status == 400 || status == 404, "{host}: {status}");
    }
}

#[test]
fn a_static_path_beats_a_parameter_and_that_a_tail() {
    let origin = Origin::start("a");
    // The least specific stands first: the order in the file must not matter.
    let routes = [
        route("tail", "path: '/v1/{*rest}'"),
        route("users-tail", "path: '/v1/users/{*rest}'"),
        route("user", "path: '/v1/users/{id}/echo'"),
        route("me", "path: /v1/users/me/echo"),
    ];
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &routes.concat()));
    for (path, expected) in [
        ("/v1/users/me/echo", "me"),
        ("/v1/users/7/echo", "user"),
        ("/v1/users/m%65/echo", "me"),
        ("/v1/users/7/x/echo", "users-tail"),
        ("/v1/others/7/echo", "tail"),
    ] {
        assert_eq!(gateway.get("acme.test", path, "").header("x-route"), Some(expected), "{path}");
    }
}

#[test]
fn conditions_on_method_header_and_query_choose_the_route() {
    let origin = Origin::start("a");
    let routes = [
        route("any", "path: '/v1/{*rest}'"),
        route("posted", "path: '/v1/{*rest}', methods: [POST]"),
        route("ios", "path: '/v1/{*rest}', headers: [{ name: x-client, prefix: ios- }]"),
        route(
            "both",
            "path: '/v1/{*rest}', headers: [{ name: x-client, prefix: ios- }], query: [{ name: beta, equals: 'yes' }]",
        ),
        route("absent", "path: /v1/only/echo, headers: [{ name: x-client, present: false }]"),
    ];
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &routes.concat()));
    for (method, target, fields, expected) in [
        ("GET", "/v1/echo", "", "any"),
        ("POST", "/v1/echo", "", "posted"),
        ("GET", "/v1/echo", "X-Client: ios-17\r\n", "ios"),
        ("GET", "/v1/echo", "X-Client: android\r\n", "any"),
        ("GET", "/v1/echo?beta=yes", "X-Client: ios-17\r\n", "both"),
        ("GET", "/v1/echo?a=1&beta=y%65s", "X-Client: ios-17\r\n", "both"),
        ("GET", "/v1/echo?beta=no", "X-Client: ios-17\r\n", "ios"),
        ("GET", "/v1/only/echo", "", "absent"),
        ("GET", "/v1/only/echo", "X-Client: x\r\n", "any"),
    ] {
        let answer = gateway.ask(method, target, fields, "");
        assert_eq!(answer.header("x-route"), Some(expected), "{method} {target} {fields}");
    }
}

#[test]
fn no_spelling_of_a_path_dodges_an_access_rule() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    for path in [
        "/v1/secure/echo",
        "/v1/secure/",
        "//v1//secure//echo",
        "/v1/./secure/echo",
        "/v1/x/../secure/echo",
        "/v1/secure/x/../echo",
        "/v1/%73ecure/echo",
        "/v1/secur%65/echo",
        "/v1/secure/%2e/echo",
        "/v1/x/%2e%2e/secure/echo",
        "/v1/x/.%2E/secure/echo",
        "/%76%31/secure/echo",
        "/x/../v1/secure/echo",
        "/v1/secure/echo?next=/v1/echo",
        "/v1/secure/echo?/../../echo",
    ] {
        for host in ["acme.test", "ACME.TEST", "acme.test:80", "acme.test."] {
            let answer = gateway.get(host, path, "");
            assert_eq!(answer.status, 401, "{host} {path}: {answer:?}");
        }
    }
    let absolute = gateway.connect().request("GET http://acme.test/v1/secure/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!(absolute.status, 401);
    for path in [
        "/v1%2Fsecure/echo",
        "/v1/secure%2fecho",
        "/v1/x/..%2fsecure/echo",
        "/v1\\secure\\echo",
        "/v1/secure%5Cecho",
        "/v1/x/..;/secure/echo",
        "/v1/x/..;a=b/secure/echo",
        "/v1/%00secure/echo",
        "/v1/secure%0d%0a/echo",
        "/v1/%c0%afsecure/echo",
        "/../v1/secure/echo",
        "/%2e%2e/v1/secure/echo",
        "/v1/%zz/secure/echo",
    ] {
        let answer = gateway.get("acme.test", path, "");
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
    }
}

#[test]
fn the_upstream_gets_the_path_that_was_matched() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    for (sent, received) in [
        ("/v1/secure/../echo", "/v1/echo"),
        ("//v1/./x//echo", "/v1/x/echo"),
        ("/v1/%61/echo", "/v1/a/echo"),
        ("/v1/%c3%a4/echo", "/v1/%C3%A4/echo"),
        ("/v1/%252e%252e/echo", "/v1/%252e%252e/echo"),
        ("/v1/secure./echo", "/v1/secure./echo"),
        ("/v1/SECURE/echo", "/v1/SECURE/echo"),
    ] {
        let answer = gateway.get("acme.test", &format!("{sent}?q=a%2fb"), "");
        assert_eq!(answer.status, 200, "{sent}: {answer:?}");
        let seen = answer.json();
        assert_eq!((seen["path"].as_str(), seen["query"].as_str()), (Some(received), Some("q=a%2fb")), "{sent}");
    }
}
