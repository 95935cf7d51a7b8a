//! Lists of services: the upstreams of tenants, and those that all tenants may use.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait},
};
use seiketsu_config::values::Id;
use serde::Serialize;

use super::{
    PATIENCE, Place, Seen, Store, StoreError,
    entities::{endpoint, service},
    id_of,
    tables::HEAD,
    within,
};

/// A service in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = ServiceSummary)]
pub struct ServiceRow {
    /// None: all tenants may use it.
    #[schema(value_type = Option<String>)]
    pub tenant: Option<Id>,
    #[schema(value_type = String)]
    pub id: Id,
    /// `http1`, `http2` or `auto`.
    pub protocol: String,
    /// `least_latency`, `round_robin` or `consistent_hash`.
    pub balance: String,
    /// How its endpoints are probed: `tcp`, `http` or `grpc`; none, if they are not.
    pub health: Option<String>,
    pub tls: bool,
    pub endpoints: Vec<EndpointRow>,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = EndpointSummary)]
pub struct EndpointRow {
    pub address: String,
    pub weight: i32,
    pub priority: i32,
    pub region: Option<String>,
    pub zone: Option<String>,
}

impl ServiceRow {
    pub fn place(&self) -> Place {
        Place { tenant: self.tenant.clone(), name: self.id.to_string() }
    }
}

impl Store {
    /// Services, in the order of their tenants and names; those with an endpoint at an address, if one is given.
    pub async fn services(&self, seen: Seen<'_>, address: Option<&str>) -> Result<Vec<ServiceRow>, StoreError> {
        use service::Column;
        let mut find = service::Entity::find().filter(seen.condition(Column::Tenant, Column::Id));
        if let Some(address) = address {
            let at = endpoint::Entity::find()
                .select_only()
                .columns([endpoint::Column::Tenant, endpoint::Column::Service])
                .filter(endpoint::Column::Address.eq(address));
            let service = Expr::tuple([Expr::col(Column::Tenant), Expr::col(Column::Id)]);
            find = find.filter(service.in_subquery(at.into_query()));
        }
        let find = find.order_by_asc(Column::Tenant).order_by_asc(Column::Id).limit(seen.most);
        within(PATIENCE, async {
            let rows = find.all(&self.0.database).await?;
            let mut endpoints = self.endpoints(&rows).await?;
            rows.into_iter()
                .map(|row| {
                    let endpoints = endpoints.remove(&(row.tenant.clone(), row.id.clone())).unwrap_or_default();
                    let tenant = if row.tenant == HEAD { None } else { Some(id_of(&row.tenant)?) };
                    let service::Model { tenant: _, id, protocol, balance, health, tls } = row;
                    Ok(ServiceRow { tenant, id: id_of(&id)?, protocol, balance, health, tls, endpoints })
                })
                .collect()
        })
        .await
    }

    /// By tenant and service, in the order of the document.
    async fn endpoints(
        &self,
        services: &[service::Model],
    ) -> Result<BTreeMap<(String, String), Vec<EndpointRow>>, StoreError> {
        use endpoint::Column;
        let find = endpoint::Entity::find()
            .filter(Column::Tenant.is_in(services.iter().map(|row| &*row.tenant)))
            .filter(Column::Service.is_in(services.iter().map(|row| &*row.id)))
            .order_by_asc(Column::Number);
        let mut found: BTreeMap<_, Vec<EndpointRow>> = BTreeMap::new();
        for row in find.all(&self.0.database).await? {
            let endpoint::Model { tenant, service, number: _, address, weight, priority, region, zone } = row;
            let row = EndpointRow { address, weight, priority, region, zone };
            found.entry((tenant, service)).or_default().push(row);
        }
        Ok(found)
    }
}
