//! How many callers, each a route and a consumer, the store tells apart. Nodes name them: without bounds, one node could fill
//! the store with names that it makes up.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use parking_lot::Mutex;
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Statement, Value};
use seiketsu_config::{push::usage::UsageRecord, values::Id};

use super::{ledger::text, sums::Step};
use crate::{
    limit::Limiter,
    store::{Store, StoreError, number, signed},
};

/// Of a tenant, on one day: ten thousand users on ten routes.
pub const MOST_CALLERS: u64 = 100_000;

/// New ones, each counted once a day, that one node may name: twenty of each of a hundred thousand tenants at once, and as
/// many a day.
const AT_ONCE: u32 = 2_000_000;
const PER_SECOND: u32 = 25;

/// And all nodes together, whatever names they give themselves, to one replica.
const OF_ALL: u32 = 10;

/// What all others count as, for route and consumer. No route can be called so.
pub const OTHER: &str = "(other)";

/// So many are counted in one go, of each of many tenants; where there are more, a tenant at a time.
const FEW: u64 = 1000;

/// Tenants and days whose callers this process knows the number of. Beyond, it counts anew.
const MOST_KNOWN: usize = 1_000_000;

/// A tenant on a day of UTC.
type Group = (String, i64);

/// Its route and consumer.
type Caller = (String, String);

/// How many there are, as far as this process knows: what it did not write itself, it has counted once. Another replica may
/// tell as many apart.
#[derive(Debug)]
pub(in crate::store) struct Callers {
    of_nodes: Limiter<Id>,
    of_all: Limiter<()>,
    there: Mutex<HashMap<Group, There>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct There {
    callers: u64,
    /// The log has said that there are too many.
    is_told: bool,
}

impl Default for Callers {
    fn default() -> Self {
        Self {
            of_nodes: Limiter::new(PER_SECOND, AT_ONCE),
            of_all: Limiter::new(OF_ALL * PER_SECOND, OF_ALL * AT_ONCE),
            there: Mutex::default(),
        }
    }
}

impl Callers {
    fn may(&self, node: &Id) -> bool {
        self.of_nodes.take(node.clone()).is_ok() && self.of_all.take(()).is_ok()
    }

    fn know(&self, group: Group, callers: u64) {
        let mut there = self.there.lock();
        if there.len() >= MOST_KNOWN {
            there.clear();
        }
        there.entry(group).or_insert(There { callers, is_told: false });
    }

    /// What was written, and stands.
    pub(super) fn add(&self, new: &[(Group, u64)]) {
        let mut there = self.there.lock();
        for (group, many) in new {
            // What is not known any more is counted again.
            if let Some(there) = there.get_mut(group) {
                there.callers += many;
            }
        }
    }

    /// Says once of each that there are too many.
    fn tell(&self, node: &Id, beyond: &HashSet<(Group, Caller)>) {
        let mut there = self.there.lock();
        for (group, _) in beyond {
            let Some(there) = there.get_mut(group).filter(|there| !there.is_told) else { continue };
            there.is_told = true;
            tracing::warn!(%node, tenant = group.0, "new callers are not told apart any more: there are too many today");
        }
    }
}

/// Who of the callers of a part is new.
#[derive(Debug, Default)]
pub(super) struct New {
    /// Those who are not told apart.
    beyond: HashSet<(Group, Caller)>,
    /// How many of the others there are.
    pub(super) told_apart: Vec<(Group, u64)>,
}

impl New {
    /// How it counts.
    pub(super) fn caller(&self, record: &UsageRecord) -> Caller {
        let named = named(record);
        // Mostly there are none.
        if self.beyond.is_empty() || !self.beyond.contains(&named) {
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
    pub(super) async fn new_callers(
        &self,
        transaction: &DatabaseTransaction,
        node: &Id,
        records: impl Iterator<Item = &UsageRecord>,
    ) -> Result<New, StoreError> {
        let new = new(transaction, records.map(named).collect()).await?;
        if new.is_empty() {
            return Ok(New::default());
        }
        let callers = &self.0.callers;
        self.count(transaction, new.keys()).await?;
        let there = |group: &Group| callers.there.lock().get(group).copied().unwrap_or_default().callers;
        let sifted = sift(new, there, || callers.may(node));
        callers.tell(node, &sifted.beyond);
        Ok(sifted)
    }

    /// Gets to know how many there are of each. Each number is kept as soon as it is known: whatever takes too long is
    /// gone on with by the next try.
    async fn count<'a>(
        &self,
        transaction: &DatabaseTransaction,
        groups: impl Iterator<Item = &'a Group>,
    ) -> Result<(), StoreError> {
        let unknown: Vec<&Group> = {
            let there = self.0.callers.there.lock();
            groups.filter(|group| !there.contains_key(*group)).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        let few = "SELECT 1 FROM usage_sums WHERE step = 86400 AND tenant = name AND since = day";
        let mut many = Vec::new();
        for (group, callers) in unknown.iter().zip(counts(transaction, &unknown, few, FEW).await?) {
            if callers < FEW {
                self.0.callers.know((*group).clone(), callers);
            } else {
                many.push(*group);
            }
        }
        // One whom several regions know is one.
        let all =
            "SELECT DISTINCT route, consumer FROM usage_sums WHERE step = 86400 AND tenant = name AND since = day";
        for group in many {
            let callers = counts(transaction, &[group], all, MOST_CALLERS).await?;
            self.0.callers.know(group.clone(), callers.into_iter().sum());
        }
        Ok(())
    }
}

/// Those beyond what there may be. `there`: how many there are of a group; `may`: whether the node may name one more.
fn sift(new: BTreeMap<Group, Vec<Caller>>, there: impl Fn(&Group) -> u64, mut may: impl FnMut() -> bool) -> New {
    let mut sifted = New::default();
    for (group, callers) in new {
        let room = MOST_CALLERS.saturating_sub(there(&group));
        let mut many = 0;
        for caller in callers {
            if many < room && may() {
                many += 1;
            } else {
                sifted.beyond.insert((group.clone(), caller));
            }
        }
        sifted.told_apart.push((group, many));
    }
    sifted
}

/// Who has no row of the day yet. Each is looked up by the key, whatever the store expects of a day that has just begun.
async fn new(
    transaction: &DatabaseTransaction,
    callers: BTreeSet<(Group, Caller)>,
) -> Result<BTreeMap<Group, Vec<Caller>>, StoreError> {
    if callers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = Asked::default();
    for ((tenant, day), (route, consumer)) in &callers {
        asked.add([tenant, route, consumer].map(|text| text.as_str().into()), *day);
    }
    let sql = format!(
        "WITH asked (place, day, name, path, caller) AS MATERIALIZED (VALUES {}) \
         SELECT place FROM asked WHERE (SELECT since FROM usage_sums WHERE step = 86400 AND tenant = name AND since = day \
         AND route = path AND consumer = caller LIMIT 1) IS NULL ORDER BY place",
        asked.rows.join(", ")
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

/// How many rows this finds of each, where it matters no more beyond so many.
async fn counts(
    transaction: &DatabaseTransaction,
    groups: &[&Group],
    rows: &str,
    most: u64,
) -> Result<Vec<u64>, StoreError> {
    let mut asked = Asked::default();
    for (tenant, day) in groups {
        asked.add([tenant.as_str().into()], *day);
    }
    let sql = format!(
        "WITH asked (place, day, name) AS MATERIALIZED (VALUES {}) \
         SELECT (SELECT COUNT(*) FROM ({rows} LIMIT {most}) AS counted) AS there FROM asked ORDER BY place",
        asked.rows.join(", ")
    );
    let rows = query(transaction, sql, asked.values).await?;
    rows.iter().map(|row| Ok(number(row.try_get("", "there")?))).collect()
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
        let there = |of: &Group| if *of == group("acme") { MOST_CALLERS - 3 } else { 0 };
        let sifted = sift(new.clone(), there, || true);
        assert_eq!(sifted.beyond, callers(5).into_iter().skip(3).map(|caller| (group("acme"), caller)).collect());
        assert_eq!(sifted.told_apart, [(group("acme"), 3), (group("globex"), 5)]);
        let mut left = 4;
        let sifted = sift(new, there, || {
            let may = left > 0;
            left -= i32::from(may);
            may
        });
        assert_eq!(sifted.beyond.len(), 2 + 4);
    }
}
