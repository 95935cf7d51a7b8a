//! What changes live: tenants, their upstreams, routes and callers.

mod api_key;
mod condition;
mod credentials;
mod route;
mod upstream;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    api_key::{ApiKey, KeyHash, KeySource},
    condition::{HeaderCondition, QueryCondition, TextTest},
    credentials::{ApiKeyPlacement, CertificateIdentity, Consumer, JwksSource, JwtAlgorithm, JwtIssuer},
    route::{Canary, CookieIs, HeaderIs, Mirror, Priority, Route, RouteMatch, Version, VersionSource, Versions},
    upstream::{
        Balance, Breaker, Endpoint, HashKey, HealthCheck, HostHeader, Outliers, Probe, Upstream, UpstreamProtocol,
        UpstreamTls,
    },
};
use crate::{
    policy::{Plans, Policies},
    values::{HostPattern, Id},
};

/// One file of tenant configuration.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantFile {
    /// Number of this configuration: a change gets a higher one.
    pub revision: u64,
    /// Policies for all tenants of the file, below plan, tenant and route.
    #[serde(default)]
    pub defaults: Policies,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: Plans,
    /// Upstreams that every tenant of the file may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
    #[serde(default)]
    pub tenants: Vec<Tenant>,
}

/// What a file of tenant configuration says beside its tenants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TenantHead {
    pub revision: u64,
    pub defaults: Policies,
    pub plans: Plans,
    pub upstreams: BTreeMap<Id, Upstream>,
}

/// The head as a document of its own: what the control plane keeps and sends of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadDocument {
    pub defaults: Policies,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: Plans,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
}

impl HeadDocument {
    /// The head of this revision.
    pub fn into_head(self, revision: u64) -> TenantHead {
        let Self { defaults, plans, upstreams } = self;
        TenantHead { revision, defaults, plans, upstreams }
    }
}

impl TenantFile {
    /// The file's head, and its tenants.
    pub fn into_parts(self) -> (TenantHead, Vec<Tenant>) {
        let Self { revision, defaults, plans, upstreams, tenants } = self;
        (TenantHead { revision, defaults, plans, upstreams }, tenants)
    }
}

/// One tenant: the unit that is accepted or refused whole.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub id: Id,
    /// Host names the tenant is served under; no other tenant may have them.
    pub hosts: Vec<HostPattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TenantTls>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumers: Vec<Consumer>,
    #[serde(default)]
    pub api_keys: ApiKeyPlacement,
    /// Issuers whose JWTs are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_issuers: Vec<JwtIssuer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// The tenant's own upstreams; a name that the file's `upstreams` also has means this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
    #[serde(default = "no_policies", skip_serializing_if = "is_no_policies")]
    pub policies: Arc<Policies>,
    pub routes: Vec<Route>,
}

/// Certificates for the tenant's hosts, and the authority that signs its clients' certificates.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantTls {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateFiles>,
    /// PEM file of the authorities that client certificates must come from. Re-read when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Refuse connections to this tenant's hosts that show no valid client certificate.
    pub require_client_certificate: bool,
}

/// PEM files of a certificate chain and its key. Re-read when they change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The policies of what sets none: one value that all share, since there are very many of them.
fn no_policies() -> Arc<Policies> {
    static NONE: LazyLock<Arc<Policies>> = LazyLock::new(Arc::default);
    Arc::clone(&NONE)
}

fn is_no_policies(policies: &Arc<Policies>) -> bool {
    policies.is_empty()
}
