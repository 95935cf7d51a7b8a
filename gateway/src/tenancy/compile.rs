//! From configuration to what requests use: everything that can be computed once is computed here.

use std::{collections::HashMap, path::Path, sync::Arc};

use http::{HeaderName, HeaderValue};
use seiketsu_cache::storage::Storage;
use seiketsu_config::{
    error::ConfigErrors,
    layers::{Effective, Sourced},
    load,
    policy::{self, Auth, JsonDocument, Retries, Timeouts},
    tenant::{self, Canary, Mirror, Route, Tenant},
    values::{Id, PathPattern},
};
use seiketsu_identity::{
    assertion::Audience,
    authenticate::{self, TenantAuth},
    state::IdentityState,
};
use seiketsu_limits::shedding::Priority;

use super::{
    router::Router,
    tls::{TenantTls, TlsError},
};
use crate::{
    cache::compile::{self as cache_compile, CompiledCache, TenantCache},
    limits::{
        Limits,
        compile::{self as limits_compile, LimitsCompileError, RouteLimits, Since, TenantLimits},
    },
    policy::{
        access::AccessPolicy,
        body_transform::{BodyTransform, BodyTransformError},
        compression::{CompressionError, CompressionPolicy},
        cors::{CorsError, CorsPolicy},
        headers::{Direction, HeaderChanges, HeaderChangesError},
        request_limits::RequestLimits,
        security_headers::SecurityHeaders,
        transform::{TargetTransform, TransformError},
        validation::{Validation, ValidationError},
        versioning::{VersioningError, Versions},
    },
    telemetry::metrics::{Metrics, RouteTable, TenantMetrics},
    upstream::pool::UpstreamPool,
};

/// One tenant, ready to serve.
#[derive(Debug)]
pub struct CompiledTenant {
    pub(crate) router: Router,
    pub(crate) routes: Box<[CompiledRoute]>,
    pub(crate) auth: TenantAuth,
    pub(crate) versions: Option<Versions>,
    /// For answers where no route was found.
    pub(crate) policies: Arc<CompiledPolicies>,
    /// Connections to its hosts must have been made for them, since certificates are checked there.
    pub(crate) asks_for_client_certificate: bool,
    /// Connections without TLS, where none can be shown, are not enough.
    pub(crate) requires_client_certificate: bool,
    pub(crate) metrics: Arc<TenantMetrics>,
    pub(crate) route_metrics: Arc<RouteTable>,
    pub(crate) limits: Option<TenantLimits>,
    pub(crate) limits_since: Since,
    /// What is stored for it, if any of its routes stores anything.
    pub(crate) cache: Option<TenantCache>,
    pub(crate) tls: Option<TenantTls>,
    /// The file that it stands in, or what is named in its place.
    pub(crate) file: Arc<Path>,
    /// What was compiled, for the config dump.
    pub(crate) config: Arc<Tenant>,
    pub(crate) effective: Box<[Arc<Effective>]>,
}

impl CompiledTenant {
    /// Makes true what could not be before the tenant was in force as it is here.
    pub(crate) fn put_in_force(&self) {
        if let Some(cache) = &self.cache {
            cache.put_in_force();
        }
    }
}

/// One route, ready to serve.
#[derive(Debug)]
pub struct CompiledRoute {
    pub(crate) id: Id,
    pub(crate) pattern: PathPattern,
    pub(crate) priority: Priority,
    pub(crate) pool: Arc<UpstreamPool>,
    pub(crate) audience: Audience,
    pub(crate) canary: Option<CompiledCanary>,
    pub(crate) mirror: Option<CompiledMirror>,
    pub(crate) transform: Option<TargetTransform>,
    pub(crate) policies: Arc<CompiledPolicies>,
    pub(crate) limits: RouteLimits,
    pub(crate) cache: Option<CompiledCache>,
}

impl CompiledRoute {
    pub(crate) fn pool_for(&self, canary: bool) -> &Arc<UpstreamPool> {
        self.canary.as_ref().filter(|_| canary).map_or(&self.pool, |canary| &canary.pool)
    }

    /// Whether anything may want to see a request's body before it goes on.
    pub(crate) fn looks_at_body(&self) -> bool {
        self.policies.validation.is_some() || self.policies.request_body.is_some() || self.mirror.is_some()
    }
}

#[derive(Debug)]
pub struct CompiledCanary {
    pub(crate) pool: Arc<UpstreamPool>,
    pub(crate) audience: Audience,
    /// Between 0 and 1.
    pub(crate) weight: f64,
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
    pub(crate) cookie: Option<(Box<str>, Box<str>)>,
    pub(crate) sticky: Option<StickyCookie>,
}

#[derive(Debug)]
pub struct StickyCookie {
    pub(crate) name: Box<str>,
}

#[derive(Debug)]
pub struct CompiledMirror {
    pub(crate) pool: Arc<UpstreamPool>,
    pub(crate) audience: Audience,
    /// Between 0 and 1.
    pub(crate) share: f64,
}

/// The policies of a route, ready to apply. Routes that set none of their own share their tenant's,
/// tenants that set none share the file's.
#[derive(Debug)]
pub struct CompiledPolicies {
    pub(crate) auth: Auth,
    pub(crate) cors: Option<CorsPolicy>,
    pub(crate) security_headers: SecurityHeaders,
    pub(crate) request_headers: HeaderChanges,
    pub(crate) response_headers: HeaderChanges,
    pub(crate) access: Option<AccessPolicy>,
    pub(crate) request: RequestLimits,
    pub(crate) request_body: Option<BodyTransform>,
    pub(crate) response_body: Option<BodyTransform>,
    pub(crate) validation: Option<Validation>,
    pub(crate) compression: Option<CompressionPolicy>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retries: Retries,
    /// Share of requests that are logged, between 0 and 1.
    pub(crate) log_sample: f64,
}

/// Why a tenant cannot be put to use; says where, in terms of what was written.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("tenant {tenant}: {source}")]
    Callers { tenant: Id, source: authenticate::CompileError },
    #[error("tenant {tenant}: tls: {source}")]
    Tls { tenant: Id, source: Box<TlsError> },
    #[error("tenant {tenant}: versions: {source}")]
    Versions { tenant: Id, source: VersioningError },
    #[error("tenant {tenant}, route {route}: {source}")]
    Route { tenant: Id, route: Id, source: Box<PolicyError> },
    #[error("tenant {tenant}: {source}")]
    Tenant { tenant: Id, source: Box<PolicyError> },
}

impl CompileError {
    /// Whether it is about an upstream that is not there. Configuration that names none was refused before,
    /// so what is missing here is one that could not be made, and that is an error of its own.
    pub(crate) fn is_missing_upstream(&self) -> bool {
        matches!(self, Self::Route { source, .. } if matches!(**source, PolicyError::UnknownUpstream(_)))
    }
}

/// Which policy cannot be put to use, and why.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("cors: {0}")]
    Cors(#[from] CorsError),
    #[error("headers: {0}")]
    Headers(#[from] HeaderChangesError),
    #[error("transform: {0}")]
    Transform(#[from] TransformError),
    #[error("transform: {0}")]
    BodyTransform(#[from] BodyTransformError),
    #[error("validation: {0}")]
    Validation(#[from] ValidationError),
    #[error("validation: {0}")]
    Document(#[from] ConfigErrors),
    #[error("compression: {0}")]
    Compression(#[from] CompressionError),
    #[error(transparent)]
    Limits(#[from] LimitsCompileError),
    #[error("there is no upstream {0}; define it under `upstreams` of the tenant or of the file")]
    UnknownUpstream(Id),
}

/// Finds the pool of an upstream by the name that a tenant uses for it.
pub(crate) trait Pools {
    fn pool(&self, upstream: &Id) -> Option<Arc<UpstreamPool>>;
}

/// Compiles tenants of one file, sharing what they share.
pub(crate) struct Compiler<'a> {
    pub(crate) identity: &'a Arc<IdentityState>,
    pub(crate) metrics: &'a Metrics,
    limits: &'a Limits,
    cache: &'a Arc<Storage>,
    /// Of the settings of the tenants that come next.
    pub(crate) revision: u64,
    file: Arc<Path>,
    /// Policies by the settings that they are compiled from, and merged settings that keep those alive: a tenant that sets
    /// none but its limits shares the policies of its plan, and so do the processor's caches.
    policies: HashMap<Compiled, (Arc<Effective>, Arc<CompiledPolicies>)>,
}

/// Where the settings are that [`CompiledPolicies`] are compiled from. Layers share what they do not set.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Compiled([Option<*const ()>; 12]);

impl Compiled {
    fn of(effective: &Effective) -> Self {
        fn at<T>(value: &Arc<T>) -> *const () {
            Arc::as_ptr(value).cast()
        }
        fn is_at<T>(value: Option<&Sourced<T>>) -> Option<*const ()> {
            value.map(|sourced| at(&sourced.value))
        }
        // All are named, so that whoever adds one decides whether it belongs here.
        let Effective {
            auth,
            cors,
            security_headers,
            headers,
            access,
            request,
            transform,
            validation,
            compression,
            timeouts,
            retries,
            access_log,
            cache: _,
            limits: _,
            route_limits: _,
        } = effective;
        Self([
            Some(at(&auth.value)),
            is_at(cors.as_ref()),
            Some(at(security_headers)),
            Some(at(headers)),
            is_at(access.as_ref()),
            Some(at(&request.value)),
            is_at(transform.as_ref()),
            is_at(validation.as_ref()),
            is_at(compression.as_ref()),
            Some(at(&timeouts.value)),
            Some(at(&retries.value)),
            Some(at(&access_log.value)),
        ])
    }
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(
        identity: &'a Arc<IdentityState>,
        metrics: &'a Metrics,
        limits: &'a Limits,
        cache: &'a Arc<Storage>,
        file: &Path,
    ) -> Self {
        Self { identity, metrics, limits, cache, revision: 0, file: file.into(), policies: HashMap::new() }
    }

    /// `tls` is what [`TenantTls`] made of the tenant, or why it could not. `tenant_effective` and `effective` are the
    /// merged settings of the tenant, and of each of its routes. `former` is the tenant in force.
    pub(crate) fn tenant(
        &mut self,
        tenant: &Arc<Tenant>,
        tls: Result<Option<TenantTls>, TlsError>,
        tenant_effective: &Arc<Effective>,
        effective: Vec<Arc<Effective>>,
        pools: &dyn Pools,
        former: Option<&CompiledTenant>,
    ) -> Result<CompiledTenant, CompileError> {
        let before = former.iter().flat_map(|former| former.effective.iter().zip(&former.routes));
        // Not where files were read: they may be others by now.
        for (effective, route) in before.filter(|(effective, _)| effective.validation.is_none()) {
            let shared = || (effective.clone(), route.policies.clone());
            self.policies.entry(Compiled::of(effective)).or_insert_with(shared);
        }
        let of_tenant = |source| CompileError::Tenant { tenant: tenant.id.clone(), source: Box::new(source) };
        let tls = tls.map_err(|source| CompileError::Tls { tenant: tenant.id.clone(), source: source.into() })?;
        let auth = TenantAuth::compile(tenant, &limits_compile::claims(tenant_effective, &effective), self.identity)
            .map_err(|source| CompileError::Callers { tenant: tenant.id.clone(), source })?;
        let versions = tenant.versions.as_ref().map(Versions::compile).transpose();
        let versions = versions.map_err(|source| CompileError::Versions { tenant: tenant.id.clone(), source })?;
        let policies = self.policies(tenant_effective).map_err(of_tenant)?;
        let limits_since =
            Since::of(self.revision, tenant, tenant_effective, &effective, former.map(|former| former.limits_since));
        let (limits, of_routes) =
            limits_compile::tenant(self.limits, self.revision, tenant, tenant_effective, &effective)
                .map_err(|source| of_tenant(source.into()))?;
        let cache = cache_compile::tenant(self.cache, tenant, tenant_effective, &effective);
        let mut routes = Vec::with_capacity(tenant.routes.len());
        for ((route, effective), limits) in tenant.routes.iter().zip(&effective).zip(of_routes) {
            let compiled = self.route(route, effective, limits, cache.as_ref(), pools).map_err(|source| {
                CompileError::Route { tenant: tenant.id.clone(), route: route.id.clone(), source: Box::new(source) }
            })?;
            routes.push(compiled);
        }
        let metrics = self.metrics.tenant(tenant.id.as_str());
        Ok(CompiledTenant {
            router: Router::new(tenant.routes.iter().map(|route| &route.r#match)),
            route_metrics: metrics.routes(tenant.routes.iter().map(|route| route.id.as_str())),
            routes: routes.into(),
            auth,
            versions,
            policies,
            requires_client_certificate: tenant
                .tls
                .as_ref()
                .is_some_and(|tls| tls.client_ca.is_some() && tls.require_client_certificate),
            asks_for_client_certificate: tenant.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            metrics,
            limits,
            limits_since,
            cache,
            tls,
            file: self.file.clone(),
            config: tenant.clone(),
            effective: effective.into(),
        })
    }

    fn route(
        &mut self,
        route: &Route,
        effective: &Arc<Effective>,
        limits: RouteLimits,
        cache: Option<&TenantCache>,
        pools: &dyn Pools,
    ) -> Result<CompiledRoute, PolicyError> {
        let pool = |id: &Id| pools.pool(id).ok_or_else(|| PolicyError::UnknownUpstream(id.clone()));
        let transform = effective.transform.as_deref();
        Ok(CompiledRoute {
            id: route.id.clone(),
            pattern: route.r#match.path.clone(),
            priority: match route.priority {
                tenant::Priority::Critical => Priority::Critical,
                tenant::Priority::Normal => Priority::Normal,
                tenant::Priority::Low => Priority::Low,
            },
            pool: pool(&route.upstream)?,
            audience: Audience::new(route.upstream.as_str()),
            canary: route
                .canary
                .as_ref()
                .map(|canary| Ok::<_, PolicyError>(canary_of(canary, pool(&canary.upstream)?)))
                .transpose()?,
            mirror: route
                .mirror
                .as_ref()
                .map(|mirror| Ok::<_, PolicyError>(mirror_of(mirror, pool(&mirror.upstream)?)))
                .transpose()?,
            transform: match transform {
                Some(transform) => TargetTransform::compile(transform, &route.r#match.path)?,
                None => None,
            },
            policies: self.policies(effective)?,
            limits,
            cache: CompiledCache::compile(cache, route, effective),
        })
    }

    fn policies(&mut self, effective: &Arc<Effective>) -> Result<Arc<CompiledPolicies>, PolicyError> {
        let compiled_from = Compiled::of(effective);
        if let Some((_, compiled)) = self.policies.get(&compiled_from) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(CompiledPolicies::compile(effective)?);
        // The settings are kept with it, so that their addresses stay theirs.
        self.policies.insert(compiled_from, (effective.clone(), compiled.clone()));
        Ok(compiled)
    }
}

impl CompiledPolicies {
    fn compile(effective: &Effective) -> Result<Self, PolicyError> {
        let transform = effective.transform.as_deref();
        let program = |text: Option<&String>| text.map(|text| BodyTransform::compile(text)).transpose();
        Ok(Self {
            auth: Auth::clone(&effective.auth),
            cors: effective.cors.as_deref().map(CorsPolicy::compile).transpose()?.flatten(),
            security_headers: SecurityHeaders::compile(&effective.security_headers),
            request_headers: HeaderChanges::compile(&effective.headers.request, Direction::Request)?,
            response_headers: HeaderChanges::compile(&effective.headers.response, Direction::Response)?,
            access: effective.access.as_deref().map(AccessPolicy::compile),
            request: RequestLimits::compile(&effective.request),
            request_body: program(transform.and_then(|t| t.request_body.as_ref()))?,
            response_body: program(transform.and_then(|t| t.response_body.as_ref()))?,
            validation: effective.validation.as_deref().map(validation).transpose()?,
            compression: effective.compression.as_deref().map(CompressionPolicy::compile).transpose()?.flatten(),
            timeouts: *effective.timeouts,
            retries: Retries::clone(&effective.retries),
            log_sample: effective.access_log.sample.as_fraction(),
        })
    }
}

/// Compiles with the documents in place of the names of their files.
fn validation(config: &policy::Validation) -> Result<Validation, PolicyError> {
    let mut config = config.clone();
    for document in [&mut config.body_schema, &mut config.openapi].into_iter().flatten() {
        if let JsonDocument::File(path) = document {
            *document = JsonDocument::Inline(load::document(path)?);
        }
    }
    Ok(Validation::compile(&config)?)
}

fn canary_of(canary: &Canary, pool: Arc<UpstreamPool>) -> CompiledCanary {
    CompiledCanary {
        pool,
        audience: Audience::new(canary.upstream.as_str()),
        weight: canary.weight.as_fraction(),
        header: canary.header.as_ref().map(|is| (is.name.get().clone(), is.value.get().clone())),
        cookie: canary.cookie.as_ref().map(|is| (is.name.as_str().into(), is.value.as_str().into())),
        sticky: canary.sticky_cookie.as_ref().map(|name| StickyCookie { name: name.as_str().into() }),
    }
}

fn mirror_of(mirror: &Mirror, pool: Arc<UpstreamPool>) -> CompiledMirror {
    CompiledMirror { pool, audience: Audience::new(mirror.upstream.as_str()), share: mirror.share.as_fraction() }
}
