//! What was measured of tenants: a row for each metric and minute, made from the ledger of usage, and how fast their error
//! budgets burn.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QueryResult, QuerySelect,
    Statement, TransactionTrait, Value,
};
use seiketsu_config::{push::usage::Counts, values::Id};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    BATCH, PATIENCE, Store, StoreError,
    entities::tenant,
    id_of,
    usage::{Step, all, counts_of, of_tenants, sums},
    within,
};

/// Seconds before that are measured: of more minutes than the last one, since usage comes a little late.
const MEASURED: i64 = 3 * 60;

/// When a minute is measured first.
const SETTLED_AFTER: i64 = 5;

/// Any number that nothing else locks: that of events would hold up every change.
const LOCK: i64 = 0x5e1e_7503;

/// What tenants are promised. Percents are hundredths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objectives {
    /// 99 of 100 requests take no longer.
    pub latency_ms: u64,
    /// Of admitted requests, that may fail.
    pub errors_percent: f64,
    /// Of a quota, from which on it is nearly used up.
    pub quota_percent: f64,
}

/// One of 100 may take longer.
const SLOW_PERCENT: f64 = 1.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricStatus {
    Normal,
    Warning,
    Critical,
}

impl MetricStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    fn of(value: f64, warning: f64, critical: f64) -> Self {
        match value {
            value if value >= critical => Self::Critical,
            value if value >= warning => Self::Warning,
            _ => Self::Normal,
        }
    }
}

/// A row of `enterprise_performance_metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = PerformanceMetric)]
pub struct MetricRow {
    pub id: Uuid,
    pub tenant: String,
    /// `requests_per_minute`, `error_rate` (percent), `latency_p99_ms`, `quota_daily_used`, `quota_monthly_used`
    /// (percent).
    pub metric_type: String,
    pub metric_value: f64,
    pub threshold_value: Option<f64>,
    pub status: String,
    /// None: of all regions, or of nodes that have none.
    pub region: Option<String>,
    /// The minute that it is of.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub recorded_at: OffsetDateTime,
}

/// Which rows. What is absent is any.
#[derive(Debug, Clone, Default)]
pub struct MetricFilter {
    pub tenants: Option<BTreeSet<Id>>,
    pub metric: Option<String>,
    pub status: Option<MetricStatus>,
    pub region: Option<String>,
    pub from: Option<OffsetDateTime>,
    pub to: Option<OffsetDateTime>,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
struct Measured {
    metric: &'static str,
    value: f64,
    threshold: Option<f64>,
    status: MetricStatus,
}

/// How a tenant's promises are kept over a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Burn {
    /// Admitted requests.
    pub requests: u64,
    /// That failed, or took too long.
    pub bad: u64,
    /// How fast the budget is used: with 1 it lasts exactly as long as the time that it is for.
    pub burn: f64,
}

impl Burn {
    fn of(requests: u64, bad: u64, allowed_percent: f64) -> Self {
        let burn = percent(bad, requests) / allowed_percent;
        Self { requests, bad, burn: if burn.is_finite() { burn } else { 0.0 } }
    }
}

/// The promises of a tenant over one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    pub errors: Burn,
    pub latency: Burn,
}

impl Store {
    /// Measures the last minutes. Several replicas may; one of them does.
    pub async fn measure(&self, objectives: &Objectives) -> Result<(), StoreError> {
        let database = &self.0.database;
        if database.get_database_backend() != DbBackend::Postgres {
            return self.measure_alone(objectives, None).await;
        }
        let lock = database.begin().await?;
        let sql = format!("SELECT pg_try_advisory_xact_lock({LOCK}) AS mine");
        let row = lock.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
        let is_mine = row.map(|row| row.try_get("", "mine")).transpose()?.unwrap_or(false);
        let measured = if is_mine { self.measure_alone(objectives, Some(&lock)).await } else { Ok(()) };
        lock.rollback().await?;
        measured
    }

    /// Some tenants at a time, however many there are.
    async fn measure_alone(
        &self,
        objectives: &Objectives,
        lock: Option<&DatabaseTransaction>,
    ) -> Result<(), StoreError> {
        let now = OffsetDateTime::now_utc();
        let to = Step::Minute.start(now.unix_timestamp() - SETTLED_AFTER);
        let mut after = String::new();
        loop {
            let next = self.tenants_in_use(Step::Minute, to - MEASURED, &after, BATCH).await?;
            if !next.tenants.is_empty() {
                self.measure_some(objectives, &next.tenants, now, to).await?;
            }
            let Some(through) = next.through else { return Ok(()) };
            after = through;
            if let Some(lock) = lock {
                // Postgres ends a transaction in which nothing happens for a while, and the lock with it.
                lock.execute_unprepared("SELECT 1").await?;
            }
        }
    }

    /// The minutes before `to`, of these tenants.
    async fn measure_some(
        &self,
        objectives: &Objectives,
        names: &[String],
        now: OffsetDateTime,
        to: i64,
    ) -> Result<(), StoreError> {
        let columns = format!("tenant, region, since AS began, {}", sums());
        let (sql, values) = of_tenants(&columns, "1, 2, 3", names, to - MEASURED, to);
        let rows = all(self.0.database.clone(), sql, values).await?;
        let ids = self.tenant_ids(names).await?;
        let mut measured = Vec::new();
        let mut of_minutes = BTreeSet::new();
        for row in &rows {
            let (tenant, region): (String, String) = (row.try_get("", "tenant")?, row.try_get("", "region")?);
            let Some(id) = ids.get(&tenant) else { continue };
            let (minute, counts) = (row.try_get::<i64>("", "began")?, counts_of(row)?);
            measured.extend(of_minute(&counts, objectives).into_iter().map(|one| (*id, region.clone(), minute, one)));
            of_minutes.insert(tenant);
        }
        let last = to - Step::Minute.seconds();
        let names: Vec<String> = of_minutes.into_iter().collect();
        for of in self.quota_uses(&names, now).await? {
            let Some(id) = ids.get(of.tenant.as_str()) else { continue };
            for (metric, period) in [("quota_daily_used", &of.day), ("quota_monthly_used", &of.month)] {
                let Some(value) = period.percent() else { continue };
                let status = MetricStatus::of(value, objectives.quota_percent, 100.0);
                let threshold = Some(objectives.quota_percent);
                measured.push((*id, String::new(), last, Measured { metric, value, threshold, status }));
            }
        }
        for batch in measured.chunks(BATCH) {
            within(PATIENCE, self.write_metrics(batch)).await?;
        }
        Ok(())
    }

    async fn tenant_ids(&self, names: &[String]) -> Result<BTreeMap<String, Uuid>, StoreError> {
        let mut ids = BTreeMap::new();
        for names in names.chunks(BATCH) {
            let found: Vec<(String, Uuid)> = tenant::Entity::find()
                .select_only()
                .columns([tenant::Column::Name, tenant::Column::Id])
                .filter(tenant::Column::Name.is_in(names))
                .into_tuple()
                .all(&self.0.database)
                .await?;
            ids.extend(found);
        }
        Ok(ids)
    }

    async fn write_metrics(&self, batch: &[(Uuid, String, i64, Measured)]) -> Result<(), StoreError> {
        let mut values: Vec<Value> = Vec::new();
        let mut rows = Vec::with_capacity(batch.len());
        for (tenant, region, minute, Measured { metric, value, threshold, status }) in batch {
            let places: Vec<String> = (1..=6).map(|place| format!("${}", values.len() + place)).collect();
            // Numbers that are written out are exact in both stores.
            let threshold = threshold.map_or("NULL".to_owned(), |threshold| format!("{threshold:.4}"));
            rows.push(format!("({}, {value:.4}, {threshold})", places.join(", ")));
            values.extend([
                name_of(*tenant, metric, region, *minute).into(),
                (*tenant).into(),
                (*metric).into(),
                status.as_str().into(),
                Some(region.clone()).filter(|region| !region.is_empty()).into(),
                OffsetDateTime::from_unix_timestamp(*minute).unwrap_or(OffsetDateTime::UNIX_EPOCH).into(),
            ]);
        }
        // A tenant that goes away in this moment takes its rows with it.
        let sql = format!(
            "INSERT INTO enterprise_performance_metrics \
             (id, tenant_id, metric_type, status, region, recorded_at, metric_value, threshold_value) VALUES {} \
             ON CONFLICT (id) DO UPDATE SET metric_value = excluded.metric_value, \
             threshold_value = excluded.threshold_value, status = excluded.status",
            rows.join(", ")
        );
        let _turn = self.0.turn.lock().await;
        let database = &self.0.database;
        database.execute_raw(Statement::from_sql_and_values(database.get_database_backend(), sql, values)).await?;
        Ok(())
    }

    /// Rows after a place, the newest first.
    pub async fn metrics(
        &self,
        filter: &MetricFilter,
        after: Option<(OffsetDateTime, Uuid)>,
        most: u64,
    ) -> Result<Vec<MetricRow>, StoreError> {
        let (mut conditions, mut values): (Vec<String>, Vec<Value>) = (vec!["1 = 1".to_owned()], Vec::new());
        let mut and = |condition: &str, value: Value| {
            values.push(value);
            conditions.push(format!("{condition} ${}", values.len()));
        };
        if let Some(metric) = &filter.metric {
            and("m.metric_type =", metric.as_str().into());
        }
        if let Some(status) = filter.status {
            and("m.status =", status.as_str().into());
        }
        if let Some(region) = &filter.region {
            and("m.region =", region.as_str().into());
        }
        if let Some(from) = filter.from {
            and("m.recorded_at >=", from.into());
        }
        if let Some(to) = filter.to {
            and("m.recorded_at <", to.into());
        }
        if let Some(tenants) = &filter.tenants {
            let mut places = Vec::new();
            for tenant in tenants {
                values.push(tenant.as_str().into());
                places.push(format!("${}", values.len()));
            }
            // Of none, nothing.
            conditions.push(if places.is_empty() {
                "1 = 0".to_owned()
            } else {
                format!("t.name IN ({})", places.join(", "))
            });
        }
        if let Some((at, id)) = after {
            values.extend([at.into(), id.into()]);
            conditions.push(format!("(m.recorded_at, m.id) < (${}, ${})", values.len() - 1, values.len()));
        }
        let sql = format!(
            "SELECT m.id, t.name, m.metric_type, CAST(m.metric_value AS DOUBLE PRECISION) AS metric_value, \
             CAST(m.threshold_value AS DOUBLE PRECISION) AS threshold_value, m.status, m.region, m.recorded_at \
             FROM enterprise_performance_metrics m JOIN tenants t ON t.id = m.tenant_id WHERE {} \
             ORDER BY m.recorded_at DESC, m.id DESC LIMIT {most}",
            conditions.join(" AND ")
        );
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        rows.iter().map(metric_of).collect()
    }

    /// How these tenants' promises were kept since a moment; those without traffic are left out.
    pub async fn burns(
        &self,
        objectives: &Objectives,
        tenants: &[Id],
        since: OffsetDateTime,
    ) -> Result<BTreeMap<Id, Window>, StoreError> {
        let mut burns = BTreeMap::new();
        if tenants.is_empty() {
            return Ok(burns);
        }
        let is_short = OffsetDateTime::now_utc() - since <= Duration::hours(6);
        let step = if is_short { Step::Minute } else { Step::Hour };
        let mut values: Vec<Value> = vec![step.seconds().into(), step.start(since.unix_timestamp()).into()];
        let mut places = Vec::new();
        for tenant in tenants {
            values.push(tenant.as_str().into());
            places.push(format!("${}", values.len()));
        }
        let sql = format!(
            "SELECT tenant, {} FROM usage_sums WHERE step = $1 AND since >= $2 AND tenant IN ({}) GROUP BY tenant",
            sums(),
            places.join(", ")
        );
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        for row in &rows {
            let tenant: String = row.try_get("", "tenant")?;
            let counts = counts_of(row)?;
            let timed = counts.latency_ms.all();
            let slow = counts.latency_ms.above(objectives.latency_ms);
            let window = Window {
                errors: Burn::of(counts.admitted, counts.failures, objectives.errors_percent),
                latency: Burn::of(timed, slow, SLOW_PERCENT),
            };
            burns.insert(id_of(&tenant)?, window);
        }
        Ok(burns)
    }
}

#[allow(clippy::cast_precision_loss)] // Nobody makes 2⁵³ requests in a window.
fn percent(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 * 100.0 / of as f64 }
}

#[allow(clippy::cast_precision_loss)]
fn of_minute(counts: &Counts, objectives: &Objectives) -> Vec<Measured> {
    let requests = Measured {
        metric: "requests_per_minute",
        value: counts.requests() as f64,
        threshold: None,
        status: MetricStatus::Normal,
    };
    let mut measured = vec![requests];
    if counts.admitted > 0 {
        let (value, most) = (percent(counts.failures, counts.admitted), objectives.errors_percent);
        // Just what is promised is kept.
        let status = MetricStatus::of(value, most.next_up(), (2.0 * most).next_up());
        measured.push(Measured { metric: "error_rate", value, threshold: Some(most), status });
    }
    if let Some((above, at_most)) = counts.latency_ms.quantile(990) {
        // Of what is above all buckets, no more is known than that.
        let (value, most) = (at_most.unwrap_or(2 * above) as f64, objectives.latency_ms as f64);
        let status = MetricStatus::of(value, most.next_up(), (2.0 * most).next_up());
        measured.push(Measured { metric: "latency_p99_ms", value, threshold: Some(most), status });
    }
    measured
}

/// The same for the same minute, so that one that is measured again takes its own place.
fn name_of(tenant: Uuid, metric: &str, region: &str, minute: i64) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(tenant.as_bytes());
    hash.update(minute.to_be_bytes());
    hash.update(metric);
    hash.update([0]);
    hash.update(region);
    let hash: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn metric_of(row: &QueryResult) -> Result<MetricRow, StoreError> {
    Ok(MetricRow {
        id: row.try_get("", "id")?,
        tenant: row.try_get("", "name")?,
        metric_type: row.try_get("", "metric_type")?,
        metric_value: row.try_get("", "metric_value")?,
        threshold_value: row.try_get("", "threshold_value")?,
        status: row.try_get::<Option<String>>("", "status")?.unwrap_or_default(),
        region: row.try_get("", "region")?,
        recorded_at: row.try_get("", "recorded_at")?,
    })
}

#[cfg(test)]
mod tests {
    use seiketsu_config::push::usage::Latency;

    use super::*;

    const OBJECTIVES: Objectives = Objectives { latency_ms: 100, errors_percent: 1.0, quota_percent: 80.0 };

    fn statuses(failures: u64, latency: &[(usize, u64)]) -> Vec<(&'static str, MetricStatus)> {
        let mut counts = Counts { admitted: 1000, failures, latency_ms: Latency::default(), ..Counts::default() };
        for (bucket, many) in latency {
            counts.latency_ms.0[*bucket] = *many;
        }
        of_minute(&counts, &OBJECTIVES).into_iter().map(|one| (one.metric, one.status)).skip(1).collect()
    }

    #[test]
    fn what_is_promised_is_normal_more_a_warning_and_twice_as_much_critical() {
        use MetricStatus::{Critical, Normal, Warning};
        // A hundred milliseconds are the seventh bucket.
        let both = |failures, bucket| statuses(failures, &[(0, 900), (bucket, 100)]);
        assert_eq!(both(10, 6), [("error_rate", Normal), ("latency_p99_ms", Normal)]);
        assert_eq!(both(11, 7), [("error_rate", Warning), ("latency_p99_ms", Warning)]);
        assert_eq!(both(21, 8), [("error_rate", Critical), ("latency_p99_ms", Critical)]);
        assert_eq!(statuses(0, &[]), [("error_rate", Normal)], "what was not measured is not told");
    }

    #[test]
    fn a_budget_burns_as_fast_as_it_is_used() {
        assert_eq!(Burn::of(1000, 10, 1.0), Burn { requests: 1000, bad: 10, burn: 1.0 });
        assert!((Burn::of(1000, 144, 1.0).burn - 14.4).abs() < 1e-9);
        assert_eq!(Burn::of(0, 0, 1.0), Burn { requests: 0, bad: 0, burn: 0.0 });
    }

    #[test]
    fn a_minute_that_is_measured_again_takes_its_own_place() {
        let name = |region, minute| name_of(Uuid::nil(), "error_rate", region, minute);
        assert_eq!(name("eu", 60), name("eu", 60));
        assert!(name("eu", 60) != name("us", 60) && name("eu", 60) != name("eu", 120));
    }
}
