//! The ledger: how far each node's log was taken over, and the sums that its records went into.
//!
//! The place in a log moves in the same transaction as the sums, so that a record counts once, however often and to
//! however many replicas it is sent. Minutes, hours and days are written together: what comes late is right in all of
//! them at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QuerySelect, Statement,
    TransactionTrait, Value,
};
use seiketsu_config::{
    push::usage::{Counts, UsagePage, UsageRecord, UsageTaken},
    values::Id,
};
use time::OffsetDateTime;

use super::{
    Retention,
    callers::New,
    sums::{NUMBERS, Step, numbers},
};
use crate::store::{
    BATCH, PATIENCE, Store, StoreError,
    entities::{revision_change, tenant},
    id_of, number, signed, within,
};

/// Sums of minutes that are written at a time: changes wait for a few milliseconds at most.
const AT_A_TIME: usize = 200;

/// How long it is known how far a log was taken that nothing more has come of: longer than records may take to come.
const LOGS_KEPT: time::Duration = time::Duration::days(100);

/// Gaps of a part of a page that are told apart.
const MOST_GAPS: usize = 20;

/// From this sum on nothing is added: more than is ever true, and far from where numbers end.
const FULL: i64 = 1 << 53;

/// What sums are of, beside the step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    step: i64,
    tenant: String,
    since: i64,
    route: String,
    consumer: String,
}

impl Store {
    /// Takes over what a node has sent. What it says to be taken is durable.
    pub async fn take_usage(&self, node: &Id, region: Option<&Id>, page: UsagePage) -> Result<UsageTaken, StoreError> {
        let UsagePage { log, missing: _, records, next } = page;
        let log = text(&log);
        let mut taken = 0;
        let mut rest = &records[..];
        loop {
            let (part, others) = rest.split_at(part(rest));
            rest = others;
            // What is missing is what does not come: between records, and after the last one.
            let through = if rest.is_empty() { Some(signed(next)) } else { None };
            taken = within(PATIENCE, self.take_part(node, region, &log, part, through)).await?.max(taken);
            if rest.is_empty() {
                return Ok(UsageTaken { log, next: number(taken), refused: None });
            }
        }
    }

    /// Of these names, those of tenants that there are or were.
    pub async fn tenants_ever(&self, names: BTreeSet<&str>) -> Result<HashSet<String>, StoreError> {
        let mut names: Vec<String> = names.into_iter().map(text).collect();
        let mut found = HashSet::new();
        within(PATIENCE, async {
            for names in names.chunks(BATCH) {
                let find = tenant::Entity::find().select_only().column(tenant::Column::Name);
                let find = find.filter(tenant::Column::Name.is_in(names)).into_tuple::<String>();
                found.extend(find.all(&self.0.database).await?);
            }
            names.retain(|name| !name.is_empty() && !found.contains(name));
            for name in names {
                let find = revision_change::Entity::find().filter(revision_change::Column::Tenant.eq(&name));
                if find.one(&self.0.database).await?.is_some() {
                    found.insert(name);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Whose log it is, if it is known.
    pub async fn log_of_usage(&self, log: &str) -> Result<Option<Id>, StoreError> {
        let sql = "SELECT node FROM usage_logs WHERE log = $1";
        let statement = Statement::from_sql_and_values(self.0.database.get_database_backend(), sql, [log.into()]);
        within(PATIENCE, async {
            let row = self.0.database.query_one_raw(statement).await?;
            row.map(|row| id_of(&row.try_get::<String>("", "node")?)).transpose()
        })
        .await
    }

    /// How many logs of a node were heard of in the last day.
    pub async fn logs_of_usage(&self, node: &Id) -> Result<u64, StoreError> {
        let sql = "SELECT COUNT(*) AS logs FROM usage_logs WHERE node = $1 AND heard_at > $2";
        let values = [node.as_str().into(), (OffsetDateTime::now_utc() - time::Duration::DAY).into()];
        let statement = Statement::from_sql_and_values(self.0.database.get_database_backend(), sql, values);
        within(PATIENCE, async {
            let row = self.0.database.query_one_raw(statement).await?;
            Ok(row.map(|row| row.try_get::<i64>("", "logs")).transpose()?.map_or(0, number))
        })
        .await
    }

    async fn take_part(
        &self,
        node: &Id,
        region: Option<&Id>,
        log: &str,
        records: &[UsageRecord],
        through: Option<i64>,
    ) -> Result<i64, StoreError> {
        let region = region.map_or("", Id::as_str);
        let database = &self.0.database;
        // SQLite has one writer, and whoever waits for it waits here. In Postgres nothing is locked that a change needs.
        let _turn = match database.get_database_backend() {
            DbBackend::Postgres => None,
            _ => Some(self.0.turn.lock().await),
        };
        let _place = self.0.usage_writers.acquire().await;
        let transaction = database.begin().await?;
        let place = lock_log(&transaction, log, node, region).await?;
        let mut at = place.clone();
        let (mut sums, mut gaps) = (BTreeMap::new(), Vec::new());
        let new = || records.iter().filter(|record| signed(record.sequence) > place.taken);
        let callers = self.new_callers(&transaction, node, new()).await?;
        for record in new() {
            at.step_to(signed(record.sequence), signed(record.second), &mut gaps);
            add(&mut sums, record, &callers);
        }
        if let Some(through) = through.filter(|through| *through > at.taken) {
            at.step_to(through + 1, OffsetDateTime::now_utc().unix_timestamp(), &mut gaps);
            at = Place { taken: through, ..at };
        }
        for gap in few(gaps) {
            insert_gap(&transaction, log, node, gap).await?;
        }
        let sums: Vec<(Key, Counts)> = sums.into_iter().collect();
        for batch in sums.chunks(AT_A_TIME) {
            add_to_sums(&transaction, region, batch).await?;
        }
        if at != place {
            let sql = "UPDATE usage_logs SET taken = $2, last_second = $3 WHERE log = $1";
            execute(&transaction, sql, vec![log.into(), at.taken.into(), at.last_second.into()]).await?;
        }
        transaction.commit().await?;
        self.0.callers.add(&callers.told_apart);
        Ok(at.taken)
    }

    /// Forgets what is older than it is to be kept.
    pub async fn forget_usage(&self, retention: &Retention) -> Result<(), StoreError> {
        let now = OffsetDateTime::now_utc();
        for (step, kept) in
            [(Step::Minute, retention.minutes), (Step::Hour, retention.hours), (Step::Day, retention.days)]
        {
            let before = now.unix_timestamp() - signed(kept.as_secs());
            // A step at a time: nobody else waits for long.
            while within(PATIENCE, self.forget_first(step, before)).await? {}
        }
        let before = now - retention.metrics;
        let gaps = now.unix_timestamp() - signed(retention.days.as_secs());
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            let sql = "DELETE FROM usage_gaps WHERE until_second < $1";
            execute(&self.0.database, sql, vec![gaps.into()]).await?;
            let sql = "DELETE FROM usage_logs WHERE heard_at < $1";
            execute(&self.0.database, sql, vec![(now - LOGS_KEPT).into()]).await?;
            let sql = "DELETE FROM enterprise_performance_metrics WHERE recorded_at < $1";
            execute(&self.0.database, sql, vec![before.into()]).await
        })
        .await
    }

    /// Whether there may be more.
    async fn forget_first(&self, step: Step, before: i64) -> Result<bool, StoreError> {
        let _turn = self.0.turn.lock().await;
        let database = &self.0.database;
        let first = "SELECT MIN(since) AS first FROM usage_sums WHERE step = $1";
        let first = Statement::from_sql_and_values(database.get_database_backend(), first, [step.seconds().into()]);
        let first: Option<i64> = match database.query_one_raw(first).await? {
            Some(row) => row.try_get("", "first")?,
            None => None,
        };
        let Some(first) = first.filter(|first| first + step.seconds() <= before) else { return Ok(false) };
        let sql = "DELETE FROM usage_sums WHERE step = $1 AND since = $2";
        execute(database, sql, vec![step.seconds().into(), first.into()]).await?;
        Ok(true)
    }
}

/// How many of the records are written together.
fn part(records: &[UsageRecord]) -> usize {
    let mut rows = HashSet::new();
    for (index, record) in records.iter().enumerate() {
        rows.insert((record.second / 60, &record.tenant, &record.route, &record.consumer));
        if rows.len() > AT_A_TIME {
            return index;
        }
    }
    records.len()
}

/// How far a log was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    taken: i64,
    /// 0: nothing has come.
    last_second: i64,
}

/// Records, both of them among the missing, and when the one before and the one after were.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    first: i64,
    last: i64,
    since: i64,
    until: i64,
}

impl Place {
    fn step_to(&mut self, sequence: i64, second: i64, gaps: &mut Vec<Missing>) {
        if sequence > self.taken + 1 {
            let before = if self.last_second == 0 { second } else { self.last_second };
            let (since, until) = (before.min(second), before.max(second));
            gaps.push(Missing { first: self.taken + 1, last: sequence - 1, since, until });
        }
        *self = Self { taken: sequence, last_second: second };
    }
}

/// As many as are told apart; the rest of them as one, with what lies between.
fn few(mut gaps: Vec<Missing>) -> Vec<Missing> {
    let rest = gaps.split_off(gaps.len().min(MOST_GAPS));
    let all = rest.into_iter().reduce(|first, next| Missing {
        last: next.last,
        since: first.since.min(next.since),
        until: first.until.max(next.until),
        ..first
    });
    gaps.extend(all);
    gaps
}

/// The place in the log. Nobody else moves it before the transaction ends.
async fn lock_log(transaction: &DatabaseTransaction, log: &str, node: &Id, region: &str) -> Result<Place, StoreError> {
    let sql = "INSERT INTO usage_logs (log, node, region, taken, last_second, heard_at) VALUES ($1, $2, $3, 0, 0, $4) \
         ON CONFLICT (log) DO UPDATE SET node = excluded.node, region = excluded.region, heard_at = excluded.heard_at \
         RETURNING taken, last_second";
    let values = [log.into(), node.as_str().into(), region.into(), OffsetDateTime::now_utc().into()];
    let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
    let row = transaction.query_one_raw(statement).await?;
    let row = row.ok_or_else(|| StoreError::corrupt("a log of usage", &"it has no row"))?;
    Ok(Place { taken: row.try_get("", "taken")?, last_second: row.try_get("", "last_second")? })
}

async fn insert_gap(
    transaction: &DatabaseTransaction,
    log: &str,
    node: &Id,
    Missing { first, last, since, until }: Missing,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO usage_gaps (log, first_record, last_record, node, since_second, until_second) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (log, first_record) DO NOTHING";
    let values = vec![log.into(), first.into(), last.into(), node.as_str().into(), since.into(), until.into()];
    execute(transaction, sql, values).await
}

fn add(sums: &mut BTreeMap<Key, Counts>, record: &UsageRecord, callers: &New) {
    let second = signed(record.second);
    let (route, consumer) = callers.caller(record);
    for step in Step::ALL {
        let key = Key {
            step: step.seconds(),
            tenant: text(&record.tenant),
            since: step.start(second),
            route: route.clone(),
            consumer: consumer.clone(),
        };
        sums.entry(key).or_default().add(&record.counts);
    }
}

/// Postgres has no text with a NUL. A token's subject may have one.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// In the order of their keys, so that two that write the same rows wait for each other and not for ever.
async fn add_to_sums(
    transaction: &DatabaseTransaction,
    region: &str,
    sums: &[(Key, Counts)],
) -> Result<(), StoreError> {
    let columns = NUMBERS.join(", ");
    let each = 6 + NUMBERS.len();
    let mut values: Vec<Value> = Vec::with_capacity(sums.len() * each);
    let mut rows = Vec::with_capacity(sums.len());
    for (key, counts) in sums {
        let places: Vec<String> = (1..=each).map(|place| format!("${}", values.len() + place)).collect();
        rows.push(format!("({})", places.join(", ")));
        let Key { step, tenant, since, route, consumer } = key;
        values.extend([
            (*step).into(),
            (*since).into(),
            tenant.as_str().into(),
            route.as_str().into(),
            consumer.as_str().into(),
            region.into(),
        ]);
        values.extend(numbers(counts).into_iter().map(|number| Value::from(signed(number))));
    }
    let add = |column: &&str| {
        format!(
            "{column} = CASE WHEN usage_sums.{column} < {FULL} THEN usage_sums.{column} + excluded.{column} \
             ELSE usage_sums.{column} END"
        )
    };
    let added: Vec<String> = NUMBERS.iter().map(add).collect();
    let sql = format!(
        "INSERT INTO usage_sums (step, since, tenant, route, consumer, region, {columns}) VALUES {} \
         ON CONFLICT (step, tenant, since, route, consumer, region) DO UPDATE SET {}",
        rows.join(", "),
        added.join(", ")
    );
    execute(transaction, &sql, values).await
}

async fn execute(connection: &impl ConnectionTrait, sql: &str, values: Vec<Value>) -> Result<(), StoreError> {
    connection.execute_raw(Statement::from_sql_and_values(connection.get_database_backend(), sql, values)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn very_many_gaps_are_told_as_a_few_that_leave_none_out() {
        let gap = |n: i64| Missing { first: 10 * n, last: 10 * n + 3, since: 100 * n, until: 100 * n + 50 };
        assert_eq!(few((0..3).map(gap).collect()), (0..3).map(gap).collect::<Vec<_>>());
        let told = few((0..500).map(gap).collect());
        assert_eq!(told.len(), MOST_GAPS + 1);
        assert_eq!(told.last(), Some(&Missing { first: 200, last: 4993, since: 2000, until: 49_950 }));
    }

    proptest! {
        /// Whatever comes of a log, in whatever order and however often: each number is taken once, or among the gaps.
        #[test]
        fn every_number_is_taken_or_missing_and_none_is_both(jumps in prop::collection::vec((1_i64..4, 0_i64..50), 1..40)) {
            let (mut place, mut gaps, mut taken) = (Place { taken: 0, last_second: 0 }, Vec::new(), Vec::new());
            for (jump, second) in jumps {
                let sequence = place.taken + jump;
                place.step_to(sequence, second, &mut gaps);
                taken.push(sequence);
            }
            prop_assert!(gaps.iter().all(|gap| gap.since <= gap.until));
            let missing = gaps.iter().flat_map(|gap| gap.first..=gap.last);
            let mut all: Vec<i64> = taken.into_iter().chain(missing).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=place.taken).collect::<Vec<_>>());
        }
    }
}
