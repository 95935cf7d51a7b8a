//! The tables that follow from documents. What stands in them is computed from the documents alone; so what differs
//! between a document as it was and as it is tells which rows to write, and nothing else is touched.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, DatabaseTransaction, EntityTrait, IdenStatic, IntoActiveModel, Iterable,
    ModelTrait, PrimaryKeyToColumn, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{OnConflict, Query},
};
use seiketsu_config::{
    tenant::{Balance, Consumer, KeySource, Priority, Probe, Route, Tenant, Upstream, UpstreamProtocol},
    values::Id,
};
use serde_json::{Value, json};
use time::{OffsetDateTime, UtcDateTime};

use super::{
    BATCH, HeadDocument, StoreError,
    entities::{api_key, consumer, control, endpoint, revision_change, route, service, tenant},
    rows::{Damaged, readable},
};

/// Stands for what stands beside the tenants: no tenant has this name.
pub(super) const HEAD: &str = "";

/// Rows that one statement removes: each is a term of its condition, and stores bound how long that may be.
const REMOVED_AT_ONCE: usize = 200;

/// The rows that follow from a document.
#[derive(Debug, Clone, Default, PartialEq)]
struct Rows {
    services: Vec<service::Model>,
    endpoints: Vec<endpoint::Model>,
    routes: Vec<route::Model>,
    consumers: Vec<consumer::Model>,
    keys: Vec<api_key::Model>,
}

impl Rows {
    /// `since`: when keys came that were not there before.
    fn of_tenant(tenant: &Tenant, since: OffsetDateTime) -> Self {
        let name = tenant.id.as_str();
        let mut rows = Self::default();
        rows.upstreams(name, &tenant.upstreams);
        rows.routes = tenant.routes.iter().enumerate().map(|(at, route)| route_row(name, at, route)).collect();
        for consumer in &tenant.consumers {
            rows.consumers.push(consumer_row(name, consumer));
            rows.keys.extend(consumer.keys.iter().map(|key| {
                api_key::Model {
                    tenant: name.to_owned(),
                    prefix: key.prefix.clone(),
                    consumer: consumer.id.to_string(),
                    kept: match key.source {
                        KeySource::Hash(_) => "hash",
                        KeySource::Key(_) => "reference",
                    }
                    .to_owned(),
                    scopes: key.scopes.as_ref().map(|scopes| json!(scopes)),
                    created_at: since,
                    expires_at: key.expires.map(in_seconds),
                }
            }));
        }
        rows
    }

    fn of_head(head: &HeadDocument) -> Self {
        let mut rows = Self::default();
        rows.upstreams(HEAD, &head.upstreams);
        rows
    }

    fn upstreams(&mut self, tenant: &str, upstreams: &BTreeMap<Id, Upstream>) {
        for (id, upstream) in upstreams {
            self.services.push(service_row(tenant, id, upstream));
            self.endpoints.extend(upstream.endpoints.iter().enumerate().map(|(at, endpoint)| endpoint::Model {
                tenant: tenant.to_owned(),
                service: id.to_string(),
                number: count(at),
                address: endpoint.address.to_string(),
                weight: endpoint.weight.into(),
                priority: endpoint.priority.into(),
                region: endpoint.region.as_ref().map(Id::to_string),
                zone: endpoint.zone.as_ref().map(Id::to_string),
            }));
        }
    }
}

fn service_row(tenant: &str, id: &Id, upstream: &Upstream) -> service::Model {
    let protocol = match upstream.protocol {
        UpstreamProtocol::Http1 => "http1",
        UpstreamProtocol::Http2 => "http2",
        UpstreamProtocol::Auto => "auto",
    };
    let balance = match upstream.balance {
        Balance::LeastLatency => "least_latency",
        Balance::RoundRobin => "round_robin",
        Balance::ConsistentHash(_) => "consistent_hash",
    };
    let health = upstream.health.as_ref().map(|health| match health.probe {
        Probe::Tcp => "tcp",
        Probe::Http { .. } => "http",
        Probe::Grpc { .. } => "grpc",
    });
    service::Model {
        tenant: tenant.to_owned(),
        id: id.to_string(),
        protocol: protocol.to_owned(),
        balance: balance.to_owned(),
        health: health.map(str::to_owned),
        tls: upstream.tls.is_some(),
    }
}

fn route_row(tenant: &str, at: usize, route: &Route) -> route::Model {
    let priority = match route.priority {
        Priority::Critical => "critical",
        Priority::Normal => "normal",
        Priority::Low => "low",
    };
    let timeout = route.policies.timeouts.as_ref().map(|timeouts| timeouts.total.get().as_millis());
    route::Model {
        tenant: tenant.to_owned(),
        id: route.id.to_string(),
        number: count(at),
        path: route.r#match.path.to_string(),
        methods: texts(&route.r#match.methods),
        versions: texts(&route.r#match.versions),
        upstream: route.upstream.to_string(),
        canary: route.canary.as_ref().map(|canary| canary.upstream.to_string()),
        mirror: route.mirror.as_ref().map(|mirror| mirror.upstream.to_string()),
        priority: priority.to_owned(),
        timeout_ms: timeout.map(|millis| i64::try_from(millis).unwrap_or(i64::MAX)),
    }
}

fn consumer_row(tenant: &str, consumer: &Consumer) -> consumer::Model {
    consumer::Model {
        tenant: tenant.to_owned(),
        id: consumer.id.to_string(),
        scopes: texts(&consumer.scopes),
        roles: texts(&consumer.roles),
        api_keys: count(consumer.keys.len()),
        certificates: count(consumer.certificates.len()),
        limited: consumer.limits.is_some(),
    }
}

fn texts(items: &[impl ToString]) -> Value {
    items.iter().map(ToString::to_string).collect()
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Gateways compare whole seconds; and in one form, so that a store which keeps text compares them as well.
pub(super) fn in_seconds(at: OffsetDateTime) -> OffsetDateTime {
    let last = UtcDateTime::MAX.replace_nanosecond(0).unwrap_or(UtcDateTime::MAX);
    let at = UtcDateTime::from_unix_timestamp(at.unix_timestamp()).unwrap_or(last).min(last);
    at.into()
}

/// A row, and what finds it again.
trait Keyed: PartialEq {
    fn key(&self) -> (&str, &str, i32);
    /// The same, as it is told.
    fn name(&self) -> String;
}

macro_rules! keyed {
    ($($row:ident: $name:ident $(, $number:ident)?;)+) => {$(
        impl Keyed for $row::Model {
            fn key(&self) -> (&str, &str, i32) {
                (&self.tenant, &self.$name, 0 $(+ self.$number)?)
            }

            fn name(&self) -> String {
                [&*self.tenant, &*self.$name $(, &*self.$number.to_string())?].join("/")
            }
        }
    )+};
}

keyed! {
    service: id;
    endpoint: service, number;
    route: id;
    consumer: id;
    api_key: prefix;
}

/// What is to be removed from the tables, and what is to be written.
#[derive(Debug, Default)]
pub(super) struct Differences {
    gone: Rows,
    written: Rows,
}

impl Differences {
    /// A tenant as it was, if it was, and as it is.
    pub(super) fn add_tenant(&mut self, before: Option<&Tenant>, after: &Tenant, since: OffsetDateTime) {
        let before = before.map(|before| Rows::of_tenant(before, since)).unwrap_or_default();
        self.add(before, Rows::of_tenant(after, since));
    }

    pub(super) fn add_head(&mut self, before: &HeadDocument, after: &HeadDocument) {
        self.add(Rows::of_head(before), Rows::of_head(after));
    }

    fn add(&mut self, before: Rows, after: Rows) {
        let Self { gone, written } = self;
        compare(before.services, after.services, &mut gone.services, &mut written.services);
        compare(before.endpoints, after.endpoints, &mut gone.endpoints, &mut written.endpoints);
        compare(before.routes, after.routes, &mut gone.routes, &mut written.routes);
        compare(before.consumers, after.consumers, &mut gone.consumers, &mut written.consumers);
        compare(before.keys, after.keys, &mut gone.keys, &mut written.keys);
    }

    pub(super) async fn write(self, transaction: &DatabaseTransaction) -> Result<(), StoreError> {
        let Self { gone, written } = self;
        replace::<service::Entity>(transaction, gone.services, written.services).await?;
        replace::<endpoint::Entity>(transaction, gone.endpoints, written.endpoints).await?;
        replace::<route::Entity>(transaction, gone.routes, written.routes).await?;
        replace::<consumer::Entity>(transaction, gone.consumers, written.consumers).await?;
        replace::<api_key::Entity>(transaction, gone.keys, written.keys).await
    }
}

/// Sorts rows into those that are gone and those that are new or others than before.
fn compare<R: Keyed>(before: Vec<R>, after: Vec<R>, gone: &mut Vec<R>, written: &mut Vec<R>) {
    if before.is_empty() {
        return written.extend(after);
    }
    let owned = |row: &R| {
        let (tenant, name, number) = row.key();
        (tenant.to_owned(), name.to_owned(), number)
    };
    let mut before: BTreeMap<_, R> = before.into_iter().map(|row| (owned(&row), row)).collect();
    for row in after {
        if before.remove(&owned(&row)).as_ref() != Some(&row) {
            written.push(row);
        }
    }
    gone.extend(before.into_values());
}

/// What is not as the documents say: table and row.
#[derive(Debug, Default)]
pub(super) struct Strange(pub(super) Vec<(&'static str, String)>);

impl Strange {
    /// `expected`: what documents say; `names`: whose they are, or would be.
    pub(super) async fn look(
        &mut self,
        transaction: &DatabaseTransaction,
        names: &[&str],
        expected: &[Document<'_>],
    ) -> Result<Vec<Damaged>, StoreError> {
        // When keys came, documents do not say.
        let since = OffsetDateTime::UNIX_EPOCH;
        let mut rows = Rows::default();
        for document in expected {
            let Rows { services, endpoints, routes, consumers, keys } = match *document {
                Document::Tenant(tenant) => Rows::of_tenant(tenant, since),
                Document::Head(head) => Rows::of_head(head),
            };
            rows.services.extend(services);
            rows.endpoints.extend(endpoints);
            rows.routes.extend(routes);
            rows.consumers.extend(consumers);
            rows.keys.extend(keys);
        }
        let mut damaged = Vec::new();
        macro_rules! compare {
            ($($table:literal: $entity:ident, $expected:expr;)+) => {$(
                let find = $entity::Entity::find().filter($entity::Column::Tenant.is_in(names.iter().copied()));
                let there = readable(transaction, find, &mut damaged).await?;
                self.compare($table, $expected, there);
            )+};
        }
        compare! {
            "services": service, rows.services;
            "endpoints": endpoint, rows.endpoints;
            "routes": route, rows.routes;
            "consumers": consumer, rows.consumers;
        }
        let find = api_key::Entity::find().filter(api_key::Column::Tenant.is_in(names.iter().copied()));
        let there = readable(transaction, find, &mut damaged).await?;
        let there = there.into_iter().map(|row| api_key::Model { created_at: since, ..row }).collect();
        self.compare("api_keys", rows.keys, there);
        Ok(damaged)
    }

    /// Rows of tenants that there never were.
    pub(super) async fn look_for_others(
        &mut self,
        transaction: &DatabaseTransaction,
    ) -> Result<Vec<Damaged>, StoreError> {
        let mut damaged = Vec::new();
        macro_rules! others {
            ($($table:literal: $entity:ident;)+) => {$(
                let told = Query::select()
                    .column(revision_change::Column::Tenant)
                    .from(revision_change::Entity)
                    .take();
                let find = $entity::Entity::find()
                    .filter($entity::Column::Tenant.ne(HEAD))
                    .filter($entity::Column::Tenant.not_in_subquery(told))
                    .limit(BATCH as u64);
                let there = readable(transaction, find, &mut damaged).await?;
                self.compare($table, Vec::new(), there);
            )+};
        }
        others! {
            "services": service;
            "endpoints": endpoint;
            "routes": route;
            "consumers": consumer;
            "api_keys": api_key;
        }
        Ok(damaged)
    }

    fn compare<R: Keyed>(&mut self, table: &'static str, expected: Vec<R>, there: Vec<R>) {
        let mut expected: BTreeMap<String, R> = expected.into_iter().map(|row| (row.name(), row)).collect();
        for row in there {
            let name = row.name();
            if expected.remove(&name).as_ref() != Some(&row) {
                self.0.push((table, name));
            }
        }
        self.0.extend(expected.into_keys().map(|name| (table, name)));
    }
}

/// What rows follow from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Document<'a> {
    Tenant(&'a Tenant),
    Head(&'a HeadDocument),
}

async fn replace<E>(
    transaction: &DatabaseTransaction,
    gone: Vec<E::Model>,
    written: Vec<E::Model>,
) -> Result<(), StoreError>
where
    E: EntityTrait<
            Model: ModelTrait<Entity = E> + IntoActiveModel<E::ActiveModel>,
            ActiveModel: ActiveModelTrait + Send,
        >,
{
    let keys: Vec<E::Column> = E::PrimaryKey::iter().map(PrimaryKeyToColumn::into_column).collect();
    for rows in gone.chunks(REMOVED_AT_ONCE) {
        let row = |row: &E::Model| keys.iter().fold(Condition::all(), |all, key| all.add(key.eq(row.get(*key))));
        let rows = rows.iter().map(row).fold(Condition::any(), Condition::add);
        E::delete_many().filter(rows).exec(transaction).await?;
    }
    let is_key = |column: &E::Column| keys.iter().any(|key| key.as_str() == column.as_str());
    // When a row came does not change with what else it says.
    let changes: Vec<E::Column> =
        E::Column::iter().filter(|column| !is_key(column) && column.as_str() != "created_at").collect();
    let mut written = written.into_iter().peekable();
    while written.peek().is_some() {
        let rows: Vec<E::ActiveModel> =
            written.by_ref().take(BATCH).map(|row| row.into_active_model().reset_all()).collect();
        let mut update = OnConflict::columns(keys.iter().copied());
        update.update_columns(changes.iter().copied());
        E::insert_many(rows).on_conflict(update).exec_without_returning(transaction).await?;
    }
    Ok(())
}

/// What goes with tenants, but for what their rows take along.
pub(super) async fn remove(transaction: &DatabaseTransaction, tenants: &[&str]) -> Result<(), StoreError> {
    let named = |column: service::Column| column.is_in(tenants.iter().copied());
    service::Entity::delete_many().filter(named(service::Column::Tenant)).exec(transaction).await?;
    let named = endpoint::Column::Tenant.is_in(tenants.iter().copied());
    endpoint::Entity::delete_many().filter(named).exec(transaction).await?;
    Ok(())
}

/// Fills tables that are new and empty.
pub(super) async fn fill(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let head = control::Entity::find().select_only().column(control::Column::Head).into_tuple::<String>();
    if let Some(head) = head.one(transaction).await? {
        let mut differences = Differences::default();
        differences.add_head(&HeadDocument::default(), &HeadDocument::parse(&head)?);
        differences.write(transaction).await?;
    }
    let mut last = String::new();
    loop {
        // Only columns that the tables of this step have.
        let find = tenant::Entity::find()
            .select_only()
            .columns([tenant::Column::Name, tenant::Column::Content, tenant::Column::UpdatedAt])
            .filter(tenant::Column::Name.gt(last.as_str()))
            .order_by_asc(tenant::Column::Name)
            .limit(BATCH as u64);
        let rows: Vec<(String, String, OffsetDateTime)> = find.into_tuple().all(transaction).await?;
        let Some((end, ..)) = rows.last() else { return Ok(()) };
        last.clone_from(end);
        let mut differences = Differences::default();
        for (name, content, since) in rows {
            let tenant = serde_json::from_str(&content);
            let tenant = tenant.map_err(|why| StoreError::corrupt(format!("tenant {name}"), &why))?;
            differences.add_tenant(None, &tenant, since);
        }
        differences.write(transaction).await?;
    }
}
