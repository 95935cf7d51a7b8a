//! The tables, step by step. A step that a release has shipped is never changed; what comes later is a further one.
//!
//! The steps are SQL that both stores understand but for the names of types: whoever looks at a table finds it here as it
//! is.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

use super::StoreError;

const STEPS: &[&str] =
    &[include_str!("0001_first.sql"), include_str!("0002_sealing_keys.sql"), include_str!("0003_audit_seals.sql")];

/// Any number that nothing else locks.
const LOCK: i64 = 0x5e1e_7500;

/// Brings the tables up to date. Replicas that start at the same time wait for each other.
pub(super) async fn run(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let backend = transaction.get_database_backend();
    if backend == DbBackend::Postgres {
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    }
    transaction.execute_unprepared("CREATE TABLE IF NOT EXISTS schema_steps (number INTEGER PRIMARY KEY)").await?;
    let last =
        Statement::from_string(backend, "SELECT CAST(COALESCE(MAX(number), 0) AS BIGINT) AS last FROM schema_steps");
    let last: i64 = transaction.query_one_raw(last).await?.map_or(Ok(0), |row| row.try_get("", "last"))?;
    let done = usize::try_from(last).unwrap_or_default();
    if done > STEPS.len() {
        return Err(StoreError::Newer { store: done, known: STEPS.len() });
    }
    for (index, step) in STEPS.iter().enumerate().skip(done) {
        transaction.execute_unprepared(&in_dialect(step, backend)).await?;
        let number = index + 1;
        transaction.execute_unprepared(&format!("INSERT INTO schema_steps (number) VALUES ({number})")).await?;
    }
    Ok(())
}

/// The types that the two stores name differently. The names that SQLite gets say how a column is to be read.
fn in_dialect(step: &str, backend: DbBackend) -> String {
    let words = match backend {
        DbBackend::Postgres => [
            ("{uuid}", "UUID"),
            ("{new_uuid}", "DEFAULT gen_random_uuid()"),
            ("{timestamp}", "TIMESTAMP WITH TIME ZONE"),
            ("{json}", "JSONB"),
            // Names are compared byte by byte, as everywhere else.
            ("{name}", "TEXT COLLATE \"C\""),
        ],
        _ => [
            ("{uuid}", "uuid_text"),
            ("{new_uuid}", ""),
            ("{timestamp}", "timestamp_with_timezone_text"),
            ("{json}", "jsonb_text"),
            ("{name}", "TEXT"),
        ],
    };
    words.into_iter().fold(step.to_owned(), |step, (word, means)| step.replace(word, means))
}
