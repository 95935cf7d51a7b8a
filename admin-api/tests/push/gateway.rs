//! Real gateways that get their tenants from a real control plane.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::admin::{Admin, Answer, Process, binary, eventually, exchange};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples")
}

/// The demo origin, on a port that the kernel chose.
pub struct Origin {
    pub address: SocketAddr,
    _process: Process,
}

impl Origin {
    pub fn start(region: &str) -> Self {
        let mut child = Command::new(binary("seiketsu-demo-origin"))
            .args(["--listen", "127.0.0.1:0", "--region", region])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        errors.read_line(&mut line).unwrap();
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        let address = line.split_whitespace().find_map(|word| word.trim_start_matches("http://").parse().ok());
        Self { address: address.unwrap_or_else(|| panic!("no address in {line:?}")), _process: Process(child) }
    }
}

pub struct Gateway {
    folder: PathBuf,
    pub http: SocketAddr,
    pub process: Process,
}

impl Gateway {
    /// It is ready when it has tenants to serve.
    pub async fn start(admin: &Admin, folder: &Path) -> Self {
        Self::start_as(admin, admin.address, folder, "").await
    }

    /// With the control plane at another address.
    pub async fn start_by(admin: &Admin, address: SocketAddr, folder: &Path) -> Self {
        Self::start_as(admin, address, folder, "").await
    }

    /// `more` is further settings of the node.
    pub async fn start_with(admin: &Admin, folder: &Path, more: &str) -> Self {
        Self::start_as(admin, admin.address, folder, more).await
    }

    async fn start_as(admin: &Admin, address: SocketAddr, folder: &Path, more: &str) -> Self {
        let id = folder.file_name().unwrap().to_str().unwrap();
        fs::create_dir_all(folder).unwrap();
        let node = format!(
            "id: {id}\nlisteners: {{ http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\n\
             control_plane: {{ url: 'http://{}', token: '${{file:{}}}' }}\n\
             state_dir: state\nthreads: 1\negress: {{ allow_loopback: true }}\n{more}",
            address,
            admin.folder.path().join("node-token").display(),
        );
        fs::write(folder.join("node.yaml"), node).unwrap();
        Self::start_in(folder).await
    }

    /// With the node file that is there.
    pub async fn start_in(folder: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("gateway.log")).unwrap();
        let child = Command::new(binary("seiketsu-gateway"))
            .arg("--config")
            .arg(folder.join("node.yaml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Process(child);
        let path = folder.join("state/addresses.json");
        let pid = process.0.id();
        let read = || -> Option<(SocketAddr, SocketAddr)> {
            let json: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
            let address = |value: &Value| value.as_str()?.parse().ok();
            (json["pid"] == pid).then_some((address(&json["http"][0])?, address(&json["operations"])?))
        };
        let log = || fs::read_to_string(folder.join("gateway.log")).unwrap();
        assert!(eventually(async || read().is_some()).await, "{}", log());
        let (http, operations) = read().unwrap();
        let ready = async || exchange(operations, "GET", "/readyz", "", "").await.is_some_and(|it| it.status == 200);
        assert!(eventually(ready).await, "not ready: {}", log());
        Self { folder: folder.to_owned(), http, process }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("gateway.log")).unwrap()
    }

    pub async fn get(&self, host: &str, path: &str, fields: &str) -> Answer {
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), text: text.to_owned() }
    }
}

pub fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| {
        let (have, value) = line.split_once(':')?;
        have.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub fn served(id: &str, origin: SocketAddr) -> Value {
    json!({
        "id": id,
        "hosts": [format!("{id}.test")],
        "upstreams": { "own": { "endpoints": [{ "address": origin.to_string() }] } },
        "policies": {
            "auth": { "accept": ["anonymous"] },
            "limits": { "rate": { "requests": 600, "per": "1m", "burst": 100 } },
        },
        "routes": [{ "id": "all", "match": { "path": "/{*rest}" }, "upstream": "own" }],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_nodes_have_applied_holds_for_the_next_request() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    admin.put(&served("acme", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let one = Gateway::start(&admin, &folder.path().join("one")).await;
    let two = Gateway::start(&admin, &folder.path().join("two")).await;
    for burst in 101..120 {
        let body = json!({ "tenant": "acme", "burst_limit": burst });
        let answer = admin.ask("PUT", "/gateway/limits?wait=applied&timeout=20s", Some(body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["applied"]["nodes"].as_array().map(Vec::len), Some(2), "{answer:?}");
        for gateway in [&one, &two] {
            let answer = gateway.get("acme.test", "/v1/echo", "").await;
            let policy = field(&answer, "ratelimit-policy").unwrap_or_default();
            assert!(policy.starts_with(&format!("\"rate\";q={burst};")), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_cannot_serve_a_tenant_is_named_and_serves_the_others() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    admin.put(&served("acme", origin.address), "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&admin, &folder.path().join("one")).await;
    let mut broken = served("globex", origin.address);
    broken["consumers"] =
        json!([{ "id": "app", "keys": [{ "prefix": "testglobex", "key": "${file:files/globex/key}" }] }]);
    let answer = admin.put(&broken, "?wait=applied&timeout=2s").await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.text.contains("files/globex/key") && answer.text.contains("\"one\""), "{answer:?}");
    let answer = admin.put(&served("initech", origin.address), "?wait=applied&timeout=20s").await;
    assert!(answer.status < 300, "{answer:?}");
    for (host, status) in [("acme.test", 200), ("initech.test", 200), ("globex.test", 404)] {
        assert_eq!(gateway.get(host, "/v1/echo", "").await.status, status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_serve_on_while_the_control_plane_is_away_and_start_without_it() {
    let origin = Origin::start("a");
    let mut admin = Admin::start().await;
    admin.put(&served("acme", origin.address), "").await.revision();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("one");
    let gateway = Gateway::start(&admin, &folder).await;
    let known = admin.put(&served("globex", origin.address), "?wait=applied&timeout=20s").await;
    assert!(known.status < 300, "{known:?}");
    admin.process.0.kill().unwrap();
    admin.process.0.wait().unwrap();
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").await.status, 200);
    drop(gateway);
    let gateway = Gateway::start_in(&folder).await;
    for host in ["acme.test", "globex.test"] {
        assert_eq!(gateway.get(host, "/v1/echo", "").await.status, 200, "{host}");
    }
    admin.restart().await;
    let changed = admin.ask("DELETE", "/tenants/globex", None).await;
    changed.revision();
    let gone = async || gateway.get("globex.test", "/v1/echo", "").await.status == 404;
    assert!(eventually(gone).await, "it follows again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_does_what_script_server_says() {
    let (west, east) = (Origin::start("eu-west"), Origin::start("us-east"));
    let admin = Admin::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config/examples");
    fs::create_dir_all(&config).unwrap();
    let read = |name: &str| fs::read_to_string(examples().join(name)).unwrap();
    let with = |text: String, from: &str, to: String| {
        assert!(text.contains(from), "the example has no {from:?} any more");
        text.replace(from, &to)
    };
    let tenants = with(read("demo-tenants.yaml"), "127.0.0.1:9001", west.address.to_string());
    fs::write(config.join("demo-tenants.yaml"), with(tenants, "127.0.0.1:9002", east.address.to_string())).unwrap();
    let keys = folder.path().join("var/demo-keys");
    assert!(Command::new(binary("seiketsu-demo-credentials")).arg("--folder").arg(&keys).status().unwrap().success());
    fs::create_dir_all(folder.path().join("var/admin")).unwrap();
    fs::write(folder.path().join("var/admin/node-token"), &admin.node_token).unwrap();
    let imported = admin.ctl(&["import", config.join("demo-tenants.yaml").to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");

    // The example itself, but for addresses that are free here.
    let mut node = with(read("demo-node.yaml"), "127.0.0.1:9080", admin.address.to_string());
    for address in ["127.0.0.1:8080", "127.0.0.1:8443", "127.0.0.1:9090"] {
        node = with(node, address, "127.0.0.1:0".to_owned());
    }
    let node = with(node, "../../var/gateway", "state".to_owned());
    fs::write(config.join("node.yaml"), node).unwrap();
    let gateway = Gateway::start_in(&config).await;

    for tenant in ["acme", "globex", "initech", "umbrella"] {
        let host = format!("{tenant}.localhost");
        assert_eq!(gateway.get(&host, "/v1/echo", "").await.status, 200, "{tenant}");
        let key = fs::read_to_string(keys.join(tenant)).unwrap();
        let key = format!("x-api-key: {}\r\n", key.trim());
        assert_eq!(gateway.get(&host, "/v1/secure/echo", "").await.status, 401, "{tenant}");
        assert_eq!(gateway.get(&host, "/v1/secure/echo", &key).await.status, 200, "{tenant}");
    }
    let policy = async |of: &str| {
        let answer = gateway.get("acme.localhost", "/v1/echo", "").await;
        let policy = field(&answer, "ratelimit-policy").unwrap_or_default().to_owned();
        assert!(policy.starts_with(of), "{policy}");
    };
    policy("\"rate\";q=100;w=6").await;
    let changed = admin.ctl(&["limits", "set", "acme", "--rpm", "500", "--burst", "50", "--wait=20s"]);
    let told = String::from_utf8(changed.stdout.clone()).unwrap();
    assert!(changed.status.success() && told.contains("applied by demo"), "{changed:?}");
    policy("\"rate\";q=50;w=6").await;
}
