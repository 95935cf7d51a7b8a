//! Accounts that all gateways share, in Redis.
//!
//! Each account is one hash, `seiketsu:{tenant}:key`. One script does a whole exchange, so that an exchange is
//! one round trip and one Redis operation. Redis' `TIME` is the only clock.
//!
//! What Redis must be:
//! - 7.0 or later. A user with an access list needs the keys `seiketsu:*`, and the commands `EVAL`, `EVALSHA`,
//!   `HGETALL`, `HMGET`, `HSET`, `HDEL`, `DEL`, `PEXPIRE`, `PEXPIREAT`, `ZADD`, `ZREM`, `ZREMRANGEBYSCORE`,
//!   `ZRANGE`, `TIME`, `INFO`, for purges of the response cache `XADD`, `XREAD`, `XRANGE`, `XREVRANGE`, and those
//!   of the connection: `HELLO`, `AUTH`, `CLIENT`, `SELECT`; `CLUSTER` of a cluster, `ROLE` of a master that
//!   sentinels name.
//! - With `maxmemory-policy noeviction`: an account that is evicted is taken for one that was never used, and is
//!   full again. Without memory exchanges fail, and the tenants' settings for that case apply. Nor must it be
//!   flushed while it is in use.
//! - With replicas: `min-replicas-to-write 1` and `min-replicas-max-lag` small, so that a master that is cut off
//!   stops giving tokens while another one has taken over.
//!
//! What is lost with it is found out: the script knows from the process' run id that Redis has restarted, or
//! that another one has taken over, and then gives nothing until all leases of before have ended. What it cannot
//! know of is an account that began so shortly before a failover that no replica had heard of it: to gateways
//! that had not used it, it is full once more. The data of quotas is worth keeping: `appendonly yes`.

pub mod address;
pub mod dialer;
pub mod elsewhere;
mod link;
pub mod script;
mod shards;
pub mod statistics;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::ErrorKind;
use tokio::{runtime::Handle, sync::watch, task::JoinHandle, time::timeout};

use self::{
    address::RedisAddress,
    elsewhere::{Account, Elsewhere, Looked, Used},
    link::{Keeper, Link},
    statistics::{Counters, Statistics},
};
use super::{Answer, Coordinator, CoordinatorError, Exchange};

/// An exchange takes no longer than this.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(100);

/// What nobody has answered is asked again after this time.
const ASKED_AGAIN: Duration = Duration::from_secs(2);

/// The accounts in Redis. Needs a tokio runtime, and for TLS a default provider of rustls in the process.
pub struct RedisCoordinator {
    address: RedisAddress,
    link: Arc<Link>,
    looked: Looked,
    counters: Counters,
    /// Distinguishes the exchanges of this coordinator from those of another one with the same reporters.
    session: String,
    sent: AtomicU64,
    closing: watch::Sender<bool>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl RedisCoordinator {
    /// Connects in the background, on this runtime. Until then exchanges fail.
    ///
    /// `gateway` is this gateway's name among those that are live: letters, digits, dots, dashes, underscores.
    pub fn start(address: RedisAddress, gateway: Arc<str>, runtime: &Handle) -> Self {
        let link = Arc::new(Link::new(&address));
        let (closing, closed) = watch::channel(false);
        let keeper = Keeper { link: Arc::clone(&link), address: address.clone(), gateway, closing: closed };
        let keeper = runtime.spawn(keeper.run());
        Self {
            address,
            link,
            looked: Looked::default(),
            counters: Counters::default(),
            session: format!("{:08x}", fastrand::u32(..)),
            sent: AtomicU64::new(0),
            closing,
            keeper: Mutex::new(Some(keeper)),
        }
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// Has quotas of tenants told from here, where Redis may have lost what was used. Once, and on this runtime.
    pub fn ask(self: &Arc<Self>, elsewhere: Arc<dyn Elsewhere>, runtime: &Handle) {
        if self.looked.elsewhere.set(elsewhere).is_err() {
            return;
        }
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(ASKED_AGAIN);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(this) = weak.upgrade() else { return };
                for account in this.looked.take_waiting() {
                    match this.used(&account).await {
                        Some(used) => this.looked.answer(&account, used),
                        None => this.looked.wait(account),
                    }
                }
            }
        });
    }

    async fn used(&self, account: &Account) -> Option<Used> {
        self.looked.elsewhere.get()?.used(&account.tenant, account.starts).await
    }

    /// Tells what is known elsewhere of an account, if Redis may know less.
    async fn look(&self, account: Account) {
        let Some(mut connection) = self.link.connection(&account.tenant) else {
            return self.looked.forget(&account);
        };
        let arguments = script::whole(&account);
        let may_lack = match timeout(EXCHANGE_TIMEOUT, script::WHOLE.run::<u64>(&mut connection, &arguments)).await {
            Ok(Ok(may_lack)) => may_lack == 1,
            Ok(Err(_)) | Err(_) => return self.looked.forget(&account),
        };
        if !may_lack {
            return;
        }
        match self.used(&account).await {
            Some(used) => self.tell(&account, used).await,
            None => self.looked.wait(account),
        }
    }

    async fn tell(&self, account: &Account, used: Used) {
        match self.send(&account.told(used), &account.asker).await {
            Ok(_) if used.in_all > 0 => {
                let used = used.in_all;
                tracing::info!(tenant = %account.tenant, quota = %account.key, used, "Redis was told what was used of a quota");
            }
            Ok(_) => {}
            Err(_) => self.looked.forget(account),
        }
    }

    pub fn statistics(&self) -> Statistics {
        self.counters.read()
    }

    /// Takes this gateway off the live ones, and ends the connection. Dropping does the same, without waiting
    /// for it.
    pub async fn close(&self) {
        let _ = self.closing.send(true);
        let keeper = self.keeper.lock().take();
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
    }

    async fn send(&self, exchange: &Exchange, asker: &str) -> Result<Vec<Answer>, CoordinatorError> {
        let tenant = &*exchange.tenant;
        let Some(mut connection) = self.link.connection(tenant) else {
            return Err(CoordinatorError::Unreachable(format!("no connection to {}", self.address)));
        };
        // Once for each message: a later one has a higher number.
        let number = self.sent.fetch_add(1, Relaxed) + 1;
        let told = self.link.told();
        let arguments = script::arguments(exchange, &self.session, number, self.live(), &told, asker)?;
        match timeout(EXCHANGE_TIMEOUT, script::ACQUIRE.run::<Vec<u64>>(&mut connection, &arguments)).await {
            Ok(Ok(numbers)) => {
                self.link.trust(tenant);
                script::answers(&numbers, exchange.accounts.len())
            }
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse) => {
                Err(CoordinatorError::Malformed(error.to_string()))
            }
            Ok(Err(error)) => {
                self.link.suspect(tenant);
                if error.is_timeout() {
                    return Err(CoordinatorError::TimedOut);
                }
                Err(CoordinatorError::Unreachable(error.to_string()))
            }
            Err(_) => {
                self.link.suspect(tenant);
                Err(CoordinatorError::TimedOut)
            }
        }
    }
}

#[async_trait]
impl Coordinator for RedisCoordinator {
    async fn exchange(&self, exchange: &Exchange) -> Result<Vec<Answer>, CoordinatorError> {
        for account in self.looked.new_in(exchange) {
            self.look(account).await;
        }
        for (account, used) in self.looked.answered_in(exchange) {
            self.tell(&account, used).await;
        }
        let started = Instant::now();
        let result = self.send(exchange, "").await;
        match &result {
            Ok(_) => self.counters.answered(started.elapsed()),
            Err(error) => self.counters.failed(error),
        }
        result
    }

    fn live(&self) -> u64 {
        self.link.live()
    }

    fn connections(&self) -> u64 {
        self.link.connections()
    }

    fn is_reachable(&self) -> bool {
        self.link.is_connected()
    }

    fn has_told(&self, connections: u64) {
        self.link.has_told(connections);
    }
}

impl fmt::Debug for RedisCoordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCoordinator")
            .field("address", &self.address)
            .field("is_connected", &self.is_connected())
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}
