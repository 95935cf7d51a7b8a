//! Lists of tenants.

use std::collections::BTreeSet;

use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect};
use seiketsu_config::values::{HostPattern, Id};
use serde::Deserialize;
use time::OffsetDateTime;

use super::{
    PATIENCE, Store, StoreError,
    entities::{host, tenant},
    id_of, number, within,
};

/// A tenant in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    pub id: Id,
    /// The revision that it was last changed in.
    pub revision: u64,
    pub hosts: Vec<String>,
    pub plan: Option<String>,
    pub updated_at: OffsetDateTime,
}

impl Store {
    /// Tenants after a name, in the order of their names: all, or those of `only`, or the one that is served under a host.
    pub async fn tenants(
        &self,
        after: Option<&Id>,
        most: u64,
        host: Option<&HostPattern>,
        only: Option<&BTreeSet<Id>>,
    ) -> Result<Vec<TenantRow>, StoreError> {
        let mut find = among(only);
        if let Some(after) = after {
            find = find.filter(tenant::Column::Name.gt(after.as_str()));
        }
        within(PATIENCE, async {
            if let Some(host) = host {
                let hosts = host::Entity::find().filter(host::Column::Pattern.is_in(patterns(host)));
                let hosts = hosts.all(&self.0.database).await?;
                // The exact name goes before wildcards, and a longer wildcard before a shorter one.
                let found = hosts.into_iter().max_by_key(|row| (!row.pattern.starts_with("*."), row.pattern.len()));
                let Some(found) = found else { return Ok(Vec::new()) };
                find = find.filter(tenant::Column::Id.eq(found.tenant_id));
            }
            let rows = find.order_by_asc(tenant::Column::Name).limit(most).all(&self.0.database).await?;
            rows.into_iter().map(row_of).collect()
        })
        .await
    }

    /// How many there are: all, or of `only`.
    pub async fn count_tenants(&self, only: Option<&BTreeSet<Id>>) -> Result<u64, StoreError> {
        within(PATIENCE, async { Ok(among(only).count(&self.0.database).await?) }).await
    }
}

fn among(only: Option<&BTreeSet<Id>>) -> sea_orm::Select<tenant::Entity> {
    let find = tenant::Entity::find();
    match only {
        Some(only) => find.filter(tenant::Column::Name.is_in(only.iter().map(Id::as_str))),
        None => find,
    }
}

/// Whatever may match a host: itself, and a wildcard for each of the domains above it.
pub(super) fn patterns(host: &HostPattern) -> Vec<String> {
    let mut patterns = vec![host.to_string()];
    let mut rest = host.name();
    while let Some((_, above)) = rest.split_once('.') {
        patterns.push(format!("*.{above}"));
        rest = above;
    }
    patterns
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn row_of(row: tenant::Model) -> Result<TenantRow, StoreError> {
    /// The rest is passed over.
    #[derive(Deserialize)]
    struct Summary {
        hosts: Vec<String>,
        plan: Option<String>,
    }
    let summary: Summary =
        serde_json::from_str(&row.content).map_err(|why| StoreError::corrupt(format!("tenant {}", row.name), &why))?;
    Ok(TenantRow {
        id: id_of(&row.name)?,
        revision: number(row.revision),
        hosts: summary.hosts,
        plan: summary.plan,
        updated_at: row.updated_at,
    })
}
