//! What was told to whom, and what is to be.
//!
//! What is to be told is derived from the events, by a cursor that is moved on in the same transaction: none is passed over,
//! whenever a process ends. Each delivery is tried by one replica at a time.

use std::sync::Arc;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, FromQueryResult,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, Set, Statement, TransactionTrait,
    sea_query::{Expr, OnConflict},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::MutexGuard;
use uuid::Uuid;

use super::{
    Author, BATCH, PATIENCE, Store, StoreError, audit, cursors,
    entities::{webhook, webhook_delivery},
    events::{Event, Sight},
    keeping::KeepError,
    number,
    operators::Role,
    signed,
    webhooks::{Webhook, at, is_given_up, millis, webhook_of},
    within,
};

const CURSOR: &str = "webhooks";

/// How long deliveries are kept.
const KEPT: time::Duration = time::Duration::days(7);

/// Deliveries that are made in one transaction, and how often in a row before something else has its turn.
const MOST_AT_ONCE: usize = 5000;
const MOST_STEPS: usize = 20;

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

/// A webhook that something is to be delivered to by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) webhook: Uuid,
    /// Whose it is, as it stands in the store; none: it is of all.
    pub(crate) tenants: Option<String>,
    /// What was tried last was not taken.
    pub(crate) is_failing: bool,
}

/// A delivery that this replica is to try.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) id: Uuid,
    pub(crate) webhook: Uuid,
    pub(crate) url: String,
    pub(crate) body: String,
    pub(crate) attempts: u64,
    /// One, or two while a new one is taken over; or why they cannot be read.
    pub(crate) secrets: Arc<Result<Vec<SecretString>, StoreError>>,
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

    /// Makes deliveries of the events that are new, and forgets the old ones. The leader does. Whether none is left that
    /// would have to be told.
    pub(crate) async fn fan_out(&self) -> Result<bool, StoreError> {
        let mut is_all = false;
        for _ in 0..MOST_STEPS {
            is_all = !within(PATIENCE, self.fan_out_some()).await?;
            if is_all {
                break;
            }
        }
        within(PATIENCE, async {
            let _turn = self.turn_of_sqlite().await;
            let old = OffsetDateTime::now_utc() - KEPT;
            let forget = webhook_delivery::Entity::delete_many().filter(webhook_delivery::Column::CreatedAt.lt(old));
            forget.exec(&self.0.database).await?;
            Ok(is_all)
        })
        .await
    }

    /// SQLite has one writer, and whoever waits for it waits here. In Postgres nothing of deliveries is locked that a
    /// change needs.
    async fn turn_of_sqlite(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.database.get_database_backend() {
            DbBackend::Postgres => None,
            _ => Some(self.0.turn.lock().await),
        }
    }

    /// Whether there may be more.
    async fn fan_out_some(&self) -> Result<bool, StoreError> {
        let newest = self.newest_event().await?;
        if cursors::get(&self.0.database, CURSOR).await? == Some(newest) {
            return Ok(false);
        }
        let _turn = self.turn_of_sqlite().await;
        let transaction = self.0.database.begin().await?;
        // What happened before there were webhooks is told to none.
        let cursor = cursors::get(&transaction, CURSOR).await?.unwrap_or(0).min(newest);
        // It writes at first, so that SQLite takes its lock at once.
        cursors::set(&transaction, CURSOR, cursor).await?;
        let webhooks = webhook::Entity::find().filter(webhook::Column::Enabled.eq(true)).all(&transaction).await?;
        let most_events = (MOST_AT_ONCE / webhooks.len().max(1)).clamp(1, BATCH);
        let events = self.events_after(cursor, most_events as u64).await?;
        let Some(last) = events.last().map(|event| event.number) else { return Ok(false) };
        let now = OffsetDateTime::now_utc();
        let mut rows = Vec::new();
        for row in webhooks {
            let webhook = match webhook_of(row) {
                Ok(webhook) => webhook,
                Err(error) => {
                    tracing::error!(%error, "nothing can be told to a webhook");
                    continue;
                }
            };
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
        Ok(last < newest)
    }

    /// Webhooks that have anything that is due and that nobody tries, in the order of their ids.
    pub(crate) async fn webhooks_due(&self) -> Result<Vec<Due>, StoreError> {
        let backend = self.0.database.get_database_backend();
        let sql = "SELECT w.id, w.tenants, w.failing_since FROM webhooks w WHERE w.enabled AND EXISTS (\
             SELECT 1 FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending' \
             AND d.next_at <= $1 AND d.claimed_until <= $1) ORDER BY w.id";
        let find = Statement::from_sql_and_values(backend, sql, [millis(OffsetDateTime::now_utc()).into()]);
        within(PATIENCE, async {
            let rows = self.0.database.query_all_raw(find).await?;
            let due = rows.iter().map(|row| {
                let failing_since: Option<i64> = row.try_get("", "failing_since")?;
                let (webhook, tenants) = (row.try_get("", "id")?, row.try_get("", "tenants")?);
                Ok(Due { webhook, tenants, is_failing: failing_since.is_some() })
            });
            due.collect()
        })
        .await
    }

    /// Deliveries of a webhook that are due, for this replica alone until `patience` is over.
    pub(crate) async fn claim_deliveries(
        &self,
        webhook: Uuid,
        most: usize,
        patience: time::Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        let now = millis(OffsetDateTime::now_utc());
        let until = now.saturating_add(i64::try_from(patience.whole_milliseconds()).unwrap_or(i64::MAX));
        let backend = self.0.database.get_database_backend();
        let skip = if backend == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "UPDATE webhook_deliveries SET claimed_until = $1 WHERE id IN (\
             SELECT id FROM webhook_deliveries WHERE webhook_id = $3 AND state = 'pending' AND next_at <= $2 \
             AND claimed_until <= $2 ORDER BY next_at LIMIT {most} {skip}) RETURNING *"
        );
        let claim = Statement::from_sql_and_values(backend, sql, [until.into(), now.into(), webhook.into()]);
        within(PATIENCE, async {
            let rows = {
                let _turn = self.turn_of_sqlite().await;
                self.0.database.query_all_raw(claim).await?
            };
            let Some(webhook) = webhook::Entity::find_by_id(webhook).one(&self.0.database).await? else {
                return Ok(Vec::new());
            };
            // Nothing is told to whom somebody has put there; that is no reason to deliver nothing to others.
            let secrets = if self.counts(&webhook).await {
                self.webhook_secrets(&webhook, now)
            } else {
                Err(StoreError::corrupt(format!("the webhook {}", webhook.name), &"it was altered"))
            };
            let secrets = Arc::new(secrets);
            let claimed = rows.into_iter().map(|row| {
                let row = webhook_delivery::Model::from_query_result(&row, "")?;
                Ok(Claimed {
                    id: row.id,
                    webhook: webhook.id,
                    url: webhook.url.clone(),
                    body: row.body,
                    attempts: number(row.attempts),
                    secrets: Arc::clone(&secrets),
                })
            });
            claimed.collect()
        })
        .await
    }

    /// Keeps how a trial went. A webhook that fails for too long is disabled.
    pub(crate) async fn tried(&self, claimed: &Claimed, tried: &Tried) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let now = OffsetDateTime::now_utc();
            {
                let _turn = self.turn_of_sqlite().await;
                let transaction = self.0.database.begin().await?;
                keep_trial(&transaction, claimed, tried, now).await?;
                transaction.commit().await?;
            }
            if tried.error.is_none() {
                return Ok(());
            }
            let find = webhook::Entity::find_by_id(claimed.webhook).filter(webhook::Column::Enabled.eq(true));
            match find.one(&self.0.database).await? {
                Some(row) if is_given_up(&row, tried, now) => self.disable_webhook(claimed, tried).await,
                _ => Ok(()),
            }
        })
        .await
    }
}

/// The webhook comes before its deliveries, as where both are removed: so nobody waits for another who waits for them.
async fn keep_trial(
    transaction: &DatabaseTransaction,
    claimed: &Claimed,
    tried: &Tried,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let hook = || webhook::Entity::update_many().filter(webhook::Column::Id.eq(claimed.webhook));
    let since = webhook::Column::FailingSince;
    let hook = match &tried.error {
        None => hook().filter(since.is_not_null()).col_expr(since, Expr::value(None::<i64>)),
        Some(_) => hook().filter(since.is_null()).col_expr(since, Expr::value(Some(millis(now)))),
    };
    hook.exec(transaction).await?;
    let state = match (&tried.error, tried.again_at) {
        (None, _) => DeliveryState::Delivered,
        (Some(_), Some(_)) => DeliveryState::Pending,
        (Some(_), None) => DeliveryState::Dead,
    };
    let change = webhook_delivery::ActiveModel {
        state: Set(state.as_str().to_owned()),
        attempts: Set(signed(claimed.attempts + 1)),
        next_at: Set(millis(tried.again_at.unwrap_or(now))),
        claimed_until: Set(0),
        last_status: Set(tried.status.map(i64::from)),
        last_error: Set(tried.error.clone()),
        done_at: Set((state != DeliveryState::Pending).then_some(now)),
        ..Default::default()
    };
    let update = webhook_delivery::Entity::update_many().set(change);
    update.filter(webhook_delivery::Column::Id.eq(claimed.id)).exec(transaction).await?;
    Ok(())
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
