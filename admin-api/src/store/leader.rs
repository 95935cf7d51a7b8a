//! Which replica does what only one may do at a time: the one that holds a lock of the database. The lock goes with the
//! connection that it was taken on, and so with the replica.

use std::{fmt, time::Duration};

use sea_orm::DbBackend;
use sqlx::PgConnection;
use tokio::time::timeout;

use super::{Store, StoreError};

/// Any number that nothing else locks. It is another one where a replica of the release before could not do the work any
/// more: that one leads its own kind, until it ends, and holds up nobody.
const LOCK: i64 = 0x5e1e_7504;

/// To hear from the connection with the lock. Whoever does not is no leader: another one may have been made.
const ANSWER: Duration = Duration::from_millis(1500);

/// Whether this replica leads.
pub struct Leader {
    store: Store,
    lock: Option<PgConnection>,
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader").field("leads", &self.lock.is_some()).finish_non_exhaustive()
    }
}

impl Store {
    /// One that leads as soon as no other replica does.
    pub fn leader(&self) -> Leader {
        Leader { store: self.clone(), lock: None }
    }
}

impl Leader {
    /// Whether this replica leads now. SQLite has one process, which does.
    pub async fn leads(&mut self) -> bool {
        if self.store.0.database.get_database_backend() != DbBackend::Postgres {
            return true;
        }
        if let Some(connection) = &mut self.lock {
            if let Ok(Ok(_)) = timeout(ANSWER, sqlx::query("SELECT 1").execute(connection)).await {
                return true;
            }
            tracing::warn!("the connection is gone that this replica led by");
            self.lock = None;
        }
        matches!(timeout(ANSWER, self.take()).await, Ok(Ok(true)))
    }

    async fn take(&mut self) -> Result<bool, StoreError> {
        let mut connection = self.store.0.database.get_postgres_connection_pool().acquire().await?;
        let is_taken: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut *connection).await?;
        if is_taken {
            tracing::info!("this replica leads now");
            self.lock = Some(connection.detach());
        }
        Ok(is_taken)
    }
}
