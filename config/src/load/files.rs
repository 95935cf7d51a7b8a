//! Paths in the configuration mean files beside the file that names them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    node::{LogOutput, NodeConfig},
    policy::{JsonDocument, Policies},
    secret::SecretRef,
    tenant::{CertificateFiles, JwksSource, KeySource, Tenant, TenantHead, Upstream},
};

/// Makes relative paths begin at a folder.
pub(super) struct Resolver<'a> {
    folder: &'a Path,
}

impl<'a> Resolver<'a> {
    /// For what is written in the file `origin`.
    pub(super) fn beside(origin: &'a Path) -> Self {
        Self { folder: origin.parent().unwrap_or(Path::new("")) }
    }

    fn path(&self, path: &mut PathBuf) {
        if path.is_relative() && !path.as_os_str().is_empty() {
            *path = self.folder.join(&*path);
        }
    }

    pub(super) fn node(&self, node: &mut NodeConfig) {
        node.tls.certificates.iter_mut().for_each(|files| self.certificate(files));
        self.path(&mut node.tenants);
        self.path(&mut node.state_dir);
        if let LogOutput::File(path) = &mut node.access_log.output {
            self.path(path);
        }
        if let Some(path) = &mut node.identity.key {
            self.path(path);
        }
        if let Some(redis) = &mut node.limits.redis
            && let Some(SecretRef::File(path)) = redis.url.reference_mut()
        {
            self.path(path);
        }
    }

    pub(super) fn head(&self, head: &mut TenantHead) {
        self.policies(&mut head.defaults);
        head.plans.values_mut().for_each(|plan| self.policies(plan));
        head.upstreams.values_mut().for_each(|upstream| self.upstream(upstream));
    }

    pub(super) fn tenant(&self, tenant: &mut Tenant) {
        if let Some(tls) = &mut tenant.tls {
            tls.certificates.iter_mut().for_each(|files| self.certificate(files));
            if let Some(path) = &mut tls.client_ca {
                self.path(path);
            }
        }
        for key in tenant.consumers.iter_mut().flat_map(|consumer| &mut consumer.keys) {
            if let KeySource::Key(SecretRef::File(path)) = &mut key.source {
                self.path(path);
            }
        }
        for issuer in &mut tenant.jwt_issuers {
            if let JwksSource::File(path) = &mut issuer.jwks {
                self.path(path);
            }
        }
        tenant.upstreams.values_mut().for_each(|upstream| self.upstream(upstream));
        self.shared_policies(&mut tenant.policies);
        tenant.routes.iter_mut().for_each(|route| self.shared_policies(&mut route.policies));
    }

    /// Policies that name no file stay shared.
    fn shared_policies(&self, policies: &mut Arc<Policies>) {
        if policies.validation.is_some() {
            self.policies(Arc::make_mut(policies));
        }
    }

    fn policies(&self, policies: &mut Policies) {
        let Some(validation) = &mut policies.validation else { return };
        for document in [&mut validation.body_schema, &mut validation.openapi].into_iter().flatten() {
            if let JsonDocument::File(path) = document {
                self.path(path);
            }
        }
    }

    fn upstream(&self, upstream: &mut Upstream) {
        let Some(tls) = &mut upstream.tls else { return };
        if let Some(path) = &mut tls.ca {
            self.path(path);
        }
        if let Some(files) = &mut tls.client_certificate {
            self.certificate(files);
        }
    }

    fn certificate(&self, files: &mut CertificateFiles) {
        self.path(&mut files.certificate);
        self.path(&mut files.key);
    }
}
