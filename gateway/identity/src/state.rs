//! What outlives a change of configuration: issuers' keys, verified tokens, epochs.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use seiketsu_config::values::Id;

use crate::{
    clock::Clock,
    jwks::{HttpFetch, JwksStores},
    verified_cache::{Epoch, VerifiedCache},
};

/// Shared by all tenants of a node; every compiled [`TenantAuth`](crate::authenticate::TenantAuth)
/// refers to it.
#[derive(Debug)]
pub struct IdentityState {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) verified: VerifiedCache,
    jwks: JwksStores,
    epochs: Mutex<HashMap<Id, Epoch>>,
}

impl IdentityState {
    /// `remembered`: how many verified credentials are kept, see [`VerifiedCache::new`].
    pub fn new(clock: Arc<dyn Clock>, client: Arc<dyn HttpFetch>, remembered: usize) -> Self {
        Self {
            clock,
            verified: VerifiedCache::new(remembered),
            jwks: JwksStores::new(client),
            epochs: Mutex::default(),
        }
    }

    /// The issuers' keys; see [`JwksStores::refresh_due`].
    pub fn jwks(&self) -> &JwksStores {
        &self.jwks
    }

    /// The tenant's epoch. It is kept for good: one that began again would revive what it had ended.
    pub fn epoch(&self, tenant: &Id) -> Epoch {
        self.epochs.lock().entry(tenant.clone()).or_default().clone()
    }
}
