//! How requests were answered, as far as whoever watches wants to know, and whose they were.

use std::collections::BTreeMap;

use sea_orm::{QueryResult, Value};

use super::{Step, all};
use crate::store::{Store, StoreError, number};

/// How the requests of a time were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    pub requests: u64,
    pub client_errors: u64,
    pub server_errors: u64,
}

impl Answered {
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.client_errors = self.client_errors.saturating_add(other.client_errors);
        self.server_errors = self.server_errors.saturating_add(other.server_errors);
    }
}

const COUNTS: &str = "CAST(SUM(status_1xx + status_2xx + status_3xx + status_4xx + status_5xx) AS BIGINT) AS requests, \
     CAST(SUM(status_4xx) AS BIGINT) AS client_errors, CAST(SUM(status_5xx) AS BIGINT) AS server_errors";

fn counts(row: &QueryResult) -> Result<Answered, StoreError> {
    Ok(Answered {
        requests: number(row.try_get("", "requests")?),
        client_errors: number(row.try_get("", "client_errors")?),
        server_errors: number(row.try_get("", "server_errors")?),
    })
}

/// Tenants that follow each other by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Those that have used anything.
    pub tenants: Vec<String>,
    /// The last one that was looked at; none, if there are no more.
    pub through: Option<String>,
}

/// A statement that reads sums of these minutes of these tenants, of which there is one at least, and its values.
pub(in crate::store) fn of_tenants(
    columns: &str,
    group: &str,
    tenants: &[String],
    from: i64,
    to: i64,
) -> (String, Vec<Value>) {
    // The first row says of what types all are. That the store does not see through them is what has it look up each
    // tenant by the key: of the last minutes it knows nothing yet, takes them to be empty, and would read all of them.
    let places: Vec<String> = (4..3 + tenants.len()).map(|place| format!(", (${place}, $1, $2)")).collect();
    let sql = format!(
        "WITH asked (name, begun, ended) AS MATERIALIZED ( \
         VALUES (CAST($3 AS TEXT), CAST($1 AS BIGINT), CAST($2 AS BIGINT)){}) \
         SELECT {columns} FROM asked CROSS JOIN usage_sums \
         WHERE step = 60 AND tenant = name AND since >= begun AND since < ended GROUP BY {group}",
        places.concat()
    );
    let mut values: Vec<Value> = vec![from.into(), to.into()];
    values.extend(tenants.iter().map(|tenant| Value::from(tenant.as_str())));
    (sql, values)
}

impl Store {
    /// The requests of all tenants together, by the minute.
    pub async fn answered_by_minute(&self, from: i64, to: i64) -> Result<BTreeMap<i64, Answered>, StoreError> {
        let sql = format!(
            "SELECT since, {COUNTS} FROM usage_sums WHERE step = 60 AND since >= $1 AND since < $2 GROUP BY since"
        );
        let rows = self.read(move |database| all(database, sql.clone(), vec![from.into(), to.into()])).await?;
        rows.iter().map(|row| Ok((row.try_get("", "since")?, counts(row)?))).collect()
    }

    /// The requests of these minutes, of each of these tenants. Those that had none are left out.
    pub async fn answered(
        &self,
        tenants: &[String],
        from: i64,
        to: i64,
    ) -> Result<BTreeMap<String, Answered>, StoreError> {
        if tenants.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (sql, values) = of_tenants(&format!("tenant, {COUNTS}"), "tenant", tenants, from, to);
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        rows.iter().map(|row| Ok((row.try_get("", "tenant")?, counts(row)?))).collect()
    }

    /// Of the next so many tenants after a name that have such sums at all, those that have used anything since a moment.
    ///
    /// It goes from name to name by the key, and reads no more than two of its entries for each: to read all sums of a time,
    /// or to leave it to the store to find that out, takes as long as there are sums.
    pub async fn tenants_in_use(&self, step: Step, since: i64, after: &str, most: usize) -> Result<InUse, StoreError> {
        let next = "SELECT tenant FROM usage_sums WHERE step = $1 AND tenant >";
        let sql = format!(
            "WITH RECURSIVE names (name) AS ( \
             SELECT tenant FROM ({next} $2 ORDER BY tenant LIMIT 1) AS first UNION ALL \
             SELECT ({next} name ORDER BY tenant LIMIT 1) FROM names WHERE name IS NOT NULL) \
             SELECT name, (SELECT since FROM usage_sums WHERE step = $1 AND tenant = name ORDER BY since DESC LIMIT 1) \
             AS newest FROM names WHERE name IS NOT NULL LIMIT {most}"
        );
        let values = vec![step.seconds().into(), after.into()];
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        let mut tenants = Vec::with_capacity(rows.len());
        let (mut through, since) = (None, step.start(since));
        for row in &rows {
            let name: String = row.try_get("", "name")?;
            if row.try_get::<i64>("", "newest")? >= since {
                tenants.push(name.clone());
            }
            through = Some(name);
        }
        Ok(InUse { tenants, through: through.filter(|_| rows.len() == most) })
    }
}
