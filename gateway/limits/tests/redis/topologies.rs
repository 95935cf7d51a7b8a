//! A cluster, and a master with its replica that a sentinel watches over.

use std::{process::Command, time::Duration};

use seiketsu_limits::{
    coordinator::{Coordinator, Exchange, Outcome},
    terms::{Bucket, Terms},
};

use crate::{
    faults,
    support::{self, Server, free_port, until},
};

/// With an account that takes long to fill, and so is kept for long.
fn exchange(tenant: &str, reporter: &str, known: bool) -> Exchange {
    let mut exchange = faults::exchange(tenant, reporter, known);
    exchange.accounts[0].terms = Terms::Bucket(Bucket::new(6000, Duration::from_mins(1), 100_000).unwrap());
    exchange
}

fn cluster() -> [Server; 3] {
    let node = || {
        let bus = free_port().to_string();
        Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-require-full-coverage", "no"])
    };
    let nodes = [node(), node(), node()];
    let addresses = nodes.each_ref().map(|node| format!("127.0.0.1:{}", node.port));
    let output = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(addresses)
        .arg("--cluster-yes")
        .output()
        .expect("these tests need redis-cli");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    nodes
}

#[tokio::test]
async fn a_cluster_keeps_the_accounts_of_each_tenant_on_one_of_its_servers() {
    let mut nodes = cluster();
    for node in &nodes {
        until("the cluster is up", async || node.command::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
            .await;
    }
    let ports = nodes.each_ref().map(|node| node.port);
    let url = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]);
    let a = support::coordinator(&url, "a").await;
    let b = support::coordinator(&url, "b").await;
    until("two gateways", async || a.live() == 2 && b.live() == 2).await;

    let tenants: Vec<String> = (0..30).map(|n| format!("tenant-{n}")).collect();
    for tenant in &tenants {
        let mut two = exchange(tenant, "a-1", true);
        two.accounts.push(two.accounts[0].clone());
        two.accounts[1].key = "another".into();
        until("tokens of both accounts", async || {
            let answers = a.exchange(&two).await;
            answers.is_ok_and(|answers| {
                answers.iter().all(|answer| matches!(answer.outcome, Outcome::Granted { tokens: 1, .. }))
            })
        })
        .await;
        assert!(b.exchange(&exchange(tenant, "b-1", true)).await.is_ok());
    }
    let kept = nodes.each_ref().map(|node| node.command::<usize>(&["DBSIZE"]));
    assert!(kept.iter().all(|kept| *kept > 0), "{kept:?}");
    assert_eq!(kept.iter().sum::<usize>(), 2 * tenants.len() + 1);

    // Tenants of the other servers do not notice the loss of one.
    nodes[2].kill();
    let lost = until_steady(&*a, &tenants).await;
    assert!(lost > 0 && lost < tenants.len(), "{lost} of {}", tenants.len());
    let started = std::time::Instant::now();
    for tenant in &tenants {
        let _ = a.exchange(&exchange(tenant, "a-1", true)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let before = a.connections();
    nodes[2].restart();
    // It may have forgotten what it was told, also by gateways that have nothing to ask of it.
    until("the other process is noticed", async || a.connections() > before).await;
    for tenant in &tenants {
        until("an answer", async || a.exchange(&exchange(tenant, "a-1", true)).await.is_ok()).await;
    }
}

/// How many tenants get no answer, once this does not change any more.
async fn until_steady(coordinator: &dyn Coordinator, tenants: &[String]) -> usize {
    let (mut last, mut times) = (usize::MAX, 0);
    while times < 3 {
        let mut lost = 0;
        for tenant in tenants {
            let answer = coordinator.exchange(&exchange(tenant, "a-1", true)).await;
            lost += usize::from(answer.is_err());
        }
        times = if lost == last && lost > 0 { times + 1 } else { 0 };
        last = lost;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    last
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_followed() {
    let mut master = Server::start(&[]);
    let replica =
        Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string(), "--repl-diskless-sync-delay", "0"]);
    until("the replica follows", async || {
        replica.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let sentinel = Server::start_sentinel(&format!(
        "sentinel monitor main 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds main 300\n\
         sentinel failover-timeout main 2000",
        master.port
    ));
    until("the sentinel knows the replica", async || {
        let replicas: redis::Value = sentinel.command(&["SENTINEL", "REPLICAS", "main"]);
        format!("{replicas:?}").contains(&replica.port.to_string())
    })
    .await;

    let url = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port);
    let coordinator = support::coordinator(&url, "a").await;
    let outcome =
        async || coordinator.exchange(&exchange("tenant", "a-1", true)).await.map(|answers| answers[0].outcome);
    until("tokens", async || matches!(outcome().await, Ok(Outcome::Granted { .. }))).await;
    until("the replica has them", async || replica.command::<usize>(&["EXISTS", "seiketsu:{tenant}:rate"]) == 1).await;

    master.kill();
    until("the loss is seen", async || outcome().await.is_err()).await;
    let mut first = None;
    until("an answer of the new master", async || {
        first = outcome().await.ok();
        first.is_some()
    })
    .await;
    assert!(matches!(first, Some(Outcome::Recovering { .. })), "{first:?}");
    assert!(replica.command::<String>(&["INFO", "replication"]).contains("role:master"));
    until("tokens", async || matches!(outcome().await, Ok(Outcome::Granted { .. }))).await;

    // The old one comes back as a replica, which nobody is to ask.
    master.restart();
    until("the old master follows", async || master.command::<String>(&["INFO", "replication"]).contains("role:slave"))
        .await;
    until("tokens", async || matches!(outcome().await, Ok(Outcome::Granted { .. }))).await;
}
