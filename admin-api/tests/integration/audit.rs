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
    faults.iter().map(|fault| fault["number"].as_u64().unwrap()).collect()
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
        let lines: Vec<Value> = exported.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
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
