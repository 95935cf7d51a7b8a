//! Every operation, with the least role that may call it and what of the tenants it touches. What is not in this table
//! cannot be called.

use http::Method;

use super::{Kind, Problem};
use crate::store::operators::Role;

/// Which operators an operation is for, by their tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// It is about one tenant, or shows those that the operator may see: the endpoint looks at that.
    Tenant,
    /// It is about all tenants.
    All,
    /// It tells nothing of any tenant.
    None,
}

/// An operation of the API, by the name that it has in the description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) id: &'static str,
    pub(crate) method: Method,
    /// Behind [`super::BASE`].
    pub(crate) path: &'static str,
    pub(crate) least: Role,
    pub(crate) scope: Scope,
}

impl Operation {
    /// Refusals are kept of what would have changed something.
    pub(crate) fn writes(&self) -> bool {
        self.method != Method::GET && self.id != "validate"
    }
}

const fn of(id: &'static str, method: Method, path: &'static str, least: Role, scope: Scope) -> Operation {
    Operation { id, method, path, least, scope }
}

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;
const DELETE: Method = Method::DELETE;

pub(crate) const OPERATIONS: &[Operation] = &[
    of("list_tenants", GET, "/tenants", Role::Viewer, Scope::Tenant),
    of("create_tenant", POST, "/tenants", Role::Operator, Scope::Tenant),
    of("get_tenant", GET, "/tenants/{id}", Role::Viewer, Scope::Tenant),
    of("put_tenant", PUT, "/tenants/{id}", Role::Operator, Scope::Tenant),
    of("delete_tenant", DELETE, "/tenants/{id}", Role::Operator, Scope::Tenant),
    of("get_head", GET, "/head", Role::Viewer, Scope::All),
    of("put_head", PUT, "/head", Role::Admin, Scope::All),
    of("configure_gateway", POST, "/gateway/configure", Role::Operator, Scope::Tenant),
    of("get_gateway_configuration", GET, "/gateway/configure", Role::Viewer, Scope::Tenant),
    of("put_limits", PUT, "/gateway/limits", Role::Operator, Scope::Tenant),
    of("get_gateway_health", GET, "/gateway/health", Role::Viewer, Scope::Tenant),
    of("import_configuration", POST, "/import", Role::Admin, Scope::All),
    of("export_configuration", GET, "/export", Role::Viewer, Scope::All),
    of("validate", POST, "/validate", Role::Viewer, Scope::None),
    of("list_revisions", GET, "/revisions", Role::Viewer, Scope::All),
    of("get_revision", GET, "/revisions/{number}", Role::Viewer, Scope::All),
    of("diff_revisions", GET, "/revisions/{number}/diff", Role::Viewer, Scope::All),
    of("rollback", POST, "/revisions/{number}/rollback", Role::Admin, Scope::All),
    of("list_nodes", GET, "/nodes", Role::Viewer, Scope::All),
    of("get_node", GET, "/nodes/{id}", Role::Viewer, Scope::All),
    of("get_status", GET, "/status", Role::Viewer, Scope::Tenant),
    of("list_audit", GET, "/audit", Role::Auditor, Scope::Tenant),
    of("verify_audit", GET, "/audit/verify", Role::Auditor, Scope::All),
    of("export_audit", GET, "/audit/export", Role::Auditor, Scope::All),
    of("list_operators", GET, "/operators", Role::Auditor, Scope::All),
    of("create_operator", POST, "/operators", Role::Admin, Scope::All),
    of("get_operator", GET, "/operators/{id}", Role::Auditor, Scope::All),
    of("put_operator", PUT, "/operators/{id}", Role::Admin, Scope::All),
    of("delete_operator", DELETE, "/operators/{id}", Role::Admin, Scope::All),
    of("list_tokens", GET, "/tokens", Role::Auditor, Scope::All),
    of("create_token", POST, "/tokens", Role::Admin, Scope::All),
    of("delete_token", DELETE, "/tokens/{id}", Role::Admin, Scope::All),
    of("get_audit_key", GET, "/audit/key", Role::Auditor, Scope::None),
    of("rotate_secrets", POST, "/secrets/rotate", Role::Owner, Scope::All),
];

/// The operation of a method and a path as it is in the table. HEAD is a GET that is answered without a body.
pub(super) fn find(method: &Method, path: &str) -> Option<&'static Operation> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    OPERATIONS.iter().find(|operation| operation.method == *method && operation.path == path)
}

/// Why there is none.
pub(super) fn not_found(method: &Method, path: &str) -> Problem {
    if OPERATIONS.iter().any(|operation| operation.path == path) {
        return Problem::new(Kind::MethodNotAllowed, format!("the path exists, and not with {method}"));
    }
    Problem::not_found("operation")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;
    use crate::api::{BASE, openapi};

    #[test]
    fn the_table_is_what_is_described() {
        let described = openapi::document();
        let mut found = BTreeSet::new();
        for (path, item) in described["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                found.insert((
                    method.to_uppercase(),
                    path.clone(),
                    operation["operationId"].as_str().unwrap().to_owned(),
                ));
            }
        }
        let table: BTreeSet<_> = OPERATIONS
            .iter()
            .map(|operation| {
                (operation.method.to_string(), format!("{BASE}{}", operation.path), operation.id.to_owned())
            })
            .collect();
        assert_eq!(found, table);
    }

    #[test]
    fn what_each_role_may_do_is_documented() {
        let expected: Vec<String> = OPERATIONS
            .iter()
            .map(|Operation { id, method, path, least, scope }| {
                let who = match scope {
                    Scope::Tenant => "those with its tenants",
                    Scope::All => "those with all tenants",
                    Scope::None => "all",
                };
                format!("| `{id}` | {method} `{path}` | {} | {who} |", least.as_str())
            })
            .collect();
        let document = include_str!("../../../docs/roles.md");
        let written: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(written, expected, "docs/roles.md should have these rows:\n{}", expected.join("\n"));
    }
}
