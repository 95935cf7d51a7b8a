//! What is served now, and what follows from it.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect, sea_query::Query,
};
use seiketsu_config::{push::Sum, tenant::Tenant, values::Id};

use super::{Faults, columns};
use crate::store::{
    BATCH, HeadDocument, StoreError,
    entities::{api_gateway_config, control, host, revision, revision_change, tenant},
    gateway_config::GatewayConfig,
    tables::{Document, HEAD, Strange},
};

/// `control`: none, if it cannot be read.
pub(super) async fn verify(
    transaction: &DatabaseTransaction,
    control: Option<&control::Model>,
    faults: &mut Faults,
) -> Result<(), StoreError> {
    use revision_change::Column;
    let ends = ends(transaction, faults).await?;
    if let Some(control) = control {
        verify_head(transaction, control, &ends, faults).await?;
    }
    let mut sum = control.map_or_else(Sum::default, |control| Sum::default().with(Sum::of(None, &control.head)));
    for ends in ends.chunks(BATCH) {
        let names: Vec<&str> = ends.iter().map(|(tenant, _)| tenant.as_str()).collect();
        let changes = revision_change::Entity::find()
            .filter(Column::Tenant.is_in(names.iter().copied()))
            .filter(Column::Revision.is_in(ends.iter().map(|(_, revision)| *revision)));
        let changes = faults.readable(transaction, changes).await?;
        let left: HashMap<(&str, i64), &Option<String>> =
            changes.iter().map(|change| ((change.tenant.as_str(), change.revision), &change.after)).collect();
        let rows = tenant::Entity::find().filter(tenant::Column::Name.is_in(names.iter().copied()));
        let rows = faults.readable(transaction, rows).await?;
        for row in &rows {
            sum =
                sum.with(row.name.parse::<Id>().map_or_else(|_| Sum::default(), |id| Sum::of(Some(&id), &row.content)));
        }
        let rows: HashMap<&str, &tenant::Model> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
        for (name, revision) in ends {
            let left = left.get(&(name.as_str(), *revision)).and_then(|after| (**after).as_ref());
            if name == HEAD {
                let is_left =
                    |control: &&control::Model| left == Some(&control.head) && control.head_revision == *revision;
                if let Some(control) = control.filter(|control| !is_left(control)) {
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
        verify_tables_of(transaction, &names, &rows, faults).await?;
    }
    verify_others(transaction, faults).await?;
    if let Some(control) = control.filter(|control| sum.to_string() != control.sum) {
        faults.add("control", control.id, "its sum is not that of the documents");
    }
    Ok(())
}

/// The last revision of each document, in the order of their names.
async fn ends(transaction: &DatabaseTransaction, faults: &mut Faults) -> Result<Vec<(String, i64)>, StoreError> {
    use revision_change::Column;
    let find = revision_change::Entity::find()
        .select_only()
        .column(Column::Tenant)
        .column_as(Column::Revision.max(), "revision")
        .group_by(Column::Tenant)
        .order_by(Column::Tenant, Order::Asc);
    let mut ends = Vec::new();
    for row in columns(transaction, find).await? {
        match (row.try_get("", "tenant"), row.try_get("", "revision")) {
            (Ok(tenant), Ok(revision)) => ends.push((tenant, revision)),
            (tenant, revision) => {
                let tenant: String = tenant.unwrap_or_else(|_| "?".to_owned());
                let revision: Option<i64> = revision.ok();
                let revision = revision.map_or_else(|| "?".to_owned(), |revision| revision.to_string());
                faults.add("revision_changes", format!("{revision}/{tenant}"), "it cannot be read");
            }
        }
    }
    Ok(ends)
}

async fn verify_head(
    transaction: &DatabaseTransaction,
    control: &control::Model,
    ends: &[(String, i64)],
    faults: &mut Faults,
) -> Result<(), StoreError> {
    let newest = revision::Entity::find().select_only().column(revision::Column::Number);
    let newest = columns(transaction, newest.order_by_desc(revision::Column::Number).limit(1)).await?;
    let newest = newest.first().map_or(Some(0), |row| row.try_get("", "number").ok());
    if newest != Some(control.revision) {
        faults.add("control", control.id, "its revision is not the last one");
    }
    let head = HeadDocument::parse(&control.head).ok();
    let has_head = ends.first().is_some_and(|(tenant, _)| tenant == HEAD);
    let is_first = head.as_ref().is_some_and(|head| *head == HeadDocument::default());
    if !has_head && (control.head_revision != 0 || !is_first) {
        faults.add("control", control.id, "its head is not that of any revision");
    }
    // One that cannot be read was told of already.
    let Some(head) = head else { return Ok(()) };
    let mut strange = Strange::default();
    faults.damaged(strange.look(transaction, &[HEAD], &[Document::Head(&head)]).await?);
    for (table, row) in strange.0 {
        faults.add(table, row, "the head says otherwise");
    }
    Ok(())
}

/// Hosts, columns and tables that follow from the documents of these tenants. `names`: of those that are gone as well.
async fn verify_tables_of(
    transaction: &DatabaseTransaction,
    names: &[&str],
    rows: &[&tenant::Model],
    faults: &mut Faults,
) -> Result<(), StoreError> {
    let ids = || rows.iter().map(|row| row.id);
    let hosts = host::Entity::find().filter(host::Column::TenantId.is_in(ids()));
    let hosts = faults.readable(transaction, hosts).await?;
    let configs = api_gateway_config::Entity::find().filter(api_gateway_config::Column::TenantId.is_in(ids()));
    let configs = faults.readable(transaction, configs).await?;
    let mut configs: HashMap<_, _> = configs.into_iter().map(|config| (config.tenant_id, config)).collect();
    let mut there: HashMap<_, HashSet<String>> = HashMap::new();
    for host in hosts {
        there.entry(host.tenant_id).or_default().insert(host.pattern);
    }
    let mut tenants = Vec::with_capacity(rows.len());
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
        tenants.push(tenant);
    }
    let documents: Vec<Document<'_>> = tenants.iter().map(Document::Tenant).collect();
    let names: Vec<&str> = names.iter().copied().filter(|name| *name != HEAD).collect();
    let mut strange = Strange::default();
    faults.damaged(strange.look(transaction, &names, &documents).await?);
    for (table, row) in strange.0 {
        faults.add(table, row, "the document of the tenant says otherwise");
    }
    Ok(())
}

/// What belongs to nothing.
async fn verify_others(transaction: &DatabaseTransaction, faults: &mut Faults) -> Result<(), StoreError> {
    let told = Query::select().column(revision_change::Column::Tenant).from(revision_change::Entity).take();
    let find = tenant::Entity::find().filter(tenant::Column::Name.not_in_subquery(told));
    for row in faults.readable(transaction, find.limit(BATCH as u64)).await? {
        faults.add("tenants", row.name, "no revision tells of it");
    }
    let ids = || Query::select().column(tenant::Column::Id).from(tenant::Entity).take();
    let find = host::Entity::find().filter(host::Column::TenantId.not_in_subquery(ids()));
    for row in faults.readable(transaction, find.limit(BATCH as u64)).await? {
        faults.add("hosts", row.pattern, "it is no tenant's");
    }
    let find = api_gateway_config::Entity::find();
    let find = find.filter(api_gateway_config::Column::TenantId.not_in_subquery(ids()));
    for row in faults.readable(transaction, find.limit(BATCH as u64)).await? {
        faults.add("api_gateway_config", row.id, "it is no tenant's");
    }
    let mut strange = Strange::default();
    faults.damaged(strange.look_for_others(transaction).await?);
    for (table, row) in strange.0 {
        faults.add(table, row, "no revision tells of its tenant");
    }
    Ok(())
}
