//! Every operation, with the least role that may call it and what of the tenants it touches. What is not in this table
//! cannot be called.

use http::Method;

use super::{
    Kind, Problem,
    body::{MOST_BYTES, MOST_IMPORT_BYTES},
};
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
    /// Whether it may take much time or memory: it is about everything there is, or about a long time.
    pub(crate) fn is_heavy(&self) -> bool {
        matches!(
            self.id,
            "put_head"
                | "import_configuration"
                | "export_configuration"
                | "validate"
                | "get_revision"
                | "diff_revisions"
                | "rollback"
                | "verify_audit"
                | "export_audit"
                | "rotate_secrets"
                | "get_analytics"
                | "list_usage"
                | "export_usage"
                | "list_performance"
                | "list_objectives"
        )
    }

    /// How large the body of a heavy one may be, where it has one.
    pub(super) fn heavy_body(&self) -> Option<usize> {
        match self.id {
            "put_head" => Some(MOST_BYTES),
            "import_configuration" | "validate" => Some(MOST_IMPORT_BYTES),
            _ => None,
        }
    }

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
    of("delete_node", DELETE, "/nodes/{id}", Role::Admin, Scope::All),
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
    of("list_services", GET, "/services", Role::Viewer, Scope::Tenant),
    of("get_service", GET, "/tenants/{id}/services/{service}", Role::Viewer, Scope::Tenant),
    of("put_service", PUT, "/tenants/{id}/services/{service}", Role::Operator, Scope::Tenant),
    of("delete_service", DELETE, "/tenants/{id}/services/{service}", Role::Operator, Scope::Tenant),
    of("list_routes", GET, "/routes", Role::Viewer, Scope::Tenant),
    of("get_route", GET, "/tenants/{id}/routes/{route}", Role::Viewer, Scope::Tenant),
    of("put_route", PUT, "/tenants/{id}/routes/{route}", Role::Operator, Scope::Tenant),
    of("delete_route", DELETE, "/tenants/{id}/routes/{route}", Role::Operator, Scope::Tenant),
    of("list_consumers", GET, "/consumers", Role::Viewer, Scope::Tenant),
    of("create_consumer", POST, "/consumers", Role::Operator, Scope::Tenant),
    of("get_consumer", GET, "/tenants/{id}/consumers/{consumer}", Role::Viewer, Scope::Tenant),
    of("delete_consumer", DELETE, "/tenants/{id}/consumers/{consumer}", Role::Operator, Scope::Tenant),
    of("list_keys", GET, "/keys", Role::Viewer, Scope::Tenant),
    of("create_key", POST, "/keys", Role::Operator, Scope::Tenant),
    of("get_key", GET, "/keys/{id}", Role::Viewer, Scope::Tenant),
    of("delete_key", DELETE, "/keys/{id}", Role::Operator, Scope::Tenant),
    of("rotate_key", POST, "/keys/{id}/rotate", Role::Operator, Scope::Tenant),
    of("purge_cache", POST, "/cache/purge", Role::Operator, Scope::Tenant),
    of("warm_cache", POST, "/cache/warm", Role::Operator, Scope::Tenant),
    of("get_warming", GET, "/cache/warm/{id}", Role::Viewer, Scope::Tenant),
    of("get_analytics", GET, "/gateway/analytics", Role::Viewer, Scope::Tenant),
    of("list_usage", GET, "/usage", Role::Viewer, Scope::Tenant),
    of("export_usage", GET, "/usage/export", Role::Viewer, Scope::Tenant),
    of("list_performance", GET, "/performance", Role::Viewer, Scope::Tenant),
    of("list_objectives", GET, "/performance/objectives", Role::Viewer, Scope::Tenant),
    of("follow_events", GET, "/events", Role::Viewer, Scope::Tenant),
    of("follow_events_socket", GET, "/events/ws", Role::Viewer, Scope::Tenant),
    of("list_alerts", GET, "/alerts", Role::Viewer, Scope::Tenant),
    of("acknowledge_alert", POST, "/alerts/{id}/acknowledge", Role::Operator, Scope::Tenant),
    of("list_alert_rules", GET, "/alerts/rules", Role::Viewer, Scope::Tenant),
    of("create_alert_rule", POST, "/alerts/rules", Role::Operator, Scope::Tenant),
    of("get_alert_rule", GET, "/alerts/rules/{id}", Role::Viewer, Scope::Tenant),
    of("put_alert_rule", PUT, "/alerts/rules/{id}", Role::Operator, Scope::Tenant),
    of("delete_alert_rule", DELETE, "/alerts/rules/{id}", Role::Operator, Scope::Tenant),
    of("list_webhooks", GET, "/webhooks", Role::Admin, Scope::Tenant),
    of("create_webhook", POST, "/webhooks", Role::Admin, Scope::Tenant),
    of("get_webhook", GET, "/webhooks/{id}", Role::Admin, Scope::Tenant),
    of("put_webhook", PUT, "/webhooks/{id}", Role::Admin, Scope::Tenant),
    of("delete_webhook", DELETE, "/webhooks/{id}", Role::Admin, Scope::Tenant),
    of("rotate_webhook_secret", POST, "/webhooks/{id}/rotate-secret", Role::Admin, Scope::Tenant),
    of("test_webhook", POST, "/webhooks/{id}/test", Role::Admin, Scope::Tenant),
    of("list_deliveries", GET, "/webhooks/{id}/deliveries", Role::Admin, Scope::Tenant),
    of("replay_delivery", POST, "/webhooks/{id}/deliveries/{delivery}/replay", Role::Admin, Scope::Tenant),
    of("list_siem_sinks", GET, "/siem", Role::Admin, Scope::All),
    of("create_siem_sink", POST, "/siem", Role::Admin, Scope::All),
    of("get_siem_sink", GET, "/siem/{id}", Role::Admin, Scope::All),
    of("put_siem_sink", PUT, "/siem/{id}", Role::Admin, Scope::All),
    of("delete_siem_sink", DELETE, "/siem/{id}", Role::Admin, Scope::All),
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
    fn heavy_operations_that_have_a_body_say_how_large_it_may_be() {
        let described = openapi::document();
        for operation in OPERATIONS.iter().filter(|operation| operation.is_heavy()) {
            let path = format!("{BASE}{}", operation.path);
            let told = &described["paths"][path][operation.method.as_str().to_lowercase()];
            assert_eq!(operation.heavy_body().is_some(), told.get("requestBody").is_some(), "{}", operation.id);
        }
    }

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
