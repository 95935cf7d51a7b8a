//! What the control plane is told at its start: by flags, or by the environment.

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use secrecy::SecretString;
use seiketsu_config::values::Span;

use crate::{
    edge::EdgeSettings,
    outbound::OutboundSettings,
    store::{StoreSettings, performance::Objectives, replica::ReplicaSettings, secrets::KeySource, usage::Retention},
    webhooks::Schedule,
};

/// The control plane of Seiketsu Gateway: keeps the configuration of all gateways and pushes every change to them.
#[derive(Debug, Clone, Parser)]
#[command(name = "seiketsu-admin", version)]
pub struct Settings {
    /// Where it listens: with TLS, or on this machine only.
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

    #[command(flatten)]
    pub usage: UsageSettings,

    #[command(flatten)]
    pub edge: EdgeSettings,

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
    /// Make an owner more, write its token into a file in the state folder, and end: the way in when no owner is left whose
    /// token holds. It needs the key of the store, as every start does.
    NewOwner,
}

/// Usage: how long it is kept, where it is read, and what it is measured by.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Usage")]
pub struct UsageSettings {
    /// A read replica of the store in Postgres, for usage and analytics.
    #[arg(long, env = "DATABASE_REPLICA_URL", hide_env_values = true, value_name = "URL")]
    pub database_replica_url: Option<SecretString>,

    /// A replica that lags further is not read: the primary is.
    #[arg(long, env = "SEIKETSU_ADMIN_MOST_REPLICA_LAG", default_value_t = 5, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub most_replica_lag: u64,

    /// How long usage is kept by the minute. Months that do not begin with an hour of UTC are added up from it.
    #[arg(long, env = "SEIKETSU_ADMIN_KEEP_MINUTES", default_value_t = 35, value_name = "DAYS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=36500))]
    pub keep_minutes: u64,

    /// How long usage is kept by the hour. Quotas are added up from it: at least a month.
    #[arg(long, env = "SEIKETSU_ADMIN_KEEP_HOURS", default_value_t = 400, value_name = "DAYS")]
    #[arg(value_parser = clap::value_parser!(u64).range(32..=36500))]
    pub keep_hours: u64,

    /// How long usage is kept by the day.
    #[arg(long, env = "SEIKETSU_ADMIN_KEEP_DAYS", default_value_t = 1830, value_name = "DAYS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=36500))]
    pub keep_days: u64,

    /// How long performance metrics are kept.
    #[arg(long, env = "SEIKETSU_ADMIN_KEEP_METRICS", default_value_t = 35, value_name = "DAYS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=36500))]
    pub keep_metrics: u64,

    /// In which 99 of 100 requests are to be answered. Latencies are counted in buckets: 1, 2, 5, 10, 20, 50, 100, 200, 500,
    /// 1000, 2000 or 5000.
    #[arg(long, env = "RESPONSE_TIME_SLA", default_value_t = 100, value_name = "MILLISECONDS", value_parser = bucket)]
    pub slo_latency: u64,

    /// How many of 100 admitted requests may fail.
    #[arg(long, env = "SEIKETSU_ADMIN_SLO_ERRORS", default_value_t = 1.0, value_name = "PERCENT", value_parser = percent)]
    pub slo_errors: f64,

    /// Used so far, a quota is nearly used up.
    #[arg(long, env = "SEIKETSU_ADMIN_QUOTA_WARNING", default_value_t = 80.0, value_name = "PERCENT", value_parser = percent)]
    pub quota_warning: f64,
}

fn bucket(text: &str) -> Result<u64, String> {
    let known = seiketsu_config::push::usage::LATENCY_BOUNDS_MS;
    text.parse().ok().filter(|bound| known.contains(bound)).ok_or_else(|| format!("write one of {known:?}"))
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0001..=100.0).contains(percent));
    percent.ok_or_else(|| "write 0.0001 to 100".to_owned())
}

impl UsageSettings {
    pub fn replica(&self) -> Option<ReplicaSettings> {
        let most_lag = Duration::from_secs(self.most_replica_lag);
        Some(ReplicaSettings { url: self.database_replica_url.clone()?, most_lag })
    }

    pub fn retention(&self) -> Retention {
        let days = |days: u64| Duration::from_hours(24 * days);
        Retention {
            minutes: days(self.keep_minutes),
            hours: days(self.keep_hours),
            days: days(self.keep_days),
            metrics: days(self.keep_metrics),
        }
    }

    pub fn objectives(&self) -> Objectives {
        Objectives { latency_ms: self.slo_latency, errors_percent: self.slo_errors, quota_percent: self.quota_warning }
    }
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
