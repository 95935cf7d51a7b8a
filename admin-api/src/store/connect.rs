//! The connection, and what comes over it unasked: that another replica has written.

use std::{
    io,
    str::FromStr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sea_orm::{DatabaseConnection, DbBackend, EntityTrait, QuerySelect, SqlxPostgresConnector};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    pool::PoolConnectionMetadata,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Inner, PATIENCE, Store, StoreError, entities::control, events, number, secrets::KeySource, within};

/// Channels of Postgres. What is said there is only that there is something to read.
pub(super) const REVISION_CHANNEL: &str = "seiketsu_revision";
pub(super) const APPLIED_CHANNEL: &str = "seiketsu_applied";
pub(super) const ORDER_CHANNEL: &str = "seiketsu_order";
pub(super) const EVENT_CHANNEL: &str = "seiketsu_event";

const CONNECTIONS: u32 = 16;

/// To get a connection, or make one. Less than a request waits altogether.
const ACQUIRE: Duration = Duration::from_millis(1500);
const ACQUIRE_OF_REPLICA: Duration = Duration::from_millis(500);

/// To answer whether the connection is there at all. A network that drops what is sent says nothing for a quarter of an
/// hour.
const PING: Duration = Duration::from_millis(500);

/// A connection that was used a moment ago is not asked.
const FRESH: Duration = Duration::from_secs(1);

/// How often the state is read, in case a notification is lost.
const POLL: Duration = Duration::from_secs(1);

/// How long nothing may be heard before it is asked whether anything could be.
const QUIET: Duration = Duration::from_secs(5);

/// Where the store is.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// `sqlite:PATH`, or `postgres://USER:PASSWORD@HOST/DATABASE`. It may hold a password.
    pub url: SecretString,
    /// What the data keys are wrapped with.
    pub key: KeySource,
}

pub(super) fn open(settings: &StoreSettings) -> Result<DatabaseConnection, StoreError> {
    let url = settings.url.expose_secret();
    if let Some(path) = url.strip_prefix("sqlite:") {
        return Ok(sqlite(path.trim_start_matches("//")));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return postgres(url, ACQUIRE);
    }
    // Only what stands before the colon: the rest may be a password.
    Err(StoreError::Url { url: url.split_once(':').map_or("it", |(scheme, _)| scheme).to_owned() })
}

fn sqlite(path: &str) -> DatabaseConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A change that was answered is on the disk.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(ACQUIRE)
        .disable_statement_logging();
    let pool =
        SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE).connect_lazy_with(options);
    pool.into()
}

/// A replica is waited for much less: the primary can be asked in its place.
pub(super) fn open_replica(url: &SecretString) -> Result<DatabaseConnection, StoreError> {
    postgres(url.expose_secret(), ACQUIRE_OF_REPLICA)
}

fn postgres(url: &str, acquire: Duration) -> Result<DatabaseConnection, StoreError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Url { url: "what follows postgres:".to_owned() })?
        .application_name("seiketsu-admin")
        // So that nothing here, and nothing that a replica left behind when it died, holds others up for long.
        .options([
            ("statement_timeout", "15s"),
            ("lock_timeout", "1500ms"),
            ("idle_in_transaction_session_timeout", "60s"),
        ])
        .disable_statement_logging();
    let cut = Arc::default();
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(acquire)
        // Its own test waits as long as it takes.
        .test_before_acquire(false)
        .before_acquire(move |connection, used| Box::pin(is_there(connection, used, Arc::clone(&cut))))
        .after_release(|connection, _| Box::pin(async { ping(connection).await.map(|()| true) }))
        .connect_lazy_with(options);
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Whether a connection can be used that was idle. An error closes it without another word to the server.
async fn is_there(
    connection: &mut PgConnection,
    used: PoolConnectionMetadata,
    cut: Arc<Mutex<Option<Instant>>>,
) -> Result<bool, sqlx::Error> {
    // What cut one connection off has cut off those that were there then.
    let is_older = cut.lock().is_some_and(|cut| used.age > cut.elapsed());
    if is_older {
        return Err(silent());
    }
    if used.idle_for < FRESH {
        return Ok(true);
    }
    if let Err(error) = ping(connection).await {
        *cut.lock() = Some(Instant::now());
        return Err(error);
    }
    Ok(true)
}

async fn ping(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    timeout(PING, connection.ping()).await.unwrap_or_else(|_| Err(silent()))
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"))
}

/// Keeps the store's idea of its newest state up to date for as long as somebody holds the store.
pub(super) fn watch(store: &Store, told: mpsc::Receiver<events::NewEvent>) {
    let weak = Arc::downgrade(&store.0);
    tokio::spawn(poll(weak.clone()));
    tokio::spawn(events::relay(weak.clone()));
    tokio::spawn(events::write_told(weak.clone(), told));
    if store.0.database.get_database_backend() == DbBackend::Postgres {
        tokio::spawn(listen(weak));
    }
}

async fn poll(store: Weak<Inner>) {
    let Some(told) = store.upgrade().map(|inner| Arc::clone(&inner.look_again)) else { return };
    let (mut reachable, mut opens, mut caught_up) = (true, true, Instant::now());
    loop {
        let _ = timeout(POLL, told.notified()).await;
        let Some(inner) = store.upgrade() else { return };
        let store = Store(inner);
        // Bounded: the store answers within its patience or not at all.
        let looked = store.look().await;
        match &looked {
            Err(error) if reachable => tracing::warn!(%error, "the store cannot be reached"),
            Ok(()) if !reachable => tracing::info!("the store can be reached again"),
            _ => {}
        }
        reachable = looked.is_ok();
        store.write_nodes().await;
        // What is told of a change must not wait for what changes rarely.
        if reachable && caught_up.elapsed() >= POLL {
            caught_up = Instant::now();
            opens = catch_up(&store, opens).await;
        }
    }
}

/// Keys and orders that other replicas have made. Whether the keys can be used here, as they could before or not.
async fn catch_up(store: &Store, opened: bool) -> bool {
    let learned = within(PATIENCE, store.learn_keys(&store.0.database)).await;
    if let Err(error) = &learned
        && opened
    {
        tracing::error!(%error, "what is sealed from now on cannot be opened here");
    }
    let newest = control::Entity::find().select_only().column(control::Column::Orders);
    if let Ok(Some(newest)) = newest.into_tuple().one(&store.0.database).await {
        store.learn_orders(number(newest));
    }
    learned.is_ok()
}

async fn listen(store: Weak<Inner>) {
    loop {
        // The poll tells why it does not work, and makes good what is missed meanwhile.
        let _ = hear(&store).await;
        if store.strong_count() == 0 {
            return;
        }
        sleep(POLL).await;
    }
}

async fn hear(store: &Weak<Inner>) -> Result<(), sqlx::Error> {
    let Some(inner) = store.upgrade() else { return Ok(()) };
    let pool = inner.database.get_postgres_connection_pool();
    let begin = async {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all([REVISION_CHANNEL, APPLIED_CHANNEL, ORDER_CHANNEL, EVENT_CHANNEL]).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let mut listener = timeout(ACQUIRE, begin).await.unwrap_or_else(|_| Err(silent()))?;
    drop(inner);
    loop {
        let Ok(heard) = timeout(QUIET, listener.recv()).await else {
            let asked = sqlx::query("SELECT 1").execute(&mut listener);
            timeout(ACQUIRE, asked).await.unwrap_or_else(|_| Err(silent()))?;
            continue;
        };
        let heard = heard?;
        let Some(inner) = store.upgrade() else { return Ok(()) };
        match heard.channel() {
            APPLIED_CHANNEL => Store(inner).learn_applied(),
            ORDER_CHANNEL => {
                if let Ok(newest) = heard.payload().parse() {
                    Store(inner).learn_orders(newest);
                }
            }
            EVENT_CHANNEL => Store(inner).learn_event(),
            _ => inner.look_again.notify_one(),
        }
    }
}
