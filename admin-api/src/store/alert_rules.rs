//! What is watched, and how bad it is.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, ModelTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Author, BATCH, Once, PATIENCE, Store, StoreError, audit, cursors,
    entities::alert_rule,
    id_of,
    keeping::{KeepError, expect},
    number,
    operators::AnswerOf,
    rows, signed, within,
    writing::Writing,
};
use crate::alerts::{Condition, FirstRule};

/// How bad it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, utoipa::ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let severity = Self::ALL.into_iter().find(|severity| severity.as_str() == text);
        severity.ok_or_else(|| StoreError::corrupt("the severity of an alert", &text))
    }
}

/// What of a rule can be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSettings {
    pub name: Id,
    pub condition: Condition,
    pub severity: Severity,
    pub tenant: Option<Id>,
    pub enabled: bool,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AlertRule {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub name: Id,
    pub condition: Condition,
    pub severity: Severity,
    /// The only tenant that it is for. None: all.
    #[schema(value_type = Option<String>)]
    pub tenant: Option<Id>,
    pub enabled: bool,
    /// Counts the rule's changes.
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// Which of the rules were made that a store has without anybody's having made them ([`FirstRule::since`]). They may be
/// deleted, and do not come back.
const FIRST_RULES: &str = "first-alert-rules";

/// Rules that there may be: each is looked at in every round.
const MOST_RULES: u64 = 5000;
const MOST_RULES_OF_TENANT: u64 = 50;

impl Store {
    /// Rules after an id, in the order they were made in. `tenants`: those whose rules are seen; none is all.
    pub async fn alert_rules(
        &self,
        tenants: Option<&BTreeSet<Id>>,
        after: Option<Uuid>,
        most: u64,
    ) -> Result<Vec<AlertRule>, StoreError> {
        let mut find = alert_rule::Entity::find();
        if let Some(tenants) = tenants {
            find = find.filter(alert_rule::Column::Tenant.is_in(tenants.iter().map(Id::as_str)));
        }
        if let Some(after) = after {
            find = find.filter(alert_rule::Column::Id.gt(after));
        }
        let find = find.order_by_asc(alert_rule::Column::Id).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(rule_of).collect() }).await
    }

    /// All rules that are enabled, but for those that cannot be read: verifying the trail tells of them. One that was altered is watched as it
    /// stands, and the trail is told.
    pub(crate) async fn watched_rules(&self) -> Result<Vec<AlertRule>, StoreError> {
        let (mut rules, mut after) = (Vec::new(), Uuid::nil());
        loop {
            let find = alert_rule::Entity::find().filter(alert_rule::Column::Enabled.eq(true));
            let find = find.filter(alert_rule::Column::Id.gt(after)).order_by_asc(alert_rule::Column::Id);
            let find = find.limit(BATCH as u64);
            let page = within(PATIENCE, rows::read(&self.0.database, find)).await?;
            let is_last = page.len() < BATCH;
            let Some(last) = page.iter().rev().find_map(|row| row.as_ref().ok()) else { return Ok(rules) };
            after = last.id;
            for row in page.into_iter().flatten() {
                self.counts(&row).await;
                rules.extend(rule_of(row).ok());
            }
            if is_last {
                return Ok(rules);
            }
        }
    }

    pub async fn alert_rule(&self, id: Uuid) -> Result<Option<AlertRule>, StoreError> {
        let find = alert_rule::Entity::find_by_id(id);
        within(PATIENCE, async { find.one(&self.0.database).await?.map(rule_of).transpose() }).await
    }

    pub async fn create_alert_rule(
        &self,
        by: &Author,
        settings: RuleSettings,
        once: Option<(&Once, AnswerOf<'_, AlertRule>)>,
    ) -> Result<AlertRule, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, once.map(|(once, _)| once)).await?;
            writing.rule_is_free(&settings, None).await?;
            writing.has_room_for_rule(settings.tenant.as_ref(), None).await?;
            let rule = new(settings, writing.now);
            writing.insert_rule(&rule).await?;
            writing.audit(by, entry(&rule).with("rule", shown(&rule)).row(&row(&rule))).await?;
            if let Some((once, answer)) = once {
                writing.remember(by, once, answer(&rule)).await?;
            }
            writing.finish().await?;
            Ok(rule)
        })
        .await
    }

    pub async fn update_alert_rule(
        &self,
        by: &Author,
        id: Uuid,
        expected: Option<u64>,
        settings: RuleSettings,
    ) -> Result<AlertRule, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (stored, before) = writing.rule(id, expected).await?;
            writing.rule_is_free(&settings, Some(id)).await?;
            if settings.tenant != before.tenant {
                writing.has_room_for_rule(settings.tenant.as_ref(), Some(id)).await?;
            }
            let after = AlertRule {
                id,
                revision: before.revision,
                created_at: before.created_at,
                ..new(settings, writing.now)
            };
            // One that was altered stands as it should from now on, if an operator says so.
            if after == before && self.0.trail.is_authentic(&stored) {
                return Ok(before);
            }
            let after = AlertRule { revision: before.revision + 1, ..after };
            let row = self.0.trail.authenticate(row(&after));
            let entry = entry(&after).with("before", shown(&before)).with("after", shown(&after)).row(&row);
            row.into_active_model().reset_all().update(&writing.transaction).await?;
            writing.audit(by, entry).await?;
            writing.finish().await?;
            Ok(after)
        })
        .await
    }

    /// What it has found is resolved in the next round.
    pub async fn delete_alert_rule(&self, by: &Author, id: Uuid, expected: Option<u64>) -> Result<(), KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (_, rule) = writing.rule(id, expected).await?;
            row(&rule).delete(&writing.transaction).await?;
            writing.audit(by, entry(&rule).with("rule", shown(&rule)).gone::<alert_rule::Model>(id)).await?;
            Ok(writing.finish().await?)
        })
        .await
    }

    /// A store watches what everybody wants to be watched: a new one from the beginning, another one from the release on
    /// that knows of it.
    pub async fn first_alert_rules(&self, rules: Vec<FirstRule>) -> Result<(), StoreError> {
        let mut writing = self.writing().await?;
        let had = cursors::get(&writing.transaction, FIRST_RULES).await?.unwrap_or_default();
        let by = Author {
            id: None,
            name: "first-start".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: "first_start",
        };
        let mut newest = had;
        for FirstRule { since, settings } in rules.into_iter().filter(|rule| rule.since > had) {
            newest = newest.max(since);
            let name = writing.free_name(&settings.name).await?;
            let rule = new(RuleSettings { name, ..settings }, writing.now);
            writing.insert_rule(&rule).await?;
            writing.audit(&by, entry(&rule).with("rule", shown(&rule)).row(&row(&rule))).await?;
        }
        if newest == had {
            return Ok(());
        }
        cursors::set(&writing.transaction, FIRST_RULES, newest).await?;
        writing.finish().await
    }
}

impl Writing<'_> {
    async fn insert_rule(&self, rule: &AlertRule) -> Result<(), StoreError> {
        let row = self.store.0.trail.authenticate(row(rule));
        let insert = alert_rule::Entity::insert(row.into_active_model());
        insert.exec_without_returning(&self.transaction).await?;
        Ok(())
    }

    /// A rule more, or this one for another tenant.
    async fn has_room_for_rule(&self, tenant: Option<&Id>, but: Option<Uuid>) -> Result<(), KeepError> {
        use alert_rule::Column;
        let others = || alert_rule::Entity::find().filter(Column::Id.ne(but.unwrap_or_default()));
        let what = "alert rules";
        if let Some(tenant) = tenant
            && others().filter(Column::Tenant.eq(tenant.as_str())).count(&self.transaction).await?
                >= MOST_RULES_OF_TENANT
        {
            return Err(KeepError::Full { what, most: MOST_RULES_OF_TENANT, of: Some(tenant.clone()) });
        }
        if others().count(&self.transaction).await? >= MOST_RULES {
            return Err(KeepError::Full { what, most: MOST_RULES, of: None });
        }
        Ok(())
    }

    /// The name, or one like it, if somebody has made a rule of this name for all.
    async fn free_name(&self, name: &Id) -> Result<Id, StoreError> {
        use alert_rule::Column;
        let mut free = name.clone();
        for further in 2.. {
            let find =
                alert_rule::Entity::find().filter(Column::Name.eq(free.as_str())).filter(Column::Tenant.is_null());
            if find.count(&self.transaction).await? == 0 {
                break;
            }
            free = id_of(&format!("{name}-{further}"))?;
        }
        Ok(free)
    }

    async fn rule(&self, id: Uuid, expected: Option<u64>) -> Result<(alert_rule::Model, AlertRule), KeepError> {
        let found = alert_rule::Entity::find_by_id(id).one(&self.transaction).await?;
        let row = found.ok_or(KeepError::Missing("rule"))?;
        let rule = rule_of(row.clone())?;
        expect(expected, rule.revision, || shown(&rule))?;
        Ok((row, rule))
    }

    async fn rule_is_free(&self, settings: &RuleSettings, but: Option<Uuid>) -> Result<(), KeepError> {
        use alert_rule::Column;
        let find = alert_rule::Entity::find().filter(Column::Name.eq(settings.name.as_str()));
        let find = match &settings.tenant {
            Some(tenant) => find.filter(Column::Tenant.eq(tenant.as_str())),
            None => find.filter(Column::Tenant.is_null()),
        };
        match find.one(&self.transaction).await? {
            Some(found) if Some(found.id) != but => Err(KeepError::Exists(settings.name.clone())),
            _ => Ok(()),
        }
    }
}

fn new(settings: RuleSettings, now: OffsetDateTime) -> AlertRule {
    let RuleSettings { name, condition, severity, tenant, enabled } = settings;
    AlertRule { id: Uuid::now_v7(), name, condition, severity, tenant, enabled, revision: 1, created_at: now }
}

fn entry(rule: &AlertRule) -> audit::Entry<'_> {
    audit::Entry { tenant: rule.tenant.as_ref().map(Id::as_str), ..audit::Entry::done() }
}

fn shown(rule: &AlertRule) -> Value {
    serde_json::to_value(rule).unwrap_or_default()
}

/// Without its MAC.
fn row(rule: &AlertRule) -> alert_rule::Model {
    alert_rule::Model {
        id: rule.id,
        name: rule.name.to_string(),
        condition: serde_json::to_string(&rule.condition).unwrap_or_default(),
        severity: rule.severity.as_str().to_owned(),
        tenant: rule.tenant.as_ref().map(Id::to_string),
        enabled: rule.enabled,
        revision: signed(rule.revision),
        created_at: rule.created_at,
        mac: None,
    }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn rule_of(row: alert_rule::Model) -> Result<AlertRule, StoreError> {
    let condition = serde_json::from_str(&row.condition);
    Ok(AlertRule {
        id: row.id,
        name: id_of(&row.name)?,
        condition: condition.map_err(|why| StoreError::corrupt(format!("the alert rule {}", row.name), &why))?,
        severity: Severity::parse(&row.severity)?,
        tenant: row.tenant.as_deref().map(id_of).transpose()?,
        enabled: row.enabled,
        revision: number(row.revision),
        created_at: row.created_at,
    })
}
