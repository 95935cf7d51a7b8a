//! The sums, as they are read.

use std::{collections::BTreeSet, fmt::Write as _};

use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement, Value};
use seiketsu_config::{
    push::usage::{Counts, LATENCY_BUCKETS, Latency, Refused, STATUS_CLASSES, Statuses},
    values::Id,
};
use serde::Deserialize;

use crate::store::{BATCH, Store, StoreError, number};

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

    /// The beginning of the first step that is not before a moment.
    pub fn end(self, second: i64) -> i64 {
        self.start(second.saturating_add(self.seconds() - 1))
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

    /// What each of these tenants has used of its quotas since its moment, in the same order.
    pub async fn usage_since(&self, asked: &[(&str, i64)]) -> Result<Vec<u64>, StoreError> {
        let mut used = Vec::with_capacity(asked.len());
        for asked in asked.chunks(BATCH) {
            let asked: Vec<(String, i64)> =
                asked.iter().map(|(tenant, since)| ((*tenant).to_owned(), *since)).collect();
            used.extend(self.read(move |database| used_since(database, asked.clone())).await?);
        }
        Ok(used)
    }
}

/// The same, by this connection: whole days from days, whole hours before them from hours, and what is before these from
/// minutes. Each tenant is looked up by the key, whatever the store expects of times that it has not counted yet.
async fn used_since(database: DatabaseConnection, asked: Vec<(String, i64)>) -> Result<Vec<u64>, StoreError> {
    let (mut rows, mut values) = (Vec::with_capacity(asked.len()), Vec::<Value>::with_capacity(4 * asked.len()));
    for (place, (tenant, since)) in asked.into_iter().enumerate() {
        let [one, two, three, four] = [1, 2, 3, 4].map(|place| values.len() + place);
        rows.push(if place == 0 {
            format!(
                "(0, CAST(${one} AS TEXT), CAST(${two} AS BIGINT), CAST(${three} AS BIGINT), CAST(${four} AS BIGINT))"
            )
        } else {
            format!("({place}, ${one}, ${two}, ${three}, ${four})")
        });
        values.extend([tenant.into(), since.into(), Step::Hour.end(since).into(), Step::Day.end(since).into()]);
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let sum = |condition: &str| {
        format!("COALESCE((SELECT SUM(cost - given_back) FROM usage_sums WHERE tenant = name AND {condition}), 0)")
    };
    let sql = format!(
        "WITH asked (place, name, minute, hour, day) AS MATERIALIZED (VALUES {}) \
         SELECT CAST({} + {} + {} AS BIGINT) AS used FROM asked ORDER BY place",
        rows.join(", "),
        sum("step = 86400 AND since >= day"),
        sum("step = 3600 AND since >= hour AND since < day"),
        sum("step = 60 AND since >= minute AND since < hour"),
    );
    let rows = all(database, sql, values).await?;
    rows.iter().map(|row| Ok(number(row.try_get("", "used")?))).collect()
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
