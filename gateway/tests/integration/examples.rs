//! Every file of `config/examples`, served by a real gateway with addresses put in that exist here.

use std::{
    collections::HashSet,
    fs,
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::json;

use crate::{
    fixtures::{Stub, comes_true, key_hash, ok},
    limits::Redis,
    support::{
        Client, Gateway, Origin, PATIENCE, Process, Response, binary,
        control_plane::{ControlPlane, Store, TOKEN},
        pki,
    },
};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples")
}

fn example(name: &str) -> String {
    fs::read_to_string(examples().join(name)).unwrap()
}

/// The text with each of these replaced, all of which must be in it.
fn with(mut text: String, replacements: &[(&str, String)]) -> String {
    for (from, to) in replacements {
        assert!(text.contains(from), "the example has no {from:?} any more");
        text = text.replace(from, to);
    }
    text
}

fn serve(name: &str, replacements: &[(&str, String)]) -> Gateway {
    Gateway::start(&with(example(name), replacements))
}

/// The key that the reference takes from the environment.
const MOBILE_KEY: &str = "sk_e5f6a7b8_0123456789abcdefghijklmnopqrstuv";
const HOST: &str = "api.acme.example";

impl Gateway {
    fn send(&self, method: &str, host: &str, target: &str, fields: &str, body: &str) -> Response {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.connect().request(&format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n{body}"))
    }
}

#[test]
fn no_example_is_forgotten() {
    let driven: HashSet<&str> = [
        "caching.yaml",
        "canary.yaml",
        "control-plane-node.yaml",
        "demo-node.yaml",
        "demo-tenants.yaml",
        "limits.yaml",
        "minimal.yaml",
        "mtls.yaml",
        "reference-node.yaml",
        "reference-tenants.yaml",
        "transforms.yaml",
        "validation",
        "validation.yaml",
        "versioning.yaml",
    ]
    .into();
    for entry in fs::read_dir(examples()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(driven.contains(name.as_str()), "{name} is driven by no test of this file");
    }
}

#[test]
fn a_node_without_tenants_of_its_own_asks_the_control_plane() {
    let (origin, authority) = (Origin::start("a"), pki::Authority::new("admin"));
    let plane = ControlPlane::start_with(&authority.issue(&["127.0.0.1"]));
    let node = with(
        example("control-plane-node.yaml"),
        &[
            ("http: [127.0.0.1:8080]", "http: [127.0.0.1:0]\n  operations: 127.0.0.1:0".to_owned()),
            ("admin.example:9080", plane.address.to_string()),
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tls")).unwrap();
    authority.write(&folder.path().join("tls"), "admin-ca");
    fs::write(folder.path().join("node-token"), TOKEN).unwrap();
    fs::write(folder.path().join("node.yaml"), format!("{node}egress: {{ allow_loopback: true }}\n")).unwrap();
    let _process = Gateway::spawn(folder.path(), &[]);
    let mut session = plane.welcome();
    assert_eq!(session.hello.node.as_str(), "gateway-1");
    assert!(session.push(Store::new(origin.address).update(None)).refused.is_empty());
    session.heartbeat(|it| it.ready);
}

#[test]
fn minimal_serves() {
    let origin = Origin::start("a");
    let gateway = serve("minimal.yaml", &[("api.internal:8080", origin.address.to_string())]);
    assert_eq!(gateway.get(HOST, "/v1/echo", "").status, 200);
}

#[test]
fn what_is_tried_first_is_accepted_as_it_stands() {
    let readme = fs::read_to_string(examples().join("../../README.md")).unwrap();
    let first = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let first = with(first.to_owned(), &[("sha256:…", key_hash(MOBILE_KEY))]);
    for text in [example("minimal.yaml"), first] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tenants.yaml"), &text).unwrap();
        let mut check = Command::new(binary("seiketsu-gateway"));
        let output = check.arg("--check-config").current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn caching_keeps_what_it_may() {
    let origin = Stub::answering("", "x");
    let gateway = serve("caching.yaml", &[("catalogue.internal:8080", origin.address.to_string())]);
    let asked = |target: &str| {
        let before = origin.seen().len();
        assert_eq!(gateway.get(HOST, target, "").status, 200);
        origin.seen().len() - before
    };
    assert_eq!(["/v1/live/a", "/v1/live/a"].map(asked), [1, 1]);
    assert_eq!(["/v1/products", "/v1/products"].map(asked), [1, 0]);
    assert_eq!(["/v1/search?a=1&b=2", "/v1/search?b=2&a=1"].map(asked), [1, 0]);
}

#[test]
fn canary_splits_and_mirrors() {
    let (stable, release) = (Origin::start("stable"), Origin::start("release"));
    let candidate = Stub::start(|_| ok("", b""));
    let gateway = serve(
        "canary.yaml",
        &[
            ("calls-stable.internal:8080", stable.address.to_string()),
            ("calls-release.internal:8080", release.address.to_string()),
            ("calls-candidate.internal:8080", candidate.address.to_string()),
        ],
    );
    let tester = gateway.get(HOST, "/v1/calls/echo", "X-Release: next\r\n");
    assert_eq!(tester.header("x-origin-region"), Some("release"));
    let first = gateway.get(HOST, "/v1/calls/echo", "");
    assert!(first.header("set-cookie").unwrap().starts_with("release="));
    for _ in 0..60 {
        assert_eq!(
            gateway.get(HOST, "/v1/calls/echo", "Cookie: release=9999\r\n").header("x-origin-region"),
            Some("stable")
        );
    }
    assert!(comes_true(|| !candidate.seen().is_empty()));
    assert!(candidate.seen().len() < 50, "a third is mirrored");
}

#[test]
fn transforms_translate_both_ways() {
    let legacy = Stub::answering(
        "Content-Type: application/json\r\nServer: old/1.0\r\nX-Powered-By: old\r\nContent-Security-Policy: own\r\n",
        r#"{"CUST_NO":7,"CUST_NM":"Ada"}"#,
    );
    let gateway = serve("transforms.yaml", &[("legacy.internal:8080", legacy.address.to_string())]);
    let answer = gateway.get(HOST, "/v2/customers/7?lang=de", "X-Correlation-Id: c1\r\n");
    assert_eq!(answer.json(), json!({ "id": 7, "name": "Ada" }));
    assert_eq!((answer.header("server"), answer.header("x-powered-by")), (None, None));
    assert_eq!(answer.all("content-security-policy"), ["own"]);
    assert_eq!(answer.header("cross-origin-resource-policy"), Some("cross-origin"));
    let seen = legacy.seen().remove(0);
    assert_eq!(seen.target(), "/cgi/customer/7.json?locale=de&format=json");
    assert_eq!((seen.header("x-trace"), seen.header("accept")), (Some("c1"), Some("application/json")));
    assert_eq!(seen.header("host"), Some("legacy.internal"));

    let created =
        gateway.send("POST", HOST, "/v2/customers", "Content-Type: application/json\r\n", r#"{"name":"Ada"}"#);
    assert_eq!(created.status, 200);
    let seen = legacy.seen().remove(1);
    assert_eq!((seen.target(), seen.body.as_slice()), ("/cgi/new-customer", br#"{"CUST_NM":"Ada"}"#.as_slice()));
    assert_eq!(gateway.get(HOST, "/legacy/old/x?y=1", "").status, 200);
    assert_eq!(legacy.seen().remove(2).target(), "/old/x?y=1");
}

#[test]
fn validation_keeps_to_the_description() {
    let users = Stub::start(|_| ok("", b"{}"));
    let text = with(example("validation.yaml"), &[("users.internal:8080", users.address.to_string())]);
    let description = examples().join("validation/users.openapi.yaml");
    let gateway = Gateway::start(&with(text, &[("validation/users.openapi.yaml", description.display().to_string())]));
    let json = "Content-Type: application/json\r\n";
    for (method, target, body, status) in [
        ("GET", "/users", "", 200),
        ("GET", "/users?limit=100", "", 200),
        ("GET", "/users?limit=101", "", 400),
        ("POST", "/users", r#"{"name":"Ada"}"#, 200),
        ("POST", "/users", r#"{"name":""}"#, 400),
        ("POST", "/users", r#"{"name":"Ada","admin":true}"#, 400),
        ("GET", "/users/0b8f0e5e-8d4c-4bb0-9c63-0a3d3c0a2a11", "", 200),
        ("GET", "/users/7", "", 400),
        ("DELETE", "/users/0b8f0e5e-8d4c-4bb0-9c63-0a3d3c0a2a11", "", 405),
        ("GET", "/users/a/b", "", 404),
        ("POST", "/invitations", r#"{"mail":1}"#, 200),
    ] {
        let answer = gateway.send(method, HOST, target, json, body);
        assert_eq!(answer.status, status, "{method} {target} {body}: {answer:?}");
    }
    assert!(gateway.metric("seiketsu_nonconforming_requests_total{tenant=\"acme\"}") > 0.5);
}

#[test]
fn versioning_tells_old_from_new() {
    let users = Stub::answering("Content-Type: application/json\r\n", r#"{"first_name":"Ada","last_name":"Lovelace"}"#);
    let gateway = serve("versioning.yaml", &[("users.internal:8080", users.address.to_string())]);
    assert_eq!(gateway.get(HOST, "/users/7", "Api-Version: v1\r\n").status, 410);
    let old = gateway.get(HOST, "/users/7", "Api-Version: v2\r\n");
    assert_eq!(old.json(), json!({ "name": "Ada Lovelace" }));
    assert!(old.header("deprecation").is_some() && old.header("sunset").is_some() && old.header("link").is_some());
    let new = gateway.get(HOST, "/users/7", "");
    assert_eq!((&new.json()["first_name"], new.header("deprecation")), (&json!("Ada"), None));
}

/// Certificates and keys of one authority, as PEM files in a folder.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// A certificate for this name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, certificate: &Path, key: &Path) {
        let (pem, secret) = self.issue(name);
        fs::create_dir_all(certificate.parent().unwrap()).unwrap();
        fs::write(certificate, pem).unwrap();
        fs::write(key, secret).unwrap();
    }
}

/// The demo origin with TLS.
pub fn tls_origin(authority: &Authority, name: &str, folder: &Path) -> (SocketAddr, Process) {
    let (certificate, key) = (folder.join("origin.pem"), folder.join("origin.key"));
    authority.write(name, &certificate, &key);
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("seiketsu-demo-origin");
    let mut child = Command::new(program)
        .args(["--listen", "127.0.0.1:0", "--tls-cert"])
        .arg(&certificate)
        .arg("--tls-key")
        .arg(&key)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut BufReader::new(child.stderr.take().unwrap()), &mut line).unwrap();
    (line.split_whitespace().last().unwrap().parse().unwrap(), Process(child))
}

/// What a TLS client with this certificate gets; none if it is not let in.
fn over_tls(
    address: SocketAddr,
    ca: &str,
    name: &str,
    identity: Option<(String, String)>,
    request: &str,
) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    let connection = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // An end without close_notify is an end too.
    let _ = stream.read_to_end(&mut answer);
    (!answer.is_empty()).then(|| String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn mtls_lets_in_whom_the_tenants_authority_knows() {
    const NAME: &str = "partners.acme.example";
    let files = tempfile::tempdir().unwrap();
    let (public, partners, company) = (Authority::new(), Authority::new(), Authority::new());
    let tls = files.path().join("tls");
    public.write(NAME, &tls.join("partners.acme.example.pem"), &tls.join("partners.acme.example.key"));
    company.write("gateway", &tls.join("gateway.pem"), &tls.join("gateway.key"));
    fs::write(tls.join("acme-partners-ca.pem"), &partners.pem).unwrap();
    fs::write(tls.join("company-ca.pem"), &company.pem).unwrap();
    let (origin, _origin) = tls_origin(&company, "orders.internal", files.path());
    let text = with(
        example("mtls.yaml"),
        &[("orders.internal:8443", origin.to_string()), ("tls/", format!("{}/", tls.display()))],
    );
    let gateway = Gateway::start(&text);
    let request = format!("GET /orders/echo HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    let ask = |identity| over_tls(gateway.https, &public.pem, NAME, identity, &request);
    let known = ask(Some(partners.issue("gateway.initrode.example"))).expect("an answer");
    // The demo origin serves `/v1/…` only: its own 404 shows that the request has reached it.
    assert!(known.starts_with("HTTP/1.1 404 ") && known.contains("x-origin-region"), "{known}");
    let unknown = ask(Some(partners.issue("nobody.example"))).expect("an answer");
    assert!(unknown.starts_with("HTTP/1.1 401 "), "{unknown}");
    assert_eq!(ask(Some(company.issue("gateway.initrode.example"))), None, "of another authority");
    assert_eq!(ask(None), None, "without a certificate");
    // Without TLS there is no certificate to show.
    assert_eq!(gateway.get(NAME, "/orders/echo", "").status, 421);
}

/// A copy of the folder of examples with this text in place of one of them.
fn project(name: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config/examples");
    fs::create_dir_all(config.join("validation")).unwrap();
    for entry in fs::read_dir(examples()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), config.join(entry.file_name())).unwrap();
    }
    fs::copy(examples().join("validation/users.openapi.yaml"), config.join("validation/users.openapi.yaml")).unwrap();
    fs::write(config.join(name), text).unwrap();
    folder
}

/// Starts the gateway with a node file of the project, on free ports.
fn start(folder: tempfile::TempDir, node: &str) -> Gateway {
    start_with(folder, node, &[("ACME_MOBILE_KEY", MOBILE_KEY)])
}

/// The same with other variables in its environment.
fn start_with(folder: tempfile::TempDir, node: &str, variables: &[(&str, &str)]) -> Gateway {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("seiketsu-gateway");
    let log = fs::File::create(folder.path().join("gateway.log")).unwrap();
    let child = Command::new(program)
        .arg("--config")
        .arg(folder.path().join("config/examples").join(node))
        .args(["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--operations", "127.0.0.1:0", "--state-dir"])
        .arg(folder.path().join("state"))
        .envs(variables.iter().copied())
        .stderr(log)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    Gateway { folder, http, https, operations, process }
}

/// The demo's node, with tenants from a file. With a control plane it is driven beside that one.
fn demo_node(tenants: &str) -> String {
    let control_plane = "control_plane:
  url: http://127.0.0.1:9080
  token: ${file:../../var/admin/node-token}
  # Here is files/<tenant>/ with the files that the tenant's document may name.
  files: ../../var/demo-keys
";
    with(example("demo-node.yaml"), &[(control_plane, format!("tenants: {tenants}\n"))])
}

#[test]
fn the_demo_does_what_the_readme_says() {
    let (west, east) = (Origin::start("eu-west"), Origin::start("us-east"));
    let text = with(
        example("demo-tenants.yaml"),
        &[("127.0.0.1:9001", west.address.to_string()), ("127.0.0.1:9002", east.address.to_string())],
    );
    let folder = project("demo-tenants.yaml", &text);
    let test = std::env::current_exe().unwrap();
    let credentials = test.parent().and_then(Path::parent).unwrap().join("seiketsu-demo-credentials");
    // Beside the file that names them.
    let keys = folder.path().join("config/examples");
    assert!(Command::new(credentials).arg("--folder").arg(&keys).status().unwrap().success());
    let secret = |name: &str| fs::read_to_string(keys.join(name)).unwrap().trim().to_owned();
    fs::write(folder.path().join("config/examples/node.yaml"), demo_node("demo-tenants.yaml")).unwrap();
    let gateway = start(folder, "node.yaml");

    for tenant in ["acme", "globex", "initech", "umbrella"] {
        let host = format!("{tenant}.localhost");
        assert_eq!(gateway.get(&host, "/v1/echo", "").status, 200, "{tenant}");
        assert_eq!(gateway.get(&host, "/v1/secure/echo", "").status, 401, "{tenant}");
        let key = format!("X-API-Key: {}\r\n", secret(tenant));
        assert_eq!(gateway.get(&host, "/v1/secure/echo", &key).status, 200, "{tenant}");
        assert_eq!(
            gateway.get("acme.localhost", "/v1/secure/echo", &key).status,
            if tenant == "acme" { 200 } else { 401 }
        );
    }
    let token = format!("Authorization: Bearer {}\r\n", secret("acme.jwt"));
    assert_eq!(gateway.get("acme.localhost", "/v1/secure/echo", &token).status, 200);
    let script = gateway.get("acme.localhost", "/v1/echo", "Origin: https://app.acme.localhost\r\n");
    assert_eq!(script.header("access-control-allow-origin"), Some("https://app.acme.localhost"));
    for _ in 0..20 {
        let answer = gateway.get("initech.localhost", "/v1/echo", "");
        assert_eq!(answer.header("x-origin-region"), Some("eu-west"), "its data stays in Europe");
    }
    let stored = || gateway.get("acme.localhost", "/v1/cache/60", "");
    assert_eq!(stored().header("cache-status"), Some("seiketsu; fwd=uri-miss; stored"));
    assert!(stored().header("cache-status").is_some_and(|status| status.starts_with("seiketsu; hit; ttl=")));
    assert_eq!(gateway.get("nobody.example", "/", "").status, 404);
    assert_eq!(gateway.operations("/config?tenant=acme&route=secure").status, 200);
    west.control("health", &json!({ "healthy": false }));
    assert!(comes_true(|| {
        (0..4).all(|_| gateway.get("umbrella.localhost", "/v1/echo", "").header("x-origin-region") == Some("us-east"))
    }));
}

#[test]
fn limits_hold_at_every_layer() {
    const APP_KEY: &str = "sk_a1b2c3d4_0123456789abcdefghijklmnopqrstuv";
    const PARTNER_KEY: &str = "sk_e5f6a7b8_0123456789abcdefghijklmnopqrstuv";
    let origin = Origin::start("a");
    let text = with(example("limits.yaml"), &[("calls.internal:8080", origin.address.to_string())]);
    let folder = project("limits.yaml", &text);
    fs::write(folder.path().join("config/examples/node.yaml"), demo_node("limits.yaml")).unwrap();
    let variables = [("ACME_MOBILE_KEY", APP_KEY), ("ACME_PARTNER_KEY", PARTNER_KEY)];
    let gateway = start_with(folder, "node.yaml", &variables);
    // The plan's, with the tenant's month.
    let open = gateway.get(HOST, "/v1/echo", "");
    let policy = r#""rate";q=100;w=6, "day";q=100000, "month";q=2000000"#;
    assert_eq!((open.status, open.header("ratelimit-policy")), (200, Some(policy)));
    let refused_by = |target: &str, fields: &str, within: usize| {
        let answers = (0..within).map(|_| gateway.get(HOST, target, fields));
        let (passed, refused): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status != 429);
        (passed.len(), refused.first().map(|refused| refused.json()["violated-policies"].clone()))
    };
    let key = |key: &str| format!("X-API-Key: {key}\r\n");
    // Ten at once and 100 a minute, whatever the others may.
    let (passed, by) = refused_by("/v1/echo", &key(PARTNER_KEY), 14);
    assert!((10..14).contains(&passed) && by == Some(json!(["consumer-rate"])), "{passed} {by:?}");
    // Five sign-ins a minute from one address, although by address nothing else is limited.
    let (passed, by) = refused_by("/v1/sign-in", "", 7);
    assert_eq!((passed, by), (5, Some(json!(["per-address-rate"]))));
    // One export a second for a device, since it weighs ten.
    let fields = key(APP_KEY) + "X-Device-Id: 7\r\n";
    let (passed, by) = refused_by("/v1/export", &fields, 3);
    assert!(passed < 3 && by == Some(json!(["per-device-rate"])), "{passed} {by:?}");
    let umbrella = gateway.get("api.umbrella.example", "/v1/echo", "");
    assert_eq!(umbrella.header("ratelimit-policy"), Some(r#""per-address-rate";q=100;w=2"#), "{umbrella:?}");
}

#[test]
fn the_references_are_served_as_they_stand() {
    let files = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (origin, _tls_origin) = tls_origin(&authority, "calls.internal", files.path());
    let plain = Origin::start("plain");
    let redis = Redis::start();
    let text = with(
        example("reference-tenants.yaml"),
        &[("calls-1.internal:8443", origin.to_string()), ("10.0.0.9:8080", plain.address.to_string())],
    );
    let node = with(
        example("reference-node.yaml"),
        &[
            ("tenants: tenants.yaml", "tenants: reference-tenants.yaml".to_owned()),
            ("trusted_proxies: [10.0.0.0/24]", "trusted_proxies: [127.0.0.0/8]".to_owned()),
            ("allow_loopback: false", "allow_loopback: true".to_owned()),
            ("allow_private: false", "allow_private: true".to_owned()),
            ("servers: [10.0.0.2:53]", "servers: [127.0.0.1:9]".to_owned()),
            ("url: redis://10.0.0.5:6379", format!("url: {}", redis.url())),
        ],
    );
    let folder = project("reference-tenants.yaml", &text);
    let config = folder.path().join("config/examples");
    fs::write(config.join("reference-node.yaml"), node).unwrap();
    let tls = config.join("tls");
    authority.write("gateway.example", &tls.join("gateway.pem"), &tls.join("gateway.key"));
    authority.write("api.acme.example", &tls.join("acme.pem"), &tls.join("acme.key"));
    fs::write(tls.join("company-ca.pem"), &authority.pem).unwrap();
    fs::write(tls.join("acme-clients.pem"), &authority.pem).unwrap();
    fs::write(tls.join("assertion.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    fs::create_dir_all(config.join("keys")).unwrap();
    let partner = crate::fixtures::Issuer::new("p");
    fs::write(config.join("keys/partners.jwks.json"), partner.jwks()).unwrap();
    let gateway = start(folder, "reference-node.yaml");
    redis.let_buckets_fill(std::time::Duration::from_secs(10));
    let from = "X-Forwarded-For: 192.0.2.1\r\n";
    let old = gateway.get(HOST, "/v1/calls/echo", from);
    // `/v1` is stripped, and the origin serves nothing else: its own 404.
    assert_eq!((old.status, old.header("x-origin-region").is_some()), (404, true), "{old:?}");
    assert!(old.header("deprecation").is_some() && old.header("sunset").is_some());
    assert_eq!(old.header("x-frame-options"), None);
    assert_eq!(gateway.get(HOST, "/v1/calls/echo", "X-Forwarded-For: 192.0.2.7\r\n").status, 403);
    assert_eq!(gateway.get(HOST, "/v1/calls/echo", "X-Forwarded-For: 198.51.100.1\r\n").status, 403);
    let fields = format!("{from}X-Client: ios-17\r\n");
    assert_eq!(gateway.get(HOST, "/v2/calls/7/x?format=json&fields=id&file=a.wav", &fields).status, 401);
    let fields = format!("{fields}X-API-Key: {MOBILE_KEY}\r\nContent-Type: application/json\r\n");
    let target = "/v2/calls/7/x?format=json&fields=id&file=a.wav";
    let called = gateway.send("PUT", HOST, target, &fields, r#"{"internal":1}"#);
    // The route's description knows no such path.
    assert_eq!((called.status, called.problem().as_str()), (404, "no-route"), "{called:?}");
    assert_eq!(gateway.get(HOST, "/v2/calls/7/x?format=xml", &fields).status, 404);
    assert_eq!(gateway.get(HOST, "/v9/calls/x", from).status, 400);
    assert_eq!(gateway.get("x.api.acme.example", "/v2/accounts/x", from).status, 401);
    assert_eq!(
        Client::connect(gateway.operations)
            .request("GET /config?tenant=acme&route=call HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .status,
        200
    );
}
