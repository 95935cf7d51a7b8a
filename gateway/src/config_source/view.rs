//! What the operations interface shows of the configuration.

use std::sync::Arc;

use serde_json::{Value, json};

use super::StatusCell;
use crate::{
    operations::{ConfigStatus, ConfigView, NotConfigured},
    proxy::Shared,
    tenancy::compile::CompiledTenant,
};

/// Reads the status of the last reload and the snapshot in force.
pub(crate) struct RunningConfig {
    pub(crate) shared: Arc<Shared>,
    pub(crate) status: Arc<StatusCell>,
}

impl ConfigView for RunningConfig {
    fn status(&self) -> ConfigStatus {
        let status = self.status.get();
        ConfigStatus {
            revision: status.loaded.then_some(status.revision),
            last_reload: serde_json::to_value(&*status).unwrap_or_default(),
            control_plane: self.status.connection().and_then(|connection| serde_json::to_value(&*connection).ok()),
        }
    }

    fn effective(&self, tenant: &str, route: Option<&str>) -> Result<Value, NotConfigured> {
        let snapshot = self.shared.live.load();
        let entry = snapshot.tenant(tenant).ok_or(NotConfigured::Tenant)?;
        let compiled = entry.compiled();
        match route {
            None => Ok(json!({
                "tenant": &*compiled.config,
                "routes": compiled.routes.iter().map(|route| route.id.as_str()).collect::<Vec<_>>(),
            })),
            Some(id) => route_view(compiled, id).ok_or(NotConfigured::Route),
        }
    }

    fn serves(&self, tenant: &str, host: &str) -> bool {
        self.shared.live.load().find_normalised(host).is_some_and(|entry| entry.id().as_str() == tenant)
    }
}

fn route_view(tenant: &CompiledTenant, id: &str) -> Option<Value> {
    let index = tenant.routes.iter().position(|route| route.id.as_str() == id)?;
    Some(json!({
        "route": tenant.config.routes.get(index)?,
        "policies": &**tenant.effective.get(index)?,
        "upstream": tenant.routes.get(index)?.pool.status(),
    }))
}
