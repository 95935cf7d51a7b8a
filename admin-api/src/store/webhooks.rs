//! Whom to tell what happens.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, ModelTrait, QueryFilter, QueryOrder, QuerySelect,
};
use secrecy::SecretString;
use seiketsu_config::values::Id;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::{
    Author, Once, PATIENCE, Store, StoreError, audit,
    deliveries::{Claimed, Tried},
    entities::webhook,
    events::EventKind,
    id_of,
    keeping::{KeepError, expect},
    number,
    operators::AnswerOf,
    secrets::{Place, destination},
    signed, within,
    writing::Writing,
};

/// Webhooks that there may be.
const MOST_WEBHOOKS: u64 = 1000;
const MOST_WEBHOOKS_OF_TENANT: u64 = 20;

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
            writing.has_room_for_webhook(settings.tenants.as_ref(), None).await?;
            let webhook = new(settings, writing.now);
            let at = At::of(webhook.id, webhook.url.as_str());
            let sealed = self.seal(at.place("secret"), &secret)?;
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
            if settings.tenants != before.tenants {
                writing.has_room_for_webhook(settings.tenants.as_ref(), Some(id)).await?;
            }
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
            // One that was altered stands as it should from now on, if an operator says so.
            if after == before && self.0.trail.is_authentic(&stored) {
                return Ok(before);
            }
            let after = Webhook { revision: before.revision + 1, ..after };
            let (from, to) = (At::of(id, &stored.url), At::of(id, after.url.as_str()));
            let row = webhook::Model {
                secret: self.move_sealed(from.place("secret"), to.place("secret"), stored.secret)?,
                old_secret: match stored.old_secret {
                    Some(old) => Some(self.move_sealed(from.place("old_secret"), to.place("old_secret"), old)?),
                    None => None,
                },
                old_until: stored.old_until,
                ..row(&after)
            };
            let row = self.0.trail.authenticate(row);
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
            if !self.0.trail.is_authentic(&stored) {
                return Err(KeepError::State("the webhook was altered in the store: put it as it should be first"));
            }
            let at = At::of(id, &stored.url);
            // One that is sealed for another address signs nothing any more: a new one mends that.
            let old = match self.open_sealed(at.place("secret"), &stored.secret) {
                Ok(old) => Some(self.seal(at.place("old_secret"), &old)?),
                Err(error) if error.is_passing() => return Err(error.into()),
                Err(_) => None,
            };
            let webhook = Webhook { revision: before.revision + 1, ..before };
            let row = webhook::Model {
                secret: self.seal(at.place("secret"), &secret)?,
                old_until: old.is_some().then(|| millis(writing.now + grace)),
                old_secret: old,
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

    /// Sealed for another address. What does not open where it is stays as it is, and opens nowhere.
    fn move_sealed(&self, from: Place<'_>, to: Place<'_>, sealed: String) -> Result<String, StoreError> {
        if from == to {
            return Ok(sealed);
        }
        match self.open_sealed(from, &sealed) {
            Ok(secret) => self.seal(to, &secret),
            Err(error) if error.is_passing() => Err(error),
            Err(_) => Ok(sealed),
        }
    }

    /// What is sent is signed with these.
    pub(super) fn webhook_secrets(&self, webhook: &webhook::Model, now: i64) -> Result<Vec<SecretString>, StoreError> {
        let at = At::of(webhook.id, &webhook.url);
        let mut secrets = vec![self.open_sealed(at.place("secret"), &webhook.secret)?];
        if let Some(old) = webhook.old_secret.as_ref().filter(|_| webhook.old_until.is_some_and(|until| until > now)) {
            secrets.push(self.open_sealed(at.place("old_secret"), old)?);
        }
        Ok(secrets)
    }

    pub(super) async fn disable_webhook(&self, claimed: &Claimed, tried: &Tried) -> Result<(), StoreError> {
        let mut writing = self.writing().await?;
        let found = webhook::Entity::find_by_id(claimed.webhook).one(&writing.transaction).await?;
        // Somebody may have changed it, or another trial, meanwhile.
        let Some(row) = found.filter(|row| row.enabled && is_given_up(row, tried, writing.now)) else { return Ok(()) };
        let reason = if tried.is_gone {
            "the receiver wants no more (410)".to_owned()
        } else {
            format!("it has taken nothing for too long: {}", tried.error.as_deref().unwrap_or_default())
        };
        let mut entry = audit::Entry::done().with("webhook", row.id.to_string()).with("reason", &*reason);
        let is_authentic = self.0.trail.is_authentic(&row);
        let mut row =
            webhook::Model { enabled: false, disabled_reason: Some(reason), revision: row.revision + 1, ..row };
        // One that was altered stays known as such.
        if is_authentic {
            row = self.0.trail.authenticate(row);
            entry = entry.row(&row);
        }
        let by = Author {
            id: None,
            name: "webhooks".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: "disable_webhook",
        };
        row.into_active_model().reset_all().update(&writing.transaction).await?;
        writing.audit(&by, entry).await?;
        writing.finish().await
    }
}

/// Whether it is to be told nothing any more.
pub(super) fn is_given_up(row: &webhook::Model, tried: &Tried, now: OffsetDateTime) -> bool {
    tried.is_gone || row.failing_since.is_some_and(|since| now - at(since) >= tried.patience)
}

impl Writing<'_> {
    pub(super) async fn webhook(
        &self,
        id: Uuid,
        expected: Option<u64>,
    ) -> Result<(webhook::Model, Webhook), KeepError> {
        let found = webhook::Entity::find_by_id(id).one(&self.transaction).await?;
        let row = found.ok_or(KeepError::Missing("webhook"))?;
        let webhook = webhook_of(row.clone())?;
        expect(expected, webhook.revision, || shown(&webhook))?;
        Ok((row, webhook))
    }

    /// A webhook more, or this one for other tenants.
    async fn has_room_for_webhook(&self, tenants: Option<&BTreeSet<Id>>, but: Option<Uuid>) -> Result<(), KeepError> {
        use webhook::Column;
        let find = webhook::Entity::find().filter(Column::Id.ne(but.unwrap_or_default()));
        let others: Vec<Option<String>> =
            find.select_only().column(Column::Tenants).into_tuple().all(&self.transaction).await?;
        let what = "webhooks";
        let mut of_tenants: BTreeMap<Id, u64> = BTreeMap::new();
        // One that cannot be read is told of where it is used.
        let read = |tenants: &String| serde_json::from_str::<BTreeSet<Id>>(tenants).unwrap_or_default();
        for tenant in others.iter().flatten().flat_map(read) {
            *of_tenants.entry(tenant).or_default() += 1;
        }
        let is_full = |tenant: &&Id| of_tenants.get(*tenant).is_some_and(|many| *many >= MOST_WEBHOOKS_OF_TENANT);
        if let Some(tenant) = tenants.into_iter().flatten().find(is_full) {
            return Err(KeepError::Full { what, most: MOST_WEBHOOKS_OF_TENANT, of: Some(tenant.clone()) });
        }
        if others.len() as u64 >= MOST_WEBHOOKS {
            return Err(KeepError::Full { what, most: MOST_WEBHOOKS, of: None });
        }
        Ok(())
    }
}

/// Where the secrets of a webhook stand, and whom what they sign is sent to.
struct At {
    row: String,
    destination: String,
}

impl At {
    fn of(id: Uuid, url: &str) -> Self {
        Self { row: id.to_string(), destination: destination(url) }
    }

    /// A webhook is of no tenant alone.
    fn place(&self, column: &'static str) -> Place<'_> {
        Place { tenant: "", table: "webhooks", column, row: &self.row, destination: &self.destination }
    }
}

/// Standard Webhooks, section "Signature scheme".
fn generate() -> Result<SecretString, StoreError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
    Ok(format!("whsec_{}", STANDARD.encode(bytes)).into())
}

pub(super) fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

pub(super) fn at(millis: i64) -> OffsetDateTime {
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
pub(super) fn webhook_of(row: webhook::Model) -> Result<Webhook, StoreError> {
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
