//! A rule, as it is sent.

use seiketsu_config::values::Id;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Problem;
use crate::{
    alerts::Condition,
    store::alert_rules::{RuleSettings, Severity},
};

/// What of a rule can be chosen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertRuleBody {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    #[schema(value_type = String)]
    name: Id,
    condition: Condition,
    severity: Severity,
    /// The only tenant that it is for. Absent: all.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) tenant: Option<Id>,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

impl AlertRuleBody {
    pub(super) fn checked(self) -> Result<RuleSettings, Problem> {
        let Self { name, condition, severity, tenant, enabled } = self;
        if let Some((place, fix)) = condition.fault() {
            return Err(Problem::invalid_at(&format!("condition.{place}"), "it is out of bounds", Some(&fix)));
        }
        if tenant.is_some() && !condition.concerns_tenants() {
            let detail = format!("the kind {} concerns no tenant in particular", condition.kind());
            return Err(Problem::invalid_at(
                "tenant",
                detail,
                Some("leave it out, or take a kind that concerns tenants"),
            ));
        }
        Ok(RuleSettings { name, condition, severity, tenant, enabled })
    }
}
