//! How far something has come that goes on where it was.

use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel, sea_query::OnConflict};

use super::{PATIENCE, Store, StoreError, entities::cursor, number, signed, within};

pub(super) async fn get(connection: &impl ConnectionTrait, name: &str) -> Result<Option<u64>, StoreError> {
    let found = cursor::Entity::find_by_id(name.to_owned()).one(connection).await?;
    Ok(found.map(|found| number(found.number)))
}

pub(super) async fn set(connection: &impl ConnectionTrait, name: &str, to: u64) -> Result<(), StoreError> {
    let row = cursor::Model { name: name.to_owned(), number: signed(to) };
    let mut update = OnConflict::column(cursor::Column::Name);
    update.update_column(cursor::Column::Number);
    cursor::Entity::insert(row.into_active_model()).on_conflict(update).exec_without_returning(connection).await?;
    Ok(())
}

impl Store {
    /// Writes a number: also to see whether, and how quickly, the store takes anything.
    pub async fn mark(&self, name: &str, to: u64) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            set(&self.0.database, name, to).await
        })
        .await
    }
}
