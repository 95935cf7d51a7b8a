//! Where the audit trail is sent to.

use sea_orm::entity::prelude::*;
use serde::Serialize;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, DeriveEntityModel)]
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
    #[serde(skip)] // The system moves it on.
    pub delivered: i64,
    #[serde(skip)] // The system moves it on.
    pub failing_since: Option<OffsetDateTime>,
    #[serde(skip)] // The system moves it on.
    pub last_error: Option<String>,
    pub revision: i64,
    pub created_at: OffsetDateTime,
    #[serde(skip)]
    pub mac: Option<String>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
