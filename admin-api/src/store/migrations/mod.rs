//! The tables, step by step. A step that a release has shipped is never changed; what comes later is a further one.
//!
//! The steps are SQL that both stores understand but for the names of types: whoever looks at a table finds it here as it
//! is.

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

use super::StoreError;

const STEPS: &[&str] = &[
    include_str!("0001_first.sql"),
    TABLES,
    include_str!("0003_orders.sql"),
    include_str!("0004_sealing_keys.sql"),
    include_str!("0005_usage.sql"),
    include_str!("0006_performance.sql"),
    include_str!("0007_events.sql"),
    include_str!("0008_alerts.sql"),
    include_str!("0009_nodes.sql"),
    include_str!("0010_webhooks.sql"),
    include_str!("0011_siem.sql"),
    AUDIT_SEALS,
    include_str!("0013_enterprise.sql"),
    include_str!("0014_webhook_deliveries.sql"),
    ROW_MACS,
    include_str!("0016_request_id.sql"),
];

/// Tables of what documents say; filled from those that are there.
const TABLES: &str = include_str!("0002_tables.sql");

/// With this step, the audit trail gets its keys: only a start that takes it may make them.
pub(super) const AUDIT_SEALS: &str = include_str!("0012_audit_seals.sql");

/// With this step, rows get their MACs: only a start that takes it may give them to rows that are there.
pub(super) const ROW_MACS: &str = include_str!("0015_row_macs.sql");

/// The steps that a start has taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    before: usize,
}

impl Taken {
    pub(super) fn has(self, step: &str) -> bool {
        STEPS.iter().skip(self.before).any(|taken| *taken == step)
    }

    /// What came with a step is there ever after.
    pub(super) fn is_needed(self, step: &str, what: &str) -> Result<(), StoreError> {
        if self.has(step) { Ok(()) } else { Err(StoreError::corrupt(what, &"it is missing: restore a backup")) }
    }
}

/// Any number that nothing else locks.
const LOCK: i64 = 0x5e1e_7500;

/// Brings the tables up to date. Replicas that start at the same time wait for each other.
pub(super) async fn run(transaction: &DatabaseTransaction) -> Result<Taken, StoreError> {
    take(transaction, STEPS).await
}

/// The steps that the store does not say that it has taken.
pub(super) async fn missing(transaction: &DatabaseTransaction) -> Result<Vec<usize>, StoreError> {
    let all = Statement::from_string(
        transaction.get_database_backend(),
        "SELECT CAST(number AS BIGINT) AS number FROM schema_steps",
    );
    let rows = transaction.query_all_raw(all).await?;
    let taken: HashSet<i64> = rows.iter().filter_map(|row| row.try_get("", "number").ok()).collect();
    Ok((1..=STEPS.len()).filter(|step| i64::try_from(*step).is_ok_and(|step| !taken.contains(&step))).collect())
}

async fn take(transaction: &DatabaseTransaction, steps: &[&str]) -> Result<Taken, StoreError> {
    let backend = transaction.get_database_backend();
    if backend == DbBackend::Postgres {
        // Longer than requests may: another replica may be at it, with very many rows. Not for ever, and for a table that
        // somebody else holds not for long: all others would queue behind this one.
        transaction
            .execute_unprepared("SET LOCAL lock_timeout = '5min'; SET LOCAL statement_timeout = '10min'")
            .await?;
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
        transaction.execute_unprepared("SET LOCAL lock_timeout = '10s'").await?;
    }
    transaction.execute_unprepared("CREATE TABLE IF NOT EXISTS schema_steps (number INTEGER PRIMARY KEY)").await?;
    let last =
        Statement::from_string(backend, "SELECT CAST(COALESCE(MAX(number), 0) AS BIGINT) AS last FROM schema_steps");
    let last: i64 = transaction.query_one_raw(last).await?.map_or(Ok(0), |row| row.try_get("", "last"))?;
    let done = usize::try_from(last).unwrap_or_default();
    if done > steps.len() {
        return Err(StoreError::Newer { store: done, known: steps.len() });
    }
    if backend == DbBackend::Postgres && (1..steps.len()).contains(&done) {
        // A replica of an earlier release may be writing: its turn ends first, and none begins until this is done. Whatever
        // else is locked is locked after that, as writers do it.
        transaction.execute_unprepared("SELECT id FROM control FOR UPDATE").await?;
    }
    for (index, step) in steps.iter().enumerate().skip(done) {
        transaction.execute_unprepared(&in_dialect(step, backend)).await?;
        if *step == TABLES {
            super::tables::fill(transaction).await?;
        }
        let number = index + 1;
        transaction.execute_unprepared(&format!("INSERT INTO schema_steps (number) VALUES ({number})")).await?;
    }
    Ok(Taken { before: done })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sea_orm::{Database, TransactionTrait};

    use super::*;

    #[tokio::test]
    async fn a_store_of_an_earlier_release_gets_its_tables_filled() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("admin.db").display());
        let database = Database::connect(url).await.unwrap();
        let transaction = database.begin().await.unwrap();
        take(&transaction, &STEPS[..1]).await.unwrap();
        let endpoints = r#"{"endpoints":[{"address":"127.0.0.1:9"}]}"#;
        let head = format!(r#"{{"defaults":{{}},"upstreams":{{"demo":{endpoints}}}}}"#);
        let tenant = format!(
            r#"{{"id":"acme","hosts":["acme.test"],"upstreams":{{"own":{endpoints}}},
            "consumers":[{{"id":"app","keys":[{{"prefix":"AAAAAAAA","key":"${{env:K}}"}}]}}],
            "routes":[{{"id":"all","match":{{"path":"/"}},"upstream":"own"}}]}}"#
        );
        let (id, at) = ("0190a000-0000-7000-8000-000000000000", "2026-01-01T00:00:00Z");
        for row in [
            format!("INSERT INTO control VALUES (1, '{id}', 1, '', 1, '{head}', 0, '')"),
            format!("INSERT INTO tenants VALUES ('{id}', 'acme', 1, '{tenant}', '{at}', '{at}')"),
        ] {
            transaction.execute_unprepared(&row).await.unwrap();
        }
        run(&transaction).await.unwrap();
        for (rows, expected) in [
            (
                "SELECT group_concat(tenant || '/' || id) AS found FROM (SELECT * FROM services ORDER BY tenant)",
                "/demo,acme/own",
            ),
            ("SELECT group_concat(service || address) AS found FROM endpoints", "demo127.0.0.1:9,own127.0.0.1:9"),
            ("SELECT id || path || upstream AS found FROM routes", "all/own"),
            ("SELECT id || api_keys AS found FROM consumers", "app1"),
            ("SELECT prefix || kept || created_at AS found FROM api_keys", "AAAAAAAAreference2026-01-01T00:00:00Z"),
        ] {
            let statement = Statement::from_string(DbBackend::Sqlite, rows);
            let found: String =
                transaction.query_one_raw(statement).await.unwrap().unwrap().try_get("", "found").unwrap();
            assert_eq!(found, expected, "{rows}");
        }
    }
}
