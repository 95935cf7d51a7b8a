//! `rediss`: certificates are checked against the system's authorities.

use std::{env, process::Command};

use seiketsu_limits::coordinator::{Coordinator, redis::RedisCoordinator};

use crate::{
    faults::exchange,
    support::{self, Server, address, free_port, until},
};

/// Where the test below finds its authorities: the variable that the system's are overruled with.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// The port of the server, told to the test below.
const PORT: &str = "SEIKETSU_TEST_TLS_PORT";

#[tokio::test]
async fn a_server_with_a_certificate_of_a_known_authority_is_spoken_to() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (write("cert", certificate.cert.pem()), write("key", certificate.signing_key.serialize_pem()));
    let stranger = write("stranger", stranger.cert.pem());
    let port = free_port().to_string();
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let server = Server::start(&[&["--tls-port", &port, "--tls-auth-clients", "no"], &files[..]].concat());

    // The authorities are those of the process, so each case is one of its own.
    let case = |name: &str, authorities: &str| {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("tls::{name}"), "--include-ignored"])
            .envs([(AUTHORITIES, authorities), (PORT, &port)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    case("known", &cert);
    case("unknown", &stranger);
    drop(server);
}

fn url() -> String {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    format!("rediss://127.0.0.1:{}", env::var(PORT).unwrap())
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn known() {
    let coordinator = support::coordinator(&url(), "a").await;
    assert!(coordinator.exchange(&exchange("tenant", "a-1", false)).await.is_ok());
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn unknown() {
    let runtime = tokio::runtime::Handle::current();
    let coordinator = RedisCoordinator::start(address(&url()), "a".into(), &runtime);
    let mut tries = 0;
    until("some tries", async || {
        tries += 1;
        tries > 300
    })
    .await;
    assert!(!coordinator.is_connected());
}
