//! The connection to Redis: kept up in the background, so that no exchange ever waits for one.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::quality::FixedState;
use parking_lot::RwLock;
use redis::FromRedisValue;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    EXCHANGE_TIMEOUT,
    address::{RedisAddress, Topology},
    dialer::{Connection, Dialer},
    script,
    shards::Shards,
};

/// How soon is tried again what failed.
const RETRY: Duration = Duration::from_millis(50);

const HEARTBEAT: Duration = Duration::from_millis(250);

/// A gateway that says nothing for so long counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// A cluster mends its connections itself. It is connected anew after so many heartbeats in a row went wrong.
const CLUSTER_PATIENCE: u32 = 20;

/// A cluster's tenants are on several servers, which fail one by one.
const CLUSTER_LANES: usize = 1 << 12;

const GATEWAYS: &str = "seiketsu:gateways";

/// What exchanges see of the connection.
pub(super) struct Link {
    connection: RwLock<Option<Connection>>,
    lanes: Box<[Lane]>,
    /// Time for the lanes begins here.
    origin: Instant,
    doubt: Notify,
    live: AtomicU64,
    /// So many connections have been made; also those that a cluster made to new servers by itself.
    connections: AtomicU64,
    /// Over this many of them everything was told that this gateway knows of quotas.
    told_over: AtomicU64,
    /// The processes that all gateways have told: their ids.
    told: RwLock<Arc<str>>,
}

/// Tenants that fail together. After a time-out only one exchange at a time tries again.
#[derive(Debug, Default)]
struct Lane {
    /// When the next one may, in microseconds since the link's origin; 0 while all is well.
    retry_at: AtomicU64,
}

impl Link {
    pub(super) fn new(address: &RedisAddress) -> Self {
        let lanes = if address.topology == Topology::Cluster { CLUSTER_LANES } else { 1 };
        Self {
            connection: RwLock::new(None),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            origin: Instant::now(),
            doubt: Notify::new(),
            live: AtomicU64::new(1),
            connections: AtomicU64::new(0),
            told_over: AtomicU64::new(0),
            told: RwLock::new("".into()),
        }
    }

    pub(super) fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(super) fn has_told(&self, connections: u64) {
        self.told_over.store(connections, Relaxed);
        // Others wait for it.
        self.doubt.notify_one();
    }

    pub(super) fn told(&self) -> Arc<str> {
        Arc::clone(&self.told.read())
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.read().is_some()
    }

    /// A connection for this tenant, unless there is none that is known to answer.
    pub(super) fn connection(&self, tenant: &str) -> Option<Connection> {
        let connection = self.connection.read().clone()?;
        let retry_at = &self.lane(tenant).retry_at;
        let (now, due) = (self.micros(), retry_at.load(Relaxed));
        if due == 0 {
            return Some(connection);
        }
        let next = now + micros(EXCHANGE_TIMEOUT + RETRY);
        let mine = now >= due && retry_at.compare_exchange(due, next, Relaxed, Relaxed).is_ok();
        mine.then_some(connection)
    }

    /// An exchange of this tenant was answered.
    pub(super) fn trust(&self, tenant: &str) {
        self.lane(tenant).trust();
    }

    /// An exchange of this tenant was not answered.
    pub(super) fn suspect(&self, tenant: &str) {
        self.lane(tenant).retry_at.store(self.micros() + micros(RETRY), Relaxed);
        self.doubt.notify_one();
    }

    fn lane(&self, tenant: &str) -> &Lane {
        let hash = FixedState::default().hash_one(tenant);
        let lanes = self.lanes.len();
        &self.lanes[usize::try_from(hash).unwrap_or_default() % lanes]
    }

    fn micros(&self) -> u64 {
        micros(self.origin.elapsed()).max(1)
    }
}

impl Lane {
    fn trust(&self) {
        if self.retry_at.load(Relaxed) != 0 {
            self.retry_at.store(0, Relaxed);
        }
    }
}

/// Keeps a link up until it is closed.
pub(super) struct Keeper {
    pub(super) link: Arc<Link>,
    pub(super) address: RedisAddress,
    /// This gateway's name among the live ones.
    pub(super) gateway: Arc<str>,
    /// Closed, or its sender dropped: then the gateway is taken off the live ones.
    pub(super) closing: watch::Receiver<bool>,
}

enum End {
    Closed,
    Lost(String),
}

impl Keeper {
    pub(super) async fn run(mut self) {
        let mut dialer = Dialer::new(self.address.clone(), EXCHANGE_TIMEOUT);
        let mut closing = self.closing.clone();
        // Told once, not with every try.
        let (mut is_away, mut is_warned) = (false, false);
        loop {
            let connected = tokio::select! {
                () = closed(&mut closing) => return,
                connected = dialer.connect() => connected,
            };
            let lost = match connected {
                Ok(mut connection) => {
                    if !is_warned && let Some(policy) = eviction(&mut connection).await {
                        is_warned = true;
                        tracing::warn!(
                            address = %self.address,
                            %policy,
                            "Redis may evict accounts of limits, which are then full again: set maxmemory-policy noeviction"
                        );
                    }
                    match self.serve(connection, &mut is_away).await {
                        End::Closed => return,
                        End::Lost(error) => error,
                    }
                }
                Err(error) => error,
            };
            *self.link.connection.write() = None;
            *self.link.told.write() = "".into();
            if !is_away {
                is_away = true;
                tracing::warn!(address = %self.address, error = %lost, "Redis is away");
            }
            tokio::select! {
                () = closed(&mut closing) => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    /// Heartbeats over this connection, which exchanges use as soon as the first one went well.
    async fn serve(&mut self, mut connection: Connection, is_away: &mut bool) -> End {
        let is_cluster = matches!(connection, Connection::Cluster(_));
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut failures, mut shards) = (0, Shards::default());
        // Until then others may not have come back yet.
        let counted_from = Instant::now() + GONE_AFTER;
        loop {
            tokio::select! {
                () = closed(&mut self.closing) => {
                    self.leave(&mut connection).await;
                    return End::Closed;
                }
                _ = ticks.tick() => {}
                () = self.link.doubt.notified(), if !is_cluster => {}
            }
            let told =
                if self.has_told() { if is_cluster { shards.ids() } else { ".".to_owned() } } else { String::new() };
            let heartbeat =
                [1.to_string(), GATEWAYS.to_owned(), self.gateway.to_string(), micros(GONE_AFTER).to_string(), told];
            let answer = script::HEARTBEAT.run::<(u64, String)>(&mut connection, &heartbeat);
            let error = match timeout(EXCHANGE_TIMEOUT, answer).await {
                Ok(Ok((live, told))) => {
                    failures = 0;
                    self.count(live, counted_from);
                    if *self.link.told() != *told {
                        *self.link.told.write() = told.into();
                    }
                    if !is_cluster {
                        self.link.lanes[0].trust();
                    }
                    if !self.link.is_connected() {
                        *self.link.connection.write() = Some(connection.clone());
                        self.link.connections.fetch_add(1, Relaxed);
                        *is_away = false;
                        tracing::info!(address = %self.address, "connected to Redis");
                    }
                    if is_cluster && shards.have_changed(&mut connection, EXCHANGE_TIMEOUT).await {
                        self.link.connections.fetch_add(1, Relaxed);
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            failures += 1;
            if !is_cluster || failures == CLUSTER_PATIENCE {
                return End::Lost(error);
            }
        }
    }

    /// Whether this gateway has told what it knows, over this connection.
    fn has_told(&self) -> bool {
        self.link.is_connected() && self.link.told_over.load(Relaxed) >= self.link.connections()
    }

    fn count(&self, live: u64, counted_from: Instant) {
        let known = self.link.live();
        let live = if Instant::now() < counted_from { live.max(known) } else { live };
        self.link.live.store(live.max(1), Relaxed);
    }

    async fn leave(&self, connection: &mut Connection) {
        *self.link.connection.write() = None;
        let mut command = redis::cmd("ZREM");
        // What it told counts no more without it.
        command.arg(GATEWAYS).arg(&*self.gateway);
        // If this fails, the heartbeat that stays away tells the same a little later.
        let _ = timeout(EXCHANGE_TIMEOUT, command.query_async::<u64>(connection)).await;
    }
}

/// What Redis evicts when it runs out of memory, if it does.
async fn eviction(connection: &mut Connection) -> Option<String> {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let info = timeout(EXCHANGE_TIMEOUT, command.query_async::<redis::Value>(connection)).await.ok()?.ok()?;
    let is_cluster = matches!(connection, Connection::Cluster(_));
    // Of a cluster all masters answer.
    let infos: Vec<String> = if is_cluster {
        HashMap::<String, String>::from_redis_value(info).ok()?.into_values().collect()
    } else {
        vec![String::from_redis_value(info).ok()?]
    };
    infos.iter().filter_map(|info| policy(info)).find(|policy| policy != "noeviction")
}

fn policy(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(|policy| policy.trim().to_owned())
}

/// Until the link is closed.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error says that the sender was dropped.
    let _ = closing.wait_for(|is_closed| *is_closed).await;
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_found_in_what_redis_says_of_its_memory() {
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\nallocator_frag_ratio:1\r\n";
        assert_eq!(policy(info).as_deref(), Some("allkeys-lru"));
        assert_eq!(policy("# Memory\r\n"), None);
    }
}
