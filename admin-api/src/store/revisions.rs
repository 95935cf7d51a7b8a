//! What was changed, when and by whom; and how to get back.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select, SelectGetableTuple,
    Selector,
};
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

/// A part of what changed, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangesPage {
    pub changes: Vec<DocumentChange>,
    /// The name after which there may be more.
    pub next: Option<String>,
}

/// Documents that are read at a time, and the bytes of them from which on a page is full.
const AT_A_TIME: usize = 20;
const MOST_PAGE_BYTES: usize = 4 << 20;

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

    /// A revision, and of what it changed the documents after a name, `most` of them or fewer.
    pub async fn revision(
        &self,
        revision: u64,
        after: Option<&str>,
        most: u64,
    ) -> Result<Option<(RevisionRow, ChangesPage)>, StoreError> {
        use revision_change::Column;
        within(PATIENCE, async {
            let database = &self.0.database;
            let row = revision::Entity::find_by_id(signed(revision)).one(database).await?;
            let Some(row) = row else { return Ok(None) };
            let of_revision = || revision_change::Entity::find().filter(Column::Revision.eq(row.number));
            let names = names(of_revision(), after, most).all(database).await?;
            let mut filling = Filling::new(names, most);
            while let Some(names) = filling.next() {
                let find = of_revision().filter(Column::Tenant.is_in(names)).order_by_asc(Column::Tenant);
                for change in find.all(database).await? {
                    let tenant = tenant_of(&change.tenant)?;
                    filling.add(DocumentChange { tenant, before: change.before, after: change.after });
                }
            }
            Ok(Some((row.into(), filling.page())))
        })
        .await
    }

    /// How documents differ between two revisions: those after a name, `most` of them or fewer. None if one of the revisions is
    /// none; 0 is the empty store.
    pub async fn difference(
        &self,
        from: u64,
        to: u64,
        after: Option<&str>,
        most: u64,
    ) -> Result<Option<ChangesPage>, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let transaction = self.snapshot().await?;
            let newest = number(self.control(&transaction).await?.revision);
            if from.max(to) > newest {
                return Ok(None);
            }
            let (low, high) = (from.min(to), from.max(to));
            let names = names(between(low, high), after, most).all(&transaction).await?;
            let mut filling = Filling::new(names, most);
            while let Some(names) = filling.next() {
                let before = states(&transaction, low, high, End::Before, Some(&names)).await?;
                let mut after = states(&transaction, low, high, End::After, Some(&names)).await?;
                for (tenant, before) in before {
                    let after = after.remove(&tenant).flatten();
                    let (before, after) = if from <= to { (before, after) } else { (after, before) };
                    if before != after {
                        filling.add(DocumentChange { tenant: tenant_of(&tenant)?, before, after });
                    }
                }
            }
            transaction.rollback().await?;
            Ok(Some(filling.page()))
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
            let was = states(&writing.transaction, revision, newest, End::Before, None).await?;
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

/// Documents that changed after `low` and up to `high`.
fn between(low: u64, high: u64) -> Select<revision_change::Entity> {
    use revision_change::Column;
    let find = revision_change::Entity::find();
    find.filter(Column::Revision.gt(signed(low))).filter(Column::Revision.lte(signed(high)))
}

/// The names of documents that changed, one more than belong on a page.
fn names(of: Select<revision_change::Entity>, after: Option<&str>, most: u64) -> Selector<SelectGetableTuple<String>> {
    use revision_change::Column;
    let find = of.select_only().column(Column::Tenant).group_by(Column::Tenant).order_by_asc(Column::Tenant);
    let find = match after {
        Some(after) => find.filter(Column::Tenant.gt(after)),
        None => find,
    };
    find.limit(most + 1).into_tuple()
}

/// A page in the making: documents may be large, so that it is full before there are very many.
struct Filling {
    names: Vec<String>,
    most: usize,
    taken: usize,
    bytes: usize,
    changes: Vec<DocumentChange>,
}

impl Filling {
    fn new(names: Vec<String>, most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(names.len());
        Self { names, most, taken: 0, bytes: 0, changes: Vec::new() }
    }

    /// Names to be read next.
    fn next(&mut self) -> Option<Vec<String>> {
        if self.bytes >= MOST_PAGE_BYTES || self.taken == self.most {
            return None;
        }
        let end = self.most.min(self.taken + AT_A_TIME);
        let names = self.names[self.taken..end].to_vec();
        self.taken = end;
        Some(names)
    }

    fn add(&mut self, change: DocumentChange) {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.bytes += length(&change.before) + length(&change.after);
        self.changes.push(change);
    }

    fn page(self) -> ChangesPage {
        let last = self.taken.checked_sub(1).filter(|_| self.taken < self.names.len());
        ChangesPage { changes: self.changes, next: last.map(|last| self.names[last].clone()) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Before,
    After,
}

/// What every document, or every one of these names, that was changed after `low` and up to `high` was before, or is after.
async fn states(
    connection: &impl ConnectionTrait,
    low: u64,
    high: u64,
    end: End,
    only: Option<&[String]>,
) -> Result<BTreeMap<String, Option<String>>, StoreError> {
    use revision_change::Column;
    let find = match only {
        Some(names) => between(low, high).filter(Column::Tenant.is_in(names)),
        None => between(low, high),
    };
    let find = find.select_only().column(Column::Tenant).group_by(Column::Tenant);
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
