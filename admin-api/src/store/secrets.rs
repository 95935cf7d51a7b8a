//! Secrets in the store are sealed: AES-256-GCM under a data key, bound to the place that they stand at, so that a sealed
//! text that is moved to another tenant, table, column or row does not open there; and, where it is meant for one receiver,
//! to that one (`destinations`).
//!
//! A sealed text says how it is to be opened: `s1.<id of the data key>.<nonce and ciphertext in base64url>`. Data keys are
//! in the store too, wrapped with a key that is not (`keys`). How both are replaced: `rotation`.

mod destinations;
mod keys;
mod own;
mod rotation;

use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

pub(super) use self::{
    destinations::{bind_to_receivers, destination},
    keys::{Keys, open_or_first},
    own::{AUDIT_CHAIN, AUDIT_SEAL, open_or_make, own_place},
};
pub use self::{keys::KeySource, rotation::Rotated};
use super::{Store, StoreError};

/// Where a sealed secret stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Empty: of no tenant.
    pub tenant: &'a str,
    pub table: &'static str,
    pub column: &'static str,
    /// The value that tells the row from all others of its table, as text.
    pub row: &'a str,
    /// Whom it is for: scheme, host and port. Empty: for this control plane.
    pub destination: &'a str,
}

/// A column of sealed texts. Rotation goes through all that are listed in [`SEALED`].
#[derive(Debug, Clone, Copy)]
struct SealedColumn {
    table: &'static str,
    column: &'static str,
    /// The column that [`Place::row`] is the value of: text or a UUID.
    row: &'static str,
    /// SQL for [`Place::tenant`] of a row, the same.
    tenant: &'static str,
    /// Whether [`Place::destination`] is that of the row's `url`.
    is_for_receiver: bool,
}

/// Every column of every table that holds sealed texts. One that is missing here is not resealed when keys are rotated.
const SEALED: &[SealedColumn] = &[
    SealedColumn { table: "own_secrets", column: "secret", row: "name", tenant: "''", is_for_receiver: false },
    SealedColumn { table: "webhooks", column: "secret", row: "id", tenant: "''", is_for_receiver: true },
    SealedColumn { table: "webhooks", column: "old_secret", row: "id", tenant: "''", is_for_receiver: true },
    SealedColumn { table: "siem_sinks", column: "token", row: "id", tenant: "''", is_for_receiver: true },
    SealedColumn { table: "siem_sinks", column: "private_key", row: "id", tenant: "''", is_for_receiver: true },
];

impl Store {
    /// Seals a secret for its place.
    pub fn seal(&self, place: Place<'_>, secret: &SecretString) -> Result<String, StoreError> {
        self.0.keys.read().seal(place, secret)
    }

    /// Opens what was sealed for this very place.
    pub fn open_sealed(&self, place: Place<'_>, sealed: &str) -> Result<SecretString, StoreError> {
        self.0.keys.read().open(place, sealed)
    }
}

impl Keys {
    pub(super) fn seal(&self, place: Place<'_>, secret: &SecretString) -> Result<String, StoreError> {
        let (id, key) = self.current();
        let sealed = key.seal(&context(id, place), secret.expose_secret().as_bytes())?;
        Ok(format!("{}{sealed}", prefix(id)))
    }

    pub(super) fn open(&self, place: Place<'_>, sealed: &str) -> Result<SecretString, StoreError> {
        let altered = || StoreError::Sealed { table: place.table, column: place.column, row: place.row.to_owned() };
        let (id, text) = parse(sealed).ok_or_else(altered)?;
        let key = self.find(id).ok_or(StoreError::UnknownKey(id))?;
        let opened = key.open(&context(id, place), text).ok_or_else(altered)?;
        let text = std::str::from_utf8(&opened).map_err(|_| altered())?;
        Ok(text.to_owned().into())
    }
}

fn prefix(key: Uuid) -> String {
    format!("s1.{}.", key.simple())
}

fn parse(sealed: &str) -> Option<(Uuid, &str)> {
    let (id, text) = sealed.strip_prefix("s1.")?.split_once('.')?;
    Some((Uuid::try_parse(id).ok()?, text))
}

/// What is authenticated beside the secret. Lengths go before texts, so that no two places are the same bytes.
fn context(key: Uuid, place: Place<'_>) -> Vec<u8> {
    let Place { tenant, table, column, row, destination } = place;
    let mut context = key.as_bytes().to_vec();
    // What is for nobody else is sealed as it was when there was nothing else.
    let destination = Some(destination).filter(|destination| !destination.is_empty());
    for text in [tenant, table, column, row].into_iter().chain(destination) {
        context.extend((text.len() as u64).to_be_bytes());
        context.extend(text.as_bytes());
    }
    context
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const TABLES: [&str; 3] = ["a", "ab", ""];

    type Parts = (String, usize, usize, String, String);

    fn place() -> impl Strategy<Value = Parts> {
        ("[a-c]{0,2}", 0..TABLES.len(), 0..TABLES.len(), "[a-c]{0,2}", "[a-c]{0,2}")
    }

    fn at((tenant, table, column, row, destination): &Parts) -> Place<'_> {
        Place { tenant, table: TABLES[*table], column: TABLES[*column], row, destination }
    }

    proptest! {
        #[test]
        fn what_is_sealed_for_one_place_opens_there_and_nowhere_else(here in place(), there in place(), secret in ".*") {
            let keys = Keys::for_tests();
            let secret = SecretString::from(secret);
            let sealed = keys.seal(at(&here), &secret).unwrap();
            let opened = keys.open(at(&here), &sealed).unwrap();
            prop_assert_eq!(opened.expose_secret(), secret.expose_secret());
            prop_assert_eq!(keys.open(at(&there), &sealed).is_ok(), here == there);
            prop_assert_ne!(keys.seal(at(&here), &secret).unwrap(), sealed);
        }

        #[test]
        fn what_was_altered_does_not_open(byte in 0_usize..100, with in "[A-Za-z0-9._-]") {
            let (keys, place) = (Keys::for_tests(), Place { tenant: "t", table: "a", column: "b", row: "r", destination: "" });
            let sealed = keys.seal(place, &"a secret of some length".to_owned().into()).unwrap();
            let mut altered = sealed.clone();
            let byte = byte % sealed.len();
            altered.replace_range(byte..=byte, &with);
            // Capital letters in the id of a key are the same id.
            prop_assume!(!altered.eq_ignore_ascii_case(&sealed) || byte > 35);
            prop_assert_eq!(keys.open(place, &altered).is_ok(), altered == sealed);
        }
    }
}
