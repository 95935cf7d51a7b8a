//! Rows that operators write. The entry of the write tells what each is since (`audit`), so that verifying finds one that was
//! altered, taken away, or brought back as it once was. And each carries a MAC, so that one is known at once, when it is
//! used, that somebody has written who lacks the key.
//!
//! Columns that the system moves on are in neither: the entities leave them out when they are serialized.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sea_orm::{
    ActiveModelTrait as _, ActiveValue, ColumnTrait as _, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait,
    FromQueryResult, IdenStatic as _, IntoActiveModel as _, Iterable as _, PrimaryKeyToColumn as _, QueryFilter as _,
    QueryOrder as _, QueryResult, QuerySelect as _, QueryTrait as _, Select,
};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Author, PATIENCE, Store, StoreError,
    audit::{self, Entry, ROWS, entries_after, fingerprint, hash, row_name},
    entities::{alert, alert_rule, audit_log, control, operator, order, siem_sink, token, webhook},
    number,
    orders::ORDERS,
    seals::TrailKeys,
    within,
    writing::hex,
};

/// A row that the trail tells of.
pub(super) trait Row: Serialize + Sized {
    const TABLE: &'static str;

    fn id(&self) -> Uuid;
    fn mac(&self) -> Option<&str>;
    fn with_mac(self, mac: String) -> Self;
}

/// What is there of a row.
#[derive(Debug)]
pub(super) struct There {
    pub(super) fingerprint: String,
    pub(super) is_authentic: bool,
}

/// A row that cannot be read.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) table: String,
    /// Its key, as far as that can be read.
    pub(super) row: String,
    pub(super) why: String,
}

macro_rules! rows {
    ($($entity:ident: $table:literal;)+) => {
        $(impl Row for $entity::Model {
            const TABLE: &'static str = $table;

            fn id(&self) -> Uuid {
                self.id
            }

            fn mac(&self) -> Option<&str> {
                self.mac.as_deref()
            }

            fn with_mac(self, mac: String) -> Self {
                Self { mac: Some(mac), ..self }
            }
        })+

        /// All of them, by the names that the trail has for them; and those that cannot be read.
        pub(super) async fn all(
            transaction: &DatabaseTransaction,
            keys: &TrailKeys,
        ) -> Result<(HashMap<String, There>, Vec<Damaged>), StoreError> {
            let (mut there, mut damaged) = (HashMap::new(), Vec::new());
            $(for row in read(transaction, $entity::Entity::find()).await? {
                match row {
                    Ok(row) => {
                        let is = There { fingerprint: fingerprint(&row), is_authentic: keys.is_authentic(&row) };
                        there.insert(row_name($table, row.id), is);
                    }
                    Err(row) => damaged.push(row),
                }
            })+
            Ok((there, damaged))
        }

        /// Gives MACs to those of these tables that `is_good` says that they may have one, by name and fingerprint; and tells
        /// of them.
        async fn authenticate_all(
            transaction: &DatabaseTransaction,
            keys: &TrailKeys,
            tables: &[&str],
            is_good: impl Fn(&str, &str) -> bool,
        ) -> Result<Entry<'static>, StoreError> {
            let mut entry = Entry::done();
            $(if tables.contains(&$table) {
                for row in read(transaction, $entity::Entity::find()).await?.into_iter().flatten() {
                    if is_good(&row_name($table, row.id), &fingerprint(&row)) {
                        entry = entry.row(&row);
                        let mac = ActiveValue::Set(keys.authenticate(row.clone()).mac);
                        let id = ActiveValue::Unchanged(row.id);
                        $entity::ActiveModel { id, mac, ..Default::default() }.update(transaction).await?;
                    }
                }
            })+
            Ok(entry)
        }

        const ALL: &[&str] = &[$($table),+];
    };
}

rows! {
    operator: "operators";
    token: "tokens";
    order: "orders";
    alert_rule: "alert_rules";
    alert: "alerts";
    webhook: "webhooks";
    siem_sink: "siem_sinks";
}

/// Whether the trail told of rows of the table before they had MACs.
fn is_told_before(name: &str) -> bool {
    let told = [operator::Model::TABLE, token::Model::TABLE];
    name.split_once('/').is_some_and(|(table, _)| told.contains(&table))
}

/// Those of a table that stand as they were written. Whoever is about to change such rows asks before.
pub(super) async fn authentic(
    transaction: &DatabaseTransaction,
    keys: &TrailKeys,
    table: &str,
) -> Result<HashSet<String>, StoreError> {
    if !ALL.contains(&table) {
        return Ok(HashSet::new());
    }
    let (there, _) = all(transaction, keys).await?;
    let is_it = |name: &str| name.split_once('/').is_some_and(|(of, _)| of == table);
    Ok(there.into_iter().filter(|(name, there)| is_it(name) && there.is_authentic).map(|(name, _)| name).collect())
}

/// They were changed, and are told of as they are now.
pub(super) async fn tell_of(
    transaction: &DatabaseTransaction,
    keys: &TrailKeys,
    names: &HashSet<String>,
    table: &str,
) -> Result<Entry<'static>, StoreError> {
    authenticate_all(transaction, keys, &[table], |name, _| names.contains(name)).await
}

impl TrailKeys {
    /// The row, with the MAC that it counts by.
    pub(super) fn authenticate<R: Row>(&self, row: R) -> R {
        let mac = self.mac_of(&row);
        row.with_mac(mac)
    }

    /// Whether it stands as it was written.
    pub(super) fn is_authentic<R: Row>(&self, row: &R) -> bool {
        row.mac() == Some(&*self.mac_of(row))
    }

    fn mac_of<R: Row>(&self, row: &R) -> String {
        self.mac_of_row(&row_name(R::TABLE, row.id()), &fingerprint(row))
    }
}

/// Rows that were refused, and when the trail was told of it.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<HashMap<String, Instant>>);

/// How the audit trail calls it, and by whom.
const ROW_REFUSED: &str = "refuse_row";
const GUARD: &str = "row-guard";

/// One that is refused again and again is told of once in so long: each entry has all of the trail verified.
const AGAIN: Duration = Duration::from_hours(1);

/// The trail is told of so many in that time: they are enough for an alert, and verifying names all.
const MOST: usize = 100;

impl Refused {
    /// Whether the trail is to be told.
    fn is_new(&self, name: &str) -> bool {
        let mut told = self.0.lock();
        if told.len() >= MOST {
            told.retain(|_, at| at.elapsed() < AGAIN);
        }
        let is_new = told.get(name).map_or(told.len() < MOST, |at| at.elapsed() >= AGAIN);
        if is_new {
            told.insert(name.to_owned(), Instant::now());
        }
        is_new
    }

    fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedRow {
    /// The entry that tells of it.
    pub(crate) entry: u64,
    /// Table and id.
    pub(crate) row: String,
}

impl Store {
    /// Whether a row stands as it was written. One that does not counts as none, and the trail is told: whoever leads looks
    /// there, and opens an alert.
    pub(super) async fn counts<R: Row + Sync>(&self, row: &R) -> bool {
        if self.0.trail.is_authentic(row) {
            return true;
        }
        let name = row_name(R::TABLE, row.id());
        if self.0.refused.is_new(&name) {
            tracing::error!(row = name, "a row was made, or altered, by somebody who lacks the key; it counts as none");
            let by = Author {
                id: None,
                name: GUARD.to_owned(),
                address: None,
                request: Uuid::now_v7().to_string(),
                action: ROW_REFUSED,
            };
            if let Err(error) = self.record(&by, Entry::refused().with("row", &*name)).await {
                tracing::warn!(%error, row = name, "the audit trail cannot be told of a row that was refused");
                self.0.refused.forget(&name);
            }
        }
        false
    }

    /// Those that stand as they were written.
    pub(super) async fn counting<R: Row + Send + Sync>(&self, rows: Vec<R>) -> Vec<R> {
        let mut counting = Vec::with_capacity(rows.len());
        for row in rows {
            if self.counts(&row).await {
                counting.push(row);
            }
        }
        counting
    }

    /// The last row that was refused, by any replica.
    pub(crate) async fn last_refused_row(&self) -> Result<Option<RefusedRow>, StoreError> {
        use audit_log::Column;
        let find = audit_log::Entity::find()
            .filter(Column::Actor.eq(GUARD))
            .filter(Column::Action.eq(ROW_REFUSED))
            .order_by_desc(Column::Number)
            .limit(1);
        let found = within(PATIENCE, async { Ok::<_, StoreError>(find.one(&self.0.database).await?) }).await?;
        Ok(found.map(|entry| {
            let detail: Value = serde_json::from_str(&entry.detail).unwrap_or_default();
            RefusedRow { entry: number(entry.number), row: detail["row"].as_str().unwrap_or("?").to_owned() }
        }))
    }
}

/// The rows that are found, each by itself: that one cannot be read is no reason not to read the others.
pub(super) async fn read<E: EntityTrait>(
    connection: &impl ConnectionTrait,
    find: Select<E>,
) -> Result<Vec<Result<E::Model, Damaged>>, StoreError> {
    let found = connection.query_all_raw(find.build(connection.get_database_backend())).await?;
    let read = |row: &QueryResult| {
        // A time beyond all years, as Postgres has one, is a panic there.
        let model = catch_unwind(AssertUnwindSafe(|| E::Model::from_query_result(row, "")));
        let why = match model {
            Ok(Ok(model)) => return Ok(model),
            Ok(Err(why)) => why.to_string(),
            Err(_) => "a value is out of range".to_owned(),
        };
        Err(Damaged { table: E::default().table_name().to_owned(), row: key::<E>(row), why })
    };
    Ok(found.iter().map(read).collect())
}

/// Those of them that can be read.
pub(super) async fn readable<E: EntityTrait>(
    connection: &impl ConnectionTrait,
    find: Select<E>,
    damaged: &mut Vec<Damaged>,
) -> Result<Vec<E::Model>, StoreError> {
    let mut readable = Vec::new();
    for row in read(connection, find).await? {
        match row {
            Ok(row) => readable.push(row),
            Err(row) => damaged.push(row),
        }
    }
    Ok(readable)
}

/// What tells a row from others of its table.
fn key<E: EntityTrait>(row: &QueryResult) -> String {
    let part = |key: E::PrimaryKey| {
        let column = key.into_column();
        let column = column.as_str();
        let text = || row.try_get::<String>("", column);
        let number = || row.try_get::<i64>("", column).or_else(|_| row.try_get::<i32>("", column).map(i64::from));
        let id = || row.try_get::<Uuid>("", column);
        let bytes = || Ok::<_, DbErr>(hex(&row.try_get::<Vec<u8>>("", column)?));
        text()
            .or_else(|_| number().map(|number| number.to_string()))
            .or_else(|_| id().map(|id| id.to_string()))
            .or_else(|_| bytes())
            .unwrap_or_else(|_: DbErr| "?".to_owned())
    };
    E::PrimaryKey::iter().map(part).collect::<Vec<_>>().join("/")
}

/// What an entry tells of rows: what each is since, or that it is gone.
pub(super) fn told_in(detail: &Value) -> impl Iterator<Item = (&String, Option<&str>)> {
    detail[ROWS].as_object().into_iter().flatten().map(|(name, state)| (name, state.as_str()))
}

/// How the audit trail calls it.
pub(super) const ADOPT_ROWS: &str = "adopt_rows";

/// Rows have MACs from now on, and more of them are told of; the start that adds the columns comes here, and no other.
///
/// Of operators and tokens, only those are taken over that stand as the trail tells, so that none is that somebody has put
/// there; of all others, what there is. `is_first`: the trail has its key from this very start on, and proves nothing.
pub(super) async fn adopt(
    transaction: &DatabaseTransaction,
    keys: &TrailKeys,
    control: &mut control::Model,
    is_first: bool,
) -> Result<(), StoreError> {
    let told = told(transaction, keys).await?;
    if told.keys().any(|name| !is_told_before(name)) {
        let why = "the trail tells of them, and their columns have been taken away since: restore a backup";
        return Err(StoreError::corrupt("the MACs of rows", &why));
    }
    let is_good = |name: &str, fingerprint: &str| {
        is_first || !is_told_before(name) || told.get(name).is_some_and(|told| told == fingerprint)
    };
    let entry = authenticate_all(transaction, keys, ALL, is_good).await?;
    warn_of_left_out(transaction, keys).await?;
    if entry.detail.is_empty() && control.orders == 0 {
        return Ok(());
    }
    let entry = entry.with(ORDERS, control.orders);
    let by = Author {
        id: None,
        name: "seiketsu-admin".to_owned(),
        address: None,
        request: Uuid::now_v7().to_string(),
        action: ADOPT_ROWS,
    };
    let row = audit::next(keys, control, OffsetDateTime::now_utc(), &by, entry);
    control.audit_number = row.number;
    control.audit_hash.clone_from(&row.hash);
    audit_log::Entity::insert(row.into_active_model()).exec_without_returning(transaction).await?;
    control.clone().into_active_model().reset_all().update(transaction).await?;
    Ok(())
}

/// Whoever could call until now, and cannot any more, is to be found in the log.
async fn warn_of_left_out(transaction: &DatabaseTransaction, keys: &TrailKeys) -> Result<(), StoreError> {
    let why = "it is not as the audit trail tells, and is not taken over: it counts as none";
    for row in read(transaction, operator::Entity::find()).await?.into_iter().flatten() {
        if !keys.is_authentic(&row) {
            tracing::warn!(operator = row.name, id = %row.id, "{why}");
        }
    }
    for row in read(transaction, token::Entity::find()).await?.into_iter().flatten() {
        if !keys.is_authentic(&row) {
            tracing::warn!(token = row.name, id = %row.id, "{why}");
        }
    }
    Ok(())
}

/// The last that the trail tells of each row that is there, as far as its entries are its own.
async fn told(transaction: &DatabaseTransaction, keys: &TrailKeys) -> Result<HashMap<String, String>, StoreError> {
    let (mut told, mut last, mut before) = (HashMap::new(), 0, audit::FIRST.to_owned());
    loop {
        let entries = entries_after(transaction, last).await?;
        let Some(end) = entries.last() else { return Ok(told) };
        last = end.number;
        for entry in entries {
            let is_own = hash(&before, &entry) == entry.hash && keys.is_mac(&entry);
            let detail: Value = serde_json::from_str(&entry.detail).unwrap_or_default();
            for (name, state) in told_in(&detail).filter(|_| is_own) {
                if let Some(state) = state {
                    told.insert(name.clone(), state.to_owned());
                } else {
                    told.remove(name);
                }
            }
            before = entry.hash;
        }
    }
}
