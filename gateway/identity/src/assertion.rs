//! What the gateway tells upstreams about the caller: a JWT of its own in `X-Gateway-Identity`.
//!
//! An upstream verifies it with the keys under `/.well-known/gateway-jwks.json` and checks `iss`, `aud`
//! and `exp`. Claims: `iss`, `aud` (the upstream), `tenant`, `kind` (how the caller proved who it is),
//! `sub` (the consumer, or a JWT's subject; none for anonymous callers), `provider` (a JWT's issuer:
//! subjects are unique only together with it), `scopes`, `roles`, `iat`, `exp`.
//!
//! One assertion serves a principal's requests to an upstream for half its life. There is no `jti`: it
//! would promise a use per token that this is not meant to have.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use seiketsu_config::node::AssertionKey;
use serde::Serialize;

use crate::{
    bounded_cache::BoundedCache,
    clock::Clock,
    principal::{NameSet, Principal, PrincipalKind},
    sha256,
    signing_key::{KeyFile, PublicKey, SigningKey, SigningKeyError},
};

/// The header field that carries the assertion.
pub const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-gateway-identity");
/// Where the public keys are served.
pub const JWKS_PATH: &str = "/.well-known/gateway-jwks.json";

const REMEMBERED: usize = 16 << 10;

/// Makes assertions, and remembers them for half their life.
#[derive(Debug)]
pub struct AssertionSigner {
    path: PathBuf,
    issuer: Box<str>,
    lifetime: u64,
    keys: ArcSwap<Keys>,
    minted: BoundedCache<HeaderValue>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Keys {
    signing: SigningKey,
    /// Header of the JWTs that it signs, encoded, with the dot.
    header: String,
    published: Vec<PublicKey>,
    jwks: Bytes,
}

/// For whom an assertion is meant. Made once per upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience {
    name: Box<str>,
    digest: [u8; 32],
}

impl Audience {
    /// `name` becomes the claim `aud`.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), digest: sha256(name.as_bytes()) }
    }
}

/// The system gave no randomness to sign with. The request must not go on without its assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller's assertion could not be signed: the system's random number generator failed")]
pub struct SigningFailed;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    tenant: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    scopes: &'a NameSet,
    roles: &'a NameSet,
    iat: u64,
    exp: u64,
}

impl AssertionSigner {
    /// With the configured key file, or `assertion-key.pem` under `state_dir`; it is made if it does not
    /// exist. Blocks on the file system.
    pub fn open(config: &AssertionKey, state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, SigningKeyError> {
        let path = config.key.clone().unwrap_or_else(|| state_dir.join("assertion-key.pem"));
        let keys = Keys::new(KeyFile::open(&path)?, None);
        Ok(Self {
            path,
            issuer: config.issuer.as_str().into(),
            lifetime: config.lifetime.get().as_secs().max(1),
            keys: ArcSwap::from_pointee(keys),
            minted: BoundedCache::new(REMEMBERED),
            clock,
        })
    }

    /// Reads the key file again. The key that signed until now stays published until the next change, so
    /// that what it signed stays good. On an error nothing changes. Blocks on the file system.
    pub fn reload(&self) -> Result<(), SigningKeyError> {
        let file = KeyFile::open(&self.path)?;
        let former = self.keys.load();
        if file.published != former.published[..] {
            let retiring = (file.signing.public() != former.signing.public()).then(|| former.signing.public().clone());
            self.keys.store(Arc::new(Keys::new(file, retiring)));
        }
        Ok(())
    }

    /// The value of [`IDENTITY_HEADER`] for a principal's request to an upstream.
    pub fn assertion(&self, principal: &Principal, audience: &Audience) -> Result<HeaderValue, SigningFailed> {
        let key = (*principal.digest(), audience.digest);
        let now = self.clock.unix_seconds();
        if let Some(assertion) = self.minted.get(&key, now) {
            return Ok(assertion);
        }
        // Upstreams must not believe in a caller longer than the gateway does.
        let expires = now.saturating_add(self.lifetime).min(principal.expires().unwrap_or(u64::MAX));
        let assertion = self.mint(principal, audience, now, expires).ok_or(SigningFailed)?;
        let half_life = expires.saturating_sub(now) / 2;
        self.minted.insert(key, now.saturating_add(half_life), assertion.clone());
        Ok(assertion)
    }

    /// The public keys as a JWK Set, for [`JWKS_PATH`].
    pub fn jwks(&self) -> Bytes {
        self.keys.load().jwks.clone()
    }

    fn mint(&self, principal: &Principal, audience: &Audience, iat: u64, exp: u64) -> Option<HeaderValue> {
        let claims = Claims {
            iss: &self.issuer,
            aud: &audience.name,
            tenant: principal.tenant().as_str(),
            kind: principal.kind().name(),
            sub: principal.name(),
            provider: match principal.kind() {
                PrincipalKind::Jwt { issuer, .. } => Some(issuer),
                _ => None,
            },
            scopes: principal.scopes(),
            roles: principal.roles(),
            iat,
            exp,
        };
        let keys = self.keys.load();
        let mut token = keys.header.clone();
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(&claims).ok()?, &mut token);
        let signature = keys.signing.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        let mut value = HeaderValue::try_from(token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Keys {
    fn new(file: KeyFile, retiring: Option<PublicKey>) -> Self {
        let KeyFile { signing, published } = file;
        let header = serde_json::json!({ "alg": "ES256", "kid": signing.public().id(), "typ": "JWT" });
        let header = URL_SAFE_NO_PAD.encode(header.to_string()) + ".";
        let retiring = retiring.filter(|key| !published.contains(key));
        let all: Vec<_> = published.iter().chain(&retiring).collect();
        let jwks = serde_json::json!({ "keys": all }).to_string().into();
        Self { signing, header, published, jwks }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{FixedClock, NOW};

    struct Fixture {
        clock: Arc<FixedClock>,
        signer: AssertionSigner,
        folder: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let clock = FixedClock::at(NOW);
        let signer = AssertionSigner::open(&AssertionKey::default(), folder.path(), clock.clone()).unwrap();
        Fixture { clock, signer, folder }
    }

    fn alice(expires: u64) -> Principal {
        let names = |names: &[&str]| names.iter().copied().collect();
        Principal::jwt(
            "acme".parse().unwrap(),
            "https://idp.example".into(),
            "alice",
            names(&["read", "write"]),
            names(&["clerk"]),
            expires,
        )
    }

    /// What an upstream does, with a library and the published keys only.
    fn verify(assertion: &HeaderValue, jwks: &Bytes, audience: &str) -> Option<Value> {
        let token = assertion.to_str().unwrap();
        let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
        let set: JwkSet = serde_json::from_slice(jwks).unwrap();
        let key = DecodingKey::from_jwk(set.find(&kid)?).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.set_audience(&[audience]);
        validation.set_issuer(&["seiketsu-gateway"]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        jsonwebtoken::decode(token, &key, &validation).ok().map(|data| data.claims)
    }

    #[test]
    fn an_upstream_can_verify_who_is_calling() {
        let f = fixture();
        let assertion = f.signer.assertion(&alice(NOW + 600), &Audience::new("orders")).unwrap();
        assert!(assertion.is_sensitive());
        let expected = json!({
            "iss": "seiketsu-gateway", "aud": "orders", "tenant": "acme", "kind": "jwt", "sub": "alice",
            "provider": "https://idp.example", "scopes": ["read", "write"], "roles": ["clerk"],
            "iat": NOW, "exp": NOW + 60,
        });
        assert_eq!(verify(&assertion, &f.signer.jwks(), "orders"), Some(expected));
        assert_eq!(verify(&assertion, &f.signer.jwks(), "billing"), None);
        assert_eq!(verify(&assertion, &fixture().signer.jwks(), "orders"), None);
    }

    #[test]
    fn an_anonymous_caller_has_no_subject() {
        let f = fixture();
        let anonymous = Principal::anonymous("acme".parse().unwrap());
        let assertion = f.signer.assertion(&anonymous, &Audience::new("orders")).unwrap();
        let claims = verify(&assertion, &f.signer.jwks(), "orders").unwrap();
        assert_eq!((claims.get("sub"), &claims["kind"]), (None, &json!("anonymous")));
    }

    #[test]
    fn one_assertion_serves_half_its_life() {
        let f = fixture();
        let (caller, orders) = (alice(NOW + 600), Audience::new("orders"));
        let first = f.signer.assertion(&caller, &orders).unwrap();
        f.clock.set(NOW + 29);
        assert_eq!(f.signer.assertion(&caller, &orders).unwrap(), first);
        f.clock.set(NOW + 30);
        assert_ne!(f.signer.assertion(&caller, &orders).unwrap(), first);
    }

    #[test]
    fn each_upstream_and_each_caller_gets_its_own() {
        let f = fixture();
        let orders = f.signer.assertion(&alice(NOW + 600), &Audience::new("orders")).unwrap();
        let billing = f.signer.assertion(&alice(NOW + 600), &Audience::new("billing")).unwrap();
        let anonymous = Principal::anonymous("acme".parse().unwrap());
        let anonymous = f.signer.assertion(&anonymous, &Audience::new("orders")).unwrap();
        assert!(verify(&billing, &f.signer.jwks(), "billing").is_some());
        assert!(orders != billing && orders != anonymous);
    }

    #[test]
    fn an_assertion_does_not_outlive_the_credential() {
        let f = fixture();
        let assertion = f.signer.assertion(&alice(NOW + 10), &Audience::new("orders")).unwrap();
        assert_eq!(verify(&assertion, &f.signer.jwks(), "orders").unwrap()["exp"], json!(NOW + 10));
    }

    #[test]
    fn what_the_former_key_signed_stays_good_after_a_rotation() {
        let f = fixture();
        let before = f.signer.assertion(&alice(NOW + 600), &Audience::new("orders")).unwrap();
        let path = f.folder.path().join("assertion-key.pem");
        std::fs::remove_file(&path).unwrap();
        f.signer.reload().unwrap();
        f.clock.set(NOW + 30);
        let after = f.signer.assertion(&alice(NOW + 600), &Audience::new("orders")).unwrap();
        let kid = |assertion: &HeaderValue| jsonwebtoken::decode_header(assertion.to_str().unwrap()).unwrap().kid;
        assert_ne!(kid(&before), kid(&after));
        // Reading an unchanged file again does not forget the former key.
        f.signer.reload().unwrap();
        for assertion in [&before, &after] {
            assert!(verify(assertion, &f.signer.jwks(), "orders").is_some());
        }
    }

    #[test]
    fn a_bad_key_file_changes_nothing() {
        let f = fixture();
        let before = f.signer.jwks();
        std::fs::write(f.folder.path().join("assertion-key.pem"), "rubbish").unwrap();
        assert!(f.signer.reload().is_err());
        assert_eq!(f.signer.jwks(), before);
        assert!(f.signer.assertion(&alice(NOW + 600), &Audience::new("orders")).is_ok());
    }

    #[test]
    fn the_published_keys_are_public() {
        let f = fixture();
        let set: Value = serde_json::from_slice(&f.signer.jwks()).unwrap();
        let mut members: Vec<_> = set["keys"][0].as_object().unwrap().keys().cloned().collect();
        members.sort();
        assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    }
}
