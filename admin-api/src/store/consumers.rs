//! Lists of consumers: the callers that tenants know.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use seiketsu_config::values::Id;
use serde::Serialize;

use super::{PATIENCE, Place, Seen, Store, StoreError, entities::consumer, id_of, routes::texts, within};

/// A consumer in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = ConsumerSummary)]
pub struct ConsumerRow {
    #[schema(value_type = String)]
    pub tenant: Id,
    #[schema(value_type = String)]
    pub id: Id,
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    /// How many it has.
    pub keys: i32,
    pub certificates: i32,
    /// Whether it has limits of its own.
    pub limited: bool,
}

impl ConsumerRow {
    pub fn place(&self) -> Place {
        Place { tenant: Some(self.tenant.clone()), name: self.id.to_string() }
    }
}

impl Store {
    /// Consumers, in the order of their tenants and names; those with a name, if one is given.
    pub async fn consumers(&self, seen: Seen<'_>, id: Option<&Id>) -> Result<Vec<ConsumerRow>, StoreError> {
        use consumer::Column;
        let mut find = consumer::Entity::find().filter(seen.condition(Column::Tenant, Column::Id));
        if let Some(id) = id {
            find = find.filter(Column::Id.eq(id.as_str()));
        }
        let find = find.order_by_asc(Column::Tenant).order_by_asc(Column::Id).limit(seen.most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(row_of).collect() }).await
    }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn row_of(row: consumer::Model) -> Result<ConsumerRow, StoreError> {
    Ok(ConsumerRow {
        tenant: id_of(&row.tenant)?,
        id: id_of(&row.id)?,
        scopes: texts(&row.scopes),
        roles: texts(&row.roles),
        keys: row.api_keys,
        certificates: row.certificates,
        limited: row.limited,
    })
}
