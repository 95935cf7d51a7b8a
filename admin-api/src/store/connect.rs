//! The connection, and what comes over it unasked: that another replica has written.

use std::{str::FromStr, sync::Weak, time::Duration};

use sea_orm::{DatabaseConnection, DbBackend, EntityTrait, SqlxPostgresConnector};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Inner, Store, StoreError, entities::control, events, number, secrets::KeySource};

/// Channels of Postgres. What is said there is only that there is something to read.
pub(super) const REVISION_CHANNEL: &str = "seiketsu_revision";
pub(super) const APPLIED_CHANNEL: &str = "seiketsu_applied";
pub(super) const EVENT_CHANNEL: &str = "seiketsu_event";

const CONNECTIONS: u32 = 16;

/// To get a connection, or make one. Less than a request waits altogether.
const ACQUIRE: Duration = Duration::from_millis(1500);

/// How often the revision is read, in case a notification is lost.
const POLL: Duration = Duration::from_secs(1);

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
        return postgres(url);
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

fn postgres(url: &str) -> Result<DatabaseConnection, StoreError> {
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
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE).connect_lazy_with(options);
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Keeps the store's idea of the newest revision up to date for as long as somebody holds the store.
pub(super) fn watch(store: &Store) {
    let weak = std::sync::Arc::downgrade(&store.0);
    tokio::spawn(poll(weak.clone()));
    tokio::spawn(events::relay(weak.clone()));
    if store.0.database.get_database_backend() == DbBackend::Postgres {
        tokio::spawn(listen(weak));
    }
}

async fn poll(store: Weak<Inner>) {
    let (mut reachable, mut opens) = (true, true);
    loop {
        tokio::time::sleep(POLL).await;
        let Some(inner) = store.upgrade() else { return };
        let read = control::Entity::find().one(&inner.database).await;
        match &read {
            Ok(Some(control)) => {
                let store = Store(inner);
                store.learn(number(control.revision));
                let learned = store.learn_keys(&store.0.database).await;
                if let Err(error) = &learned
                    && opens
                {
                    tracing::error!(%error, "what is sealed from now on cannot be opened here");
                }
                opens = learned.is_ok();
            }
            Err(error) if reachable => tracing::warn!(%error, "the store cannot be reached"),
            Ok(None) | Err(_) => {}
        }
        if read.is_ok() && !reachable {
            tracing::info!("the store can be reached again");
        }
        reachable = read.is_ok();
    }
}

async fn listen(store: Weak<Inner>) {
    loop {
        // The poll tells why it does not work, and makes good what is missed meanwhile.
        let _ = hear(&store).await;
        if store.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn hear(store: &Weak<Inner>) -> Result<(), sqlx::Error> {
    let Some(inner) = store.upgrade() else { return Ok(()) };
    let mut listener = PgListener::connect_with(inner.database.get_postgres_connection_pool()).await?;
    drop(inner);
    listener.listen_all([REVISION_CHANNEL, APPLIED_CHANNEL, EVENT_CHANNEL]).await?;
    loop {
        let heard = listener.recv().await?;
        let Some(inner) = store.upgrade() else { return Ok(()) };
        match heard.channel() {
            APPLIED_CHANNEL => Store(inner).learn_applied(),
            EVENT_CHANNEL => Store(inner).learn_event(),
            _ => {
                if let Ok(revision) = heard.payload().parse() {
                    Store(inner).learn(revision);
                }
            }
        }
    }
}
