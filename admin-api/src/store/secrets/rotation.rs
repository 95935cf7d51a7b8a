//! New keys: a data key that everything is sealed with anew, and another key-encryption key.

use sea_orm::{
    ActiveModelTrait as _, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    IntoActiveModel as _, QueryFilter, QueryResult, Statement, Value, sea_query::Expr,
};
use serde::Serialize;
use time::Duration;
use uuid::Uuid;

use super::{KeySource, Place, SEALED, SealedColumn, destination, prefix};
use crate::store::{
    Author, BATCH, PATIENCE_FOR_ALL, Store, StoreError, audit::Entry, entities::sealing_key, rows, within,
};

/// What rotating came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Rotated {
    /// The data key that everything is sealed with now.
    pub key: Uuid,
    /// How many secrets were sealed anew.
    pub resealed: u64,
}

impl Store {
    /// Makes a data key and seals everything with it, batch by batch. At whatever point this process should end, all of it
    /// can be opened, and rotating again finishes what was begun.
    pub async fn rotate_keys(&self, by: &Author) -> Result<Rotated, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            self.add_data_key(by).await?;
            let mut resealed = 0;
            for column in SEALED {
                loop {
                    match self.reseal(by, column).await? {
                        0 => break,
                        rows => resealed += rows,
                    }
                }
            }
            self.retire_others(by, resealed).await
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

    async fn add_data_key(&self, by: &Author) -> Result<(), StoreError> {
        let writing = self.writing_by(by).await?;
        let rows = sealing_key::Entity::find().all(&writing.transaction).await?;
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

    /// A batch of what is not sealed with the newest key; how many they were.
    async fn reseal(&self, by: &Author, column: &SealedColumn) -> Result<u64, StoreError> {
        let mut writing = self.writing().await?;
        let transaction = &writing.transaction;
        // Should another replica rotate as well, both seal with what is the newest now.
        self.learn_keys(transaction).await?;
        let current = self.0.keys.read().current().0;
        let condition = format!("AND {} NOT LIKE '{}%' LIMIT {BATCH}", column.column, prefix(current));
        let found = sealed(transaction, column, &condition).await?;
        if found.is_empty() {
            return Ok(0);
        }
        let authentic = rows::authentic(transaction, &self.0.trail, column.table).await?;
        for found in &found {
            let place = found.place(column);
            let again = self.seal(place, &self.open_sealed(place, &found.text)?)?;
            transaction.execute_raw(found.replace(column, again, transaction.get_database_backend())).await?;
        }
        let entry = rows::tell_of(transaction, &self.0.trail, &authentic, column.table).await?;
        if !entry.detail.is_empty() {
            writing.audit(by, entry).await?;
        }
        writing.finish().await?;
        Ok(found.len() as u64)
    }

    async fn retire_others(&self, by: &Author, resealed: u64) -> Result<Rotated, StoreError> {
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
        let entry = Entry::done().with("key", key.to_string()).with("resealed", resealed);
        writing.audit(by, entry).await?;
        writing.finish().await?;
        Ok(Rotated { key, resealed })
    }
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

/// The sealed texts of a column that this holds for as well.
pub(super) async fn sealed(
    transaction: &DatabaseTransaction,
    column: &SealedColumn,
    condition: &str,
) -> Result<Vec<Sealed>, StoreError> {
    let SealedColumn { table, column, row, tenant, is_for_receiver } = *column;
    let url = if is_for_receiver { "url" } else { "''" };
    let select = format!(
        "SELECT {row} AS place, {tenant} AS tenant, {url} AS url, {column} AS sealed FROM {table} \
         WHERE {column} IS NOT NULL {condition}"
    );
    let found = transaction.query_all_raw(Statement::from_string(transaction.get_database_backend(), select)).await?;
    let read = |found: &QueryResult| {
        let ((row, key), (tenant, _)) = (text(found, "place")?, text(found, "tenant")?);
        let url: String = found.try_get("", "url")?;
        let destination = if url.is_empty() { url } else { destination(&url) };
        Ok(Sealed { tenant, row, key, destination, text: found.try_get("", "sealed")? })
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
