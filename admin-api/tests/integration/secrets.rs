//! Sealed secrets, and the keys that they are sealed with.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use secrecy::{ExposeSecret, SecretString};
use seiketsu_admin_api::store::{
    Author, Store, StoreSettings,
    audit::AuditFilter,
    operators::Role,
    secrets::{KeySource, Place},
};
use serde_json::json;

use crate::support::{Database, KEY, Process, mode, on_both, wait_until};

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(database: &Database) -> Store {
    let key = KeySource::Given(KEY.into());
    Store::connect(&StoreSettings { url: database.url().into(), key }).await.unwrap()
}

fn at(row: &str) -> Place<'_> {
    Place { tenant: "", table: "own_secrets", column: "secret", row, destination: "" }
}

fn by() -> Author {
    Author { id: None, name: "test".to_owned(), address: None, request: "r".to_owned(), action: "rotate_secrets" }
}

/// As many rows as it takes some batches to seal anew.
const ROWS: usize = 4000;

fn fill(store: &Store, database: &Database) {
    let row = |number| {
        let name = format!("test-{number}");
        let sealed = store.seal(at(&name), &SecretString::from(format!("secret {number}"))).unwrap();
        format!("('{name}', '{sealed}')")
    };
    let rows: Vec<String> = (0..ROWS).map(row).collect();
    database.execute(&format!("INSERT INTO own_secrets (name, secret) VALUES {}", rows.join(",")));
}

fn all_open(store: &Store, database: &Database) {
    for (name, sealed) in database.pairs("SELECT name AS one, secret AS two FROM own_secrets") {
        let opened = store.open_sealed(at(&name), &sealed).unwrap();
        if let Some(number) = name.strip_prefix("test-") {
            assert_eq!(opened.expose_secret(), format!("secret {number}"));
        }
    }
}

/// The id of the data key that is sealed with, as it stands in sealed texts.
fn newest(database: &Database) -> String {
    let id = match database {
        Database::Sqlite(_) => "LOWER(HEX(id))",
        Database::Postgres(_) => "REPLACE(CAST(id AS TEXT), '-', '')",
    };
    let keys = database.pairs(&format!("SELECT {id} AS one, wrapped AS two FROM sealing_keys ORDER BY created_at"));
    keys.last().unwrap().0.clone()
}

fn count(database: &Database, condition: &str) -> i64 {
    database.number(&format!("SELECT CAST(COUNT(*) AS BIGINT) AS number FROM {condition}"))
}

fn not_sealed_with(database: &Database, key: &str) -> i64 {
    count(database, &format!("own_secrets WHERE secret NOT LIKE 's1.{key}.%'"))
}

/// The control plane with this key; if it ends instead, what it said.
fn start(database: &Database, folder: &Path, arguments: &[&str]) -> Result<Process, String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_seiketsu-admin"))
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(folder)
        .args(arguments)
        .env("DATABASE_URL", database.url())
        .env_remove("SEIKETSU_ADMIN_KEY")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let process = Process(child);
    let mut log = String::new();
    for line in errors.lines().map(Result::unwrap) {
        if line.contains("\"listening\"") {
            return Ok(process);
        }
        log.push_str(&line);
    }
    Err(log)
}

on_both! {
    fn keys_are_rotated_and_whatever_interrupts_that_leaves_everything_readable(database) {
        let mut admin = database.admin();
        run(async { fill(&open(database).await, database) });
        let first = newest(database);
        assert_eq!(not_sealed_with(database, &first), 0);

        // Killed when some are sealed anew, and some are not.
        let owner = admin.client();
        let asked = std::thread::spawn(move || {
            let _ = std::panic::catch_unwind(|| owner.post("/secrets/rotate", &json!({})));
        });
        wait_until("some are sealed anew", || not_sealed_with(database, &first) > 0);
        admin.process.0.kill().unwrap();
        admin.process.0.wait().unwrap();
        asked.join().unwrap();
        let left = not_sealed_with(database, &newest(database));
        assert!(left > 0, "it was killed in the middle");
        let begun = newest(database);
        run(async { all_open(&open(database).await, database) });
        admin.restart(database);
        let owner = admin.client();
        assert_eq!(owner.get("/audit/verify").is(200).json()["intact"], true);

        // Again, to the end.
        let rotated = owner.post("/secrets/rotate", &json!({})).is(200).json();
        let key = newest(database);
        assert_eq!(rotated["key"].as_str().unwrap().replace('-', ""), key);
        // What was begun is gone on with: trying again leaves no keys behind.
        assert_eq!((&key, rotated["resealed"].as_i64()), (&begun, Some(left)), "{rotated}");
        assert_eq!((count(database, "sealing_keys"), &rotated["unopened"]), (2, &json!(0)));
        assert_eq!(not_sealed_with(database, &key), 0);
        assert_eq!(count(database, "sealing_keys WHERE retired_at IS NULL"), 1);
        run(async { all_open(&open(database).await, database) });
        let entry = owner.get("/audit?action=rotate_secrets").json()["items"][0].clone();
        assert_eq!((&entry["actor"], &entry["detail"]), (&json!("owner"), &rotated));
        let shown = owner.get("/audit/export").is(200);
        assert!(!shown.text().contains("secret 1"));

        // What the old keys open is nothing any more.
        run(async {
            let store = open(database).await;
            let sealed = database.pairs("SELECT name AS one, secret AS two FROM own_secrets WHERE name = 'test-1'");
            assert!(store.open_sealed(at("test-1"), &sealed[0].1).is_ok());
            assert!(store.open_sealed(at("test-1"), &sealed[0].1.replace(&key, &first)).is_err());
            // And elsewhere it opens with no key.
            assert!(store.open_sealed(at("test-2"), &sealed[0].1).is_err());
        });
    }

    fn secrets_that_do_not_open_are_named_and_hold_up_no_others(database) {
        let admin = database.admin();
        let owner = admin.client();
        run(async { fill(&open(database).await, database) });
        let nobodys = "s1.00000000000070008000000000000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        database.execute(&format!(
            "UPDATE own_secrets SET secret = '{nobodys}' WHERE name = 'test-0'; \
             UPDATE own_secrets SET secret = (SELECT secret FROM own_secrets WHERE name = 'test-1') WHERE name = 'test-2500'"
        ));
        let first = newest(database);
        for keys in [2, 3] {
            let rotated = owner.post("/secrets/rotate", &json!({})).is(200).json();
            let key = newest(database);
            assert_eq!((rotated["key"].as_str().unwrap().replace('-', ""), &rotated["unopened"]), (key.clone(), &json!(2)));
            let named = |row: &str| json!({ "table": "own_secrets", "column": "secret", "row": row });
            assert_eq!(rotated["unopened_secrets"], json!([named("test-0"), named("test-2500")]));
            assert!(rotated["resealed"].as_u64().unwrap() >= ROWS as u64 - 2, "{rotated}");
            assert_eq!(not_sealed_with(database, &key), 2);
            assert_eq!((count(database, "sealing_keys"), count(database, "sealing_keys WHERE retired_at IS NULL")), (keys, 1));
            let entry = owner.get("/audit?action=rotate_secrets").json()["items"][0].clone();
            assert_eq!(entry["detail"], rotated);
        }
        // They stay as they are, and open when they are put right.
        let sealed = database.pairs("SELECT name AS one, secret AS two FROM own_secrets WHERE name IN ('test-0', 'test-2500') ORDER BY name");
        assert_eq!(sealed[0].1, nobodys);
        assert!(sealed[1].1.starts_with(&format!("s1.{first}.")));
        database.execute("DELETE FROM own_secrets WHERE name IN ('test-0', 'test-2500')");
        run(async { all_open(&open(database).await, database) });
        assert_eq!(owner.post("/secrets/rotate", &json!({})).is(200).json()["unopened"], 0);
    }

    fn a_new_owner_takes_the_key_of_the_store_and_lets_in_whoever_has_it(database) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let key = state.join("sealing-key").to_str().unwrap().to_owned();
        drop(start(database, &state, &[]).unwrap());
        database.execute("UPDATE operators SET role = 'viewer'");
        // Who has the database alone makes none.
        let elsewhere = folder.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("key"), "5e".repeat(32)).unwrap();
        let wrong = elsewhere.join("key").to_str().unwrap().to_owned();
        for arguments in [&["new-owner"][..], &["--key-file", &wrong, "new-owner"]] {
            let refused = start(database, &elsewhere, arguments).err().unwrap();
            assert!(refused.contains("the store cannot be opened"), "{refused}");
        }
        assert_eq!(count(database, "operators"), 1);

        let told = start(database, &elsewhere, &["--key-file", &key, "new-owner"]).err().unwrap();
        let file = elsewhere.join("owner-2-token");
        assert!(told.contains("owner-2") && told.contains(file.to_str().unwrap()), "{told}");
        assert_eq!(mode(&file), 0o600);
        let token = SecretString::from(std::fs::read_to_string(&file).unwrap().trim().to_owned());
        let settings = StoreSettings { url: database.url().into(), key: KeySource::File(key.into()) };
        run(async {
            let store = Store::connect(&settings).await.unwrap();
            let (operator, _) = store.operator_token(&token).await.unwrap().unwrap();
            assert_eq!((operator.name.as_str(), operator.role, &operator.tenants), ("owner-2", Role::Owner, &None));
            let entries = store.audit(&AuditFilter::default(), None, 10).await.unwrap();
            let made = entries.iter().find(|entry| entry.action == "new_owner").unwrap();
            assert_eq!((made.actor.as_str(), made.outcome.as_str()), ("seiketsu-admin", "done"));
            // Nothing but what was altered is told.
            let faults = store.verify_audit().await.unwrap().faults;
            assert_eq!(faults.iter().map(|fault| fault.table.as_str()).collect::<Vec<_>>(), ["operators"]);
        });
    }

    fn replicas_open_what_another_one_has_sealed_with_a_new_key(database) {
        run(async {
            let (one, other) = (open(database).await, open(database).await);
            one.rotate_keys(&by()).await.unwrap();
            let sealed = one.seal(at("x"), &"secret".to_owned().into()).unwrap();
            let opens = async { while other.open_sealed(at("x"), &sealed).is_err() { tokio::task::yield_now().await } };
            tokio::time::timeout(crate::support::PATIENCE, opens).await.unwrap();
        });
    }

    fn another_key_encryption_key_takes_one_command(database) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let state = folder.join("state");
        let key = state.join("sealing-key").to_str().unwrap().to_owned();
        drop(start(database, &state, &[]).unwrap());
        assert_eq!(mode(Path::new(&key)), 0o600);
        // The next start takes the same, and so does whoever is given it.
        drop(start(database, &state, &[]).unwrap());
        drop(start(database, &folder.join("replica"), &["--key-file", &key]).unwrap());
        std::fs::write(path("new"), "Jrl9qO1L2nQgG2l3yq9w2nB8m5j1C4v7Xx0Zz6Kk8sE=\n").unwrap();
        std::fs::write(path("short"), "c2VjcmV0").unwrap();

        // Another key, or none: refused, with what to do.
        let refused = start(database, &folder.join("replica"), &["--key-file", &path("new")]).err().unwrap();
        assert!(refused.contains("same for all replicas") && refused.contains("rewrap-keys"), "{refused}");
        for (folder, arguments) in [
            ("another", &[][..]),
            ("another", &["--key-file", &path("none")]),
            ("another", &["--key-file", &path("short")]),
        ] {
            let refused = start(database, &state.join(folder), arguments).err().unwrap();
            assert!(refused.contains("which the data keys of the store are wrapped with"), "{refused}");
        }
        assert!(!state.join("another/sealing-key").exists());

        let rewrap = ["--key-file", &path("new"), "rewrap-keys", "--previous-key-file", &key];
        assert!(start(database, &state, &rewrap).err().unwrap().contains("wrapped with the new key"));
        let refused = start(database, &state, &[]).err().unwrap();
        assert!(refused.contains("rewrap-keys"), "{refused}");
        let again = start(database, &state, &rewrap).err().unwrap();
        assert!(again.contains("cannot be opened with the previous key"), "{again}");
        drop(start(database, &folder.join("replica"), &["--key-file", &path("new")]).unwrap());
    }
}
