//! The trail of who did what.

use serde_json::{Value, json};

use crate::support::{Client, on_both, tenant};

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

/// What verifying does not cover, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("control", "id"),         // There is one row.
    ("tenants", "id"),         // Hosts and columns hang on it, and show when it is another.
    ("tenants", "created_at"), // Nothing follows from these two.
    ("tenants", "updated_at"),
    ("api_gateway_config", "id"), // The same.
    ("api_gateway_config", "created_at"),
    ("sealing_keys", "created_at"), // Which key is sealed with next; all that open are good.
    ("sealing_keys", "retired_at"),
    ("control", "store"), // Taken for another store, or one that was set back, within a second: see `restores`.
    ("control", "revision"),
    ("control", "sum"),
    ("control", "orders"), // No more than which purge comes next.
    ("services", "*"),     // What lists are read from; what counts are the documents that it follows from.
    ("endpoints", "*"),
    ("routes", "*"),
    ("consumers", "*"),
    ("api_keys", "*"),
    ("orders", "*"), // What nodes are told of caches, for a day.
    ("order_answers", "*"),
    ("usage_logs", "*"), // Counts, and what is computed from them.
    ("usage_gaps", "*"),
    ("usage_sums", "*"),
    ("enterprise_performance_metrics", "*"),
    ("events", "*"), // What is told, and how far it was.
    ("alerts", "*"),
    ("cursors", "*"),
    ("webhook_deliveries", "*"),
    ("alert_rules", "*"), // Whoever changes them by way of the API is in the trail; what they are is not.
    ("webhooks", "*"),
    ("siem_sinks", "*"),
    ("enterprise_scaling_config", "*"),
    ("disaster_recovery_config", "*"),
    ("enterprise_sso_config", "*"),
    ("epic_integration_status", "*"),
    ("nodes", "*"),            // What nodes say of themselves, every few seconds.
    ("idempotency_keys", "*"), // Answers, kept for a day.
    ("schema_steps", "*"),     // Another number and the next start fails.
];

#[test]
fn whatever_column_of_whatever_row_is_altered_is_named() {
    let database = crate::support::Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    owner.put("/head", &json!({ "plans": { "gold": {} } })).is(200);
    for number in 0..3 {
        owner.post("/tenants", &tenant(&format!("t{number}"))).is(201);
    }
    owner.delete("/tenants/t1?reason=x").is_problem(400, ":bad-request");
    owner.delete("/tenants/t1").is(200);
    owner.post("/revisions/3/rollback?reason=trial", &json!({})).is(200);
    admin.operator("victim", "viewer", Some(&["t1"]));
    // It is sealed with this.
    owner.get("/audit/export").is(200);
    assert_eq!(verdict(&owner)["intact"], true, "{}", verdict(&owner));

    let columns = database.pairs(
        "SELECT m.name AS one, p.name AS two FROM sqlite_master m, pragma_table_info(m.name) p \
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'",
    );
    let named = |table: &str, what: &str| {
        let verdict = verdict(&owner);
        let faults = verdict["faults"].as_array().unwrap();
        let found = faults.iter().find(|fault| fault["table"] == table);
        let found = found.unwrap_or_else(|| panic!("{table}: {what}: {verdict}"));
        found["row"].as_str().unwrap().to_owned()
    };
    let alter = |table: &str, what: &str, statement: &str| {
        database.execute(&format!("CREATE TABLE kept AS SELECT * FROM {table}"));
        database.execute(&format!("PRAGMA foreign_keys = OFF; {statement}"));
        let row = named(table, what);
        let back = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept");
        database.execute(&format!("PRAGMA foreign_keys = OFF; {back}"));
        row
    };
    let last = |table: &str| format!("(SELECT MAX(rowid) FROM {table})");
    let is_left_out =
        |table: &str, column: &str| LEFT_OUT.iter().any(|(out, of)| *out == table && (*of == column || *of == "*"));
    let mut tried = 0;
    for (table, column) in columns.iter().filter(|(table, column)| !is_left_out(table, column)) {
        let row = last(table);
        // One character of text, one of a number, another name where there is one, something where there is nothing.
        let altered = format!(
            "UPDATE {table} SET {column} = CASE typeof({column}) WHEN 'integer' THEN {column} + 1 \
             WHEN 'text' THEN substr({column}, 1, length({column}) - 1) || char(unicode(substr({column}, -1)) + 1) \
             WHEN 'blob' THEN randomblob(16) ELSE {} END WHERE rowid = {row}",
            match column.as_str() {
                "expires_at" => "'2030-01-01 00:00:00+00:00'",
                "operator_id" => "randomblob(16)",
                "rate_limit_rpm" | "burst_limit" | "quota_daily" | "quota_monthly" | "cache_ttl_seconds"
                | "revision" => "7",
                _ => "'x'",
            },
        );
        let told = alter(table, column, &altered);
        let key = match table.as_str() {
            "tenants" | "own_secrets" => "name",
            "hosts" => "pattern",
            "revision_changes" => "revision",
            "audit_log" | "audit_seals" | "revisions" => "number",
            _ => "",
        };
        if !key.is_empty() && key != column {
            let is = database
                .pairs(&format!("SELECT CAST({key} AS TEXT) AS one, '' AS two FROM {table} WHERE rowid = {row}"));
            assert_eq!(told, is[0].0, "{table}.{column}");
        }
        tried += 1;
    }
    assert!(tried > 50, "{tried}");
    // One row less.
    for table in [
        "tenants",
        "hosts",
        "api_gateway_config",
        "revisions",
        "revision_changes",
        "operators",
        "tokens",
        "own_secrets",
    ] {
        alter(table, "a row less", &format!("DELETE FROM {table} WHERE rowid = {}", last(table)));
    }
    // One row more.
    for (table, row) in [
        ("operators", "SELECT randomblob(16), 'intruder', 'owner', NULL, 1, created_at FROM operators LIMIT 1"),
        ("tokens", "SELECT randomblob(16), kind, name, operator_id, 'x', created_at, NULL, NULL FROM tokens LIMIT 1"),
        (
            "tenants",
            "SELECT randomblob(16), 'intruder', revision, content, created_at, updated_at FROM tenants LIMIT 1",
        ),
        ("hosts", "SELECT 'intruder.example', tenant_id FROM hosts LIMIT 1"),
        (
            "audit_log",
            "SELECT -1, at, actor, actor_id, address, action, tenant, outcome, revision, request, detail, hash, mac \
         FROM audit_log LIMIT 1",
        ),
    ] {
        alter(table, "a row more", &format!("INSERT INTO {table} {row}"));
    }
    assert_eq!(verdict(&owner)["intact"], true, "{}", verdict(&owner));
}

#[test]
fn who_can_write_into_the_store_cannot_make_entries() {
    let database = crate::support::Database::sqlite();
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
