//! Redis goes away in all the ways it can, and comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use seiketsu_limits::{
    coordinator::{
        Answer, Coordinator, CoordinatorError, Exchange, LEASE_TIME, Outcome, Request,
        redis::{EXCHANGE_TIMEOUT, RedisCoordinator},
    },
    terms::{Bucket, Terms},
};

use crate::support::{self, Server, address, until};

/// What a busy machine may add to a time.
const SLACK: Duration = Duration::from_millis(150);

pub(crate) fn exchange(tenant: &str, reporter: &str, known: bool) -> Exchange {
    let terms = Terms::Bucket(Bucket::new(6000, Duration::from_mins(1), 100).unwrap());
    let request = Request {
        key: "rate".into(),
        terms,
        spent: 0,
        held: 0,
        known,
        has_ended: false,
        want: 1,
        least: 1,
        paced: false,
    };
    Exchange { tenant: tenant.into(), reporter: reporter.into(), revision: 1, accounts: vec![request] }
}

async fn ask(coordinator: &RedisCoordinator, known: bool) -> Result<Answer, CoordinatorError> {
    coordinator.exchange(&exchange("tenant", "a-1", known)).await.map(|answers| answers[0])
}

fn is_granted(answer: &Result<Answer, CoordinatorError>) -> bool {
    matches!(answer, Ok(Answer { outcome: Outcome::Granted { tokens: 1, .. }, .. }))
}

fn is_recovering(answer: &Result<Answer, CoordinatorError>) -> bool {
    matches!(answer, Ok(Answer { outcome: Outcome::Recovering { .. }, .. }))
}

async fn is_soon_granted(coordinator: &RedisCoordinator) {
    until("tokens", async || is_granted(&ask(coordinator, true).await)).await;
}

/// A server whose accounts are not taken for those that were lost when it began.
async fn settled(options: &[&str]) -> (Server, Arc<RedisCoordinator>) {
    let server = Server::start(options);
    let coordinator = support::coordinator(&server.url(), "a").await;
    is_soon_granted(&coordinator).await;
    (server, coordinator)
}

#[tokio::test]
async fn a_server_that_has_just_begun_may_have_lost_everything() {
    let server = Server::start(&[]);
    let coordinator = support::coordinator(&server.url(), "a").await;
    let answer = ask(&coordinator, false).await;
    let Ok(Answer { outcome: Outcome::Recovering { wait }, .. }) = answer else { panic!("{answer:?}") };
    assert!(wait <= LEASE_TIME + Duration::from_secs(1), "{wait:?}");
    // Then it has what came since.
    until("tokens", async || is_granted(&ask(&coordinator, false).await)).await;
    assert!(ask(&coordinator, false).await.unwrap().left < 50);
}

#[tokio::test]
async fn after_a_restart_nothing_is_given_until_the_leases_of_before_have_ended() {
    for options in [&[][..], &["--appendonly", "yes", "--appendfsync", "always"]] {
        let (mut server, coordinator) = settled(options).await;
        let stopped = Instant::now();
        server.restart();
        until("a connection", async || coordinator.is_connected() && ask(&coordinator, false).await.is_ok()).await;
        assert!(is_recovering(&ask(&coordinator, false).await), "{options:?}");
        is_soon_granted(&coordinator).await;
        assert!(stopped.elapsed() >= LEASE_TIME, "{options:?}");
    }
}

#[tokio::test]
async fn quotas_outlive_a_restart_of_a_server_that_writes_them_down() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let coordinator = support::coordinator(&server.url(), "a").await;
    let mut exchange = exchange("tenant", "a-1", false);
    exchange.accounts[0].terms = Terms::Quota { limit: 1000, starts: 0, ends: 1 << 52 };
    exchange.accounts[0].spent = 400;
    let left = async |exchange: &Exchange| coordinator.exchange(exchange).await.map(|answers| answers[0].left);
    assert_eq!(left(&exchange).await, Ok(600));
    server.restart();
    exchange.reporter = "b-1".into();
    exchange.accounts[0].spent = 1;
    until("an answer", async || left(&exchange).await == Ok(599)).await;
}

#[tokio::test]
async fn an_account_that_was_flushed_is_lost_to_who_knows_it() {
    let (server, coordinator) = settled(&[]).await;
    // To others it is a new one, once the server is no new one itself.
    until("tokens", async || {
        let () = server.command(&["FLUSHALL"]);
        is_granted(&ask(&coordinator, false).await)
    })
    .await;
    let () = server.command(&["FLUSHALL"]);
    assert!(is_recovering(&ask(&coordinator, true).await));
    let () = server.command(&["FLUSHALL"]);
    assert!(is_granted(&ask(&coordinator, false).await));
}

#[tokio::test]
async fn a_hung_server_is_waited_for_once_and_then_failed_fast() {
    let (server, coordinator) = settled(&[]).await;
    server.pause();
    let started = Instant::now();
    assert_eq!(ask(&coordinator, true).await, Err(CoordinatorError::TimedOut));
    let took = started.elapsed();
    assert!(took >= EXCHANGE_TIMEOUT && took < EXCHANGE_TIMEOUT + SLACK, "{took:?}");
    // Over a second, in which the connection is tried again and again, hardly anybody waits.
    let started = Instant::now();
    let (mut asked, mut waited) = (0, Duration::ZERO);
    while started.elapsed() < Duration::from_secs(1) {
        let asking = Instant::now();
        assert!(ask(&coordinator, true).await.is_err());
        waited += asking.elapsed();
        asked += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(asked > 100 && waited < Duration::from_millis(300), "{asked} waited for {waited:?}");
    server.resume();
    let resumed = Instant::now();
    is_soon_granted(&coordinator).await;
    assert!(resumed.elapsed() < Duration::from_secs(1), "{:?}", resumed.elapsed());
}

#[tokio::test]
async fn a_dead_server_fails_at_once_and_is_found_again_soon() {
    let (mut server, coordinator) = settled(&[]).await;
    server.kill();
    until("the loss is seen", async || ask(&coordinator, true).await.is_err()).await;
    until("it counts as away", async || !coordinator.is_connected()).await;
    for _ in 0..100 {
        let started = Instant::now();
        let answer = ask(&coordinator, true).await;
        assert!(matches!(answer, Err(CoordinatorError::Unreachable(_))), "{answer:?}");
        assert!(started.elapsed() < Duration::from_millis(20), "{:?}", started.elapsed());
    }
    assert_eq!(coordinator.live(), 1);
    server.restart();
    let back = Instant::now();
    until("an answer", async || ask(&coordinator, true).await.is_ok()).await;
    assert!(back.elapsed() < Duration::from_millis(100) + SLACK, "{:?}", back.elapsed());
    let statistics = coordinator.statistics();
    assert!(statistics.unreachable >= 100 && statistics.answered >= 2, "{statistics:?}");
    assert!(statistics.latency_sum > Duration::ZERO);
}

#[tokio::test]
async fn gateways_see_how_many_they_are() {
    let server = Server::start(&[]);
    let coordinators = [
        support::coordinator(&server.url(), "a").await,
        support::coordinator(&server.url(), "b").await,
        support::coordinator(&server.url(), "c").await,
    ];
    let [a, b, c] = coordinators;
    for coordinator in [&a, &b, &c] {
        until("three", async || coordinator.live() == 3).await;
    }
    // Until then a number that falls is not believed: others may be about to come back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    c.close().await;
    assert!(!c.is_connected());
    let closed = Instant::now();
    until("two", async || a.live() == 2 && b.live() == 2).await;
    assert!(closed.elapsed() < Duration::from_millis(400) + SLACK, "{:?}", closed.elapsed());
    drop(b);
    let dropped = Instant::now();
    until("one", async || a.live() == 1).await;
    assert!(dropped.elapsed() < Duration::from_millis(400) + SLACK, "{:?}", dropped.elapsed());
}

#[tokio::test]
async fn the_last_number_of_gateways_is_kept_while_redis_is_away() {
    let (mut server, a) = settled(&[]).await;
    let b = support::coordinator(&server.url(), "b").await;
    until("two", async || a.live() == 2 && b.live() == 2).await;
    server.kill();
    until("the loss is seen", async || !a.is_connected()).await;
    assert_eq!(a.live(), 2);
    server.restart();
    until("a connection", async || a.is_connected() && b.is_connected()).await;
    assert_eq!((a.live(), b.live()), (2, 2));
}

#[tokio::test]
async fn the_password_is_in_the_url_and_nowhere_else() {
    let server = Server::start(&["--requirepass", "s@cret"]);
    let url = |password: &str| format!("redis://default:{password}@127.0.0.1:{}", server.port);
    let coordinator = support::coordinator(&url("s%40cret"), "a").await;
    assert!(ask(&coordinator, false).await.is_ok());

    let runtime = tokio::runtime::Handle::current();
    let wrong = RedisCoordinator::start(address(&url("wr%40ng")), "b".into(), &runtime);
    let error = ask(&wrong, false).await.unwrap_err();
    for shown in [format!("{coordinator:?}"), format!("{wrong:?} {error}")] {
        assert!(!shown.contains("s@cret") && !shown.contains("s%40cret") && !shown.contains("ng@"), "{shown}");
        assert!(!shown.contains("wr@ng"), "{shown}");
    }
    assert!(!wrong.is_connected());
}

#[tokio::test]
async fn a_script_that_redis_has_forgotten_is_loaded_again() {
    let (server, coordinator) = settled(&[]).await;
    let () = server.command(&["SCRIPT", "FLUSH"]);
    assert!(is_granted(&ask(&coordinator, true).await));
    assert!(is_granted(&ask(&coordinator, true).await));
}

#[tokio::test]
async fn names_that_the_script_could_misread_are_refused() {
    let (_server, coordinator) = settled(&[]).await;
    for reporter in ["", "a b", "a\n", "@a"] {
        let error = coordinator.exchange(&exchange("tenant", reporter, false)).await.unwrap_err();
        assert!(matches!(error, CoordinatorError::Malformed(_)), "{reporter:?}: {error}");
    }
    let mut exchange = exchange("tenant", "a-1", false);
    exchange.accounts[0].key = "header x-é: \"{}\" @a \\ run".into();
    assert!(coordinator.exchange(&exchange).await.is_ok());
}
