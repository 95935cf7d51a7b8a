//! Who did what. Each entry is hashed together with the hash of the one before it, so that none can be altered, taken out
//! or put elsewhere without that showing; the last hash stands in the locked row, so that a cut end shows too.
//!
//! The entry of a revision holds a hash of the documents that it changed, and that of other rows that operators write hashes
//! of them: they cannot be altered there either (`rows`, `verify`). Who can write into the store could make all hashes anew, but has
//! neither key that they are authenticated and signed with (`seals`).

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Author, BATCH, PATIENCE, Store, StoreError,
    entities::{audit_log, control, revision_change},
    number,
    rows::Row,
    seals::TrailKeys,
    signed,
    verify::Fault,
    within,
    writing::hex,
};

/// What stands before the first entry.
pub(crate) const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The member of an entry's detail that holds the hash of what a revision changed.
pub(super) const DOCUMENTS: &str = "documents";

/// The member of an entry's detail that tells what rows are since.
pub(super) const ROWS: &str = "rows";

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// What is to be kept of something that was done, or refused.
#[derive(Debug)]
pub struct Entry<'a> {
    pub outcome: Outcome,
    pub tenant: Option<&'a str>,
    pub revision: Option<u64>,
    pub detail: Map<String, Value>,
}

impl Entry<'_> {
    pub fn done() -> Self {
        Self { outcome: Outcome::Done, tenant: None, revision: None, detail: Map::new() }
    }

    pub fn refused() -> Self {
        Self { outcome: Outcome::Refused, ..Self::done() }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(key.to_owned(), value.into());
        self
    }

    /// What a row is since.
    #[must_use]
    pub(super) fn row<R: Row>(self, row: &R) -> Self {
        self.told(row_name(R::TABLE, row.id()), Some(fingerprint(row)))
    }

    /// That a row is gone.
    #[must_use]
    pub(super) fn gone<R: Row>(self, id: Uuid) -> Self {
        self.told(row_name(R::TABLE, id), None)
    }

    fn told(mut self, name: String, state: Option<String>) -> Self {
        let rows = self.detail.entry(ROWS).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(rows) = rows {
            rows.insert(name, state.into());
        }
        self
    }
}

/// An entry as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditRow {
    pub number: u64,
    /// RFC 3339.
    pub at: String,
    pub actor: String,
    pub actor_id: Option<String>,
    pub address: Option<String>,
    pub action: String,
    pub tenant: Option<String>,
    pub outcome: String,
    pub revision: Option<u64>,
    pub request: String,
    #[schema(value_type = Object)]
    pub detail: Value,
    /// SHA-256 over the hash of the entry before and this one.
    pub hash: String,
}

/// Which entries are asked for.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub actor: Option<String>,
    pub action: Option<String>,
    pub tenant: Option<String>,
}

/// What verifying the trail came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Verdict {
    pub entries: u64,
    /// Of the last entry.
    pub hash: String,
    /// The first hundred.
    pub faults: Vec<Fault>,
}

impl Store {
    /// Keeps what was refused, or done without changing anything here.
    pub async fn record(&self, by: &Author, entry: Entry<'_>) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let mut writing = self.writing().await?;
            writing.audit(by, entry).await?;
            writing.finish().await
        })
        .await
    }

    /// Entries before a number, the newest first.
    pub async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<u64>,
        most: u64,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let mut find = audit_log::Entity::find();
        for (column, value) in [
            (audit_log::Column::Actor, &filter.actor),
            (audit_log::Column::Action, &filter.action),
            (audit_log::Column::Tenant, &filter.tenant),
        ] {
            if let Some(value) = value {
                find = find.filter(column.eq(value.as_str()));
            }
        }
        if let Some(before) = before {
            find = find.filter(audit_log::Column::Number.lt(signed(before)));
        }
        let find = find.order_by_desc(audit_log::Column::Number).limit(most);
        within(PATIENCE, async { Ok(find.all(&self.0.database).await?.into_iter().map(AuditRow::from).collect()) })
            .await
    }

    /// Entries after a number, the oldest first: for exports.
    pub async fn audit_after(&self, after: u64) -> Result<Vec<AuditRow>, StoreError> {
        let rows = entries_after(&self.0.database, signed(after));
        within(PATIENCE, async { Ok(rows.await?.into_iter().map(AuditRow::from).collect()) }).await
    }
}

pub(super) async fn entries_after(
    connection: &impl sea_orm::ConnectionTrait,
    after: i64,
) -> Result<Vec<audit_log::Model>, StoreError> {
    let find = audit_log::Entity::find().filter(audit_log::Column::Number.gt(after));
    Ok(find.order_by_asc(audit_log::Column::Number).limit(BATCH as u64).all(connection).await?)
}

/// A hash of what a revision changed, document by document in the order of their names.
#[derive(Debug, Default)]
pub(super) struct DocumentsHash(Sha256);

impl DocumentsHash {
    pub(super) fn add(&mut self, change: &revision_change::Model) {
        for text in [Some(&change.tenant), change.before.as_ref(), change.after.as_ref()] {
            // One more than the length, so that nothing is not the same as an empty text.
            self.0.update(text.map_or(0, |text| text.len() as u64 + 1).to_be_bytes());
            self.0.update(text.map_or("", String::as_str));
        }
    }

    pub(super) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The entry that follows upon the last one.
pub(super) fn next(
    keys: &TrailKeys,
    control: &control::Model,
    now: OffsetDateTime,
    by: &Author,
    entry: Entry<'_>,
) -> audit_log::Model {
    let mut row = audit_log::Model {
        number: control.audit_number + 1,
        at: now.format(&Rfc3339).unwrap_or_default(),
        actor: by.name.clone(),
        actor_id: by.operator().map(|id| id.to_string()),
        address: by.address.map(|address| address.to_string()),
        action: by.action.to_owned(),
        tenant: entry.tenant.map(str::to_owned),
        outcome: entry.outcome.as_str().to_owned(),
        revision: entry.revision.map(signed),
        request: by.request.clone(),
        detail: Value::Object(entry.detail).to_string(),
        hash: String::new(),
        mac: None,
    };
    row.hash = hash(&control.audit_hash, &row);
    row.mac = Some(keys.mac(&row.hash));
    row
}

/// SHA-256 over the hash before, and the entry as JSON with its members in this order.
pub(super) fn hash(before: &str, row: &audit_log::Model) -> String {
    let audit_log::Model {
        number,
        at,
        actor,
        actor_id,
        address,
        action,
        tenant,
        outcome,
        revision,
        request,
        detail,
        hash: _,
        mac: _,
    } = row;
    let members =
        serde_json::json!([number, at, actor, actor_id, address, action, tenant, outcome, revision, request, detail]);
    hash_of(before, &members)
}

fn hash_of(before: &str, members: &Value) -> String {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(members.to_string());
    hex(&hash.finalize())
}

impl AuditRow {
    /// The hash that it has if it is as it was made, after an entry with this hash.
    pub(crate) fn hash_after(&self, before: &str) -> String {
        let Self { number, at, actor, actor_id, address, action, tenant, outcome, revision, request, detail, hash: _ } =
            self;
        // As it stands in the store.
        let detail = detail.as_str().map_or_else(|| detail.to_string(), str::to_owned);
        let members = serde_json::json!([
            number, at, actor, actor_id, address, action, tenant, outcome, revision, request, detail
        ]);
        hash_of(before, &members)
    }
}

pub(super) fn row_name(table: &str, id: Uuid) -> String {
    format!("{table}/{id}")
}

/// A hash of a row. What is NULL is left out, so that a column that a later release adds changes nothing.
pub(super) fn fingerprint(row: &impl Serialize) -> String {
    let mut row = serde_json::to_value(row).unwrap_or_default();
    if let Value::Object(columns) = &mut row {
        columns.retain(|_, value| !value.is_null());
    }
    hex(&Sha256::digest(row.to_string()))
}

/// The detail of the entry of a revision.
pub(super) fn of_revision(revision: i64, changes: &[revision_change::Model], reason: Option<&str>) -> Entry<'static> {
    /// More names than these help nobody; the revision has them all.
    const NAMED: usize = 20;
    let mut documents = DocumentsHash::default();
    for change in changes {
        documents.add(change);
    }
    let named: Vec<&str> = changes.iter().take(NAMED).map(|change| change.tenant.as_str()).collect();
    let mut entry =
        Entry::done().with("changed", changes.len()).with("tenants", named).with(DOCUMENTS, documents.finish());
    entry.revision = Some(number(revision));
    if let Some(reason) = reason {
        entry = entry.with("reason", reason);
    }
    entry
}

impl From<audit_log::Model> for AuditRow {
    fn from(row: audit_log::Model) -> Self {
        Self {
            number: number(row.number),
            at: row.at,
            actor: row.actor,
            actor_id: row.actor_id,
            address: row.address,
            action: row.action,
            tenant: row.tenant,
            outcome: row.outcome,
            revision: row.revision.map(number),
            request: row.request,
            // Text, if somebody has altered it so that it is no JSON any more.
            detail: serde_json::from_str(&row.detail).unwrap_or(Value::String(row.detail)),
            hash: row.hash,
        }
    }
}
