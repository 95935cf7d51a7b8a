//! A read replica of Postgres, streaming and real.

use std::{fs, process::Stdio};

use seiketsu_admin_api::store::Store;
use seiketsu_config::push::usage::{Counts, UsagePage, UsageRecord};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Admin, Client, Database, Postgres, Process, command, free_port, own, wait_until};

/// Follows a server until it is dropped.
struct Replica {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Replica {
    fn of(primary: &Postgres) -> Self {
        let folder = tempfile::tempdir().unwrap();
        own(folder.path());
        let made = command("pg_basebackup")
            .args([
                "--no-sync",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--write-recovery-conf",
                "-d",
                &primary.url(),
                "-D",
            ])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut replica = Self { folder, port: free_port(), process: None };
        replica.run();
        replica
    }

    fn run(&mut self) {
        let process = command("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "fsync=off", "-c", "hot_standby=on"])
            .args(["-c", "unix_socket_directories="])
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        self.process = Some(Process(process));
        wait_until("the replica accepts connections", || {
            fs::read_to_string(self.folder.path().join("log")).unwrap().contains("ready to accept")
        });
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("-INT");
            process.wait();
        }
    }

    fn url(&self) -> String {
        format!("postgres://admin@127.0.0.1:{}/postgres", self.port)
    }

    fn execute(&self, sql: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use sea_orm::ConnectionTrait as _;
            let database = sea_orm::Database::connect(self.url()).await.unwrap();
            database.execute_unprepared(sql).await.unwrap();
            database.close().await.unwrap();
        });
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Everything that was admitted on that day, as it is told.
fn admitted(client: &Client) -> u64 {
    let told =
        client.get("/gateway/analytics?step=day&from=2026-05-31T00:00:00Z&to=2026-06-01T00:00:00Z").is(200).json();
    told["totals"]["admitted"].as_u64().unwrap()
}

fn metric(client: &Client, name: &str) -> f64 {
    let metrics = client.get("//metrics").is(200);
    let line = metrics.text().lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

const FROM_REPLICA: &str = "seiketsu_store_reads_total{from=\"replica\"}";
const FROM_PRIMARY: &str = "seiketsu_store_reads_total{from=\"primary\"}";

/// Where the next read goes.
fn reads_from(client: &Client) -> &'static str {
    let before = metric(client, FROM_REPLICA);
    admitted(client);
    if metric(client, FROM_REPLICA) > before { "replica" } else { "primary" }
}

#[test]
fn usage_is_read_from_a_replica_while_that_is_near_and_from_the_primary_otherwise() {
    let database = Database::postgres();
    let Database::Postgres(primary) = &database else { panic!() };
    let mut replica = Replica::of(primary);
    let folder = tempfile::tempdir().unwrap();
    let admin = Admin::start(&database, folder, &["--database-replica-url", &replica.url(), "--most-replica-lag", "2"]);
    let client = admin.client();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = runtime.block_on(Store::connect(&crate::support::settings(database.url()))).unwrap();
    let sequence = std::cell::Cell::new(0);
    let use_one = || {
        sequence.set(sequence.get() + 1);
        let counts = Counts { admitted: 1, ..Counts::default() };
        // 2026-05-31T14:00:00Z
        let record = UsageRecord {
            sequence: sequence.get(),
            second: 1_780_236_000,
            tenant: "acme".to_owned(),
            counts,
            ..UsageRecord::default()
        };
        let page = UsagePage { log: "0a".to_owned(), missing: None, records: vec![record], next: sequence.get() };
        runtime.block_on(store.take_usage(&"n1".parse().unwrap(), None, page)).unwrap();
    };
    use_one();
    wait_until("the replica is read", || reads_from(&client) == "replica");
    wait_until("what it is told of comes there", || admitted(&client) == 1);
    assert!(metric(&client, "seiketsu_store_replica_lag_seconds") >= 0.0);

    replica.execute("SELECT pg_wal_replay_pause()");
    use_one();
    // It is as old as when it stopped, and that is too old soon.
    wait_until("it lags too far", || reads_from(&client) == "primary");
    assert_eq!(admitted(&client), 2, "the primary has it");
    assert!(metric(&client, FROM_PRIMARY) >= 1.0);
    replica.execute("SELECT pg_wal_replay_resume()");
    wait_until("it has caught up", || reads_from(&client) == "replica");
    wait_until("it tells the same", || admitted(&client) == 2);

    replica.stop();
    use_one();
    // Not one request fails for it.
    for _ in 0..5 {
        assert_eq!(admitted(&client), 3);
    }
    assert_eq!(reads_from(&client), "primary");
    replica.run();
    wait_until("it is back", || reads_from(&client) == "replica");
}

#[test]
fn a_replica_that_lags_or_is_away_is_an_alert_until_it_is_back() {
    let database = Database::postgres();
    let Database::Postgres(primary) = &database else { panic!() };
    let mut replica = Replica::of(primary);
    let admin = Admin::start(&database, tempfile::tempdir().unwrap(), &["--database-replica-url", &replica.url()]);
    let client = admin.client();
    let condition = json!({ "kind": "replica_lag", "more_than_seconds": 1, "for_seconds": 1 });
    client.post("/alerts/rules", &json!({ "name": "lag", "severity": "warning", "condition": condition })).is(201);
    wait_until("it follows", || metric(&client, "seiketsu_store_replica_lag_seconds") >= 0.0);
    let state = |summary: &str, state: &str| {
        let all = client.get("/alerts?limit=1000").is(200).json();
        let mut all = all["items"].as_array().unwrap().iter().filter(|alert| alert["rule"] == "lag");
        all.next().is_some_and(|alert| alert["state"] == state && alert["summary"].as_str().unwrap().contains(summary))
    };
    replica.execute("SELECT pg_wal_replay_pause()");
    wait_until("it is behind", || state("behind by more than 1 s", "open"));
    replica.execute("SELECT pg_wal_replay_resume()");
    wait_until("it has caught up", || state("behind", "resolved"));
    replica.stop();
    wait_until("it is away", || state("cannot be reached", "open"));
    replica.run();
    wait_until("it is back", || state("cannot be reached", "resolved"));
}

#[test]
fn a_replica_beside_sqlite_is_refused_at_the_start() {
    let database = Database::sqlite();
    let refused = std::process::Command::new(env!("CARGO_BIN_EXE_seiketsu-admin"))
        .args(["--listen", "127.0.0.1:0", "--database-replica-url", "postgres://secret@127.0.0.1:1/x"])
        .env("DATABASE_URL", database.url())
        .env("SEIKETSU_ADMIN_STATE_DIR", tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(!refused.status.success() && told.contains("DATABASE_REPLICA_URL") && !told.contains("secret"), "{told}");
}
