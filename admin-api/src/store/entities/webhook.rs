//! Whom to tell what happens.

use sea_orm::entity::prelude::*;
use serde::Serialize;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, DeriveEntityModel)]
#[sea_orm(table_name = "webhooks")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub url: String,
    pub kinds: Option<String>,
    pub tenants: Option<String>,
    pub secret: String,
    pub old_secret: Option<String>,
    pub old_until: Option<i64>,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    #[serde(skip)] // The system moves it on.
    pub failing_since: Option<i64>,
    pub revision: i64,
    pub created_at: OffsetDateTime,
    #[serde(skip)]
    pub mac: Option<String>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
