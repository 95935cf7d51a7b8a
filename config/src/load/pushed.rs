//! Documents that the control plane sends: JSON, one of each tenant and one of what stands beside them.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{
    Fault,
    files::Resolver,
    may_be_shown,
    yaml::{self, Anchors},
};
use crate::{
    check,
    error::{Cause, ConfigError, ConfigErrors},
    path::{ConfigPath, PathStep},
    tenant::{HeadDocument, Tenant, TenantHead},
};

/// What errors name in place of a file.
pub const CONTROL_PLANE: &str = "control plane";

/// Reads and checks a tenant, against what stands beside it. Relative paths in it begin at `folder`.
pub fn pushed_tenant(content: &str, head: &TenantHead, folder: &Path) -> Result<Tenant, ConfigErrors> {
    let mut tenant: Tenant = read(content)?;
    pushed_tenant_fits(&tenant, head)?;
    let foreign = check::confined_tenant(&tenant);
    if !foreign.is_empty() {
        return Err(errors(foreign.into_iter().map(Fault::from).collect(), Some(&tenant)));
    }
    Resolver::in_folder(folder).tenant(&mut tenant);
    Ok(tenant)
}

/// Checks a tenant that was read before against another head.
pub fn pushed_tenant_fits(tenant: &Tenant, head: &TenantHead) -> Result<(), ConfigErrors> {
    let problems = check::tenant(tenant, head);
    if problems.is_empty() {
        return Ok(());
    }
    Err(errors(problems.into_iter().map(Fault::from).collect(), Some(tenant)))
}

/// Reads and checks what stands beside the tenants. Relative paths in it begin at `folder`.
pub fn pushed_head(content: &str, revision: u64, folder: &Path) -> Result<TenantHead, ConfigErrors> {
    let document: HeadDocument = read(content)?;
    let mut head = document.into_head(revision);
    let mut problems = check::head(&head);
    problems.extend(check::confined_head(&head));
    if !problems.is_empty() {
        return Err(errors(problems.into_iter().map(Fault::from).collect(), None));
    }
    Resolver::in_folder(folder).head(&mut head);
    Ok(head)
}

/// JSON is YAML as well, and who reads that says where and what is wrong; but it takes its time.
fn read<T: DeserializeOwned>(content: &str) -> Result<T, ConfigErrors> {
    serde_json::from_str(content).map_err(|error| {
        let refusal = yaml::parse(content, Anchors::Refused).and_then(|root| yaml::value::<T>(&root)).err();
        let unknown = || {
            // What serde repeats of the text may be a secret.
            let message = format!("it cannot be read as JSON, at line {}, column {}", error.line(), error.column());
            Fault { path: ConfigPath::default(), value: None, position: None, cause: Cause::Syntax { message } }
        };
        let fault = refusal.map_or_else(unknown, |refusal| Fault { position: None, ..(*refusal).into() });
        errors(vec![fault], None)
    })
}

/// A document is one line, so that there is nothing to count: the path says where.
fn errors(faults: Vec<Fault>, tenant: Option<&Tenant>) -> ConfigErrors {
    let error = |fault: Fault| ConfigError {
        tenant: tenant.map(|tenant| tenant.id.to_string()),
        route: tenant.and_then(|tenant| route(tenant, &fault.path)),
        value: fault.value.filter(|value| may_be_shown(&fault.path, value)),
        path: fault.path,
        ..ConfigError::of_file(Path::new(CONTROL_PLANE), fault.cause)
    };
    faults.into_iter().map(error).collect()
}

/// The name of the route that a path leads into.
fn route(tenant: &Tenant, path: &ConfigPath) -> Option<String> {
    match path.steps() {
        [PathStep::Key(key), PathStep::Index(number), ..] if **key == *"routes" => {
            tenant.routes.get(*number).map(|route| route.id.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn head() -> TenantHead {
        let head = json!({ "upstreams": { "shared": { "endpoints": [{ "address": "10.0.0.1:80" }] } } });
        pushed_head(&head.to_string(), 3, Path::new("conf")).unwrap()
    }

    fn tenant() -> Value {
        json!({
            "id": "acme",
            "hosts": ["acme.example"],
            "consumers": [{ "id": "app", "keys": [{ "prefix": "abcdefgh", "key": "${file:files/acme/keys/app}" }] }],
            "routes": [{ "id": "all", "match": { "path": "/{*rest}" }, "upstream": "shared" }],
        })
    }

    fn refused(tenant: &Value) -> String {
        pushed_tenant(&tenant.to_string(), &head(), Path::new("conf")).unwrap_err().to_string()
    }

    #[test]
    fn paths_begin_at_the_folder_of_the_node() {
        let read = pushed_tenant(&tenant().to_string(), &head(), Path::new("conf")).unwrap();
        assert_eq!(format!("{:?}", read.consumers[0].keys[0].source), r#"Key(File("conf/files/acme/keys/app"))"#);
        assert_eq!(head().revision, 3);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_path_and_names() {
        let mut wrong = tenant();
        wrong["routes"][0]["upstream"] = json!("shred");
        assert_eq!(
            refused(&wrong),
            "control plane: routes[0].upstream (tenant acme, route all): there is no upstream shred\n    fix: did you mean shared? defined are shared"
        );
        let mut wrong = tenant();
        wrong["routes"][0]["upsteam"] = json!("shared");
        let error = refused(&wrong);
        assert!(
            error.starts_with("control plane: routes[0].upsteam: the key \"upsteam\" is not known here"),
            "{error}"
        );
        let error = pushed_head(r#"{"plans":{},"tenants":[]}"#, 1, Path::new("")).unwrap_err().to_string();
        assert!(error.contains("the key \"tenants\" is not known here"), "{error}");
    }

    #[test]
    fn secrets_are_in_no_error() {
        for content in ["{\"id\": hunter2}", "hunter2", "{\"id\":\"acme\",\"consumers\":\"hunter2", "{\"a\":1,}hunter2"]
        {
            let error = pushed_tenant(content, &head(), Path::new("")).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let mut wrong = tenant();
        wrong["consumers"][0]["keys"][0]["key"] = json!("hunter2");
        assert!(!refused(&wrong).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = pushed_tenant(&text, &TenantHead::default(), Path::new(""));
            let _ = pushed_head(&text, 1, Path::new(""));
        }
    }
}
