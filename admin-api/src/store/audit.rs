//! Who did what. Each entry is hashed together with the hash of the one before it, so that none can be altered, taken out
//! or put elsewhere without that showing; the last hash stands in the locked row, so that a cut end shows too.
//!
//! The entry of a revision holds a hash of the documents that it changed: they cannot be altered there either.

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Author, BATCH, PATIENCE, PATIENCE_FOR_ALL, Store, StoreError,
    entities::{audit_log, control, revision_change},
    number, signed, within,
    writing::hex,
};

/// What stands before the first entry.
pub(super) const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The member of an entry's detail that holds the hash of what a revision changed.
const DOCUMENTS: &str = "documents";

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
}

/// An entry as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
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

/// What is wrong with the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditFault)]
pub struct Fault {
    /// The entry that it shows at.
    pub number: u64,
    pub what: String,
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

/// Faults beyond this number are not listed.
const MOST_FAULTS: usize = 100;

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

    /// Goes through the whole trail.
    pub async fn verify_audit(&self) -> Result<Verdict, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let transaction = self.snapshot().await?;
            let control = self.control(&transaction).await?;
            let verdict = verify(&transaction, &control).await;
            transaction.rollback().await?;
            verdict
        })
        .await
    }
}

async fn entries_after(
    connection: &impl sea_orm::ConnectionTrait,
    after: i64,
) -> Result<Vec<audit_log::Model>, StoreError> {
    let find = audit_log::Entity::find().filter(audit_log::Column::Number.gt(after));
    Ok(find.order_by_asc(audit_log::Column::Number).limit(BATCH as u64).all(connection).await?)
}

async fn verify(transaction: &DatabaseTransaction, control: &control::Model) -> Result<Verdict, StoreError> {
    let mut faults = Vec::new();
    let mut fault = |number: i64, what: String| {
        if faults.len() < MOST_FAULTS {
            faults.push(Fault { number: u64::try_from(number).unwrap_or_default(), what });
        }
    };
    let (mut last, mut entries, mut before) = (0, 0, FIRST.to_owned());
    loop {
        let rows = entries_after(transaction, last).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            if row.number != last + 1 {
                fault(row.number, format!("before it {} entries are missing", row.number - last - 1));
            } else if hash(&before, &row) != row.hash {
                fault(row.number, "it was altered, or stands where another one stood".to_owned());
            } else if !documents_are_as_hashed(transaction, &row).await? {
                fault(
                    row.number,
                    format!("the documents of revision {} were altered", row.revision.unwrap_or_default()),
                );
            }
            // What follows is judged by what stands there, so that each fault shows once.
            (last, before) = (row.number, row.hash);
            entries += 1;
        }
    }
    if last != control.audit_number || before != control.audit_hash {
        fault(last, format!("the trail ends here; its last entry was {}", control.audit_number));
    }
    Ok(Verdict { entries, hash: before, faults })
}

async fn documents_are_as_hashed(
    transaction: &DatabaseTransaction,
    row: &audit_log::Model,
) -> Result<bool, StoreError> {
    use revision_change::Column;
    let Some(revision) = row.revision else { return Ok(true) };
    let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
    let Some(expected) = detail.get(DOCUMENTS).and_then(Value::as_str) else { return Ok(true) };
    let mut documents = DocumentsHash::default();
    let mut last: Option<String> = None;
    loop {
        let mut find = revision_change::Entity::find().filter(Column::Revision.eq(revision));
        if let Some(last) = &last {
            find = find.filter(Column::Tenant.gt(last.as_str()));
        }
        let rows = find.order_by_asc(Column::Tenant).limit(BATCH as u64).all(transaction).await?;
        let Some(end) = rows.last() else { break };
        last = Some(end.tenant.clone());
        for change in &rows {
            documents.add(change);
        }
    }
    Ok(documents.finish() == expected)
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
pub(super) fn next(control: &control::Model, now: OffsetDateTime, by: &Author, entry: Entry<'_>) -> audit_log::Model {
    let mut row = audit_log::Model {
        number: control.audit_number + 1,
        at: now.format(&Rfc3339).unwrap_or_default(),
        actor: by.name.clone(),
        actor_id: by.id.map(|id| id.to_string()),
        address: by.address.map(|address| address.to_string()),
        action: by.action.to_owned(),
        tenant: entry.tenant.map(str::to_owned),
        outcome: entry.outcome.as_str().to_owned(),
        revision: entry.revision.map(signed),
        request: by.request.clone(),
        detail: Value::Object(entry.detail).to_string(),
        hash: String::new(),
    };
    row.hash = hash(&control.audit_hash, &row);
    row
}

/// SHA-256 over the hash before, and the entry as JSON with its members in this order.
fn hash(before: &str, row: &audit_log::Model) -> String {
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
    } = row;
    let members =
        serde_json::json!([number, at, actor, actor_id, address, action, tenant, outcome, revision, request, detail]);
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(members.to_string());
    hex(&hash.finalize())
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
