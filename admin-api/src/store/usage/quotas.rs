//! What tenants have used of their quotas, in the periods of their own calendars.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use seiketsu_config::{layers::SharedLayers, limits::Calendar as CalendarSetting, tenant::TenantHead, values::Id};
use seiketsu_limits::calendar::Calendar;
use serde::Serialize;
use time::OffsetDateTime;

use crate::store::{BATCH, PATIENCE, Store, StoreError, entities::tenant, signed, stored, within};

/// A tenant's quotas and what is used of them.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct QuotaUse {
    #[schema(value_type = String)]
    pub tenant: Id,
    /// Whose days and months they are.
    pub time_zone: String,
    pub day: PeriodUse,
    pub month: PeriodUse,
}

/// A period, and what was used in it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct PeriodUse {
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub until: OffsetDateTime,
    /// What counts against quotas, as far as it has come in: a second ago, from nodes that are connected.
    pub used: u64,
    /// None: unlimited.
    pub quota: Option<u64>,
}

impl PeriodUse {
    /// In hundredths of the quota, if there is one. Of a quota of nothing, all is used.
    pub fn percent(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)] // Quotas are far below 2⁵³.
        match self.quota? {
            0 => Some(100.0),
            quota => Some(self.used as f64 * 100.0 / quota as f64),
        }
    }
}

/// Microseconds since 1970.
type Micros = u64;

impl Store {
    /// Of these tenants, in the order of their names. Those that are not there are left out.
    pub async fn quota_uses(&self, tenants: &[String], now: OffsetDateTime) -> Result<Vec<QuotaUse>, StoreError> {
        let head: TenantHead = self.head().await?.parse_head()?.into();
        let layers = SharedLayers::new(&head);
        let now = u64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or_default();
        let mut uses = Vec::with_capacity(tenants.len());
        for names in tenants.chunks(BATCH) {
            let find = tenant::Entity::find().filter(tenant::Column::Name.is_in(names));
            let rows = within(PATIENCE, async { Ok::<_, StoreError>(find.all(&self.0.database).await?) }).await?;
            for row in rows {
                let document = stored(row)?;
                let tenant = document.parse()?;
                let limits = &layers.tenant(&tenant).limits;
                let CalendarSetting { time_zone, month_starts_on } = &limits.calendar.value;
                let first = u8::try_from(month_starts_on.get()).unwrap_or(1);
                let wrong = |error| StoreError::corrupt(format!("the calendar of tenant {}", tenant.id), &error);
                let day = Calendar::days(time_zone.as_str()).map_err(wrong)?.period(now);
                let month = Calendar::months(time_zone.as_str(), first).map_err(wrong)?.period(now);
                uses.push(QuotaUse {
                    time_zone: time_zone.as_str().to_owned(),
                    day: PeriodUse { since: at(day.starts), until: at(day.ends), used: 0, quota: limits.daily() },
                    month: PeriodUse {
                        since: at(month.starts),
                        until: at(month.ends),
                        used: 0,
                        quota: limits.monthly(),
                    },
                    tenant: tenant.id,
                });
            }
        }
        uses.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        self.fill_in(&mut uses).await?;
        Ok(uses)
    }

    async fn fill_in(&self, uses: &mut [QuotaUse]) -> Result<(), StoreError> {
        let asked: Vec<(&str, i64)> = uses
            .iter()
            .flat_map(|of| [&of.day, &of.month].map(|period| (of.tenant.as_str(), period.since.unix_timestamp())))
            .collect();
        let used = self.usage_since(&asked).await?;
        let periods = uses.iter_mut().flat_map(|of| [&mut of.day, &mut of.month]);
        for (period, used) in periods.zip(used) {
            period.used = used;
        }
        Ok(())
    }
}

fn at(micros: Micros) -> OffsetDateTime {
    let seconds = signed(micros / 1_000_000);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
