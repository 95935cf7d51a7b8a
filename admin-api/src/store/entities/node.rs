//! Gateway nodes that have ever connected.

use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "nodes")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub run: Uuid,
    pub version: String,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub replica: Option<Uuid>,
    pub connected_at: OffsetDateTime,
    pub heard_at: OffsetDateTime,
    pub revision: i64,
    pub ready: bool,
    pub draining: bool,
    pub refused: String,
    pub twin_seen_at: Option<OffsetDateTime>,
    pub store: Option<Uuid>,
    pub refused_more: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
