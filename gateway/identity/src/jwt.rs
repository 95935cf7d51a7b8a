//! JSON Web Tokens as bearer tokens (RFC 7519, RFC 6750), by the rules of RFC 8725.
//!
//! The signature is checked by `jsonwebtoken`. Everything else is checked here, because its own checks
//! leave open what has to be closed: they take the time from the system, accept a list for `iss`, and
//! read but do not refuse `crit`. Header members that bring or point to a key (`jwk`, `jku`, `x5c`,
//! `x5u`) are never looked at: keys come from the issuer's configured JWK Set only.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use seiketsu_config::{
    tenant::{JwtAlgorithm, JwtIssuer},
    values::Id,
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::{Map, Value};

use crate::{
    jwk::algorithm_from_name,
    jwks::{JwksError, JwksStore, KeyError},
    principal::{NameSet, Principal},
};

/// The most leeway for differing clocks, in seconds.
const MAX_LEEWAY_SECONDS: u64 = 30;
/// The longest subject; `OpenID` Connect Core 1.0 §2 has the same bound.
const MAX_SUBJECT_BYTES: usize = 255;

/// Why a token was refused. Only [`Expired`](Self::Expired) is told to the client as such, and only
/// for a token whose signature is good; for the rest "invalid" must do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is not a JWS in compact form (RFC 7515 §3.1)")]
    Malformed,
    #[error("its header has crit: extensions that must be understood are not")]
    Critical,
    #[error("its typ is neither JWT nor at+jwt")]
    Type,
    #[error("its alg is none of the signature algorithms that are accepted at all")]
    UnknownAlgorithm,
    #[error("its issuer does not use this alg")]
    ForbiddenAlgorithm,
    #[error("its iss is none of the tenant's issuers")]
    UnknownIssuer,
    #[error("its issuer has no key of this kid")]
    UnknownKey,
    #[error("the key of this kid is not for this alg")]
    WrongKeyType,
    #[error("it has no kid, or one that several keys have, and several keys fit")]
    AmbiguousKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("its claim {0} is missing or of the wrong type")]
    Claim(&'static str),
    #[error("its aud names none of the issuer's audiences here")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("no keys of its issuer are at hand")]
    KeysUnavailable,
}

/// An issuer whose tokens a tenant accepts, ready to verify them.
#[derive(Debug)]
pub(crate) struct Issuer {
    name: Arc<str>,
    audiences: Box<[String]>,
    algorithms: Box<[JwtAlgorithm]>,
    leeway: u64,
    scope_claim: Box<str>,
    roles_claim: Box<str>,
    /// Claims that principals keep, for limits.
    kept_claims: Box<[Box<str>]>,
    keys: Arc<JwksStore>,
}

/// An issuer in the configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerRuleError {
    #[error("the issuer {0:?} holds a space or control character; write it exactly as its tokens do")]
    Name(String),
    #[error("the issuer {issuer:?}: its keys cannot be read: {source}")]
    Keys { issuer: String, source: JwksError },
}

impl Issuer {
    pub(crate) fn compile(
        config: &JwtIssuer,
        kept_claims: &[&str],
        keys: Arc<JwksStore>,
    ) -> Result<Self, IssuerRuleError> {
        let issuer = config.issuer.clone();
        if issuer.is_empty() || issuer.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(IssuerRuleError::Name(issuer));
        }
        Ok(Self {
            name: issuer.into(),
            audiences: config.audiences.clone().into(),
            algorithms: config.algorithms.clone().into(),
            leeway: config.leeway.get().as_secs().min(MAX_LEEWAY_SECONDS),
            scope_claim: config.scope_claim.as_str().into(),
            roles_claim: config.roles_claim.as_str().into(),
            kept_claims: kept_claims.iter().map(|name| (*name).into()).collect(),
            keys,
        })
    }
}

/// Verifies a token against a tenant's issuers and says whose it is. `now` in seconds since 1970.
///
/// Waits only if the token names a key that is not known yet: then, for a bounded time, for the
/// issuer's keys to be fetched again.
pub(crate) async fn verify(token: &str, tenant: &Id, issuers: &[Issuer], now: u64) -> Result<Principal, TokenError> {
    let unverified = Unverified::parse(token)?;
    // Which issuer a token claims to be from decides only which keys it has to be good for.
    let claimed = unverified.claims.get("iss").and_then(Value::as_str).ok_or(TokenError::Claim("iss"))?;
    let issuer = issuers.iter().find(|issuer| &*issuer.name == claimed).ok_or(TokenError::UnknownIssuer)?;
    if !issuer.algorithms.contains(&unverified.algorithm) {
        return Err(TokenError::ForbiddenAlgorithm);
    }
    let kid = unverified.header.kid.as_deref();
    let good = issuer
        .keys
        .with_key(kid, unverified.algorithm, |key| {
            key.verifies(unverified.signature, unverified.message.as_bytes(), unverified.algorithm)
        })
        .await?;
    if !good {
        return Err(TokenError::Signature);
    }
    issuer.check_claims(tenant, &unverified.claims, now)
}

/// A token taken apart.
struct Unverified<'a> {
    header: Header,
    algorithm: JwtAlgorithm,
    claims: Map<String, Value>,
    message: &'a str,
    signature: &'a str,
}

/// The members of a JOSE header that matter (RFC 7515 §4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

impl<'a> Unverified<'a> {
    fn parse(token: &'a str) -> Result<Self, TokenError> {
        let malformed = || TokenError::Malformed;
        let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, payload) = message.split_once('.').ok_or_else(malformed)?;
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| malformed())?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| malformed())?;
        if header.crit {
            return Err(TokenError::Critical);
        }
        if !header.typ.as_deref().is_none_or(is_accepted_type) {
            return Err(TokenError::Type);
        }
        let algorithm = algorithm_from_name(&header.alg).ok_or(TokenError::UnknownAlgorithm)?;
        // A second dot in it is not base64url, so there are exactly three parts.
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed())?;
        let claims = serde_json::from_slice(&payload).map_err(|_| malformed())?;
        Ok(Self { header, algorithm, claims, message, signature })
    }
}

/// RFC 7519 §5.1 and RFC 9068 §2.1, with or without `application/` (RFC 7515 §4.1.9).
fn is_accepted_type(typ: &str) -> bool {
    let prefixed = typ.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("application/"));
    let typ = if prefixed { &typ[12..] } else { typ };
    typ.eq_ignore_ascii_case("jwt") || typ.eq_ignore_ascii_case("at+jwt")
}

/// True for a member that is there, whatever its value, `null` included.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl Issuer {
    /// The claims of a token whose signature is good.
    fn check_claims(&self, tenant: &Id, claims: &Map<String, Value>, now: u64) -> Result<Principal, TokenError> {
        let audience = claims.get("aud").ok_or(TokenError::Claim("aud"))?;
        let named = |text: &str| self.audiences.iter().any(|own| own == text);
        let meant_for_us = match audience {
            Value::String(one) => named(one),
            Value::Array(several) => several.iter().filter_map(Value::as_str).any(named),
            _ => return Err(TokenError::Claim("aud")),
        };
        if !meant_for_us {
            return Err(TokenError::Audience);
        }
        // With the leeway, so that every later look at the principal agrees with this one.
        let expires = claims.get("exp").and_then(seconds).ok_or(TokenError::Claim("exp"))?.saturating_add(self.leeway);
        if expires <= now {
            return Err(TokenError::Expired);
        }
        if let Some(not_before) = claims.get("nbf") {
            let not_before = seconds(not_before).ok_or(TokenError::Claim("nbf"))?;
            if not_before > now.saturating_add(self.leeway) {
                return Err(TokenError::NotYetValid);
            }
        }
        let subject = claims.get("sub").and_then(Value::as_str).ok_or(TokenError::Claim("sub"))?;
        if subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES || subject.contains(char::is_control) {
            return Err(TokenError::Claim("sub"));
        }
        let scopes = names(claim(claims, &self.scope_claim));
        let roles = names(claim(claims, &self.roles_claim));
        let kept = self.kept_claims.iter().filter_map(|name| Some((name.clone(), text(claim(claims, name)?)?)));
        let principal = Principal::jwt(tenant.clone(), Arc::clone(&self.name), subject, scopes, roles, expires);
        Ok(principal.with_claims(kept.collect()))
    }
}

/// A `NumericDate` (RFC 7519 §2). Fractions are cut off.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| (0.0..9e15).contains(number))?;
        // In range, as just checked.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(number as u64)
    })
}

/// The claim of this very name (some are URLs), else by a path with dots into objects.
fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    claim(claims.get(first)?.as_object()?, rest)
}

/// A claim that is a text, a number or a truth value, as text. Lists and objects tell nobody apart.
fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(truth) => Some(truth.to_string().into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Names in a string, separated by spaces (RFC 6749 §3.3), or in a list. What is neither names nothing.
fn names(value: Option<&Value>) -> NameSet {
    match value {
        Some(Value::String(text)) => text.split(' ').filter(|name| !name.is_empty()).collect(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => NameSet::default(),
    }
}

impl From<KeyError> for TokenError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown => Self::UnknownKey,
            KeyError::Misfit => Self::WrongKeyType,
            KeyError::Ambiguous => Self::AmbiguousKey,
            KeyError::Unavailable => Self::KeysUnavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use aws_lc_rs::hmac;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::{
        ED25519, FakeServer, FixedClock, NOW, OTHER_P256, OTHER_RSA, P256, P384, RSA, TestKey, claims, state, tenant,
        unsigned, with,
    };

    struct Verifier {
        tenant: Id,
        issuers: Vec<Issuer>,
    }

    /// A tenant whose issuer has one key of each kind.
    fn verifier() -> Verifier {
        verifier_with(json!({}))
    }

    fn verifier_with(more: Value) -> Verifier {
        let keys = vec![
            RSA.jwk(json!({ "kid": "rsa" })),
            P256.jwk(json!({ "kid": "p256" })),
            P384.jwk(json!({ "kid": "p384" })),
            ED25519.jwk(json!({ "kid": "ed" })),
        ];
        let state = state(FixedClock::at(NOW), FakeServer::serving(keys));
        let tenant = tenant(&json!({}));
        let config = serde_json::to_value(&tenant.jwt_issuers[0]).unwrap();
        let config: JwtIssuer = serde_json::from_value(with(config, &more)).unwrap();
        let keys = state.jwks().open(&config.jwks).unwrap();
        Verifier { tenant: tenant.id, issuers: vec![Issuer::compile(&config, &[], keys).unwrap()] }
    }

    impl Verifier {
        async fn verify(&self, token: &str) -> Result<Principal, TokenError> {
            verify(token, &self.tenant, &self.issuers, NOW).await
        }

        /// The error for a token that is signed well and has these claims changed.
        async fn claims(&self, changes: Value) -> Result<Principal, TokenError> {
            self.verify(&P256.token(&header(), &with(claims(), &changes))).await
        }

        /// The same with its header changed.
        async fn header(&self, changes: Value) -> Result<Principal, TokenError> {
            self.verify(&P256.token(&with(header(), &changes), &claims())).await
        }
    }

    fn header() -> Value {
        json!({ "alg": "ES256", "kid": "p256", "typ": "JWT" })
    }

    fn good() -> String {
        P256.token(&header(), &claims())
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_of_every_kind_of_key_names_its_caller() {
        let verifier = verifier();
        let kinds: [(&TestKey, &str, &str); 5] = [
            (&RSA, "RS256", "rsa"),
            (&RSA, "PS256", "rsa"),
            (&P256, "ES256", "p256"),
            (&P384, "ES384", "p384"),
            (&ED25519, "EdDSA", "ed"),
        ];
        for (key, alg, kid) in kinds {
            let principal = verifier.verify(&key.token(&json!({ "alg": alg, "kid": kid }), &claims())).await.unwrap();
            assert_eq!(principal.name(), Some("alice"), "{alg}");
            assert_eq!(principal.id(), "https://idp.example alice");
            assert_eq!(principal.scopes().iter().collect::<Vec<_>>(), ["orders:read", "orders:write"]);
            assert_eq!(principal.roles().iter().collect::<Vec<_>>(), ["clerk"]);
            assert_eq!(principal.expires(), Some(NOW + 630), "with its leeway");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_without_a_signature_is_refused() {
        let verifier = verifier();
        for alg in ["none", "None", "nOnE", ""] {
            let message = unsigned(&json!({ "alg": alg, "kid": "p256" }), &claims());
            for token in [format!("{message}."), message.clone() + ".AA"] {
                assert_eq!(verifier.verify(&token).await, Err(TokenError::UnknownAlgorithm), "{alg}");
            }
        }
        let message = unsigned(&header(), &claims());
        assert_eq!(verifier.verify(&format!("{message}.")).await, Err(TokenError::Signature));
        assert!(verifier.verify(&message).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_public_key_is_never_a_shared_secret() {
        let verifier = verifier();
        let jwk = RSA.jwk(json!({}));
        let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
        let secrets = [modulus, jwk.to_string().into_bytes(), jwk["n"].as_str().unwrap().into()];
        for alg in ["HS256", "RS256"] {
            for secret in &secrets {
                let message = unsigned(&json!({ "alg": alg, "kid": "rsa" }), &claims());
                let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
                let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac));
                let error = verifier.verify(&token).await.unwrap_err();
                assert!(matches!(error, TokenError::UnknownAlgorithm | TokenError::Signature), "{alg}: {error}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_key_of_the_same_kind_does_not_do() {
        let verifier = verifier();
        assert_eq!(verifier.verify(&OTHER_P256.token(&header(), &claims())).await, Err(TokenError::Signature));
        let header = json!({ "alg": "RS256", "kid": "rsa" });
        assert_eq!(verifier.verify(&OTHER_RSA.token(&header, &claims())).await, Err(TokenError::Signature));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_a_token_brings_along_are_not_looked_at() {
        let verifier = verifier();
        for member in [
            json!({ "jwk": OTHER_P256.jwk(json!({ "kid": "p256" })) }),
            json!({ "jku": "https://evil.example/jwks" }),
            json!({ "x5u": "https://evil.example/cert" }),
            json!({ "x5c": ["AAAA"] }),
        ] {
            let forged = OTHER_P256.token(&with(header(), &member), &claims());
            assert_eq!(verifier.verify(&forged).await, Err(TokenError::Signature), "{member}");
            // And they do no harm to a token that is good without them.
            assert!(verifier.header(member.clone()).await.is_ok(), "{member}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_algorithm_must_suit_the_key_and_the_issuer() {
        let verifier = verifier();
        let mut header = json!({ "alg": "ES256", "kid": "rsa" });
        assert_eq!(verifier.verify(&P256.token(&header, &claims())).await, Err(TokenError::WrongKeyType));
        header = json!({ "alg": "ES384", "kid": "p256" });
        assert_eq!(verifier.verify(&P384.token(&header, &claims())).await, Err(TokenError::WrongKeyType));
        header = json!({ "alg": "RS512", "kid": "rsa" });
        assert_eq!(verifier.verify(&RSA.token(&header, &claims())).await, Err(TokenError::ForbiddenAlgorithm));
    }

    #[tokio::test(start_paused = true)]
    async fn extensions_that_must_be_understood_are_not() {
        let verifier = verifier();
        for crit in [json!(["b64"]), json!([]), json!("exp"), json!(false)] {
            assert_eq!(verifier.header(json!({ "crit": crit })).await, Err(TokenError::Critical));
        }
        // `with` would remove a null, so this one is written by hand.
        let null = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"p256","crit":null}"#);
        let token = good();
        let rest = token.split_once('.').unwrap().1;
        assert_eq!(verifier.verify(&format!("{null}.{rest}")).await, Err(TokenError::Critical));
    }

    #[tokio::test(start_paused = true)]
    async fn other_types_of_token_are_not_access_tokens() {
        let verifier = verifier();
        for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/JWT"] {
            assert!(verifier.header(json!({ "typ": typ })).await.is_ok(), "{typ}");
        }
        assert!(verifier.header(json!({ "typ": null })).await.is_ok());
        for typ in ["", "logout+jwt", "dpop+jwt", "JOSE", "secevent+jwt", "application/", "applicatioń/x"] {
            assert_eq!(verifier.header(json!({ "typ": typ })).await, Err(TokenError::Type), "{typ}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_kid_the_one_key_that_fits_is_used() {
        assert!(verifier().header(json!({ "kid": null })).await.is_ok());
        assert_eq!(verifier().header(json!({ "kid": "stranger" })).await, Err(TokenError::UnknownKey));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_must_come_from_the_issuer_and_be_meant_for_this_api() {
        let verifier = verifier();
        for iss in ["https://evil.example", "https://idp.example/", "", "HTTPS://IDP.EXAMPLE"] {
            assert_eq!(verifier.claims(json!({ "iss": iss })).await, Err(TokenError::UnknownIssuer), "{iss}");
        }
        assert_eq!(verifier.claims(json!({ "iss": null })).await, Err(TokenError::Claim("iss")));
        assert_eq!(verifier.claims(json!({ "iss": ["https://idp.example"] })).await, Err(TokenError::Claim("iss")));
        for aud in [json!("billing"), json!(["x", "orders"])] {
            assert!(verifier.claims(json!({ "aud": aud })).await.is_ok(), "{aud}");
        }
        for aud in [json!("other"), json!([]), json!(["x"]), json!([["orders"]]), json!("orders billing")] {
            assert_eq!(verifier.claims(json!({ "aud": aud })).await, Err(TokenError::Audience), "{aud}");
        }
        assert_eq!(verifier.claims(json!({ "aud": null })).await, Err(TokenError::Claim("aud")));
        assert_eq!(verifier.claims(json!({ "aud": { "orders": true } })).await, Err(TokenError::Claim("aud")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_from_nbf_to_exp_with_the_leeway() {
        let verifier = verifier();
        assert!(verifier.claims(json!({ "exp": NOW - 29 })).await.is_ok());
        assert_eq!(verifier.claims(json!({ "exp": NOW - 30 })).await, Err(TokenError::Expired));
        assert_eq!(verifier.claims(json!({ "exp": 0 })).await, Err(TokenError::Expired));
        assert!(verifier.claims(json!({ "exp": 1_800_000_600.5 })).await.is_ok());
        assert!(verifier.claims(json!({ "nbf": NOW + 30 })).await.is_ok());
        assert_eq!(verifier.claims(json!({ "nbf": NOW + 31 })).await, Err(TokenError::NotYetValid));
        for exp in [json!(null), json!("1900000000"), json!(-1), json!(1e300), json!([NOW + 9])] {
            assert_eq!(verifier.claims(json!({ "exp": exp })).await, Err(TokenError::Claim("exp")), "{exp}");
        }
        for nbf in [json!("0"), json!(-5), json!({})] {
            assert_eq!(verifier.claims(json!({ "nbf": nbf })).await, Err(TokenError::Claim("nbf")), "{nbf}");
        }
        assert!(verifier.claims(json!({ "exp": u64::MAX })).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leeway_beyond_thirty_seconds_is_cut() {
        let verifier = verifier_with(json!({ "leeway": "1h" }));
        assert_eq!(verifier.claims(json!({ "exp": NOW - 31 })).await, Err(TokenError::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_must_name_its_caller_cleanly() {
        let verifier = verifier();
        for sub in [json!(null), json!(""), json!(7), json!("a\nb"), json!("x".repeat(256))] {
            assert_eq!(verifier.claims(json!({ "sub": sub })).await, Err(TokenError::Claim("sub")), "{sub}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scopes_and_roles_are_read_as_text_or_list() {
        let names = |set: &NameSet| set.iter().map(str::to_owned).collect::<Vec<_>>();
        let verifier = verifier();
        for (scope, expected) in [
            (json!("b  a b "), vec!["a", "b"]),
            (json!(["b", "a", 7, "with space"]), vec!["a", "b", "with space"]),
            (json!({ "a": true }), vec![]),
            (json!(null), vec![]),
        ] {
            let principal = verifier.claims(json!({ "scope": scope })).await.unwrap();
            assert_eq!(names(principal.scopes()), expected);
        }
        let principal = verifier.claims(json!({ "realm_access": { "roles": "one two" } })).await.unwrap();
        assert_eq!(names(principal.roles()), ["one", "two"]);
        // A claim whose name has dots of its own comes before a path.
        let verifier = verifier_with(json!({ "roles_claim": "https://acme.example/roles" }));
        let principal = verifier.claims(json!({ "https://acme.example/roles": ["r"] })).await.unwrap();
        assert_eq!(names(principal.roles()), ["r"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_part_of_a_token_can_be_changed_moved_or_cut() {
        let verifier = verifier();
        let token = good();
        assert!(verifier.verify(&token).await.is_ok());
        let parts: Vec<_> = token.split('.').collect();
        let other = P256.token(&header(), &with(claims(), &json!({ "sub": "mallory" })));
        let other: Vec<_> = other.split('.').collect();
        for forged in [
            [parts[0], other[1], parts[2]].join("."),
            [parts[0], parts[1], other[2]].join("."),
            [parts[0], parts[1], parts[2], parts[2]].join("."),
            [parts[0], "", parts[2]].join("."),
            ["", parts[1], parts[2]].join("."),
            format!("{token}="),
            format!("{token}."),
            format!(".{token}"),
        ] {
            assert!(verifier.verify(&forged).await.is_err(), "{forged}");
        }
        for end in 0..token.len() {
            assert!(verifier.verify(&token[..end]).await.is_err(), "cut at {end}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_stands_twice_in_the_header_is_refused() {
        let verifier = verifier();
        let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","alg":"none","kid":"p256"}"#);
        let message = format!("{twice}.{}", good().split('.').nth(1).unwrap());
        let signature = URL_SAFE_NO_PAD.encode(P256.sign("ES256", message.as_bytes()));
        assert_eq!(verifier.verify(&format!("{message}.{signature}")).await, Err(TokenError::Malformed));
    }

    #[test]
    fn an_issuer_with_a_space_could_hide_a_subject() {
        let state = state(FixedClock::at(NOW), FakeServer::serving(vec![]));
        let mut config = tenant(&json!({})).jwt_issuers.remove(0);
        config.issuer = "https://idp.example alice".into();
        let keys = state.jwks().open(&config.jwks).unwrap();
        assert!(matches!(Issuer::compile(&config, &[], keys), Err(IssuerRuleError::Name(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(text in "[A-Za-z0-9_.=-]{0,80}") {
            let _ = Unverified::parse(&text);
        }

        #[test]
        fn any_header_and_claims_are_read_or_refused(header in "\\PC{0,40}", claims in "\\PC{0,40}") {
            let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
            let _ = Unverified::parse(&format!("{header}.{claims}.AA"));
        }

        #[test]
        fn one_changed_byte_spoils_a_token(at in 0usize..400, with in any::<prop::sample::Index>()) {
            const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.";
            let mut token = good().into_bytes();
            let at = at % token.len();
            let letter = LETTERS[with.index(LETTERS.len())];
            prop_assume!(token[at] != letter);
            token[at] = letter;
            let token = String::from_utf8(token).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            prop_assert!(runtime.block_on(verifier().verify(&token)).is_err());
        }
    }
}
