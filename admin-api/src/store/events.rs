//! What happens, as it is told to those who follow it.
//!
//! An event gets its number under a lock that is kept until its transaction ends, so that numbers become visible in their
//! order and without gaps: whoever has seen one has seen all before it. Each process reads new events once and hands them
//! to all who follow; where one falls behind, it reads the store itself.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect, TransactionTrait,
};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    BATCH, Inner, PATIENCE, PATIENCE_FOR_ALL, Store, StoreError, connect::EVENT_CHANNEL, entities::event, number,
    operators::Role, signed, within,
};

/// How many are kept.
pub const KEPT: u64 = 10_000;

/// What one who follows may lag behind in memory.
const BEHIND: usize = 1024;

/// How often the store is asked, in case a notification is lost.
const POLL: Duration = Duration::from_secs(1);

/// Any number that nothing else locks.
const LOCK: i64 = 0x5e1e_7501;

/// More tenants than these are not named to whoever follows; the revision has them all.
const NAMED: usize = 100;

/// What kind of thing has happened.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, utoipa::ToSchema, clap::ValueEnum,
)]
pub enum EventKind {
    /// The configuration was changed.
    #[serde(rename = "revision")]
    #[value(name = "revision")]
    Revision,
    #[serde(rename = "node.connected")]
    #[value(name = "node.connected")]
    NodeConnected,
    #[serde(rename = "node.left")]
    #[value(name = "node.left")]
    NodeLeft,
    /// A node has come to another revision.
    #[serde(rename = "node.applied")]
    #[value(name = "node.applied")]
    NodeApplied,
    /// A node refuses a document that it did not refuse before.
    #[serde(rename = "node.refused")]
    #[value(name = "node.refused")]
    NodeRefused,
    /// Somebody was refused something; for auditors.
    #[serde(rename = "audit.refused")]
    #[value(name = "audit.refused")]
    AuditRefused,
    #[serde(rename = "alert.opened")]
    #[value(name = "alert.opened")]
    AlertOpened,
    #[serde(rename = "alert.acknowledged")]
    #[value(name = "alert.acknowledged")]
    AlertAcknowledged,
    #[serde(rename = "alert.resolved")]
    #[value(name = "alert.resolved")]
    AlertResolved,
}

impl EventKind {
    pub const ALL: [Self; 9] = [
        Self::Revision,
        Self::NodeConnected,
        Self::NodeLeft,
        Self::NodeApplied,
        Self::NodeRefused,
        Self::AuditRefused,
        Self::AlertOpened,
        Self::AlertAcknowledged,
        Self::AlertResolved,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revision => "revision",
            Self::NodeConnected => "node.connected",
            Self::NodeLeft => "node.left",
            Self::NodeApplied => "node.applied",
            Self::NodeRefused => "node.refused",
            Self::AuditRefused => "audit.refused",
            Self::AlertOpened => "alert.opened",
            Self::AlertAcknowledged => "alert.acknowledged",
            Self::AlertResolved => "alert.resolved",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Who may see it at all.
    pub fn least_role(self) -> Role {
        match self {
            Self::AuditRefused => Role::Auditor,
            _ => Role::Viewer,
        }
    }
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Event {
    pub number: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    pub kind: EventKind,
    /// The tenants that it concerns, as far as the reader may see them; a hundred are named. None: no tenant in particular.
    #[schema(value_type = Option<Vec<String>>)]
    pub tenants: Option<Vec<Id>>,
    #[schema(value_type = Object)]
    pub detail: Value,
}

/// Something that happens right now.
#[derive(Debug)]
pub(super) struct NewEvent {
    pub(super) kind: EventKind,
    pub(super) tenants: Option<Vec<String>>,
    pub(super) detail: Value,
}

impl NewEvent {
    pub(super) fn new(kind: EventKind, detail: Value) -> Self {
        Self { kind, tenants: None, detail }
    }

    pub(super) fn about(kind: EventKind, tenant: Option<&str>, detail: Value) -> Self {
        Self { kind, tenants: tenant.map(|tenant| vec![tenant.to_owned()]), detail }
    }
}

/// Which events somebody sees: those they may, and of these those they asked for.
#[derive(Debug, Clone)]
pub struct Sight {
    pub role: Role,
    /// None: all tenants, and what concerns none in particular.
    pub tenants: Option<BTreeSet<Id>>,
    /// None: all kinds.
    pub kinds: Option<BTreeSet<EventKind>>,
    /// Only what concerns this tenant.
    pub tenant: Option<Id>,
}

impl Sight {
    /// The event, as it is seen; none, if it is not.
    pub fn show(&self, event: &Event) -> Option<Event> {
        if self.role < event.kind.least_role() || self.kinds.as_ref().is_some_and(|kinds| !kinds.contains(&event.kind))
        {
            return None;
        }
        let is_seen = |id: &&Id| {
            self.tenants.as_ref().is_none_or(|tenants| tenants.contains(*id))
                && self.tenant.as_ref().is_none_or(|tenant| tenant == *id)
        };
        let tenants = match &event.tenants {
            None if self.tenants.is_none() && self.tenant.is_none() => None,
            None => return None,
            Some(tenants) => {
                let seen: Vec<Id> = tenants.iter().filter(is_seen).take(NAMED).cloned().collect();
                if seen.is_empty() {
                    return None;
                }
                Some(seen)
            }
        };
        let detail = match event.kind {
            // Of a change that concerns others too, no more than that there was one.
            EventKind::Revision if self.tenants.is_some() => {
                json!({ "revision": event.detail["revision"], "action": event.detail["action"] })
            }
            _ => event.detail.clone(),
        };
        Some(Event { number: event.number, at: event.at, kind: event.kind, tenants, detail })
    }
}

/// What is new, for everybody in this process.
#[derive(Debug)]
pub(super) struct Bus {
    wake: watch::Sender<()>,
    out: broadcast::Sender<Arc<Event>>,
    newest: AtomicU64,
    told: mpsc::Sender<NewEvent>,
}

impl Bus {
    /// And what is to be given to [`write_told`].
    pub(super) fn new() -> (Self, mpsc::Receiver<NewEvent>) {
        let (told, to_write) = mpsc::channel(BEHIND);
        let (wake, out) = (watch::Sender::new(()), broadcast::Sender::new(BEHIND));
        (Self { wake, out, newest: AtomicU64::new(0), told }, to_write)
    }

    pub(super) fn wake(&self) {
        self.wake.send_replace(());
    }
}

/// Hands out what is new, for as long as somebody holds the store.
pub(super) async fn relay(store: Weak<Inner>) {
    let Some(inner) = store.upgrade() else { return };
    let mut wake = inner.events.wake.subscribe();
    drop(inner);
    let mut last = None;
    loop {
        let Some(inner) = store.upgrade() else { return };
        // The poll of the revision tells if the store is away.
        if let Ok(now) = hand_out(&Store(inner), last).await {
            last = Some(now);
        }
        tokio::select! {
            // Its end is seen above.
            _ = wake.changed() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

async fn hand_out(store: &Store, last: Option<u64>) -> Result<u64, StoreError> {
    let Some(mut last) = last else {
        let newest = store.newest_event().await?;
        store.0.events.newest.store(newest, Ordering::Relaxed);
        return Ok(newest);
    };
    loop {
        let events = store.events_after(last, BATCH as u64).await?;
        let is_all = events.len() < BATCH;
        for event in events {
            last = event.number;
            store.0.events.newest.store(last, Ordering::Relaxed);
            // Nobody may be there.
            let _ = store.0.events.out.send(Arc::new(event));
        }
        if is_all {
            return Ok(last);
        }
    }
}

/// Writes what is told of nodes, as much at a time as there is, for as long as somebody holds the store.
pub(super) async fn write_told(store: Weak<Inner>, mut told: mpsc::Receiver<NewEvent>) {
    let mut events = Vec::new();
    while told.recv_many(&mut events, BATCH).await > 0 {
        let Some(inner) = store.upgrade() else { return };
        if let Err(error) = Store(inner).write_events(std::mem::take(&mut events)).await {
            tracing::warn!(%error, "events of nodes are not told");
        }
    }
}

impl Store {
    /// Events after a number, the oldest first.
    pub async fn events_after(&self, after: u64, most: u64) -> Result<Vec<Event>, StoreError> {
        let find = event::Entity::find().filter(event::Column::Number.gt(signed(after)));
        let find = find.order_by_asc(event::Column::Number).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(event_of).collect() }).await
    }

    /// The number of the last event; 0, if there never was one.
    pub async fn newest_event(&self) -> Result<u64, StoreError> {
        within(PATIENCE, async { Ok(number(last_number(&self.0.database).await?)) }).await
    }

    /// Everything after an event, and what comes then; without one, what comes from now on.
    pub async fn follow(&self, after: Option<u64>) -> Result<Following, StoreError> {
        let live = self.0.events.out.subscribe();
        let newest = self.newest_event().await?;
        Ok(Following {
            store: self.clone(),
            // A number that does not exist yet is of another store.
            last: after.map_or(newest, |after| after.min(newest)),
            read: VecDeque::new(),
            is_level: false,
            live,
        })
    }

    /// Removes the oldest where there are too many.
    pub async fn forget_events(&self) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let last = last_number(&self.0.database).await?;
            let _turn = self.0.turn.lock().await;
            let forget = event::Entity::delete_many().filter(event::Column::Number.lte(last - signed(KEPT)));
            forget.exec(&self.0.database).await?;
            Ok(())
        })
        .await
    }

    /// What happens to nodes. It is written later and by itself ([`write_told`]): no node waits for it, and that a server
    /// falls in between loses no more than a line.
    pub(super) fn tell(&self, events: impl IntoIterator<Item = NewEvent>) {
        for event in events {
            if let Err(error) = self.0.events.told.try_send(event) {
                tracing::warn!(%error, "an event is not told");
            }
        }
    }

    async fn write_events(&self, events: Vec<NewEvent>) -> Result<(), StoreError> {
        within(PATIENCE_FOR_ALL, async {
            let _turn = self.0.turn.lock().await;
            let transaction = self.0.database.begin().await?;
            if transaction.get_database_backend() == DbBackend::Postgres {
                // The lock is kept for no longer than it takes in memory: changes need it too.
                transaction.execute_unprepared("SET LOCAL synchronous_commit TO off").await?;
            }
            emit(&transaction, OffsetDateTime::now_utc(), events).await?;
            transaction.commit().await?;
            self.0.events.wake();
            Ok(())
        })
        .await
    }

    pub(super) fn learn_event(&self) {
        self.0.events.wake();
    }
}

/// Writes events; they are the last thing that a transaction does, since others wait for their numbers.
pub(super) async fn emit(
    transaction: &DatabaseTransaction,
    now: OffsetDateTime,
    events: Vec<NewEvent>,
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let is_postgres = transaction.get_database_backend() == DbBackend::Postgres;
    if is_postgres {
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    }
    let last = last_number(transaction).await?;
    let row = |(number, new): (i64, NewEvent)| event::Model {
        number,
        at: now,
        kind: new.kind.as_str().to_owned(),
        tenants: new.tenants.map(|tenants| json!(tenants).to_string()),
        detail: new.detail.to_string(),
    };
    let rows = (last + 1..).zip(events).map(row).map(|row| row.into_active_model().reset_all());
    event::Entity::insert_many(rows).exec_without_returning(transaction).await?;
    if is_postgres {
        transaction.execute_unprepared(&format!("SELECT pg_notify('{EVENT_CHANNEL}', '')")).await?;
    }
    Ok(())
}

async fn last_number(connection: &impl ConnectionTrait) -> Result<i64, StoreError> {
    let find = event::Entity::find().select_only().column_as(event::Column::Number.max(), "number");
    Ok(find.into_tuple::<Option<i64>>().one(connection).await?.flatten().unwrap_or_default())
}

/// What is kept, from one event on.
pub struct Following {
    store: Store,
    last: u64,
    read: VecDeque<Event>,
    /// Whether everything that the store had was read.
    is_level: bool,
    live: broadcast::Receiver<Arc<Event>>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("last", &self.last).finish_non_exhaustive()
    }
}

/// The next thing to tell.
#[derive(Debug, Clone)]
pub enum Next {
    Event(Arc<Event>),
    /// Events after `after` and before `next` are not kept any more.
    Missed {
        after: u64,
        next: u64,
    },
    /// There is nothing more yet.
    Level,
}

impl Following {
    /// Everything up to this event was given.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What there is, without waiting.
    pub async fn kept(&mut self) -> Result<Next, StoreError> {
        if self.read.is_empty() {
            self.read = self.store.events_after(self.last, BATCH as u64).await?.into();
        }
        let Some(event) = self.read.front() else {
            self.is_level = true;
            return Ok(Next::Level);
        };
        if event.number > self.last + 1 {
            let (after, next) = (self.last, event.number);
            self.last = next - 1;
            return Ok(Next::Missed { after, next });
        }
        self.last = event.number;
        // It is there: it was looked at.
        Ok(self.read.pop_front().map_or(Next::Level, |event| Next::Event(Arc::new(event))))
    }

    /// What there is, or what comes next. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Next, StoreError> {
        loop {
            if !self.is_level {
                match self.kept().await? {
                    Next::Level => {}
                    next => return Ok(next),
                }
            }
            match self.live.recv().await {
                Ok(event) if event.number <= self.last => {}
                Ok(event) if event.number == self.last + 1 => {
                    self.last = event.number;
                    return Ok(Next::Event(event));
                }
                // Some were passed over: the store has them.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.is_level = false,
                // The store goes away with the process.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn event_of(row: event::Model) -> Result<Event, StoreError> {
    let corrupt = |why: &dyn std::fmt::Display| StoreError::corrupt(format!("event {}", row.number), &why);
    let tenants = row.tenants.as_deref().map(serde_json::from_str).transpose().map_err(|why| corrupt(&why))?;
    Ok(Event {
        number: number(row.number),
        at: row.at,
        kind: EventKind::parse(&row.kind).ok_or_else(|| corrupt(&row.kind))?,
        tenants,
        detail: serde_json::from_str(&row.detail).map_err(|why| corrupt(&why))?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ids(names: &[&str]) -> Vec<Id> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn event(kind: EventKind, tenants: Option<&[&str]>) -> Event {
        let at = OffsetDateTime::UNIX_EPOCH;
        Event { number: 1, at, kind, tenants: tenants.map(ids), detail: json!({}) }
    }

    fn sight(role: Role, tenants: Option<&[&str]>) -> Sight {
        Sight { role, tenants: tenants.map(|names| ids(names).into_iter().collect()), kinds: None, tenant: None }
    }

    #[test]
    fn everybody_sees_what_concerns_their_tenants_and_their_role() {
        let of_two = event(EventKind::Revision, Some(&["acme", "globex"]));
        let of_none = event(EventKind::NodeLeft, None);
        let refusal = event(EventKind::AuditRefused, None);
        let all = sight(Role::Viewer, None);
        let globex = sight(Role::Owner, Some(&["globex"]));
        assert_eq!(all.show(&of_two).unwrap().tenants, of_two.tenants);
        assert_eq!(globex.show(&of_two).unwrap().tenants, Some(ids(&["globex"])));
        assert!(sight(Role::Owner, Some(&["initech"])).show(&of_two).is_none());
        assert!(all.show(&of_none).is_some() && globex.show(&of_none).is_none());
        assert!(all.show(&refusal).is_none() && sight(Role::Auditor, None).show(&refusal).is_some());
        let asked = Sight { tenant: Some("acme".parse().unwrap()), ..all.clone() };
        assert_eq!(asked.show(&of_two).unwrap().tenants, Some(ids(&["acme"])));
        assert!(asked.show(&of_none).is_none());
        let asked = Sight { kinds: Some([EventKind::NodeLeft].into()), ..all };
        assert!(asked.show(&of_two).is_none() && asked.show(&of_none).is_some());
    }

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
