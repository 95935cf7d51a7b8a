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
/// The longest subject; OpenID Connect Core §2 has the same bound.
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
    keys: Arc<JwksStore>,
}

/// An issuer in the configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerRuleError {
    #[error("the issuer {0:?} holds a space or control character; write it exactly as its tokens do")]
    Name(String),
    #[error("the issuer {0:?} stands twice; put its audiences together")]
    Twice(String),
    #[error("the issuer {issuer:?}: its leeway is {seconds}s; {MAX_LEEWAY_SECONDS}s at most")]
    Leeway { issuer: String, seconds: u64 },
    #[error("the issuer {0:?} needs at least one audience and one algorithm")]
    AcceptsNothing(String),
    #[error("the issuer {issuer:?}: its keys cannot be read: {source}")]
    Keys { issuer: String, source: JwksError },
}

impl Issuer {
    pub(crate) fn compile(config: &JwtIssuer, keys: Arc<JwksStore>) -> Result<Self, IssuerRuleError> {
        let issuer = config.issuer.clone();
        if issuer.is_empty() || issuer.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(IssuerRuleError::Name(issuer));
        }
        if config.leeway.get().as_millis() > u128::from(MAX_LEEWAY_SECONDS) * 1000 {
            return Err(IssuerRuleError::Leeway { issuer, seconds: config.leeway.get().as_secs() });
        }
        if config.audiences.is_empty() || config.algorithms.is_empty() {
            return Err(IssuerRuleError::AcceptsNothing(issuer));
        }
        Ok(Self {
            name: issuer.into(),
            audiences: config.audiences.clone().into(),
            algorithms: config.algorithms.clone().into(),
            leeway: config.leeway.get().as_secs(),
            scope_claim: config.scope_claim.as_str().into(),
            roles_claim: config.roles_claim.as_str().into(),
            keys,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Verifies a token against a tenant's issuers and says whose it is. `now` in seconds since 1970.
///
/// Waits only if the token names a key that is not known yet: then, for a bounded time, for the
/// issuer's keys to be fetched again.
pub(crate) async fn verify(
    token: &str,
    tenant: &Id,
    issuers: &[Issuer],
    now: u64,
) -> Result<Principal, TokenError> {
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
        Ok(Principal::jwt(tenant.clone(), Arc::clone(&self.name), subject, scopes, roles, expires))
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
