//! What expires: tokens of this API, and API keys of tenants. Documents are read once, and then as they change.

use std::collections::HashMap;

use seiketsu_config::{tenant::Tenant, values::Id};
use time::{Duration, OffsetDateTime};

use super::Facts;
use crate::store::{Store, StoreError, StoredDocument, alerts::Found};

/// What has expired is told of for as long: then whoever needed it has noticed.
const AFTERWARDS: Duration = Duration::days(1);

/// Keys that expire, by tenant.
/// If more documents have changed, all are read.
const MOST_CHANGES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The revision that they are of.
    at: Option<u64>,
    of_tenants: HashMap<Id, Vec<Key>>,
}

#[derive(Debug, Clone)]
struct Key {
    consumer: Id,
    prefix: String,
    expires: OffsetDateTime,
}

impl Keys {
    async fn follow(&mut self, store: &Store, newest: u64) -> Result<(), StoreError> {
        if self.at.is_some_and(|at| at >= newest) {
            return Ok(());
        }
        let changes = match self.at {
            Some(at) => store.changes_since(at, MOST_CHANGES).await?,
            None => None,
        };
        let changes = if let Some(changes) = changes {
            changes
        } else {
            self.of_tenants.clear();
            store.whole().await?
        };
        for id in &changes.gone {
            self.of_tenants.remove(id);
        }
        for document in changes.put {
            // Most have none, and need not be read.
            let keys = if document.content.contains("\"expires\"") { keys_of(&document)? } else { Vec::new() };
            let Some(id) = document.tenant else { continue };
            if keys.is_empty() {
                self.of_tenants.remove(&id);
            } else {
                self.of_tenants.insert(id, keys);
            }
        }
        self.at = Some(changes.to.revision);
        Ok(())
    }
}

fn keys_of(document: &StoredDocument) -> Result<Vec<Key>, StoreError> {
    let tenant: Tenant = document.parse()?;
    let keys = tenant.consumers.into_iter().flat_map(|consumer| {
        let id = consumer.id;
        consumer
            .keys
            .into_iter()
            .filter_map(move |key| Some(Key { consumer: id.clone(), prefix: key.prefix, expires: key.expires? }))
    });
    Ok(keys.collect())
}

pub(super) async fn expiring(facts: &mut Facts<'_>, within_days: u32) -> Result<Vec<Found>, StoreError> {
    let (from, to) = (facts.now - AFTERWARDS, facts.now + Duration::days(within_days.into()));
    let tokens = facts.store.tokens_expiring(from, to).await?.into_iter().map(|(name, id, expires)| Found {
        subject: format!("token {id}"),
        tenant: None,
        summary: format!("the token {name:?} expires {}", told(expires)),
    });
    facts.keys.follow(facts.store, facts.newest).await?;
    let keys = facts.keys.of_tenants.iter().flat_map(|(tenant, keys)| keys.iter().map(move |key| (tenant, key)));
    let keys = keys.filter(|(_, key)| key.expires > from && key.expires < to).map(|(tenant, key)| Found {
        subject: format!("key {} of {}, tenant {tenant}", key.prefix, key.consumer),
        tenant: Some(tenant.clone()),
        summary: format!("the key {} of the consumer {} expires {}", key.prefix, key.consumer, told(key.expires)),
    });
    Ok(tokens.chain(keys).collect())
}

fn told(at: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    at.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_default()
}
