//! Data keys, and the key-encryption key that wraps them.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::{SecureRandom as _, SystemRandom},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use sea_orm::{DatabaseTransaction, EntityTrait, IntoActiveModel as _};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::{StoreError, entities::sealing_key, writing::hex};

type Bytes = Zeroizing<[u8; 32]>;

/// Where the key-encryption key comes from: 32 bytes, in hex or base64.
#[derive(Debug, Clone)]
pub enum KeySource {
    Given(SecretString),
    /// It has to be there.
    File(PathBuf),
    /// Made if it is not there, and nothing is that it would have to unwrap.
    Made(PathBuf),
}

impl KeySource {
    /// `first`: nothing is wrapped yet.
    pub(super) fn key(&self, first: bool) -> Result<Key, StoreError> {
        let bytes = match self {
            Self::Given(text) => parse(text.expose_secret()),
            Self::File(path) | Self::Made(path) => match fs::read_to_string(path) {
                Ok(text) => parse(&Zeroizing::new(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && first && matches!(self, Self::Made(_)) => {
                    Some(make(path).map_err(|error| self.unread(&error))?)
                }
                Err(error) => return Err(self.unread(&error)),
            },
        };
        Key::new(&*bytes.ok_or_else(|| self.unread(&"it is not 32 bytes in hex or base64"))?)
    }

    fn unread(&self, why: &impl fmt::Display) -> StoreError {
        StoreError::Key { from: self.to_string(), why: why.to_string() }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("SEIKETSU_ADMIN_KEY"),
            Self::File(path) | Self::Made(path) => path.display().fmt(f),
        }
    }
}

fn parse(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let bytes = if text.len() == 64 {
        let digits = (0..64).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
        Zeroizing::new(digits.collect::<Option<Vec<u8>>>()?)
    } else {
        let engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD];
        Zeroizing::new(engines.iter().find_map(|engine| engine.decode(text).ok())?)
    };
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

fn make(path: &Path) -> io::Result<Bytes> {
    let bytes = random().map_err(io::Error::other)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", *Zeroizing::new(hex(&*bytes)))?;
    file.sync_all()?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(bytes)
}

fn random() -> Result<Bytes, StoreError> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| StoreError::NoRandomness)?;
    Ok(bytes)
}

/// A key of AES-256-GCM. Nonces are random: one key is good for 2^32 texts (NIST SP 800-38D, section 8.3).
pub(in crate::store) struct Key(RandomizedNonceKey);

impl Key {
    fn new(bytes: &[u8]) -> Result<Self, StoreError> {
        RandomizedNonceKey::new(&AES_256_GCM, bytes).map(Self).map_err(|_| StoreError::corrupt("a key", &"its length"))
    }

    /// Nonce and ciphertext, in base64url.
    pub(super) fn seal(&self, context: &[u8], secret: &[u8]) -> Result<String, StoreError> {
        let mut text = secret.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(context), &mut text);
        let nonce = nonce.map_err(|_| StoreError::NoRandomness)?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &text].concat()))
    }

    pub(super) fn open(&self, context: &[u8], sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let mut sealed = Zeroizing::new(URL_SAFE_NO_PAD.decode(sealed).ok()?);
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.0.open_in_place(nonce, Aad::from(context), text).ok()?;
        Some(Zeroizing::new(opened.to_vec()))
    }

    fn wrap(&self, id: Uuid, data_key: &[u8]) -> Result<String, StoreError> {
        Ok(format!("{WRAPPED}{}", self.seal(id.as_bytes(), data_key)?))
    }

    fn unwrap_row(&self, row: &sealing_key::Model) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let opened = row.wrapped.strip_prefix(WRAPPED).and_then(|text| self.open(row.id.as_bytes(), text));
        opened.ok_or(StoreError::WrongKey)
    }

    /// The same data key under another wrap.
    pub(super) fn rewrap(&self, row: &sealing_key::Model, with: &Self) -> Result<String, StoreError> {
        with.wrap(row.id, &self.unwrap_row(row)?)
    }
}

/// How it is wrapped.
const WRAPPED: &str = "w1.";

/// All keys, as far as this process knows them.
pub(in crate::store) struct Keys {
    pub(super) wrapping: Key,
    data: HashMap<Uuid, Key>,
    current: Uuid,
}

/// The keys of the store; a first data key, if it has none.
pub(in crate::store) async fn open_or_first(
    transaction: &DatabaseTransaction,
    source: &KeySource,
) -> Result<Keys, StoreError> {
    let mut rows = sealing_key::Entity::find().all(transaction).await?;
    let mut keys = Keys { wrapping: source.key(rows.is_empty())?, data: HashMap::new(), current: Uuid::nil() };
    if rows.is_empty() {
        let row = keys.new_data_key(OffsetDateTime::now_utc())?;
        sealing_key::Entity::insert(row.clone().into_active_model()).exec_without_returning(transaction).await?;
        rows.push(row);
    }
    keys.learn(&rows)?;
    Ok(keys)
}

impl Keys {
    pub(super) fn new_data_key(&self, now: OffsetDateTime) -> Result<sealing_key::Model, StoreError> {
        let id = Uuid::now_v7();
        let wrapped = self.wrapping.wrap(id, &*random()?)?;
        Ok(sealing_key::Model { id, wrapped, created_at: now, retired_at: None })
    }

    /// Takes in those that are not known yet; the newest is what is sealed with from now on.
    pub(super) fn learn(&mut self, rows: &[sealing_key::Model]) -> Result<(), StoreError> {
        for row in rows {
            if !self.data.contains_key(&row.id) {
                self.data.insert(row.id, Key::new(&self.wrapping.unwrap_row(row)?)?);
            }
        }
        if let Some(newest) = rows.iter().max_by_key(|row| (row.retired_at.is_none(), row.created_at)) {
            self.current = newest.id;
        }
        Ok(())
    }

    pub(super) fn current(&self) -> (Uuid, &Key) {
        // There is one from the start on.
        (self.current, self.data.get(&self.current).unwrap_or(&self.wrapping))
    }

    /// Whether a wrapped data key is one that was wrapped here.
    pub(in crate::store) fn opens(&self, row: &sealing_key::Model) -> bool {
        self.wrapping.unwrap_row(row).is_ok()
    }

    /// Known data keys that are not among these.
    pub(in crate::store) fn missing(&self, rows: &[sealing_key::Model]) -> Vec<Uuid> {
        self.data.keys().copied().filter(|id| !rows.iter().any(|row| row.id == *id)).collect()
    }

    pub(super) fn find(&self, id: Uuid) -> Option<&Key> {
        self.data.get(&id)
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        #![allow(clippy::unwrap_used)]
        let mut keys = Self { wrapping: Key::new(&[7; 32]).unwrap(), data: HashMap::new(), current: Uuid::nil() };
        keys.learn(&[keys.new_data_key(OffsetDateTime::UNIX_EPOCH).unwrap()]).unwrap();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_hex_and_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 + 180).unwrap_or(251));
        for text in [hex(&bytes), STANDARD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes), format!(" {}\n", hex(&bytes))]
        {
            assert_eq!(parse(&text).as_deref(), Some(&bytes), "{text}");
        }
        for wrong in ["", "secret", &hex(&bytes)[1..], &"é".repeat(32), &STANDARD.encode([0; 31]), &"+1".repeat(32)] {
            assert!(parse(wrong).is_none_or(|read| *read != bytes), "{wrong}");
        }
        assert!(parse(&"-1".repeat(32)).is_none());
    }
}
