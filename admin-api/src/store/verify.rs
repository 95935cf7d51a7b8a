//! Whether the store is what its audit trail says. Each entry stands for all before it; the entry of a revision stands for
//! the documents that it changed, and what is served now is what the last revision of each document left, with the tables
//! that follow from it; the entries of other things that operators write say what their rows are. So that whatever is
//! altered shows, with its table and row.

mod documents;

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QueryResult, QuerySelect,
    QueryTrait, Select, sea_query::Query,
};
use serde::Serialize;
use serde_json::Value;
use time::{Duration, OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    BATCH, PATIENCE_FOR_ALL, Store, StoreError,
    audit::{DOCUMENTS, DocumentsHash, FIRST, Verdict, hash},
    entities::{audit_log, audit_seal, control, own_secret, revision, revision_change, sealing_key},
    known::STORE_SET_BACK,
    migrations,
    orders::{self, ORDERS},
    rows::{self, Damaged, There},
    seals, secrets, within,
};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditFault)]
pub struct Fault {
    /// Where it shows.
    pub table: String,
    /// What tells the row from others of its table.
    pub row: String,
    /// The entry that it shows at, if it does at one.
    pub number: Option<u64>,
    pub what: String,
}

/// Faults beyond this number are not listed.
const MOST_FAULTS: usize = 100;

/// Clocks of replicas differ: an order may be gone so long before its time.
const CLOCKS: Duration = Duration::minutes(5);

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, table: &str, row: impl ToString, what: impl Into<String>) {
        self.push(table, row, None, what.into());
    }

    fn entry(&mut self, entry: i64, what: impl Into<String>) {
        self.push("audit_log", entry, u64::try_from(entry).ok(), what.into());
    }

    #[allow(clippy::needless_pass_by_value)] // Numbers as well as names are passed.
    fn push(&mut self, table: &str, row: impl ToString, number: Option<u64>, what: String) {
        let row = row.to_string();
        // Each row once: what follows from the first that is wrong with it tells nothing more.
        let is_told = || self.0.iter().any(|fault| fault.table == table && fault.row == row);
        if self.0.len() < MOST_FAULTS && !is_told() {
            self.0.push(Fault { table: table.to_owned(), row, number, what });
        }
    }

    fn damaged(&mut self, rows: impl IntoIterator<Item = Damaged>) {
        for Damaged { table, row, why } in rows {
            let number = if table == "audit_log" { row.parse().ok() } else { None };
            self.push(&table, row, number, format!("it cannot be read: {why}"));
        }
    }

    /// Rows as they are read. One that was altered so that it cannot be is a fault, and no reason to tell of no other.
    async fn readable<E: EntityTrait>(
        &mut self,
        transaction: &DatabaseTransaction,
        find: Select<E>,
    ) -> Result<Vec<E::Model>, StoreError> {
        let mut damaged = Vec::new();
        let readable = rows::readable(transaction, find, &mut damaged).await?;
        self.damaged(damaged);
        Ok(readable)
    }
}

impl Store {
    /// Goes through the whole trail, and what it tells of.
    pub async fn verify_audit(&self) -> Result<Verdict, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let transaction = self.snapshot().await?;
            let mut faults = Faults::default();
            let control = verify_control(&transaction, &mut faults).await?;
            let trail = self.verify_trail(&transaction, control.as_ref(), &mut faults).await?;
            self.verify_rows(&transaction, &trail.rows, &mut faults).await?;
            documents::verify(&transaction, control.as_ref(), &mut faults).await?;
            self.verify_secrets(&transaction, &mut faults).await?;
            for step in migrations::missing(&transaction).await? {
                faults.add("schema_steps", step, "it is missing");
            }
            transaction.rollback().await?;
            Ok(Verdict { entries: trail.entries, hash: trail.hash, faults: faults.0 })
        })
        .await
    }

    async fn verify_trail(
        &self,
        transaction: &DatabaseTransaction,
        control: Option<&control::Model>,
        faults: &mut Faults,
    ) -> Result<Trail, StoreError> {
        let before = audit_log::Entity::find().filter(audit_log::Column::Number.lte(0)).limit(BATCH as u64);
        for row in faults.readable(transaction, before).await? {
            faults.entry(row.number, "it stands before the first entry");
        }
        let mut trail = Trail { hash: FIRST.to_owned(), ..Trail::default() };
        let (mut last, mut read_to) = (0, 0);
        loop {
            let (rows, end) = entries_after(transaction, read_to, faults).await?;
            let Some(end) = end else { break };
            let mut seals = seals_between(transaction, read_to + 1, end, faults).await?;
            let mut revisions = revisions_of(transaction, &rows, faults).await?;
            read_to = end;
            for row in rows {
                if row.number != last + 1 {
                    faults.entry(row.number, format!("before it {} entries are missing", row.number - last - 1));
                } else if hash(&trail.hash, &row) != row.hash {
                    faults.entry(row.number, "it was altered, or stands where another one stood");
                } else if !self.0.trail.is_mac(&row) {
                    faults.entry(row.number, "it was not made by this control plane, or the store's id was altered");
                }
                trail.learn(transaction, &row, &mut revisions, faults).await?;
                match seals.remove(&row.number) {
                    Some(seal) if !self.0.trail.is_sealed(&seal) || seal.hash != row.hash => {
                        faults.add("audit_seals", row.number, "it was altered, or is that of another trail");
                    }
                    None if row.number % seals::EVERY == 0 => {
                        faults.add("audit_seals", row.number, "it is missing");
                    }
                    _ => {}
                }
                // What follows is judged by what stands there, so that each fault shows once.
                (last, trail.hash) = (row.number, row.hash);
                trail.entries += 1;
            }
            for seal in seals.into_keys() {
                faults.add("audit_seals", seal, "there is no such entry");
            }
        }
        if let Some(control) = control {
            self.verify_end(control, last, &trail, faults);
        }
        for seal in seals_between(transaction, read_to + 1, i64::MAX, faults).await?.into_keys() {
            faults.add("audit_seals", seal, "there is no such entry");
        }
        for seal in seals_between(transaction, i64::MIN, 0, faults).await?.into_keys() {
            faults.add("audit_seals", seal, "there is no such entry");
        }
        let told = Query::select()
            .column(audit_log::Column::Revision)
            .from(audit_log::Entity)
            .and_where(audit_log::Column::Revision.is_not_null())
            .take();
        let untold = revision::Entity::find().filter(revision::Column::Number.not_in_subquery(told));
        for row in faults.readable(transaction, untold.limit(BATCH as u64)).await? {
            faults.add("revisions", row.number, "no entry tells of it");
        }
        Ok(trail)
    }

    /// What the one row says of the trail.
    fn verify_end(&self, control: &control::Model, last: i64, trail: &Trail, faults: &mut Faults) {
        if last != control.audit_number || trail.hash != control.audit_hash {
            faults.entry(last, format!("the trail ends here; its last entry was {}", control.audit_number));
            faults.add("control", control.id, "its last entry is not that of the trail");
        }
        if control.store != trail.store.unwrap_or(self.0.trail.store()) || control.trail != Some(self.0.trail.store()) {
            faults.add("control", control.id, "its store is another");
        }
        if control.orders != trail.orders {
            faults.add("control", control.id, format!("the trail tells of {} orders", trail.orders));
        }
    }

    /// What operators have written beside the documents.
    async fn verify_rows(
        &self,
        transaction: &DatabaseTransaction,
        told: &HashMap<String, Told>,
        faults: &mut Faults,
    ) -> Result<(), StoreError> {
        let (there, damaged) = rows::all(transaction, &self.0.trail).await?;
        faults.damaged(damaged);
        let now = OffsetDateTime::now_utc();
        let names: HashSet<&String> = there.keys().chain(told.keys()).collect();
        for name in names {
            let (table, row) = name.split_once('/').unwrap_or((name, ""));
            let told = told.get(name);
            match (there.get(name), told.and_then(|told| told.fingerprint.as_ref())) {
                (Some(_), None) => {
                    faults.add(table, row, "no entry tells that it was made, or one that it was removed");
                }
                (None, Some(_)) if told.is_some_and(|told| told.may_be_forgotten(table, now)) => {}
                (None, Some(_)) => faults.add(table, row, "it is missing"),
                (Some(There { fingerprint, .. }), Some(told)) if fingerprint != told => {
                    faults.add(table, row, "it was altered");
                }
                (Some(There { is_authentic: false, .. }), _) => faults.add(table, row, "its MAC was altered"),
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        Ok(())
    }

    async fn verify_secrets(&self, transaction: &DatabaseTransaction, faults: &mut Faults) -> Result<(), StoreError> {
        let own = faults.readable(transaction, own_secret::Entity::find()).await?;
        let wrapped = faults.readable(transaction, sealing_key::Entity::find()).await?;
        let keys = self.0.keys.read();
        for row in &own {
            if keys.open(secrets::own_place(&row.name), &row.secret).is_err() {
                faults.add("own_secrets", &row.name, "it was not sealed for this place, or was altered");
            }
        }
        for name in [secrets::AUDIT_CHAIN, secrets::AUDIT_SEAL] {
            if !own.iter().any(|row| row.name == name) {
                faults.add("own_secrets", name, "it is missing");
            }
        }
        for missing in keys.missing(&wrapped) {
            faults.add("sealing_keys", missing, "it is missing");
        }
        for row in wrapped.iter().filter(|row| !keys.opens(row)) {
            faults.add("sealing_keys", row.id, "it was not wrapped with the key that was given, or was altered");
        }
        Ok(())
    }
}

/// The one row. None: it cannot be read.
async fn verify_control(
    transaction: &DatabaseTransaction,
    faults: &mut Faults,
) -> Result<Option<control::Model>, StoreError> {
    let mut rows = faults.readable(transaction, control::Entity::find()).await?;
    for row in rows.iter().filter(|row| row.id != 1) {
        faults.add("control", row.id, "there is one, with the id 1");
    }
    if rows.is_empty() {
        faults.add("control", 1, "it is missing");
    }
    Ok(rows.pop())
}

/// What the trail tells.
#[derive(Default)]
struct Trail {
    entries: u64,
    hash: String,
    rows: HashMap<String, Told>,
    /// What the store became when it was last set back.
    store: Option<Uuid>,
    /// How many orders there were.
    orders: i64,
}

/// The last that was said of a row.
struct Told {
    /// None: it is gone.
    fingerprint: Option<String>,
    at: String,
    /// It was there before the trail told of such rows, for longer than since then.
    was_adopted: bool,
}

impl Told {
    /// Orders are kept for a while.
    fn may_be_forgotten(&self, table: &str, now: OffsetDateTime) -> bool {
        let is_old = |at: OffsetDateTime| now - at > orders::KEPT - CLOCKS;
        table == "orders" && (self.was_adopted || OffsetDateTime::parse(&self.at, &Rfc3339).is_ok_and(is_old))
    }
}

impl Trail {
    async fn learn(
        &mut self,
        transaction: &DatabaseTransaction,
        row: &audit_log::Model,
        revisions: &mut HashMap<i64, revision::Model>,
        faults: &mut Faults,
    ) -> Result<(), StoreError> {
        let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
        if row.action == STORE_SET_BACK {
            self.store = detail["store"].as_str().and_then(|id| id.parse().ok());
        }
        self.orders = detail[ORDERS].as_i64().unwrap_or(self.orders);
        for (name, state) in rows::told_in(&detail) {
            let was_adopted = row.action == rows::ADOPT_ROWS;
            let told = Told { fingerprint: state.map(str::to_owned), at: row.at.clone(), was_adopted };
            self.rows.insert(name.clone(), told);
        }
        let (Some(revision), Some(documents)) = (row.revision, detail[DOCUMENTS].as_str()) else { return Ok(()) };
        if documents_of(transaction, revision, faults).await? != documents {
            let what = format!("the documents of revision {revision} were altered");
            faults.push("revision_changes", revision, u64::try_from(row.number).ok(), what);
        }
        match revisions.remove(&revision) {
            None => faults.add("revisions", revision, "it is missing"),
            Some(found) => {
                let at = found.at.to_offset(UtcOffset::UTC).format(&Rfc3339).unwrap_or_default();
                let is_as_told = at == row.at
                    && found.author == row.actor
                    && found.action == row.action
                    && found.reason.as_deref() == detail["reason"].as_str()
                    && Some(found.changed) == detail["changed"].as_i64();
                if !is_as_told {
                    faults.add("revisions", revision, format!("it was altered: see entry {}", row.number));
                }
            }
        }
        Ok(())
    }
}

/// A batch of entries, and the number of the last one, whether it can be read or not.
async fn entries_after(
    transaction: &DatabaseTransaction,
    after: i64,
    faults: &mut Faults,
) -> Result<(Vec<audit_log::Model>, Option<i64>), StoreError> {
    let find = audit_log::Entity::find().filter(audit_log::Column::Number.gt(after));
    let find = find.order_by_asc(audit_log::Column::Number).limit(BATCH as u64);
    let mut damaged = Vec::new();
    let entries = rows::readable(transaction, find, &mut damaged).await?;
    let numbers = damaged.iter().filter_map(|row| row.row.parse().ok());
    let end = entries.iter().map(|row| row.number).chain(numbers).max();
    faults.damaged(damaged);
    Ok((entries, end))
}

async fn seals_between(
    transaction: &DatabaseTransaction,
    first: i64,
    last: i64,
    faults: &mut Faults,
) -> Result<BTreeMap<i64, audit_seal::Model>, StoreError> {
    let find = audit_seal::Entity::find().filter(audit_seal::Column::Number.between(first, last));
    Ok(faults.readable(transaction, find).await?.into_iter().map(|seal| (seal.number, seal)).collect())
}

async fn revisions_of(
    transaction: &DatabaseTransaction,
    entries: &[audit_log::Model],
    faults: &mut Faults,
) -> Result<HashMap<i64, revision::Model>, StoreError> {
    let numbers = entries.iter().filter_map(|row| row.revision);
    let find = revision::Entity::find().filter(revision::Column::Number.is_in(numbers));
    Ok(faults.readable(transaction, find).await?.into_iter().map(|row| (row.number, row)).collect())
}

/// The hash of what a revision changed.
async fn documents_of(
    transaction: &DatabaseTransaction,
    revision: i64,
    faults: &mut Faults,
) -> Result<String, StoreError> {
    use revision_change::Column;
    let mut documents = DocumentsHash::default();
    let mut last: Option<String> = None;
    loop {
        let mut find = revision_change::Entity::find().filter(Column::Revision.eq(revision));
        if let Some(last) = &last {
            find = find.filter(Column::Tenant.gt(last.as_str()));
        }
        let find = find.order_by_asc(Column::Tenant).limit(BATCH as u64);
        let rows = faults.readable(transaction, find).await?;
        let Some(end) = rows.last() else { break };
        last = Some(end.tenant.clone());
        for change in &rows {
            documents.add(change);
        }
    }
    Ok(documents.finish())
}

/// Selected columns, row by row.
async fn columns<E: EntityTrait>(
    transaction: &DatabaseTransaction,
    find: Select<E>,
) -> Result<Vec<QueryResult>, StoreError> {
    Ok(transaction.query_all_raw(find.build(transaction.get_database_backend())).await?)
}
