//! Paths in the configuration mean files beside the file that names them. Which files those are.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    node::{ControlPlane, LogOutput, NodeConfig},
    policy::{JsonDocument, Policies},
    secret::SecretRef,
    tenant::{CertificateFiles, JwksSource, KeySource, Tenant, TenantHead, Upstream},
};

/// The files that a tenant refers to: certificates, keys, authorities, documents.
pub fn files_of_tenant(tenant: &Tenant) -> Vec<&Path> {
    let mut files = Vec::new();
    if let Some(tls) = &tenant.tls {
        tls.certificates.iter().for_each(|pair| add_certificate(pair, &mut files));
        files.extend(tls.client_ca.as_deref());
    }
    for key in tenant.consumers.iter().flat_map(|consumer| &consumer.keys) {
        if let KeySource::Key(SecretRef::File(path)) = &key.source {
            files.push(path);
        }
    }
    for issuer in &tenant.jwt_issuers {
        if let JwksSource::File(path) = &issuer.jwks {
            files.push(path);
        }
    }
    tenant.upstreams.values().for_each(|upstream| add_upstream(upstream, &mut files));
    add_policies(&tenant.policies, &mut files);
    tenant.routes.iter().for_each(|route| add_policies(&route.policies, &mut files));
    files
}

/// The files that all tenants of a file refer to, by its defaults, plans and upstreams.
pub fn files_of_head(head: &TenantHead) -> Vec<&Path> {
    let mut files = Vec::new();
    add_policies(&head.defaults, &mut files);
    head.plans.values().for_each(|plan| add_policies(plan, &mut files));
    head.upstreams.values().for_each(|upstream| add_upstream(upstream, &mut files));
    files
}

fn add_policies<'a>(policies: &'a Policies, files: &mut Vec<&'a Path>) {
    let Some(validation) = &policies.validation else { return };
    for document in [&validation.body_schema, &validation.openapi].into_iter().flatten() {
        if let JsonDocument::File(path) = document {
            files.push(path);
        }
    }
}

fn add_upstream<'a>(upstream: &'a Upstream, files: &mut Vec<&'a Path>) {
    let Some(tls) = &upstream.tls else { return };
    files.extend(tls.ca.as_deref());
    tls.client_certificate.iter().for_each(|pair| add_certificate(pair, files));
}

fn add_certificate<'a>(pair: &'a CertificateFiles, files: &mut Vec<&'a Path>) {
    files.extend([&*pair.certificate, &*pair.key]);
}

/// Makes relative paths begin at a folder.
pub(super) struct Resolver<'a> {
    folder: &'a Path,
}

impl<'a> Resolver<'a> {
    /// For what is written in the file `origin`.
    pub(super) fn beside(origin: &'a Path) -> Self {
        Self::in_folder(origin.parent().unwrap_or(Path::new("")))
    }

    pub(super) fn in_folder(folder: &'a Path) -> Self {
        Self { folder }
    }

    fn path(&self, path: &mut PathBuf) {
        if path.is_relative() && !path.as_os_str().is_empty() {
            *path = self.folder.join(&*path);
        }
    }

    pub(super) fn node(&self, node: &mut NodeConfig) {
        node.tls.certificates.iter_mut().for_each(|files| self.certificate(files));
        node.tenants.iter_mut().for_each(|path| self.path(path));
        if let Some(settings) = &mut node.control_plane {
            self.control_plane(settings);
        }
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

    fn control_plane(&self, settings: &mut ControlPlane) {
        for secret in [settings.token.as_mut(), settings.unseal_key.as_mut()].into_iter().flatten() {
            if let SecretRef::File(path) = secret {
                self.path(path);
            }
        }
        settings.certificate.iter_mut().for_each(|files| self.certificate(files));
        settings.ca.iter_mut().for_each(|path| self.path(path));
        self.path(settings.files.get_or_insert_with(|| self.folder.to_owned()));
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
