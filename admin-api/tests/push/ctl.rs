//! `gatewayctl`, as operators and their scripts use it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use crate::{
    admin::{Admin, tenant},
    node::{Manner, Running, hello},
};

const FILE: &str = "revision: 1
defaults: { auth: { accept: [anonymous] } }
upstreams:
  demo: { endpoints: [{ address: '127.0.0.1:9' }] }
tenants:
- id: acme
  hosts: [acme.test]
  policies: { limits: { rate: { requests: 1000, per: 1m, burst: 100 }, quotas: { daily: 5000 } } }
  consumers:
  - id: app
    keys: [{ prefix: testacme, key: '${file:files/acme/key}' }]
  routes:
  - { id: all, match: { path: '/{*rest}' }, upstream: demo }
- id: globex
  hosts: [globex.test]
  routes:
  - { id: all, match: { path: '/{*rest}' }, upstream: demo }
";

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn done(output: &Output) -> String {
    assert_eq!(code(output), 0, "{output:?}");
    out(output)
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&done(output)).unwrap()
}

async fn with_file() -> (Admin, String) {
    let admin = Admin::start().await;
    let path = admin.folder.path().join("tenants.yaml");
    fs::write(&path, FILE).unwrap();
    let path = path.display().to_string();
    done(&admin.ctl(&["import", &path]));
    (admin, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_shown_and_changed_one_by_one() {
    let (admin, _) = with_file().await;
    let told = done(&admin.ctl(&["limits", "get", "acme"]));
    assert!(told.contains("requests per minute  1000") && told.contains("requests per day     5000"), "{told}");
    assert!(done(&admin.ctl(&["limits", "set", "acme", "--rpm", "500"])).contains("revision"));
    let limits = json_of(&admin.ctl(&["limits", "get", "acme", "--output", "json"]));
    assert_eq!((&limits["rate_limit_rpm"], &limits["burst_limit"]), (&json!(500), &json!(100)));
    assert_eq!(limits["quota_daily"], 5000);
    done(&admin.ctl(&["limits", "set", "acme", "--daily", "unlimited"]));
    let limits = json_of(&admin.ctl(&["--output", "json", "limits", "get", "acme"]));
    assert_eq!((&limits["rate_limit_rpm"], &limits["quota_daily"]), (&json!(500), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_is_what_was_imported() {
    let (admin, path) = with_file().await;
    let exported = admin.folder.path().join("exported.yaml").display().to_string();
    done(&admin.ctl(&["export", "--file", &exported]));
    assert_eq!(fs::read_to_string(&exported).unwrap(), done(&admin.ctl(&["export"])));
    for file in [&path, &exported] {
        assert_eq!(done(&admin.ctl(&["diff", file])), "", "{file}");
    }
    // References to secrets stay references, and begin where they did.
    assert!(fs::read_to_string(&exported).unwrap().contains("${file:files/acme/key}"));
    let before = json_of(&admin.ctl(&["revisions", "list", "--output", "json"]));
    done(&admin.ctl(&["import", &exported, "--replace"]));
    assert_eq!(json_of(&admin.ctl(&["revisions", "list", "--output", "json"])), before, "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_named_place_by_place_with_an_exit_code_of_its_own() {
    let (admin, path) = with_file().await;
    fs::write(&path, FILE.replace("requests: 1000", "requests: 7").replace("- id: globex", "- id: initech")).unwrap();
    let drift = admin.ctl(&["diff", &path]);
    assert_eq!(code(&drift), 2, "{drift:?}");
    let told = out(&drift);
    assert!(told.contains("~ acme: policies.limits.rate.requests: 1000 -> 7"), "{told}");
    assert!(told.contains("- globex: {") && told.contains("+ initech: {"), "{told}");
    let drift = admin.ctl(&["diff", &path, "--output", "json"]);
    assert_eq!(code(&drift), 2);
    let told: Value = serde_json::from_str(&out(&drift)).unwrap();
    assert_eq!(told["documents"]["acme"][0]["after"], 7);
    // A command line that cannot be read is an error, and no difference.
    assert_eq!(code(&admin.ctl(&["diff"])), 1);
    assert_eq!(code(&admin.ctl(&["diff", "/nowhere.yaml"])), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_can_be_tried_and_a_wrong_one_changes_nothing() {
    let (admin, path) = with_file().await;
    fs::write(&path, FILE.replace("- id: globex", "- id: initech")).unwrap();
    let told = done(&admin.ctl(&["import", &path, "--replace", "--dry-run"]));
    assert!(told.contains("2 tenants would be added, changed or removed: globex, initech"), "{told}");
    assert!(done(&admin.ctl(&["tenants", "list"])).contains("globex"));
    done(&admin.ctl(&["import", &path, "--replace"]));
    let listed = done(&admin.ctl(&["tenants", "list"]));
    assert!(listed.contains("\ninitech") && !listed.contains("\nglobex"), "{listed}");

    fs::write(&path, FILE.replace("upstream: demo", "upstream: demmo")).unwrap();
    let refused = admin.ctl(&["import", &path]);
    assert_eq!(code(&refused), 1);
    let told = err(&refused);
    assert!(told.contains("routes[0].upstream") && told.contains("did you mean demo"), "{told}");
    let invalid = admin.ctl(&["validate", &path]);
    assert_eq!(code(&invalid), 1, "{invalid:?}");
    assert!(err(&invalid).contains("routes[0].upstream"), "{invalid:?}");
    fs::write(&path, FILE).unwrap();
    done(&admin.ctl(&["validate", &path]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_an_exit_code_of_its_own_if_a_node_has_not_applied_it() {
    let (admin, _) = with_file().await;
    let good = Running::start(&admin, "good").await;
    let told = done(&admin.ctl(&["limits", "set", "acme", "--rpm", "9", "--wait"]));
    assert!(told.contains("applied by good"), "{told}");
    assert_eq!(good.holdings.borrow().requests_per_minute("acme"), Some(9));

    let refuses = Some(("acme".to_owned(), "no such file: keys/acme".to_owned()));
    let _bad = Running::start_with(&admin, &hello("bad"), Manner { refuses, ..Manner::default() }).await;
    let waited = admin.ctl(&["limits", "set", "acme", "--rpm", "8", "--wait=1s"]);
    assert_eq!(code(&waited), 3, "{waited:?}");
    let told = err(&waited);
    assert!(told.contains("the change stands") && told.contains("node bad"), "{told}");
    assert!(told.contains("no such file: keys/acme"), "{told}");
    let nodes = done(&admin.ctl(&["nodes"]));
    assert!(nodes.contains("good") && nodes.contains("bad"), "{nodes}");
    assert!(done(&admin.ctl(&["nodes", "bad"])).contains("refused: acme: no such file: keys/acme"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_can_be_looked_at_and_taken_back() {
    let (admin, _) = with_file().await;
    let newest = |admin: &Admin| {
        let list = json_of(&admin.ctl(&["revisions", "list", "--output", "json"]));
        list["items"][0]["revision"].as_u64().unwrap()
    };
    let before = newest(&admin);
    done(&admin.ctl(&["limits", "set", "acme", "--rpm", "500"]));
    let after = newest(&admin);
    let shown = done(&admin.ctl(&["revisions", "show", &after.to_string()]));
    assert!(shown.contains("~ acme: policies.limits.rate.requests: 1000 -> 500"), "{shown}");
    let shown = done(&admin.ctl(&["revisions", "diff", &before.to_string(), &after.to_string()]));
    assert!(shown.contains("1000 -> 500"), "{shown}");
    done(&admin.ctl(&["revisions", "rollback", &before.to_string(), "--reason", "too low"]));
    let limits = json_of(&admin.ctl(&["limits", "get", "acme", "--output", "json"]));
    assert_eq!(limits["rate_limit_rpm"], 1000);
    assert!(done(&admin.ctl(&["revisions", "list"])).contains("too low"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_written_only_over_what_its_author_has_seen() {
    let (admin, _) = with_file().await;
    let path = admin.folder.path().join("tenant.json");
    let seen = |limit: u64, if_revision: &str| {
        fs::write(&path, tenant("initech", limit).to_string()).unwrap();
        admin.ctl(&["tenants", "put", "initech", path.to_str().unwrap(), "--if-revision", if_revision])
    };
    fs::write(&path, tenant("initech", 1).to_string()).unwrap();
    let first = json_of(&admin.ctl(&["tenants", "put", "initech", path.to_str().unwrap(), "--output", "json"]));
    let first = first["revision"].to_string();
    done(&seen(2, &first));
    let late = seen(3, &first);
    assert_eq!(code(&late), 1);
    assert!(err(&late).contains("412"), "{late:?}");
    let document = json_of(&admin.ctl(&["tenants", "get", "initech"]));
    assert_eq!(document["policies"]["limits"]["rate"]["requests"], 2);
    done(&admin.ctl(&["tenants", "delete", "initech"]));
    let gone = admin.ctl(&["tenants", "get", "initech"]);
    assert_eq!(code(&gone), 1);
    assert!(err(&gone).contains("404"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_is_shown_and_verified() {
    let (admin, _) = with_file().await;
    done(&admin.ctl(&["limits", "set", "acme", "--rpm", "500"]));
    assert!(done(&admin.ctl(&["audit", "verify"])).contains("intact"));
    assert!(done(&admin.ctl(&["audit", "list", "--tenant", "acme"])).contains("acme"));
    let file = |name: &str| admin.folder.path().join(name).to_str().unwrap().to_owned();
    let (trail, key) = (file("trail.jsonl"), file("key.json"));
    done(&admin.ctl(&["audit", "export", "--file", &trail]));
    fs::write(&key, done(&admin.ctl(&["--output", "json", "audit", "key"]))).unwrap();
    assert!(done(&admin.ctl(&["audit", "verify", "--file", &trail])).contains("intact"));
    // Elsewhere, with the key alone.
    let verify = |text: &str| {
        fs::write(file("elsewhere"), text).unwrap();
        let arguments =
            ["--server", "http://127.0.0.1:1", "audit", "verify", "--file", &file("elsewhere"), "--key", &key];
        admin.ctl(&arguments)
    };
    let text = fs::read_to_string(&trail).unwrap();
    assert!(done(&verify(&text)).contains("intact"));
    let first = text.lines().next().unwrap();
    for altered in [
        text.replacen("first-start", "First-start", 1),
        text.replacen(first, "", 1),
        text.lines().filter(|line| !line.contains("\"seal\"")).flat_map(|line| [line, "\n"]).collect(),
        text.replace("\"signature\":\"", "\"signature\":\"A"),
    ] {
        let told = verify(&altered);
        assert_eq!(code(&told), 1, "{told:?}");
        assert!(String::from_utf8_lossy(&told.stderr).contains("audit_log "), "{told:?}");
    }
    let lines = done(&admin.ctl(&["audit", "export"]));
    assert!(lines.lines().count() > 1);
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

/// A way to the control plane that breaks off after so many bytes of each answer, so many times.
async fn breaking(there: SocketAddr, bytes: u64, times: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for time in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            let (far_read, mut far_write) = TcpStream::connect(there).await.unwrap().into_split();
            let (mut near_read, mut near_write) = near.into_split();
            tokio::spawn(async move {
                let mut answer = far_read.take(if time < times { bytes } else { u64::MAX });
                tokio::select! {
                    _ = tokio::io::copy(&mut answer, &mut near_write) => {}
                    () = async {
                        let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
                        std::future::pending::<()>().await;
                    } => {}
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_the_trail_that_breaks_off_is_gone_on_with() {
    let admin = Admin::start().await;
    for limit in 1..30 {
        admin.put(&tenant("acme", limit), "").await.revision();
    }
    let file = |name: &str| admin.folder.path().join(name).to_str().unwrap().to_owned();
    let export = async |address: SocketAddr| {
        let mut command = admin.ctl_command(&["audit", "export", "--file", &file("trail.jsonl")]);
        command.env("SEIKETSU_ADMIN", format!("http://{address}"));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    // In the middle of some line, twice.
    let told = export(breaking(admin.address, 6000, 2).await).await;
    assert_eq!((code(&told), err(&told).matches("going on behind entry").count()), (0, 2), "{told:?}");
    let verified = admin.ctl(&["audit", "verify", "--file", &file("trail.jsonl")]);
    assert!(done(&verified).contains("intact"), "{verified:?}");
    let trail = fs::read_to_string(file("trail.jsonl")).unwrap();
    let entries = |action: &str| trail.lines().filter(|line| line.contains(action)).count();
    assert_eq!((entries("put_tenant"), entries("export_audit")), (29, 3));

    // Not for ever; and a file that is not whole is not there.
    fs::remove_file(file("trail.jsonl")).unwrap();
    let told = export(breaking(admin.address, 1000, usize::MAX).await).await;
    assert_eq!(code(&told), 1, "{told:?}");
    assert!(err(&told).contains("broke"), "{told:?}");
    assert!(!fs::exists(file("trail.jsonl")).unwrap());
    // Nobody is waited for who never answered.
    let nobody = export("127.0.0.1:1".parse().unwrap()).await;
    assert_eq!((code(&nobody), err(&nobody).matches("going on").count()), (1, 0), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_logged_in_needs_no_flags_and_nobody_sees_the_token() {
    let (admin, _) = with_file().await;
    let command = |arguments: &[&str]| {
        let mut command = admin.ctl_command(arguments);
        command.env_remove("SEIKETSU_TOKEN_FILE");
        command
    };
    let refused = command(&["tenants", "list"]).output().unwrap();
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("gatewayctl login"), "{refused:?}");

    let login = |token: &str| {
        let mut child =
            command(&["login"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{token}\n").as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let refused = login("sa_nonsense");
    assert_eq!(code(&refused), 1, "{refused:?}");
    assert!(err(&refused).contains("401") && !err(&refused).contains("nonsense"), "{refused:?}");
    let told = login(&admin.token);
    done(&told);
    assert!(!format!("{told:?}").contains(&admin.token));
    let listed = command(&["tenants", "list"]).env_remove("SEIKETSU_ADMIN").output().unwrap();
    assert!(done(&listed).contains("acme"));
    // Another server does not get it.
    let other = command(&["tenants", "list", "--server", "http://127.0.0.1:1"]).output().unwrap();
    assert!(err(&other).contains("no token"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_when_it_is_made_and_works_until_it_is_deleted() {
    let (admin, _) = with_file().await;
    let made = json_of(&admin.ctl(&["tokens", "create", "--kind", "node", "--name", "berlin", "--output", "json"]));
    let token = made["token"].as_str().unwrap();
    assert!(crate::node::Connection::open(&admin, Some(token)).await.is_ok());
    let listed = done(&admin.ctl(&["tokens", "list"]));
    assert!(listed.contains("berlin") && !listed.contains(token), "{listed}");
    done(&admin.ctl(&["tokens", "delete", made["id"].as_str().unwrap()]));
    assert_eq!(crate::node::Connection::open(&admin, Some(token)).await.err(), Some(401));
}

#[test]
fn shells_get_completions_without_a_server() {
    for shell in ["bash", "zsh", "fish"] {
        let output = std::process::Command::new(crate::admin::binary("gatewayctl"))
            .args(["completions", shell])
            .output()
            .unwrap();
        assert!(done(&output).contains("rollback"), "{shell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_webhooks_and_sinks_are_seen_to_from_a_terminal() {
    let (admin, _) = with_file().await;
    let set = |days: &str| {
        let days = format!("within_days={days}");
        done(&admin.ctl(&["alert-rules", "set", "mine", "--kind", "expiring", &days, "--severity", "critical"]))
    };
    set("20");
    let rule = set("30").split_once(':').unwrap().0.to_owned();
    let rules = json_of(&admin.ctl(&["alert-rules", "list", "--output", "json"]));
    let mine: Vec<&Value> = rules.as_array().unwrap().iter().filter(|rule| rule["name"] == "mine").collect();
    assert_eq!((mine.len(), &mine[0]["condition"]["within_days"]), (1, &json!(30)));

    let owner = admin.get("/operators").await["items"][0]["id"].clone();
    let soon = time::OffsetDateTime::now_utc() + time::Duration::days(25);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    let token = json!({ "kind": "operator", "name": "x", "operator": owner, "expires_at": soon });
    assert_eq!(admin.ask("POST", "/tokens", Some(token)).await.status, 201);
    let open = || json_of(&admin.ctl(&["alerts", "list", "--state", "open", "--output", "json"]))["items"].clone();
    assert!(crate::admin::eventually(async || open() != json!([])).await);
    let alert = open()[0]["id"].as_str().unwrap().to_owned();
    assert!(done(&admin.ctl(&["alerts", "ack", &alert])).contains("owner sees to it"));
    assert!(done(&admin.ctl(&["alerts", "list"])).contains("acknowledged"));
    done(&admin.ctl(&["alert-rules", "delete", &rule]));

    let made = done(&admin.ctl(&["webhooks", "create", "mine", "https://hooks.invalid/", "--kind", "alert.opened"]));
    let (hook, secret) = made.trim().split_once('\n').unwrap();
    assert!(secret.starts_with("whsec_"));
    assert!(done(&admin.ctl(&["webhooks", "list"])).contains("hooks.invalid"));
    let delivery = done(&admin.ctl(&["webhooks", "test", hook])).split(' ').next().unwrap().to_owned();
    let listed = || done(&admin.ctl(&["webhooks", "deliveries", hook]));
    assert!(crate::admin::eventually(async || listed().contains("leads to no address")).await, "{}", listed());
    done(&admin.ctl(&["webhooks", "replay", hook, &delivery]));
    done(&admin.ctl(&["webhooks", "delete", hook]));

    done(&admin.ctl(&["siem", "set", "mine", "syslogs://siem.invalid", "--after", "0", "--disabled"]));
    let set = done(&admin.ctl(&["siem", "set", "mine", "syslogs://siem.invalid:7000", "--disabled"]));
    assert!(done(&admin.ctl(&["siem", "list"])).contains("siem.invalid:7000"));
    done(&admin.ctl(&["siem", "delete", set.split_once(':').unwrap().0]));
}
