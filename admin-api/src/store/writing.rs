//! A change in the making: one transaction that holds the locked row.

use std::net::IpAddr;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, IntoActiveModel,
    QueryFilter, Set, Statement, TransactionTrait, sea_query::Expr,
};
use seiketsu_config::push::Sum;
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::MutexGuard;
use uuid::Uuid;

use super::{
    Store, StoreError, WriteError, audit,
    connect::{APPLIED_CHANNEL, REVISION_CHANNEL},
    documents::HeadDocument,
    entities::{control, idempotency_key, operator, token},
    events::{self, EventKind, NewEvent},
    known, seals, signed,
};

/// How long an answer is kept for the case that its request is repeated.
const REMEMBERED: time::Duration = time::Duration::hours(24);

/// Who does something, and by which request.
#[derive(Debug, Clone)]
pub struct Author {
    /// None: nobody who is known.
    pub id: Option<Principal>,
    pub name: String,
    pub address: Option<IpAddr>,
    /// The request's id.
    pub request: String,
    /// The operation, as the API names it.
    pub action: &'static str,
}

/// An operator, as they were let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    pub operator: Uuid,
    /// The operator's revision: another one may have other rights.
    pub revision: u64,
    pub token: Uuid,
}

impl Author {
    pub fn operator(&self) -> Option<Uuid> {
        self.id.map(|principal| principal.operator)
    }
}

/// A request that may be repeated and is carried out once (`Idempotency-Key`).
#[derive(Debug, Clone)]
pub struct Once {
    pub key: String,
    /// SHA-256 of everything that the request asks for.
    pub request: [u8; 32],
}

impl Once {
    pub fn new(key: String, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self { key, request: hash.finalize().into() }
    }

    fn request(&self) -> String {
        hex(&self.request)
    }
}

/// An answer that was given before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    pub status: u16,
    /// JSON.
    pub answer: String,
}

/// Others wait until it is finished or dropped; dropped, it leaves nothing behind.
pub(super) struct Writing<'a> {
    pub(super) store: &'a Store,
    pub(super) transaction: DatabaseTransaction,
    pub(super) control: control::Model,
    pub(super) now: OffsetDateTime,
    /// What is told when it is finished.
    pub(super) events: Vec<NewEvent>,
    _turn: MutexGuard<'a, ()>,
}

impl Store {
    pub(super) async fn writing(&self) -> Result<Writing<'_>, StoreError> {
        let turn = self.0.turn.lock().await;
        let transaction = self.0.database.begin().await?;
        // The first statement writes: SQLite takes its lock at once, and Postgres that of the row.
        let control = control::Entity::update_many()
            .col_expr(control::Column::Id, Expr::col(control::Column::Id))
            .exec_with_returning(&transaction)
            .await?
            .pop()
            .ok_or_else(|| StoreError::corrupt("the control row", &"it is missing"))?;
        // Whole microseconds: that is what Postgres keeps.
        let now = OffsetDateTime::now_utc();
        let now = now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now);
        Ok(Writing { store: self, transaction, control, now, events: Vec::new(), _turn: turn })
    }

    /// A change by somebody whose rights were looked at before it was this change's turn: they may have been taken away
    /// since.
    pub(super) async fn writing_by(&self, by: &Author) -> Result<Writing<'_>, StoreError> {
        let writing = self.writing().await?;
        let Some(Principal { operator, revision, token }) = by.id else { return Ok(writing) };
        let trail = &self.0.trail;
        let token = token::Entity::find_by_id(token).one(&writing.transaction).await?;
        let token = token.filter(|token| token.operator_id == Some(operator) && trail.is_authentic(token));
        let operator = operator::Entity::find_by_id(operator).one(&writing.transaction).await?;
        let operator =
            operator.filter(|operator| operator.revision == signed(revision) && trail.is_authentic(operator));
        let holds = token.is_some_and(|token| token.expires_at.is_none_or(|expires| expires > writing.now));
        if holds && operator.is_some() { Ok(writing) } else { Err(StoreError::Revoked) }
    }

    /// Tells all replicas that a node has applied something.
    pub(super) async fn notify_applied(&self) -> Result<(), StoreError> {
        self.learn_applied();
        if self.0.database.get_database_backend() == DbBackend::Postgres {
            self.0.database.execute_unprepared(&format!("SELECT pg_notify('{APPLIED_CHANNEL}', '')")).await?;
        }
        Ok(())
    }
}

impl Writing<'_> {
    /// What was answered to this request before; an error if the key was used for another one.
    pub(super) async fn repeated(&self, by: &Author, once: &Once) -> Result<Option<Remembered>, WriteError> {
        let key = (by.operator().unwrap_or_default(), once.key.clone());
        let found = idempotency_key::Entity::find_by_id(key).one(&self.transaction).await.map_err(StoreError::from)?;
        match found {
            Some(row) if row.at + REMEMBERED < self.now => Ok(None),
            Some(row) if row.request != once.request() => Err(WriteError::KeyUsed),
            Some(row) => Ok(Some(Remembered { status: row.status.try_into().unwrap_or(200), answer: row.answer })),
            None => Ok(None),
        }
    }

    pub(super) async fn remember(&self, by: &Author, once: &Once, given: Remembered) -> Result<(), StoreError> {
        use idempotency_key::{ActiveModel, Column, Entity};
        Entity::delete_many().filter(Column::At.lt(self.now - REMEMBERED)).exec(&self.transaction).await?;
        let row = ActiveModel {
            operator_id: Set(by.operator().unwrap_or_default()),
            key: Set(once.key.clone()),
            request: Set(once.request()),
            status: Set(given.status.into()),
            answer: Set(given.answer),
            at: Set(self.now),
        };
        Entity::insert(row).exec_without_returning(&self.transaction).await?;
        Ok(())
    }

    pub(super) async fn audit(&mut self, by: &Author, entry: audit::Entry<'_>) -> Result<(), StoreError> {
        let refused = entry.outcome == audit::Outcome::Refused;
        let row = audit::next(&self.store.0.trail, &self.control, self.now, by, entry);
        if refused {
            let audit::AuditRow { number, actor, address, action, detail, .. } = row.clone().into();
            let told =
                json!({ "entry": number, "actor": actor, "address": address, "action": action, "detail": detail });
            self.events.push(NewEvent::about(EventKind::AuditRefused, row.tenant.as_deref(), told));
        }
        self.control.audit_number = row.number;
        self.control.audit_hash.clone_from(&row.hash);
        super::entities::audit_log::Entity::insert(row.into_active_model())
            .exec_without_returning(&self.transaction)
            .await?;
        if self.control.audit_number % seals::EVERY == 0 {
            self.seal_trail().await?;
        }
        Ok(())
    }

    /// Makes it so, and known.
    pub(super) async fn finish(self) -> Result<(), StoreError> {
        let state = known::state_of(&self.control)?;
        let Self { store, transaction, control, now, events, .. } = self;
        let is_told = !events.is_empty();
        control.into_active_model().reset_all().update(&transaction).await?;
        if transaction.get_database_backend() == DbBackend::Postgres {
            // Heard only if the transaction is committed.
            let notify = "SELECT pg_notify($1, $2)";
            let values = [REVISION_CHANNEL.into(), state.revision.to_string().into()];
            transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, notify, values)).await?;
        }
        events::emit(&transaction, now, events).await?;
        transaction.commit().await?;
        store.learn(state);
        if is_told {
            store.learn_event();
        }
        Ok(())
    }
}

/// The control row; made if the store is new.
pub(super) async fn control_or_first(transaction: &DatabaseTransaction) -> Result<control::Model, StoreError> {
    if let Some(control) = control::Entity::find().one(transaction).await? {
        return Ok(control);
    }
    let head = HeadDocument::default().to_json();
    let first = control::Model {
        id: 1,
        store: Uuid::now_v7(),
        revision: 0,
        sum: Sum::default().with(Sum::of(None, &head)).to_string(),
        head_revision: 0,
        head,
        audit_number: 0,
        audit_hash: audit::FIRST.to_owned(),
        orders: 0,
        trail: None,
    };
    control::Entity::insert(first.clone().into_active_model()).exec_without_returning(transaction).await?;
    Ok(first)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
