//! Where the audit trail is sent to.

use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "siem_sinks")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub url: String,
    pub token: Option<String>,
    pub ca: Option<String>,
    pub certificate: Option<String>,
    pub private_key: Option<String>,
    pub enabled: bool,
    pub delivered: i64,
    pub failing_since: Option<OffsetDateTime>,
    pub last_error: Option<String>,
    pub revision: i64,
    pub created_at: OffsetDateTime,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
