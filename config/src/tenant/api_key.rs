//! API keys. Two sources of a key exclude each other, so it is read through a raw form with both.

use std::{fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    secret::SecretRef,
    values::{InvalidValue, text_value, timestamp},
};

/// An API key. Only a hash of it is ever stored.
///
/// A key is written `sk_<prefix>_<secret>`: the prefix finds the entry, the secret has at least 128
/// bits of entropy. A consumer has several, so that keys can be rotated.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "RawApiKey", into = "RawApiKey")]
pub struct ApiKey {
    /// The part between `sk_` and the second `_`: 8 to 32 letters and digits, unique within the tenant.
    pub prefix: String,
    pub source: KeySource,
    pub expires: Option<OffsetDateTime>,
    /// Fewer scopes than the consumer has; absent: all of the consumer's.
    pub scopes: Option<Vec<String>>,
}

/// Where the gateway learns what the key hashes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// Written in the configuration.
    Hash(KeyHash),
    /// The whole key, kept elsewhere; it is read and hashed when the configuration is compiled.
    Key(SecretRef),
}

/// The SHA-256 of a whole key, written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    pub const fn get(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for KeyHash {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The text may be the key itself, put in the wrong place, so it is not repeated.
        let refused = || {
            InvalidValue::new(
                "this is not the hash of a key: write sha256: and the 64 hexadecimal digits of its SHA-256; the key itself belongs in a file, key: ${file:…}",
            )
        };
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64).ok_or_else(refused)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(refused)?;
        }
        Ok(Self(hash))
    }
}

text_value!(
    KeyHash,
    "KeyHash",
    "sha256: and the hexadecimal SHA-256 of the whole key",
    Some("^sha256:[0-9a-fA-F]{64}$")
);

/// An API key as it is written.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawApiKey {
    /// The part between `sk_` and the second `_`: 8 to 32 letters and digits, unique within the tenant.
    prefix: String,
    /// `sha256:` and the hexadecimal SHA-256 of the whole key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<KeyHash>,
    /// Where the whole key is to be had; the gateway hashes it when it reads the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<SecretRef>,
    #[serde(default, with = "timestamp", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    expires: Option<OffsetDateTime>,
    /// Fewer scopes than the consumer has; absent: all of the consumer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
}

impl TryFrom<RawApiKey> for ApiKey {
    type Error = InvalidValue;

    fn try_from(raw: RawApiKey) -> Result<Self, Self::Error> {
        let source = match (raw.hash, raw.key) {
            (Some(hash), None) => KeySource::Hash(hash),
            (None, Some(key)) => KeySource::Key(key),
            (Some(_), Some(_)) => {
                return Err(InvalidValue::new("an API key has either hash or key, this one has both: remove one"));
            }
            (None, None) => {
                return Err(InvalidValue::new(
                    "an API key has neither hash nor key: add hash: sha256:… or key: ${file:…}",
                ));
            }
        };
        Ok(Self { prefix: raw.prefix, source, expires: raw.expires, scopes: raw.scopes })
    }
}

impl From<ApiKey> for RawApiKey {
    fn from(key: ApiKey) -> Self {
        let (hash, reference) = match key.source {
            KeySource::Hash(hash) => (Some(hash), None),
            KeySource::Key(reference) => (None, Some(reference)),
        };
        Self { prefix: key.prefix, hash, key: reference, expires: key.expires, scopes: key.scopes }
    }
}

impl JsonSchema for ApiKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ApiKey".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = RawApiKey::json_schema(generator);
        schema.insert("oneOf".into(), serde_json::json!([{ "required": ["hash"] }, { "required": ["key"] }]));
        schema.insert("description".into(), "An API key, known by its hash or by where it is kept.".into());
        schema
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Result<ApiKey, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_has_one_source() {
        let hash = KeyHash::new([0xab; 32]);
        let key = read(&format!(r#"{{"prefix": "abcdefgh", "hash": "{hash}"}}"#)).unwrap();
        assert_eq!(key.source, KeySource::Hash(hash));
        let key = read(r#"{"prefix": "abcdefgh", "key": "${env:KEY}"}"#).unwrap();
        assert_eq!(key.source, KeySource::Key(SecretRef::Env("KEY".to_owned())));
        assert_eq!(serde_json::to_string(&key).unwrap(), r#"{"prefix":"abcdefgh","key":"${env:KEY}"}"#);
        assert!(read(r#"{"prefix": "abcdefgh"}"#).unwrap_err().contains("neither hash nor key"));
        assert!(
            read(&format!(r#"{{"prefix": "a", "hash": "{hash}", "key": "${{env:K}}"}}"#)).unwrap_err().contains("both")
        );
    }

    #[test]
    fn a_key_in_the_place_of_its_hash_is_not_repeated() {
        for text in ["sk_abcdefgh_hunter2", "sha256:hunter2", &format!("sha256:hunter2{}", "é".repeat(29)), ""] {
            let error = text.parse::<KeyHash>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let mixed = format!("sha256:{}", "aB".repeat(32));
        assert_eq!(mixed.parse::<KeyHash>().unwrap().to_string(), mixed.to_lowercase());
        assert!(format!("sha256:{}", "+1".repeat(32)).parse::<KeyHash>().is_err());
    }
}
