//! The layers of policies, merged: what applies to a request, and which layer says so.
//!
//! Built-in values, the file's defaults, the tenant's plan, the tenant, the route: each layer that
//! sets a policy replaces it whole. Security headers and header changes are merged entry by entry, and
//! limits field by field up to the tenant; those of a route hold beside them.
//!
//! Merging is cheap. A layer that sets nothing gives the very `Arc` of the layer below, and what a
//! layer does not set is shared with the layer below.

mod headers;
mod limits;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use serde::{Serialize, Serializer};

pub use self::{
    headers::{HeaderEntries, HeaderRules, SecurityHeaders, Setting},
    limits::{TenantConcurrency, TenantLimits, TenantQuotas},
};
use crate::{
    cache::Cache,
    limits::Limits,
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
    pub cache: Option<Sourced<Cache>>,
    /// What holds for the tenant as a whole. The same for all routes of a tenant.
    pub limits: Arc<TenantLimits>,
    /// What holds for the requests of a route beside that.
    pub route_limits: Option<Sourced<Limits>>,
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
                cache: None,
                limits: Arc::new(TenantLimits::built_in()),
                route_limits: None,
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
        replace_or_set(&mut merged.cache, layer, policies.cache.as_ref());
        if !policies.security_headers.is_empty() {
            let entries = Arc::make_mut(&mut merged.security_headers);
            for (name, value) in &policies.security_headers {
                entries.insert(name.clone(), Setting { layer, value: value.clone() });
            }
        }
        if !policies.headers.is_empty() {
            Arc::make_mut(&mut merged.headers).merge(&policies.headers, layer);
        }
        if let Some(limits) = &policies.limits {
            if layer == Layer::Route {
                merged.route_limits = Some(Sourced::new(layer, limits.clone()));
            } else {
                Arc::make_mut(&mut merged.limits).merge(limits, layer);
            }
        }
        Arc::new(merged)
    }

    /// The policies of one of the tenant's routes, these being the tenant's.
    #[must_use]
    pub fn for_route(self: &Arc<Self>, route: &Route) -> Arc<Self> {
        self.with(&route.policies, Layer::Route)
    }

    /// What a request weighs against rates and quotas.
    pub fn cost(&self) -> u64 {
        self.route_limits.as_ref().map_or(1, |limits| limits.cost())
    }

    /// Whether requests that the upstream answers with 5xx count against quotas. The route decides about
    /// its own requests, if it says anything.
    pub fn count_failures(&self) -> bool {
        let route = self.route_limits.as_ref().and_then(|limits| limits.count_failures);
        route.unwrap_or(self.limits.count_failures.value)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::load;

    const FILE: &str = r#"
revision: 1
defaults:
  auth: { accept: [anonymous] }
  timeouts: { total: 10s }
  headers:
    request: { set: { x-from: defaults, x-layer: defaults }, remove: [x-secret] }
  limits:
    rate: { requests: 60, per: 1m }
    quotas: { daily: 1000 }
    keyed: [{ id: each, by: consumer, rate: { requests: 6, per: 1m } }]
plans:
  gold:
    timeouts: { total: 20s }
    limits:
      quotas: { daily: 5000, monthly: 100000 }
      calendar: { time_zone: Asia/Tokyo }
      keyed: [{ id: device, by: { header: x-device-id }, quotas: { daily: 10 } }]
    security_headers: { x-frame-options: SAMEORIGIN }
upstreams:
  u: { endpoints: [{ address: 10.0.0.1:80 }] }
tenants:
  - id: plain
    hosts: [plain.example]
    routes:
      - { id: a, match: { path: /a }, upstream: u }
  - id: golden
    hosts: [golden.example]
    plan: gold
    policies:
      cors: { origins: ["https://app.example"] }
      security_headers: { content-security-policy: null }
      headers:
        request: { set: { x-layer: tenant } }
      limits:
        rate: unlimited
        unreachable: deny
        keyed: [{ id: each, by: consumer, rate: { requests: 30, per: 1m } }]
    routes:
      - { id: a, match: { path: /a }, upstream: u }
      - id: b
        match: { path: /b }
        upstream: u
        policies:
          timeouts: { total: 1s }
          headers:
            request: { remove: [x-layer], add: { x-secret: route } }
          limits: { rate: { requests: 10, per: 1s }, cost: 5, count_failures: false }
"#;

    fn tenants() -> (SharedLayers, Vec<Tenant>) {
        let (head, tenants) = load::tenants(FILE, Path::new("t.yaml")).unwrap().into_parts();
        (SharedLayers::new(&head), tenants)
    }

    fn name(text: &str) -> crate::values::HeaderName {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_may_call_where_no_layer_says_otherwise() {
        let built_in = Effective::built_in();
        assert!(built_in.auth.accept.is_empty());
        assert_eq!(built_in.auth.layer, Layer::BuiltIn);
        assert_eq!(built_in.security_headers.len(), 8);
    }

    #[test]
    fn what_adds_nothing_costs_nothing() {
        let (shared, tenants) = tenants();
        let plain = shared.tenant(&tenants[0]);
        assert!(Arc::ptr_eq(&plain, &shared.defaults));
        assert!(Arc::ptr_eq(&plain.for_route(&tenants[0].routes[0]), &plain));
        // What a layer does not set is shared with the layer below.
        let golden = shared.tenant(&tenants[1]);
        let route = golden.for_route(&tenants[1].routes[1]);
        assert!(Arc::ptr_eq(&route.cors.as_ref().unwrap().value, &golden.cors.as_ref().unwrap().value));
        assert!(Arc::ptr_eq(&route.security_headers, &golden.security_headers));
    }

    #[test]
    fn the_most_specific_layer_wins_whole() {
        let (shared, tenants) = tenants();
        let total = |effective: &Effective| (effective.timeouts.layer, effective.timeouts.total.to_string());
        let golden = shared.tenant(&tenants[1]);
        assert_eq!(total(&shared.tenant(&tenants[0])), (Layer::Defaults, "10s".to_owned()));
        assert_eq!(total(&golden), (Layer::Plan, "20s".to_owned()));
        assert_eq!(total(&golden.for_route(&tenants[1].routes[1])), (Layer::Route, "1s".to_owned()));
        assert_eq!(golden.auth.layer, Layer::Defaults);
        assert_eq!(golden.cors.as_ref().unwrap().layer, Layer::Tenant);
        assert_eq!(golden.retries.layer, Layer::BuiltIn);
    }

    #[test]
    fn security_headers_are_merged_entry_by_entry() {
        let (shared, tenants) = tenants();
        let golden = shared.tenant(&tenants[1]);
        let entry = |header: &str| {
            let setting = &golden.security_headers[&name(header)];
            (setting.layer, setting.value.as_ref().map(ToString::to_string))
        };
        assert_eq!(entry("x-content-type-options"), (Layer::BuiltIn, Some("nosniff".to_owned())));
        assert_eq!(entry("x-frame-options"), (Layer::Plan, Some("SAMEORIGIN".to_owned())));
        assert_eq!(entry("content-security-policy"), (Layer::Tenant, None));
    }

    #[test]
    fn a_layer_that_names_a_header_decides_about_it_alone() {
        let (shared, tenants) = tenants();
        let golden = shared.tenant(&tenants[1]);
        assert_eq!(golden.headers.request.set[&name("x-layer")].layer, Layer::Tenant);
        assert_eq!(golden.headers.request.set[&name("x-from")].layer, Layer::Defaults);
        let route = golden.for_route(&tenants[1].routes[1]);
        assert!(!route.headers.request.set.contains_key(&name("x-layer")));
        assert_eq!(route.headers.request.remove[&name("x-layer")].layer, Layer::Route);
        assert!(!route.headers.request.remove.contains_key(&name("x-secret")));
        assert_eq!(route.headers.request.add[&name("x-secret")].layer, Layer::Route);
        assert_eq!(route.headers.request.set[&name("x-from")].layer, Layer::Defaults);
    }

    #[test]
    fn limits_are_merged_field_by_field_up_to_the_tenant() {
        let (shared, tenants) = tenants();
        let plain = shared.tenant(&tenants[0]);
        assert_eq!(plain.limits.bucket().unwrap().burst(), 60);
        assert_eq!((plain.limits.daily(), plain.limits.monthly()), (Some(1000), None));
        assert_eq!(plain.limits.calendar.layer, Layer::BuiltIn);

        let golden = shared.tenant(&tenants[1]);
        let limits = &golden.limits;
        assert_eq!(limits.bucket(), None);
        assert_eq!(limits.rate.as_ref().unwrap().layer, Layer::Tenant);
        assert_eq!((limits.daily(), limits.monthly()), (Some(5000), Some(100_000)));
        assert_eq!(limits.quotas.daily.as_ref().unwrap().layer, Layer::Plan);
        assert_eq!(limits.calendar.value.time_zone.as_str(), "Asia/Tokyo");
        assert_eq!((limits.concurrent_requests(), limits.websockets()), (None, None));
        assert_eq!(limits.unreachable.layer, Layer::Tenant);
        let keyed: Vec<_> = limits.keyed.iter().map(|(id, setting)| (id.as_str(), setting.layer)).collect();
        assert_eq!(keyed, [("device", Layer::Plan), ("each", Layer::Tenant)]);
        assert_eq!(limits.keyed().last().unwrap().rate.unwrap().bucket().unwrap().requests.get(), 30);
    }

    #[test]
    fn limits_of_a_route_hold_beside_those_of_its_tenant() {
        let (shared, tenants) = tenants();
        let golden = shared.tenant(&tenants[1]);
        let [open, tight] = [0, 1].map(|number| golden.for_route(&tenants[1].routes[number]));
        for route in [&open, &tight] {
            assert!(Arc::ptr_eq(&route.limits, &golden.limits));
        }
        assert_eq!((open.route_limits.is_none(), open.cost(), open.count_failures()), (true, 1, true));
        assert_eq!((tight.cost(), tight.count_failures()), (5, false));
        let own = tight.route_limits.as_ref().unwrap();
        assert_eq!((own.layer, own.rate.unwrap().bucket().unwrap().burst()), (Layer::Route, 10));
    }

    #[test]
    fn what_applies_and_why_can_be_shown() {
        let (shared, tenants) = tenants();
        let golden = shared.tenant(&tenants[1]);
        let shown = serde_json::to_value(golden.for_route(&tenants[1].routes[1])).unwrap();
        assert_eq!(shown["timeouts"]["layer"], "route");
        assert_eq!(shown["timeouts"]["value"]["total"], "1s");
        assert_eq!(shown["cors"]["layer"], "tenant");
        assert_eq!(shown["validation"], serde_json::Value::Null);
        assert_eq!(shown["security_headers"]["x-frame-options"]["layer"], "plan");
        assert_eq!(shown["security_headers"]["content-security-policy"]["value"], serde_json::Value::Null);
        assert_eq!(shown["headers"]["request"]["remove"]["x-layer"]["layer"], "route");
        assert_eq!(shown["headers"]["request"]["set"]["x-from"]["value"], "defaults");
        assert_eq!(shown["limits"]["rate"], serde_json::json!({ "layer": "tenant", "value": "unlimited" }));
        assert_eq!(shown["limits"]["quotas"]["monthly"], serde_json::json!({ "layer": "plan", "value": 100_000 }));
        assert_eq!(shown["limits"]["concurrency"]["requests"], serde_json::Value::Null);
        assert_eq!(shown["limits"]["keyed"]["each"]["layer"], "tenant");
        assert_eq!(shown["route_limits"]["value"]["cost"], 5);
        // The gateway's own credentials are not.
        assert_eq!(shown["headers"]["request"]["add"]["x-secret"]["value"], "(hidden)");
    }
}
