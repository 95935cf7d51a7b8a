//! Who is calling: keys, tokens, and what upstreams are told about it.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{
    fixtures::{Issuer, Stub, claims, comes_true, demo, key_hash, let_pass, now, ok, tenants, unsigned, verified},
    support::{Gateway, KEY, Origin, Response},
};

const OLD_KEY: &str = "sk_oldkey01_0123456789abcdefghijklmnopqrstuv";
const NARROW_KEY: &str = "sk_narrow01_0123456789abcdefghijklmnopqrstuv";
const EXPIRED_KEY: &str = "sk_expired1_0123456789abcdefghijklmnopqrstuv";

/// A route for keys and tokens, one for everyone, one for writers, one for administrators, one for nobody.
const ROUTES: &str = "
- { id: secure, match: { path: '/v1/secure/{*rest}' }, upstream: demo, policies: { auth: { accept: [api_key, jwt], forward_headers: true } } }
- { id: either, match: { path: '/v1/either/{*rest}' }, upstream: demo, policies: { auth: { accept: [anonymous, api_key, jwt] } } }
- { id: write, match: { path: '/v1/write/{*rest}' }, upstream: demo, policies: { auth: { accept: [api_key, jwt], scopes: [read, write] } } }
- { id: admin, match: { path: '/v1/admin/{*rest}' }, upstream: demo, policies: { auth: { accept: [jwt], roles: [admin, root] } } }
- { id: through, match: { path: '/v1/through/{*rest}' }, upstream: demo, policies: { auth: { accept: [api_key, jwt], forward_credential: true, forward_assertion: false } } }
- { id: theirs, match: { path: '/v1/theirs/{*rest}' }, upstream: demo, policies: { auth: { accept: [anonymous], forward_credential: true } } }
- { id: nobody, match: { path: '/v1/nobody/{*rest}' }, upstream: demo, policies: { auth: { accept: [] } } }
- { id: open, match: { path: '/v1/{*rest}' }, upstream: demo }";

struct Setup {
    /// The file with the issuer's keys.
    keys: std::path::PathBuf,
    origin: Origin,
    gateway: Gateway,
    issuer: Issuer,
}

impl Setup {
    fn get(&self, target: &str, fields: &str) -> Response {
        self.gateway.get("acme.test", target, fields)
    }

    fn with_key(&self, target: &str, key: &str) -> Response {
        self.get(target, &format!("X-API-Key: {key}\r\n"))
    }

    fn with_token(&self, target: &str, token: &str) -> Response {
        self.get(target, &format!("Authorization: Bearer {token}\r\n"))
    }
}

/// `jwks` is where the issuer's keys come from; `{file}` stands for a file with them.
fn start_with(jwks: &str) -> Setup {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1"));
    let keys = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    fs::write(&keys, issuer.jwks()).unwrap();
    let jwks = jwks.replace("{file}", keys.to_str().unwrap());
    let tenant = format!(
        "consumers:
- id: app
  scopes: [read, write]
  roles: [agent]
  keys:
  - {{ prefix: testacme, hash: '{}' }}
  - {{ prefix: oldkey01, hash: '{}', expires: 2099-01-01T00:00:00Z }}
  - {{ prefix: narrow01, hash: '{}', scopes: [read] }}
  - {{ prefix: expired1, hash: '{}', expires: 2020-01-01T00:00:00Z }}
jwt_issuers:
- {{ issuer: 'https://login.test', audiences: [api], jwks: {jwks} }}
",
        key_hash(KEY),
        key_hash(OLD_KEY),
        key_hash(NARROW_KEY),
        key_hash(EXPIRED_KEY),
    );
    // The other tenant trusts an issuer of its own.
    let keys_of_other = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    fs::write(&keys_of_other, Issuer::new("k1").jwks()).unwrap();
    let other = format!(
        "- id: globex
  hosts: [globex.test]
  consumers: [{{ id: app, keys: [{{ prefix: globex01, hash: '{}' }}] }}]
  jwt_issuers: [{{ issuer: 'https://login.test', audiences: [api], jwks: {{ file: '{}' }} }}]
  routes: [{{ id: secure, match: {{ path: '/{{*rest}}' }}, upstream: demo, policies: {{ auth: {{ accept: [api_key, jwt] }} }} }}]
",
        key_hash("another"),
        keys_of_other.display(),
    );
    let yaml = tenants(&demo(&[origin.address], ""), &tenant, ROUTES) + &other;
    Setup { gateway: Gateway::start(&yaml), keys, origin, issuer }
}

fn start() -> Setup {
    start_with("{ file: '{file}' }")
}

#[test]
fn each_key_of_a_consumer_opens_until_it_expires() {
    let setup = start();
    for key in [KEY, OLD_KEY, NARROW_KEY] {
        assert_eq!(setup.with_key("/v1/secure/echo", key).status, 200);
        assert_eq!(setup.with_token("/v1/secure/echo", key).status, 200, "as a bearer token");
    }
    let expired = setup.with_key("/v1/secure/echo", EXPIRED_KEY);
    assert_eq!((expired.status, expired.problem().as_str()), (401, "unauthenticated"));
    assert!(expired.json()["detail"].as_str().unwrap().contains("expired"));
    for wrong in
        [&KEY[..KEY.len() - 1], &format!("{KEY}x"), "sk_testacme_", "sk_unknown1_0123456789abcdefghijklmnop", "x"]
    {
        let refused = setup.with_key("/v1/secure/echo", wrong);
        assert_eq!(refused.status, 401, "{wrong}");
        let challenges = refused.all("www-authenticate").join(", ");
        assert!(challenges.contains("ApiKey") && challenges.contains("Bearer"), "{challenges}");
        assert!(!refused.text().contains(wrong) || wrong == "x");
    }
    let other = setup.gateway.get("globex.test", "/v1/echo", &format!("X-API-Key: {KEY}\r\n"));
    assert_eq!(other.status, 401, "a key of another tenant");
}

#[test]
fn scopes_and_roles_that_are_missing_are_a_403() {
    let setup = start();
    assert_eq!(setup.with_key("/v1/write/echo", KEY).status, 200);
    let narrow = setup.with_key("/v1/write/echo", NARROW_KEY);
    assert_eq!((narrow.status, narrow.problem().as_str()), (403, "forbidden"));
    assert!(narrow.header("www-authenticate").unwrap().contains("insufficient_scope"));
    let reader = setup.with_token("/v1/write/echo", &setup.issuer.token(&json!({})));
    assert_eq!(reader.status, 403);
    assert!(reader.header("www-authenticate").unwrap().contains("scope=\"read write\""));
    let writer = setup.issuer.token(&json!({ "scope": ["write", "read"] }));
    assert_eq!(setup.with_token("/v1/write/echo", &writer).status, 200);

    assert_eq!(setup.with_token("/v1/admin/echo", &setup.issuer.token(&json!({}))).status, 403);
    let root = setup.issuer.token(&json!({ "roles": ["root"] }));
    assert_eq!(setup.with_token("/v1/admin/echo", &root).status, 200);
    assert_eq!(setup.with_key("/v1/admin/echo", KEY).status, 401, "a kind that the route does not accept");
    assert_eq!(setup.with_key("/v1/nobody/echo", KEY).status, 403);
    assert_eq!(setup.get("/v1/nobody/echo", "").status, 403);
}

#[test]
fn a_token_counts_only_as_its_issuer_meant_it() {
    let setup = start();
    let issuer = &setup.issuer;
    assert_eq!(setup.with_token("/v1/secure/echo", &issuer.token(&json!({}))).status, 200);
    assert_eq!(setup.with_token("/v1/secure/echo", &issuer.token(&json!({ "aud": ["x", "api"] }))).status, 200);

    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "k1" });
    let good = issuer.token(&json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let hs256 = {
        // Signed with the published key as if it were a shared secret.
        let message = unsigned(&json!({ "alg": "HS256", "typ": "JWT", "kid": "k1" }), &claims(&json!({})));
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, issuer.jwks().as_bytes());
        let tag = aws_lc_rs::hmac::sign(&secret, message.as_bytes());
        format!("{message}.{}", crate::fixtures::encode(tag.as_ref()))
    };
    let stranger = Issuer::new("k1");
    let refused: Vec<(&str, String)> = vec![
        ("none", format!("{}.", unsigned(&json!({ "alg": "none" }), &claims(&json!({}))))),
        ("None", format!("{}.{signature}", unsigned(&json!({ "alg": "None", "kid": "k1" }), &claims(&json!({}))))),
        ("no signature", format!("{message}.")),
        ("hs256", hs256),
        ("another's key", stranger.token(&json!({}))),
        ("embedded key", stranger.signed(&json!({ "alg": "ES256", "jwk": stranger.jwk() }), &claims(&json!({})))),
        ("jku", stranger.signed(&json!({ "alg": "ES256", "jku": "http://evil.test/jwks" }), &claims(&json!({})))),
        ("crit", issuer.signed(&json!({ "alg": "ES256", "kid": "k1", "crit": ["x"], "x": 1 }), &claims(&json!({})))),
        ("unknown kid", issuer.signed(&json!({ "alg": "ES256", "kid": "k9" }), &claims(&json!({})))),
        ("changed claims", format!("{}.{signature}", unsigned(&header, &claims(&json!({ "sub": "bob" }))))),
        ("expired", issuer.token(&json!({ "exp": now() - 60 }))),
        ("no expiry", issuer.token(&json!({ "exp": null }))),
        ("expiry as text", issuer.token(&json!({ "exp": "9999999999" }))),
        ("not yet", issuer.token(&json!({ "nbf": now() + 600 }))),
        ("audience", issuer.token(&json!({ "aud": "other" }))),
        ("audiences", issuer.token(&json!({ "aud": ["other", "API"] }))),
        ("no audience", issuer.token(&json!({ "aud": null }))),
        ("issuer", issuer.token(&json!({ "iss": "https://login.test/" }))),
        ("no issuer", issuer.token(&json!({ "iss": null }))),
        ("not a token", "abc.def".to_owned()),
    ];
    for (what, token) in &refused {
        let answer = setup.with_token("/v1/secure/echo", token);
        assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthenticated"), "{what}: {answer:?}");
        let challenges = answer.all("www-authenticate").join(", ");
        assert!(challenges.contains("Bearer") && challenges.contains("invalid_token"), "{what}: {challenges}");
        assert_eq!(setup.with_token("/v1/either/echo", token).status, 401, "{what}: wrong is worse than none");
    }
    let other = setup.gateway.get("globex.test", "/v1/echo", &format!("Authorization: Bearer {good}\r\n"));
    assert_eq!(other.status, 401, "another tenant's token");
}

#[test]
fn a_request_shows_one_credential_or_none() {
    let setup = start();
    let token = setup.issuer.token(&json!({}));
    assert_eq!(setup.get("/v1/either/echo", "").status, 200);
    for fields in [
        format!("X-API-Key: {KEY}\r\nX-API-Key: {KEY}\r\n"),
        format!("X-API-Key: {KEY}\r\nAuthorization: Bearer {token}\r\n"),
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("Authorization: Bearer {token}, Bearer {token}\r\n"),
        format!("Authorization: Basic eDp5, Bearer {token}\r\n"),
    ] {
        for path in ["/v1/secure/echo", "/v1/either/echo"] {
            let answer = setup.get(path, &fields);
            assert_eq!(answer.status, 400, "{path} {fields}");
        }
    }
    // Keys in URLs end up in logs; they are never looked at.
    assert_eq!(setup.get(&format!("/v1/secure/echo?api_key={KEY}&access_token={token}"), "").status, 401);
}

#[test]
fn no_caller_can_say_who_it_is_in_the_gateways_name() {
    let setup = start();
    let forged = "X-Gateway-Identity: forged\r\nx-GATEWAY-consumer: forged\r\nX_Gateway_Consumer: forged\r\n\
                  x_gateway-Roles: forged\r\nX-Gateway-Scopes: forged\r\nX-Gateway-Scopes: forged\r\n\
                  X-Gateway-Anything: forged\r\n";
    for (path, credential) in [("/v1/echo", String::new()), ("/v1/secure/echo", format!("X-API-Key: {KEY}\r\n"))] {
        let answer = setup.get(path, &format!("{forged}{credential}"));
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("forged"), "{}", answer.text());
    }
    for connection in ["X-Gateway-Identity", "close, x-gateway-identity"] {
        let answer = setup.get("/v1/secure/echo", &format!("X-API-Key: {KEY}\r\nConnection: {connection}\r\n"));
        assert!(answer.echoed("x-gateway-identity").is_some(), "{connection}");
    }
}

#[test]
fn the_upstream_gets_a_signed_statement_and_not_the_credential() {
    let setup = start();
    let published = setup.get("/.well-known/gateway-jwks.json", "");
    assert_eq!(published.header("content-type"), Some("application/jwk-set+json"));
    let jwks: Value = published.json();
    assert!(jwks["keys"].as_array().unwrap().iter().all(|key| key.get("d").is_none()), "the private key");

    let answer = setup.with_key("/v1/secure/echo", KEY);
    assert!(!answer.text().contains(KEY));
    let claims = verified(&answer.echoed("x-gateway-identity").unwrap(), &jwks);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!("seiketsu-gateway"), &json!("demo")));
    assert_eq!(
        (&claims["tenant"], &claims["kind"], &claims["sub"]),
        (&json!("acme"), &json!("api_key"), &json!("app"))
    );
    assert_eq!((&claims["scopes"], &claims["roles"]), (&json!(["read", "write"]), &json!(["agent"])));
    assert!(claims["exp"].as_u64().unwrap() > now() && claims["exp"].as_u64().unwrap() <= now() + 60);
    assert_eq!(answer.echoed("x-gateway-consumer").as_deref(), Some("app"));
    assert_eq!(answer.echoed("x-gateway-scopes").as_deref(), Some("read write"));

    let token = setup.issuer.token(&json!({}));
    let answer = setup.with_token("/v1/secure/echo", &token);
    assert!(!answer.text().contains(&token));
    let claims = verified(&answer.echoed("x-gateway-identity").unwrap(), &jwks);
    assert_eq!((&claims["sub"], &claims["provider"]), (&json!("alice"), &json!("https://login.test")));

    let anonymous = setup.get("/v1/echo", "");
    let claims = verified(&anonymous.echoed("x-gateway-identity").unwrap(), &jwks);
    assert_eq!((&claims["kind"], claims.get("sub")), (&json!("anonymous"), None));
    assert_eq!(anonymous.echoed("x-gateway-consumer"), None);

    let through = setup.with_key("/v1/through/echo", KEY);
    assert_eq!(through.echoed("x-api-key").as_deref(), Some(KEY));
    assert_eq!(through.echoed("x-gateway-identity"), None);
}

#[test]
fn a_credential_on_an_open_route_does_not_reach_the_upstream_either() {
    let setup = start();
    // Anonymous callers only: whatever the caller shows is not asked for.
    for field in [format!("X-API-Key: {KEY}"), format!("Authorization: Bearer {}", setup.issuer.token(&json!({})))] {
        let answer = setup.get("/v1/either/echo", &format!("{field}\r\n"));
        assert_eq!(answer.status, 200);
        let secret = field.rsplit(' ').next().unwrap();
        assert!(!answer.text().contains(secret));
    }
}

#[test]
fn where_only_anonymous_callers_are_accepted_credentials_are_the_upstreams() {
    let setup = start();
    for (name, value) in [
        ("authorization", "Bearer opaque-of-the-upstream"),
        ("authorization", "Bearer of/the upstream, too"),
        ("authorization", "Basic dTpw"),
        ("x-api-key", "key of the upstream"),
        ("x-api-key", KEY),
    ] {
        let field = format!("{name}: {value}\r\n");
        let kept = setup.get("/v1/echo", &field);
        assert_eq!((kept.status, kept.echoed(name)), (200, None), "{field}");
        let passed = setup.get("/v1/theirs/echo", &field);
        assert_eq!((passed.status, passed.echoed(name).as_deref()), (200, Some(value)), "{field}");
    }
    let jwks = setup.get("/.well-known/gateway-jwks.json", "").json();
    let answer = setup.with_key("/v1/theirs/echo", KEY);
    assert_eq!(verified(&answer.echoed("x-gateway-identity").unwrap(), &jwks)["kind"], "anonymous");
}

#[test]
fn keys_of_an_issuer_come_from_its_url_and_may_be_rotated() {
    let second = Arc::new(Issuer::new("k2"));
    let published = Arc::new(Mutex::new(String::new()));
    let jwks = Stub::start({
        let published = published.clone();
        move |_| ok("Content-Type: application/json\r\n", published.lock().unwrap().as_bytes())
    });
    let setup = start_with(&format!("{{ url: 'http://{}/jwks' }}", jwks.address));
    *published.lock().unwrap() = setup.issuer.jwks();
    assert!(comes_true(|| setup.with_token("/v1/secure/echo", &setup.issuer.token(&json!({}))).status == 200));

    *published.lock().unwrap() = json!({ "keys": [setup.issuer.jwk(), second.jwk()] }).to_string();
    // An unknown key id makes the gateway ask again, but not at once after it has asked.
    assert!(comes_true(|| setup.with_token("/v1/secure/echo", &second.token(&json!({}))).status == 200));
    assert_eq!(setup.with_token("/v1/secure/echo", &setup.issuer.token(&json!({}))).status, 200);
    let asked = jwks.seen().len();
    for _ in 0..100 {
        let invented = setup.issuer.signed(&json!({ "alg": "ES256", "kid": "k77" }), &claims(&json!({})));
        assert_eq!(setup.with_token("/v1/secure/echo", &invented).status, 401);
    }
    assert!(jwks.seen().len() <= asked + 2, "an invented key id makes the gateway ask again and again");
}

#[test]
fn keys_of_an_issuer_in_a_file_may_be_rotated() {
    let setup = start();
    let (old, new) = (setup.issuer.token(&json!({})), Issuer::new("k2"));
    assert_eq!(setup.with_token("/v1/secure/echo", &old).status, 200);
    fs::write(&setup.keys, new.jwks()).unwrap();
    assert!(comes_true(|| setup.with_token("/v1/secure/echo", &new.token(&json!({}))).status == 200));
    let fresh = setup.issuer.token(&json!({ "sub": "late" }));
    assert!(comes_true(|| setup.with_token("/v1/secure/echo", &fresh).status == 401), "a key that was taken away");
}

#[test]
fn an_issuer_that_cannot_be_reached_is_a_503_for_its_tokens_only() {
    let setup = start_with("{ url: 'http://127.0.0.1:1/jwks' }");
    let answer = setup.with_token("/v1/secure/echo", &setup.issuer.token(&json!({})));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(setup.with_key("/v1/secure/echo", KEY).status, 200);
    assert_eq!(setup.get("/v1/echo", "").status, 200);
}

#[test]
fn a_key_that_is_taken_out_of_the_configuration_stops_working() {
    let setup = start();
    assert_eq!(setup.with_key("/v1/secure/echo", OLD_KEY).status, 200);
    let path = setup.gateway.folder.path().join("tenants.yaml");
    let text = fs::read_to_string(path).unwrap().replace("revision: 1", "revision: 2");
    let without: String =
        text.lines().filter(|line| !line.contains("oldkey01")).fold(String::new(), |all, line| all + line + "\n");
    setup.gateway.write_tenants(&without);
    assert!(comes_true(|| setup.with_key("/v1/secure/echo", OLD_KEY).status == 401), "{}", setup.gateway.log());
    assert_eq!(setup.with_key("/v1/secure/echo", KEY).status, 200);
}

#[test]
fn a_token_stops_working_when_it_expires_although_it_is_remembered() {
    let setup = start();
    // Thirty seconds are tolerated; this one is within them for three more.
    let token = setup.issuer.token(&json!({ "exp": now() - 27 }));
    assert_eq!(setup.with_token("/v1/secure/echo", &token).status, 200);
    let_pass(std::time::Duration::from_secs(1));
    assert!(comes_true(|| setup.with_token("/v1/secure/echo", &token).status == 401));
}

#[test]
fn a_credential_under_another_spelling_reaches_nobody() {
    let setup = start_with("{ file: '{file}' }");
    for target in ["/v1/either/echo", "/v1/secure/echo", "/v1/through/echo", "/v1/theirs/echo"] {
        let fields = format!("X-API-Key: {KEY}\r\nX_API_Key: forged\r\nX_API-KEY: forged\r\n");
        let answer = setup.get(target, &fields);
        assert_eq!((answer.status, answer.text().contains("forged")), (200, false), "{target}: {answer:?}");
    }
}
