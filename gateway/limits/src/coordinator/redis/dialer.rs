//! How a connection to Redis comes about, whatever its topology.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, RedisError, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::time::timeout;

use super::address::{RedisAddress, Topology};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A cluster and sentinels are asked first where to connect to.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(3);

/// The connection of the moment.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "those of the library have none")]
pub enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Makes connections to one Redis.
#[allow(missing_debug_implementations, reason = "the library's clients show credentials")]
pub struct Dialer {
    address: RedisAddress,
    response_timeout: Duration,
    client: Option<Clients>,
}

/// Made once; sentinels remember which of them answered.
enum Clients {
    Single(Client),
    Sentinel(SentinelClient),
    Cluster(ClusterClient),
}

impl Clients {
    fn new(address: &RedisAddress, response_timeout: Duration) -> Result<Self, RedisError> {
        let mut hosts = address.connection_addresses().into_iter();
        let info = address.connection_info();
        Ok(match &address.topology {
            Topology::Single { .. } => {
                let host = hosts.next().ok_or((redis::ErrorKind::InvalidClientConfig, "no host"))?;
                Self::Single(Client::open(host.into_connection_info()?.set_redis_settings(info))?)
            }
            Topology::Sentinel { service } => {
                let mut builder = SentinelClientBuilder::new(hosts, service, SentinelServerType::Master)?;
                if address.tls {
                    builder = builder.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
                }
                if let Some(user) = info.username() {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = info.password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                Self::Sentinel(builder.build()?)
            }
            Topology::Cluster => {
                let hosts = hosts.map(|host| Ok(host.into_connection_info()?.set_redis_settings(info.clone())));
                let hosts = hosts.collect::<Result<Vec<_>, RedisError>>()?;
                let builder = ClusterClient::builder(hosts)
                    .connection_timeout(CONNECT_TIMEOUT)
                    .response_timeout(response_timeout)
                    // Redirections count as retries.
                    .retries(3)
                    .min_retry_wait(5)
                    .max_retry_wait(50);
                Self::Cluster(builder.build()?)
            }
        })
    }

    async fn connect(&mut self, response_timeout: Duration) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        Ok(match self {
            Self::Single(client) => {
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Self::Sentinel(client) => Connection::Single(client.get_async_connection_with_config(&config).await?),
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

impl Dialer {
    /// `response_timeout`: what no answer takes longer than.
    pub fn new(address: RedisAddress, response_timeout: Duration) -> Self {
        Self { address, response_timeout, client: None }
    }

    /// A new connection, or in words why there is none.
    pub async fn connect(&mut self) -> Result<Connection, String> {
        let client = if let Some(client) = &mut self.client {
            client
        } else {
            let client = Clients::new(&self.address, self.response_timeout).map_err(|error| error.to_string())?;
            self.client.insert(client)
        };
        match timeout(DISCOVERY_TIMEOUT, client.connect(self.response_timeout)).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }
}
