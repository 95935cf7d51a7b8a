//! What of a tenant fits into the columns that others know.

use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "api_gateway_config")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub rate_limit_rpm: Option<i64>,
    pub burst_limit: Option<i64>,
    pub quota_daily: Option<i64>,
    pub quota_monthly: Option<i64>,
    pub custom_headers: Option<Json>,
    pub cors_config: Option<Json>,
    pub caching_enabled: Option<bool>,
    pub cache_ttl_seconds: Option<i64>,
    pub created_at: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
