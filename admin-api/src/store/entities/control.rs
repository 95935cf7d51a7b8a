//! The one row that every change takes its turn at.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "control")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    pub store: Uuid,
    pub revision: i64,
    pub sum: String,
    pub head_revision: i64,
    pub head: String,
    pub audit_number: i64,
    pub audit_hash: String,
    pub orders: i64,
    pub trail: Option<Uuid>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
