//! Tenants that the control plane sends.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use seiketsu_config::push::{Applied, ToNode, usage::UsageTaken};
use serde_json::{Value, json};

use crate::{
    fixtures::comes_true,
    support::{
        Gateway, Origin, binary,
        control_plane::{ControlPlane, Store, TOKEN, Waiting, copies, marked, restarted, serving, tenant},
        pki::Authority,
        wait_for,
    },
};

fn mark(gateway: &Gateway, host: &str) -> Option<String> {
    gateway.get(host, "/v1/echo", "").header("x-mark").map(str::to_owned)
}

fn refused(applied: &Applied) -> Vec<&str> {
    applied.refused.iter().map(|refused| refused.tenant.as_ref().map_or("head", |id| id.as_str())).collect()
}

/// One tenant, `acme.test`, that has the mark `first`.
fn acme(origin: &Origin) -> Store {
    let mut store = Store::new(origin.address);
    store.put("acme", &marked("acme", "first"));
    store
}

/// Waits until what is in force is kept on disk, with this many tenants.
fn wait_until_kept(gateway: &Gateway, tenants: usize) {
    // The state, the head, and the tenants.
    assert!(comes_true(|| copies(gateway.folder.path()).len() == tenants + 2), "{}", gateway.log());
}

#[test]
fn a_first_configuration_arrives_and_is_served() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let waiting = Waiting::of(&plane);
    let mut session = plane.accept();
    assert_eq!((session.hello.node.as_str(), session.hello.holds), ("test", None));
    assert_eq!(session.hello.region.as_ref().map(seiketsu_config::values::Id::as_str), Some("eu-west"));
    session.welcome();
    let before = wait_for(&|| waiting.readyz().filter(|it| it.json()["control_plane"]["connected"] == true)).unwrap();
    assert_eq!(before.status, 503);
    assert_eq!(before.json()["checks"]["configuration_loaded"], false);
    assert!(!session.heartbeat(|_| true).ready);

    let store = acme(&origin);
    let applied = session.push(store.update(None));
    assert_eq!((applied.revision, refused(&applied), applied.lost), (2, vec![], false));
    let gateway = waiting.ready();
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    let readyz = gateway.readyz();
    assert_eq!((readyz.status, &readyz.json()["revision"]), (200, &json!(2)));
    assert_eq!(session.heartbeat(|it| it.ready).revision, 2);
    assert!((gateway.metric("seiketsu_control_plane_connected") - 1.0).abs() < 0.1);
    assert!(gateway.metrics().contains("seiketsu_control_plane_updates_total{result=\"applied\"} 1"));

    // And who drains says so.
    gateway.process.signal("-TERM");
    drop(gateway.connect());
    assert!(session.is_left());
}

#[test]
fn a_changed_limit_holds_for_the_next_request_and_is_acknowledged() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let (gateway, mut session) = serving(&plane, &store);
    for requests in [1, 3, 2] {
        let before = store.revision;
        let limits = json!({ "limits": { "rate": { "requests": requests, "per": "1h", "burst": requests } } });
        store.put(&format!("t{requests}"), &tenant(&format!("t{requests}"), &limits));
        let applied = session.push(store.update(Some(before)));
        assert_eq!((applied.revision, applied.refused.len()), (store.revision, 0));
        let host = format!("t{requests}.test");
        let statuses: Vec<u16> = (0..=requests).map(|_| gateway.get(&host, "/v1/echo", "").status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), requests, "{statuses:?}");
        assert_eq!(statuses.last(), Some(&429));
        // More of it, at once.
        let before = store.revision;
        store.put(&format!("t{requests}"), &tenant(&format!("t{requests}"), &json!({})));
        session.push(store.update(Some(before)));
        assert_eq!(gateway.get(&host, "/v1/echo", "").status, 200);
    }
}

#[test]
fn a_wrong_tenant_is_refused_by_name_and_the_others_are_applied() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    store.put("globex", &marked("globex", "first"));
    let (gateway, mut session) = serving(&plane, &store);
    let before = store.revision;
    let mut wrong = marked("acme", "second");
    wrong["routes"][0]["upstream"] = json!("none");
    store.put("acme", &wrong);
    store.put("globex", &marked("globex", "second"));
    let mut taken = marked("initech", "second");
    taken["hosts"] = json!(["initech.test", "globex.test"]);
    store.put("initech", &taken);
    let applied = session.push(store.update(Some(before)));
    assert_eq!((applied.revision, refused(&applied)), (store.revision, vec!["acme", "initech"]));
    assert!(applied.refused[0].errors[0].contains("there is no upstream none"), "{applied:?}");
    assert!(applied.refused[1].errors[0].contains("globex.test is served by the tenant globex"), "{applied:?}");
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    assert_eq!(mark(&gateway, "globex.test").as_deref(), Some("second"));
    assert_eq!(gateway.get("initech.test", "/v1/echo", "").status, 404);
    let readyz = gateway.readyz();
    let errors = readyz.json()["last_reload"]["errors"].to_string();
    assert!(readyz.status == 200 && errors.contains("tenant acme") && errors.contains("tenant initech"), "{errors}");
    assert!(gateway.logs("configuration refused: control plane: routes[0].upstream (tenant acme, route open)"));
    assert!((gateway.metric("seiketsu_control_plane_refused_documents") - 2.0).abs() < 0.1);

    // The host becomes free, and the other one is mended.
    let before = store.revision;
    store.put("acme", &marked("acme", "third"));
    store.remove("globex");
    let applied = session.push(store.update(Some(before)));
    assert_eq!(refused(&applied), [""; 0]);
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("third"));
    assert_eq!(mark(&gateway, "globex.test").as_deref(), Some("second"), "initech has it now");
    assert_eq!(gateway.readyz().json()["last_reload"]["errors"], json!([]));
}

#[test]
fn a_wrong_token_is_told_and_the_one_that_is_there_then_is_tried() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "sn_wrong").unwrap();
    let source = format!("control_plane: {{ url: 'http://{}', token: '${{file:token}}' }}\n", plane.address);
    let waiting = Waiting::start_in(folder, &source, &[]);
    assert!(comes_true(|| plane.refused() > 2));
    let readyz = wait_for(&|| waiting.readyz().filter(|it| it.text().contains("refuses the token"))).unwrap();
    let shown = &readyz.json()["control_plane"];
    assert_eq!((readyz.status, &shown["connected"]), (503, &json!(false)));
    assert!(shown["error"].as_str().unwrap().contains("token from ${file:"), "{shown}");
    assert!(comes_true(|| waiting.log().contains("refuses the token")));
    assert!(!waiting.log().contains("sn_wrong"));
    // It is told once, however often it is tried.
    let told = waiting.log().matches("not connected to the control plane").count();
    assert_eq!(told, 1, "{}", waiting.log());

    fs::write(waiting.folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let mut session = plane.welcome();
    session.push(acme(&origin).update(None));
    assert_eq!(mark(&waiting.ready(), "acme.test").as_deref(), Some("first"));
}

#[test]
fn a_lost_connection_changes_nothing_and_is_made_again_for_what_has_changed() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    store.put("globex", &marked("globex", "first"));
    let (gateway, session) = serving(&plane, &store);
    let held = store.held();
    let address = plane.address;
    drop((session, plane));
    assert!(comes_true(|| gateway.readyz().json()["control_plane"]["connected"] == false));
    assert!(comes_true(|| gateway.metric("seiketsu_control_plane_failures_total") > 1.0));
    assert!(gateway.metric("seiketsu_control_plane_connected") < 0.1);
    assert_eq!((gateway.readyz().status, mark(&gateway, "acme.test").as_deref()), (200, Some("first")));

    store.put("acme", &marked("acme", "second"));
    let plane = ControlPlane::start_on(address);
    let mut session = plane.welcome();
    assert_eq!(session.hello.holds, Some(held));
    let update = store.update(Some(held.revision));
    assert_eq!((update.put.len(), update.head.is_some()), (1, false));
    assert_eq!(session.push(update).refused, []);
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("second"));
    assert_eq!(mark(&gateway, "globex.test").as_deref(), Some("first"));
}

#[test]
fn a_node_starts_from_what_was_last_sent_while_its_control_plane_is_away() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let (gateway, session) = serving(&plane, &store);
    wait_until_kept(&gateway, 1);
    let address = plane.address;
    drop((session, plane));
    for path in copies(gateway.folder.path()) {
        let content = fs::read(path).unwrap();
        assert!(!content.windows(4).any(|part| part == b"acme"), "what is kept is sealed");
    }
    let gateway = restarted(gateway).ready();
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    let readyz = gateway.readyz();
    assert_eq!((readyz.status, &readyz.json()["last_reload"]["from_last_known_good"]), (200, &json!(true)));
    assert!(gateway.logs("starting from the last known good configuration"));

    let plane = ControlPlane::start_on(address);
    let mut session = plane.accept();
    assert_eq!(session.hello.holds, Some(store.held()));
    session.welcome();
    assert!(comes_true(|| gateway.readyz().json()["last_reload"]["from_last_known_good"] == false));
    let before = store.revision;
    store.put("acme", &marked("acme", "second"));
    session.push(store.update(Some(before)));
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("second"));
}

#[test]
fn an_altered_copy_is_not_used() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let store = acme(&origin);
    let (gateway, session) = serving(&plane, &store);
    wait_until_kept(&gateway, 1);
    let address = plane.address;
    drop((session, plane));
    for path in copies(gateway.folder.path()) {
        let mut content = fs::read(&path).unwrap();
        content[20] ^= 1;
        fs::write(&path, content).unwrap();
    }
    let waiting = restarted(gateway);
    assert!(comes_true(|| waiting.log().contains("were altered or sealed with another key")));
    assert_eq!(wait_for(&|| waiting.readyz()).unwrap().status, 503);
    let plane = ControlPlane::start_on(address);
    let mut session = plane.welcome();
    assert_eq!(session.hello.holds, None, "what is not there is not claimed");
    session.push(store.update(None));
    assert_eq!(mark(&waiting.ready(), "acme.test").as_deref(), Some("first"));
}

#[test]
fn an_update_that_does_not_follow_is_answered_with_lost() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let (gateway, mut session) = serving(&plane, &store);
    store.put("acme", &marked("acme", "second"));
    store.put("globex", &marked("globex", "second"));
    for update in [store.update(Some(store.revision - 1)), {
        let mut cut = store.update(Some(2));
        cut.put.pop();
        cut
    }] {
        let applied = session.push(update);
        assert_eq!((applied.lost, applied.revision), (true, 2));
        assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    }
    assert!(gateway.logs("asking for the whole configuration"));
    let applied = session.push(store.update(None));
    assert_eq!((applied.lost, applied.revision, mark(&gateway, "acme.test").as_deref()), (false, 4, Some("second")));
}

#[test]
fn parts_are_applied_with_the_last_of_them() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let (gateway, mut session) = serving(&plane, &store);
    let before = store.revision;
    store.put("acme", &marked("acme", "second"));
    store.put("globex", &marked("globex", "second"));
    let mut first = store.update(Some(before));
    let mut second = store.update(Some(before));
    first.more = true;
    first.put.truncate(1);
    second.put.remove(0);
    session.send(&ToNode::Update(Box::new(first)));
    // A heartbeat after it has come in.
    session.heartbeat(|_| true);
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    let applied = session.push(second);
    assert_eq!((applied.revision, applied.lost), (store.revision, false));
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("second"));
    assert_eq!(mark(&gateway, "globex.test").as_deref(), Some("second"));
}

#[test]
fn no_request_fails_while_updates_come() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let (gateway, mut session) = serving(&plane, &store);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    let mut marks = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let answer = client.request("GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
                        assert_eq!(answer.status, 200, "{answer:?}");
                        marks.push(answer.header("x-mark").unwrap().to_owned());
                    }
                    marks.dedup();
                    marks.len()
                })
            })
            .collect();
        for number in 0..100 {
            let before = store.revision;
            store.put("acme", &marked("acme", &number.to_string()));
            if number % 10 == 0 {
                // And now and then what all stand beside.
                let policies =
                    json!({ "auth": { "accept": ["anonymous"] }, "security_headers": { "x-n": number.to_string() } });
                let upstreams = json!({ "demo": { "endpoints": [{ "address": origin.address.to_string() }] } });
                store.put("", &json!({ "defaults": policies, "upstreams": upstreams }));
            }
            let applied = session.push(store.update(Some(before)));
            assert_eq!((applied.revision, applied.refused.len()), (store.revision, 0), "{applied:?}");
            assert_eq!(mark(&gateway, "acme.test"), Some(number.to_string()));
        }
        done.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 1);
        }
    });
}

#[test]
fn whoever_shows_another_certificate_is_told_nothing() {
    let origin = Origin::start("a");
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let folder = tempfile::tempdir().unwrap();
    let ca = right.write(folder.path(), "ca");
    let more = format!(", ca: '{}'", ca.display());

    let plane = ControlPlane::start_with(&wrong.issue(&["127.0.0.1"]));
    let waiting = Waiting::start(&format!("https://{}", plane.address), &more);
    assert!(comes_true(|| waiting.log().contains("not connected to the control plane")));
    assert!(waiting.log().to_lowercase().contains("certificate"), "{}", waiting.log());
    assert!(!plane.has_session() && plane.refused() == 0);
    drop((waiting, plane));

    // Of the right authority, for another name.
    let plane = ControlPlane::start_with(&right.issue(&["admin.example"]));
    let waiting = Waiting::start(&format!("https://{}", plane.address), &more);
    assert!(comes_true(|| waiting.log().contains("not connected to the control plane")));
    assert!(!plane.has_session() && plane.refused() == 0);
    drop((waiting, plane));

    let plane = ControlPlane::start_with(&right.issue(&["127.0.0.1"]));
    let waiting = Waiting::start(&format!("https://{}", plane.address), &more);
    let mut session = plane.welcome();
    session.push(acme(&origin).update(None));
    assert_eq!(mark(&waiting.ready(), "acme.test").as_deref(), Some("first"));
}

#[test]
fn a_disk_that_takes_nothing_is_told_and_updates_go_on() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let mut store = acme(&origin);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), TOKEN).unwrap();
    let in_the_way = folder.path().join("state/control-plane");
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(&in_the_way, "").unwrap();
    let source = format!("control_plane: {{ url: 'http://{}', token: '${{file:token}}' }}\n", plane.address);
    let waiting = Waiting::start_in(folder, &source, &[]);
    let mut session = plane.welcome();
    session.push(store.update(None));
    let gateway = waiting.ready();
    assert!(comes_true(|| gateway.readyz().json()["last_reload"]["last_known_good_error"].is_string()));
    assert!(gateway.metric("seiketsu_config_last_known_good_outdated") > 0.5);
    let before = store.revision;
    store.put("acme", &marked("acme", "second"));
    session.push(store.update(Some(before)));
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("second"));
    fs::remove_file(&in_the_way).unwrap();
    assert!(comes_true(|| gateway.readyz().json()["last_reload"]["last_known_good_error"] == Value::Null));
    drop((session, plane));
    assert_eq!(mark(&restarted(gateway).ready(), "acme.test").as_deref(), Some("second"));
}

#[test]
fn what_makes_no_sense_ends_the_connection_and_changes_nothing() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let store = acme(&origin);
    let (gateway, mut session) = serving(&plane, &store);
    for nonsense in ["nonsense", "{\"update\":{\"nonce\":1}}", "[]"] {
        session.send_raw(nonsense);
        assert!(session.is_left());
        assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
        session = plane.welcome();
        assert_eq!(session.hello.holds, Some(store.held()));
    }
    assert!(gateway.logs("a message of the control plane cannot be read"));
    // A whole configuration that does not fit to itself changes nothing either.
    let mut cut = store.update(None);
    cut.put.pop();
    assert!(session.push(cut).lost);
    assert_eq!(mark(&gateway, "acme.test").as_deref(), Some("first"));
    // To be told nothing new is well, and answered.
    let applied = session.push(store.update(Some(store.revision)));
    assert_eq!((applied.lost, applied.revision), (false, store.revision));
}

#[test]
fn a_control_plane_that_has_fallen_silent_is_left() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let store = acme(&origin);
    let (gateway, session) = serving(&plane, &store);
    // It holds the connection and neither reads nor writes.
    let next = plane.welcome();
    assert_eq!(next.hello.holds, Some(store.held()));
    assert!(gateway.logs("nothing was heard for 5s"));
    drop(session);
}

#[test]
fn a_flag_and_a_variable_are_enough() {
    let (origin, plane) = (Origin::start("a"), ControlPlane::start());
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", plane.address);
    let node = "listeners: { http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }\nstate_dir: state\negress: { allow_loopback: true }\n";
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    let start = |token: Option<&str>, arguments: &[&str]| {
        let mut command = Command::new(binary("seiketsu-gateway"));
        command.arg("--config").arg(folder.path().join("node.yaml")).args(["--control-plane", &url]).args(arguments);
        if let Some(token) = token {
            command.env("SEIKETSU_CONTROL_PLANE_TOKEN", token).env("SEIKETSU_UNSEAL_KEY", "0f".repeat(32));
        }
        command
    };
    let told = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(told(start(None, &[])).contains("the control plane has no token"));
    let both = told(start(Some(TOKEN), &["--tenants", "tenants.yaml"]));
    assert!(both.contains("two sources of tenants"), "{both}");
    let checked = start(Some(TOKEN), &["--check-config"]).output().unwrap();
    assert!(String::from_utf8(checked.stdout).unwrap().contains("its tenants come from http://127.0.0.1"));

    let log = fs::File::create(folder.path().join("gateway.log")).unwrap();
    let child = start(Some(TOKEN), &[]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
    let _process = crate::support::Process(child);
    let mut session = plane.welcome();
    assert!(session.push(acme(&origin).update(None)).refused.is_empty());
    assert!(session.heartbeat(|it| it.ready).revision == 2);
    assert!(!folder.path().join("state/unseal.key").exists(), "the key is the one that was given");
}

#[test]
fn two_sources_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = "tenants: tenants.yaml\ncontrol_plane: { url: 'https://admin.example', token: '${env:TOKEN}' }\n";
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    let mut command = Command::new(binary("seiketsu-gateway"));
    let output = command.arg("--config").arg(folder.path().join("node.yaml")).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        told.contains("node.yaml:2:") && told.contains("two sources") && told.contains("fix: keep tenants or"),
        "{told}"
    );
}

#[test]
fn a_port_where_nobody_answers_is_told() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let waiting = Waiting::start(&format!("http://{nobody}"), "");
    let readyz = wait_for(&|| waiting.readyz().filter(|it| it.text().contains("cannot connect to"))).unwrap();
    assert_eq!(readyz.status, 503);
    assert!(readyz.json()["reason"].as_str().unwrap().contains("`control_plane`"), "{}", readyz.text());
    // It ends when it is told to, though it waits.
    waiting.process.signal("-TERM");
    assert!(comes_true(|| waiting.log().contains("ended before it began to serve")));
}

#[test]
fn usage_is_sent_a_page_at_a_time_and_forgotten_when_it_is_taken() {
    let origin = Origin::start("a");
    let plane = ControlPlane::start();
    let mut store = Store::new(origin.address);
    store.put("acme", &tenant("acme", &json!({})));
    let waiting = Waiting::of(&plane);
    let mut session = plane.accept();
    assert!(session.hello.usage);
    session.welcome_usage();
    session.push(store.update(None));
    let gateway = waiting.ready();
    let ask = |many: usize| {
        for _ in 0..many {
            assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
        }
    };
    let oldest = || gateway.metric("seiketsu_usage_oldest_timestamp_seconds");
    ask(3);
    let first = session.usage();
    assert!(first.missing.is_none() && first.records[0].sequence == 1, "{first:?}");
    let counts = &first.records[0].counts;
    assert!(counts.statuses.0[1] == counts.admitted && counts.latency_ms.all() == counts.admitted, "{first:?}");
    // Nothing more is sent before that is taken, whatever there is; and nothing is forgotten.
    ask(2);
    session.heartbeat(|_| true);
    session.heartbeat(|_| true);
    session.heartbeat(|_| true);
    assert!(oldest() > 1.0);
    // To another one, what was not taken is sent again.
    drop(session);
    let mut session = plane.accept();
    session.welcome_usage();
    let mut admitted = 0;
    while admitted < 5 {
        let page = session.usage();
        admitted += page.records.iter().map(|record| record.counts.admitted).sum::<u64>();
        let refused = Some("a record cannot be true".to_owned());
        session.send(&ToNode::UsageTaken(UsageTaken { log: page.log, next: page.next, refused }));
    }
    assert_eq!(admitted, 5);
    assert!(comes_true(|| oldest() < 0.5));
    // What does not count is told to whoever runs the node.
    assert!(comes_true(|| gateway.log().contains("a record cannot be true")));
}

#[test]
fn a_control_plane_that_does_not_know_of_usage_is_sent_none() {
    let origin = Origin::start("a");
    let plane = ControlPlane::start();
    let mut store = Store::new(origin.address);
    store.put("acme", &tenant("acme", &json!({})));
    let (gateway, mut session) = serving(&plane, &store);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    // Other messages than heartbeats would end the test.
    while gateway.metric("seiketsu_usage_records_total") < 0.5 {
        session.heartbeat(|_| true);
    }
    session.heartbeat(|_| true);
    session.heartbeat(|_| true);
}
