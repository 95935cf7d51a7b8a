//! Lists of API keys, without what would prove them.

use std::{fmt, str::FromStr};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use seiketsu_config::values::Id;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::{
    PATIENCE, Place, Seen, Store, StoreError, entities::api_key, id_of, routes::texts, tables::in_seconds, within,
};

/// What a key is called: `<tenant>.<prefix>`. The prefix is the part of a key that is no secret; it is the tenant's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId {
    pub tenant: Id,
    pub prefix: String,
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.prefix)
    }
}

/// What is no id of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is written <tenant>.<prefix>, as lists show it")]
pub struct InvalidKeyId;

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        // Names of tenants may have points, prefixes have none.
        let (tenant, prefix) = text.rsplit_once('.').ok_or(InvalidKeyId)?;
        let is_prefix = (8..=32).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_prefix {
            return Err(InvalidKeyId);
        }
        Ok(Self { tenant: tenant.parse().map_err(|_| InvalidKeyId)?, prefix: prefix.to_owned() })
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a key opens anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    Active,
    Expired,
}

/// A key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = KeySummary)]
pub struct KeyRow {
    #[schema(value_type = String)]
    pub id: KeyId,
    #[schema(value_type = String)]
    pub tenant: Id,
    pub consumer: String,
    /// What stands between `sk_` and the secret.
    pub prefix: String,
    pub state: KeyState,
    /// `hash`: the store has its hash. `reference`: gateways read it from elsewhere.
    pub kept: String,
    /// None: all of the consumer's.
    pub scopes: Option<Vec<String>>,
    /// When it came into the store.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<OffsetDateTime>,
}

impl KeyRow {
    pub fn place(&self) -> Place {
        Place { tenant: Some(self.tenant.clone()), name: self.prefix.clone() }
    }
}

/// Which keys are asked for.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    pub consumer: Option<Id>,
    pub expires_before: Option<OffsetDateTime>,
}

impl Store {
    /// Keys, in the order of their tenants and prefixes.
    pub async fn keys(&self, seen: Seen<'_>, filter: &KeyFilter) -> Result<Vec<KeyRow>, StoreError> {
        use api_key::Column;
        let mut find = api_key::Entity::find().filter(seen.condition(Column::Tenant, Column::Prefix));
        if let Some(consumer) = &filter.consumer {
            find = find.filter(Column::Consumer.eq(consumer.as_str()));
        }
        if let Some(before) = filter.expires_before {
            find = find.filter(Column::ExpiresAt.lt(in_seconds(before)));
        }
        let find = find.order_by_asc(Column::Tenant).order_by_asc(Column::Prefix).limit(seen.most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(row_of).collect() }).await
    }

    /// One key.
    pub async fn key(&self, id: &KeyId) -> Result<Option<KeyRow>, StoreError> {
        let find = api_key::Entity::find_by_id((id.tenant.to_string(), id.prefix.clone()));
        within(PATIENCE, async { find.one(&self.0.database).await?.map(row_of).transpose() }).await
    }
}

fn row_of(row: api_key::Model) -> Result<KeyRow, StoreError> {
    let api_key::Model { tenant, prefix, consumer, kept, scopes, created_at, expires_at } = row;
    let tenant = id_of(&tenant)?;
    let expired = expires_at.is_some_and(|expires| expires <= OffsetDateTime::now_utc());
    Ok(KeyRow {
        id: KeyId { tenant: tenant.clone(), prefix: prefix.clone() },
        tenant,
        consumer,
        prefix,
        state: if expired { KeyState::Expired } else { KeyState::Active },
        kept,
        scopes: scopes.as_ref().map(texts),
        created_at,
        expires_at,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_id_of_a_key_is_read_as_it_was_written() {
        for text in ["acme.AbCd0123", "acme.eu.west.abcdefgh"] {
            assert_eq!(text.parse::<KeyId>().unwrap().to_string(), text);
        }
        assert_eq!("acme.eu.abcdefgh".parse::<KeyId>().unwrap().tenant.as_str(), "acme.eu");
        for text in [
            "",
            "acme",
            "abcdefgh",
            ".abcdefgh",
            "acme.short",
            "acme.abc-defgh",
            "Acme.abcdefgh",
            "acme.sk_abcdefgh_secret",
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(InvalidKeyId), "{text}");
        }
    }
}
