//! What rules have found: open, acknowledged, resolved.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Author, PATIENCE, Store, StoreError,
    alert_rules::{AlertRule, Severity},
    audit,
    entities::{alert, audit_log, token},
    events::{EventKind, NewEvent},
    id_of,
    keeping::KeepError,
    number, rows, signed, within,
    writing::Writing,
};

/// Entries of the audit trail that are looked at to begin with.
const MOST_ENTRIES: u64 = 10_000;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    Open,
    /// Somebody sees to it.
    Acknowledged,
    /// It is not so any more.
    Resolved,
}

impl AlertState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let all = [Self::Open, Self::Acknowledged, Self::Resolved];
        let state = all.into_iter().find(|state| state.as_str() == text);
        state.ok_or_else(|| StoreError::corrupt("the state of an alert", &text))
    }
}

/// What a rule has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Alert {
    pub id: Uuid,
    pub rule_id: Uuid,
    /// The rule's name.
    #[schema(value_type = String)]
    pub rule: Id,
    /// What kind of condition the rule has.
    pub kind: String,
    pub severity: Severity,
    /// What it is about: there is one alert at a time for a rule and a subject.
    pub subject: String,
    #[schema(value_type = Option<String>)]
    pub tenant: Option<Id>,
    pub state: AlertState,
    pub summary: String,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acknowledged_at: Option<OffsetDateTime>,
    pub acknowledged_by: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resolved_at: Option<OffsetDateTime>,
}

/// Which alerts are asked for.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    pub state: Option<AlertState>,
    pub severity: Option<Severity>,
    pub tenant: Option<Id>,
    /// Those that the caller may see; none is all.
    pub tenants: Option<BTreeSet<Id>>,
}

/// Something that a rule finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub subject: String,
    pub tenant: Option<Id>,
    pub summary: String,
}

/// What is to be different after a round.
#[derive(Debug, Default)]
pub struct Turn {
    pub open: Vec<(AlertRule, Found)>,
    pub resolve: Vec<Alert>,
}

/// A login that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedLogin {
    pub entry: u64,
    pub at: OffsetDateTime,
    pub address: Option<String>,
}

impl Store {
    /// Alerts before an id, the newest first.
    pub async fn alerts(
        &self,
        filter: &AlertFilter,
        before: Option<Uuid>,
        most: u64,
    ) -> Result<Vec<Alert>, StoreError> {
        use alert::Column;
        let mut find = alert::Entity::find();
        if let Some(state) = filter.state {
            find = find.filter(Column::State.eq(state.as_str()));
        }
        if let Some(severity) = filter.severity {
            find = find.filter(Column::Severity.eq(severity.as_str()));
        }
        if let Some(tenant) = &filter.tenant {
            find = find.filter(Column::Tenant.eq(tenant.as_str()));
        }
        if let Some(tenants) = &filter.tenants {
            find = find.filter(Column::Tenant.is_in(tenants.iter().map(Id::as_str)));
        }
        if let Some(before) = before {
            find = find.filter(Column::Id.lt(before));
        }
        let find = find.order_by_desc(Column::Id).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(alert_of).collect() }).await
    }

    pub async fn alert(&self, id: Uuid) -> Result<Option<Alert>, StoreError> {
        let find = alert::Entity::find_by_id(id);
        within(PATIENCE, async { find.one(&self.0.database).await?.map(alert_of).transpose() }).await
    }

    /// All that are not resolved, but for those that cannot be read: verifying the trail tells of them.
    pub(crate) async fn unresolved_alerts(&self) -> Result<Vec<Alert>, StoreError> {
        let find = alert::Entity::find().filter(alert::Column::ResolvedAt.is_null());
        let rows = within(PATIENCE, rows::read(&self.0.database, find)).await?;
        Ok(rows.into_iter().flatten().filter_map(|row| alert_of(row).ok()).collect())
    }

    /// Somebody sees to it. If somebody did already, it stays theirs.
    pub async fn acknowledge_alert(&self, by: &Author, id: Uuid) -> Result<Alert, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let found = alert::Entity::find_by_id(id).one(&writing.transaction).await?;
            let before = found.ok_or(KeepError::Missing("alert"))?;
            let mut alert = alert_of(before.clone())?;
            match alert.state {
                AlertState::Open => {}
                AlertState::Acknowledged => return Ok(alert),
                AlertState::Resolved => return Err(KeepError::State("the alert is resolved already")),
            }
            alert.state = AlertState::Acknowledged;
            alert.acknowledged_at = Some(writing.now);
            alert.acknowledged_by = Some(by.name.clone());
            writing.turn_alert(by, EventKind::AlertAcknowledged, &before, &alert).await?;
            writing.finish().await?;
            Ok(alert)
        })
        .await
    }

    /// Opens and resolves what a round has found. One that is open already stays as it is.
    pub async fn turn_alerts(&self, turn: Turn) -> Result<(), StoreError> {
        let by = |action| Author {
            id: None,
            name: "alert-rules".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action,
        };
        within(PATIENCE, async {
            let mut writing = self.writing().await?;
            let mut is_changed = false;
            for (rule, found) in turn.open {
                let alert = Alert {
                    id: Uuid::now_v7(),
                    rule_id: rule.id,
                    rule: rule.name,
                    kind: rule.condition.kind().to_owned(),
                    severity: rule.severity,
                    subject: found.subject,
                    tenant: found.tenant,
                    state: AlertState::Open,
                    summary: found.summary,
                    opened_at: writing.now,
                    acknowledged_at: None,
                    acknowledged_by: None,
                    resolved_at: None,
                };
                let there = alert::Entity::find()
                    .filter(alert::Column::RuleId.eq(alert.rule_id))
                    .filter(alert::Column::Subject.eq(&*alert.subject))
                    .filter(alert::Column::ResolvedAt.is_null());
                if there.count(&writing.transaction).await? > 0 {
                    continue;
                }
                let row = self.0.trail.authenticate(row(&alert));
                let entry = entry(&alert).row(&row);
                let insert = alert::Entity::insert(row.into_active_model());
                insert.exec_without_returning(&writing.transaction).await?;
                writing.tell_of(&by("open_alert"), EventKind::AlertOpened, &alert, entry).await?;
                is_changed = true;
            }
            for alert in turn.resolve {
                // Somebody may have acknowledged it meanwhile.
                let there = alert::Entity::find_by_id(alert.id).filter(alert::Column::ResolvedAt.is_null());
                let Some(before) = there.one(&writing.transaction).await? else { continue };
                let mut alert = alert_of(before.clone())?;
                alert.state = AlertState::Resolved;
                alert.resolved_at = Some(writing.now);
                writing.turn_alert(&by("resolve_alert"), EventKind::AlertResolved, &before, &alert).await?;
                is_changed = true;
            }
            if is_changed { writing.finish().await } else { Ok(()) }
        })
        .await
    }

    /// Refused logins after an entry of the audit trail, the oldest first; without one, the last ten thousand.
    pub async fn refused_logins(&self, after: Option<u64>) -> Result<Vec<RefusedLogin>, StoreError> {
        use audit_log::Column;
        let find = audit_log::Entity::find()
            .select_only()
            .columns([Column::Number, Column::At, Column::Address])
            // Whoever is known was let in, whatever they were refused then.
            .filter(Column::Actor.eq("anonymous"))
            .filter(Column::Outcome.eq("refused"));
        let find = match after {
            Some(after) => find.filter(Column::Number.gt(signed(after))).order_by_asc(Column::Number),
            None => find.order_by_desc(Column::Number),
        };
        let find = find.limit(MOST_ENTRIES).into_tuple::<(i64, String, Option<String>)>();
        let mut rows = within(PATIENCE, async { Ok::<_, StoreError>(find.all(&self.0.database).await?) }).await?;
        if after.is_none() {
            rows.reverse();
        }
        // What cannot be read was altered: verifying the trail tells that.
        let read = |(entry, at, address): (i64, String, Option<String>)| {
            Some(RefusedLogin { entry: number(entry), at: OffsetDateTime::parse(&at, &Rfc3339).ok()?, address })
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Tokens that expire between two times: name, id, and when.
    pub async fn tokens_expiring(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
    ) -> Result<Vec<(String, Uuid, OffsetDateTime)>, StoreError> {
        use token::Column;
        let find = token::Entity::find().filter(Column::ExpiresAt.gt(from)).filter(Column::ExpiresAt.lt(to));
        let find = find.order_by_asc(Column::Id);
        let rows = within(PATIENCE, async { Ok::<_, StoreError>(find.all(&self.0.database).await?) }).await?;
        Ok(rows.into_iter().filter_map(|row| Some((row.name, row.id, row.expires_at?))).collect())
    }
}

impl Writing<'_> {
    /// An alert that is there becomes another one.
    async fn turn_alert(
        &mut self,
        by: &Author,
        kind: EventKind,
        before: &alert::Model,
        alert: &Alert,
    ) -> Result<(), StoreError> {
        let (mut row, mut entry) = (row(alert), entry(alert));
        // One that was altered stays known as such.
        if self.store.0.trail.is_authentic(before) {
            row = self.store.0.trail.authenticate(row);
            entry = entry.row(&row);
        }
        row.into_active_model().reset_all().update(&self.transaction).await?;
        self.tell_of(by, kind, alert, entry).await
    }

    async fn tell_of(
        &mut self,
        by: &Author,
        kind: EventKind,
        alert: &Alert,
        entry: audit::Entry<'_>,
    ) -> Result<(), StoreError> {
        let detail = told(alert);
        self.audit(by, entry.with("alert", detail.clone())).await?;
        self.events.push(NewEvent::about(kind, alert.tenant.as_ref().map(Id::as_str), detail));
        Ok(())
    }
}

fn told(alert: &Alert) -> Value {
    json!({
        "alert": alert.id, "rule": alert.rule, "kind": alert.kind, "severity": alert.severity,
        "subject": alert.subject, "summary": alert.summary,
    })
}

fn entry(alert: &Alert) -> audit::Entry<'_> {
    audit::Entry { tenant: alert.tenant.as_ref().map(Id::as_str), ..audit::Entry::done() }
}

/// Without its MAC.
fn row(alert: &Alert) -> alert::Model {
    alert::Model {
        id: alert.id,
        rule_id: alert.rule_id,
        rule: alert.rule.to_string(),
        kind: alert.kind.clone(),
        severity: alert.severity.as_str().to_owned(),
        subject: alert.subject.clone(),
        tenant: alert.tenant.as_ref().map(Id::to_string),
        state: alert.state.as_str().to_owned(),
        summary: alert.summary.clone(),
        opened_at: alert.opened_at,
        acknowledged_at: alert.acknowledged_at,
        acknowledged_by: alert.acknowledged_by.clone(),
        resolved_at: alert.resolved_at,
        mac: None,
    }
}

fn alert_of(row: alert::Model) -> Result<Alert, StoreError> {
    Ok(Alert {
        id: row.id,
        rule_id: row.rule_id,
        rule: id_of(&row.rule)?,
        kind: row.kind,
        severity: Severity::parse(&row.severity)?,
        subject: row.subject,
        tenant: row.tenant.as_deref().map(id_of).transpose()?,
        state: AlertState::parse(&row.state)?,
        summary: row.summary,
        opened_at: row.opened_at,
        acknowledged_at: row.acknowledged_at,
        acknowledged_by: row.acknowledged_by,
        resolved_at: row.resolved_at,
    })
}
