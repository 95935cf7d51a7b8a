//! The sums, as they are read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement, Value};
use seiketsu_config::{
    push::usage::{Counts, LATENCY_BUCKETS, Latency, Refused, STATUS_CLASSES, Statuses},
    values::Id,
};
use serde::Deserialize;

use crate::store::{Store, StoreError, number};

const HOUR: i64 = 3600;

/// The columns of [`Counts`], in the order of [`numbers`].
pub(in crate::store) const NUMBERS: [&str; 9 + STATUS_CLASSES + LATENCY_BUCKETS] = [
    "admitted",
    "refused_limit",
    "refused_auth",
    "refused_other",
    "cost",
    "given_back",
    "bytes_in",
    "bytes_out",
    "failures",
    "status_1xx",
    "status_2xx",
    "status_3xx",
    "status_4xx",
    "status_5xx",
    "ms_1",
    "ms_2",
    "ms_5",
    "ms_10",
    "ms_20",
    "ms_50",
    "ms_100",
    "ms_200",
    "ms_500",
    "ms_1000",
    "ms_2000",
    "ms_5000",
    "ms_more",
];

pub(super) fn numbers(counts: &Counts) -> Vec<u64> {
    let Counts {
        admitted,
        refused: Refused { limit, auth, other },
        cost,
        given_back,
        bytes_in,
        bytes_out,
        failures,
        statuses: Statuses(statuses),
        latency_ms: Latency(latency),
    } = *counts;
    let mut numbers = vec![admitted, limit, auth, other, cost, given_back, bytes_in, bytes_out, failures];
    numbers.extend(statuses);
    numbers.extend(latency);
    numbers
}

pub(in crate::store) fn counts_of(row: &QueryResult) -> Result<Counts, StoreError> {
    let mut places = NUMBERS.iter();
    let mut next = || -> Result<u64, StoreError> {
        let place = places.next().copied().unwrap_or_default();
        Ok(number(row.try_get("", place)?))
    };
    let mut counts = Counts {
        admitted: next()?,
        refused: Refused { limit: next()?, auth: next()?, other: next()? },
        cost: next()?,
        given_back: next()?,
        bytes_in: next()?,
        bytes_out: next()?,
        failures: next()?,
        ..Counts::default()
    };
    for many in counts.statuses.0.iter_mut().chain(&mut counts.latency_ms.0) {
        *many = next()?;
    }
    Ok(counts)
}

/// How finely usage is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Minute,
    Hour,
    /// Of UTC.
    Day,
}

impl Step {
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    pub fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => HOUR,
            Self::Day => 24 * HOUR,
        }
    }

    /// The beginning of the step that a moment lies in.
    pub fn start(self, second: i64) -> i64 {
        second - second.rem_euclid(self.seconds())
    }
}

/// What sums are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Tenant,
    Route,
    Consumer,
    Region,
}

impl Group {
    fn column(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Route => "route",
            Self::Consumer => "consumer",
            Self::Region => "region",
        }
    }
}

/// Which sums. What is absent is any.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The tenants that may be seen.
    pub tenants: Option<BTreeSet<Id>>,
    pub route: Option<String>,
    pub consumer: Option<String>,
    pub region: Option<String>,
    pub step: Step,
    /// Unix times: from the first one on, before the second one.
    pub from: i64,
    pub to: i64,
}

/// What a group has used in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Empty, if nothing was told apart.
    pub group: String,
    pub since: i64,
    pub counts: Counts,
}

/// A sum as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub since: i64,
    pub tenant: String,
    pub route: String,
    pub consumer: String,
    pub region: String,
    pub counts: Counts,
}

/// Usage that did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub node: String,
    pub records: u64,
    pub since: i64,
    pub until: i64,
}

/// A condition, and what stands in its places.
struct Where {
    sql: String,
    values: Vec<Value>,
}

impl Where {
    fn of(filter: &Filter) -> Self {
        let mut this = Self { sql: String::new(), values: Vec::new() };
        this.and("step =", filter.step.seconds().into());
        this.and("since >=", filter.from.into());
        this.and("since <", filter.to.into());
        for (column, value) in
            [("route =", &filter.route), ("consumer =", &filter.consumer), ("region =", &filter.region)]
        {
            if let Some(value) = value {
                this.and(column, value.as_str().into());
            }
        }
        if let Some(tenants) = &filter.tenants {
            this.and_tenants(tenants.iter().map(Id::as_str));
        }
        this
    }

    fn and(&mut self, column: &str, value: Value) {
        let joint = if self.sql.is_empty() { "" } else { " AND " };
        self.values.push(value);
        let _ = write!(self.sql, "{joint}{column} ${}", self.values.len());
    }

    fn and_tenants<'a>(&mut self, tenants: impl Iterator<Item = &'a str>) {
        let first = self.values.len() + 1;
        self.values.extend(tenants.map(Value::from));
        let places: Vec<String> = (first..=self.values.len()).map(|place| format!("${place}")).collect();
        // Of none, nothing.
        let condition =
            if places.is_empty() { "1 = 0".to_owned() } else { format!("tenant IN ({})", places.join(", ")) };
        let joint = if self.sql.is_empty() { "" } else { " AND " };
        let _ = write!(self.sql, "{joint}{condition}");
    }
}

impl Store {
    /// What was used step by step: told apart by the group, in its order and that of time. None if that were more than so
    /// many points.
    pub async fn usage(
        &self,
        filter: &Filter,
        group: Option<Group>,
        most: usize,
    ) -> Result<Option<Vec<Point>>, StoreError> {
        let Where { sql, values } = Where::of(filter);
        let group = group.map_or("''", Group::column);
        let sql = format!(
            "SELECT {group} AS told_by, since AS began, {} FROM usage_sums WHERE {sql} GROUP BY 1, 2 ORDER BY 1, 2 LIMIT {}",
            sums(),
            most.saturating_add(1)
        );
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        if rows.len() > most {
            return Ok(None);
        }
        let point = |row: &QueryResult| -> Result<Point, StoreError> {
            Ok(Point { group: row.try_get("", "told_by")?, since: row.try_get("", "began")?, counts: counts_of(row)? })
        };
        rows.iter().map(point).collect::<Result<_, _>>().map(Some)
    }

    /// Sums as they are, after a place, in the order of time: for whoever wants all of them.
    pub async fn usage_rows(&self, filter: &Filter, after: Option<&Row>, most: usize) -> Result<Vec<Row>, StoreError> {
        let mut condition = Where::of(filter);
        if let Some(after) = after {
            let first = condition.values.len() + 1;
            let _ = write!(
                condition.sql,
                " AND (since, tenant, route, consumer, region) > (${}, ${}, ${}, ${}, ${})",
                first,
                first + 1,
                first + 2,
                first + 3,
                first + 4
            );
            condition.values.push(after.since.into());
            for text in [&after.tenant, &after.route, &after.consumer, &after.region] {
                condition.values.push(text.as_str().into());
            }
        }
        let Where { sql, values } = condition;
        let sql = format!(
            "SELECT since, tenant, route, consumer, region, {} FROM usage_sums WHERE {sql} \
             ORDER BY since, tenant, route, consumer, region LIMIT {most}",
            NUMBERS.join(", ")
        );
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        let row = |row: &QueryResult| -> Result<Row, StoreError> {
            Ok(Row {
                since: row.try_get("", "since")?,
                tenant: row.try_get("", "tenant")?,
                route: row.try_get("", "route")?,
                consumer: row.try_get("", "consumer")?,
                region: row.try_get("", "region")?,
                counts: counts_of(row)?,
            })
        };
        rows.iter().map(row).collect()
    }

    /// What did not come of this time, the newest first, and no more than so many.
    pub async fn usage_gaps(&self, from: i64, to: i64, most: u64) -> Result<Vec<Gap>, StoreError> {
        let sql = format!(
            "SELECT node, first_record, last_record, since_second, until_second FROM usage_gaps \
             WHERE until_second >= $1 AND since_second < $2 ORDER BY until_second DESC LIMIT {most}"
        );
        let rows = self.read(move |database| all(database, sql.clone(), vec![from.into(), to.into()])).await?;
        let gap = |row: &QueryResult| -> Result<Gap, StoreError> {
            let (first, last): (i64, i64) = (row.try_get("", "first_record")?, row.try_get("", "last_record")?);
            Ok(Gap {
                node: row.try_get("", "node")?,
                records: number(last - first + 1),
                since: row.try_get("", "since_second")?,
                until: row.try_get("", "until_second")?,
            })
        };
        rows.iter().map(gap).collect()
    }

    /// What each of these tenants has used of its quotas since a moment. Those that have used nothing are left out.
    pub async fn usage_since(&self, tenants: &[&str], since: i64) -> Result<BTreeMap<String, u64>, StoreError> {
        let tenants: Vec<String> = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
        self.read(move |database| used_since(database, tenants.clone(), since)).await
    }
}

/// The same, by this connection: whole hours from hours, and what is before the first of them from minutes.
async fn used_since(
    database: DatabaseConnection,
    tenants: Vec<String>,
    since: i64,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut used = BTreeMap::new();
    for tenants in tenants.chunks(crate::store::BATCH) {
        let hour = Step::Hour.start(since.saturating_add(HOUR - 1));
        let mut condition = Where { sql: String::new(), values: vec![hour.into(), since.into()] };
        condition.sql.push_str("(step = 3600 AND since >= $1 OR step = 60 AND since >= $2 AND since < $1)");
        condition.and_tenants(tenants.iter().map(String::as_str));
        let sql = format!(
            "SELECT tenant, CAST(SUM(cost - given_back) AS BIGINT) AS used FROM usage_sums WHERE {} GROUP BY tenant",
            condition.sql
        );
        for row in all(database.clone(), sql, condition.values).await? {
            used.insert(row.try_get("", "tenant")?, number(row.try_get("", "used")?));
        }
    }
    Ok(used)
}

pub(in crate::store) fn sums() -> String {
    // Postgres makes something else of the sum of numbers.
    let sums: Vec<String> = NUMBERS.iter().map(|column| format!("CAST(SUM({column}) AS BIGINT) AS {column}")).collect();
    sums.join(", ")
}

pub(in crate::store) async fn all(
    database: DatabaseConnection,
    sql: String,
    values: Vec<Value>,
) -> Result<Vec<QueryResult>, StoreError> {
    Ok(database.query_all_raw(Statement::from_sql_and_values(database.get_database_backend(), sql, values)).await?)
}
