//! What the control plane knows, in SQLite or Postgres, with one code for both.
//!
//! Whatever changes takes its turn at one locked row (`writing`), so that changes, revisions and audit entries have one
//! order; a change, its revision and its audit entry are one transaction. Documents are written by [`documents`] alone.

pub mod alert_rules;
pub mod alerts;
pub mod audit;
mod connect;
pub mod consumers;
mod cursors;
pub mod deliveries;
pub mod documents;
mod entities;
mod error;
pub mod events;
pub mod gateway_config;
pub mod keeping;
pub mod keys;
mod known;
mod leader;
mod migrations;
mod node_memory;
pub mod nodes;
pub mod operators;
pub mod orders;
pub mod performance;
mod place;
pub mod replica;
pub mod revisions;
pub mod routes;
pub(crate) mod rows;
pub mod seals;
pub mod secrets;
pub mod services;
pub mod siem;
mod tables;
pub mod tenants;
pub mod tokens;
pub mod usage;
pub mod verify;
pub mod webhooks;
mod writing;

use std::{
    any::Any,
    collections::{BTreeSet, HashSet},
    fmt,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::FutureExt as _;
use parking_lot::RwLock;
use sea_orm::{
    AccessMode, ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait,
    IsolationLevel, QueryFilter, QueryOrder, QuerySelect, TransactionTrait,
};
use seiketsu_config::values::Id;
use tokio::sync::{Mutex, Notify, Semaphore, watch};

pub use self::{
    connect::StoreSettings,
    documents::{Answer, ChangeSet, Changes, Expected, HeadDocument, StoredDocument, WriteError, Written},
    error::{Invalid, StoreError},
    place::{Place, Seen},
    writing::{Author, Once, Principal, Remembered},
};
use self::{
    entities::{control, revision_change, tenant},
    known::Known,
    node_memory::NodeMemory,
};
use crate::limit::Limiter;

/// How long an ordinary request waits for the store. Whoever asks shall be told soon that it is away.
const PATIENCE: Duration = Duration::from_millis(1800);

/// How long work on all documents may take.
const PATIENCE_FOR_ALL: Duration = Duration::from_mins(10);

/// Nodes whose usage is written at the same time, so that it leaves connections to everything else.
const USAGE_WRITERS: usize = 2;

/// Rows that are read, or written, by one statement.
const BATCH: usize = 500;

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    database: DatabaseConnection,
    known: Known,
    /// There may be something new.
    look_again: Arc<Notify>,
    /// Moved on whenever a node has applied something.
    applied: watch::Sender<u64>,
    /// The number of the newest order.
    orders: watch::Sender<u64>,
    /// Whose turn it is to write, in this process: others wait here, and not with a connection each.
    turn: Mutex<()>,
    keys: RwLock<secrets::Keys>,
    /// Pages of usage that are written at a time.
    usage_writers: Semaphore,
    replica: OnceLock<Arc<replica::Replica>>,
    events: events::Bus,
    /// Events of each node.
    told_of: Limiter<Id>,
    /// Callers that usage is told apart by.
    callers: usage::Callers,
    /// On SQLite, whose only process this is.
    nodes: Option<NodeMemory>,
    /// All nodes, as they were read last by somebody who waits for them.
    nodes_lately: nodes::Lately,
    /// Moved on whenever a token was removed here.
    revoked: watch::Sender<u64>,
    trail: seals::TrailKeys,
    /// Rows that were refused, and when the trail was told of it.
    refused: rows::Refused,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, and brings its tables up to date. Keeps watching for what other replicas write.
    pub async fn connect(settings: &StoreSettings) -> Result<Self, StoreError> {
        let database = connect::open(settings)?;
        let transaction = database.begin().await?;
        let taken = migrations::run(&transaction).await?;
        let mut control = writing::control_or_first(&transaction).await?;
        let keys = secrets::open_or_first(&transaction, &settings.key).await?;
        secrets::bind_to_receivers(&transaction, &keys).await?;
        let (chain, is_new) = secrets::open_or_make(&transaction, &keys, secrets::AUDIT_CHAIN).await?;
        let (seal, _) = secrets::open_or_make(&transaction, &keys, secrets::AUDIT_SEAL).await?;
        let trail = seals::TrailKeys::new(*control.trail.get_or_insert(control.store), &chain, &seal)?;
        if is_new {
            taken.is_needed(migrations::AUDIT_SEALS, "the key of the audit trail")?;
            seals::adopt(&transaction, &trail, &control).await?;
        }
        if taken.has(migrations::ROW_MACS) {
            rows::adopt(&transaction, &trail, &mut control, is_new).await?;
        }
        transaction.commit().await?;
        let is_alone = database.get_database_backend() == DbBackend::Sqlite;
        let (events, told) = events::Bus::new();
        let store = Self(Arc::new(Inner {
            database,
            known: Known::new(known::state_of(&control)?),
            look_again: Arc::default(),
            applied: watch::Sender::new(0),
            orders: watch::Sender::new(number(control.orders)),
            turn: Mutex::new(()),
            keys: RwLock::new(keys),
            usage_writers: Semaphore::new(USAGE_WRITERS),
            replica: OnceLock::new(),
            events,
            told_of: Limiter::new(nodes::EVENTS_PER_SECOND, nodes::EVENTS_AT_ONCE),
            callers: usage::Callers::default(),
            nodes: is_alone.then(NodeMemory::default),
            nodes_lately: nodes::Lately::default(),
            revoked: watch::Sender::new(0),
            trail,
            refused: rows::Refused::default(),
        }));
        connect::watch(&store, told);
        Ok(store)
    }

    /// Changes whenever a node, of this replica or another one, has applied something.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        within(PATIENCE, async { Ok(self.0.database.ping().await?) }).await
    }

    /// What stands beside the tenants.
    pub async fn head(&self) -> Result<StoredDocument, StoreError> {
        within(PATIENCE, async { Ok(head_of(&self.control(&self.0.database).await?)) }).await
    }

    /// A tenant's document.
    pub async fn tenant(&self, id: &Id) -> Result<Option<StoredDocument>, StoreError> {
        let find = tenant::Entity::find().filter(tenant::Column::Name.eq(id.as_str()));
        within(PATIENCE, async { find.one(&self.0.database).await?.map(stored).transpose() }).await
    }

    /// Every document that has changed since a revision, as it is now, and which tenants are gone since. None if more than
    /// `most` have: then [`whole`](Self::whole) is read in less time.
    pub async fn changes_since(&self, revision: u64, most: usize) -> Result<Option<Changes>, StoreError> {
        within(PATIENCE_FOR_ALL, self.read_changes(signed(revision), most)).await
    }

    async fn read_changes(&self, after: i64, most: usize) -> Result<Option<Changes>, StoreError> {
        let transaction = self.snapshot().await?;
        let control = self.control(&transaction).await?;
        let to = known::state_of(&control)?;
        let Some(names) = changed_since(&transaction, after, most).await? else { return Ok(None) };
        let (mut put, mut gone) = (Vec::with_capacity(names.len()), Vec::new());
        for names in names.chunks(BATCH) {
            let find = tenant::Entity::find().filter(tenant::Column::Name.is_in(names));
            let rows = find.order_by_asc(tenant::Column::Name).all(&transaction).await?;
            let there: HashSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            for name in names.iter().filter(|name| !there.contains(name.as_str())) {
                gone.push(id_of(name)?);
            }
            for row in rows {
                put.push(stored(row)?);
            }
        }
        let head = (control.head_revision > after).then(|| head_of(&control));
        transaction.rollback().await?;
        Ok(Some(Changes { to, head, put, gone }))
    }

    /// All documents.
    pub async fn whole(&self) -> Result<Changes, StoreError> {
        within(PATIENCE_FOR_ALL, self.read_whole()).await
    }

    async fn read_whole(&self) -> Result<Changes, StoreError> {
        let transaction = self.snapshot().await?;
        let control = self.control(&transaction).await?;
        let to = known::state_of(&control)?;
        let (mut put, mut last) = (Vec::new(), String::new());
        loop {
            let find = tenant::Entity::find().filter(tenant::Column::Name.gt(last.as_str()));
            let rows = find.order_by_asc(tenant::Column::Name).limit(BATCH as u64 * 10).all(&transaction).await?;
            let Some(end) = rows.last() else { break };
            last.clone_from(&end.name);
            put.reserve(rows.len());
            for row in rows {
                put.push(stored(row)?);
            }
        }
        let head = Some(head_of(&control));
        transaction.rollback().await?;
        Ok(Changes { to, head, put, gone: Vec::new() })
    }

    async fn control(&self, connection: &impl ConnectionTrait) -> Result<control::Model, StoreError> {
        let control = control::Entity::find().one(connection).await?;
        control.ok_or_else(|| StoreError::corrupt("the control row", &"it is missing"))
    }

    /// A transaction that sees one state of the store throughout.
    async fn snapshot(&self) -> Result<DatabaseTransaction, StoreError> {
        Ok(match self.0.database.get_database_backend() {
            DbBackend::Postgres => {
                let (level, mode) = (IsolationLevel::RepeatableRead, AccessMode::ReadOnly);
                self.0.database.begin_with_config(Some(level), Some(mode)).await?
            }
            // With its log of writes, a transaction of SQLite always does.
            _ => self.0.database.begin().await?,
        })
    }

    fn learn_applied(&self) {
        self.0.applied.send_modify(|times| *times += 1);
    }
}

/// Tenants that changed after a revision, by name. None if there are more than `most`, or many more changes.
///
/// They are looked up in the order of revisions, by a key that begins with them. By the revisions of the tenants themselves,
/// or in the order of names, Postgres may well read all tenants: after a large import, until it has counted, it takes a third
/// of everything to be newer than anything.
async fn changed_since(
    transaction: &DatabaseTransaction,
    revision: i64,
    most: usize,
) -> Result<Option<Vec<String>>, StoreError> {
    use revision_change::Column;
    let most_changes = most.saturating_mul(10);
    let find = revision_change::Entity::find().select_only().column(Column::Tenant);
    let find = find.filter(Column::Revision.gt(revision)).filter(Column::Tenant.ne(""));
    let find = find.order_by_asc(Column::Revision).limit(most_changes.saturating_add(1) as u64);
    let names: Vec<String> = find.into_tuple().all(transaction).await?;
    if names.len() > most_changes {
        return Ok(None);
    }
    let names: BTreeSet<String> = names.into_iter().collect();
    Ok((names.len() <= most).then(|| names.into_iter().collect()))
}

fn head_of(control: &control::Model) -> StoredDocument {
    StoredDocument { tenant: None, revision: number(control.head_revision), content: control.head.clone() }
}

fn stored(row: tenant::Model) -> Result<StoredDocument, StoreError> {
    Ok(StoredDocument { tenant: Some(id_of(&row.name)?), revision: number(row.revision), content: row.content })
}

fn id_of(name: &str) -> Result<Id, StoreError> {
    name.parse().map_err(|why| StoreError::corrupt("the name of a tenant or node", &why))
}

/// Databases have no unsigned numbers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(signed: i64) -> u64 {
    u64::try_from(signed).unwrap_or_default()
}

/// Waits for the store this long and no longer. The work is boxed: all that a change needs would be carried by whoever asks
/// for one.
fn within<T, E: From<StoreError>>(
    patience: Duration,
    work: impl Future<Output = Result<T, E>> + Send,
) -> impl Future<Output = Result<T, E>> + Send {
    let work = Box::pin(work);
    async move {
        match tokio::time::timeout(patience, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(done)) => done,
            Ok(Err(fault)) if is_out_of_range(&*fault) => {
                Err(StoreError::corrupt("a row", &"a time is out of range").into())
            }
            Ok(Err(fault)) => resume_unwind(fault),
            Err(_) => Err(StoreError::Slow(patience).into()),
        }
    }
}

/// A time beyond all years, as Postgres has one (`infinity`), is a panic where it is read. All else is a fault here.
fn is_out_of_range(fault: &(dyn Any + Send)) -> bool {
    let text = fault.downcast_ref::<String>().map(String::as_str).or_else(|| fault.downcast_ref::<&str>().copied());
    text == Some("resulting value is out of range")
}
