//! What clients get through the gateway, over real sockets.

use crate::support::{Client, Gateway, KEY, Origin, two_tenants, wait_for};

#[test]
fn a_request_reaches_the_origin_and_its_answer_the_client() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let answer = gateway.get("acme.test", "/v1/echo?a=1", "X-Mine: yes\r\n");
    assert_eq!(answer.status, 200);
    let seen = answer.json();
    assert_eq!((seen["path"].as_str(), seen["query"].as_str()), (Some("/v1/echo"), Some("a=1")));
    assert!(seen["headers"].to_string().contains("x-mine"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.header("x-request-id").is_some());
}

#[test]
fn an_unknown_host_and_an_unknown_path_are_problems() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    for (host, target, status, kind) in [
        ("nobody.test", "/v1/echo", 404, "unknown-host"),
        ("acme.test", "/nothing", 404, "no-route"),
        ("acme.test", "/v1/%zz", 400, "bad-request"),
        ("acme.test", "/../etc", 400, "bad-request"),
    ] {
        let answer = gateway.get(host, target, "");
        assert_eq!(answer.status, status, "{host}{target}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert!(problem["type"].as_str().unwrap().ends_with(kind), "{problem}");
        assert_eq!(problem["instance"].as_str(), answer.header("x-request-id"));
    }
    let wrong_method = gateway.connect().request("PUT /only HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((wrong_method.status, wrong_method.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn only_the_right_key_of_the_right_tenant_opens_a_secure_route() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let wrong = KEY.replace("0123", "3210");
    for (host, field) in [
        ("acme.test", String::new()),
        ("acme.test", format!("X-API-Key: {wrong}\r\n")),
        ("globex.test", format!("X-API-Key: {KEY}\r\n")),
    ] {
        let refused = gateway.get(host, "/v1/secure/echo", &field);
        assert_eq!(refused.status, 401, "{field}");
        assert!(refused.header("www-authenticate").is_some());
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    }
    let forged = "X-Gateway-Identity: me\r\nx_gateway_consumer: root\r\n";
    let passed = gateway.get("acme.test", "/v1/secure/echo", &format!("X-API-Key: {KEY}\r\n{forged}"));
    assert_eq!(passed.status, 200);
    let seen = passed.json()["headers"].to_string();
    assert!(!seen.contains("root") && !seen.contains("\"me\"") && !seen.contains(KEY), "{seen}");
    assert!(seen.contains("x-gateway-identity"));
}

#[test]
fn errors_carry_cors_too() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let allowed = gateway.get("acme.test", "/v1/secure/echo", "Origin: https://app.acme.test\r\n");
    assert_eq!(allowed.status, 401);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.acme.test"));
    let other = gateway.get("acme.test", "/v1/secure/echo", "Origin: https://evil.test\r\n");
    assert_eq!(other.header("access-control-allow-origin"), None);
    let preflight = gateway.connect().request(
        "OPTIONS /v1/secure/echo HTTP/1.1\r\nHost: acme.test\r\nOrigin: https://app.acme.test\r\n\
         Access-Control-Request-Method: POST\r\n\r\n",
    );
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-credentials"), Some("true"));
}

#[test]
fn a_connection_stays_open_over_answers_of_both_kinds() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let mut client = gateway.connect();
    for (target, status) in [("/v1/echo", 200), ("/nothing", 404), ("/v1/secure/echo", 401), ("/v1/status/500", 500)] {
        let answer = client.request(&format!("GET {target} HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
        assert_eq!(answer.status, status);
    }
    let with_body = client.request("POST /nothing HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(with_body.status, 404);
    assert_eq!(client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 200);
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let mut client = gateway.connect();
    let requests: String = (0..20)
        .map(|n| format!("POST /v1/echo?n={n} HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 3\r\n\r\nabc"))
        .collect();
    client.send(requests.as_bytes());
    for n in 0..20 {
        let answer = client.receive().unwrap();
        assert_eq!(answer.json()["query"].as_str(), Some(format!("n={n}").as_str()));
        assert_eq!(answer.json()["body"].as_str(), Some("abc"));
    }
}

#[test]
fn ambiguous_requests_are_refused_and_the_connection_is_closed() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    for (request, status) in [
        (
            "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        ("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nA : b\r\n\r\n", 400),
        ("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\nA: b\rc\r\n\r\n", 400),
        ("GET /v1/echo HTTP/1.1\nHost: acme.test\n\n", 400),
        ("GET /v1/\x01 HTTP/1.1\r\nHost: acme.test\r\n\r\n", 400),
        ("GET http://globex.test/v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n", 400),
        ("CONNECT acme.test:443 HTTP/1.1\r\nHost: acme.test\r\n\r\n", 405),
        ("GET /v1/echo HTTP/3.0\r\nHost: acme.test\r\n\r\n", 505),
    ] {
        let mut client = gateway.connect();
        let answer = client.request(request);
        assert_eq!(answer.status, status, "{request:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{request:?}");
        assert!(client.is_closed(), "{request:?}");
    }
    let absolute = gateway.connect().request("GET http://acme.test/v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!(absolute.json()["path"].as_str(), Some("/v1/echo"));
}

#[test]
fn a_head_has_a_deadline_of_its_own() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start_with(&two_tenants(&[origin.address], KEY), "protection: { head_timeout: 300ms }\n");
    let mut client = gateway.connect();
    client.send(b"GET /v1/echo HTTP/1.1\r\n");
    let answer = client.receive().unwrap();
    assert_eq!(answer.status, 408);
    assert!(client.is_closed());
}

#[test]
fn trace_does_not_show_what_the_gateway_adds() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let mut client = gateway.connect();
    let answer = client.request("TRACE /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert_eq!((answer.status, answer.problem().as_str()), (405, "method-not-allowed"));
    assert_eq!(origin.requests("/v1/echo"), 0);
}

#[test]
fn nobody_is_believed_about_whom_they_speak_for() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let forged = "X-Forwarded-For: 192.0.2.1\r\nx_forwarded_for: 192.0.2.2\r\nX-Forwarded_Proto: https\r\n\
                  X-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /admin\r\nForwarded: for=192.0.2.3\r\n\
                  X_Real_IP: 192.0.2.4\r\nX_Request_Id: forged\r\nTrue-Client-IP: 192.0.2.5\r\n\
                  CF-Connecting-IP: 192.0.2.6\r\nX-Client-IP: 192.0.2.7\r\nX_Cluster_Client_IP: 192.0.2.8\r\n\
                  X-Envoy-External-Address: 192.0.2.9\r\nX-Original-URL: /forged\r\nX-Rewrite-URL: /forged\r\n";
    let seen = gateway.get("acme.test", "/v1/echo", forged);
    let json = seen.json();
    let said: Vec<&str> = json["headers"].as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap()).collect();
    for forged in ["x_forwarded_for", "x-forwarded_proto", "x-forwarded-port", "x-forwarded-prefix", "forwarded"] {
        assert!(!said.contains(&forged), "{said:?}");
    }
    assert!(!seen.text().contains("192.0.2.") && !seen.text().contains("forged"), "{}", seen.text());
}

#[test]
fn an_address_has_a_bound_of_connections() {
    let origin = Origin::start("eu-west");
    let node = "protection: { connections_per_address: 3 }\n";
    let gateway = Gateway::start_with(&two_tenants(&[origin.address], KEY), node);
    let request = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";
    let mut open: Vec<Client> = (0..3).map(|_| gateway.connect()).collect();
    assert!(open.iter_mut().all(|client| client.request(request).status == 200));
    assert!(gateway.connect().is_closed());
    open.pop();
    assert!(
        wait_for(&|| {
            let mut client = gateway.connect();
            client.send(request.as_bytes());
            client.receive()
        })
        .is_some()
    );
}

#[test]
fn a_trusted_proxy_has_no_bound_of_connections_for_all_its_clients() {
    let origin = Origin::start("eu-west");
    let node = "protection: { connections_per_address: 3 }\nforwarding: { trusted_proxies: ['127.0.0.1/32'] }\n";
    let gateway = Gateway::start_with(&two_tenants(&[origin.address], KEY), node);
    let request = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";
    let mut open: Vec<Client> = (0..10).map(|_| gateway.connect()).collect();
    assert!(open.iter_mut().all(|client| client.request(request).status == 200));
}

#[test]
fn a_killed_origin_costs_no_idempotent_request() {
    let (first, second) = (Origin::start("a"), Origin::start("b"));
    let gateway = Gateway::start(&two_tenants(&[first.address, second.address], KEY));
    let mut client = gateway.connect();
    let mut ask = || client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n").status;
    assert!((0..50).all(|_| ask() == 200));
    drop(first);
    assert!((0..200).all(|_| ask() == 200));
    drop(second);
    let answer = ask();
    assert!(answer == 502 || answer == 503, "{answer}");
}

#[test]
fn an_upstream_that_does_not_answer_in_time_is_a_504() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY)
        .replace("  policies:\n    cors", "  policies:\n    timeouts: { per_try: 200ms, total: 400ms }\n    cors");
    let gateway = Gateway::start(&tenants);
    let answer = gateway.get("acme.test", "/v1/delay/5000", "");
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
}
