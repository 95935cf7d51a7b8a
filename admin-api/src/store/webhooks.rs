//! Whom to tell what happens, and what was told to whom.
//!
//! What is to be told is derived from the events, by a cursor that is moved on in the same transaction: none is passed over,
//! whenever a process ends. Each delivery is tried by one replica at a time.

use std::collections::BTreeSet;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, FromQueryResult, IntoActiveModel,
    ModelTrait, QueryFilter, QueryOrder, QuerySelect, Set, Statement, TransactionTrait, sea_query::OnConflict,
};
use secrecy::SecretString;
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use url::Url;
use uuid::Uuid;

use super::{
    Author, BATCH, Once, PATIENCE, Store, StoreError, audit, cursors,
    entities::{webhook, webhook_delivery},
    events::{Event, EventKind, Sight},
    id_of,
    keeping::{KeepError, expect},
    number,
    operators::{AnswerOf, Role},
    secrets::Place,
    signed, within,
    writing::Writing,
};

const CURSOR: &str = "webhooks";

/// How long deliveries are kept.
const KEPT: time::Duration = time::Duration::days(7);

/// What of a webhook can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    pub name: Id,
    pub url: Url,
    pub kinds: Option<BTreeSet<EventKind>>,
    pub tenants: Option<BTreeSet<Id>>,
    pub enabled: bool,
}

/// Whom to tell what happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Webhook {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub name: Id,
    #[schema(value_type = String)]
    pub url: Url,
    /// None: all kinds of events.
    pub kinds: Option<BTreeSet<EventKind>>,
    /// None: all tenants, and what concerns none in particular.
    #[schema(value_type = Option<Vec<String>>)]
    pub tenants: Option<BTreeSet<Id>>,
    pub enabled: bool,
    /// Why it was disabled, if nobody did it.
    pub disabled_reason: Option<String>,
    /// Since when it has taken nothing.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failing_since: Option<OffsetDateTime>,
    /// Counts the webhook's changes.
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried, or will be again.
    Pending,
    Delivered,
    /// It was tried for the last time.
    Dead,
}

impl DeliveryState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// What is told, and how that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = WebhookDelivery)]
pub struct Delivery {
    /// The `webhook-id` that it is sent with, each time.
    pub id: Uuid,
    /// The event's number; none, if it is a test.
    pub event: Option<u64>,
    pub kind: String,
    pub state: DeliveryState,
    pub attempts: u64,
    /// When it is tried next, if it is.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<OffsetDateTime>,
    /// Of the last answer.
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// A delivery that this replica is to try.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) id: Uuid,
    pub(crate) webhook: Uuid,
    pub(crate) url: String,
    pub(crate) body: String,
    pub(crate) attempts: u64,
    /// One, or two while a new one is taken over.
    pub(crate) secrets: Vec<SecretString>,
}

/// How a trial went.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) status: Option<u16>,
    /// None: it was taken.
    pub(crate) error: Option<String>,
    /// When it is to be tried again; none, if not any more.
    pub(crate) again_at: Option<OffsetDateTime>,
    /// A webhook that has failed for as long is disabled.
    pub(crate) patience: time::Duration,
    /// The receiver wants no more.
    pub(crate) is_gone: bool,
}

impl Store {
    /// All webhooks, in the order they were made in.
    pub async fn webhooks(&self) -> Result<Vec<Webhook>, StoreError> {
        let find = webhook::Entity::find().order_by_asc(webhook::Column::Id);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(webhook_of).collect() }).await
    }

    /// Webhooks behind one of them, in the order they were made in.
    pub async fn webhooks_after(&self, after: Option<Uuid>, most: u64) -> Result<Vec<Webhook>, StoreError> {
        let mut find = webhook::Entity::find().order_by_asc(webhook::Column::Id).limit(most);
        if let Some(after) = after {
            find = find.filter(webhook::Column::Id.gt(after));
        }
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(webhook_of).collect() }).await
    }

    pub async fn webhook(&self, id: Uuid) -> Result<Option<Webhook>, StoreError> {
        let find = webhook::Entity::find_by_id(id);
        within(PATIENCE, async { find.one(&self.0.database).await?.map(webhook_of).transpose() }).await
    }

    /// Its secret is given out here, and never again.
    pub async fn create_webhook(
        &self,
        by: &Author,
        settings: WebhookSettings,
        once: Option<(&Once, AnswerOf<'_, Webhook>)>,
    ) -> Result<(Webhook, SecretString), KeepError> {
        let secret = generate()?;
        within(PATIENCE, async {
            let mut writing = self.keeping(by, once.map(|(once, _)| once)).await?;
            let webhook = new(settings, writing.now);
            let sealed = self.seal(place(&webhook.id.to_string(), "secret"), &secret)?;
            let row = self.0.trail.authenticate(webhook::Model { secret: sealed, ..row(&webhook) });
            let entry = audit::Entry::done().with("webhook", shown(&webhook)).row(&row);
            let insert = webhook::Entity::insert(row.into_active_model());
            insert.exec_without_returning(&writing.transaction).await?;
            writing.audit(by, entry).await?;
            if let Some((once, answer)) = once {
                writing.remember(by, once, answer(&webhook)).await?;
            }
            writing.finish().await?;
            Ok((webhook, secret))
        })
        .await
    }

    /// One that is enabled again begins anew.
    pub async fn update_webhook(
        &self,
        by: &Author,
        id: Uuid,
        expected: Option<u64>,
        settings: WebhookSettings,
    ) -> Result<Webhook, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (stored, before) = writing.webhook(id, expected).await?;
            let (failing_since, disabled_reason) = if settings.enabled && !before.enabled {
                (None, None)
            } else {
                (before.failing_since, before.disabled_reason.clone())
            };
            let after = Webhook {
                id,
                failing_since,
                disabled_reason,
                revision: before.revision,
                created_at: before.created_at,
                ..new(settings, writing.now)
            };
            if after == before {
                return Ok(before);
            }
            let after = Webhook { revision: before.revision + 1, ..after };
            let webhook::Model { secret, old_secret, old_until, .. } = stored;
            let row = self.0.trail.authenticate(webhook::Model { secret, old_secret, old_until, ..row(&after) });
            let entry = audit::Entry::done().with("before", shown(&before)).with("after", shown(&after)).row(&row);
            row.into_active_model().reset_all().update(&writing.transaction).await?;
            writing.audit(by, entry).await?;
            writing.finish().await?;
            Ok(after)
        })
        .await
    }

    /// With what was to be delivered to it.
    pub async fn delete_webhook(&self, by: &Author, id: Uuid, expected: Option<u64>) -> Result<(), KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (stored, webhook) = writing.webhook(id, expected).await?;
            stored.delete(&writing.transaction).await?;
            let entry = audit::Entry::done().with("webhook", shown(&webhook)).gone::<webhook::Model>(id);
            writing.audit(by, entry).await?;
            Ok(writing.finish().await?)
        })
        .await
    }

    /// A new secret. Until the grace time ends, what is sent is signed with the one before too.
    pub async fn rotate_webhook_secret(
        &self,
        by: &Author,
        id: Uuid,
        expected: Option<u64>,
        grace: time::Duration,
    ) -> Result<(Webhook, SecretString), KeepError> {
        let secret = generate()?;
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (stored, before) = writing.webhook(id, expected).await?;
            let at = id.to_string();
            let old = self.open_sealed(place(&at, "secret"), &stored.secret)?;
            let webhook = Webhook { revision: before.revision + 1, ..before };
            let row = webhook::Model {
                secret: self.seal(place(&at, "secret"), &secret)?,
                old_secret: Some(self.seal(place(&at, "old_secret"), &old)?),
                old_until: Some(millis(writing.now + grace)),
                ..row(&webhook)
            };
            let row = self.0.trail.authenticate(row);
            let entry = audit::Entry::done().with("webhook", shown(&webhook)).row(&row);
            row.into_active_model().reset_all().update(&writing.transaction).await?;
            writing.audit(by, entry.with("grace_seconds", grace.whole_seconds())).await?;
            writing.finish().await?;
            Ok((webhook, secret))
        })
        .await
    }

    /// Deliveries before an id, the newest first.
    pub async fn deliveries(
        &self,
        webhook: Uuid,
        state: Option<DeliveryState>,
        before: Option<Uuid>,
        most: u64,
    ) -> Result<Vec<Delivery>, StoreError> {
        use webhook_delivery::Column;
        let mut find = webhook_delivery::Entity::find().filter(Column::WebhookId.eq(webhook));
        if let Some(state) = state {
            find = find.filter(Column::State.eq(state.as_str()));
        }
        if let Some(before) = before {
            find = find.filter(Column::Id.lt(before));
        }
        let find = find.order_by_desc(Column::Id).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(delivery_of).collect() }).await
    }

    /// It is tried again, as if it were new.
    pub async fn replay_delivery(&self, by: &Author, webhook: Uuid, id: Uuid) -> Result<Delivery, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let found = webhook_delivery::Entity::find_by_id(id).one(&writing.transaction).await?;
            let row = found.filter(|row| row.webhook_id == webhook).ok_or(KeepError::Missing("delivery"))?;
            if row.claimed_until > millis(writing.now) {
                return Err(KeepError::State("the delivery is being tried right now"));
            }
            let row = webhook_delivery::Model {
                state: DeliveryState::Pending.as_str().to_owned(),
                attempts: 0,
                next_at: millis(writing.now),
                done_at: None,
                ..row
            };
            row.clone().into_active_model().reset_all().update(&writing.transaction).await?;
            let entry = audit::Entry::done().with("webhook", webhook.to_string()).with("delivery", id.to_string());
            writing.audit(by, entry).await?;
            writing.finish().await?;
            Ok(delivery_of(row)?)
        })
        .await
    }

    /// Something to deliver that nothing has caused.
    pub async fn test_webhook(&self, by: &Author, webhook: Uuid) -> Result<Delivery, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (_, webhook) = writing.webhook(webhook, None).await?;
            let body = body("webhook.test", writing.now, &json!({ "webhook": webhook.id, "by": by.name }));
            let row = delivery(webhook.id, None, "webhook.test", body, writing.now);
            let insert = webhook_delivery::Entity::insert(row.clone().into_active_model());
            insert.exec_without_returning(&writing.transaction).await?;
            let entry = audit::Entry::done().with("webhook", webhook.id.to_string());
            writing.audit(by, entry.with("delivery", row.id.to_string())).await?;
            writing.finish().await?;
            Ok(delivery_of(row)?)
        })
        .await
    }

    /// Makes deliveries of the events that are new, and forgets the old ones. The leader does.
    pub(crate) async fn fan_out(&self) -> Result<(), StoreError> {
        while within(PATIENCE, self.fan_out_some()).await? {}
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            let old = OffsetDateTime::now_utc() - KEPT;
            let forget = webhook_delivery::Entity::delete_many().filter(webhook_delivery::Column::CreatedAt.lt(old));
            forget.exec(&self.0.database).await?;
            Ok(())
        })
        .await
    }

    /// Whether there may be more.
    async fn fan_out_some(&self) -> Result<bool, StoreError> {
        let newest = self.newest_event().await?;
        if cursors::get(&self.0.database, CURSOR).await? == Some(newest) {
            return Ok(false);
        }
        let _turn = self.0.turn.lock().await;
        let transaction = self.0.database.begin().await?;
        // What happened before there were webhooks is told to none.
        let cursor = cursors::get(&transaction, CURSOR).await?.unwrap_or(0).min(newest);
        // It writes at first, so that SQLite takes its lock at once.
        cursors::set(&transaction, CURSOR, cursor).await?;
        let events = self.events_after(cursor, BATCH as u64).await?;
        let Some(last) = events.last().map(|event| event.number) else { return Ok(false) };
        let webhooks = webhook::Entity::find().filter(webhook::Column::Enabled.eq(true)).all(&transaction).await?;
        let now = OffsetDateTime::now_utc();
        let mut rows = Vec::new();
        for row in webhooks {
            let webhook = webhook_of(row)?;
            let sight = sight(&webhook);
            // It was not there when these happened.
            let seen = events.iter().filter(|event| event.at >= webhook.created_at);
            for event in seen.filter_map(|event| sight.show(event)) {
                let told = body(event.kind.as_str(), event.at, &data(&event));
                rows.push(delivery(webhook.id, Some(event.number), event.kind.as_str(), told, now));
            }
        }
        for rows in rows.chunks(BATCH) {
            let mut there = OnConflict::columns([webhook_delivery::Column::WebhookId, webhook_delivery::Column::Event]);
            let there = there.do_nothing().to_owned();
            let rows = rows.iter().cloned().map(IntoActiveModel::into_active_model);
            webhook_delivery::Entity::insert_many(rows).on_conflict(there).exec_without_returning(&transaction).await?;
        }
        cursors::set(&transaction, CURSOR, last).await?;
        transaction.commit().await?;
        Ok(events.len() == BATCH)
    }

    /// Deliveries that are due, for this replica alone until `patience` is over.
    pub(crate) async fn claim_deliveries(
        &self,
        most: usize,
        patience: time::Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        let now = millis(OffsetDateTime::now_utc());
        let backend = self.0.database.get_database_backend();
        let skip = if backend == DbBackend::Postgres { "FOR UPDATE OF d SKIP LOCKED" } else { "" };
        let sql = format!(
            "UPDATE webhook_deliveries SET claimed_until = $1 WHERE id IN (\
             SELECT d.id FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id AND w.enabled \
             WHERE d.state = 'pending' AND d.next_at <= $2 AND d.claimed_until <= $2 \
             ORDER BY d.next_at LIMIT {most} {skip}) RETURNING *"
        );
        let values = [(now + i64::try_from(patience.whole_milliseconds()).unwrap_or(i64::MAX)).into(), now.into()];
        within(PATIENCE, async {
            let rows = {
                let _turn = self.0.turn.lock().await;
                let claim = Statement::from_sql_and_values(backend, sql, values);
                self.0.database.query_all_raw(claim).await?
            };
            let mut claimed = Vec::new();
            for row in rows {
                let row = webhook_delivery::Model::from_query_result(&row, "")?;
                let Some(webhook) = webhook::Entity::find_by_id(row.webhook_id).one(&self.0.database).await? else {
                    continue;
                };
                // Nothing is told to whom somebody has put there.
                if !self.counts(&webhook).await {
                    continue;
                }
                let at = webhook.id.to_string();
                let mut secrets = vec![self.open_sealed(place(&at, "secret"), &webhook.secret)?];
                if let Some(old) = webhook.old_secret.filter(|_| webhook.old_until.is_some_and(|until| until > now)) {
                    secrets.push(self.open_sealed(place(&at, "old_secret"), &old)?);
                }
                claimed.push(Claimed {
                    id: row.id,
                    webhook: webhook.id,
                    url: webhook.url,
                    body: row.body,
                    attempts: number(row.attempts),
                    secrets,
                });
            }
            Ok(claimed)
        })
        .await
    }

    /// Keeps how a trial went. A webhook that fails for too long is disabled.
    pub(crate) async fn tried(&self, claimed: &Claimed, tried: &Tried) -> Result<(), StoreError> {
        use webhook_delivery::Column;
        within(PATIENCE, async {
            let mut writing = self.writing().await?;
            let state = match (&tried.error, tried.again_at) {
                (None, _) => DeliveryState::Delivered,
                (Some(_), Some(_)) => DeliveryState::Pending,
                (Some(_), None) => DeliveryState::Dead,
            };
            let change = webhook_delivery::ActiveModel {
                state: Set(state.as_str().to_owned()),
                attempts: Set(signed(claimed.attempts + 1)),
                next_at: Set(millis(tried.again_at.unwrap_or(writing.now))),
                claimed_until: Set(0),
                last_status: Set(tried.status.map(i64::from)),
                last_error: Set(tried.error.clone()),
                done_at: Set((state != DeliveryState::Pending).then_some(writing.now)),
                ..Default::default()
            };
            let update = webhook_delivery::Entity::update_many().set(change).filter(Column::Id.eq(claimed.id));
            update.exec(&writing.transaction).await?;
            writing.webhook_was_tried(claimed, tried).await?;
            writing.finish().await
        })
        .await
    }
}

impl Writing<'_> {
    async fn webhook(&self, id: Uuid, expected: Option<u64>) -> Result<(webhook::Model, Webhook), KeepError> {
        let found = webhook::Entity::find_by_id(id).one(&self.transaction).await?;
        let row = found.ok_or(KeepError::Missing("webhook"))?;
        let webhook = webhook_of(row.clone())?;
        expect(expected, webhook.revision, || shown(&webhook))?;
        Ok((row, webhook))
    }

    async fn webhook_was_tried(&mut self, claimed: &Claimed, tried: &Tried) -> Result<(), StoreError> {
        let found = webhook::Entity::find_by_id(claimed.webhook).one(&self.transaction).await?;
        // It may have been deleted meanwhile.
        let Some(row) = found else { return Ok(()) };
        let failing_since = match &tried.error {
            None => None,
            Some(_) => Some(row.failing_since.unwrap_or_else(|| millis(self.now))),
        };
        let too_long = failing_since.is_some_and(|since| self.now - at(since) >= tried.patience);
        if !row.enabled || !(too_long || tried.is_gone) {
            if failing_since != row.failing_since {
                let change =
                    webhook::ActiveModel { id: Set(row.id), failing_since: Set(failing_since), ..Default::default() };
                change.update(&self.transaction).await?;
            }
            return Ok(());
        }
        let why = tried.error.clone().unwrap_or_default();
        let reason = if tried.is_gone {
            "the receiver wants no more (410)".to_owned()
        } else {
            format!("it has taken nothing for too long: {why}")
        };
        let mut entry = audit::Entry::done().with("webhook", row.id.to_string()).with("reason", &*reason);
        let is_authentic = self.store.0.trail.is_authentic(&row);
        let mut row = webhook::Model {
            enabled: false,
            disabled_reason: Some(reason),
            failing_since,
            revision: row.revision + 1,
            ..row
        };
        // One that was altered stays known as such.
        if is_authentic {
            row = self.store.0.trail.authenticate(row);
            entry = entry.row(&row);
        }
        row.into_active_model().reset_all().update(&self.transaction).await?;
        let by = Author {
            id: None,
            name: "webhooks".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: "disable_webhook",
        };
        self.audit(&by, entry).await
    }
}

fn sight(webhook: &Webhook) -> Sight {
    Sight { role: Role::Admin, tenants: webhook.tenants.clone(), kinds: webhook.kinds.clone(), tenant: None }
}

/// As Standard Webhooks recommends: the type, the time of the event, and the rest.
fn body(kind: &str, at: OffsetDateTime, data: &Value) -> String {
    json!({ "type": kind, "timestamp": at.format(&Rfc3339).unwrap_or_default(), "data": data }).to_string()
}

fn data(event: &Event) -> Value {
    json!({ "number": event.number, "tenants": event.tenants, "detail": event.detail })
}

fn delivery(
    webhook_id: Uuid,
    event: Option<u64>,
    kind: &str,
    body: String,
    now: OffsetDateTime,
) -> webhook_delivery::Model {
    webhook_delivery::Model {
        id: Uuid::now_v7(),
        webhook_id,
        event: event.map(signed),
        kind: kind.to_owned(),
        body,
        state: DeliveryState::Pending.as_str().to_owned(),
        attempts: 0,
        next_at: millis(now),
        claimed_until: 0,
        last_status: None,
        last_error: None,
        created_at: now,
        done_at: None,
    }
}

/// A webhook is of no tenant alone.
fn place<'a>(row: &'a str, column: &'static str) -> Place<'a> {
    Place { tenant: "", table: "webhooks", column, row }
}

/// Standard Webhooks, section "Signature scheme".
fn generate() -> Result<SecretString, StoreError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
    Ok(format!("whsec_{}", STANDARD.encode(bytes)).into())
}

fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn at(millis: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(millis)
}

fn new(settings: WebhookSettings, now: OffsetDateTime) -> Webhook {
    let WebhookSettings { name, url, kinds, tenants, enabled } = settings;
    Webhook {
        id: Uuid::now_v7(),
        name,
        url,
        kinds,
        tenants,
        enabled,
        disabled_reason: None,
        failing_since: None,
        revision: 1,
        created_at: now,
    }
}

fn shown(webhook: &Webhook) -> Value {
    serde_json::to_value(webhook).unwrap_or_default()
}

/// Without its secrets and its MAC.
fn row(webhook: &Webhook) -> webhook::Model {
    let list = |list: Value| if list.is_null() { None } else { Some(list.to_string()) };
    webhook::Model {
        id: webhook.id,
        name: webhook.name.to_string(),
        url: webhook.url.to_string(),
        kinds: list(json!(webhook.kinds)),
        tenants: list(json!(webhook.tenants)),
        secret: String::new(),
        old_secret: None,
        old_until: None,
        enabled: webhook.enabled,
        disabled_reason: webhook.disabled_reason.clone(),
        failing_since: webhook.failing_since.map(millis),
        revision: signed(webhook.revision),
        created_at: webhook.created_at,
        mac: None,
    }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn webhook_of(row: webhook::Model) -> Result<Webhook, StoreError> {
    let corrupt = |why: &dyn std::fmt::Display| StoreError::corrupt(format!("the webhook {}", row.id), &why);
    Ok(Webhook {
        id: row.id,
        name: id_of(&row.name)?,
        url: row.url.parse().map_err(|why| corrupt(&why))?,
        kinds: row.kinds.as_deref().map(serde_json::from_str).transpose().map_err(|why| corrupt(&why))?,
        tenants: row.tenants.as_deref().map(serde_json::from_str).transpose().map_err(|why| corrupt(&why))?,
        enabled: row.enabled,
        disabled_reason: row.disabled_reason.clone(),
        failing_since: row.failing_since.map(at),
        revision: number(row.revision),
        created_at: row.created_at,
    })
}

fn delivery_of(row: webhook_delivery::Model) -> Result<Delivery, StoreError> {
    let all = [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Dead];
    let state = all.into_iter().find(|state| state.as_str() == row.state);
    let state = state.ok_or_else(|| StoreError::corrupt("the state of a delivery", &row.state))?;
    Ok(Delivery {
        id: row.id,
        event: row.event.map(number),
        kind: row.kind,
        state,
        attempts: number(row.attempts),
        next_at: (state == DeliveryState::Pending).then(|| at(row.next_at)),
        last_status: row.last_status.and_then(|status| status.try_into().ok()),
        last_error: row.last_error,
        created_at: row.created_at,
    })
}
