//! Who did what, entry by entry.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    pub at: String,
    pub actor: String,
    pub actor_id: Option<String>,
    pub address: Option<String>,
    pub action: String,
    pub tenant: Option<String>,
    pub outcome: String,
    pub revision: Option<i64>,
    #[sea_orm(column_name = "request_id")]
    pub request: String,
    pub detail: String,
    pub hash: String,
    pub mac: Option<String>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
