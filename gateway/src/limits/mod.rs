//! Limits of requests: from configuration to a decision, and what clients are told. The arithmetic, leases
//! and coordinators are [`seiketsu_limits`]' own.
//!
//! | file | what happens there |
//! |---|---|
//! | `mod.rs` | who counts: this process, or Redis |
//! | [`by_itself`] | this process, and whether it can write down what it counts |
//! | [`compile`] | which limits apply to which requests |
//! | [`check`] | one request: admitted, or refused by which limit |
//! | [`refusals`] | how many there were, for metrics |
//! | [`told`] | `RateLimit` fields and 429 |
//! | [`used`] | what the control plane knows of quotas that Redis has lost |

mod by_itself;
pub(crate) mod check;
pub(crate) mod compile;
pub(crate) mod refusals;
pub(crate) mod told;
mod used;

use std::{path::Path, sync::Arc, time::Duration};

use seiketsu_config::{node::NodeConfig, values::RedisUrlError};
use seiketsu_limits::{
    clock::Clock,
    coordinator::{
        Coordinator, MemoryCoordinator,
        redis::{
            RedisCoordinator,
            address::{RedisAddress, RedisAddressError},
        },
    },
    journal::{Journal, JournalError},
    node::Node,
    registry::Registry,
};
use tokio::runtime::Handle;

pub(crate) use self::used::UsedBefore;
use self::{by_itself::ByItself, refusals::Refusals};

/// The counters of quotas of a node that counts by itself, under its state.
const JOURNAL: &str = "quotas.journal";

/// What this node was given of quotas by Redis, in case that loses it.
const JOURNAL_OF_REDIS: &str = "quotas-of-redis.journal";

/// A node that ends waits this long for its leases to be given back.
const FAREWELL: Duration = Duration::from_millis(500);

/// The limits of a node. Outlives configurations.
#[derive(Debug)]
pub(crate) struct Limits {
    /// What all nodes count together, if there is Redis.
    pub(crate) shared: Arc<Registry>,
    /// What each node counts for itself: client addresses.
    pub(crate) local: Registry,
    pub(crate) redis: Option<Arc<RedisCoordinator>>,
    pub(crate) used_before: Arc<UsedBefore>,
    pub(crate) memory: Option<Arc<ByItself>>,
    pub(crate) refusals: Refusals,
}

/// Why limits cannot be held to.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    #[error("limits.redis.url: {0}")]
    Url(#[from] RedisUrlError),
    #[error("limits.redis.url: {0}")]
    Address(#[from] RedisAddressError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Limits {
    /// The limits of a node that serves. What has to wait does so on `runtime`.
    pub(crate) fn start(node: &NodeConfig, runtime: &Handle) -> Result<Self, LimitsError> {
        let name = format!("{}.{:016x}", node.id, fastrand::u64(..));
        let Some(redis) = &node.limits.redis else {
            return Ok(Self::by_itself(Some(&node.state_dir), &name, runtime)?);
        };
        let clock = Clock::new();
        let address = RedisAddress::parse(&redis.url.read()?)?;
        let redis = Arc::new(RedisCoordinator::start(address, name.as_str().into(), runtime));
        let used_before = Arc::new(UsedBefore::default());
        if node.control_plane.is_some() {
            redis.ask(used_before.clone(), runtime);
        }
        let journal = Journal::open(&node.state_dir.join(JOURNAL_OF_REDIS))?;
        let shared = Arc::new(Registry::new(Node::start(redis.clone(), Some(journal), &name, clock, runtime)));
        runtime.spawn(Registry::remind_after_losses(Arc::downgrade(&shared)));
        Ok(Self {
            shared,
            local: local(&name, clock, runtime),
            redis: Some(redis),
            used_before,
            refusals: Refusals::default(),
            memory: None,
        })
    }

    /// Limits of a node that counts by itself. Without a folder, quotas begin anew with each process.
    pub(crate) fn by_itself(state: Option<&Path>, name: &str, runtime: &Handle) -> Result<Self, JournalError> {
        let journal = state.map(|folder| Journal::open(&folder.join(JOURNAL))).transpose()?;
        let memory = Arc::new(ByItself::new(journal));
        let clock = Clock::new();
        Ok(Self {
            shared: Arc::new(Registry::new(Node::start(memory.clone(), None, name, clock, runtime))),
            local: local(name, clock, runtime),
            redis: None,
            used_before: Arc::default(),
            refusals: Refusals::default(),
            memory: Some(memory),
        })
    }

    /// How many nodes share the limits.
    pub(crate) fn live(&self) -> u64 {
        self.redis.as_ref().map_or(1, |redis| redis.live())
    }

    /// Whether the coordinator answers: Redis is connected, or this process can write down what it counts.
    pub(crate) fn is_up(&self) -> bool {
        let redis = self.redis.as_ref().is_none_or(|redis| redis.is_connected());
        redis && self.memory.as_ref().is_none_or(|memory| memory.can_write())
    }

    /// Gives back what is held, and writes down what must be known when the node comes back.
    pub(crate) async fn close(&self) {
        self.shared.give_back();
        if let Some(redis) = &self.redis {
            let given_back = async {
                while self.shared.node().is_busy() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                redis.close().await;
            };
            // What is not back by then ends with its lease.
            let _ = tokio::time::timeout(FAREWELL, given_back).await;
            self.shared.node().close().await;
        }
        if let Some(memory) = &self.memory
            && let Err(error) = memory.close()
        {
            tracing::error!(%error, "counters of quotas could not be written at the end");
        }
    }
}

fn local(name: &str, clock: Clock, runtime: &Handle) -> Registry {
    let coordinator = Arc::new(MemoryCoordinator::new(None));
    Registry::new(Node::start(coordinator, None, name, clock, runtime))
}
