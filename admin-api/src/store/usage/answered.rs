//! How requests were answered, as far as whoever watches wants to know, and whose they were.

use std::collections::BTreeMap;

use super::{Step, all};
use crate::store::{Store, StoreError, number};

/// How the requests of a time were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    pub requests: u64,
    pub client_errors: u64,
    pub server_errors: u64,
}

impl Store {
    /// The requests of these minutes, by tenant; or of all together, under the empty name.
    pub async fn answered(
        &self,
        from: i64,
        to: i64,
        by_tenant: bool,
    ) -> Result<BTreeMap<String, Answered>, StoreError> {
        let group = if by_tenant { "tenant" } else { "''" };
        let sql = format!(
            "SELECT {group} AS told_by, \
             CAST(SUM(status_1xx + status_2xx + status_3xx + status_4xx + status_5xx) AS BIGINT) AS requests, \
             CAST(SUM(status_4xx) AS BIGINT) AS client_errors, CAST(SUM(status_5xx) AS BIGINT) AS server_errors \
             FROM usage_sums WHERE step = $1 AND since >= $2 AND since < $3 GROUP BY 1"
        );
        let values = vec![Step::Minute.seconds().into(), from.into(), to.into()];
        let rows = self.read(move |database| all(database, sql.clone(), values.clone())).await?;
        let mut answered = BTreeMap::new();
        for row in rows {
            let counts = Answered {
                requests: number(row.try_get("", "requests")?),
                client_errors: number(row.try_get("", "client_errors")?),
                server_errors: number(row.try_get("", "server_errors")?),
            };
            answered.insert(row.try_get("", "told_by")?, counts);
        }
        Ok(answered)
    }

    /// Tenants that have used anything since a moment.
    pub async fn tenants_in_use(&self, step: Step, since: i64) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT tenant FROM usage_sums WHERE step = $1 AND since >= $2";
        let values = vec![step.seconds().into(), step.start(since).into()];
        let rows = self.read(move |database| all(database, sql.to_owned(), values.clone())).await?;
        rows.iter().map(|row| Ok(row.try_get("", "tenant")?)).collect()
    }
}
