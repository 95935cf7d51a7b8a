//! What was changed, when and by whom; and how to get back.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use seiketsu_config::values::Id;
use serde::Serialize;
use time::OffsetDateTime;

use super::{
    Author, BATCH, ChangeSet, Expected, Once, PATIENCE, PATIENCE_FOR_ALL, Store, StoreError, StoredDocument,
    WriteError, Written,
    documents::Answer,
    entities::{revision, revision_change},
    id_of, number, signed, within,
};

/// A revision, without the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = RevisionSummary)]
pub struct RevisionRow {
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    pub author: String,
    /// The operation that made it.
    pub action: String,
    pub reason: Option<String>,
    /// How many documents it changed.
    pub changed: u64,
}

/// How a document differs between two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange {
    /// None: the head.
    pub tenant: Option<Id>,
    /// JSON; none, if there was none.
    pub before: Option<String>,
    pub after: Option<String>,
}

impl Store {
    /// Revisions before a number, the newest first.
    pub async fn revisions(&self, before: Option<u64>, most: u64) -> Result<Vec<RevisionRow>, StoreError> {
        let mut find = revision::Entity::find();
        if let Some(before) = before {
            find = find.filter(revision::Column::Number.lt(signed(before)));
        }
        let find = find.order_by_desc(revision::Column::Number).limit(most);
        within(PATIENCE, async { Ok(find.all(&self.0.database).await?.into_iter().map(RevisionRow::from).collect()) })
            .await
    }

    /// A revision, and what it changed.
    pub async fn revision(&self, revision: u64) -> Result<Option<(RevisionRow, Vec<DocumentChange>)>, StoreError> {
        within(PATIENCE, async {
            let row = revision::Entity::find_by_id(signed(revision)).one(&self.0.database).await?;
            let Some(row) = row else { return Ok(None) };
            let find = revision_change::Entity::find().filter(revision_change::Column::Revision.eq(row.number));
            let changes = find.order_by_asc(revision_change::Column::Tenant).all(&self.0.database).await?;
            let changes = changes.into_iter().map(|change| {
                let tenant = tenant_of(&change.tenant)?;
                Ok(DocumentChange { tenant, before: change.before, after: change.after })
            });
            Ok(Some((row.into(), changes.collect::<Result<_, StoreError>>()?)))
        })
        .await
    }

    /// How every document differs between two revisions. None if one of them is none; 0 is the empty store.
    pub async fn difference(&self, from: u64, to: u64) -> Result<Option<Vec<DocumentChange>>, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let transaction = self.snapshot().await?;
            let newest = number(self.control(&transaction).await?.revision);
            if from.max(to) > newest {
                return Ok(None);
            }
            let (low, high) = (from.min(to), from.max(to));
            let before = states(&transaction, low, high, End::Before).await?;
            let mut after = states(&transaction, low, high, End::After).await?;
            transaction.rollback().await?;
            let changes = before.into_iter().map(|(tenant, before)| {
                let after = after.remove(&tenant).flatten();
                let (before, after) = if from <= to { (before, after) } else { (after, before) };
                Ok(DocumentChange { tenant: tenant_of(&tenant)?, before, after })
            });
            let mut changes: Vec<DocumentChange> = changes.collect::<Result<_, StoreError>>()?;
            changes.retain(|change| change.before != change.after);
            Ok(Some(changes))
        })
        .await
    }

    /// Makes every document what it was in a revision; 0 is the empty store. It is a revision of its own.
    pub async fn rollback(
        &self,
        by: &Author,
        revision: u64,
        expected: Option<u64>,
        reason: Option<String>,
        once: Option<(&Once, Answer<'_>)>,
    ) -> Result<Written, WriteError> {
        within(PATIENCE_FOR_ALL, async {
            let writing = self.begin(by, once).await?;
            writing.expect(expected.map(Expected::Newest).as_ref()).await?;
            let newest = number(writing.control.revision);
            if revision > newest {
                return Err(WriteError::NoRevision(revision));
            }
            let was = states(&writing.transaction, revision, newest, End::Before).await?;
            let reason = reason.or_else(|| Some(format!("back to revision {revision}")));
            let mut change = ChangeSet { reason, ..ChangeSet::default() };
            for (tenant, content) in was {
                let tenant = tenant_of(&tenant)?;
                match (tenant, content) {
                    (None, content) => {
                        let content = content.unwrap_or_default();
                        change.head = Some(StoredDocument { tenant: None, revision, content }.parse_head()?);
                    }
                    (Some(id), None) => change.remove.push(id),
                    (tenant, Some(content)) => {
                        change.put.push(StoredDocument { tenant, revision, content }.parse()?);
                    }
                }
            }
            writing.carry_out(by, change, once).await
        })
        .await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Before,
    After,
}

/// What every document that was changed after `low` and up to `high` was before, or is after.
async fn states(
    connection: &impl ConnectionTrait,
    low: u64,
    high: u64,
    end: End,
) -> Result<BTreeMap<String, Option<String>>, StoreError> {
    use revision_change::Column;
    let find = revision_change::Entity::find()
        .select_only()
        .column(Column::Tenant)
        .filter(Column::Revision.gt(signed(low)))
        .filter(Column::Revision.lte(signed(high)))
        .group_by(Column::Tenant);
    let find = match end {
        End::Before => find.column_as(Column::Revision.min(), "revision"),
        End::After => find.column_as(Column::Revision.max(), "revision"),
    };
    let ends: Vec<(String, i64)> = find.into_tuple().all(connection).await?;
    // By revision: those of one revision are read together.
    let mut of_revision: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for (tenant, revision) in ends {
        of_revision.entry(revision).or_default().push(tenant);
    }
    let mut states = BTreeMap::new();
    for (revision, tenants) in of_revision {
        for tenants in tenants.chunks(BATCH) {
            let find = revision_change::Entity::find().filter(Column::Revision.eq(revision));
            for row in find.filter(Column::Tenant.is_in(tenants)).all(connection).await? {
                let state = if end == End::Before { row.before } else { row.after };
                states.insert(row.tenant, state);
            }
        }
    }
    Ok(states)
}

fn tenant_of(name: &str) -> Result<Option<Id>, StoreError> {
    (!name.is_empty()).then(|| id_of(name)).transpose()
}

impl From<revision::Model> for RevisionRow {
    fn from(row: revision::Model) -> Self {
        Self {
            revision: number(row.number),
            at: row.at,
            author: row.author,
            action: row.action,
            reason: row.reason,
            changed: number(row.changed),
        }
    }
}
