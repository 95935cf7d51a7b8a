//! What operators see: readiness, metrics, effective configuration, logs, traces; and how a node starts.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::{Value, json};

use crate::{
    fixtures::{Stub, comes_true, demo, key_hash, ok, open, tenants, upstream},
    support::{Client, Gateway, KEY, Origin, Process, pki::Authority, two_tenants, wait_for},
};

const REQUEST: &str = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

fn binary() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("seiketsu-gateway")
}

/// Runs the gateway to its end.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

/// A folder with a node file and this file of tenants.
fn folder(tenants: &str, node: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tenants.yaml"), tenants).unwrap();
    let node = format!(
        "listeners: {{ http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\n\
         tls: {{ development_certificate: true }}\nstate_dir: state\nthreads: 1\negress: {{ allow_loopback: true }}\n{node}"
    );
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    folder
}

/// Starts the gateway with these environment variables.
fn spawn(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("gateway.log")).unwrap();
    let mut command = Command::new(binary());
    command.arg("--config").arg(folder.join("node.yaml")).args(arguments).envs(variables.iter().copied());
    Process(command.stderr(log).stdout(Stdio::null()).spawn().unwrap())
}

fn gateway(folder: tempfile::TempDir, arguments: &[&str], variables: &[(&str, &str)]) -> Gateway {
    let process = spawn(folder.path(), arguments, variables);
    let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    Gateway { folder, http, https, operations, process }
}

fn open_tenants(origin: &Origin) -> String {
    tenants(&demo(&[origin.address], ""), "", &open(""))
}

#[test]
fn liveness_readiness_and_draining_are_told_apart() {
    let origin = Origin::start("a");
    let mut gateway = gateway(folder(&open_tenants(&origin), "drain: { delay: 2s }\n"), &[], &[]);
    assert_eq!(gateway.operations("/livez").status, 200);
    let ready = gateway.operations("/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    assert_eq!(ready.json()["revision"], 1);
    assert_eq!(gateway.operations("/nothing").status, 404);
    let post = Client::connect(gateway.operations)
        .request("POST /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));

    let mut client = gateway.connect();
    assert_eq!(client.request(REQUEST).status, 200);
    gateway.process.signal("-TERM");
    let draining = wait_for(&|| Some(gateway.operations("/readyz")).filter(|answer| answer.status == 503));
    let draining = draining.expect("draining is not ready").json();
    assert_eq!((&draining["ready"], &draining["checks"]["not_draining"]), (&json!(false), &json!(false)));
    assert_eq!(gateway.operations("/livez").status, 200);
    // Load balancers need time to notice; until then requests are served.
    assert_eq!(client.request(REQUEST).status, 200);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    let process = std::cell::RefCell::new(&mut gateway.process);
    let ended = wait_for(&|| process.borrow_mut().0.try_wait().unwrap()).expect("it ends");
    assert!(ended.success());
}

#[test]
fn a_second_signal_ends_the_node_whatever_it_waits_for() {
    let origin = Origin::start("a");
    let mut gateway = gateway(folder(&open_tenants(&origin), "drain: { delay: 10m }\n"), &[], &[]);
    let process = std::cell::RefCell::new(&mut gateway.process);
    process.borrow().signal("-TERM");
    assert!(comes_true(|| Client::connect(gateway.operations)
        .request("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .status
        == 503));
    let ended = wait_for(&|| {
        process.borrow().signal("-TERM");
        process.borrow_mut().0.try_wait().unwrap()
    });
    assert!(ended.is_some_and(|ended| !ended.success()));
}

/// Every line is a comment, or a series and a number; each family is described once, and nothing twice.
fn assert_prometheus_text(text: &str) {
    let mut seen = std::collections::HashSet::new();
    let mut types = std::collections::HashMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series.to_owned()), "{series} stands twice");
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(types.contains_key(name) || types.contains_key(base), "{line} has no type");
        }
    }
    assert!(!seen.is_empty());
}

#[test]
fn metrics_are_prometheus_text_and_strangers_cannot_blow_them_up() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let mut client = gateway.connect();
    for _ in 0..3 {
        assert_eq!(client.request(REQUEST).status, 200);
    }
    assert_eq!(gateway.get("acme.test", "/v1/secure/echo", "").status, 401);
    let before = gateway.operations("/metrics");
    assert!(before.header("content-type").unwrap().starts_with("text/plain"), "{before:?}");
    assert_prometheus_text(&before.text());
    for (series, value) in [
        (r#"seiketsu_requests_total{tenant="acme",route="open",class="2xx"}"#, 3.0),
        (r#"seiketsu_requests_total{tenant="acme",route="secure",class="4xx"}"#, 1.0),
        (r#"seiketsu_refusals_total{tenant="acme",reason="unauthenticated"}"#, 1.0),
        (r#"seiketsu_upstream_attempts_total{tenant="acme",result="answered"}"#, 3.0),
    ] {
        assert!((gateway.metric(series) - value).abs() < 0.5, "{series}: {}", gateway.metrics());
    }
    for n in 0..300 {
        let _ = client.request(&format!("GET /p{n} HTTP/1.1\r\nHost: stranger-{n}.test\r\nX-Label-{n}: 1\r\n\r\n"));
        let _ = client.request(&format!("GET /q{n} HTTP/1.1\r\nHost: acme.test\r\n\r\n"));
    }
    let after = gateway.metrics();
    assert_prometheus_text(&after);
    assert!(!after.contains("stranger") && !after.contains("/p1"));
    assert!(after.lines().count() < before.text().lines().count() + 60, "series grow with what strangers send");
}

#[test]
fn the_effective_configuration_names_its_layers_and_shows_no_secret() {
    let origin = Origin::start("a");
    let secret = |n: u32| format!("hush{n}hush");
    let tenant = format!(
        "plan: business
consumers: [{{ id: app, keys: [{{ prefix: testacme, hash: '{}' }}] }}]
jwt_issuers: [{{ issuer: 'https://login.test', audiences: [api], jwks: {{ url: 'https://127.0.0.1:1/jwks' }}, roles_claim: '{}' }}]
policies: {{ timeouts: {{ idle: 7s }}, security_headers: {{ x-own: tenant }} }}
",
        key_hash(KEY),
        "roles",
    );
    let route = format!(
        "- id: open
  match: {{ path: '/v1/{{*rest}}', headers: [{{ name: x-api-token, equals: '{}' }}], query: [{{ name: q, prefix: '{}' }}] }}
  upstream: demo
  canary: {{ upstream: next, header: {{ name: authorization, value: '{}' }}, cookie: {{ name: c, value: '{}' }} }}
  policies:
    headers: {{ request: {{ set: {{ authorization: 'Basic {}', x-api-key: '{}', cookie: 'a={}' }}, add: {{ x-auth-token: '{}' }} }} }}
    transform: {{ query: {{ set: {{ api_key: '{}' }} }} }}
",
        secret(2),
        secret(9),
        secret(3),
        secret(10),
        secret(4),
        secret(5),
        secret(6),
        secret(7),
        secret(8),
    );
    let probe = format!("health: {{ probe: {{ http: {{ path: '/healthz?key={}' }} }} }}", secret(11));
    let upstreams = demo(&[origin.address], &probe) + &upstream("next", &[origin.address], "");
    let yaml = tenants(&upstreams, &tenant, &route).replace(
        "upstreams:\n",
        "plans: { business: { timeouts: { idle: 9s }, request: { max_body: 5MiB } } }\nupstreams:\n",
    );
    let gateway = Gateway::start(&yaml);
    let of_route = gateway.operations("/config?tenant=acme&route=open");
    let of_tenant = gateway.operations("/config?tenant=acme");
    assert_eq!((of_route.status, of_tenant.status), (200, 200));
    let hash = key_hash(KEY);
    let places = [
        of_route.text(),
        of_tenant.text(),
        gateway.operations("/config").text(),
        gateway.readyz().text(),
        gateway.log(),
        gateway.metrics(),
    ];
    for place in &places {
        for n in 2..=11 {
            assert!(!place.contains(&secret(n)), "secret {n} is shown: {place}");
        }
        assert!(!place.contains(&hash[7..]), "the hash of a key is shown: {place}");
    }
    let effective = &of_route.json()["effective"]["policies"];
    let layer = |name: &str| effective[name]["layer"].clone();
    assert_eq!((layer("timeouts"), layer("request")), (json!("tenant"), json!("plan")), "{effective}");
    assert_eq!((layer("auth"), layer("transform")), (json!("defaults"), json!("route")), "{effective}");
    assert_eq!(effective["timeouts"]["value"]["idle"], "7s", "{effective}");
    assert_eq!(effective["security_headers"]["x-own"]["layer"], "tenant", "{effective}");
    assert_eq!(gateway.operations("/config?tenant=nobody").status, 404);
    assert_eq!(gateway.operations("/config?tenant=acme&route=none").status, 404);
    assert_eq!(gateway.operations("/config?route=open").status, 400);
}

#[test]
fn hup_reads_the_files_again_and_reopens_the_access_log() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&open_tenants(&origin));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    assert!(comes_true(|| !gateway.access_log().is_empty()));
    let rotated = gateway.folder.path().join("access.log.1");
    fs::rename(gateway.folder.path().join("access.log"), &rotated).unwrap();
    gateway.process.signal("-HUP");
    assert!(comes_true(|| {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
        !gateway.access_log().is_empty()
    }));
    gateway
        .write_tenants(&open_tenants(&origin).replace("revision: 1", "revision: 2").replace("acme.test", "acme2.test"));
    gateway.process.signal("-HUP");
    assert!(comes_true(|| gateway.get("acme2.test", "/v1/echo", "").status == 200));
}

#[test]
fn a_bad_file_is_reported_everywhere_and_changes_nothing() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&open_tenants(&origin));
    let refused = r#"seiketsu_config_reloads_total{result="refused"}"#;
    assert!(gateway.metric(refused) < 0.5);
    let last_success = gateway.metric("seiketsu_config_last_success_timestamp_seconds");
    // That time is in whole seconds.
    crate::fixtures::let_pass(Duration::from_millis(1100));
    gateway.write_tenants(
        &open_tenants(&origin).replace("revision: 1", "revision: 2").replace("upstream: demo", "upstream: dema"),
    );
    assert!(comes_true(|| gateway.metric(refused) > 0.5));
    let ready = gateway.readyz();
    assert_eq!(ready.status, 200, "it goes on with what it has");
    let error = ready.json()["last_reload"]["errors"][0].as_str().unwrap().to_owned();
    for part in ["tenants.yaml:", "routes[0].upstream", "dema", "fix:"] {
        assert!(error.contains(part), "{part} is not in {error}");
        assert!(gateway.logs(part), "{part} is not in {}", gateway.log());
    }
    assert!((gateway.metric("seiketsu_config_revision") - 1.0).abs() < 0.5);
    assert!((gateway.metric("seiketsu_config_last_success_timestamp_seconds") - last_success).abs() < 0.5);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    gateway.write_tenants(&open_tenants(&origin).replace("revision: 1", "revision: 3"));
    assert!(comes_true(|| gateway.readyz().json()["last_reload"]["errors"] == json!([])));
    assert!((gateway.metric("seiketsu_config_revision") - 3.0).abs() < 0.5);
}

#[test]
fn one_bad_file_of_a_folder_leaves_the_others_to_change() {
    let origin = Origin::start("a");
    let folder = folder("", "tenants: tenants.d\n");
    let tenants = folder.path().join("tenants.d");
    let of = |id: &str, host: &str, revision: u32| {
        let yaml = open_tenants(&origin).replace("id: acme", &format!("id: {id}")).replace("acme.test", host);
        yaml.replace("revision: 1", &format!("revision: {revision}"))
    };
    fs::create_dir(&tenants).unwrap();
    fs::write(tenants.join("acme.yaml"), of("acme", "acme.test", 1)).unwrap();
    fs::write(tenants.join("globex.yaml"), of("globex", "globex.test", 1)).unwrap();
    let gateway = gateway(folder, &[], &[]);
    assert_eq!(gateway.get("globex.test", "/v1/echo", "").status, 200);

    fs::write(tenants.join("acme.yaml"), "revision: [").unwrap();
    fs::write(tenants.join("globex.yaml"), of("globex", "globex2.test", 2)).unwrap();
    assert!(comes_true(|| gateway.get("globex2.test", "/v1/echo", "").status == 200), "{}", gateway.log());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200, "the broken one keeps its former state");
    // What is in force is told a moment after it came into force.
    let errors = || gateway.readyz().json()["last_reload"]["errors"].to_string();
    assert!(comes_true(|| errors().contains("acme.yaml")), "{}", errors());
    assert!(!errors().contains("globex"), "{}", errors());

    // A host that another tenant has is a conflict over files, and changes nothing.
    fs::write(tenants.join("acme.yaml"), of("acme", "globex2.test", 3)).unwrap();
    assert!(comes_true(|| gateway.readyz().json()["last_reload"]["errors"].to_string().contains("globex2.test")));
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    fs::remove_file(tenants.join("globex.yaml")).unwrap();
    fs::write(tenants.join("acme.yaml"), of("acme", "acme3.test", 4)).unwrap();
    assert!(comes_true(|| gateway.get("acme3.test", "/v1/echo", "").status == 200), "{}", gateway.log());
    assert!(comes_true(|| gateway.get("globex2.test", "/v1/echo", "").status == 404));
}

#[test]
fn a_node_starts_from_the_last_good_configuration_when_the_file_is_broken() {
    let origin = Origin::start("a");
    let first = Gateway::start(&open_tenants(&origin));
    assert_eq!(first.get("acme.test", "/v1/echo", "").status, 200);
    let Gateway { folder, process, .. } = first;
    drop(process);
    fs::write(folder.path().join("tenants.yaml"), "revision: [").unwrap();
    let second = gateway(folder, &[], &[]);
    assert_eq!(second.get("acme.test", "/v1/echo", "").status, 200);
    let ready = second.readyz().json();
    assert_eq!((&ready["ready"], &ready["last_reload"]["from_last_known_good"]), (&json!(true), &json!(true)));
    assert!(ready["last_reload"]["errors"][0].as_str().unwrap().contains("tenants.yaml"), "{ready}");
    // Reading the broken file again does not make it good.
    let refused = r#"seiketsu_config_reloads_total{result="refused"}"#;
    let before = second.metric(refused);
    second.process.signal("-HUP");
    assert!(comes_true(|| second.metric(refused) > before + 0.5));
    assert_eq!(second.readyz().json()["last_reload"]["from_last_known_good"], true);
    second.write_tenants(&open_tenants(&origin).replace("revision: 1", "revision: 5"));
    assert!(comes_true(|| second.readyz().json()["last_reload"]["from_last_known_good"] == false));
}

#[test]
fn a_node_without_any_good_configuration_does_not_start() {
    let folder = folder("revision: 1\ntenants:\n- id: acme\n  hosts: [acme.test]\n  rutes: []\n", "");
    let output = run(folder.path(), &["--config", "node.yaml"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("tenants.yaml:5:3") && said.contains("rutes"), "{said}");
}

#[test]
fn check_config_says_what_where_and_what_to_do() {
    let origin = Origin::start("a");
    let good = folder(&open_tenants(&origin), "");
    let output = run(good.path(), &["--config", "node.yaml", "--check-config"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!good.path().join("state/last-known-good").exists(), "looking changes nothing");

    for (wrong, parts) in [
        (
            "revision: 1\ntenants:\n- id: acme\n  hosts: [acme.test]\n  rutes: []\n  routes: []\n",
            &["tenants.yaml:5:3", "tenants[0]", "rutes", "routes", "fix:"][..],
        ),
        (
            "revision: 1\ntenants:\n- id: acme\n  hosts: ['*.*.test']\n  routes: []\n",
            &["tenants.yaml:4:", "tenants[0].hosts[0]", "*.*.test", "write it as"],
        ),
        ("revision: one\n", &["tenants.yaml:1:11", "revision", "a text", "write a whole number"]),
        (
            "revision: 1\ntenants:\n- id: a\n  hosts: [x.test]\n  routes: []\n- id: b\n  hosts: [x.test]\n  routes: []\n",
            &["tenants.yaml:7:", "x.test", "tenants[1]", "fix:"],
        ),
    ] {
        let folder = folder(wrong, "");
        let output = run(folder.path(), &["--config", "node.yaml", "--check-config"]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for part in parts {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
    let node = folder(&open_tenants(&origin), "listenrs: {}\n");
    let output = run(node.path(), &["--config", "node.yaml", "--check-config"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("node.yaml:") && said.contains("listenrs") && said.contains("listeners"), "{said}");
}

#[test]
fn check_config_tries_the_state_folder_and_leaves_no_trace() {
    let origin = Origin::start("a");
    let good = folder(&open_tenants(&origin), "");
    let check = |state: &str| run(good.path(), &["--config", "node.yaml", "--check-config", "--state-dir", state]);
    assert!(check("a/b").status.success());
    assert!(!good.path().join("a").exists());
    fs::write(good.path().join("file"), "").unwrap();
    for impossible in ["/proc/x", "file/b"] {
        let refused = check(impossible);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{impossible}");
        assert!(
            said.contains(&format!("cannot use the state folder {impossible}")) && said.contains("--state-dir"),
            "{said}"
        );
    }
}

#[test]
fn https_without_any_certificate_is_warned_of() {
    const WARNING: &str = "listeners.https: there is no certificate";
    let origin = Origin::start("a");
    let without = folder(&open_tenants(&origin), "");
    let node = fs::read_to_string(without.path().join("node.yaml")).unwrap();
    let node = node.replace("tls: { development_certificate: true }\n", "");
    for (node, warned) in [(node.replace("https: ['127.0.0.1:0']", "https: []"), false), (node, true)] {
        fs::write(without.path().join("node.yaml"), node).unwrap();
        let output = run(without.path(), &["--config", "node.yaml", "--check-config"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).contains(WARNING), warned, "{output:?}");
    }
    let gateway = gateway(without, &[], &[]);
    assert!(gateway.logs(WARNING), "{}", gateway.log());
}

#[test]
fn certificates_that_clients_refuse_are_warned_of_before_a_start_and_at_it() {
    let origin = Origin::start("a");
    let made = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let pairs = [
        ("good", authority.issue(&["acme.test"])),
        ("below", authority.issue(&["a.b.acme.test"])),
        ("old", authority.issue_expired(&["acme.test"])),
        ("ahead", authority.issue_ahead(&["*.acme.test"], Duration::from_hours(24))),
        ("other", authority.issue(&["other.example", "*.example", "xacme.test"])),
    ];
    let pairs: Vec<String> = pairs.iter().map(|(name, leaf)| leaf.write(made.path(), name)).collect();
    let tls = format!("tls: {{ certificates: [{}] }}\n", pairs.join(", "));
    let tenants = tenants(&demo(&[origin.address], ""), &tls, &open(""));
    let folder = folder(&tenants.replace("[acme.test]", "[acme.test, '*.acme.test']"), "");
    let output = run(folder.path(), &["--config", "node.yaml", "--check-config"]);
    assert!(output.status.success(), "{output:?}");
    let checked = String::from_utf8(output.stderr).unwrap();
    let gateway = gateway(folder, &[], &[]);
    assert!(gateway.logs("covers none"), "{}", gateway.log());
    for log in [checked, gateway.log()] {
        for (path, told) in [
            ("old.pem", "has expired"),
            ("ahead.pem", "is not valid yet"),
            ("other.pem", "covers none of the tenant's hosts"),
        ] {
            assert!(log.lines().any(|line| line.contains(path) && line.contains(told)), "{path}: {log}");
        }
        assert!(!log.contains("good.pem") && !log.contains("below.pem"), "{log}");
        assert_eq!(log.matches("covers none").count(), 1, "{log}");
    }
}

#[test]
fn flags_go_before_variables_and_these_before_the_file() {
    let origin = Origin::start("a");
    let other = open_tenants(&origin).replace("acme.test", "other.test");
    let folder = folder(&open_tenants(&origin), "id: of-file\naccess_log: { output: { file: access.log } }\n");
    fs::write(folder.path().join("other.yaml"), other).unwrap();
    let path = folder.path().join("other.yaml");
    let gateway = gateway(
        folder,
        &["--node-id", "of-flag"],
        &[("SEIKETSU_NODE_ID", "of-variable"), ("SEIKETSU_TENANTS", path.to_str().unwrap()), ("SEIKETSU_LOG", "debug")],
    );
    assert_eq!(gateway.get("other.test", "/v1/echo", "").status, 200);
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 404);
    assert!(comes_true(|| gateway.access_log().contains(r#""node":"of-flag""#)), "{}", gateway.access_log());
    assert!(gateway.logs("DEBUG"));
}

#[test]
fn the_access_log_has_a_whole_line_for_each_request_and_no_secret() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let fields =
        format!("X-API-Key: {KEY}\r\nUser-Agent: curl \"8\"\\\r\nCookie: session=hush\r\nX-Request-Id: mine\r\n");
    let answer = gateway.get("acme.test", "/v1/secure/echo?token=hush", &fields);
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.get("acme.test", "/v1/secure/echo", "Authorization: Bearer sk_hush_hush\r\n").status, 401);
    assert_eq!(gateway.get("nobody.test", "/", "").status, 404);
    let lines = || -> Vec<Value> {
        gateway.access_log().lines().map(|line| serde_json::from_str(line).expect("a whole line of JSON")).collect()
    };
    assert!(comes_true(|| lines().len() == 3), "{}", gateway.access_log());
    assert!(!gateway.access_log().contains("hush") && !gateway.access_log().contains(KEY), "{}", gateway.access_log());
    let lines = lines();
    let line = lines.iter().find(|line| line["status"] == 200).unwrap();
    for (field, expected) in [
        ("tenant", json!("acme")),
        ("route", json!("secure")),
        ("consumer", json!("app")),
        ("client", json!("127.0.0.1")),
        ("method", json!("GET")),
        ("host", json!("acme.test")),
        ("path", json!("/v1/secure/echo")),
        ("protocol", json!("HTTP/1.1")),
        ("node", json!("test")),
        ("user_agent", json!("curl \"8\"\\")),
        ("bytes_out", json!(answer.body.len())),
    ] {
        assert_eq!(line[field], expected, "{field} in {line}");
    }
    assert_eq!(line["request_id"].as_str(), answer.header("x-request-id"));
    assert_ne!(line["request_id"], "mine", "a stranger does not name our requests");
    assert!(line["time"].as_str().unwrap().ends_with('Z') && line["duration_ms"].as_f64().unwrap() > 0.0);
    let upstream = &line["upstream"];
    assert_eq!(
        (&upstream["name"], &upstream["status"], &upstream["attempts"]),
        (&json!("demo"), &json!(200), &json!(1))
    );
    assert_eq!(upstream["address"], json!(origin.address.to_string()));
    let refused = lines.iter().find(|line| line["status"] == 401).unwrap();
    assert_eq!((&refused["refusal"], refused.get("upstream")), (&json!("unauthenticated"), None));
    let unknown = lines.iter().find(|line| line["status"] == 404).unwrap();
    assert_eq!((unknown.get("tenant"), &unknown["host"]), (None, &json!("nobody.test")));
}

#[test]
fn the_share_that_is_logged_can_be_chosen_and_errors_are_logged_always() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&tenants(&demo(&[origin.address], ""), "", &open("access_log: { sample: 0 }")));
    for _ in 0..20 {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    }
    assert_eq!(gateway.get("acme.test", "/v1/status/500", "").status, 500);
    assert!(comes_true(|| gateway.access_log().contains("\"status\":500")));
    assert_eq!(gateway.access_log().lines().count(), 1, "{}", gateway.access_log());
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_trace_goes_on_through_the_gateway() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&open_tenants(&origin));
    let fields = format!("traceparent: {PARENT}\r\ntracestate: a=b,c=d\r\n");
    let answer = gateway.get("acme.test", "/v1/echo", &fields);
    assert!(answer.echoed("traceparent").unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    assert_eq!(answer.echoed("tracestate").as_deref(), Some("a=b,c=d"));
}

#[test]
fn a_trace_that_is_none_begins_anew() {
    let origin = Origin::start("a");
    let folder = folder(&open_tenants(&origin), "");
    let gateway = gateway(folder, &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]);
    for broken in ["00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "zz"] {
        let answer = gateway.get("acme.test", "/v1/echo", &format!("traceparent: {broken}\r\ntracestate: a=b\r\n"));
        assert_eq!(answer.status, 200);
        let parent = answer.echoed("traceparent").expect("a trace of the gateway's own");
        assert!(parent.len() == 55 && parent != broken, "{parent}");
        assert_eq!(answer.echoed("tracestate"), None, "it belongs to what was broken");
    }
}

#[test]
fn spans_are_sent_to_a_collector() {
    let origin = Origin::start("a");
    let collector = Stub::start(|_| ok("Content-Type: application/x-protobuf\r\n", b""));
    let endpoint = format!("http://{}", collector.address);
    let folder = folder(&open_tenants(&origin), "");
    let gateway =
        gateway(folder, &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let answer = gateway.get(
        "acme.test",
        "/v1/echo?secret=hush",
        &format!("traceparent: {PARENT}\r\nAuthorization: Basic hush\r\n"),
    );
    let told_upstream = answer.echoed("traceparent").unwrap();
    assert!(comes_true(|| !collector.seen().is_empty()), "{}", gateway.log());
    let seen = collector.seen().remove(0);
    assert_eq!(seen.target(), "/v1/traces");
    let mut body = Vec::new();
    match seen.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&seen.body[..]).read_to_end(&mut body).unwrap();
        }
        _ => body.clone_from(&seen.body),
    }
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    assert!(!format!("{request:?}").contains("hush"));
    let spans: Vec<_> = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
    assert!(
        spans.iter().any(|span| hex(&span.parent_span_id) == "b7ad6b7169203331"),
        "no span has the caller's as parent"
    );
    assert!(
        spans.iter().any(|span| told_upstream.contains(&hex(&span.span_id))),
        "{told_upstream} names none of the spans"
    );
}

#[test]
fn a_dead_collector_costs_nothing() {
    let origin = Origin::start("a");
    let hanging = Stub::start(|_| {
        loop {
            std::thread::park();
        }
    });
    for endpoint in ["http://127.0.0.1:1".to_owned(), format!("http://{}", hanging.address)] {
        let folder = folder(&open_tenants(&origin), "");
        let mut gateway =
            gateway(folder, &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "10")]);
        let began = Instant::now();
        let mut client = gateway.connect();
        for _ in 0..500 {
            assert_eq!(client.request(REQUEST).status, 200);
        }
        assert!(began.elapsed().as_secs() < 15, "{endpoint}");
        gateway.process.signal("-TERM");
        let process = std::cell::RefCell::new(&mut gateway.process);
        let ended = wait_for(&|| process.borrow_mut().0.try_wait().unwrap());
        assert!(ended.is_some_and(|ended| ended.success()), "{endpoint}");
    }
}

#[test]
fn wrong_trace_settings_are_refused_at_start() {
    let origin = Origin::start("a");
    let folder = folder(&open_tenants(&origin), "");
    let output = Command::new(binary())
        .args(["--config", "node.yaml"])
        .current_dir(folder.path())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{output:?}");
}
