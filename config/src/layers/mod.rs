//! The layers of policies, merged: what applies to a request, and which layer says so.
//!
//! Built-in values, the file's defaults, the tenant's plan, the tenant, the route: each layer that
//! sets a policy replaces it whole. Security headers and header changes are merged entry by entry.
//!
//! Merging is cheap. A layer that sets nothing gives the very `Arc` of the layer below, and what a
//! layer does not set is shared with the layer below.

mod headers;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use serde::{Serialize, Serializer};

pub use self::headers::{HeaderEntries, HeaderRules, SecurityHeaders, Setting};
use crate::{
    policy::{
        Access, AccessLog, Auth, Compression, Cors, Policies, RequestLimits, Retries, Timeouts, Transform, Validation,
    },
    tenant::{Route, Tenant, TenantHead},
    values::Id,
};

/// Where a policy was set, from the most general to the most specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    BuiltIn,
    Defaults,
    Plan,
    Tenant,
    Route,
}

/// A policy and the layer that set it; as JSON `{"layer": ..., "value": ...}`.
#[derive(Debug)]
pub struct Sourced<T> {
    pub layer: Layer,
    /// Shared by all who inherit it.
    pub value: Arc<T>,
}

impl<T> Sourced<T> {
    fn new(layer: Layer, value: T) -> Self {
        Self { layer, value: Arc::new(value) }
    }
}

// Not derived: a policy need not be cloned for its owner to be.
impl<T> Clone for Sourced<T> {
    fn clone(&self) -> Self {
        Self { layer: self.layer, value: Arc::clone(&self.value) }
    }
}

impl<T> std::ops::Deref for Sourced<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    fn eq(&self, other: &Self) -> bool {
        self.layer == other.layer && (Arc::ptr_eq(&self.value, &other.value) || self.value == other.value)
    }
}

impl<T: Serialize> Serialize for Sourced<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Sourced", 2)?;
        fields.serialize_field("layer", &self.layer)?;
        fields.serialize_field("value", &*self.value)?;
        fields.end()
    }
}

/// All policies as they apply. `None` means that nothing of the kind is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effective {
    /// Without any layer that says otherwise, nobody may call.
    pub auth: Sourced<Auth>,
    pub cors: Option<Sourced<Cors>>,
    pub security_headers: Arc<SecurityHeaders>,
    pub headers: Arc<HeaderRules>,
    pub access: Option<Sourced<Access>>,
    pub request: Sourced<RequestLimits>,
    pub transform: Option<Sourced<Transform>>,
    pub validation: Option<Sourced<Validation>>,
    pub compression: Option<Sourced<Compression>>,
    pub timeouts: Sourced<Timeouts>,
    pub retries: Sourced<Retries>,
    pub access_log: Sourced<AccessLog>,
}

impl Effective {
    /// What applies where no layer says anything.
    pub fn built_in() -> Arc<Self> {
        static BUILT_IN: LazyLock<Arc<Effective>> = LazyLock::new(|| {
            let nobody = Auth {
                accept: Vec::new(),
                scopes: Vec::new(),
                roles: Vec::new(),
                forward_assertion: true,
                forward_headers: false,
                forward_credential: false,
            };
            Arc::new(Effective {
                auth: Sourced::new(Layer::BuiltIn, nobody),
                cors: None,
                security_headers: Arc::new(headers::built_in()),
                headers: Arc::default(),
                access: None,
                request: Sourced::new(Layer::BuiltIn, RequestLimits::default()),
                transform: None,
                validation: None,
                // A response that carries a secret beside what the caller sent must not be compressed
                // (BREACH), so compression waits until it is asked for.
                compression: None,
                timeouts: Sourced::new(Layer::BuiltIn, Timeouts::default()),
                retries: Sourced::new(Layer::BuiltIn, Retries::default()),
                access_log: Sourced::new(Layer::BuiltIn, AccessLog::default()),
            })
        });
        Arc::clone(&BUILT_IN)
    }

    /// These policies with those of a more specific layer on top.
    #[must_use]
    pub fn with(self: &Arc<Self>, policies: &Policies, layer: Layer) -> Arc<Self> {
        if policies.is_empty() {
            return Arc::clone(self);
        }
        let mut merged = Self::clone(self);
        replace(&mut merged.auth, layer, policies.auth.as_ref());
        replace_or_set(&mut merged.cors, layer, policies.cors.as_ref());
        replace_or_set(&mut merged.access, layer, policies.access.as_ref());
        replace(&mut merged.request, layer, policies.request.as_ref());
        replace_or_set(&mut merged.transform, layer, policies.transform.as_ref());
        replace_or_set(&mut merged.validation, layer, policies.validation.as_ref());
        replace_or_set(&mut merged.compression, layer, policies.compression.as_ref());
        replace(&mut merged.timeouts, layer, policies.timeouts.as_ref());
        replace(&mut merged.retries, layer, policies.retries.as_ref());
        replace(&mut merged.access_log, layer, policies.access_log.as_ref());
        if !policies.security_headers.is_empty() {
            let entries = Arc::make_mut(&mut merged.security_headers);
            for (name, value) in &policies.security_headers {
                entries.insert(name.clone(), Setting { layer, value: value.clone() });
            }
        }
        if !policies.headers.is_empty() {
            Arc::make_mut(&mut merged.headers).merge(&policies.headers, layer);
        }
        Arc::new(merged)
    }

    /// The policies of one of the tenant's routes, these being the tenant's.
    #[must_use]
    pub fn for_route(self: &Arc<Self>, route: &Route) -> Arc<Self> {
        self.with(&route.policies, Layer::Route)
    }
}

fn replace<T: Clone>(current: &mut Sourced<T>, layer: Layer, policy: Option<&T>) {
    if let Some(policy) = policy {
        *current = Sourced::new(layer, policy.clone());
    }
}

fn replace_or_set<T: Clone>(current: &mut Option<Sourced<T>>, layer: Layer, policy: Option<&T>) {
    if let Some(policy) = policy {
        *current = Some(Sourced::new(layer, policy.clone()));
    }
}

/// The layers that the tenants of a file share: built-in, defaults, plans.
#[derive(Debug, Clone)]
pub struct SharedLayers {
    defaults: Arc<Effective>,
    plans: BTreeMap<Id, Arc<Effective>>,
}

impl SharedLayers {
    pub fn new(head: &TenantHead) -> Self {
        let defaults = Effective::built_in().with(&head.defaults, Layer::Defaults);
        let plans = head.plans.iter().map(|(id, plan)| (id.clone(), defaults.with(plan, Layer::Plan))).collect();
        Self { defaults, plans }
    }

    /// The policies of a tenant, for its routes to build on ([`Effective::for_route`]). A plan that
    /// does not exist counts as none; a checked configuration has no such tenant.
    pub fn tenant(&self, tenant: &Tenant) -> Arc<Effective> {
        let plan = tenant.plan.as_ref().and_then(|plan| self.plans.get(plan));
        plan.unwrap_or(&self.defaults).with(&tenant.policies, Layer::Tenant)
    }
}
