//! What an attacker who can write into the store lacks: the key that entries of the audit trail are authenticated with, and
//! the one that their trail is signed with from time to time. Both stand sealed in the store.
//!
//! The hashes of entries can be computed by everybody, so that an exported trail can be verified elsewhere with the public
//! key alone: a seal signs the hash of an entry, and that stands for all entries before it.

use aws_lc_rs::{
    hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel as _, PaginatorTrait,
    QueryFilter, Set,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Author, PATIENCE, Store, StoreError,
    audit::{Entry, entries_after},
    entities::{audit_log, audit_seal, control},
    number, signed, within,
    writing::{Writing, hex},
};

/// An entry in so many is sealed, and the last one whenever the trail is exported.
pub(super) const EVERY: i64 = 100;

/// The signature of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[schema(as = AuditSeal)]
pub struct Seal {
    /// The entry.
    pub number: u64,
    pub hash: String,
    /// RFC 3339.
    pub at: String,
    /// Ed25519, in base64url, of the lines `seiketsu-audit-seal`, store, number, hash and time.
    pub signature: String,
}

/// Which key seals are made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct SealKey {
    pub algorithm: &'static str,
    /// The public key, in base64url.
    pub key: String,
    /// The store that the trail began in; that is signed as well.
    pub store: Uuid,
}

pub(super) struct TrailKeys {
    /// That the trail began in.
    store: Uuid,
    mac: hmac::Key,
    /// For rows; made of the one for entries, so that no MAC of a row is one of an entry.
    rows: hmac::Key,
    seal: Ed25519KeyPair,
}

impl TrailKeys {
    pub(super) fn new(store: Uuid, chain: &SecretString, seal: &SecretString) -> Result<Self, StoreError> {
        let seed = URL_SAFE_NO_PAD.decode(seal.expose_secret()).unwrap_or_default();
        let seal = Ed25519KeyPair::from_seed_unchecked(&seed)
            .map_err(|why| StoreError::corrupt("the key of the audit trail's seals", &why))?;
        let mac = hmac::Key::new(hmac::HMAC_SHA256, chain.expose_secret().as_bytes());
        let rows = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&mac, b"seiketsu-rows").as_ref());
        Ok(Self { store, mac, rows, seal })
    }

    /// The store that the trail began in.
    pub(super) fn store(&self) -> Uuid {
        self.store
    }

    pub(super) fn mac(&self, hash: &str) -> String {
        hex(hmac::sign(&self.mac, &[self.store.as_bytes(), hash.as_bytes()].concat()).as_ref())
    }

    /// Whether the entry was made with this key.
    pub(super) fn is_mac(&self, entry: &audit_log::Model) -> bool {
        entry.mac.as_deref() == Some(&self.mac(&entry.hash))
    }

    /// What a row is authenticated with that has this name in the trail.
    pub(super) fn mac_of_row(&self, name: &str, fingerprint: &str) -> String {
        let text = format!("{}\n{name}\n{fingerprint}", self.store);
        hex(hmac::sign(&self.rows, text.as_bytes()).as_ref())
    }

    pub(super) fn seal(&self, entry: i64, hash: &str, now: OffsetDateTime) -> audit_seal::Model {
        let at = now.format(&Rfc3339).unwrap_or_default();
        let signature = self.seal.sign(&signed_text(self.store, entry, hash, &at));
        let signature = URL_SAFE_NO_PAD.encode(signature.as_ref());
        audit_seal::Model { number: entry, hash: hash.to_owned(), at, signature }
    }

    pub(super) fn public(&self) -> SealKey {
        let key = URL_SAFE_NO_PAD.encode(self.seal.public_key().as_ref());
        SealKey { algorithm: "Ed25519", key, store: self.store }
    }

    pub(super) fn is_sealed(&self, row: &audit_seal::Model) -> bool {
        is_sealed(self.store, self.seal.public_key().as_ref(), &row.clone().into())
    }
}

/// Whether a seal was made with this key.
pub(crate) fn is_sealed(store: Uuid, key: &[u8], seal: &Seal) -> bool {
    let signature = URL_SAFE_NO_PAD.decode(&seal.signature).unwrap_or_default();
    let text = signed_text(store, signed(seal.number), &seal.hash, &seal.at);
    UnparsedPublicKey::new(&ED25519, key).verify(&text, &signature).is_ok()
}

fn signed_text(store: Uuid, entry: i64, hash: &str, at: &str) -> Vec<u8> {
    format!("seiketsu-audit-seal\n{store}\n{entry}\n{hash}\n{at}\n").into_bytes()
}

impl From<audit_seal::Model> for Seal {
    fn from(row: audit_seal::Model) -> Self {
        Self { number: number(row.number), hash: row.hash, at: row.at, signature: row.signature }
    }
}

impl Store {
    /// What seals are verified with.
    pub fn seal_key(&self) -> SealKey {
        self.0.trail.public()
    }

    /// Keeps what was done, and seals the trail with it.
    pub async fn record_and_seal(&self, by: &Author, entry: Entry<'_>) -> Result<u64, StoreError> {
        within(PATIENCE, async {
            let mut writing = self.writing().await?;
            writing.audit(by, entry).await?;
            writing.seal_trail().await?;
            let last = number(writing.control.audit_number);
            writing.finish().await?;
            Ok(last)
        })
        .await
    }

    /// The seals of entries in a range.
    pub async fn seals(&self, after: u64, up_to: u64) -> Result<Vec<Seal>, StoreError> {
        use audit_seal::Column::Number;
        let find = audit_seal::Entity::find().filter(Number.gt(signed(after))).filter(Number.lte(signed(up_to)));
        within(PATIENCE, async { Ok(find.all(&self.0.database).await?.into_iter().map(Seal::from).collect()) }).await
    }
}

impl Writing<'_> {
    /// Seals the last entry, if it is not.
    pub(super) async fn seal_trail(&self) -> Result<(), StoreError> {
        let control = &self.control;
        if audit_seal::Entity::find_by_id(control.audit_number).count(&self.transaction).await? == 0 {
            let seal = self.store.0.trail.seal(control.audit_number, &control.audit_hash, self.now);
            audit_seal::Entity::insert(seal.into_active_model()).exec_without_returning(&self.transaction).await?;
        }
        Ok(())
    }
}

/// The key was made just now: what is in a trail from before counts as it is.
pub(super) async fn adopt(
    transaction: &DatabaseTransaction,
    keys: &TrailKeys,
    control: &control::Model,
) -> Result<(), StoreError> {
    if audit_log::Entity::find().filter(audit_log::Column::Mac.is_not_null()).count(transaction).await? > 0 {
        return Err(StoreError::corrupt("the key of the audit trail", &"it is missing"));
    }
    let mut last = 0;
    loop {
        let rows = entries_after(transaction, last).await?;
        let Some(end) = rows.last() else { break };
        last = end.number;
        for row in rows {
            if row.number % EVERY == 0 {
                let seal = keys.seal(row.number, &row.hash, OffsetDateTime::now_utc());
                audit_seal::Entity::insert(seal.into_active_model()).exec_without_returning(transaction).await?;
            }
            let mac = Set(Some(keys.mac(&row.hash)));
            audit_log::ActiveModel { mac, ..row.into_active_model() }.update(transaction).await?;
        }
    }
    control.clone().into_active_model().reset_all().update(transaction).await?;
    Ok(())
}
