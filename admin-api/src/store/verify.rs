//! Whether the store is what its audit trail says. Each entry stands for all before it; the entry of a revision stands for
//! the documents that it changed, and what is served now is what the last revision of each document left; the entries of
//! operators and tokens say what their rows are. So that whatever is altered shows, with its table and row.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect, Select,
    sea_query::Query,
};
use seiketsu_config::{push::Sum, tenant::Tenant, values::Id};
use serde::Serialize;
use serde_json::Value;
use time::{UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    BATCH, HeadDocument, PATIENCE_FOR_ALL, Store, StoreError,
    audit::{self, DOCUMENTS, FIRST, ROWS, Verdict, entries_after, fingerprint, hash},
    entities::{
        api_gateway_config, audit_log, audit_seal, control, host, operator, own_secret, revision, revision_change,
        sealing_key, tenant, token,
    },
    gateway_config::GatewayConfig,
    known::STORE_SET_BACK,
    seals, secrets, within,
};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditFault)]
pub struct Fault {
    /// Where it shows.
    pub table: String,
    /// What tells the row from others of its table.
    pub row: String,
    /// The entry that it shows at, if it does at one.
    pub number: Option<u64>,
    pub what: String,
}

/// Faults beyond this number are not listed.
const MOST_FAULTS: usize = 100;

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, table: &str, row: impl ToString, what: impl Into<String>) {
        self.push(table, row, None, what.into());
    }

    fn entry(&mut self, entry: i64, what: impl Into<String>) {
        self.push("audit_log", entry, u64::try_from(entry).ok(), what.into());
    }

    #[allow(clippy::needless_pass_by_value)] // Numbers as well as names are passed.
    fn push(&mut self, table: &str, row: impl ToString, number: Option<u64>, what: String) {
        if self.0.len() < MOST_FAULTS {
            self.0.push(Fault { table: table.to_owned(), row: row.to_string(), number, what });
        }
    }
}

impl Store {
    /// Goes through the whole trail, and what it tells of.
    pub async fn verify_audit(&self) -> Result<Verdict, StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let transaction = self.snapshot().await?;
            let control = self.control(&transaction).await?;
            let mut faults = Faults::default();
            let trail = self.verify_trail(&transaction, &control, &mut faults).await?;
            verify_rows(&transaction, &trail.rows, &mut faults).await?;
            verify_documents(&transaction, &control, &mut faults).await?;
            self.verify_secrets(&transaction, &mut faults).await?;
            transaction.rollback().await?;
            Ok(Verdict { entries: trail.entries, hash: trail.hash, faults: faults.0 })
        })
        .await
    }

    async fn verify_trail(
        &self,
        transaction: &DatabaseTransaction,
        control: &control::Model,
        faults: &mut Faults,
    ) -> Result<Trail, StoreError> {
        let before = audit_log::Entity::find().filter(audit_log::Column::Number.lte(0)).limit(BATCH as u64);
        for row in before.all(transaction).await? {
            faults.entry(row.number, "it stands before the first entry");
        }
        let mut trail = Trail { hash: FIRST.to_owned(), ..Trail::default() };
        let mut last = 0;
        loop {
            let rows = entries_after(transaction, last).await?;
            let (Some(first), Some(end)) = (rows.first(), rows.last()) else { break };
            let mut seals = seals_between(transaction, first.number, end.number).await?;
            let mut revisions = revisions_of(transaction, &rows, faults).await?;
            for row in rows {
                if row.number != last + 1 {
                    faults.entry(row.number, format!("before it {} entries are missing", row.number - last - 1));
                } else if hash(&trail.hash, &row) != row.hash {
                    faults.entry(row.number, "it was altered, or stands where another one stood");
                } else if row.mac.as_deref() != Some(&self.0.trail.mac(&row.hash)) {
                    faults.entry(row.number, "it was not made by this control plane, or the store's id was altered");
                }
                trail.learn(transaction, &row, &mut revisions, faults).await?;
                match seals.remove(&row.number) {
                    Some(seal) if !self.0.trail.is_sealed(&seal) || seal.hash != row.hash => {
                        faults.add("audit_seals", row.number, "it was altered, or is that of another trail");
                    }
                    None if row.number % seals::EVERY == 0 => {
                        faults.add("audit_seals", row.number, "it is missing");
                    }
                    _ => {}
                }
                // What follows is judged by what stands there, so that each fault shows once.
                (last, trail.hash) = (row.number, row.hash);
                trail.entries += 1;
            }
            for seal in seals.into_keys() {
                faults.add("audit_seals", seal, "there is no such entry");
            }
        }
        if last != control.audit_number || trail.hash != control.audit_hash {
            faults.entry(last, format!("the trail ends here; its last entry was {}", control.audit_number));
            faults.add("control", control.id, "its last entry is not that of the trail");
        }
        if control.store != trail.store.unwrap_or(self.0.trail.store()) || control.trail != Some(self.0.trail.store()) {
            faults.add("control", control.id, "its store is another");
        }
        for seal in seals_between(transaction, last + 1, i64::MAX).await?.into_keys() {
            faults.add("audit_seals", seal, "there is no such entry");
        }
        for seal in seals_between(transaction, i64::MIN, 0).await?.into_keys() {
            faults.add("audit_seals", seal, "there is no such entry");
        }
        let told = Query::select()
            .column(audit_log::Column::Revision)
            .from(audit_log::Entity)
            .and_where(audit_log::Column::Revision.is_not_null())
            .take();
        let find = revision::Entity::find().select_only().column(revision::Column::Number);
        let find = find.filter(revision::Column::Number.not_in_subquery(told)).limit(BATCH as u64);
        let untold: Vec<i64> = find.into_tuple().all(transaction).await?;
        for number in untold {
            faults.add("revisions", number, "no entry tells of it");
        }
        Ok(trail)
    }

    async fn verify_secrets(&self, transaction: &DatabaseTransaction, faults: &mut Faults) -> Result<(), StoreError> {
        let (own, wrapped) = (own_secret::Entity::find(), sealing_key::Entity::find());
        let (own, wrapped) = (own.all(transaction).await?, wrapped.all(transaction).await?);
        let keys = self.0.keys.read();
        for row in &own {
            if keys.open(secrets::own_place(&row.name), &row.secret).is_err() {
                faults.add("own_secrets", &row.name, "it was not sealed for this place, or was altered");
            }
        }
        for name in [secrets::AUDIT_CHAIN, secrets::AUDIT_SEAL] {
            if !own.iter().any(|row| row.name == name) {
                faults.add("own_secrets", name, "it is missing");
            }
        }
        for missing in keys.missing(&wrapped) {
            faults.add("sealing_keys", missing, "it is missing");
        }
        for row in wrapped.iter().filter(|row| !keys.opens(row)) {
            faults.add("sealing_keys", row.id, "it was not wrapped with the key that was given, or was altered");
        }
        Ok(())
    }
}

/// What the trail tells.
#[derive(Default)]
struct Trail {
    entries: u64,
    hash: String,
    /// The last that was said of each row: its fingerprint, or that it is gone.
    rows: HashMap<String, Option<String>>,
    /// What the store became when it was last set back.
    store: Option<Uuid>,
}

impl Trail {
    async fn learn(
        &mut self,
        transaction: &DatabaseTransaction,
        row: &audit_log::Model,
        revisions: &mut HashMap<i64, revision::Model>,
        faults: &mut Faults,
    ) -> Result<(), StoreError> {
        let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
        if row.action == STORE_SET_BACK {
            self.store = detail["store"].as_str().and_then(|id| id.parse().ok());
        }
        for (name, state) in detail[ROWS].as_object().into_iter().flatten() {
            self.rows.insert(name.clone(), state.as_str().map(str::to_owned));
        }
        let (Some(revision), Some(documents)) = (row.revision, detail[DOCUMENTS].as_str()) else { return Ok(()) };
        if audit::documents_of(transaction, revision).await? != documents {
            let what = format!("the documents of revision {revision} were altered");
            faults.push("revision_changes", revision, u64::try_from(row.number).ok(), what);
        }
        match revisions.remove(&revision) {
            None => faults.add("revisions", revision, "it is missing"),
            Some(found) => {
                let at = found.at.to_offset(UtcOffset::UTC).format(&Rfc3339).unwrap_or_default();
                let is_as_told = at == row.at
                    && found.author == row.actor
                    && found.action == row.action
                    && found.reason.as_deref() == detail["reason"].as_str()
                    && Some(found.changed) == detail["changed"].as_i64();
                if !is_as_told {
                    faults.add("revisions", revision, format!("it was altered: see entry {}", row.number));
                }
            }
        }
        Ok(())
    }
}

async fn seals_between(
    transaction: &DatabaseTransaction,
    first: i64,
    last: i64,
) -> Result<BTreeMap<i64, audit_seal::Model>, StoreError> {
    let find = audit_seal::Entity::find().filter(audit_seal::Column::Number.between(first, last));
    Ok(find.all(transaction).await?.into_iter().map(|seal| (seal.number, seal)).collect())
}

async fn revisions_of(
    transaction: &DatabaseTransaction,
    entries: &[audit_log::Model],
    faults: &mut Faults,
) -> Result<HashMap<i64, revision::Model>, StoreError> {
    let numbers = entries.iter().filter_map(|row| row.revision);
    let find = revision::Entity::find().filter(revision::Column::Number.is_in(numbers));
    if let Ok(rows) = find.all(transaction).await {
        return Ok(rows.into_iter().map(|row| (row.number, row)).collect());
    }
    // One cannot be read: which?
    let mut found = HashMap::new();
    for number in entries.iter().filter_map(|row| row.revision) {
        match revision::Entity::find_by_id(number).one(transaction).await.map_err(StoreError::from) {
            Ok(row) => found.extend(row.map(|row| (number, row))),
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => faults.add("revisions", number, format!("it cannot be read: {error}")),
        }
    }
    Ok(found)
}

/// Rows as they are read. One that was altered so that it cannot be is a fault, and no reason to tell of no other.
async fn readable<E: EntityTrait>(
    find: Select<E>,
    table: &str,
    transaction: &DatabaseTransaction,
    faults: &mut Faults,
) -> Result<Vec<E::Model>, StoreError> {
    match find.all(transaction).await.map_err(StoreError::from) {
        Ok(rows) => Ok(rows),
        Err(error) if error.is_passing() => Err(error),
        Err(error) => {
            faults.add(table, "?", format!("rows cannot be read: {error}"));
            Ok(Vec::new())
        }
    }
}

/// Operators and tokens.
async fn verify_rows(
    transaction: &DatabaseTransaction,
    told: &HashMap<String, Option<String>>,
    faults: &mut Faults,
) -> Result<(), StoreError> {
    let mut there = HashMap::new();
    for row in readable(operator::Entity::find(), "operators", transaction, faults).await? {
        there.insert(audit::row_name("operators", row.id), fingerprint(&row));
    }
    for row in readable(token::Entity::find(), "tokens", transaction, faults).await? {
        there.insert(audit::row_name("tokens", row.id), fingerprint(&row));
    }
    let names: HashSet<&String> = there.keys().chain(told.keys()).collect();
    for name in names {
        let (table, row) = name.split_once('/').unwrap_or((name, ""));
        match (there.get(name), told.get(name).cloned().flatten()) {
            (Some(_), None) => faults.add(table, row, "no entry tells that it was made"),
            (None, Some(_)) => faults.add(table, row, "it is missing"),
            (Some(there), Some(told)) if *there != told => faults.add(table, row, "it was altered"),
            _ => {}
        }
    }
    Ok(())
}

/// What is served now, and what follows from it.
async fn verify_documents(
    transaction: &DatabaseTransaction,
    control: &control::Model,
    faults: &mut Faults,
) -> Result<(), StoreError> {
    use revision_change::Column;
    let ends: Vec<(String, i64)> = revision_change::Entity::find()
        .select_only()
        .column(Column::Tenant)
        .column_as(Column::Revision.max(), "revision")
        .group_by(Column::Tenant)
        .order_by(Column::Tenant, Order::Asc)
        .into_tuple()
        .all(transaction)
        .await?;
    let newest = revision::Entity::find().select_only().column(revision::Column::Number);
    let newest: Option<i64> = newest.order_by_desc(revision::Column::Number).into_tuple().one(transaction).await?;
    if newest.unwrap_or(0) != control.revision {
        faults.add("control", control.id, "its revision is not the last one");
    }
    let mut sum = Sum::default().with(Sum::of(None, &control.head));
    let has_head = ends.first().is_some_and(|(tenant, _)| tenant.is_empty());
    let first =
        || serde_json::from_str::<HeadDocument>(&control.head).is_ok_and(|head| head == HeadDocument::default());
    if !has_head && (control.head_revision != 0 || !first()) {
        faults.add("control", control.id, "its head is not that of any revision");
    }
    for ends in ends.chunks(BATCH) {
        let names: Vec<&str> = ends.iter().map(|(tenant, _)| tenant.as_str()).collect();
        let changes = revision_change::Entity::find()
            .filter(Column::Tenant.is_in(names.iter().copied()))
            .filter(Column::Revision.is_in(ends.iter().map(|(_, revision)| *revision)))
            .all(transaction)
            .await?;
        let left: HashMap<(&str, i64), &Option<String>> =
            changes.iter().map(|change| ((change.tenant.as_str(), change.revision), &change.after)).collect();
        let rows =
            tenant::Entity::find().filter(tenant::Column::Name.is_in(names.iter().copied())).all(transaction).await?;
        for row in &rows {
            sum =
                sum.with(row.name.parse::<Id>().map_or_else(|_| Sum::default(), |id| Sum::of(Some(&id), &row.content)));
        }
        let rows: HashMap<&str, &tenant::Model> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
        for (name, revision) in ends {
            let left = left.get(&(name.as_str(), *revision)).and_then(|after| (**after).as_ref());
            if name.is_empty() {
                if left != Some(&control.head) || control.head_revision != *revision {
                    faults.add("control", control.id, format!("its head is not what revision {revision} left"));
                }
                continue;
            }
            match (rows.get(name.as_str()), left) {
                (None, None) => {}
                (Some(row), Some(left)) if row.content == *left && row.revision == *revision => {}
                (None, Some(_)) => faults.add("tenants", name, "it is missing"),
                (Some(_), None) => faults.add("tenants", name, format!("it was removed in revision {revision}")),
                (Some(_), Some(_)) => faults.add("tenants", name, format!("it is not what revision {revision} left")),
            }
        }
        let rows: Vec<&tenant::Model> = rows.into_values().collect();
        verify_tables_of(transaction, &rows, faults).await?;
    }
    let told = Query::select().column(Column::Tenant).from(revision_change::Entity).take();
    let find = tenant::Entity::find().filter(tenant::Column::Name.not_in_subquery(told));
    for row in find.limit(BATCH as u64).all(transaction).await? {
        faults.add("tenants", row.name, "no revision tells of it");
    }
    if sum.to_string() != control.sum {
        faults.add("control", control.id, "its sum is not that of the documents");
    }
    Ok(())
}

/// Hosts and columns that follow from the documents of these tenants.
async fn verify_tables_of(
    transaction: &DatabaseTransaction,
    rows: &[&tenant::Model],
    faults: &mut Faults,
) -> Result<(), StoreError> {
    let ids = || rows.iter().map(|row| row.id);
    let hosts = host::Entity::find().filter(host::Column::TenantId.is_in(ids())).all(transaction).await?;
    let configs = api_gateway_config::Entity::find().filter(api_gateway_config::Column::TenantId.is_in(ids()));
    let mut configs: HashMap<_, _> = readable(configs, "api_gateway_config", transaction, faults)
        .await?
        .into_iter()
        .map(|config| (config.tenant_id, config))
        .collect();
    let mut there: HashMap<_, HashSet<String>> = HashMap::new();
    for host in hosts {
        there.entry(host.tenant_id).or_default().insert(host.pattern);
    }
    for row in rows {
        // One that cannot be read was told of already.
        let Ok(tenant) = serde_json::from_str::<Tenant>(&row.content) else { continue };
        let there = there.remove(&row.id).unwrap_or_default();
        let wanted: HashSet<String> = tenant.hosts.iter().map(ToString::to_string).collect();
        for host in there.symmetric_difference(&wanted) {
            faults.add("hosts", host, format!("the document of the tenant {} says otherwise", row.name));
        }
        let expected = GatewayConfig::of(&tenant).into_row(row.id, row.created_at);
        let is_as_told = configs.remove(&row.id).is_some_and(|config| {
            let (id, created_at) = (config.id, config.created_at);
            config == api_gateway_config::Model { id, created_at, ..expected }
        });
        if !is_as_told {
            faults.add("api_gateway_config", &row.name, "the document of the tenant says otherwise");
        }
    }
    Ok(())
}
