//! What can be watched. A further kind is a variant here, a line in [`Condition::look`], and a function of what it looks at.

use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Facts, Findings, expiry, nodes, quotas, service,
    traffic::{self, StatusClass, Whose},
};
use crate::store::{
    StoreError,
    alert_rules::{RuleSettings, Severity},
};

/// What has to be so for an alert. Where there is `for_seconds`, it has to have been so for that long.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Condition {
    /// A node has gone without having said that it ends.
    NodeGone {
        #[serde(default = "half_a_minute")]
        for_seconds: u32,
        /// After that it counts as taken away.
        #[serde(default = "three_days")]
        forget_hours: u32,
    },
    /// A node is connected, and not ready.
    NodeNotReady {
        #[serde(default = "minute")]
        for_seconds: u32,
    },
    /// A node refuses a document.
    NodeRefuses {
        #[serde(default = "half_a_minute")]
        for_seconds: u32,
    },
    /// A node has not come to the newest revision.
    NodeBehind {
        #[serde(default = "minute")]
        for_seconds: u32,
    },
    /// A region has no node that is connected.
    RegionWithoutNode {
        #[serde(default = "half_a_minute")]
        for_seconds: u32,
        /// Absent: every region that a node was heard of from within `forget_hours`.
        #[serde(default)]
        #[schema(value_type = Option<String>)]
        region: Option<Id>,
        #[serde(default = "three_days")]
        forget_hours: u32,
    },
    /// The audit trail is not what it was when it was written, or cannot be verified; or a row was refused that somebody has
    /// made, or altered, who lacks its key.
    AuditFault {
        /// How often all of it is looked at.
        #[serde(default = "hour_in_minutes")]
        every_minutes: u32,
    },
    /// Calls of this API without a token that holds: more than `count` within `window_seconds`.
    LoginFailures {
        #[serde(default = "hundred")]
        count: u32,
        #[serde(default = "five_minutes")]
        window_seconds: u32,
    },
    /// A token, or an API key of a tenant, expires.
    Expiring {
        #[serde(default = "fortnight")]
        within_days: u32,
    },
    /// The store does not take what is written, or takes its time.
    StoreWrites {
        /// So many trials, of one in each second, have failed within `window_seconds`.
        #[serde(default = "three")]
        failures: u32,
        #[serde(default = "five_minutes")]
        window_seconds: u32,
        /// The last trials of ten seconds took longer than that, in the median.
        #[serde(default = "second")]
        slower_than_milliseconds: u32,
    },
    /// A webhook was disabled because it took nothing any more.
    WebhookDisabled {},
    /// A sink of the audit trail takes nothing.
    SiemStalled {
        #[serde(default = "five_minutes")]
        for_seconds: u32,
    },
    /// A tenant has used so much of its daily or monthly quota.
    QuotaUsed {
        #[serde(default = "eighty")]
        percent: u32,
    },
    /// More than `percent` of the requests within `window_minutes` were answered with this class, of `least_requests` or more.
    ErrorRate {
        #[serde(default = "server_errors")]
        class: StatusClass,
        #[serde(default = "five")]
        percent: u32,
        #[serde(default = "five")]
        window_minutes: u32,
        #[serde(default = "hundred")]
        least_requests: u32,
        /// Each tenant by itself, in place of all together.
        #[serde(default)]
        each_tenant: bool,
    },
    /// More than `factor` times as many as in the hour before came within `window_minutes`, and at least `least`. Where
    /// there was nothing at all in the hour before, there is nothing to compare with.
    SuddenRise {
        /// What comes. Absent: requests.
        #[serde(default)]
        class: Option<StatusClass>,
        #[serde(default = "three")]
        factor: u32,
        #[serde(default = "five")]
        window_minutes: u32,
        #[serde(default = "hundred")]
        least: u32,
        /// Each tenant by itself, in place of all together.
        #[serde(default)]
        each_tenant: bool,
    },
    /// The read replica is behind the primary, or cannot be reached.
    ReplicaLag {
        #[serde(default = "half_a_minute")]
        more_than_seconds: u32,
        #[serde(default = "half_a_minute")]
        for_seconds: u32,
    },
}

const fn server_errors() -> StatusClass {
    StatusClass::ServerErrors
}
const fn eighty() -> u32 {
    80
}
const fn five() -> u32 {
    5
}
const fn three() -> u32 {
    3
}
const fn fortnight() -> u32 {
    14
}
const fn half_a_minute() -> u32 {
    30
}
const fn minute() -> u32 {
    60
}
const fn hour_in_minutes() -> u32 {
    60
}
const fn three_days() -> u32 {
    72
}
const fn hundred() -> u32 {
    100
}
const fn five_minutes() -> u32 {
    300
}
const fn second() -> u32 {
    1000
}

/// The longest time that something may have to last, and the longest window.
const MOST_SECONDS: u32 = 24 * 3600;

/// More requests than anybody waits for before they want to know.
const MOST_REQUESTS: u32 = 1_000_000_000;

impl Condition {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NodeGone { .. } => "node_gone",
            Self::NodeNotReady { .. } => "node_not_ready",
            Self::NodeRefuses { .. } => "node_refuses",
            Self::NodeBehind { .. } => "node_behind",
            Self::RegionWithoutNode { .. } => "region_without_node",
            Self::AuditFault { .. } => "audit_fault",
            Self::LoginFailures { .. } => "login_failures",
            Self::Expiring { .. } => "expiring",
            Self::StoreWrites { .. } => "store_writes",
            Self::WebhookDisabled {} => "webhook_disabled",
            Self::SiemStalled { .. } => "siem_stalled",
            Self::QuotaUsed { .. } => "quota_used",
            Self::ErrorRate { .. } => "error_rate",
            Self::SuddenRise { .. } => "sudden_rise",
            Self::ReplicaLag { .. } => "replica_lag",
        }
    }

    /// Whether it can be watched for one tenant.
    pub fn concerns_tenants(&self) -> bool {
        matches!(
            self,
            Self::NodeRefuses { .. }
                | Self::Expiring { .. }
                | Self::QuotaUsed { .. }
                | Self::ErrorRate { .. }
                | Self::SuddenRise { .. }
        )
    }

    /// Whether it is found by what is known of nodes.
    pub(super) fn is_about_nodes(&self) -> bool {
        matches!(
            self,
            Self::NodeGone { .. }
                | Self::NodeNotReady { .. }
                | Self::NodeRefuses { .. }
                | Self::NodeBehind { .. }
                | Self::RegionWithoutNode { .. }
        )
    }

    /// For how long it has to be so.
    pub(super) fn for_seconds(&self) -> u32 {
        match self {
            Self::NodeGone { for_seconds, .. }
            | Self::NodeNotReady { for_seconds }
            | Self::NodeRefuses { for_seconds }
            | Self::NodeBehind { for_seconds }
            | Self::RegionWithoutNode { for_seconds, .. }
            | Self::SiemStalled { for_seconds }
            | Self::ReplicaLag { for_seconds, .. } => *for_seconds,
            _ => 0,
        }
    }

    /// What of it is out of bounds: the place, and what to do.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let within = |name, value: u32, least, most| {
            (!(least..=most).contains(&value)).then(|| (name, format!("write {least} to {most}")))
        };
        match self {
            Self::NodeGone { forget_hours, .. } | Self::RegionWithoutNode { forget_hours, .. } => {
                within("forget_hours", *forget_hours, 1, 24 * 365)
            }
            Self::AuditFault { every_minutes } => within("every_minutes", *every_minutes, 1, 24 * 60),
            Self::LoginFailures { count, window_seconds } => within("count", *count, 1, 10_000)
                .or_else(|| within("window_seconds", *window_seconds, 1, MOST_SECONDS)),
            Self::Expiring { within_days } => within("within_days", *within_days, 1, 366),
            Self::StoreWrites { failures, window_seconds, slower_than_milliseconds } => {
                within("failures", *failures, 1, 1000)
                    .or_else(|| within("window_seconds", *window_seconds, 1, 3600))
                    .or_else(|| within("slower_than_milliseconds", *slower_than_milliseconds, 1, 60_000))
            }
            Self::QuotaUsed { percent } => within("percent", *percent, 1, 100),
            Self::ErrorRate { percent, window_minutes, least_requests, .. } => within("percent", *percent, 0, 99)
                .or_else(|| within("window_minutes", *window_minutes, 1, 60))
                .or_else(|| within("least_requests", *least_requests, 1, MOST_REQUESTS)),
            Self::SuddenRise { factor, window_minutes, least, .. } => within("factor", *factor, 1, 1000)
                .or_else(|| within("window_minutes", *window_minutes, 1, 60))
                .or_else(|| within("least", *least, 1, MOST_REQUESTS)),
            Self::ReplicaLag { more_than_seconds, .. } => within("more_than_seconds", *more_than_seconds, 1, 3600),
            _ => None,
        }
        .or_else(|| within("for_seconds", self.for_seconds(), 0, MOST_SECONDS))
    }

    /// What is so right now, of this tenant or of all; none, if that is not known yet.
    pub(super) async fn look(
        &self,
        facts: &mut Facts<'_>,
        tenant: Option<&Id>,
    ) -> Result<Option<Findings>, StoreError> {
        let whose = |each: bool| match tenant {
            Some(tenant) => Whose::One(tenant.clone()),
            None if each => Whose::Each,
            None => Whose::Together,
        };
        let found = match self {
            Self::NodeGone { forget_hours, .. } => nodes::gone(facts, *forget_hours),
            Self::NodeNotReady { .. } => nodes::not_ready(facts),
            Self::NodeRefuses { .. } => nodes::refuses(facts),
            Self::NodeBehind { .. } => nodes::behind(facts),
            Self::RegionWithoutNode { region, forget_hours, .. } => {
                nodes::region_without(facts, region.as_ref(), *forget_hours)
            }
            Self::AuditFault { every_minutes } => service::audit_fault(facts, *every_minutes).await?,
            Self::LoginFailures { count, window_seconds } => {
                service::login_failures(facts, *count, *window_seconds).await?
            }
            Self::Expiring { within_days } => expiry::expiring(facts, *within_days).await?,
            Self::StoreWrites { failures, window_seconds, slower_than_milliseconds } => {
                service::store_writes(facts, *failures, *window_seconds, *slower_than_milliseconds)
            }
            Self::WebhookDisabled {} => service::webhook_disabled(facts).await?,
            Self::SiemStalled { .. } => service::siem_stalled(facts).await?,
            Self::QuotaUsed { percent } => return Ok(quotas::quota_used(facts, *percent, tenant)),
            Self::ErrorRate { class, percent, window_minutes, least_requests, each_tenant } => {
                let whose = whose(*each_tenant);
                return Ok(traffic::error_rate(facts, *class, *percent, *window_minutes, *least_requests, &whose));
            }
            Self::SuddenRise { class, factor, window_minutes, least, each_tenant } => {
                let whose = whose(*each_tenant);
                return Ok(traffic::sudden_rise(facts, *class, *factor, *window_minutes, *least, &whose));
            }
            Self::ReplicaLag { more_than_seconds, .. } => service::replica_lag(facts, *more_than_seconds),
        };
        Ok(Some(found.into()))
    }
}

/// A rule that stores have without anybody's having made it.
#[derive(Debug)]
pub struct FirstRule {
    /// Counts the releases that have brought some: a store gets each once.
    pub since: u64,
    pub settings: RuleSettings,
}

/// What stores watch from the beginning, or from the release on that knows of it.
pub fn first_rules() -> Vec<FirstRule> {
    use Severity::{Critical, Warning};
    use serde_json::{Value, json};
    let first = |since, name: &str, severity, condition: Value| {
        let (name, condition) = (name.parse().ok()?, serde_json::from_value(condition).ok()?);
        Some(FirstRule { since, settings: RuleSettings { name, condition, severity, tenant: None, enabled: true } })
    };
    [
        first(1, "node-gone", Warning, json!({ "kind": "node_gone" })),
        first(1, "node-not-ready", Warning, json!({ "kind": "node_not_ready" })),
        first(1, "node-refuses", Warning, json!({ "kind": "node_refuses" })),
        first(1, "node-behind", Warning, json!({ "kind": "node_behind" })),
        first(1, "region-without-node", Critical, json!({ "kind": "region_without_node" })),
        first(1, "audit-fault", Critical, json!({ "kind": "audit_fault" })),
        first(1, "login-failures", Warning, json!({ "kind": "login_failures" })),
        first(1, "expiring", Warning, json!({ "kind": "expiring" })),
        first(1, "store-writes", Critical, json!({ "kind": "store_writes" })),
        first(1, "webhook-disabled", Warning, json!({ "kind": "webhook_disabled" })),
        first(1, "siem-stalled", Critical, json!({ "kind": "siem_stalled" })),
        first(2, "quota-used", Warning, json!({ "kind": "quota_used" })),
        first(2, "error-rate", Critical, json!({ "kind": "error_rate" })),
        first(2, "sudden-4xx", Warning, json!({ "kind": "sudden_rise", "class": "4xx" })),
        first(2, "sudden-5xx", Warning, json!({ "kind": "sudden_rise", "class": "5xx" })),
        first(2, "replica-lag", Warning, json!({ "kind": "replica_lag" })),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn every_first_rule_is_within_bounds_and_read_as_it_was_written() {
        let rules = first_rules();
        assert_eq!(rules.len(), 16);
        for FirstRule { settings: rule, .. } in rules {
            assert_eq!(rule.condition.fault(), None, "{}", rule.name);
            let written = serde_json::to_value(&rule.condition).unwrap();
            assert_eq!(written["kind"], rule.condition.kind());
            assert_eq!(serde_json::from_value::<Condition>(written).unwrap(), rule.condition);
        }
        let read = |value| serde_json::from_value::<Condition>(value);
        assert!(read(json!({ "kind": "node_gone", "x": 1 })).is_err() && read(json!({ "kind": "x" })).is_err());
        let condition = read(json!({ "kind": "expiring", "within_days": 0 })).unwrap();
        assert_eq!(condition.fault().unwrap().0, "within_days");
    }
}
