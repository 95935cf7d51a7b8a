//! What documents of the control plane may name on a node. Whoever may write a tenant there decides what its document
//! says, and is not who runs the node: the files and environment variables of the node are out of reach but for those that
//! were put there for the tenant.

use std::path::{Component, Path, PathBuf};

use super::{Findings, Problem, Rule};
use crate::{
    path::At,
    policy::{JsonDocument, Policies},
    secret::SecretRef,
    tenant::{CertificateFiles, JwksSource, KeySource, Tenant, TenantHead, Upstream},
    values::Id,
};

/// The folder for what stands beside the tenants. No tenant has this name.
const SHARED: &str = "_shared";

/// Where the files of a tenant are, below the folder that the node has for them (`control_plane.files`); those that all
/// tenants share, if it is none.
pub fn files_for(tenant: Option<&Id>) -> PathBuf {
    Path::new("files").join(tenant.map_or(SHARED, Id::as_str))
}

/// How the names of the environment variables of a tenant begin. None, if no name tells it from all others: `a-b` is
/// `SEIKETSU_TENANT_A_B__`, and names with other signs than single hyphens have none.
pub fn variables_for(tenant: &Id) -> Option<String> {
    let id = tenant.as_str();
    let is_plain = !id.contains(['_', '.']) && !id.contains("--") && !id.ends_with('-');
    is_plain.then(|| format!("SEIKETSU_TENANT_{}__", id.to_ascii_uppercase().replace('-', "_")))
}

/// Files and variables that the tenant's document must not name.
pub fn confined_tenant(tenant: &Tenant) -> Vec<Problem> {
    let mut confinement = Confinement::new(Some(&tenant.id));
    let at = At::ROOT;
    if let Some(tls) = &tenant.tls {
        let at = at.key("tls");
        let certificates = at.key("certificates");
        for (index, pair) in tls.certificates.iter().enumerate() {
            confinement.certificate(certificates.index(index), pair);
        }
        if let Some(path) = &tls.client_ca {
            confinement.file(at.key("client_ca"), path);
        }
    }
    let consumers = at.key("consumers");
    for (index, consumer) in tenant.consumers.iter().enumerate() {
        let consumer_at = consumers.index(index);
        let keys = consumer_at.key("keys");
        for (index, key) in consumer.keys.iter().enumerate() {
            let at = keys.index(index);
            match &key.source {
                KeySource::Key(SecretRef::File(path)) => confinement.file(at.key("key"), path),
                KeySource::Key(SecretRef::Env(name)) => confinement.variable(at.key("key"), name, &tenant.id),
                _ => {}
            }
        }
    }
    let issuers = at.key("jwt_issuers");
    for (index, issuer) in tenant.jwt_issuers.iter().enumerate() {
        if let JwksSource::File(path) = &issuer.jwks {
            confinement.file(issuers.index(index).key("jwks").key("file"), path);
        }
    }
    let upstreams = at.key("upstreams");
    for (id, upstream) in &tenant.upstreams {
        confinement.upstream(upstreams.key(id.as_str()), upstream);
    }
    confinement.policies(at.key("policies"), &tenant.policies);
    let routes = at.key("routes");
    for (index, route) in tenant.routes.iter().enumerate() {
        confinement.policies(routes.index(index).key("policies"), &route.policies);
    }
    confinement.findings.problems
}

/// Files that what stands beside the tenants must not name.
pub fn confined_head(head: &TenantHead) -> Vec<Problem> {
    let mut confinement = Confinement::new(None);
    let at = At::ROOT;
    confinement.policies(at.key("defaults"), &head.defaults);
    let plans = at.key("plans");
    for (id, plan) in &head.plans {
        confinement.policies(plans.key(id.as_str()), plan);
    }
    let upstreams = at.key("upstreams");
    for (id, upstream) in &head.upstreams {
        confinement.upstream(upstreams.key(id.as_str()), upstream);
    }
    confinement.findings.problems
}

struct Confinement {
    folder: PathBuf,
    findings: Findings,
}

impl Confinement {
    fn new(tenant: Option<&Id>) -> Self {
        Self { folder: files_for(tenant), findings: Findings::default() }
    }

    fn file(&mut self, at: At<'_>, path: &Path) {
        let is_plain = path.components().all(|component| matches!(component, Component::Normal(_)));
        let is_below = path.strip_prefix(&self.folder).is_ok_and(|rest| rest.components().next().is_some());
        if !(is_plain && is_below) {
            let folder = self.folder.display().to_string();
            self.findings.add(at, path.display(), Rule::ForeignFile { folder });
        }
    }

    fn variable(&mut self, at: At<'_>, name: &str, tenant: &Id) {
        match variables_for(tenant) {
            Some(prefix) if name.strip_prefix(&prefix).is_some_and(|rest| !rest.is_empty()) => {}
            Some(prefix) => self.findings.add(at, name, Rule::ForeignVariable { prefix }),
            None => {
                let folder = self.folder.display().to_string();
                self.findings.add(at, name, Rule::NoVariables { folder });
            }
        }
    }

    fn certificate(&mut self, at: At<'_>, pair: &CertificateFiles) {
        self.file(at.key("certificate"), &pair.certificate);
        self.file(at.key("key"), &pair.key);
    }

    fn upstream(&mut self, at: At<'_>, upstream: &Upstream) {
        let Some(tls) = &upstream.tls else { return };
        let at = at.key("tls");
        if let Some(path) = &tls.ca {
            self.file(at.key("ca"), path);
        }
        if let Some(pair) = &tls.client_certificate {
            self.certificate(at.key("client_certificate"), pair);
        }
    }

    fn policies(&mut self, at: At<'_>, policies: &Policies) {
        let Some(validation) = &policies.validation else { return };
        let at = at.key("validation");
        for (name, document) in [("body_schema", &validation.body_schema), ("openapi", &validation.openapi)] {
            if let Some(JsonDocument::File(path)) = document {
                self.file(at.key(name).key("file"), path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::load::files_of_tenant;

    fn tenant(id: &str, file: &str, variable: &str) -> Tenant {
        let pair = json!({ "certificate": file, "key": file });
        let policies = json!({ "validation": { "body_schema": { "file": file }, "openapi": { "file": file } } });
        let upstream = json!({
            "endpoints": [{ "address": "10.0.0.1:80" }], "tls": { "ca": file, "client_certificate": pair },
        });
        let document = json!({
            "id": id,
            "hosts": ["a.example"],
            "tls": { "certificates": [pair], "client_ca": file },
            "consumers": [{ "id": "app", "keys": [
                { "prefix": "abcdefgh", "key": format!("${{file:{file}}}") },
                { "prefix": "bcdefghi", "key": format!("${{env:{variable}}}") },
            ] }],
            "jwt_issuers": [{ "issuer": "https://login.example", "audiences": ["api"], "jwks": { "file": file } }],
            "upstreams": { "own": upstream },
            "policies": policies,
            "routes": [{ "id": "all", "match": { "path": "/" }, "upstream": "own", "policies": policies }],
        });
        serde_json::from_value(document).unwrap()
    }

    fn refused(id: &str, file: &str, variable: &str) -> Vec<String> {
        confined_tenant(&tenant(id, file, variable)).iter().map(|problem| problem.path.to_string()).collect()
    }

    #[test]
    fn every_file_and_variable_that_a_tenant_names_is_looked_at() {
        assert_eq!(refused("acme", "files/acme/x.pem", "SEIKETSU_TENANT_ACME__KEY"), [""; 0]);
        let found = refused("acme", "/etc/shadow", "DATABASE_URL");
        assert_eq!(
            found,
            [
                "tls.certificates[0].certificate",
                "tls.certificates[0].key",
                "tls.client_ca",
                "consumers[0].keys[0].key",
                "consumers[0].keys[1].key",
                "jwt_issuers[0].jwks.file",
                "upstreams.own.tls.ca",
                "upstreams.own.tls.client_certificate.certificate",
                "upstreams.own.tls.client_certificate.key",
                "policies.validation.body_schema.file",
                "policies.validation.openapi.file",
                "routes[0].policies.validation.body_schema.file",
                "routes[0].policies.validation.openapi.file",
            ]
        );
        // As many as the gateway opens, and a variable.
        assert_eq!(found.len(), files_of_tenant(&tenant("acme", "x", "X")).len() + 1);
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for path in [
            "/files/acme/x",
            "files/acme",
            "files/acme/",
            "files/acme/..",
            "files/acme/../globex/x",
            "./files/acme/x",
            "files/globex/x",
            "files/acme2/x",
            "files/_shared/x",
            "files/./acme/x/../../x",
            "x",
            "..",
            "files/ACME/x",
        ] {
            assert_eq!(refused("acme", path, "SEIKETSU_TENANT_ACME__KEY").is_empty(), path == "files/./acme", "{path}");
        }
        for (id, name) in [
            ("a", "SEIKETSU_TENANT_A_B__KEY"),
            ("a", "SEIKETSU_TENANT_A__"),
            ("a", "SEIKETSU_TENANT_A_X"),
            ("a-b", "SEIKETSU_TENANT_A__B"),
            ("a", "PATH"),
            ("a_b", "SEIKETSU_TENANT_A_B__KEY"),
            ("a.b", "SEIKETSU_TENANT_A_B__KEY"),
            ("a--b", "SEIKETSU_TENANT_A__B__KEY"),
            ("a-", "SEIKETSU_TENANT_A___KEY"),
        ] {
            assert_eq!(refused(id, &format!("files/{id}/x"), name), ["consumers[0].keys[1].key"], "{id}: {name}");
        }
    }

    #[test]
    fn what_all_share_has_a_folder_of_its_own() {
        let head = |file: &str| -> TenantHead {
            let policies: Value = json!({ "validation": { "body_schema": { "file": file } } });
            let upstream = json!({ "endpoints": [{ "address": "10.0.0.1:80" }], "tls": { "ca": file } });
            let document =
                json!({ "defaults": policies, "plans": { "gold": policies }, "upstreams": { "shared": upstream } });
            let document: crate::tenant::HeadDocument = serde_json::from_value(document).unwrap();
            document.into_head(1)
        };
        assert!(confined_head(&head("files/_shared/x")).is_empty());
        assert_eq!(confined_head(&head("files/acme/x")).len(), 3);
    }

    proptest! {
        #[test]
        fn no_two_tenants_have_a_variable_in_common(one in "[a-c][a-c_.-]{0,3}", other in "[a-c][a-c_.-]{0,3}") {
            let (one, other): (Id, Id) = (one.parse().unwrap(), other.parse().unwrap());
            if let (Some(first), Some(second)) = (variables_for(&one), variables_for(&other)) {
                prop_assert_eq!(first.starts_with(&second), one == other);
            }
        }
    }
}
