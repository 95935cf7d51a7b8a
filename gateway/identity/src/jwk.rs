//! Public keys of JWT issuers (RFC 7517), and which of them may verify a given token.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use seiketsu_config::tenant::JwtAlgorithm;
use serde::Deserialize;
use serde_json::Value;

/// The most keys in one set. Issuers have two or three.
const MAX_KEYS: usize = 64;

/// The keys of one issuer that can verify signatures.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<VerifyingKey>,
}

/// One public key and what it may be used for.
#[derive(Debug)]
pub(crate) struct VerifyingKey {
    id: Option<Box<str>>,
    kind: KeyKind,
    /// The only algorithm it may be used with, if its owner says so.
    algorithm: Option<Box<str>>,
    key: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why no key of a set verifies a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// The set has no key of this id (or, for a token without one, none that fits).
    Unknown,
    /// There is a key of this id, but not for this algorithm.
    Misfit,
    /// Several keys fit.
    Ambiguous,
}

/// A document that is not a usable JWK Set.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("it is not a JWK Set, {{\"keys\": […]}} (RFC 7517 §5): {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("it has {0} keys; at most {MAX_KEYS} are accepted")]
    TooManyKeys(usize),
    #[error("none of its keys can verify signatures: RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519 are needed")]
    NoUsableKey,
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Value>,
}

impl KeySet {
    /// Reads a JWK Set. Keys of other kinds, for other uses, or too weak are left out (RFC 7517 §5).
    pub(crate) fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let raw: RawSet = serde_json::from_slice(json)?;
        if raw.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooManyKeys(raw.keys.len()));
        }
        let keys: Vec<_> =
            raw.keys.into_iter().filter_map(|key| VerifyingKey::from_raw(serde_json::from_value(key).ok()?)).collect();
        if keys.is_empty() { Err(KeySetError::NoUsableKey) } else { Ok(Self { keys }) }
    }

    /// The one key for a token of this `kid` and algorithm. Without a `kid`, there must be exactly one
    /// key that fits.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: JwtAlgorithm) -> Result<&VerifyingKey, NoKey> {
        let named = self.keys.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        let mut seen = false;
        let mut fitting = named.inspect(|_| seen = true).filter(|key| key.fits(algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(NoKey::Ambiguous),
            (None, _) if seen && id.is_some() => Err(NoKey::Misfit),
            (None, _) => Err(NoKey::Unknown),
        }
    }
}

impl VerifyingKey {
    fn from_raw(raw: RawKey) -> Option<Self> {
        let for_signatures = raw.r#use.as_deref().is_none_or(|usage| usage == "sig");
        let for_verifying = raw.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        // A private key that its owner publishes proves nothing any more.
        if !for_signatures || !for_verifying || raw.d.is_some() {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&raw.x)?, bytes(&raw.y)?);
            (x.len() == length && y.len() == length).then(|| [vec![4], x, y].concat())
        };
        let (kind, key) = match (raw.kty.as_str(), raw.crv.as_deref()) {
            ("RSA", _) => {
                let (modulus, exponent) = (bytes(&raw.n)?, bytes(&raw.e)?);
                if !(2048..=8192).contains(&bit_length(&modulus)) {
                    return None;
                }
                (KeyKind::Rsa, DecodingKey::from_rsa_raw_components(&modulus, &exponent))
            }
            ("EC", Some("P-256")) => (KeyKind::P256, DecodingKey::from_ec_der(&point(32)?)),
            ("EC", Some("P-384")) => (KeyKind::P384, DecodingKey::from_ec_der(&point(48)?)),
            ("OKP", Some("Ed25519")) => {
                let x = bytes(&raw.x).filter(|x| x.len() == 32)?;
                (KeyKind::Ed25519, DecodingKey::from_ed_der(&x))
            }
            _ => return None,
        };
        Some(Self { id: raw.kid.map(Into::into), kind, algorithm: raw.alg.map(Into::into), key })
    }

    /// The key's kind, and its owner, must allow the algorithm.
    fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        use JwtAlgorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let kind = match algorithm {
            RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => KeyKind::Rsa,
            ES256 => KeyKind::P256,
            ES384 => KeyKind::P384,
            EdDSA => KeyKind::Ed25519,
        };
        self.kind == kind && self.algorithm.as_deref().is_none_or(|own| own == algorithm_name(algorithm))
    }

    /// Whether `signature` (base64url) over `message` is this key's.
    pub(crate) fn verifies(&self, signature: &str, message: &[u8], algorithm: JwtAlgorithm) -> bool {
        jsonwebtoken::crypto::verify(signature, message, &self.key, library_algorithm(algorithm)).unwrap_or(false)
    }
}

/// The `alg` of a token's header (RFC 7518 §3.1). There is none for `none` and for shared secrets.
pub(crate) fn algorithm_from_name(name: &str) -> Option<JwtAlgorithm> {
    use JwtAlgorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA]
        .into_iter()
        .find(|algorithm| algorithm_name(*algorithm) == name)
}

fn algorithm_name(algorithm: JwtAlgorithm) -> &'static str {
    match algorithm {
        JwtAlgorithm::RS256 => "RS256",
        JwtAlgorithm::RS384 => "RS384",
        JwtAlgorithm::RS512 => "RS512",
        JwtAlgorithm::PS256 => "PS256",
        JwtAlgorithm::PS384 => "PS384",
        JwtAlgorithm::PS512 => "PS512",
        JwtAlgorithm::ES256 => "ES256",
        JwtAlgorithm::ES384 => "ES384",
        JwtAlgorithm::EdDSA => "EdDSA",
    }
}

fn library_algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

fn bit_length(number: &[u8]) -> usize {
    let digits = number.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &number[first..]);
    digits.first().map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::{ED25519, P256, P384, RSA};

    fn parse(keys: Vec<Value>) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn usable(key: Value) -> bool {
        parse(vec![key]).is_ok()
    }

    #[test]
    fn keys_for_other_uses_are_left_out() {
        assert!(usable(RSA.jwk(json!({ "use": "sig", "key_ops": ["verify"] }))));
        assert!(!usable(RSA.jwk(json!({ "use": "enc" }))));
        assert!(!usable(RSA.jwk(json!({ "key_ops": ["encrypt", "wrapKey"] }))));
        assert!(!usable(json!({ "kty": "oct", "k": "c2VjcmV0" })));
        assert!(!usable(RSA.jwk(json!({ "kty": "oct" }))));
    }

    #[test]
    fn a_published_private_key_proves_nothing() {
        assert!(!usable(P256.jwk(json!({ "d": "AQ" }))));
    }

    #[test]
    fn weak_and_damaged_keys_are_left_out() {
        let modulus = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
        assert!(!usable(RSA.jwk(json!({ "n": modulus(255) }))));
        assert!(!usable(RSA.jwk(json!({ "n": URL_SAFE_NO_PAD.encode([vec![0; 64], vec![0xff; 255]].concat()) }))));
        assert!(usable(RSA.jwk(json!({ "n": modulus(256) }))));
        assert!(!usable(RSA.jwk(json!({ "n": modulus(1025) }))));
        assert!(!usable(P256.jwk(json!({ "x": "AQ" }))));
        assert!(!usable(P256.jwk(json!({ "crv": "secp256k1" }))));
        assert!(!usable(P256.jwk(json!({ "crv": "P-384" }))));
        assert!(!usable(ED25519.jwk(json!({ "crv": "Ed448" }))));
        assert!(!usable(json!({ "kty": 7 })));
        assert!(!usable(json!("RSA")));
    }

    #[test]
    fn one_bad_key_does_not_spoil_the_set() {
        let set = parse(vec![json!({ "kty": "new" }), json!(null), P256.jwk(json!({ "kid": "a" }))]).unwrap();
        assert!(set.find(Some("a"), JwtAlgorithm::ES256).is_ok());
    }

    #[test]
    fn a_set_has_a_bounded_number_of_keys() {
        let many = |n| (0..n).map(|kid| P256.jwk(json!({ "kid": kid.to_string() }))).collect::<Vec<_>>();
        assert!(parse(many(64)).is_ok());
        assert!(matches!(parse(many(65)), Err(KeySetError::TooManyKeys(65))));
    }

    #[test]
    fn a_key_is_used_with_its_own_algorithms_only() {
        use JwtAlgorithm::{ES256, ES384, EdDSA, PS256, RS256, RS512};
        let set = parse(vec![
            RSA.jwk(json!({ "kid": "rsa" })),
            RSA.jwk(json!({ "kid": "rs256", "alg": "RS256" })),
            P256.jwk(json!({ "kid": "p256" })),
            P384.jwk(json!({ "kid": "p384" })),
            ED25519.jwk(json!({ "kid": "ed" })),
        ])
        .unwrap();
        let all = [RS256, RS512, PS256, ES256, ES384, EdDSA];
        let expected: [(&str, &[JwtAlgorithm]); 5] = [
            ("rsa", &[RS256, RS512, PS256]),
            ("rs256", &[RS256]),
            ("p256", &[ES256]),
            ("p384", &[ES384]),
            ("ed", &[EdDSA]),
        ];
        for (kid, allowed) in expected {
            for algorithm in all {
                let found = set.find(Some(kid), algorithm).map(|_| ());
                let right = if allowed.contains(&algorithm) { Ok(()) } else { Err(NoKey::Misfit) };
                assert_eq!(found, right, "{kid} {algorithm:?}");
            }
        }
    }

    #[test]
    fn without_a_kid_exactly_one_key_must_fit() {
        use JwtAlgorithm::{ES256, ES384, RS256};
        let set =
            parse(vec![RSA.jwk(json!({ "kid": "a" })), P256.jwk(json!({ "kid": "b" })), P256.jwk(json!({}))]).unwrap();
        assert!(set.find(None, RS256).is_ok());
        assert_eq!(set.find(None, ES256).map(|_| ()), Err(NoKey::Ambiguous));
        assert_eq!(set.find(None, ES384).map(|_| ()), Err(NoKey::Unknown));
    }

    #[test]
    fn a_kid_may_stand_twice_if_one_key_fits() {
        let set = parse(vec![RSA.jwk(json!({ "kid": "a" })), P256.jwk(json!({ "kid": "a" }))]).unwrap();
        assert!(set.find(Some("a"), JwtAlgorithm::ES256).is_ok());
        let set = parse(vec![P256.jwk(json!({ "kid": "a" })), P256.jwk(json!({ "kid": "a" }))]).unwrap();
        assert_eq!(set.find(Some("a"), JwtAlgorithm::ES256).map(|_| ()), Err(NoKey::Ambiguous));
    }

    #[test]
    fn there_is_no_name_for_no_algorithm_or_shared_secrets() {
        for name in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "rs256", "ES256K", "ES512"] {
            assert_eq!(algorithm_from_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = KeySet::parse(&bytes);
        }
    }
}
