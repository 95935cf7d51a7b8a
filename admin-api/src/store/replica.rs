//! A read replica: usage and analytics are read from it while it is near enough to the primary, and from the primary
//! otherwise.
//!
//! How far it lags is measured without its clock, and holds also if it no longer hears of the primary: every second it is
//! noted where the primary is in its log of writes. The replica is as old as the last such place that it has come to.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{Gauge, IntCounter, IntCounterVec, Opts, Registry};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use secrecy::SecretString;

use super::{Inner, PATIENCE, Store, StoreError, connect, within};

/// To read much.
const PATIENCE_TO_READ: Duration = Duration::from_secs(10);

/// How often it is looked how far the replica is.
const LOOK: Duration = Duration::from_secs(1);

/// Where a replica is, and how near it must be.
#[derive(Debug, Clone)]
pub struct ReplicaSettings {
    /// `postgres://…`. It may hold a password.
    pub url: SecretString,
    pub most_lag: Duration,
}

pub(super) struct Replica {
    database: DatabaseConnection,
    most_lag: Duration,
    /// The time whose state it has; none while that is not known.
    state_of: Mutex<Option<Instant>>,
    lag: Gauge,
    reads: IntCounter,
    fallen_back: IntCounter,
}

impl Store {
    /// Reads usage from a replica from now on, whenever that is near enough. Once.
    pub fn read_from(&self, settings: &ReplicaSettings, registry: &Registry) -> Result<(), ReplicaError> {
        if self.0.database.get_database_backend() != DbBackend::Postgres {
            return Err(ReplicaError::NotPostgres);
        }
        let reads = IntCounterVec::new(
            Opts::new(
                "seiketsu_store_reads_total",
                "Reads of usage, by where: the replica, or the primary in its place.",
            ),
            &["from"],
        )?;
        let lag =
            Gauge::new("seiketsu_store_replica_lag_seconds", "How far the replica lags; -1 while that is not known.")?;
        lag.set(-1.0);
        registry.register(Box::new(reads.clone()))?;
        registry.register(Box::new(lag.clone()))?;
        let replica = Arc::new(Replica {
            database: connect::open_replica(&settings.url)?,
            most_lag: settings.most_lag,
            state_of: Mutex::new(None),
            lag,
            reads: reads.with_label_values(&["replica"]),
            fallen_back: reads.with_label_values(&["primary"]),
        });
        tokio::spawn(watch(Arc::downgrade(&self.0), Arc::clone(&replica)));
        // A second one would be a fault of this program.
        let _ = self.0.replica.set(replica);
        Ok(())
    }

    /// How far the replica is behind; none, if there is none.
    pub fn replica_lag(&self) -> Option<ReplicaLag> {
        let state_of = *self.0.replica.get()?.state_of.lock();
        Some(state_of.map_or(ReplicaLag::Unknown, |state_of| ReplicaLag::Behind(state_of.elapsed())))
    }

    /// Reads from the replica, if there is one that is near enough and answers, and else from the primary.
    pub(super) async fn read<T, Work, Reading>(&self, work: Work) -> Result<T, StoreError>
    where
        Work: Fn(DatabaseConnection) -> Reading,
        Reading: Future<Output = Result<T, StoreError>> + Send,
    {
        if let Some(replica) = self.0.replica.get() {
            if replica.is_near() {
                match within(PATIENCE_TO_READ, work(replica.database.clone())).await {
                    Ok(read) => {
                        replica.reads.inc();
                        return Ok(read);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the replica gives no answer; the primary is asked in its place");
                        *replica.state_of.lock() = None;
                    }
                }
            }
            replica.fallen_back.inc();
        }
        within(PATIENCE_TO_READ, work(self.0.database.clone())).await
    }
}

/// How far a replica is behind the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaLag {
    Behind(Duration),
    /// It gives no answer, or does not follow the primary.
    Unknown,
}

/// Why a replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("a replica is for a store in Postgres: set DATABASE_URL, or leave DATABASE_REPLICA_URL out")]
    NotPostgres,
    #[error("DATABASE_REPLICA_URL: {0}")]
    Url(#[from] StoreError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

impl Replica {
    fn is_near(&self) -> bool {
        self.state_of.lock().is_some_and(|state_of| state_of.elapsed() <= self.most_lag)
    }
}

async fn watch(store: Weak<Inner>, replica: Arc<Replica>) {
    let mut places: VecDeque<(Instant, i64)> = VecDeque::new();
    let mut told = None;
    loop {
        let Some(inner) = store.upgrade() else { return };
        let looked = look(&inner.database, &replica.database, &mut places).await;
        drop(inner);
        let state_of = looked.as_ref().ok().copied();
        *replica.state_of.lock() = state_of;
        replica.lag.set(state_of.map_or(-1.0, |state_of| state_of.elapsed().as_secs_f64()));
        let is_near = replica.is_near();
        if told != Some(is_near) {
            match looked {
                Ok(_) if is_near => tracing::info!("the replica is near enough: usage is read from it"),
                Ok(_) => {
                    tracing::warn!(most = ?replica.most_lag, "the replica lags too far: usage is read from the primary");
                }
                Err(error) => tracing::warn!(%error, "the replica cannot be used: usage is read from the primary"),
            }
        }
        told = Some(is_near);
        tokio::time::sleep(LOOK).await;
    }
}

/// The last time whose state the replica has.
async fn look(
    primary: &DatabaseConnection,
    replica: &DatabaseConnection,
    places: &mut VecDeque<(Instant, i64)>,
) -> Result<Instant, StoreError> {
    let now = Instant::now();
    // While the primary is away nothing more is noted, and the replica ages.
    if let Ok(Some(place)) = place(primary, "pg_current_wal_lsn()").await {
        places.push_back((now, place));
    }
    let there = place(replica, "pg_last_wal_replay_lsn()").await?;
    let there = there.ok_or_else(|| StoreError::corrupt("the replica", &"it is none: nothing is replayed there"))?;
    while places.get(1).is_some_and(|(_, place)| *place <= there) {
        places.pop_front();
    }
    // Of one that has stopped, no more need be remembered than that it has.
    while places.len() > 3600 {
        places.remove(1);
    }
    match places.front() {
        Some((at, place)) if *place <= there => Ok(*at),
        _ => Err(StoreError::corrupt("the replica's place", &"it has not come to where the primary was first seen")),
    }
}

async fn place(database: &DatabaseConnection, function: &str) -> Result<Option<i64>, StoreError> {
    let sql = format!("SELECT CAST({function} - '0/0'::pg_lsn AS BIGINT) AS place");
    within(PATIENCE, async {
        let row = database.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
        Ok(row.map(|row| row.try_get("", "place")).transpose()?.flatten())
    })
    .await
}
