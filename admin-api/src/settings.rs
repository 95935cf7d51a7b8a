//! What the control plane is told at its start: by flags, or by the environment.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use secrecy::SecretString;
use seiketsu_config::values::Span;

use crate::store::StoreSettings;

/// The control plane of Seiketsu Gateway: keeps the configuration of all gateways and pushes every change to them.
#[derive(Debug, Clone, Parser)]
#[command(name = "seiketsu-admin", version)]
pub struct Settings {
    /// Where it listens. Keep it off the public network, or behind TLS.
    #[arg(long, env = "SEIKETSU_ADMIN_LISTEN", default_value = "127.0.0.1:9080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// The store: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`. Default: `admin.db` in the state folder.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<SecretString>,

    /// What it keeps: the first tokens, and the store if that is not elsewhere.
    #[arg(long, env = "SEIKETSU_ADMIN_STATE_DIR", default_value = "var/admin", value_name = "FOLDER")]
    pub state_dir: PathBuf,

    /// What is logged, as in `info` or `seiketsu_admin_api=debug,warn`.
    #[arg(long, env = "SEIKETSU_ADMIN_LOG", default_value = "info,sqlx=warn", value_name = "FILTER")]
    pub log: String,

    /// How many requests in a second one token may make. An address without a token that holds may make a tenth of them.
    #[arg(long, env = "SEIKETSU_ADMIN_REQUESTS_PER_SECOND", default_value_t = 200, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests_per_second: u32,

    /// How many connections one address may have. Of IPv6, a network of 64 bits.
    #[arg(long, env = "SEIKETSU_ADMIN_CONNECTIONS_PER_ADDRESS", default_value_t = 512, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub connections_per_address: u16,

    /// How long a client may take nothing of what it is sent before it is cut off.
    #[arg(long, env = "SEIKETSU_ADMIN_WRITE_TIMEOUT", default_value = "30s", value_name = "TIME")]
    pub write_timeout: Span,

    /// Nodes that were not heard of for so long are forgotten.
    #[arg(long, env = "SEIKETSU_ADMIN_FORGET_NODES_AFTER", default_value = "7d", value_name = "TIME")]
    pub forget_nodes_after: Span,
}

impl Settings {
    pub fn store(&self) -> StoreSettings {
        let beside = || format!("sqlite:{}", self.state_dir.join("admin.db").display()).into();
        StoreSettings { url: self.database_url.clone().unwrap_or_else(beside) }
    }
}
