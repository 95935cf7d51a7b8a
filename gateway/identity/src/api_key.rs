//! API keys: `sk_<prefix>_<secret>`.
//!
//! The prefix is public and finds the entry; it may stand in logs. The secret is random, so one
//! SHA-256 protects it: there is no dictionary to try, and nothing slower is needed. The whole key is
//! hashed, and hashes are compared in constant time, also when the prefix is unknown.

use std::{collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use secrecy::SecretString;
use seiketsu_config::{
    secret::SecretError,
    tenant::{ApiKey, Consumer},
    values::Id,
};
use subtle::ConstantTimeEq;

use crate::{
    certificate::parse_hex,
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
    pub hash: String,
}

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator failed; no key was made")]
pub struct NoRandomness;

/// Makes a key with a secret of 256 bits.
pub fn generate() -> Result<NewKey, NoRandomness> {
    let prefix = random_text(PREFIX_LENGTH)?;
    let key = format!("sk_{prefix}_{}", random_text(SECRET_LENGTH)?);
    let hash = hash_text(&key);
    Ok(NewKey { key: key.into(), prefix, hash })
}

/// `sha256:` and the hexadecimal SHA-256 of a whole key, as configuration has it.
pub fn hash_text(key: &str) -> String {
    use fmt::Write;
    sha256(key.as_bytes()).iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
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
    #[error("the secret of a key has at least {MIN_SECRET_LENGTH} random letters and digits (128 bits)")]
    WeakSecret,
}

/// Checks a whole key and returns its prefix. A secret that is short or obviously not random is refused.
pub fn check(key: &str) -> Result<&str, KeyFormatError> {
    let (prefix, secret) =
        key.strip_prefix("sk_").and_then(|rest| rest.split_once('_')).ok_or(KeyFormatError::Shape)?;
    check_prefix(prefix)?;
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

fn check_prefix(prefix: &str) -> Result<(), KeyFormatError> {
    let good = (8..=32).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(KeyFormatError::Prefix) }
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

/// A key in the configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRuleError {
    #[error("the key {prefix:?} of consumer {consumer}: {source}")]
    Format { consumer: Id, prefix: String, source: KeyFormatError },
    #[error("the key {prefix:?} of consumer {consumer}: the hash is written sha256: and 64 hexadecimal digits")]
    Hash { consumer: Id, prefix: String },
    #[error("the key {prefix:?} of consumer {consumer}: {source}")]
    Secret { consumer: Id, prefix: String, source: SecretError },
    #[error("two keys of the tenant have the prefix {prefix:?} (the second is of consumer {consumer}); make a new one")]
    SamePrefix { consumer: Id, prefix: String },
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
                let (prefix, hash) = read_key(&consumer.id, key)?;
                // A key can only narrow what its consumer may do.
                let scopes = key.scopes.as_ref().map_or_else(
                    || scopes.clone(),
                    |own| own.iter().map(String::as_str).collect::<NameSet>().intersection(&scopes),
                );
                let expires = key.expires.map(|at| u64::try_from(at.unix_timestamp()).unwrap_or(0));
                let kind = PrincipalKind::ApiKey { prefix: prefix.clone() };
                let principal =
                    Principal::consumer(tenant.clone(), kind, &consumer.id, scopes, roles.clone(), expires);
                let entry = Entry { hash, principal: Arc::new(principal) };
                if keys.insert(prefix.clone(), entry).is_some() {
                    let consumer = consumer.id.clone();
                    return Err(KeyRuleError::SamePrefix { consumer, prefix: prefix.into() });
                }
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
            Some(entry) if entry.principal.expires().is_some_and(|expires| expires <= now) => {
                Err(ApiKeyError::Expired)
            }
            Some(entry) => Ok(Arc::clone(&entry.principal)),
        }
    }
}

/// Prefix and hash of a configured key.
fn read_key(consumer: &Id, key: &ApiKey) -> Result<(Box<str>, [u8; 32]), KeyRuleError> {
    let consumer = consumer.clone();
    let prefix = key.prefix.clone();
    if let Err(source) = check_prefix(&prefix) {
        return Err(KeyRuleError::Format { consumer, prefix, source });
    }
    match key.hash.strip_prefix("sha256:").and_then(parse_hex) {
        Some(hash) => Ok((prefix.into(), hash)),
        None => Err(KeyRuleError::Hash { consumer, prefix }),
    }
}

impl fmt::Debug for ApiKeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyTable").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}
