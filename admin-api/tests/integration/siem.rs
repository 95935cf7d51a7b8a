//! The audit trail, sent to where others look at it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs, server::WebPkiClientVerifier,
};

use crate::{
    alerts::alert_of,
    support::{Admin, Client, Database, on_both, tenant, tenant_with_rate, wait_until},
    webhooks::{Received, Receiver},
};

struct Identity {
    certificate: String,
    key: String,
}

/// An authority, and what it has signed for both ends.
struct Authority {
    pem: String,
    server: Identity,
    client: Identity,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let issue = |purpose| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            Identity { certificate: certificate.pem(), key: key.serialize_pem() }
        };
        let (server, client) = (issue(ExtendedKeyUsagePurpose::ServerAuth), issue(ExtendedKeyUsagePurpose::ClientAuth));
        Self { pem, server, client }
    }
}

/// Takes syslog over TLS from clients that show a certificate; breaks off where the test says.
struct Syslog {
    address: SocketAddr,
    messages: Arc<Mutex<Vec<String>>>,
    /// How many bytes of a connection it still takes; none: all.
    takes: Arc<Mutex<Option<usize>>>,
    broken: Arc<Mutex<usize>>,
}

impl Syslog {
    fn start(authority: &Authority) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        let read = |pem: &str| rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(read(&authority.pem)).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let key = PrivateKeyDer::from_pem_slice(authority.server.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![read(&authority.server.certificate)], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let syslog = Self {
            address: listener.local_addr().unwrap(),
            messages: Arc::default(),
            takes: Arc::default(),
            broken: Arc::default(),
        };
        let (config, messages, takes, broken) =
            (Arc::new(config), Arc::clone(&syslog.messages), Arc::clone(&syslog.takes), Arc::clone(&syslog.broken));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                let (mut bytes, mut piece) = (Vec::new(), [0; 1024]);
                let most = *takes.lock().unwrap();
                let is_whole = loop {
                    if most.is_some_and(|most| bytes.len() >= most) {
                        break false;
                    }
                    match stream.read(&mut piece) {
                        // The client's close_notify.
                        Ok(0) => break true,
                        Ok(read) => bytes.extend_from_slice(&piece[..read]),
                        Err(_) => break false,
                    }
                };
                // What came in parts counts as much of it as was whole.
                messages.lock().unwrap().extend(frames(&bytes));
                if is_whole {
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                } else {
                    *broken.lock().unwrap() += 1;
                }
            }
        });
        syslog
    }

    fn url(&self) -> String {
        format!("syslogs://localhost:{}", self.address.port())
    }

    /// Entries in the order in which they came, and heads.
    fn entries(&self) -> (Vec<u64>, Vec<Value>) {
        let (mut entries, mut heads) = (Vec::new(), Vec::new());
        for message in self.messages.lock().unwrap().iter() {
            let parts: Vec<&str> = message.splitn(8, ' ').collect();
            assert!(matches!(parts[0], "<110>1" | "<108>1") && parts[3] == "seiketsu-admin", "{message}");
            let told: Value = serde_json::from_str(parts[7]).unwrap();
            match told["number"].as_u64() {
                Some(number) => entries.push(number),
                None => heads.push(told["audit_head"].clone()),
            }
        }
        (entries, heads)
    }
}

/// Messages behind their lengths (RFC 5425, section 4.3); one that is cut is none.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        let Some(message) = bytes.get(space + 1..space + 1 + length) else { break };
        all.push(String::from_utf8(message.to_vec()).unwrap());
        bytes = &bytes[space + 1 + length..];
    }
    all
}

fn newest(client: &Client) -> u64 {
    client.get("/audit?limit=1").is(200).json()["items"][0]["number"].as_u64().unwrap()
}

fn sink(client: &Client) -> Value {
    client.get("/siem").is(200).json()["items"][0].clone()
}

fn unique(mut entries: Vec<u64>) -> Vec<u64> {
    entries.sort_unstable();
    entries.dedup();
    entries
}

on_both! {
    fn the_whole_trail_comes_by_syslog_whatever_breaks_off_meanwhile(database) {
        let authority = Authority::new();
        let syslog = Syslog::start(&authority);
        let mut first = database.admin();
        let owner = first.client();
        for rate in 1..60 {
            owner.put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
        }
        // In the middle of the first batch.
        *syslog.takes.lock().unwrap() = Some(9000);
        let body = json!({
            "name": "siem", "url": syslog.url(), "after": 0, "ca": authority.pem,
            "certificate": authority.client.certificate, "private_key": authority.client.key,
        });
        let made = owner.post("/siem", &body).is(201);
        assert!(!made.text().contains("PRIVATE KEY") && !owner.get("/audit?limit=1000").text().contains("PRIVATE KEY"));
        wait_until("it breaks off", || *syslog.broken.lock().unwrap() >= 1);
        assert_eq!(sink(&owner)["delivered"], 0, "what was not all taken is not delivered");
        first.process.0.kill().unwrap();
        first.process.wait();
        let second = Admin::start(database, tempfile::tempdir().unwrap(), &[]);
        let owner = Client { token: Some(first.token.clone()), ..second.client() };
        wait_until("it breaks off again", || *syslog.broken.lock().unwrap() >= 2);
        *syslog.takes.lock().unwrap() = None;
        owner.post("/tenants", &tenant("globex")).is(201);
        let all = newest(&owner);
        wait_until("everything came", || unique(syslog.entries().0).last() >= Some(&all));
        let (entries, heads) = syslog.entries();
        let came = unique(entries);
        assert_eq!(came, (1..=came.len() as u64).collect::<Vec<_>>());
        wait_until("the head came", || !syslog.entries().1.is_empty());
        let head = heads.first().cloned().unwrap_or_else(|| syslog.entries().1[0].clone());
        assert!(head["number"].as_u64().unwrap() >= 1 && head["hash"].as_str().unwrap().len() == 64, "{head}");
        wait_until("it is known how far it came", || sink(&owner)["delivered"].as_u64() >= Some(all));
        // Then only what is new, and once.
        let before = syslog.entries().0.len() as u64;
        owner.delete("/tenants/globex").is(200);
        let all = newest(&owner);
        wait_until("it came", || syslog.entries().0.last() == Some(&all));
        assert!(syslog.entries().0.len() as u64 <= before + 2);
    }

    fn the_trail_comes_by_http_as_events_of_ocsf(database) {
        let receiver = Receiver::start();
        receiver.answers("503 No");
        let admin = Admin::start(database, tempfile::tempdir().unwrap(), &["--outbound-allow-private"]);
        let owner = admin.client();
        owner.post("/alerts/rules", &json!({
            "name": "stalled", "severity": "critical", "condition": { "kind": "siem_stalled", "for_seconds": 0 },
        })).is(201);
        owner.post("/tenants", &tenant("acme")).is(201);
        owner.without_token().get("/status").is(401);
        let body = json!({ "name": "siem", "url": receiver.url(), "token": "hec-secret", "after": 0 });
        let made = owner.post("/siem", &body).is(201);
        assert!(!made.text().contains("hec-secret") && made.json()["has_token"] == true);
        assert_eq!(alert_of(&owner, "stalled")["state"], "open");
        assert!(sink(&owner)["last_error"].as_str().unwrap().contains("503"));
        receiver.answers("200 OK");
        let all = newest(&owner);
        wait_until("everything came", || sink(&owner)["delivered"].as_u64() >= Some(all));
        wait_until("the alert is over", || alert_of(&owner, "stalled")["state"] == "resolved");
        let received = receiver.received();
        assert!(received.iter().all(|one| one.header("authorization") == "Bearer hec-secret"));
        let events: Vec<Value> =
            received.iter().flat_map(|one| one.json().as_array().unwrap().clone()).collect();
        for event in &events {
            assert_eq!((&event["class_uid"], &event["category_uid"]), (&json!(6003), &json!(6)));
            assert_eq!(event["type_uid"].as_u64().unwrap(), 600_300 + event["activity_id"].as_u64().unwrap());
            assert!(event["time"].as_u64().unwrap() > 1_600_000_000_000 && event["metadata"]["version"] == "1.3.0");
        }
        let of = |operation: &str| events.iter().find(|event| event["api"]["operation"] == operation).unwrap().clone();
        let created = of("create_tenant");
        assert_eq!((&created["activity_id"], &created["status_id"]), (&json!(1), &json!(1)));
        assert_eq!((&created["actor"]["user"]["name"], &created["src_endpoint"]["ip"]), (&json!("owner"), &json!("127.0.0.1")));
        assert_eq!(of("get_status")["status_id"], 2);
        let came = unique(events.iter().filter_map(|event| event["metadata"]["sequence"].as_u64()).collect());
        assert_eq!(came[..usize::try_from(all).unwrap()], (1..=all).collect::<Vec<_>>()[..]);
        // The token is for the address that it was given for.
        let path = format!("/siem/{}", made.json()["id"].as_str().unwrap());
        let same = json!({ "name": "renamed", "url": receiver.url(), "enabled": false });
        assert_eq!(owner.put(&path, &same).is(200).json()["has_token"], true);
        let other = |token: Value| {
            json!({ "name": "renamed", "url": "https://elsewhere.invalid/", "enabled": false, "token": token })
        };
        let refused = owner.put(&path, &other(Value::Null)).is_problem(422, ":invalid");
        assert_eq!(refused["errors"][0]["path"], "token");
        assert_eq!(owner.put(&path, &other("".into())).is(200).json()["has_token"], false);
        assert_eq!(owner.put(&path, &other("new".into())).is(200).json()["has_token"], true);
    }

    fn whoever_changes_an_address_in_the_store_is_not_sent_what_was_for_another(database) {
        let (receiver, other) = (Receiver::start(), Receiver::start());
        let admin = Admin::start(database, tempfile::tempdir().unwrap(), &["--outbound-allow-private", "--webhook-pauses", "100ms"]);
        let owner = admin.client();
        let body = json!({ "name": "siem", "url": receiver.url(), "token": "hec-secret", "after": 0 });
        let made = owner.post("/siem", &body).is(201).json();
        let hook = json!({ "name": "hook", "url": receiver.url(), "kinds": ["alert.acknowledged"] });
        let hook = owner.post("/webhooks", &hook).is(201).json();
        wait_until("it comes", || sink(&owner)["delivered"].as_u64() >= Some(1));
        // What is asked for there may change, and the token stays.
        let path = format!("/siem/{}", made["id"].as_str().unwrap());
        owner.put(&path, &json!({ "name": "siem", "url": format!("{}&c=d", receiver.url()) })).is(200);
        owner.post("/tenants", &tenant("acme")).is(201);
        let is_there = |one: &Received| one.line().contains("c=d") && one.header("authorization") == "Bearer hec-secret";
        wait_until("it comes", || receiver.received().iter().any(is_there));
        for table in ["siem_sinks", "webhooks"] {
            database.execute(&format!("UPDATE {table} SET url = '{}'", other.url()));
        }
        owner.post("/tenants", &tenant("globex")).is(201);
        let test = format!("/webhooks/{}", hook["id"].as_str().unwrap());
        owner.post(&format!("{test}/test"), &json!({})).is(202);
        wait_until("the sink fails", || sink(&owner)["last_error"].to_string().contains("altered"));
        let deliveries = || owner.get(&format!("{test}/deliveries")).is(200).json()["items"].clone();
        wait_until("the webhook fails", || deliveries()[0]["last_error"].to_string().contains("altered"));
        assert!(other.received().is_empty());
        // Keys are rotated when it is mended.
        owner.put(&path, &json!({ "name": "siem", "url": other.url(), "token": "new" })).is(200);
        let rotate = format!("{test}/rotate-secret");
        assert!(owner.post(&rotate, &json!({})).is(409).text().contains("altered"));
        // As it stands there, which an operator says is right.
        owner.put(&test, &json!({ "name": "hook", "url": other.url(), "kinds": ["alert.acknowledged"] })).is(200);
        owner.post(&rotate, &json!({})).is(200);
        owner.post("/secrets/rotate", &json!({})).is(200);
        owner.post(&format!("{test}/test"), &json!({})).is(202);
        wait_until("it is delivered", || deliveries()[0]["state"] == "delivered");
        let all = newest(&owner);
        wait_until("everything came", || sink(&owner)["delivered"].as_u64() >= Some(all));
        // Whoever changes the address over the API takes the webhook's secret along.
        let hook = json!({ "name": "hook", "url": receiver.url(), "kinds": ["alert.acknowledged"] });
        owner.put(&test, &hook).is(200);
        owner.post(&format!("{test}/test"), &json!({})).is(202);
        wait_until("it is delivered", || deliveries()[0]["state"] == "delivered");
    }

    fn an_address_that_is_no_sink_any_more_is_not_sent_to(database) {
        let receiver = Receiver::start();
        let lax = Admin::start(database, tempfile::tempdir().unwrap(), &["--outbound-allow-private"]);
        let owner = lax.client();
        owner.post("/siem", &json!({ "name": "siem", "url": receiver.url() })).is(201);
        wait_until("it comes", || sink(&owner)["delivered"].as_u64() >= Some(1) && !receiver.received().is_empty());
        let token = lax.token.clone();
        drop(lax);
        let strict = database.admin();
        let owner = Client { token: Some(token), ..strict.client() };
        let before = receiver.received().len();
        owner.post("/tenants", &tenant("acme")).is(201);
        wait_until("it is refused", || sink(&owner)["last_error"].to_string().contains("neither syslogs"));
        assert_eq!(receiver.received().len(), before);
    }
}

#[test]
fn what_cannot_be_a_sink_is_refused() {
    let database = Database::sqlite();
    let owner_of = database.admin();
    let owner = owner_of.client();
    for (body, place) in [
        (json!({ "name": "x", "url": "nonsense" }), "url"),
        (json!({ "name": "x", "url": "ftp://host/" }), "url"),
        (json!({ "name": "x", "url": "http://host/" }), "url"),
        (json!({ "name": "x", "url": "syslogs://host", "ca": "nonsense" }), "ca"),
        (json!({ "name": "x", "url": "syslogs://host", "certificate": "x" }), "certificate"),
        (json!({ "name": "x", "url": "syslogs://host", "certificate": "x", "private_key": "y" }), "certificate"),
    ] {
        assert_eq!(owner.post("/siem", &body).is_problem(422, ":invalid")["errors"][0]["path"], place, "{body}");
    }
    owner.post("/siem", &json!({ "name": "x", "url": "syslogs://host", "enabled": false })).is(201);
    owner.post("/siem", &json!({ "name": "x", "url": "syslogs://host" })).is_problem(409, ":conflict");
}
