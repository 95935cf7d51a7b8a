//! New keys: a data key that everything is sealed with anew, and another key-encryption key.

use sea_orm::{
    ActiveModelTrait as _, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    IntoActiveModel as _, QueryFilter, QueryResult, Statement, Value, sea_query::Expr,
};
use serde::Serialize;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{KeySource, Place, SEALED, SealedColumn, destination, prefix};
use crate::store::{
    Author, BATCH, PATIENCE_FOR_ALL, Store, StoreError, audit::Entry, entities::sealing_key, rows, within,
};

/// What rotating came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Rotated {
    /// The data key that everything is sealed with now, but for what does not open.
    pub key: Uuid,
    /// How many secrets were sealed anew.
    pub resealed: u64,
    /// How many secrets do not open: they were altered, or their key is missing. They stay as they are; whoever gives a new
    /// secret in place of such a one mends that.
    pub unopened: u64,
    /// The first hundred of them.
    pub unopened_secrets: Vec<Unopened>,
}

/// A secret that does not open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = UnopenedSecret)]
pub struct Unopened {
    pub table: &'static str,
    pub column: &'static str,
    /// What tells the row from others of its table.
    pub row: String,
}

/// More of them are counted, and not named.
const MOST_UNOPENED: usize = 100;

/// A rotation that was begun is gone on with for so long; later, one begins anew.
const UNFINISHED: Duration = Duration::hours(1);

/// How far a rotation has come.
#[derive(Debug, Default)]
struct Progress {
    resealed: u64,
    unopened: u64,
    unopened_secrets: Vec<Unopened>,
}

impl Store {
    /// Makes a data key and seals everything with it that opens, batch by batch. At whatever point this process should end,
    /// all of it can be opened, and rotating again finishes what was begun.
    pub async fn rotate_keys(&self, by: &Author) -> Result<Rotated, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            self.begin_rotation(by).await?;
            let mut progress = Progress::default();
            for column in SEALED {
                let mut last = None;
                loop {
                    last = self.reseal(by, column, last, &mut progress).await?;
                    if last.is_none() {
                        break;
                    }
                }
            }
            self.retire_others(by, progress).await
        })
        .await
    }

    /// Wraps the data keys with another key-encryption key. Replicas that run go on; they are to be started with that one
    /// before keys are rotated.
    pub async fn rewrap_keys(&self, with: &KeySource) -> Result<usize, StoreError> {
        let with = with.key(true)?;
        let by = Author {
            id: None,
            name: "seiketsu-admin".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: "rewrap_keys",
        };
        let mut writing = self.writing().await?;
        let rows = sealing_key::Entity::find().all(&writing.transaction).await?;
        let count = rows.len();
        for row in rows {
            let wrapped = self.0.keys.read().wrapping.rewrap(&row, &with)?;
            let row = sealing_key::Model { wrapped, ..row };
            row.into_active_model().reset_all().update(&writing.transaction).await?;
        }
        writing.audit(&by, Entry::done().with("keys", count)).await?;
        writing.finish().await?;
        Ok(count)
    }

    /// Takes in the data keys that other replicas have made.
    pub(in crate::store) async fn learn_keys(&self, connection: &impl ConnectionTrait) -> Result<(), StoreError> {
        let rows = sealing_key::Entity::find().all(connection).await?;
        self.0.keys.write().learn(&rows)
    }

    /// Adds a data key, unless there is one of a rotation that was not finished: trying again leaves no more of them.
    async fn begin_rotation(&self, by: &Author) -> Result<(), StoreError> {
        let writing = self.writing_by(by).await?;
        let rows = sealing_key::Entity::find().all(&writing.transaction).await?;
        if is_unfinished(&rows, writing.now) {
            drop(writing);
            return self.learn_keys(&self.0.database).await;
        }
        // Later than all others, whatever the clocks of replicas say.
        let newest = rows.iter().map(|row| row.created_at + Duration::MICROSECOND).max();
        let now = newest.map_or(writing.now, |newest| newest.max(writing.now));
        let row = self.0.keys.read().new_data_key(now)?;
        sealing_key::Entity::insert(row.into_active_model().reset_all())
            .exec_without_returning(&writing.transaction)
            .await?;
        let database = &self.0.database;
        writing.finish().await?;
        self.learn_keys(database).await
    }

    /// A batch behind a row of what is not sealed with the newest key. Gives its last row; none, if nothing is left.
    async fn reseal(
        &self,
        by: &Author,
        column: &SealedColumn,
        after: Option<Value>,
        progress: &mut Progress,
    ) -> Result<Option<Value>, StoreError> {
        let mut writing = self.writing().await?;
        let transaction = &writing.transaction;
        // Should another replica rotate as well, both seal with what is the newest now.
        self.learn_keys(transaction).await?;
        let current = self.0.keys.read().current().0;
        let behind = if after.is_some() { format!("AND {} > $1", column.row) } else { String::new() };
        let condition = format!(
            "AND {} NOT LIKE '{}%' {behind} ORDER BY {} LIMIT {BATCH}",
            column.column,
            prefix(current),
            column.row
        );
        let found = sealed(transaction, column, &condition, after).await?;
        let Some(last) = found.last().map(|found| found.key.clone()) else { return Ok(None) };
        let authentic = rows::authentic(transaction, &self.0.trail, column.table).await?;
        for found in &found {
            let place = found.place(column);
            // All keys were learned a moment ago: one that is missing stays so.
            let opened = match self.open_sealed(place, &found.text) {
                Err(StoreError::Sealed { .. } | StoreError::UnknownKey(_)) => {
                    progress.add_unopened(place);
                    continue;
                }
                opened => opened?,
            };
            let again = self.seal(place, &opened)?;
            transaction.execute_raw(found.replace(column, again, transaction.get_database_backend())).await?;
            progress.resealed += 1;
        }
        let entry = rows::tell_of(transaction, &self.0.trail, &authentic, column.table).await?;
        if !entry.detail.is_empty() {
            writing.audit(by, entry).await?;
        }
        writing.finish().await?;
        Ok(Some(last))
    }

    async fn retire_others(&self, by: &Author, progress: Progress) -> Result<Rotated, StoreError> {
        use sealing_key::Column;
        let mut writing = self.writing().await?;
        self.learn_keys(&writing.transaction).await?;
        let key = self.0.keys.read().current().0;
        sealing_key::Entity::update_many()
            .col_expr(Column::RetiredAt, Expr::value(writing.now))
            .filter(Column::Id.ne(key))
            .filter(Column::RetiredAt.is_null())
            .exec(&writing.transaction)
            .await?;
        let Progress { resealed, unopened, unopened_secrets } = progress;
        let entry = Entry::done().with("key", key.to_string()).with("resealed", resealed).with("unopened", unopened);
        writing.audit(by, entry.with("unopened_secrets", json!(unopened_secrets))).await?;
        writing.finish().await?;
        Ok(Rotated { key, resealed, unopened, unopened_secrets })
    }
}

impl Progress {
    fn add_unopened(&mut self, Place { table, column, row, .. }: Place<'_>) {
        tracing::warn!(table, column, row, "a secret does not open, and is not sealed anew");
        self.unopened += 1;
        if self.unopened_secrets.len() < MOST_UNOPENED {
            self.unopened_secrets.push(Unopened { table, column, row: row.to_owned() });
        }
    }
}

/// Whether the newest key was made not long ago, by a rotation that has not retired the others. When it was made stands in
/// its id, which nobody can alter who lacks the key that wraps it.
fn is_unfinished(rows: &[sealing_key::Model], now: OffsetDateTime) -> bool {
    let in_use = rows.iter().filter(|row| row.retired_at.is_none());
    let newest = in_use.clone().max_by_key(|row| row.created_at).and_then(|row| row.id.get_timestamp());
    let made = newest.and_then(|made| OffsetDateTime::from_unix_timestamp(made.to_unix().0.try_into().ok()?).ok());
    in_use.count() > 1 && made.is_some_and(|made| now - made < UNFINISHED)
}

/// A sealed text, and what its place is made of.
pub(super) struct Sealed {
    tenant: String,
    row: String,
    key: Value,
    destination: String,
    pub(super) text: String,
}

impl Sealed {
    pub(super) fn place(&self, column: &SealedColumn) -> Place<'_> {
        let (SealedColumn { table, column, .. }, destination) = (*column, &self.destination);
        Place { tenant: &self.tenant, table, column, row: &self.row, destination }
    }

    /// Writes another text in place of it, unless somebody else did.
    pub(super) fn replace(&self, column: &SealedColumn, with: String, backend: DbBackend) -> Statement {
        let SealedColumn { table, column, row, .. } = *column;
        let sql = format!("UPDATE {table} SET {column} = $1 WHERE {row} = $2 AND {column} = $3");
        Statement::from_sql_and_values(backend, sql, [with.into(), self.key.clone(), self.text.clone().into()])
    }
}

/// The sealed texts of a column that this holds for as well; `value` is what `$1` stands for in it.
pub(super) async fn sealed(
    transaction: &DatabaseTransaction,
    column: &SealedColumn,
    condition: &str,
    value: Option<Value>,
) -> Result<Vec<Sealed>, StoreError> {
    let SealedColumn { table, column, row, tenant, is_for_receiver } = *column;
    let url = if is_for_receiver { "url" } else { "''" };
    let select = format!(
        "SELECT {row} AS place, {tenant} AS tenant, {url} AS url, {column} AS sealed FROM {table} \
         WHERE {column} IS NOT NULL {condition}"
    );
    let select = Statement::from_sql_and_values(transaction.get_database_backend(), select, value);
    let found = transaction.query_all_raw(select).await?;
    let read = |found: &QueryResult| {
        let ((row, key), (tenant, _)) = (text(found, "place")?, text(found, "tenant")?);
        // SQLite takes whatever is written into a column: what is no text does not open either.
        let url: String = found.try_get("", "url").unwrap_or_default();
        let destination = if url.is_empty() { url } else { destination(&url) };
        Ok(Sealed { tenant, row, key, destination, text: found.try_get("", "sealed").unwrap_or_default() })
    };
    found.iter().map(read).collect()
}

/// Text or a UUID, as text and as it is.
fn text(found: &QueryResult, column: &str) -> Result<(String, Value), DbErr> {
    match found.try_get::<String>("", column) {
        Ok(text) => Ok((text.clone(), text.into())),
        Err(_) => found.try_get::<Uuid>("", column).map(|id| (id.to_string(), id.into())),
    }
}
