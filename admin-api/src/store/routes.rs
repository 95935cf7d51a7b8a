//! Lists of routes.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use seiketsu_config::values::{HostPattern, Id};
use serde::Serialize;
use serde_json::Value;

use super::{
    PATIENCE, Place, Seen, Store, StoreError,
    entities::{host, route, tenant},
    id_of, number, within,
};

/// A route in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = RouteSummary)]
pub struct RouteRow {
    #[schema(value_type = String)]
    pub tenant: Id,
    #[schema(value_type = String)]
    pub id: Id,
    /// Of its tenant: all its routes are served under them.
    pub hosts: Vec<String>,
    pub path: String,
    /// None is any.
    pub methods: Vec<String>,
    /// None is all.
    pub versions: Vec<String>,
    pub upstream: String,
    pub canary: Option<String>,
    pub mirror: Option<String>,
    /// `critical`, `normal` or `low`.
    pub priority: String,
    /// To the head of the response, where the route itself says so.
    pub timeout_ms: Option<u64>,
}

/// Which routes are asked for.
#[derive(Debug, Clone, Default)]
pub struct RouteFilter {
    /// A service that requests, a share of them, or copies of them are sent to.
    pub upstream: Option<Id>,
    /// Of the tenant that is served under this host.
    pub host: Option<HostPattern>,
    /// What their path begins with, as it is written.
    pub path: Option<String>,
}

impl RouteRow {
    pub fn place(&self) -> Place {
        Place { tenant: Some(self.tenant.clone()), name: self.id.to_string() }
    }
}

impl Store {
    /// Routes, in the order of their tenants and names.
    pub async fn routes(&self, seen: Seen<'_>, filter: &RouteFilter) -> Result<Vec<RouteRow>, StoreError> {
        use route::Column;
        let mut find = route::Entity::find().filter(seen.condition(Column::Tenant, Column::Id));
        if let Some(upstream) = &filter.upstream {
            let is = |column: Column| column.eq(upstream.as_str());
            find =
                find.filter(Condition::any().add(is(Column::Upstream)).add(is(Column::Canary)).add(is(Column::Mirror)));
        }
        if let Some(path) = &filter.path {
            // No text that begins with it comes after it with the last of all characters.
            find = find.filter(Column::Path.gte(path.as_str())).filter(Column::Path.lt(format!("{path}{}", char::MAX)));
        }
        if let Some(host) = &filter.host {
            let Some(owner) = self.tenants(None, 1, Some(host), None).await?.pop() else { return Ok(Vec::new()) };
            find = find.filter(Column::Tenant.eq(owner.id.as_str()));
        }
        let find = find.order_by_asc(Column::Tenant).order_by_asc(Column::Id).limit(seen.most);
        within(PATIENCE, async {
            let rows = find.all(&self.0.database).await?;
            let hosts = self.hosts_of(rows.iter().map(|row| &*row.tenant)).await?;
            rows.into_iter().map(|row| row_of(row, &hosts)).collect()
        })
        .await
    }

    async fn hosts_of<'a>(
        &self,
        tenants: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
        let mut tenants: Vec<&str> = tenants.collect();
        // They come in the order of tenants.
        tenants.dedup();
        let rows = tenant::Entity::find()
            .select_only()
            .columns([tenant::Column::Id, tenant::Column::Name])
            .filter(tenant::Column::Name.is_in(tenants))
            .into_tuple::<(uuid::Uuid, String)>()
            .all(&self.0.database)
            .await?;
        let names: BTreeMap<_, _> = rows.into_iter().collect();
        let rows = host::Entity::find()
            .filter(host::Column::TenantId.is_in(names.keys().copied()))
            .order_by_asc(host::Column::Pattern)
            .all(&self.0.database)
            .await?;
        let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows {
            if let Some(name) = names.get(&row.tenant_id) {
                hosts.entry(name.clone()).or_default().push(row.pattern);
            }
        }
        Ok(hosts)
    }
}

fn row_of(row: route::Model, hosts: &BTreeMap<String, Vec<String>>) -> Result<RouteRow, StoreError> {
    Ok(RouteRow {
        tenant: id_of(&row.tenant)?,
        id: id_of(&row.id)?,
        hosts: hosts.get(&row.tenant).cloned().unwrap_or_default(),
        path: row.path,
        methods: texts(&row.methods),
        versions: texts(&row.versions),
        upstream: row.upstream,
        canary: row.canary,
        mirror: row.mirror,
        priority: row.priority,
        timeout_ms: row.timeout_ms.map(number),
    })
}

/// A list as it is kept.
pub(super) fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
