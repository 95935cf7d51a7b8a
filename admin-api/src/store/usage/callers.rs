//! How many callers, each a route and a consumer, the store tells apart. Nodes name them: without bounds, one node could fill
//! the store with names that it makes up.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Statement, Value};
use seiketsu_config::{push::usage::UsageRecord, values::Id};

use super::{ledger::text, sums::Step};
use crate::store::{Store, StoreError, number, signed};

/// Of a tenant, on one day: ten thousand users on ten routes.
pub const MOST_CALLERS: u64 = 100_000;

/// New ones, each counted once a day, that one node may name: twenty of each of a hundred thousand tenants at once, and as
/// many a day.
pub(in crate::store) const CALLERS_AT_ONCE: u32 = 2_000_000;
pub(in crate::store) const CALLERS_PER_SECOND: u32 = 25;

/// What all others count as, for route and consumer. No route can be called so.
pub const OTHER: &str = "(other)";

/// A tenant on a day of UTC.
type Group = (String, i64);

/// Its route and consumer.
type Caller = (String, String);

/// Those who are not told apart.
#[derive(Debug, Default)]
pub(super) struct Beyond(HashSet<(Group, Caller)>);

impl Beyond {
    /// How it counts.
    pub(super) fn caller(&self, record: &UsageRecord) -> Caller {
        let named = named(record);
        // Mostly there are none.
        if self.0.is_empty() || !self.0.contains(&named) {
            return named.1;
        }
        (OTHER.to_owned(), OTHER.to_owned())
    }
}

fn named(record: &UsageRecord) -> (Group, Caller) {
    let day = Step::Day.start(signed(record.second));
    ((text(&record.tenant), day), (text(&record.route), text(&record.consumer)))
}

impl Store {
    /// Who of these is new, and beyond what there may be of their tenants on their days, or of the node.
    pub(super) async fn beyond(
        &self,
        transaction: &DatabaseTransaction,
        node: &Id,
        region: &str,
        records: impl Iterator<Item = &UsageRecord>,
    ) -> Result<Beyond, StoreError> {
        let new = new(transaction, region, records.map(named).collect()).await?;
        if new.is_empty() {
            return Ok(Beyond::default());
        }
        let there = there(transaction, new.keys()).await?;
        let beyond = sift(new, &there, || self.0.callers.take(node.clone()).is_ok());
        if let Some(((tenant, _), _)) = beyond.iter().next() {
            let many = beyond.len();
            tracing::warn!(%node, tenant, many, "new callers are not told apart any more: there are too many today");
        }
        Ok(Beyond(beyond))
    }
}

/// Those beyond what there may be. `there`: how many there are of each group; `may`: whether the node may name one more.
fn sift(
    new: BTreeMap<Group, Vec<Caller>>,
    there: &BTreeMap<Group, u64>,
    mut may: impl FnMut() -> bool,
) -> HashSet<(Group, Caller)> {
    let mut beyond = HashSet::new();
    for (group, callers) in new {
        let mut room = MOST_CALLERS.saturating_sub(there.get(&group).copied().unwrap_or_default());
        for caller in callers {
            if room > 0 && may() {
                room -= 1;
            } else {
                beyond.insert((group.clone(), caller));
            }
        }
    }
    beyond
}

/// Who has no row of the day yet. Each is looked up by the key, whatever the store expects of a day that has just begun.
async fn new(
    transaction: &DatabaseTransaction,
    region: &str,
    callers: BTreeSet<(Group, Caller)>,
) -> Result<BTreeMap<Group, Vec<Caller>>, StoreError> {
    if callers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = Asked::default();
    for ((tenant, day), (route, consumer)) in &callers {
        asked.add([tenant, route, consumer].map(|text| text.as_str().into()), *day);
    }
    asked.values.push(region.into());
    let sql = format!(
        "WITH asked (place, day, name, path, caller) AS MATERIALIZED (VALUES {}) \
         SELECT place FROM asked WHERE (SELECT since FROM usage_sums WHERE step = 86400 AND tenant = name AND since = day \
         AND route = path AND consumer = caller AND region = ${} LIMIT 1) IS NULL ORDER BY place",
        asked.rows.join(", "),
        asked.values.len()
    );
    let rows = query(transaction, sql, asked.values).await?;
    let places =
        rows.iter().map(|row| Ok(row.try_get::<i64>("", "place")?)).collect::<Result<HashSet<i64>, StoreError>>()?;
    let mut new: BTreeMap<Group, Vec<Caller>> = BTreeMap::new();
    for (_, (group, caller)) in (0..).zip(callers).filter(|(place, _)| places.contains(place)) {
        new.entry(group).or_default().push(caller);
    }
    Ok(new)
}

/// How many there are of each: counted as far as it matters.
async fn there<'a>(
    transaction: &DatabaseTransaction,
    groups: impl Iterator<Item = &'a Group>,
) -> Result<BTreeMap<Group, u64>, StoreError> {
    let groups: Vec<&Group> = groups.collect();
    let mut asked = Asked::default();
    for (tenant, day) in &groups {
        asked.add([tenant.as_str().into()], *day);
    }
    let sql = format!(
        "WITH asked (place, day, name) AS MATERIALIZED (VALUES {}) SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM usage_sums \
         WHERE step = 86400 AND tenant = name AND since = day LIMIT {MOST_CALLERS}) AS counted) AS there \
         FROM asked ORDER BY place",
        asked.rows.join(", ")
    );
    let rows = query(transaction, sql, asked.values).await?;
    let counts = rows.iter().map(|row| Ok::<_, StoreError>(number(row.try_get("", "there")?)));
    groups.into_iter().cloned().zip(counts).map(|(group, count)| Ok((group, count?))).collect()
}

/// Rows of texts and a day, each with its place.
#[derive(Default)]
struct Asked {
    rows: Vec<String>,
    values: Vec<Value>,
}

impl Asked {
    fn add<const N: usize>(&mut self, texts: [Value; N], day: i64) {
        let place = self.rows.len();
        let first = self.values.len() + 1;
        // The first row says of what types all are.
        let cast = |place: usize| if first == 1 { format!("CAST(${place} AS TEXT)") } else { format!("${place}") };
        let places: Vec<String> = (first..first + N).map(cast).collect();
        self.rows.push(format!("(CAST({place} AS BIGINT), CAST({day} AS BIGINT), {})", places.join(", ")));
        self.values.extend(texts);
    }
}

async fn query(
    transaction: &DatabaseTransaction,
    sql: String,
    values: Vec<Value>,
) -> Result<Vec<QueryResult>, StoreError> {
    let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
    Ok(transaction.query_all_raw(statement).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_so_many_callers_a_day_and_a_node_names_so_many() {
        let group = |tenant: &str| (tenant.to_owned(), 86_400);
        let callers = |many: u64| (0..many).map(|caller| ("all".to_owned(), caller.to_string())).collect::<Vec<_>>();
        let new = BTreeMap::from([(group("acme"), callers(5)), (group("globex"), callers(5))]);
        let there = BTreeMap::from([(group("acme"), MOST_CALLERS - 3), (group("globex"), 0)]);
        let beyond = sift(new.clone(), &there, || true);
        assert_eq!(beyond, callers(5).into_iter().skip(3).map(|caller| (group("acme"), caller)).collect());
        let mut left = 4;
        let beyond = sift(new, &there, || {
            let may = left > 0;
            left -= i32::from(may);
            may
        });
        assert_eq!(beyond.len(), 2 + 4);
    }
}
