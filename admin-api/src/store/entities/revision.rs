//! Every change of documents.

use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "revisions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    pub at: OffsetDateTime,
    pub author: String,
    pub action: String,
    pub reason: Option<String>,
    pub changed: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
