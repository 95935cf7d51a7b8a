//! Requests that are held against the API's own description before the upstream sees them.

use serde_json::{Value, json};

use crate::{
    fixtures::{comes_true, with_policies},
    support::{Gateway, Origin, Response},
};

const SCHEMA: &str = "{ inline: { type: object, required: [email], \
    properties: { email: { type: string, maxLength: 20 }, age: { type: integer, minimum: 0 } }, additionalProperties: false } }";

const OPENAPI: &str = "{ inline: { openapi: 3.1.0, info: { title: T, version: '1' }, paths: { \
    /v1/users/echo: { \
      get: { parameters: [ \
        { name: limit, in: query, schema: { type: integer, minimum: 1, maximum: 100 } }, \
        { name: tags, in: query, schema: { type: array, items: { enum: [a, b] } } }, \
        { name: X-Trace, in: header, required: true, schema: { type: string, pattern: '^[0-9a-f]{4}$' } } ], responses: {} }, \
      post: { requestBody: { required: true, content: { application/json: { schema: { $ref: '#/components/schemas/User' } } } }, responses: {} } }, \
    '/v1/users/{id}/echo': { parameters: [ { name: id, in: path, required: true, schema: { type: string, format: uuid } } ], \
      get: { responses: {} } } }, \
    components: { schemas: { User: { type: object, required: [name], properties: { name: { type: string, minLength: 1 } }, additionalProperties: false } } } } }";

/// Of expressions: what an expression may be leads to what an expression may be by two ways.
const EXPRESSION: &str = "{ $ref: '#/components/schemas/e', components: { schemas: { e: { oneOf: [ \
    { type: object, required: [op, args], properties: { op: { const: and }, args: { type: array, items: { $ref: '#/components/schemas/e' } } } }, \
    { type: object, required: [op, args], properties: { op: { const: or }, args: { type: array, items: { $ref: '#/components/schemas/e' } } } }, \
    { type: object, required: [field], properties: { field: { type: string } } } ] } } } }";

fn errors(answer: &Response) -> Value {
    assert_eq!((answer.status, answer.problem().as_str()), (400, "validation-failed"), "{answer:?}");
    answer.json()["errors"].clone()
}

#[test]
fn a_body_that_does_not_fit_its_schema_is_refused_with_reasons() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, &format!("validation: {{ body_schema: {SCHEMA} }}"));
    let good = r#"{"email":"a@b.test","age":3}"#;
    let answer = gateway.post_json("/v1/echo", good);
    assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(good)), "unchanged");
    for (body, pointer) in [
        (r#"{"email":"secret-address-that-is-too-long@b.test"}"#, "/email"),
        (r#"{"email":"a","age":-1}"#, "/age"),
        (r#"{"age":1}"#, ""),
        (r#"{"email":"a","secret":1}"#, ""),
        ("[]", ""),
        ("{\"email\":", ""),
    ] {
        let answer = gateway.post_json("/v1/echo", body);
        let errors = errors(&answer);
        assert_eq!((&errors[0]["in"], &errors[0]["pointer"]), (&json!("body"), &json!(pointer)), "{body}: {errors}");
        assert!(!answer.text().contains("secret-address"), "values are not repeated");
    }
    let several = errors(&gateway.post_json("/v1/echo", r#"{"email":1,"age":"x"}"#));
    assert_eq!(several.as_array().unwrap().len(), 2, "{several}");
    assert_eq!(origin.requests("/v1/echo"), 1);
}

#[test]
fn a_name_that_stands_twice_is_refused_since_the_upstream_might_read_the_other() {
    let origin = Origin::start("a");
    let twice = r#"{"email":"secret-address-that-is-too-long@b.test","email":"b"}"#;
    let escaped = r#"{"email":"secret-address-that-is-too-long@b.test","\u0065mail":"b"}"#;
    for document in [format!("body_schema: {SCHEMA}"), format!("openapi: {OPENAPI}")] {
        let gateway = with_policies(origin.address, &format!("validation: {{ {document} }}"));
        for body in [twice, escaped] {
            let answer = gateway.post_json("/v1/users/echo", body);
            let errors = errors(&answer);
            assert_eq!((&errors[0]["in"], &errors[0]["pointer"]), (&json!("body"), &json!("/email")), "{body}");
            assert!(!answer.text().contains("secret"), "values are not repeated");
        }
        assert_eq!(origin.requests("/v1/users/echo"), 0);
    }
    let gateway = with_policies(origin.address, &format!("validation: {{ mode: report, body_schema: {SCHEMA} }}"));
    assert_eq!(gateway.post_json("/v1/echo", twice).json()["body"], twice);
    assert!(comes_true(|| gateway.log().contains("stands more than once")), "{}", gateway.log());
}

#[test]
fn no_word_about_a_body_gets_another_one_past_its_schema() {
    let origin = Origin::start("a");
    let body = r#"{"email":"&admin=true&x="}"#;
    let described = r#"{"name":"&admin=true&x="}"#;
    let doubtful = [
        "Content-Type: application/json; charset=utf-7\r\n",
        "Content-Type: application/json; charset=utf-8; charset=utf-16\r\n",
        "Content-Type: application/json; a=b, application/x-www-form-urlencoded\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
    ];
    let of_another_type = [
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/x-www-form-urlencoded, a/b+json\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        "",
    ];
    for (document, target, body) in [
        (format!("body_schema: {SCHEMA}"), "/v1/echo", body),
        (format!("openapi: {OPENAPI}"), "/v1/users/echo", described),
    ] {
        let gateway = with_policies(origin.address, &format!("validation: {{ {document} }}"));
        for fields in doubtful.iter().chain(&of_another_type) {
            let refused = gateway.ask("POST", target, fields, body);
            assert_eq!((refused.status, refused.problem().as_str()), (415, "unsupported-media-type"), "{fields}");
        }
        assert_eq!(origin.requests(target), 0);
        for fields in [
            "Content-Type: application/json; charset=UTF-8\r\nContent-Encoding: identity\r\n",
            "Content-Type: a/b+json\r\n",
        ] {
            // The description has but one type.
            let status = if target == "/v1/users/echo" && fields.contains("a/b") { 415 } else { 200 };
            assert_eq!(gateway.ask("POST", target, fields, body).status, status, "{target} {fields}");
        }
        let told = "Content-Type: application/json\r\nConnection: content-type\r\n\
                    content_type: text/plain\r\ncontent_encoding: gzip\r\n";
        let answer = gateway.ask("POST", target, told, body);
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(body)));
        assert_eq!(answer.echoed("content-type").as_deref(), Some("application/json"));
        assert_eq!((answer.echoed("content_type"), answer.echoed("content_encoding")), (None, None));
    }
    let gateway = with_policies(origin.address, &format!("validation: {{ mode: report, body_schema: {SCHEMA} }}"));
    for (count, fields) in (1_u32..).zip(doubtful) {
        let answer = gateway.ask("POST", "/v1/echo", fields, body);
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(body)), "{fields}");
        let counted = gateway.metric("seiketsu_nonconforming_requests_total{tenant=\"acme\"}");
        assert!((counted - f64::from(count)).abs() < 0.5, "{fields}");
    }
}

#[test]
fn a_body_in_pieces_is_validated_as_a_whole() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, &format!("validation: {{ body_schema: {SCHEMA} }}"));
    let in_pieces = |first: &str, second: &str| {
        gateway.connect().request(&format!(
            "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        ))
    };
    let good = in_pieces(r#"{"email":"#, r#""a@b"}"#);
    assert_eq!((good.status, good.json()["body"].as_str()), (200, Some(r#"{"email":"a@b"}"#)));
    errors(&in_pieces(r#"{"email":"#, "7}"));
    let mut patient = gateway.connect();
    patient.send(b"POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n");
    assert_eq!(patient.receive_head().status, 100);
    patient.send(br#"{"email":"a@b"}"#);
    assert_eq!(patient.receive().unwrap().status, 200);
}

#[test]
fn a_body_that_nests_costs_no_more_than_its_length_however_its_schema_refers_to_itself() {
    let origin = Origin::start("a");
    let description = EXPRESSION.replacen(
        '{',
        "{ openapi: 3.1.0, paths: { /v1/echo: { post: { requestBody: { content: { \
        application/json: { schema: { $ref: '#/components/schemas/e' } } } }, parameters: [ { name: q, in: query, \
        content: { application/json: { schema: { $ref: '#/components/schemas/e' } } } } ] } } },",
        1,
    );
    let nested = |innermost: &str| format!("{}{innermost}{}", r#"{"op":"or","args":["#.repeat(50), "]}".repeat(50));
    let (good, bad) = (nested(r#"{"field":"a"}"#), nested(r#"{"field":1}"#));
    let in_query =
        |value: &str| format!("/v1/echo?q={}", value.replace('"', "%22").replace('{', "%7B").replace('}', "%7D"));
    for document in
        [format!("body_schema: {{ inline: {EXPRESSION} }}"), format!("openapi: {{ inline: {description} }}")]
    {
        let gateway = with_policies(origin.address, &format!("validation: {{ {document} }}"));
        assert_eq!(gateway.post_json("/v1/echo", &good).status, 200, "{document}");
        let found = errors(&gateway.post_json("/v1/echo", &bad));
        assert_eq!((&found[0]["in"], &found[0]["pointer"]), (&json!("body"), &json!("")), "{found}");
        if document.starts_with("openapi") {
            assert_eq!(gateway.post_json(&in_query(&good), &good).status, 200);
            assert_eq!(errors(&gateway.post_json(&in_query(&bad), &good))[0]["in"], "query");
        }
        let reports = with_policies(origin.address, &format!("validation: {{ mode: report, {document} }}"));
        assert_eq!(reports.post_json("/v1/echo", &bad).status, 200);
    }
}

#[test]
fn a_body_too_large_to_be_read_first_is_a_413() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, &format!("validation: {{ body_schema: {SCHEMA} }}"));
    let answer = gateway.post_json("/v1/echo", &format!("\"{}\"", "x".repeat(70 << 10)));
    assert_eq!((answer.status, answer.problem().as_str()), (413, "payload-too-large"));
}

#[test]
fn an_openapi_description_decides_on_paths_parameters_and_bodies() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, &format!("validation: {{ openapi: {OPENAPI} }}"));
    let trace = "X-Trace: 00ff\r\n";
    for target in ["/v1/users/echo", "/v1/users/echo?limit=100", "/v1/users/echo?tags=a&tags=b", "/v1/users/%65cho"] {
        assert_eq!(gateway.ask("GET", target, trace, "").status, 200, "{target}");
    }
    let id = "/v1/users/0b8f0e5e-8d4c-4bb0-9c63-0a3d3c0a2a11/echo";
    assert_eq!(gateway.ask("GET", id, "", "").status, 200);
    assert_eq!(gateway.post_json("/v1/users/echo", r#"{"name":"x"}"#).status, 200);
    for (method, target, fields, body, place, name) in [
        ("GET", "/v1/users/echo?limit=0", trace, "", "query", Some("limit")),
        ("GET", "/v1/users/echo?limit=ten", trace, "", "query", Some("limit")),
        ("GET", "/v1/users/echo?tags=a&tags=c", trace, "", "query", Some("tags")),
        ("GET", "/v1/users/echo", "", "", "header", Some("X-Trace")),
        ("GET", "/v1/users/echo", "X-Trace: zz\r\n", "", "header", Some("X-Trace")),
        ("GET", "/v1/users/7/echo", "", "", "path", Some("id")),
        ("POST", "/v1/users/echo", "Content-Type: application/json\r\n", r#"{"name":""}"#, "body", None),
        ("POST", "/v1/users/echo", "Content-Type: application/json\r\n", r#"{"name":"x","admin":true}"#, "body", None),
        ("POST", "/v1/users/echo", "Content-Type: application/json\r\n", "", "body", None),
    ] {
        let answer = gateway.ask(method, target, fields, body);
        let errors = errors(&answer);
        assert_eq!(errors[0]["in"], place, "{method} {target} {body}: {errors}");
        let said = errors[0]["name"].as_str().map(str::to_lowercase);
        assert_eq!(said, name.map(str::to_lowercase), "{method} {target} {body}: {errors}");
    }
    let unknown = gateway.get("acme.test", "/v1/nothing/echo", "");
    assert_eq!((unknown.status, unknown.problem().as_str()), (404, "no-route"));
    let method = gateway.ask("DELETE", "/v1/users/echo", "", "");
    assert_eq!(method.status, 405);
    assert!(method.header("allow").unwrap().contains("GET"), "{method:?}");
    let media = gateway.ask("POST", "/v1/users/echo", "Content-Type: text/xml\r\n", "<a/>");
    assert_eq!((media.status, media.problem().as_str()), (415, "unsupported-media-type"));
}

#[test]
fn in_report_mode_everything_passes_and_is_noted() {
    let origin = Origin::start("a");
    let gateway = with_policies(
        origin.address,
        &format!("validation: {{ mode: report, body_schema: {SCHEMA}, openapi: {OPENAPI} }}"),
    );
    for (target, body) in
        [("/v1/echo", r#"{"secret":"sesame"}"#), ("/v1/users/echo", "nothing of the kind"), ("/v1/users/echo", "")]
    {
        let answer = gateway.post_json(target, body);
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some(body)), "{target}");
    }
    assert!(comes_true(|| gateway.log().contains("does not conform")), "{}", gateway.log());
    assert!(!gateway.log().contains("sesame"));
    let counted = gateway.metric("seiketsu_nonconforming_requests_total{tenant=\"acme\"}");
    assert!((counted - 3.0).abs() < 0.5, "{}", gateway.metrics());
    // Also what would have been too large to look at.
    let large = format!("\"{}\"", "x".repeat(70 << 10));
    let answer = gateway.post_json("/v1/echo", &large);
    assert_eq!((answer.status, answer.json()["length"].as_u64()), (200, Some(large.len() as u64)), "{}", answer.status);
}

#[test]
fn a_route_may_switch_to_another_mode() {
    let origin = Origin::start("a");
    let tenant = format!("policies: {{ validation: {{ body_schema: {SCHEMA} }} }}\n");
    let routes = format!(
        "- {{ id: watched, match: {{ path: /v1/watched/echo }}, upstream: demo, policies: {{ validation: {{ mode: report, body_schema: {SCHEMA} }} }} }}\n{}",
        crate::fixtures::open("")
    );
    let gateway =
        Gateway::start(&crate::fixtures::tenants(&crate::fixtures::demo(&[origin.address], ""), &tenant, &routes));
    assert_eq!(gateway.post_json("/v1/echo", "[]").status, 400);
    assert_eq!(gateway.post_json("/v1/watched/echo", "[]").status, 200);
}
