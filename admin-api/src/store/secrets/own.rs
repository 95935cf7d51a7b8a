//! Secrets that the control plane makes for itself.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sea_orm::{DatabaseTransaction, EntityTrait, IntoActiveModel as _};
use secrecy::SecretString;

use super::{Keys, Place};
use crate::store::{StoreError, entities::own_secret};

/// What the entries of the audit trail are authenticated with.
pub(in crate::store) const AUDIT_CHAIN: &str = "audit-chain";

/// What the trail is signed with.
pub(in crate::store) const AUDIT_SEAL: &str = "audit-seal";

pub(in crate::store) fn own_place(name: &str) -> Place<'_> {
    Place { tenant: "", table: "own_secrets", column: "secret", row: name, destination: "" }
}

/// A secret of this name: 32 random bytes in base64url, made when it is first asked for. And whether it was just made.
pub(in crate::store) async fn open_or_make(
    transaction: &DatabaseTransaction,
    keys: &Keys,
    name: &str,
) -> Result<(SecretString, bool), StoreError> {
    let place = own_place(name);
    if let Some(row) = own_secret::Entity::find_by_id(name.to_owned()).one(transaction).await? {
        return Ok((keys.open(place, &row.secret)?, false));
    }
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
    let secret = SecretString::from(URL_SAFE_NO_PAD.encode(bytes));
    let row = own_secret::Model { name: name.to_owned(), secret: keys.seal(place, &secret)? };
    own_secret::Entity::insert(row.into_active_model()).exec_without_returning(transaction).await?;
    Ok((secret, true))
}
