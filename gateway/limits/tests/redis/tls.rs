//! `rediss`: certificates are checked against the system's authorities.

use std::{env, process::Command};

use seiketsu_limits::coordinator::{Coordinator, redis::RedisCoordinator};

use crate::{
    faults::exchange,
    support::{self, Server, address, free_port, until},
};

/// Where the test below finds its authorities: the variable that the system's are overruled with.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// The port of the server, told to the test when it runs itself again.
const PORT: &str = "SEIKETSU_TEST_TLS_PORT";

/// Whether the server's authority is among those of the process.
const IS_KNOWN: &str = "SEIKETSU_TEST_TLS_KNOWN";

const NAME: &str = "tls::only_servers_with_a_certificate_of_a_known_authority_are_spoken_to";

#[tokio::test]
async fn only_servers_with_a_certificate_of_a_known_authority_are_spoken_to() {
    // The authorities are those of the process, so each case is one of its own: this test, in another process.
    if let Ok(port) = env::var(PORT) {
        return match env::var(IS_KNOWN).as_deref() {
            Ok("yes") => known(&port).await,
            _ => unknown(&port).await,
        };
    }
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

    for (authorities, is_known) in [(&cert, "yes"), (&stranger, "no")] {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME])
            .envs([(AUTHORITIES, &**authorities), (PORT, &port), (IS_KNOWN, is_known)])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }
    drop(server);
}

fn url(port: &str) -> String {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    format!("rediss://127.0.0.1:{port}")
}

async fn known(port: &str) {
    let coordinator = support::coordinator(&url(port), "a").await;
    assert!(coordinator.exchange(&exchange("tenant", "a-1", false)).await.is_ok());
}

async fn unknown(port: &str) {
    let runtime = tokio::runtime::Handle::current();
    let coordinator = RedisCoordinator::start(address(&url(port)), "a".into(), &runtime);
    let mut tries = 0;
    until("some tries", async || {
        tries += 1;
        tries > 300
    })
    .await;
    assert!(!coordinator.is_connected());
}
