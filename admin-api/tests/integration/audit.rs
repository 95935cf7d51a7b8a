//! The trail of who did what.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    alerts::{alert_of, expiring, with_key},
    support::{Admin, Client, Database, on_both, tenant, wait_until},
};

fn verdict(client: &Client) -> Value {
    client.get("/audit/verify").is(200).json()
}

fn faulty(client: &Client) -> Vec<u64> {
    let verdict = verdict(client);
    let faults = verdict["faults"].as_array().unwrap();
    assert_eq!(verdict["intact"].as_bool(), Some(faults.is_empty()));
    // What else shows of it is told of its own table.
    faults.iter().filter_map(|fault| fault["number"].as_u64()).collect()
}

on_both! {
    fn changes_and_refusals_are_kept_with_who_and_what(database) {
        let admin = database.admin();
        let owner = admin.client();
        let viewer = admin.operator("vic", "viewer", None);
        owner.post("/tenants", &tenant("acme")).is(201);
        viewer.delete("/tenants/acme").is(403);
        viewer.without_token().get("/status").is(401);
        owner.put("/tenants/acme", &tenant("globex")).is(422);
        owner.get("/export").is(200);
        let entries = owner.get("/audit").is(200).json()["items"].clone();
        let seen: Vec<(&str, &str, &str)> = entries.as_array().unwrap()[..5]
            .iter()
            .map(|entry| ["actor", "action", "outcome"].map(|key| entry[key].as_str().unwrap()).into())
            .collect();
        assert_eq!(seen, [
            ("owner", "export_configuration", "done"),
            ("owner", "put_tenant", "refused"),
            ("anonymous", "get_status", "refused"),
            ("vic", "delete_tenant", "refused"),
            ("owner", "create_tenant", "done"),
        ]);
        let created = &entries[4];
        assert_eq!((&created["tenant"], &created["revision"]), (&json!("acme"), &json!(1)));
        assert_eq!(created["address"], "127.0.0.1");
        assert!(!entries.to_string().contains(&admin.token));

        let of = |query: &str| owner.get(&format!("/audit?{query}")).json()["items"].as_array().unwrap().len();
        assert_eq!((of("actor=vic"), of("tenant=acme"), of("action=create_tenant&limit=5")), (1, 1, 1));
        let exported = owner.get("/audit/export").is(200);
        let mut lines: Vec<Value> = exported.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.pop().unwrap()["seal"]["number"], lines.last().unwrap()["number"]);
        assert_eq!(lines.last().unwrap()["action"], "export_audit");
        assert_eq!(lines.iter().map(|line| line["number"].as_u64().unwrap()).collect::<Vec<_>>(),
            (1..=lines.len() as u64).collect::<Vec<_>>());
        assert_eq!(faulty(&owner), Vec::<u64>::new());
    }

    fn an_export_goes_on_behind_an_entry(database) {
        let admin = database.admin();
        let owner = admin.client();
        for number in 1..4 {
            owner.put("/tenants/acme", &crate::support::tenant_with_rate("acme", number)).is(200);
        }
        let whole = owner.get("/audit/export").is(200);
        let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64();
        let last = whole.text().lines().filter_map(number).next_back().unwrap();
        let rest = owner.get("/audit/export?after=3").is(200);
        let expected: Vec<u64> = (4..=last + 1).collect();
        assert_eq!(rest.text().lines().filter_map(number).collect::<Vec<_>>(), expected);
        assert!(rest.text().contains(whole.text().lines().nth(3).unwrap()));
        let end: Value = serde_json::from_str(rest.text().lines().last().unwrap()).unwrap();
        assert_eq!(end["seal"]["number"], last + 1);
        assert_eq!(owner.get("/audit/export?after=99999").is(200).text(), "");
        for wrong in ["-1", "9223372036854775808", "x"] {
            owner.get(&format!("/audit/export?after={wrong}")).is_problem(400, ":bad-request");
        }
        assert_eq!(faulty(&owner), Vec::<u64>::new());
    }

    fn whatever_is_altered_is_named(database) {
        let admin = database.admin();
        let owner = admin.client();
        for number in 0..5 {
            owner.post("/tenants", &tenant(&format!("t{number}"))).is(201);
        }
        let last = verdict(&owner)["entries"].as_u64().unwrap();
        assert_eq!(faulty(&owner), Vec::<u64>::new());
        let victim = last - 2;
        // One byte of one row, in any column; and back.
        for (column, altered) in [
            ("actor", "'Owner'"),
            ("at", "'1999' || SUBSTR(at, 5)"),
            ("action", "'put_tenant'"),
            ("detail", "REPLACE(detail, '1', '2')"),
            ("revision", "revision + 1"),
            ("address", "NULL"),
            ("hash", "REPLACE(REPLACE(hash, 'a', 'b'), '0', '1')"),
        ] {
            database.execute(&format!("CREATE TABLE kept AS SELECT {column} AS was FROM audit_log WHERE number = {victim}"));
            database.execute(&format!("UPDATE audit_log SET {column} = {altered} WHERE number = {victim}"));
            assert_eq!(faulty(&owner)[0], victim, "{column}");
            database.execute(&format!("UPDATE audit_log SET {column} = (SELECT was FROM kept) WHERE number = {victim}"));
            database.execute("DROP TABLE kept");
            assert_eq!(faulty(&owner), Vec::<u64>::new(), "{column}");
        }
        // What a revision changed.
        database.execute("UPDATE revision_changes SET after = REPLACE(after, 't3.example', 'tx.example') WHERE tenant = 't3'");
        assert_eq!(faulty(&owner), [last - 1]);
        database.execute("UPDATE revision_changes SET after = REPLACE(after, 'tx.example', 't3.example') WHERE tenant = 't3'");
        // Two entries in the place of each other.
        for (from, to) in [(victim, 1_000_000), (victim + 1, victim), (1_000_000, victim + 1)] {
            database.execute(&format!("UPDATE audit_log SET number = {to} WHERE number = {from}"));
        }
        assert_eq!(faulty(&owner)[..2], [victim, victim + 1]);
        for (from, to) in [(victim, 1_000_000), (victim + 1, victim), (1_000_000, victim + 1)] {
            database.execute(&format!("UPDATE audit_log SET number = {to} WHERE number = {from}"));
        }
        assert_eq!(faulty(&owner), Vec::<u64>::new());
        // One that is missing, and the end of it.
        database.execute(&format!("DELETE FROM audit_log WHERE number = {victim}"));
        assert_eq!(faulty(&owner)[0], victim + 1);
        database.execute(&format!("DELETE FROM audit_log WHERE number >= {victim}"));
        assert_eq!(faulty(&owner), [victim - 1]);
    }
}

/// What verifying does not cover, and why: table, column or all of them, reason. `docs/audit.md` says the same.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    (
        "control",
        "store",
        "taken for another store within a second, or for one that was set back: all nodes get everything anew",
    ),
    ("control", "revision", "the same"),
    ("control", "sum", "the same"),
    ("tenants", "id", "hosts and columns hang on it, and show when it is another"),
    ("tenants", "created_at", "a time of making: nothing follows from it"),
    ("tenants", "updated_at", "the same"),
    ("api_gateway_config", "id", "nothing refers to it"),
    ("api_gateway_config", "created_at", "a time of making: nothing follows from it"),
    ("api_keys", "created_at", "the same"),
    ("sealing_keys", "created_at", "which key is sealed with next: all that open are good"),
    ("sealing_keys", "retired_at", "the same"),
    ("webhooks", "failing_since", "the system moves it on"),
    (
        "siem_sinks",
        "delivered",
        "the system moves it on; a receiver that is passed over sees it by the numbers of entries",
    ),
    ("siem_sinks", "failing_since", "the system moves it on"),
    ("siem_sinks", "last_error", "the same"),
    ("webhook_deliveries", "*", "copies of events on their way"),
    ("events", "*", "copies of what is in the trail, and what nodes do; the oldest go"),
    ("cursors", "*", "how far something has come"),
    ("order_answers", "*", "what nodes say"),
    ("nodes", "*", "what nodes say of themselves, every few seconds"),
    ("usage_logs", "*", "counts of nodes"),
    ("usage_gaps", "*", "the same"),
    ("usage_sums", "*", "the same"),
    ("enterprise_performance_metrics", "*", "computed from counts"),
    ("idempotency_keys", "*", "answers, kept for a day"),
    ("enterprise_scaling_config", "*", "the control plane neither writes nor reads it yet"),
    ("disaster_recovery_config", "*", "the same"),
    ("enterprise_sso_config", "*", "the same"),
    ("epic_integration_status", "*", "the same"),
];

fn is_left_out(table: &str, column: &str) -> bool {
    LEFT_OUT.iter().any(|(out, of, _)| *out == table && (*of == column || *of == "*"))
}

/// Every column of every table: table, and name and type of the column.
fn columns(database: &Database) -> Vec<(String, String, String)> {
    let all = match database {
        Database::Sqlite(_) => {
            "SELECT m.name AS one, p.name || ' ' || p.type AS two FROM sqlite_master m, pragma_table_info(m.name) p \
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'"
        }
        Database::Postgres(_) => {
            "SELECT CAST(table_name AS TEXT) AS one, CAST(column_name || ' ' || udt_name AS TEXT) AS two \
             FROM information_schema.columns WHERE table_schema = 'public'"
        }
    };
    let split = |(table, column): (String, String)| {
        let (name, kind) = column.split_once(' ').unwrap();
        (table, name.to_owned(), kind.to_owned())
    };
    let mut all: Vec<_> = database.pairs(all).into_iter().map(split).collect();
    // Nothing is written any more when these are altered: what comes after that may make entries.
    let is_first = |table: &str| ["audit_log", "audit_seals", "control"].contains(&table);
    all.sort_by_key(|(table, column, _)| (!is_first(table), table.clone(), column.clone()));
    all
}

/// One character of text, one of a number, another name where there is one, something where there is nothing.
fn altered(database: &Database, column: &str, kind: &str) -> String {
    let is_sqlite = matches!(database, Database::Sqlite(_));
    match kind {
        "BOOLEAN" | "bool" if is_sqlite => format!("COALESCE(1 - {column}, 1)"),
        "bool" => format!("COALESCE(NOT {column}, true)"),
        "INTEGER" | "BIGINT" | "int4" | "int8" => format!("COALESCE({column} + 1, 7)"),
        "uuid_text" => "randomblob(16)".to_owned(),
        "uuid" => "gen_random_uuid()".to_owned(),
        "timestamptz" => format!("COALESCE({column} + interval '1 second', now())"),
        "jsonb" => "'[\"x\"]'".to_owned(),
        "jsonb_text" => format!("COALESCE({column} || 'x', '[\"x\"]')"),
        "timestamp_with_timezone_text" => {
            format!("COALESCE((SUBSTR({column}, 1, 4) + 1) || SUBSTR({column}, 5), '2030-01-01 00:00:00+00:00')")
        }
        _ if is_sqlite => format!(
            "COALESCE(SUBSTR({column}, 1, LENGTH({column}) - 1) || CHAR(UNICODE(SUBSTR({column}, -1)) + 1), 'x')"
        ),
        _ => format!("COALESCE(LEFT({column}, -1) || CHR(NULLIF(ASCII(RIGHT({column}, 1)), 0) + 1), 'x')"),
    }
}

/// What tells a row of the table from others, in SQL: as faults call it, but for dashes.
fn key(database: &Database, table: &str) -> Option<&'static str> {
    Some(match table {
        "tenants" | "own_secrets" => "name",
        "hosts" => "pattern",
        "revision_changes" => "revision",
        "audit_log" | "audit_seals" | "revisions" | "schema_steps" => "number",
        "control" => "id",
        "services" | "routes" | "consumers" => "tenant || '/' || id",
        "endpoints" => "tenant || '/' || service || '/' || number",
        "api_keys" => "tenant || '/' || prefix",
        "api_gateway_config" => return None,
        _ => match database {
            Database::Sqlite(_) => "LOWER(HEX(id))",
            Database::Postgres(_) => "REPLACE(CAST(id AS TEXT), '-', '')",
        },
    })
}

/// By what the last row is found.
fn order(table: &str) -> &'static str {
    match table {
        "own_secrets" => "name",
        "hosts" => "pattern",
        "revision_changes" => "revision DESC, tenant",
        "audit_log" | "audit_seals" | "revisions" | "schema_steps" => "number",
        "services" | "routes" | "consumers" | "endpoints" | "api_keys" => "tenant",
        // These come in the order that they were made in.
        _ => "id",
    }
}

/// A store with a row in every table that verifying covers, in which nothing moves.
fn with_rows_of_every_kind(admin: &Admin) {
    let owner = admin.client();
    // What the rules would find later would be written.
    for rule in owner.get("/alerts/rules").json()["items"].as_array().unwrap() {
        owner.delete(&format!("/alerts/rules/{}", rule["id"].as_str().unwrap())).is(204);
    }
    let endpoints = json!([{ "address": "origin.example:80", "region": "eu" }]);
    owner
        .put("/head", &json!({ "plans": { "gold": {} }, "upstreams": { "shared": { "endpoints": endpoints } } }))
        .is(200);
    for number in 0..3 {
        owner.post("/tenants", &with_key(&format!("t{number}"), 10)).is(201);
    }
    owner.delete("/tenants/t1").is(200);
    owner.post("/revisions/3/rollback?reason=trial", &json!({})).is(200);
    admin.operator("victim", "viewer", Some(&["t1"]));
    owner.post("/cache/purge", &json!({ "tenant": "t0", "all": true })).is(200);
    let webhook = json!({ "name": "hook", "url": "http://127.0.0.1:9/", "enabled": false, "kinds": ["revision"] });
    let webhook = owner.post("/webhooks", &webhook).is(201).json()["id"].as_str().unwrap().to_owned();
    owner.post(&format!("/webhooks/{webhook}/rotate-secret"), &json!({})).is(200);
    let sink = json!({ "name": "sink", "url": "https://siem.example/", "token": "secret", "enabled": false });
    owner.post("/siem", &sink).is(201);
    let rule = owner.post("/alerts/rules", &expiring("keys", Some("t0"), 30)).is(201).json();
    let alert = alert_of(&owner, "keys")["id"].as_str().unwrap().to_owned();
    owner.post(&format!("/alerts/{alert}/acknowledge"), &json!({})).is(200);
    owner.delete(&format!("/alerts/rules/{}", rule["id"].as_str().unwrap())).is(204);
    wait_until("the alert is over", || alert_of(&owner, "keys")["state"] == "resolved");
    let mut rule = expiring("off", None, 1);
    rule["enabled"] = json!(false);
    owner.post("/alerts/rules", &rule).is(201);
    // It is sealed with this.
    owner.get("/audit/export").is(200);
}

#[test]
fn what_verifying_leaves_out_is_documented() {
    let document = include_str!("../../../docs/audit.md");
    let written: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let row = |(table, column, why): &(&str, &str, &str)| {
        let column = if *column == "*" { "all".to_owned() } else { format!("`{column}`") };
        format!("| `{table}` | {column} | {why} |")
    };
    assert_eq!(written, LEFT_OUT.iter().map(row).collect::<Vec<_>>());
}

on_both! {
    fn whatever_column_of_whatever_row_is_altered_is_named(database) {
        let admin = Admin::start(database, tempfile::tempdir().unwrap(), &["--outbound-allow-private"]);
        let owner = admin.client();
        with_rows_of_every_kind(&admin);
        assert_eq!(verdict(&owner)["intact"], true, "{}", verdict(&owner));

        let columns = columns(database);
        for (table, column, _) in LEFT_OUT {
            let is_there = |(of, name, _): &(String, String, String)| of == table && (*column == "*" || name == column);
            assert!(columns.iter().any(is_there), "{table}.{column} is left out, and not there");
        }
        let (reference, free) = match database {
            Database::Sqlite(_) => ("rowid", "PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE;"),
            Database::Postgres(_) => ("ctid", "BEGIN; SET LOCAL session_replication_role = replica;"),
        };
        let last = |table: &str| {
            let only = if matches!(table, "operators" | "tokens") { "WHERE name = 'victim'" } else { "" };
            format!("{reference} = (SELECT {reference} FROM {table} {only} ORDER BY {} DESC LIMIT 1)", order(table))
        };
        // Alters, and makes it what it was. Gives the faults of the table.
        let alter = |table: &str, what: &str, statement: &str| {
            database.execute(&format!("CREATE TABLE kept AS SELECT * FROM {table}"));
            database.execute(&format!("{free} {statement}; COMMIT"));
            let verdict = verdict(&owner);
            let back = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept");
            database.execute(&format!("{free} {back}; COMMIT"));
            let faults = verdict["faults"].as_array().unwrap().iter().filter(|fault| fault["table"] == table);
            let rows: Vec<String> = faults.map(|fault| fault["row"].as_str().unwrap().to_owned()).collect();
            assert!(!rows.is_empty(), "{table}: {what}: {verdict}");
            rows
        };
        let mut tried = 0;
        for (table, column, kind) in columns.iter().filter(|(table, column, _)| !is_left_out(table, column)) {
            let row = last(table);
            let key = key(database, table).unwrap_or("'-'");
            let is = database.pairs(&format!("SELECT CAST({key} AS TEXT) AS one, '' AS two FROM {table} WHERE {row}"));
            let Some((is, _)) = is.first() else {
                panic!("{table} has no row: make one in `with_rows_of_every_kind`, or say in LEFT_OUT why it is not covered");
            };
            let altered = altered(database, column, kind);
            let named = alter(table, column, &format!("UPDATE {table} SET {column} = {altered} WHERE {row}"));
            if key != "'-'" && !key.contains(column.as_str()) {
                assert!(named.iter().any(|named| named.replace('-', "") == is.replace('-', "")), "{table}.{column}: {named:?}: {is}");
            }
            tried += 1;
        }
        assert!(tried > 120, "{tried}");
        // One row less.
        let tables: BTreeSet<&str> = columns.iter().map(|(table, ..)| table.as_str()).collect();
        for table in tables.into_iter().filter(|table| !is_left_out(table, "*") && *table != "audit_seals") {
            alter(table, "a row less", &format!("DELETE FROM {table} WHERE {}", last(table)));
        }
        // One row more.
        let id = match database {
            Database::Sqlite(_) => "randomblob(16)",
            Database::Postgres(_) => "gen_random_uuid()",
        };
        for (table, row) in [
            ("operators", "SELECT {id}, 'intruder', 'owner', NULL, 1, created_at, mac FROM operators LIMIT 1"),
            ("tokens", "SELECT {id}, kind, name, operator_id, 'x', created_at, NULL, NULL, mac FROM tokens LIMIT 1"),
            ("tenants", "SELECT {id}, 'intruder', revision, content, created_at, updated_at FROM tenants LIMIT 1"),
            ("hosts", "SELECT 'intruder.example', tenant_id FROM hosts LIMIT 1"),
            ("hosts", "SELECT 'intruder.example', {id} FROM hosts LIMIT 1"),
            ("routes", "SELECT 'intruder', id, number, path, methods, versions, upstream, canary, mirror, priority, timeout_ms FROM routes LIMIT 1"),
            ("services", "SELECT tenant, 'intruder', protocol, balance, health, tls FROM services WHERE tenant = ''"),
            ("webhooks", "SELECT {id}, name, url, kinds, tenants, secret, old_secret, old_until, enabled, disabled_reason, failing_since, revision, created_at, mac FROM webhooks"),
            (
                "audit_log",
                "SELECT -1, at, actor, actor_id, address, action, tenant, outcome, revision, request_id, detail, hash, mac \
                 FROM audit_log LIMIT 1",
            ),
        ] {
            alter(table, "a row more", &format!("INSERT INTO {table} {}", row.replace("{id}", id)));
        }
        assert_eq!(verdict(&owner)["intact"], true, "{}", verdict(&owner));
    }

    fn a_time_that_cannot_be_read_is_told_as_damage(database) {
        let admin = database.admin();
        let owner = admin.client();
        let never = match database {
            Database::Sqlite(_) => "'nonsense'",
            Database::Postgres(_) => "'infinity'",
        };
        admin.operator("vic", "viewer", None);
        let vic = owner.get("/operators").json()["items"][1].clone();
        let path = format!("/operators/{}", vic["id"].as_str().unwrap());
        database.execute(&format!("UPDATE operators SET created_at = {never} WHERE name = 'vic'"));
        database.execute(&format!("UPDATE alert_rules SET created_at = {never} WHERE name = 'node-gone'"));
        for path in ["/operators", &path, "/alerts/rules"] {
            owner.get(path).is_problem(500, ":store-damaged");
        }
        owner.put(&path, &json!({ "name": "vic", "role": "viewer" })).is_problem(500, ":store-damaged");
        // Others are served, and changed.
        owner.post("/operators", &json!({ "name": "ada", "role": "viewer" })).is(201);
    }

    fn a_row_that_cannot_be_read_is_named_and_hides_no_other(database) {
        let mut admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &tenant("acme")).is(201);
        admin.operator("vic", "viewer", None);
        let never = match database {
            Database::Sqlite(_) => "'nonsense'",
            Database::Postgres(_) => "'infinity'",
        };
        let me = owner.get("/operators").json()["items"][0]["id"].as_str().unwrap().to_owned();
        let vic = owner.get("/operators").json()["items"][1]["id"].as_str().unwrap().to_owned();
        assert_ne!(me, vic);
        let rules = owner.get("/alerts/rules").json()["items"].as_array().unwrap().clone();
        let rule = rules.iter().find(|rule| rule["name"] == "node-gone").unwrap()["id"].as_str().unwrap().to_owned();
        database.execute("UPDATE operators SET tenants = '[' WHERE name = 'vic'");
        let problem = owner.get("/operators").is_problem(500, ":store-damaged");
        assert!(problem["detail"].as_str().unwrap().contains("altered"), "{problem}");
        database.execute(&format!("UPDATE operators SET created_at = {never} WHERE name = 'vic'"));
        database.execute(&format!("UPDATE alert_rules SET created_at = {never} WHERE name = 'node-gone'"));
        database.execute(&format!("UPDATE revisions SET at = {never}"));
        database.execute("UPDATE tokens SET name = 'x' WHERE name = 'vic'");
        let verdict = verdict(&owner);
        let what = |table: &str, row: &str| {
            let faults = verdict["faults"].as_array().unwrap();
            let found = faults.iter().find(|fault| fault["table"] == table && fault["row"].as_str().unwrap().contains(row));
            found.unwrap_or_else(|| panic!("{table} {row}: {verdict}"))["what"].as_str().unwrap().to_owned()
        };
        assert!(what("operators", &vic).starts_with("it cannot be read"), "{verdict}");
        assert!(what("alert_rules", &rule).starts_with("it cannot be read"), "{verdict}");
        assert_eq!(what("tokens", ""), "it was altered");
        assert!(what("revisions", "1").starts_with("it cannot be read"), "{verdict}");
        // Rules of which one cannot be read find it as well.
        admin.restart(database);
        let alert = alert_of(&admin.client(), "audit-fault");
        assert!(alert["summary"].as_str().unwrap().starts_with("the audit trail is not intact"), "{alert}");
    }
}

#[test]
fn who_can_write_into_the_store_cannot_make_entries() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    for number in 1..121 {
        owner.put("/tenants/acme", &crate::support::tenant_with_rate("acme", number)).is(200);
    }
    assert_eq!(verdict(&owner)["intact"], true);
    assert_eq!(database.number("SELECT COUNT(*) AS number FROM audit_seals"), 1);
    // With the right hash even, which everybody can compute, it lacks what only the control plane can.
    database.execute("UPDATE audit_log SET mac = REPLACE(REPLACE(mac, 'a', 'b'), '0', '1') WHERE number = 7");
    assert_eq!(faulty(&owner), [7]);
    database.execute("DELETE FROM audit_seals");
    assert!(verdict(&owner)["faults"].as_array().unwrap().iter().any(|fault| fault["table"] == "audit_seals"));
}
