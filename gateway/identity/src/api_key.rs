//! API keys: `sk_<prefix>_<secret>`.
//!
//! The prefix is public and finds the entry; it may stand in logs. The secret is random, so one
//! SHA-256 protects it: there is no dictionary to try, and nothing slower is needed. The whole key is
//! hashed, and hashes are compared in constant time, also when the prefix is unknown.

use std::{collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use seiketsu_config::{
    secret::SecretError,
    tenant::{ApiKey, Consumer, KeyHash, KeySource},
    values::Id,
};
use subtle::ConstantTimeEq;

use crate::{
    principal::{NameSet, Principal, PrincipalKind},
    sha256,
};

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const PREFIX_LENGTH: usize = 12;
/// 43 characters of 62 are 256 bits.
const SECRET_LENGTH: usize = 43;
/// 22 characters of 62 are 130 bits.
const MIN_SECRET_LENGTH: usize = 22;

/// A new key, as it is shown once to whoever asked for it.
#[derive(Debug)]
pub struct NewKey {
    /// The whole key. It is kept nowhere.
    pub key: SecretString,
    /// For `consumers[].keys[].prefix`.
    pub prefix: String,
    /// For `consumers[].keys[].hash`.
    pub hash: KeyHash,
}

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator failed; no key was made")]
pub struct NoRandomness;

/// Makes a key with a secret of 256 bits.
pub fn generate() -> Result<NewKey, NoRandomness> {
    let prefix = random_text(PREFIX_LENGTH)?;
    let key = format!("sk_{prefix}_{}", random_text(SECRET_LENGTH)?);
    let hash = KeyHash::new(sha256(key.as_bytes()));
    Ok(NewKey { key: key.into(), prefix, hash })
}

fn random_text(length: usize) -> Result<String, NoRandomness> {
    let random = SystemRandom::new();
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        // 248 is the largest multiple of 62 in a byte: beyond it, some letters would be likelier.
        let letters = bytes.iter().filter(|byte| **byte < 248).map(|byte| ALPHABET[usize::from(byte % 62)]);
        text.extend(letters.take(length - text.len()).map(char::from));
    }
    Ok(text)
}

/// What is wrong with a key that someone brought along. The key is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    #[error("a key is written sk_<prefix>_<secret>")]
    Shape,
    #[error("the prefix of a key has 8 to 32 letters and digits")]
    Prefix,
    #[error(
        "the secret of a key has at least {MIN_SECRET_LENGTH} random letters and digits (128 bits); have one generated"
    )]
    WeakSecret,
}

/// Checks a whole key and returns its prefix. A secret that is short or obviously not random is refused.
pub fn check(key: &str) -> Result<&str, KeyFormatError> {
    let (prefix, secret) =
        key.strip_prefix("sk_").and_then(|rest| rest.split_once('_')).ok_or(KeyFormatError::Shape)?;
    if !(8..=32).contains(&prefix.len()) || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(KeyFormatError::Prefix);
    }
    // 22 random characters have fewer than eight different ones about once in 10^12.
    let mut seen = [false; 256];
    secret.bytes().for_each(|byte| seen[usize::from(byte)] = true);
    let different = seen.iter().filter(|seen| **seen).count();
    let clean = secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !clean || secret.len() < MIN_SECRET_LENGTH || different < 8 {
        return Err(KeyFormatError::WeakSecret);
    }
    Ok(prefix)
}

/// Why a key was refused. The first two are one to the client: who guesses must not learn which
/// prefixes exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    #[error("no key of the tenant has this prefix")]
    UnknownPrefix,
    #[error("the key's secret is wrong")]
    WrongSecret,
    #[error("the key has expired")]
    Expired,
}

/// A tenant's keys, by prefix.
pub(crate) struct ApiKeyTable {
    keys: HashMap<Box<str>, Entry, foldhash::fast::RandomState>,
    /// What keys with an unknown prefix are compared with.
    decoy: [u8; 32],
}

struct Entry {
    hash: [u8; 32],
    principal: Arc<Principal>,
}

/// A key that the configuration refers to cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRuleError {
    #[error("the key {prefix:?} of consumer {consumer}: {source}")]
    Secret { consumer: Id, prefix: String, source: SecretError },
    #[error("the key {prefix:?} of consumer {consumer}, kept in {place}: {source}")]
    Format { consumer: Id, prefix: String, place: String, source: KeyFormatError },
    #[error(
        "the key {prefix:?} of consumer {consumer}: the key kept in {place} has the prefix {found:?}; write that, or refer to the right one"
    )]
    OtherPrefix { consumer: Id, prefix: String, place: String, found: String },
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl ApiKeyTable {
    /// Reads keys that are given by reference, so it may block on the file system.
    pub(crate) fn compile(tenant: &Id, consumers: &[Consumer]) -> Result<Self, KeyRuleError> {
        let mut decoy = [0; 32];
        SystemRandom::new().fill(&mut decoy).map_err(|_| NoRandomness)?;
        let mut keys = HashMap::default();
        for consumer in consumers {
            let scopes: NameSet = consumer.scopes.iter().map(String::as_str).collect();
            let roles: NameSet = consumer.roles.iter().map(String::as_str).collect();
            for key in &consumer.keys {
                let hash = hash(&consumer.id, key)?;
                // A key can only narrow what its consumer may do.
                let scopes = key.scopes.as_ref().map_or_else(
                    || scopes.clone(),
                    |own| own.iter().map(String::as_str).collect::<NameSet>().intersection(&scopes),
                );
                let expires = key.expires.map(|at| u64::try_from(at.unix_timestamp()).unwrap_or(0));
                let kind = PrincipalKind::ApiKey { prefix: key.prefix.as_str().into() };
                let principal = Principal::consumer(tenant.clone(), kind, &consumer.id, scopes, roles.clone(), expires);
                keys.insert(key.prefix.as_str().into(), Entry { hash, principal: Arc::new(principal) });
            }
        }
        Ok(Self { keys, decoy })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The same work is done whether or not there is such a prefix.
    pub(crate) fn verify(&self, key: &str, now: u64) -> Result<Arc<Principal>, ApiKeyError> {
        let hash = sha256(key.as_bytes());
        let prefix = key.strip_prefix("sk_").and_then(|rest| rest.split('_').next()).unwrap_or_default();
        let entry = self.keys.get(prefix);
        let expected = entry.map_or(&self.decoy, |entry| &entry.hash);
        let same = bool::from(hash.ct_eq(expected));
        match entry {
            None => Err(ApiKeyError::UnknownPrefix),
            Some(_) if !same => Err(ApiKeyError::WrongSecret),
            Some(entry) if entry.principal.expires().is_some_and(|expires| expires <= now) => Err(ApiKeyError::Expired),
            Some(entry) => Ok(Arc::clone(&entry.principal)),
        }
    }
}

/// The hash of a configured key; one that is given by reference is read and checked.
fn hash(consumer: &Id, key: &ApiKey) -> Result<[u8; 32], KeyRuleError> {
    let reference = match &key.source {
        KeySource::Hash(hash) => return Ok(*hash.get()),
        KeySource::Key(reference) => reference,
    };
    let consumer = || consumer.clone();
    let prefix = key.prefix.clone();
    let secret = match reference.read() {
        Ok(secret) => secret,
        Err(source) => return Err(KeyRuleError::Secret { consumer: consumer(), prefix, source }),
    };
    match check(secret.expose_secret()) {
        Ok(found) if found == prefix => Ok(sha256(secret.expose_secret().as_bytes())),
        Ok(found) => {
            let (place, found) = (reference.to_string(), found.to_owned());
            Err(KeyRuleError::OtherPrefix { consumer: consumer(), prefix, place, found })
        }
        Err(source) => {
            let place = reference.to_string();
            Err(KeyRuleError::Format { consumer: consumer(), prefix, place, source })
        }
    }
}

impl fmt::Debug for ApiKeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyTable").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn compile(consumers: Value) -> Result<ApiKeyTable, KeyRuleError> {
        let consumers: Vec<Consumer> = serde_json::from_value(consumers).unwrap();
        ApiKeyTable::compile(&"acme".parse().unwrap(), &consumers)
    }

    fn entry(key: &NewKey) -> Value {
        json!({ "prefix": key.prefix, "hash": key.hash.to_string() })
    }

    #[test]
    fn a_generated_key_is_strong_and_opens_the_door() {
        let new = generate().unwrap();
        let text = new.key.expose_secret();
        assert_eq!(check(text), Ok(new.prefix.as_str()));
        let table = compile(json!([{ "id": "mobile", "keys": [entry(&new)], "roles": ["app"] }])).unwrap();
        let principal = table.verify(text, NOW).unwrap();
        assert_eq!(principal.name(), Some("mobile"));
        assert_eq!(principal.kind(), &PrincipalKind::ApiKey { prefix: new.prefix.as_str().into() });
        assert!(principal.roles().contains("app"));
    }

    #[test]
    fn no_two_generated_keys_are_alike() {
        let keys: Vec<_> = (0..50).map(|_| generate().unwrap()).collect();
        let different: std::collections::HashSet<_> = keys.iter().map(|key| &key.prefix).collect();
        assert_eq!(different.len(), keys.len());
    }

    #[test]
    fn a_new_key_does_not_show_itself_in_debug_output() {
        let new = generate().unwrap();
        let secret = new.key.expose_secret().rsplit('_').next().unwrap();
        assert!(!format!("{new:?}").contains(secret));
    }

    #[test]
    fn a_wrong_key_does_not_pass() {
        let new = generate().unwrap();
        let text = new.key.expose_secret();
        let table = compile(json!([{ "id": "mobile", "keys": [entry(&new)] }])).unwrap();
        let mut wrong = text.to_owned();
        wrong.pop();
        assert_eq!(table.verify(&wrong, NOW), Err(ApiKeyError::WrongSecret));
        assert_eq!(table.verify(&format!("{text}x"), NOW), Err(ApiKeyError::WrongSecret));
        assert_eq!(table.verify(&format!("sk_{}", new.prefix), NOW), Err(ApiKeyError::WrongSecret));
        for unknown in ["", "sk_", "sk__", "sk_unknown0_abc", &text[3..], &text.replace("sk_", "SK_")] {
            assert_eq!(table.verify(unknown, NOW), Err(ApiKeyError::UnknownPrefix), "{unknown}");
        }
    }

    #[test]
    fn a_key_ends_with_the_second_it_expires_in() {
        let new = generate().unwrap();
        let mut entry = entry(&new);
        entry["expires"] = json!("2001-09-09T01:46:40Z");
        let table = compile(json!([{ "id": "mobile", "keys": [entry] }])).unwrap();
        let text = new.key.expose_secret();
        assert_eq!(table.verify(text, NOW - 1).unwrap().expires(), Some(NOW));
        assert_eq!(table.verify(text, NOW), Err(ApiKeyError::Expired));
        let wrong = format!("{text}x");
        assert_eq!(table.verify(&wrong, NOW), Err(ApiKeyError::WrongSecret), "only the owner learns that it expired");
    }

    #[test]
    fn two_keys_live_side_by_side_while_one_replaces_the_other() {
        let (old, new) = (generate().unwrap(), generate().unwrap());
        let table = compile(json!([{ "id": "mobile", "keys": [entry(&old), entry(&new)] }])).unwrap();
        let [by_old, by_new] = [&old, &new].map(|key| table.verify(key.key.expose_secret(), NOW).unwrap());
        assert_eq!(by_old.id(), by_new.id());
    }

    #[test]
    fn a_key_narrows_its_consumers_scopes_and_never_widens_them() {
        let (all, some, none) = (generate().unwrap(), generate().unwrap(), generate().unwrap());
        let narrowed = |key, scopes: Value| {
            let mut entry = entry(key);
            entry["scopes"] = scopes;
            entry
        };
        let keys = [entry(&all), narrowed(&some, json!(["write", "admin"])), narrowed(&none, json!([]))];
        let table = compile(json!([{ "id": "mobile", "scopes": ["read", "write"], "keys": keys }])).unwrap();
        let scopes = |key: &NewKey| {
            let principal = table.verify(key.key.expose_secret(), NOW).unwrap();
            principal.scopes().iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!([scopes(&all), scopes(&some), scopes(&none)], ["read write", "write", ""]);
    }

    #[test]
    fn a_key_may_be_kept_in_a_file() {
        let new = generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let consumers = |prefix: &str| {
            let key = json!({ "prefix": prefix, "key": format!("${{file:{}}}", path.display()) });
            json!([{ "id": "mobile", "keys": [key] }])
        };
        let missing = compile(consumers(&new.prefix)).unwrap_err();
        assert!(matches!(missing, KeyRuleError::Secret { .. }), "{missing}");
        std::fs::write(&path, format!("{}\n", new.key.expose_secret())).unwrap();
        let table = compile(consumers(&new.prefix)).unwrap();
        assert!(table.verify(new.key.expose_secret(), NOW).is_ok());
        let other = compile(consumers("otherprefix")).unwrap_err();
        assert!(matches!(other, KeyRuleError::OtherPrefix { .. }), "{other}");
        std::fs::write(&path, "sk_abcdefgh_changeme").unwrap();
        let weak = compile(consumers("abcdefgh")).unwrap_err();
        assert!(!weak.to_string().contains("changeme"), "{weak}");
        assert!(matches!(weak, KeyRuleError::Format { source: KeyFormatError::WeakSecret, .. }), "{weak}");
    }

    #[test]
    fn weak_and_misshapen_keys_are_refused() {
        let secret = "abcdefghijklmnopqrstuv";
        assert_eq!(check(&format!("sk_abcdefgh_{secret}")), Ok("abcdefgh"));
        for (key, error) in [
            (format!("pk_abcdefgh_{secret}"), KeyFormatError::Shape),
            ("sk_abcdefgh".to_owned(), KeyFormatError::Shape),
            (format!("sk_abcdefg_{secret}"), KeyFormatError::Prefix),
            (format!("sk_abc-efgh_{secret}"), KeyFormatError::Prefix),
            (format!("sk_abcdefgh_{}", &secret[1..]), KeyFormatError::WeakSecret),
            (format!("sk_abcdefgh_{}", "ab".repeat(20)), KeyFormatError::WeakSecret),
            (format!("sk_abcdefgh_{secret} "), KeyFormatError::WeakSecret),
        ] {
            assert_eq!(check(&key), Err(error), "{key}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_the_key_itself_opens_the_door(guess in "(sk_)?[a-z0-9_]{0,20}(_[a-z0-9]{0,50})?") {
            let new = generate().unwrap();
            let table = compile(json!([{ "id": "mobile", "keys": [entry(&new)] }])).unwrap();
            let with_prefix = format!("sk_{}_{guess}", new.prefix);
            prop_assert_eq!(table.verify(&guess, NOW), Err(ApiKeyError::UnknownPrefix));
            prop_assert_eq!(table.verify(&with_prefix, NOW), Err(ApiKeyError::WrongSecret));
        }
    }
}
