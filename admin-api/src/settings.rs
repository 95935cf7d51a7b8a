//! What the control plane is told at its start: by flags, or by the environment.

use std::{env, net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};
use secrecy::SecretString;
use seiketsu_config::values::Span;

use crate::{
    outbound::OutboundSettings,
    store::{StoreSettings, secrets::KeySource},
    webhooks::Schedule,
};

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

    /// File with the key that the data keys of the store are wrapped with: 32 bytes in hex or base64; all replicas need the
    /// same. Default: `SEIKETSU_ADMIN_KEY`, or else `sealing-key` in the state folder, which the first start makes.
    #[arg(long, env = "SEIKETSU_ADMIN_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// What is logged, as in `info` or `seiketsu_admin_api=debug,warn`.
    #[arg(long, env = "SEIKETSU_ADMIN_LOG", default_value = "info,sqlx=warn", value_name = "FILTER")]
    pub log: String,

    /// How many requests in a second one token may make. An address without a token that holds may make a tenth of them.
    #[arg(long, env = "SEIKETSU_ADMIN_REQUESTS_PER_SECOND", default_value_t = 200, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests_per_second: u32,

    /// Webhooks may also be without TLS, and at addresses of private networks, which only this machine or network has: for
    /// development, and where nobody can make webhooks who may not reach those anyway.
    #[arg(long, env = "SEIKETSU_ADMIN_OUTBOUND_ALLOW_PRIVATE")]
    pub outbound_allow_private: bool,

    /// PEM file of authorities for webhooks and the like, beside those of the system.
    #[arg(long, env = "SEIKETSU_ADMIN_OUTBOUND_CA", value_name = "FILE")]
    pub outbound_ca: Option<PathBuf>,

    /// The pauses before a webhook is tried again, until it is not any more.
    #[arg(long, env = "SEIKETSU_ADMIN_WEBHOOK_PAUSES", value_delimiter = ',', value_name = "TIMES")]
    #[arg(default_value = "5s,5m,30m,2h,5h,8h,8h")]
    pub webhook_pauses: Vec<Span>,

    /// A webhook that has taken nothing for as long is disabled.
    #[arg(long, env = "SEIKETSU_ADMIN_WEBHOOK_DISABLE_AFTER", default_value = "3d", value_name = "TIME")]
    pub webhook_disable_after: Span,

    /// None: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Wrap the data keys of the store with another key, that of --key-file, and end.
    RewrapKeys {
        /// File with the key that they are wrapped with now.
        #[arg(long, value_name = "FILE")]
        previous_key_file: PathBuf,
    },
}

impl Settings {
    pub fn store(&self) -> StoreSettings {
        let beside = || format!("sqlite:{}", self.state_dir.join("admin.db").display()).into();
        StoreSettings { url: self.database_url.clone().unwrap_or_else(beside), key: self.key() }
    }

    pub fn outbound(&self) -> OutboundSettings {
        OutboundSettings { allow_private: self.outbound_allow_private, ca: self.outbound_ca.clone() }
    }

    pub fn webhook_schedule(&self) -> Schedule {
        let pauses = self.webhook_pauses.iter().map(|pause| pause.get()).collect();
        Schedule { pauses, disable_after: self.webhook_disable_after.get() }
    }

    pub(crate) fn key(&self) -> KeySource {
        if let Some(path) = &self.key_file {
            return KeySource::File(path.clone());
        }
        // Not a flag: everybody on the machine sees those.
        match env::var("SEIKETSU_ADMIN_KEY") {
            Ok(key) if !key.is_empty() => KeySource::Given(key.into()),
            _ => KeySource::Made(self.state_dir.join("sealing-key")),
        }
    }
}
