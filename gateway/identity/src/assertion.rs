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
