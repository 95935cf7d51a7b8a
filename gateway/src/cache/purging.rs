//! Purges, of this node or of all.

use std::sync::Arc;

use seiketsu_cache::{key::Resource, purge::Purge, storage::Storage};
use seiketsu_config::{node::NodeConfig, values::RedisUrlError};
use tokio::runtime::Handle;

/// Why purges of other nodes cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum PurgingError {
    #[error("limits.redis.url: {0}")]
    Url(#[from] RedisUrlError),
}

/// Who purges.
#[derive(Debug)]
pub(crate) struct Purging {
    storage: Arc<Storage>,
}

impl Purging {
    pub(crate) fn start(_: &NodeConfig, storage: Arc<Storage>, _: &Handle) -> Result<Arc<Self>, PurgingError> {
        Ok(Arc::new(Self { storage }))
    }

    /// Purges here. `false`: the tenant has no cache.
    pub(crate) fn purge(&self, tenant: &str, purge: Purge) -> bool {
        let Some(purges) = self.storage.purges(tenant) else { return false };
        purges.add(purge);
        true
    }

    /// What an unsafe request has made invalid.
    pub(crate) fn invalidate(&self, tenant: &str, resources: impl IntoIterator<Item = Resource>) {
        for resource in resources {
            self.purge(tenant, Purge::Url(resource));
        }
    }
}
