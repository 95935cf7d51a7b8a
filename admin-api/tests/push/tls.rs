//! TLS of the control plane: who believes whom, and certificates that are replaced.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use seiketsu_config::push::{self, FromNode, ToNode};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, ClientConfig, RootCertStore},
};
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest, protocol::frame::coding::CloseCode};

use crate::{
    admin::{PATIENCE, Process, binary, eventually},
    node::{Connection, hello},
};

/// Signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key in PEM form; with no name for the alternative names, the common name is the name.
    fn issue(&self, name: &str, as_common_name: bool) -> (String, String) {
        let names = if as_common_name { Vec::new() } else { vec![name.to_owned()] };
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, if as_common_name { name } else { "nobody" });
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, &self.pem).unwrap();
        path
    }
}

/// Writes both, under this name.
fn write(folder: &Path, name: &str, (certificate, key): &(String, String)) -> (PathBuf, PathBuf) {
    let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    fs::write(&paths.1, key).unwrap();
    fs::write(&paths.0, certificate).unwrap();
    paths
}

struct Admin {
    folder: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    _process: Process,
}

impl Admin {
    /// With a certificate for 127.0.0.1 that its authority has signed.
    async fn start(flags: &[&str]) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.write(folder.path(), "ca.pem");
        write(folder.path(), "admin", &authority.issue("127.0.0.1", false));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(binary("seiketsu-admin"))
            .current_dir(folder.path())
            .args(["--listen", "127.0.0.1:0", "--state-dir", "state", "--tls-cert", "admin.pem"])
            .args(["--tls-key", "admin.key"])
            .args(flags)
            .env_remove("DATABASE_URL")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Process(child);
        let path = folder.path().join("log");
        assert!(eventually(async || listening(&path).is_some()).await, "{}", fs::read_to_string(&path).unwrap());
        let address = listening(&path).unwrap();
        Self { folder, authority, address, _process: process }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn token(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join("state").join(name)).unwrap().trim().to_owned()
    }

    fn ctl(&self, authority: &str, arguments: &[&str]) -> Output {
        Command::new(binary("gatewayctl"))
            .current_dir(self.folder.path())
            .args(["--server", &format!("https://{}", self.address), "--ca-file", authority])
            .args(["--token-file", "state/admin-token", "--output", "json"])
            .args(arguments)
            .env("HOME", self.folder.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("SEIKETSU_TOKEN")
            .output()
            .unwrap()
    }

    fn nodes(&self) -> Vec<String> {
        let told = self.ctl("ca.pem", &["nodes"]);
        assert!(told.status.success(), "{told:?}");
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        let items = told["items"].as_array().or(told.as_array()).unwrap();
        items.iter().filter(|node| node["live"] == true).map(|node| node["id"].as_str().unwrap().to_owned()).collect()
    }

    /// A gateway with this behind `control_plane`.
    fn gateway(&self, id: &str, control_plane: &str) -> Process {
        let folder = self.folder.path().join(id);
        fs::create_dir_all(&folder).unwrap();
        let node = format!(
            "id: {id}\nlisteners: {{ http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\nstate_dir: state\nthreads: 1\n\
             control_plane: {{ url: 'https://{}', {control_plane} }}\n",
            self.address
        );
        fs::write(folder.join("node.yaml"), node).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(binary("seiketsu-gateway"));
        command.arg("--config").arg(folder.join("node.yaml")).stdout(Stdio::null()).stderr(log);
        Process(command.spawn().unwrap())
    }

    async fn connect(
        &self,
        authority: &Authority,
        shown: Option<&(String, String)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = client_config(authority, shown);
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
    }

    /// The status, if it is refused; 0, if there is not even an answer.
    async fn subscribe(
        &self,
        token: Option<&str>,
        shown: Option<&(String, String)>,
    ) -> Result<Connection<TlsStream<TcpStream>>, u16> {
        let stream = self.connect(&self.authority, shown).await.map_err(|_| 0_u16)?;
        let mut request = format!("wss://{}{}", self.address, push::SUBSCRIBE_PATH).into_client_request().unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Connection { socket }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(_) => Err(0),
        }
    }
}

fn client_config(authority: &Authority, shown: Option<&(String, String)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match shown {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    }
}

fn listening(log: &Path) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["fields"]["message"] == "listening");
    lines.next()?["fields"]["address"].as_str()?.parse().ok()
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let length = timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn shown_by(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_and_gateways_come_over_tls_and_believe_their_authority_only() {
    let admin = Admin::start(&[]).await;
    Authority::new().write(admin.folder.path(), "other.pem");
    let imported =
        admin.ctl("ca.pem", &["import", concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/demo-tenants.yaml")]);
    assert!(imported.status.success(), "{imported:?}");
    let refused = admin.ctl("other.pem", &["tenants", "list"]);
    assert!(!refused.status.success(), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(told.contains("certificate"), "{told}");

    let token = "token: '${file:../state/node-token}'";
    let _good = admin.gateway("good", &format!("{token}, ca: ../ca.pem"));
    let _wrong = admin.gateway("wrong", &format!("{token}, ca: ../other.pem"));
    assert!(eventually(async || admin.nodes() == ["good"]).await, "{:?}", admin.nodes());
    let told = async || {
        fs::read_to_string(admin.folder.path().join("wrong/log"))
            .unwrap()
            .contains("not connected to the control plane")
    };
    assert!(eventually(told).await);
    assert_eq!(admin.nodes(), ["good"]);
    // Whoever speaks without TLS to it gets nothing.
    let mut plain = TcpStream::connect(admin.address).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_a_node_lets_in_that_node_without_a_token() {
    let admin = Admin::start(&["--client-ca", "ca.pem"]).await;
    let token = admin.token("node-token");
    let named = admin.authority.issue("eu-1", false);
    let common = admin.authority.issue("eu-1", true);
    let strange = Authority::new().issue("eu-1", false);
    for certificate in [&named, &common] {
        let mut connection = admin.subscribe(None, Some(certificate)).await.unwrap();
        connection.say(FromNode::Hello(hello("eu-1"))).await;
        assert!(matches!(connection.next().await, Ok(ToNode::Welcome(_))));
        let mut foreign = admin.subscribe(None, Some(certificate)).await.unwrap();
        foreign.say(FromNode::Hello(hello("eu-2"))).await;
        let (code, reason) = foreign.end().await;
        assert_eq!(code, CloseCode::Policy);
        assert!(reason.contains("not for a node eu-2"), "{reason}");
    }
    assert_eq!(admin.subscribe(None, Some(&strange)).await.err(), Some(0));
    assert_eq!(admin.subscribe(None, None).await.err(), Some(401));
    assert_eq!(admin.subscribe(Some("sn_nonsense"), Some(&named)).await.err(), Some(401));
    assert!(admin.subscribe(Some(&token), None).await.is_ok());
    // It is no token of an operator.
    let mut stream = admin.connect(&admin.authority, Some(&named)).await.unwrap();
    stream.write_all(b"GET /api/enterprise/status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    // A real gateway.
    write(admin.folder.path(), "eu-7", &admin.authority.issue("eu-7", false));
    let _gateway = admin.gateway("eu-7", "ca: ../ca.pem, certificate: { certificate: ../eu-7.pem, key: ../eu-7.key }");
    assert!(eventually(async || admin.nodes().contains(&"eu-7".to_owned())).await, "{:?}", admin.nodes());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_certificates_are_required_a_token_alone_lets_no_node_in() {
    let admin = Admin::start(&["--client-ca", "ca.pem", "--node-certificates", "required"]).await;
    let token = admin.token("node-token");
    let named = admin.authority.issue("eu-1", false);
    assert_eq!(admin.subscribe(Some(&token), None).await.err(), Some(401));
    assert!(admin.subscribe(Some(&token), Some(&named)).await.is_ok());
    assert!(admin.subscribe(None, Some(&named)).await.is_ok());
    assert!(admin.ctl("ca.pem", &["nodes"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_while_connections_go_on_and_a_broken_one_is_not_taken() {
    let admin = Admin::start(&[]).await;
    let folder = admin.folder.path();
    let mut old = admin.connect(&admin.authority, None).await.unwrap();
    let first = shown_by(&old);
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"));

    write(folder, "admin", &admin.authority.issue("127.0.0.1", false));
    let shown = async || shown_by(&admin.connect(&admin.authority, None).await.unwrap());
    assert!(eventually(async || shown().await != first).await, "{}", admin.log());
    let second = shown().await;
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"), "the connection goes on");

    // The key of another certificate, and then none at all.
    fs::write(folder.join("admin.key"), admin.authority.issue("127.0.0.1", false).1).unwrap();
    let told =
        |text: &str| admin.log().lines().filter(|line| line.contains("is not replaced") && line.contains(text)).count();
    assert!(eventually(async || told("cannot be used together") == 1).await, "{}", admin.log());
    fs::remove_file(folder.join("admin.key")).unwrap();
    assert!(eventually(async || told("cannot read") == 1).await, "{}", admin.log());
    assert_eq!(shown().await, second);
    write(folder, "admin", &admin.authority.issue("127.0.0.1", false));
    assert!(eventually(async || shown().await != second).await, "{}", admin.log());
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"));
    assert!(!admin.log().contains("PRIVATE KEY"));
}

/// What a client says first.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let mut client = rustls::ClientConnection::new(
        Arc::new(client_config(authority, None)),
        ServerName::try_from("127.0.0.1").unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_nothing_or_does_not_go_on_holds_up_no_handshake_and_is_sent_away_soon() {
    let admin = Admin::start(&[]).await;
    let hello = client_hello(&admin.authority);
    let begun = Instant::now();
    let mut silent = Vec::new();
    // More of each than were ever under way at once.
    for _ in 0..100 {
        for said in [&[][..], &hello[..hello.len() / 2], &hello] {
            let mut stream = TcpStream::connect(admin.address).await.unwrap();
            stream.write_all(said).await.unwrap();
            silent.push(stream);
        }
    }
    assert!(ask(&mut admin.connect(&admin.authority, None).await.unwrap()).await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_secs(8), "it has waited: {:?}", begun.elapsed());
    for stream in &mut silent {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_come_to_an_end_is_ended() {
    let admin = Admin::start(&[]).await;
    // More than may be under way at once.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    for stream in &mut silent {
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is ended");
        assert!(answer.is_empty());
    }
    assert!(ask(&mut admin.connect(&admin.authority, None).await.unwrap()).await.starts_with("HTTP/1.1 200"));
}

#[test]
fn without_tls_it_listens_to_this_machine_only_unless_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let start = |flags: &[&str]| {
        let mut command = Command::new(binary("seiketsu-admin"));
        command.current_dir(folder.path()).args(["--state-dir", "state"]).args(flags).env_remove("DATABASE_URL");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    for (flags, told) in [
        (&["--listen", "0.0.0.0:0"][..], "--insecure-http"),
        (&["--listen", "[::]:0"], "--tls-cert"),
        (&["--listen", "127.0.0.1:0", "--tls-cert", "a.pem"], "--tls-key"),
        (&["--listen", "127.0.0.1:0", "--client-ca", "a.pem"], "--tls-cert"),
        (&["--listen", "127.0.0.1:0", "--tls-cert", "a.pem", "--tls-key", "a.key"], "cannot read a.pem"),
        (&["--listen", "127.0.0.1:0", "--node-certificates", "required"], "--client-ca"),
        (&["--listen", "127.0.0.1:0", "--trusted-proxies", "proxy"], "no network"),
    ] {
        let ended = start(flags).output().unwrap();
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && errors.contains(told), "{flags:?}: {errors}");
    }
    let log = folder.path().join("log");
    let mut command = start(&["--listen", "0.0.0.0:0", "--insecure-http"]);
    let _process = Process(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    let begun = Instant::now();
    while listening(&log).is_none() {
        assert!(begun.elapsed() < PATIENCE, "{}", fs::read_to_string(&log).unwrap());
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
