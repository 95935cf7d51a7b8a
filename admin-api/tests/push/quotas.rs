//! Quotas whose counters were lost with Redis and with the node's memory, and are told again from the ledger.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    admin::{Admin, Process, eventually, free_address},
    gateway::{Gateway, Origin, served},
};

struct Redis {
    address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Redis {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let process = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed: script/test does");
        let redis = Self { address, _process: Process(process), _folder: folder };
        assert!(eventually(async || TcpStream::connect(address).await.is_ok()).await);
        redis
    }

    /// Loses everything.
    async fn flush(&self) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"FLUSHALL\r\n").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }
}

/// How many of so many requests are admitted.
async fn admitted(gateway: &Gateway, many: usize) -> u64 {
    let mut admitted = 0;
    for _ in 0..many {
        match gateway.get("acme.test", "/v1/echo", "").await.status {
            200 => admitted += 1,
            429 => {}
            status => panic!("{status}"),
        }
    }
    admitted
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_of_a_quota_is_known_after_redis_and_the_node_have_lost_it() {
    let (origin, redis, admin) = (Origin::start("a"), Redis::start().await, Admin::start().await);
    let mut tenant = served("acme", origin.address);
    tenant["policies"]["limits"] = json!({ "quotas": { "daily": 100 } });
    admin.put(&tenant, "").await.revision();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("one");
    let more = format!("limits: {{ redis: {{ url: 'redis://{}' }} }}\n", redis.address);
    let mut gateway = Gateway::start_with(&admin, &folder, &more).await;
    let mut used = 0;
    // Until Redis gives, this node may refuse.
    assert!(eventually(async || admitted(&gateway, 1).await == 1).await);
    used += 1;
    while used < 60 {
        used += admitted(&gateway, 1).await;
    }
    let ledger = async || {
        let told = admin.get("/usage?tenant=acme").await;
        told["items"][0]["day"]["used"].as_u64().unwrap_or_else(|| panic!("{told}"))
    };
    assert!(eventually(async || ledger().await == 60).await, "{}", ledger().await);
    gateway.process.signal("-TERM");
    gateway.process.0.wait().unwrap();
    redis.flush().await;
    for file in ["quotas-of-redis.journal", "quotas.journal"] {
        let _ = fs::remove_file(folder.join("state").join(file));
    }
    let gateway = Gateway::start_in(&folder).await;
    // It starts from what it was sent last, maybe before it is connected.
    let is_live = async || admin.get("/nodes/one").await["ready"] == true;
    assert!(eventually(is_live).await);
    let mut more = 0;
    let mut refused = 0;
    while refused < 50 {
        let one = admitted(&gateway, 1).await;
        more += one;
        refused = if one == 1 { 0 } else { refused + 1 };
    }
    assert!(more <= 40, "{more} of 40 that are left: {}", gateway.log());
    // And no fewer: nothing is counted twice.
    assert!(more >= 38, "{more} of 40 that are left: {}", gateway.log());
}
