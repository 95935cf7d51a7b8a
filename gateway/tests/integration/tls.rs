//! TLS on both sides: which certificate is shown, whose are accepted, and what is verified.

use std::{
    fs,
    io::{BufReader, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::{
    fixtures::{comes_true, open, tenants},
    support::{
        Client, Gateway, Origin, PATIENCE, Response,
        http2::{Http2, handshake, patiently},
        pki::{self, Authority, BOTH, Leaf},
        receive,
        tls::connect_tls_as,
    },
};

const DAY: Duration = Duration::from_hours(24);
/// Longer than it takes a gateway to see that a file has changed.
const SOON: Duration = Duration::from_secs(5);

/// One tenant, with this `tls`, and with `policies` for its only route.
fn tenant(id: &str, hosts: &str, tls: &str, policies: &str) -> String {
    let consumers = "  consumers:\n  - { id: meter, certificates: [{ san: meter.test }] }\n";
    let consumers = if tls.contains("client_ca") { consumers } else { "" };
    format!(
        "- id: {id}\n  hosts: [{hosts}]\n  tls: {{ {tls} }}\n{consumers}  routes:\n  \
         - {{ id: all, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo, policies: {{ {policies} }} }}\n"
    )
}

fn start(origin: &Origin, tenants: &[String], node: &str) -> Gateway {
    Gateway::start_with(&file(origin, tenants), node)
}

fn file(origin: &Origin, tenants: &[String]) -> String {
    format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\n\
         upstreams:\n  demo: {{ endpoints: [{{ address: '{}' }}] }}\ntenants:\n{}",
        origin.address,
        tenants.concat()
    )
}

fn anybody() -> Arc<ClientConfig> {
    Arc::new(pki::client(&[], BOTH, None))
}

fn showing(leaf: &Leaf) -> Arc<ClientConfig> {
    Arc::new(pki::client(&[], BOTH, Some(leaf)))
}

/// The certificate that a client who asks for this name is shown.
async fn shown(gateway: &Gateway, server_name: &str) -> CertificateDer<'static> {
    let tls = handshake(gateway.https, server_name, &anybody()).await.unwrap();
    tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One request on a connection for `server_name`; none if there is no answer.
async fn ask(
    gateway: &Gateway,
    server_name: &str,
    config: &Arc<ClientConfig>,
    host: &str,
) -> Option<(Response, HandshakeKind)> {
    let mut tls = handshake(gateway.https, server_name, config).await.ok()?;
    let request = format!("GET /v1/echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // In TLS 1.3 the handshake ends, for the client, before the gateway has seen its certificate.
    patiently(tls.read_to_end(&mut answer)).await.ok()?;
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let kind = tls.get_ref().1.handshake_kind().unwrap();
    Some((Response { status, head: format!("{head}\r\n"), body: body.as_bytes().to_vec() }, kind))
}

async fn status(gateway: &Gateway, server_name: &str, config: &Arc<ClientConfig>, host: &str) -> Option<u16> {
    ask(gateway, server_name, config, host).await.map(|(answer, _)| answer.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_the_hello_picks_the_certificate() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let exact = authority.issue(&["acme.test"]);
    let wildcard = authority.issue(&["*.acme.test"]);
    let eu = authority.issue(&["*.eu.acme.test"]);
    let other = authority.issue(&["globex.test"]);
    let certificates =
        [&wildcard, &exact, &eu].into_iter().enumerate().map(|(n, leaf)| leaf.write(folder.path(), &n.to_string()));
    let acme = format!("certificates: [{}]", certificates.collect::<Vec<_>>().join(", "));
    let globex = format!("certificates: [{}]", other.write(folder.path(), "globex"));
    let tenants = [
        tenant("acme", "acme.test, '*.acme.test', '*.eu.acme.test'", &acme, ""),
        tenant("globex", "globex.test", &globex, ""),
        tenant("initech", "initech.test", "", ""),
    ];
    let gateway = start(&origin, &tenants, "");
    let development = CertificateDer::from_pem_file(gateway.folder.path().join("state/development.crt")).unwrap();
    for (name, expected) in [
        ("acme.test", &exact.der),
        ("ACME.test", &exact.der),
        ("api.acme.test", &wildcard.der),
        ("api.eu.acme.test", &eu.der),
        ("globex.test", &other.der),
        ("initech.test", &development),
        ("nobody.test", &development),
        // For an address no name is sent.
        ("127.0.0.1", &development),
    ] {
        assert!(shown(&gateway, name).await == *expected, "{name}");
    }
    let anybody = anybody();
    assert_eq!(status(&gateway, "acme.test", &anybody, "acme.test").await, Some(200));
    assert_eq!(status(&gateway, "initech.test", &anybody, "initech.test").await, Some(200));
    let stranger = ask(&gateway, "nobody.test", &anybody, "nobody.test").await.unwrap().0;
    assert_eq!((stranger.status, stranger.problem().as_str()), (404, "unknown-host"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_verifies_for_those_who_know_its_authority() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let tls = format!("certificates: [{}]", authority.issue(&["acme.test"]).write(folder.path(), "acme"));
    let gateway = start(&origin, &[tenant("acme", "acme.test", &tls, "")], "");
    let strict = |authority: &Authority| {
        let builder = ClientConfig::builder_with_provider(pki::provider()).with_protocol_versions(BOTH).unwrap();
        Arc::new(builder.with_root_certificates(authority.roots()).with_no_client_auth())
    };
    assert_eq!(status(&gateway, "acme.test", &strict(&authority), "acme.test").await, Some(200));
    assert_eq!(status(&gateway, "acme.test", &strict(&Authority::new("other")), "acme.test").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_1_2_and_1_3_are_spoken_with_and_without_alpn() {
    let origin = Origin::start("a");
    let gateway = start(&origin, &[tenant("acme", "acme.test", "", "")], "");
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let config = Arc::new(pki::client(offered, &[version], None));
            let tls = handshake(gateway.https, "acme.test", &config).await.unwrap();
            assert_eq!(tls.get_ref().1.protocol_version(), Some(expected));
            assert_eq!(tls.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
            if agreed == Some("h2") {
                assert_eq!(Http2::over(tls, "https").await.get("acme.test", "/v1/echo").await.status, 200);
            } else {
                assert_eq!(status(&gateway, "acme.test", &config, "acme.test").await, Some(200));
            }
        }
    }
    for version in ["TLSv1_2", "TLSv1_3"] {
        assert!(comes_true(|| gateway.access_log().contains(version)), "{}", gateway.access_log());
    }
}

#[test]
fn older_versions_are_refused() {
    let origin = Origin::start("a");
    let gateway = start(&origin, &[tenant("acme", "acme.test", "", "")], "");
    for version in [[3, 0], [3, 1], [3, 2]] {
        let suites = [0x00, 0x08, 0xc0, 0x13, 0xc0, 0x09, 0x00, 0x2f, 0x00, 0x35];
        let name = b"acme.test";
        let name_length = u8::try_from(name.len()).unwrap();
        let server_name = [&[0, 0, 0, name_length + 5, 0, name_length + 3, 0, 0, name_length], &name[..]].concat();
        let groups = [0, 10, 0, 4, 0, 2, 0, 23];
        let formats = [0, 11, 0, 2, 1, 0];
        let extensions = [&server_name[..], &groups, &formats].concat();
        let extensions_length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
        let hello = [&version[..], &[7; 32], &[0], &suites, &[1, 0], &extensions_length, &extensions].concat();
        let hello_length = u8::try_from(hello.len()).unwrap();
        let handshake = [&[1, 0, 0, hello_length], &hello[..]].concat();
        let record = [&[22, 3, 1, 0, hello_length + 4], &handshake[..]].concat();
        let mut client = Client::connect(gateway.https);
        client.send(&record);
        let mut answer = Vec::new();
        let _ = client.stream.read_to_end(&mut answer);
        const ALERT: u8 = 21;
        const FATAL: u8 = 2;
        assert!(matches!(answer[..], [ALERT, _, _, 0, 2, FATAL, _]), "{version:?}: {answer:?}");
    }
}

#[test]
fn a_handshake_has_a_deadline() {
    let origin = Origin::start("a");
    let gateway = start(&origin, &[tenant("acme", "acme.test", "", "")], "protection: { handshake_timeout: 300ms }\n");
    for part in [&b""[..], &[22, 3, 1, 2, 0, 1, 0]] {
        let mut client = Client::connect(gateway.https);
        client.send(part);
        assert!(client.is_closed());
    }
    assert!(comes_true(|| gateway.metrics().contains("result=\"timeout\"} 2")), "{}", gateway.metrics());
    let mut plain = Client::connect(gateway.https);
    plain.send(b"GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    assert!(plain.receive().is_none(), "no HTTP without TLS");
}

#[test]
fn certificates_are_replaced_under_load_without_a_failed_handshake() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let tls = format!("certificates: [{}]", authority.issue(&["acme.test"]).write(folder.path(), "acme"));
    let gateway = start(&origin, &[tenant("acme", "acme.test", &tls, "")], "");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let config = anybody();
                while !stop.load(Relaxed) {
                    let answered = runtime.block_on(status(&gateway, "acme.test", &config, "acme.test"));
                    assert_eq!(answered, Some(200));
                    made.fetch_add(1, Relaxed);
                }
            });
        }
        // By signal, and the last time because somebody noticed by itself.
        for round in 0..8 {
            let next = authority.issue(&["acme.test"]);
            next.write(folder.path(), "acme");
            let before = made.load(Relaxed);
            if round < 7 {
                gateway.process.signal("-HUP");
            }
            let live = comes_true(|| runtime.block_on(shown(&gateway, "acme.test")) == next.der);
            let goes_on = comes_true(|| made.load(Relaxed) > before + 10);
            if !(live && goes_on) {
                stop.store(true, Relaxed);
            }
            assert!(live && goes_on, "{live} {goes_on}: {}", gateway.log());
        }
        stop.store(true, Relaxed);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_certificate_changes_nothing_and_is_reported() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let (first, stranger) = (authority.issue(&["acme.test"]), authority.issue(&["acme.test"]));
    let tls = format!("certificates: [{}]", first.write(folder.path(), "acme"));
    let gateway = start(&origin, &[tenant("acme", "acme.test", &tls, "")], "");
    let path = folder.path().join("acme.pem");
    // Nonsense, nothing, the certificate of another key, and no file at all.
    for broken in [Some("no certificate"), Some(""), Some(stranger.pem.as_str()), None] {
        match broken {
            Some(content) => pki::replace(&path, content),
            None => fs::remove_file(&path).unwrap(),
        }
        gateway.process.signal("-HUP");
        let reported = || gateway.readyz().text().contains("acme.pem");
        assert!(comes_true(reported), "{broken:?}: {}", gateway.readyz().text());
        assert_eq!(gateway.readyz().status, 200);
        assert!(shown(&gateway, "acme.test").await == first.der);
        assert_eq!(status(&gateway, "acme.test", &anybody(), "acme.test").await, Some(200));
        pki::replace(&path, &first.pem);
        gateway.process.signal("-HUP");
        let mended = || !gateway.readyz().text().contains("acme.pem");
        assert!(comes_true(mended), "{}", gateway.readyz().text());
    }
    assert!(gateway.logs("acme.pem"));
}

/// Two tenants that ask for client certificates (`strict.test` insists), and two that do not.
struct Mutual {
    authority: Authority,
    other: Authority,
    gateway: Gateway,
    _origin: Origin,
    _folder: tempfile::TempDir,
}

impl Mutual {
    fn start() -> Self {
        let origin = Origin::start("a");
        let folder = tempfile::tempdir().unwrap();
        let (authority, other) = (Authority::new("one"), Authority::new("two"));
        let ca =
            |authority: &Authority, name| format!("client_ca: '{}'", authority.write(folder.path(), name).display());
        let required = ", require_client_certificate: true";
        let tenants = [
            tenant(
                "strict",
                "strict.test, '*.strict.test'",
                &format!("{}{required}", ca(&authority, "one")),
                "auth: { accept: [client_certificate] }",
            ),
            tenant("lax", "lax.test", &ca(&other, "two"), "auth: { accept: [client_certificate, anonymous] }"),
            tenant("open", "open.test, open.strict.test", "", ""),
            tenant("another", "another.test, '*.deep.strict.test'", "", ""),
            tenant("shut", "shut.test", &format!("{}{required}", ca(&authority, "one")), ""),
        ];
        let gateway = start(&origin, &tenants, "");
        Self { authority, other, gateway, _origin: origin, _folder: folder }
    }

    async fn status(&self, server_name: &str, config: &Arc<ClientConfig>, host: &str) -> Option<u16> {
        status(&self.gateway, server_name, config, host).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_takes_certificates_of_its_own_authority_only() {
    let mutual = Mutual::start();
    let meter = mutual.authority.issue(&["meter.test"]);
    for name in ["strict.test", "api.strict.test"] {
        assert_eq!(mutual.status(name, &showing(&meter), name).await, Some(200));
        let strangers = [
            mutual.other.issue(&["meter.test"]),
            Authority::new("one").issue(&["meter.test"]),
            mutual.authority.issue_expired(&["meter.test"]),
        ];
        for stranger in strangers {
            assert_eq!(mutual.status(name, &showing(&stranger), name).await, None);
        }
        assert_eq!(mutual.status(name, &anybody(), name).await, None);
    }
    // A certificate that nobody is known by secures the connection, but opens nothing.
    let unknown = mutual.authority.issue(&["unknown.test"]);
    assert_eq!(mutual.status("strict.test", &showing(&unknown), "strict.test").await, Some(401));
    assert!(comes_true(|| mutual.gateway.metrics().contains("result=\"failed\"}")), "{}", mutual.gateway.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_certificate_is_not_required_none_is_better_than_a_wrong_one() {
    let mutual = Mutual::start();
    assert_eq!(mutual.status("lax.test", &anybody(), "lax.test").await, Some(200));
    let right = showing(&mutual.other.issue(&["meter.test"]));
    assert_eq!(mutual.status("lax.test", &right, "lax.test").await, Some(200));
    let wrong = showing(&mutual.authority.issue(&["meter.test"]));
    assert_eq!(mutual.status("lax.test", &wrong, "lax.test").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_that_asks_for_certificates_does_not_ask_for_its_neighbours() {
    let mutual = Mutual::start();
    for name in ["open.strict.test", "a.deep.strict.test"] {
        assert_eq!(mutual.status(name, &anybody(), name).await, Some(200), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_made_for_one_tenant_carries_no_request_for_another() {
    let mutual = Mutual::start();
    let anybody = anybody();
    let meter = showing(&mutual.authority.issue(&["meter.test"]));
    for (config, server_name, host, expected) in [
        (&meter, "strict.test", "strict.test", 200),
        (&meter, "strict.test", "api.strict.test", 200),
        (&meter, "strict.test", "lax.test", 421),
        (&meter, "strict.test", "open.test", 421),
        (&meter, "strict.test", "shut.test", 421),
        (&anybody, "open.test", "strict.test", 421),
        (&anybody, "open.test", "lax.test", 421),
        (&anybody, "open.test", "another.test", 421),
        (&anybody, "lax.test", "strict.test", 421),
        // Names that nobody has say nothing about a tenant.
        (&anybody, "nobody.test", "open.test", 200),
        (&anybody, "nobody.test", "strict.test", 421),
        (&anybody, "nobody.test", "lax.test", 421),
        (&anybody, "127.0.0.1", "open.test", 200),
        (&anybody, "127.0.0.1", "strict.test", 421),
        (&anybody, "127.0.0.1", "lax.test", 421),
    ] {
        let answer = ask(&mutual.gateway, server_name, config, host).await.expect("an answer").0;
        assert_eq!(answer.status, expected, "{host} on a connection for {server_name}");
        if expected == 421 {
            assert_eq!(answer.problem(), "misdirected-request");
        }
    }
    // In HTTP/2 browsers put several hosts on one connection, where the certificate allows it.
    let client = Http2::tls(&mutual.gateway, "open.test").await;
    assert_eq!(client.get("open.test", "/v1/echo").await.status, 200);
    assert_eq!(client.get("strict.test", "/v1/echo").await.status, 421);
    assert_eq!(client.get("open.test", "/v1/echo").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_a_required_certificate_cannot_be_left_out() {
    let mutual = Mutual::start();
    assert_eq!(mutual.status("shut.test", &anybody(), "shut.test").await, None);
    let meter = showing(&mutual.authority.issue(&["meter.test"]));
    assert_eq!(mutual.status("shut.test", &meter, "shut.test").await, Some(200));
    for host in ["shut.test", "strict.test"] {
        let answer = mutual.gateway.get(host, "/v1/echo", "");
        assert_eq!((answer.status, answer.problem().as_str()), (421, "misdirected-request"), "{host}");
    }
    assert_eq!(mutual.gateway.get("lax.test", "/v1/echo", "").status, 200);
}

/// Remembers sessions without regard to whom they were made with, as an attacker would.
#[derive(Debug)]
struct OneDrawer(ClientSessionMemoryCache);

impl OneDrawer {
    fn name() -> ServerName<'static> {
        ServerName::try_from("all.test").unwrap()
    }
}

impl ClientSessionStore for OneDrawer {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(Self::name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&Self::name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::name())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_carries_a_certificate_to_its_own_tenant_only() {
    let mutual = Mutual::start();
    let meter = mutual.authority.issue(&["meter.test"]);
    for version in [&TLS12, &TLS13] {
        let mut config = pki::client(&[], &[version], Some(&meter));
        config.resumption = Resumption::store(Arc::new(OneDrawer(ClientSessionMemoryCache::new(8))));
        let config = Arc::new(config);
        let ask = async |name: &str| ask(&mutual.gateway, name, &config, name).await;
        assert_eq!(ask("strict.test").await.unwrap().1, HandshakeKind::Full);
        let (answer, kind) = ask("strict.test").await.unwrap();
        assert_eq!((answer.status, kind), (200, HandshakeKind::Resumed), "{version:?}");
        // A reload in which nothing changes for this tenant costs nobody a handshake.
        let reloads = mutual.gateway.log().matches("HUP").count();
        mutual.gateway.process.signal("-HUP");
        assert!(comes_true(|| mutual.gateway.log().matches("HUP").count() > reloads));
        assert_eq!(ask("strict.test").await.unwrap().1, HandshakeKind::Resumed, "{version:?}");
        // Its certificate is from the wrong authority for this one, which a resumed session would hide.
        assert!(ask("lax.test").await.is_none(), "{version:?}");
        assert_eq!(ask("strict.test").await.unwrap().0.status, 200);
        // And this one asks for none, so none is known there.
        let (answer, kind) = ask("open.test").await.unwrap();
        assert_eq!((answer.status, kind), (200, HandshakeKind::Full), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_replaced_counts_no_more() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let path = before.write(folder.path(), "clients");
    let tls = format!("client_ca: '{}', require_client_certificate: true", path.display());
    let gateway = start(&origin, &[tenant("acme", "acme.test", &tls, "")], "");
    let old = showing(&before.issue(&["meter.test"]));
    let new = showing(&after.issue(&["meter.test"]));
    assert_eq!(status(&gateway, "acme.test", &old, "acme.test").await, Some(200));
    assert_eq!(status(&gateway, "acme.test", &new, "acme.test").await, None);
    // Nobody says so: it is noticed.
    pki::replace(&path, &after.pem);
    let began = Instant::now();
    let mut replaced = false;
    while !replaced && began.elapsed() < PATIENCE {
        replaced = status(&gateway, "acme.test", &new, "acme.test").await == Some(200);
    }
    assert!(replaced, "{}", gateway.log());
    // Also not by a session that the old one has vouched for.
    assert_eq!(status(&gateway, "acme.test", &old, "acme.test").await, None);
}

/// A gateway whose upstream speaks TLS under this certificate, with these keys of its `tls`.
fn with_upstream(folder: &Path, leaf: &Leaf, protocol: &str, tls: &str) -> (Origin, Gateway) {
    leaf.write(folder, "origin");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("origin.pem"), file("origin.key"));
    let origin =
        Origin::start_with("127.0.0.1:0", "a", &["--tls-cert", certificate.as_str(), "--tls-key", key.as_str()]);
    let demo = format!(
        "demo: {{ endpoints: [{{ address: '{}' }}], protocol: {protocol}, tls: {{ {tls} }} }}\n",
        origin.address
    );
    let gateway = Gateway::start(&tenants(&demo, "", &open("")));
    (origin, gateway)
}

#[test]
fn an_upstream_must_prove_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new("ca"), Authority::new("ca"));
    let trusted = format!("ca: '{}'", authority.write(folder.path(), "trusted").display());
    let untrusted = format!("ca: '{}'", other.write(folder.path(), "untrusted").display());
    for protocol in ["http1", "http2", "auto"] {
        let good = authority.issue(&["orders.test"]);
        let named = "server_name: orders.test";
        let (_origin, gateway) = with_upstream(folder.path(), &good, protocol, &format!("{named}, {trusted}"));
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!(answer.status, 200, "{protocol}: {answer:?} {}", gateway.log());
        assert_eq!(answer.json()["tls"].as_bool(), Some(true));
        let version = if protocol == "http1" { "HTTP/1.1" } else { "HTTP/2.0" };
        assert_eq!(answer.json()["http_version"].as_str(), Some(version));
        for (leaf, tls, cause) in [
            (authority.issue(&["invoices.test"]), format!("{named}, {trusted}"), "not_valid_for_name"),
            (authority.issue(&["orders.test"]), format!("server_name: invoices.test, {trusted}"), "not_valid_for_name"),
            // The name of an endpoint without one is its address.
            (authority.issue(&["orders.test"]), trusted.clone(), "not_valid_for_name"),
            // The authorities have the same name, and another key.
            (authority.issue(&["orders.test"]), format!("{named}, {untrusted}"), "bad_signature"),
            (authority.issue(&["orders.test"]), named.to_owned(), "unknown_issuer"),
            (authority.issue_expired(&["orders.test"]), format!("{named}, {trusted}"), "expired"),
        ] {
            let (_origin, gateway) = with_upstream(folder.path(), &leaf, protocol, &tls);
            let answer = gateway.get("acme.test", "/v1/echo", "");
            assert_eq!(answer.status, 502, "{protocol} {tls} {}", answer.text());
            assert_eq!(answer.problem(), "upstream-error");
            assert!(!answer.text().contains("127.0.0.1") && !answer.text().contains("orders"), "{answer:?}");
            // Whoever runs the gateway is told why.
            assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 502);
            let told = format!("\"error\":\"{cause}\"");
            assert!(comes_true(|| gateway.access_log().matches(&told).count() == 2), "{}", gateway.access_log());
            assert!(gateway.logs("no secure connection to an upstream"), "{}", gateway.log());
            assert_eq!(gateway.log().matches("no secure connection").count(), 1, "once in a while");
            assert!(gateway.log().contains(cause), "{}", gateway.log());
        }
        let expired = authority.issue_expired(&["invoices.test"]);
        let (_origin, trial) = with_upstream(folder.path(), &expired, protocol, "insecure_skip_verify: true");
        assert_eq!(trial.get("acme.test", "/v1/echo", "").status, 200, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_asks_for_it_is_shown_the_gateway_s_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, clients) = (Authority::new("ca"), Authority::new("clients"));
    let leaf = authority.issue(&["orders.test"]);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(clients.roots()), pki::provider()).build().unwrap();
    let config = ServerConfig::builder_with_provider(pki::provider()).with_protocol_versions(BOTH).unwrap();
    let config = config
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.der.clone()], leaf.private_key())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match tls.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
                let _ = tls.shutdown().await;
            });
        }
    });
    let ca = authority.write(folder.path(), "ca");
    let right = clients.issue(&["gateway.test"]).write(folder.path(), "right");
    let wrong = authority.issue(&["gateway.test"]).write(folder.path(), "wrong");
    for (client, expected) in [
        (format!(", client_certificate: {right}"), 200),
        (format!(", client_certificate: {wrong}"), 502),
        (String::new(), 502),
    ] {
        let demo = format!(
            "demo: {{ endpoints: [{{ address: '{address}' }}], tls: {{ server_name: orders.test, ca: '{}'{client} }} }}\n",
            ca.display()
        );
        let gateway = Gateway::start(&tenants(&demo, "", &open("")));
        let answer = gateway.get("acme.test", "/v1/echo", "");
        assert_eq!(answer.status, expected, "{client}: {answer:?}");
        if expected == 502 {
            assert_eq!(answer.problem(), "upstream-error");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_is_not_valid_now_is_not_shown_while_the_former_holds_and_holds_up_nothing() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let mut former = authority.issue(&["acme.test"]);
    let certificates = format!("certificates: [{}]", former.write(folder.path(), "acme"));
    let gateway = start(&origin, &[tenant("acme", "acme.test", &certificates, "")], "");
    assert!(shown(&gateway, "acme.test").await == former.der);
    for (wrong, told, host) in [
        (authority.issue_expired(&["acme.test"]), "a certificate has expired", "one.test"),
        (authority.issue_ahead(&["acme.test"], DAY), "a certificate is not valid yet", "two.test"),
    ] {
        wrong.write(folder.path(), "acme");
        assert!(gateway.logs(told), "{}", gateway.log());
        gateway.write_tenants(&file(&origin, &[tenant("acme", &format!("acme.test, {host}"), &certificates, "")]));
        let in_force = || gateway.get(host, "/v1/echo", "").status == 200;
        assert!(comes_true(in_force), "{told}: {}", gateway.readyz().text());
        assert!(shown(&gateway, "acme.test").await == former.der, "{told}");
        former = authority.issue(&["acme.test"]);
        former.write(folder.path(), "acme");
        assert!(comes_to_show(&gateway, "acme.test", &former).await, "{}", gateway.readyz().text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_gives_way_to_one_that_has_not() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let (first, other) = (authority.issue(&["acme.test"]), authority.issue(&["acme.test"]));
    let pairs = format!("{}, {}", first.write(folder.path(), "first"), other.write(folder.path(), "other"));
    let gateway = start(&origin, &[tenant("acme", "acme.test", &format!("certificates: [{pairs}]"), "")], "");
    assert!(shown(&gateway, "acme.test").await == first.der);
    // Nobody says anything to the node when its time is over.
    authority.issue_for(&["acme.test"], SOON).write(folder.path(), "first");
    assert!(comes_to_show(&gateway, "acme.test", &other).await, "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_valid_yet_is_shown_once_it_is() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let first = authority.issue(&["acme.test"]).write(folder.path(), "acme");
    let (late, good) = (authority.issue_ahead(&["globex.test"], DAY), authority.issue(&["globex.test"]));
    let pairs = format!("{}, {}", late.write(folder.path(), "late"), good.write(folder.path(), "good"));
    let tenants = [
        tenant("acme", "acme.test", &format!("certificates: [{first}]"), ""),
        tenant("globex", "globex.test", &format!("certificates: [{pairs}]"), ""),
    ];
    let gateway = start(&origin, &tenants, "");
    assert!(shown(&gateway, "globex.test").await == good.der);
    // Both come before their time, and nobody says anything to the node when it has come.
    let [acme, globex] = ["acme.test", "globex.test"].map(|host| authority.issue_ahead(&[host], SOON));
    acme.write(folder.path(), "acme");
    globex.write(folder.path(), "late");
    assert!(comes_to_show(&gateway, "acme.test", &acme).await, "{}", gateway.readyz().text());
    assert!(comes_to_show(&gateway, "globex.test", &globex).await, "{}", gateway.readyz().text());
    let errors = || gateway.readyz().json()["last_reload"]["errors"] == serde_json::json!([]);
    assert!(comes_true(errors), "{}", gateway.readyz().text());
}

/// Whether a client who asks for this name comes to be shown this certificate.
async fn comes_to_show(gateway: &Gateway, server_name: &str, leaf: &Leaf) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if shown(gateway, server_name).await == leaf.der {
            return true;
        }
    }
    false
}

fn warns_of_expiry(gateway: &Gateway, file: &str) -> bool {
    gateway.log().lines().any(|line| line.contains("has expired") && line.contains(file))
}

const NOT_AFTER: &str = "seiketsu_certificate_not_after_timestamp_seconds";

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_grows_old_gives_way_to_others_and_holds_up_none() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let (old, fresh) = (authority.issue_expired(&["acme.test", "*.acme.test"]), authority.issue(&["acme.test"]));
    let pairs = format!("certificates: [{}, {}]", old.write(folder.path(), "old"), fresh.write(folder.path(), "fresh"));
    let acme = |hosts: &str| [tenant("acme", hosts, &pairs, "")];
    let gateway = start(&origin, &acme("acme.test, a.acme.test"), "");
    assert!(shown(&gateway, "acme.test").await == fresh.der);
    assert!(shown(&gateway, "a.acme.test").await == old.der, "better than none");
    // The beginnings of 2050 and 2020.
    for (host, at) in [("acme.test", 2_524_608_000.0), ("a.acme.test", 1_577_836_800.0)] {
        let series = format!("{NOT_AFTER}{{tenant=\"acme\",host=\"{host}\"}}");
        assert!((gateway.metric(&series) - at).abs() < 0.5, "{}", gateway.metrics());
    }
    gateway.write_tenants(&file(&origin, &acme("acme.test, a.acme.test, b.acme.test")));
    assert!(comes_to_show(&gateway, "b.acme.test", &old).await, "{}", gateway.readyz().text());
    let next = authority.issue(&["acme.test"]);
    next.write(folder.path(), "fresh");
    assert!(comes_to_show(&gateway, "acme.test", &next).await, "{}", gateway.readyz().text());
    // Where the only one that is good goes wrong, that is still a mistake.
    authority.issue_expired(&["acme.test"]).write(folder.path(), "fresh");
    assert!(comes_true(|| warns_of_expiry(&gateway, "fresh.pem")), "{}", gateway.log());
    assert!(shown(&gateway, "acme.test").await == next.der);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_node_that_grows_old_gives_way_to_others_and_holds_up_none() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let (old, fresh) = (authority.issue_expired(&["acme.test", "*.acme.test"]), authority.issue(&["acme.test"]));
    let pairs = format!("{}, {}", old.write(folder.path(), "old"), fresh.write(folder.path(), "fresh"));
    fs::write(folder.path().join("tenants.yaml"), file(&origin, &[tenant("acme", "acme.test", "", "")])).unwrap();
    let node = format!(
        "listeners: {{ http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '127.0.0.1:0' }}\n\
         tls: {{ certificates: [{pairs}] }}\ntenants: tenants.yaml\nstate_dir: state\n\
         egress: {{ allow_loopback: true }}\n"
    );
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    let process = Gateway::spawn(folder.path(), &[]);
    let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    let gateway = Gateway { folder, http, https, operations, process };
    assert!(shown(&gateway, "a.acme.test").await == old.der, "better than none");
    for name in ["acme.test", "nobody.test", "127.0.0.1"] {
        assert!(shown(&gateway, name).await == fresh.der, "{name}");
    }
    let series = format!("{NOT_AFTER}{{tenant=\"_none\",host=\"acme.test\"}}");
    assert!((gateway.metric(&series) - 2_524_608_000.0).abs() < 0.5, "{}", gateway.metrics());
    let next = authority.issue(&["acme.test"]);
    next.write(gateway.folder.path(), "fresh");
    assert!(comes_to_show(&gateway, "acme.test", &next).await, "{}", gateway.readyz().text());
    authority.issue_expired(&["acme.test"]).write(gateway.folder.path(), "fresh");
    assert!(comes_true(|| warns_of_expiry(&gateway, "fresh.pem")), "{}", gateway.log());
    assert!(shown(&gateway, "acme.test").await == next.der);
}

/// A connection ends for no other reason than what is tested.
const PATIENT: &str = "protection: { keepalive_requests: 1000000 }\n";

/// A way to verify clients, and one that comes after it.
fn changes_of_verification(folder: &Path, one: &Authority, two: &Authority) -> Vec<(String, String)> {
    let asking = |id: &str, authority: &Authority, name: &str| {
        let ca = authority.write(folder, name);
        tenant(id, "acme.test", &format!("client_ca: '{}', require_client_certificate: true", ca.display()), "")
    };
    let asked = asking("acme", one, "one");
    vec![
        (tenant("acme", "acme.test", "", ""), asked.clone()),
        (asked.clone(), asking("acme", two, "two")),
        (asked.clone(), asking("globex", one, "one")),
        (asked, tenant("globex", "acme.test", "", "")),
    ]
}

#[test]
fn a_connection_vouches_for_its_client_only_as_long_as_clients_are_verified_the_same_way() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let meter = one.issue(&["meter.test"]);
    for (before, after) in changes_of_verification(folder.path(), &one, &two) {
        let gateway = start(&origin, &[before], PATIENT);
        let client = connect_tls_as(gateway.https, pki::client(&["http/1.1"], BOTH, Some(&meter)));
        let mut client = BufReader::new(client);
        let mut ask = |host: &str| {
            let request = format!("GET /v1/echo HTTP/1.1\r\nHost: {host}\r\n\r\n");
            client.get_mut().write_all(request.as_bytes()).unwrap();
            receive(&mut client).expect("an answer")
        };
        assert_eq!(ask("acme.test").status, 200);
        gateway.write_tenants(&file(&origin, std::slice::from_ref(&after)));
        let began = Instant::now();
        let refused = loop {
            let answer = ask("acme.test");
            if answer.status != 200 {
                break answer;
            }
            assert!(began.elapsed() < PATIENCE, "still served after {after}: {}", gateway.readyz().text());
        };
        assert_eq!((refused.status, refused.problem().as_str()), (421, "misdirected-request"), "{after}");
        assert_eq!(refused.header("connection"), Some("close"));
        assert!(receive(&mut client).is_none(), "{after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_http_2_a_connection_that_vouches_no_more_says_goodbye() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let meter = one.issue(&["meter.test"]);
    for (before, after) in changes_of_verification(folder.path(), &one, &two) {
        let gateway = start(&origin, &[before], PATIENT);
        let config = pki::client(&["h2"], BOTH, Some(&meter));
        let client = Http2::tls_as(&gateway, "acme.test", config).await.unwrap();
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
        gateway.write_tenants(&file(&origin, std::slice::from_ref(&after)));
        let began = Instant::now();
        let refused = loop {
            let answer = client.get("acme.test", "/v1/echo").await;
            if answer.status != 200 {
                break answer;
            }
            assert!(began.elapsed() < PATIENCE, "still served after {after}: {}", gateway.readyz().text());
        };
        assert_eq!((refused.status, refused.problem().as_str()), (421, "misdirected-request"), "{after}");
        patiently(client.ended).await.unwrap().unwrap();
    }
}

#[test]
fn other_changes_of_a_tenant_leave_its_verified_connections_alone() {
    let origin = Origin::start("a");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("one");
    let ca = authority.write(folder.path(), "one");
    let tls = format!("client_ca: '{}', require_client_certificate: true", ca.display());
    let gateway = start(&origin, &[tenant("acme", "acme.test", &tls, "")], PATIENT);
    let meter = authority.issue(&["meter.test"]);
    let mut client = BufReader::new(connect_tls_as(gateway.https, pki::client(&["http/1.1"], BOTH, Some(&meter))));
    let mut ask = |host: &str| {
        let request = format!("GET /v1/echo HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.get_mut().write_all(request.as_bytes()).unwrap();
        receive(&mut client).expect("an answer").status
    };
    assert_eq!(ask("acme.test"), 200);
    gateway.write_tenants(&file(&origin, &[tenant("acme", "acme.test, new.test", &tls, "")]));
    let began = Instant::now();
    while ask("new.test") != 200 {
        assert!(began.elapsed() < PATIENCE, "{}", gateway.readyz().text());
    }
    assert_eq!(ask("acme.test"), 200);
}
