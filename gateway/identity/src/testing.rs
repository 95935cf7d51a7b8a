//! What the tests of this crate share: a clock that stands still, issuers with keys of every kind, and
//! a forge for tokens.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_lc_rs::{
    rand::SystemRandom,
    rsa,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use seiketsu_config::tenant::Tenant;
use serde_json::{Value, json};
use url::Url;

use crate::{
    clock::Clock,
    jwks::{FetchError, Fetched, HttpFetch},
    state::IdentityState,
};

/// When the tests take place.
pub(crate) const NOW: u64 = 1_800_000_000;

#[derive(Debug)]
pub(crate) struct FixedClock(AtomicU64);

impl FixedClock {
    pub(crate) fn at(now: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(now)))
    }

    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) enum TestKey {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

fn rsa_key() -> TestKey {
    TestKey::Rsa(rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap())
}

fn ec_key(curve: &'static str) -> TestKey {
    let algorithm = match curve {
        "P-256" => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        _ => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
    };
    TestKey::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve)
}

pub(crate) static RSA: LazyLock<TestKey> = LazyLock::new(rsa_key);
pub(crate) static OTHER_RSA: LazyLock<TestKey> = LazyLock::new(rsa_key);
pub(crate) static P256: LazyLock<TestKey> = LazyLock::new(|| ec_key("P-256"));
pub(crate) static OTHER_P256: LazyLock<TestKey> = LazyLock::new(|| ec_key("P-256"));
pub(crate) static P384: LazyLock<TestKey> = LazyLock::new(|| ec_key("P-384"));
pub(crate) static ED25519: LazyLock<TestKey> = LazyLock::new(|| TestKey::Ed(Ed25519KeyPair::generate().unwrap()));

impl TestKey {
    /// The public key as a JWK, with these members added or replaced.
    pub(crate) fn jwk(&self, more: Value) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self {
            Self::Rsa(pair) => {
                let public = signature::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({ "kty": "RSA", "n": encode(&public.n), "e": encode(&public.e) })
            }
            Self::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "crv": curve, "x": encode(x), "y": encode(y) })
            }
            Self::Ed(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref()) }),
        };
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    pub(crate) fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let encoding: &dyn signature::RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(pair, _) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims, signed by the header's `alg`.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = self.sign(header["alg"].as_str().unwrap_or_default(), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims, encoded, without a signature.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

/// Claims that are good at [`NOW`] with the issuer of [`tenant`].
pub(crate) fn claims() -> Value {
    json!({
        "iss": "https://idp.example",
        "aud": "orders",
        "sub": "alice",
        "exp": NOW + 600,
        "scope": "orders:read orders:write",
        "realm_access": { "roles": ["clerk"] },
    })
}

/// `base` with members replaced; `null` removes one.
pub(crate) fn with(mut base: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base
}

/// A server of one document that counts its visitors.
#[derive(Debug, Default)]
pub(crate) struct FakeServer {
    calls: AtomicUsize,
    behaviour: Mutex<Behaviour>,
}

#[derive(Debug, Clone, Default)]
pub(crate) enum Behaviour {
    Serve {
        keys: Vec<Value>,
        max_age: Option<u64>,
    },
    Raw(Vec<u8>),
    #[default]
    Fail,
    Hang,
    Panic,
}

impl FakeServer {
    pub(crate) fn serving(keys: Vec<Value>) -> Arc<Self> {
        let server = Arc::new(Self::default());
        server.serve(keys);
        server
    }

    pub(crate) fn serve(&self, keys: Vec<Value>) {
        self.set(Behaviour::Serve { keys, max_age: None });
    }

    pub(crate) fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl HttpFetch for FakeServer {
    async fn get(&self, _: &Url, _: usize) -> Result<Fetched, FetchError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        // In paused time: the answer comes when nothing else is left to do.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let behaviour = self.behaviour.lock().clone();
        match behaviour {
            Behaviour::Serve { keys, max_age } => Ok(Fetched {
                body: json!({ "keys": keys }).to_string().into(),
                max_age: max_age.map(Duration::from_secs),
            }),
            Behaviour::Raw(body) => Ok(Fetched { body: body.into(), max_age: None }),
            Behaviour::Fail => Err(FetchError::Status(500)),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("a bug in the client"),
        }
    }
}

pub(crate) fn state(clock: Arc<FixedClock>, server: Arc<FakeServer>) -> Arc<IdentityState> {
    Arc::new(IdentityState::new(clock, server, 1024))
}

/// A tenant with one issuer at a URL, with these members added or replaced.
pub(crate) fn tenant(more: &Value) -> Tenant {
    let base = json!({
        "id": "acme",
        "hosts": ["acme.example"],
        "routes": [],
        "jwt_issuers": [{
            "issuer": "https://idp.example",
            "audiences": ["orders", "billing"],
            "jwks": { "url": "https://idp.example/jwks" },
            "algorithms": ["RS256", "PS256", "ES256", "ES384", "EdDSA"],
            "roles_claim": "realm_access.roles",
        }],
    });
    serde_json::from_value(with(base, more)).unwrap()
}
