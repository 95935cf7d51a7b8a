//! Flags, each also an environment variable.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use seiketsu_config::{node::NodeConfig, values::Id};
use url::Url;

/// The data plane of Seiketsu Gateway.
///
/// Signals: TERM or INT drains and ends; HUP reads the tenant configuration and certificates again and
/// reopens the access log; QUIT hands the sockets to a process that was started with --upgrade.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "seiketsu-gateway", version, max_term_width = 100)]
pub struct Arguments {
    /// Node file (YAML). Without it, every setting has its built-in value.
    #[arg(long, short, env = "SEIKETSU_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Tenant configuration: a YAML file, or a folder of them. Overrides `tenants` of the node file.
    #[arg(long, env = "SEIKETSU_TENANTS", value_name = "PATH")]
    pub tenants: Option<PathBuf>,

    /// Or the control plane that sends it. Overrides `control_plane.url`. The token is read from where
    /// `control_plane.token` says, or from `SEIKETSU_CONTROL_PLANE_TOKEN`: the token itself, or `${file:PATH}`.
    #[arg(long, env = "SEIKETSU_CONTROL_PLANE", value_name = "URL")]
    pub control_plane: Option<Url>,

    /// Addresses to serve HTTP on. Overrides `listeners.http`.
    #[arg(long, env = "SEIKETSU_HTTP", value_name = "ADDRESS", value_delimiter = ',')]
    pub http: Option<Vec<SocketAddr>>,

    /// Addresses to serve HTTPS on. Overrides `listeners.https`.
    #[arg(long, env = "SEIKETSU_HTTPS", value_name = "ADDRESS", value_delimiter = ',')]
    pub https: Option<Vec<SocketAddr>>,

    /// Address of /livez, /readyz, /metrics and /config. Overrides `listeners.operations`.
    #[arg(long, env = "SEIKETSU_OPERATIONS", value_name = "ADDRESS")]
    pub operations: Option<SocketAddr>,

    /// Folder for what must survive a restart. Overrides `state_dir`.
    #[arg(long, env = "SEIKETSU_STATE_DIR", value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,

    /// Worker threads; 0 means one per core. Overrides `threads`.
    #[arg(long, env = "SEIKETSU_THREADS", value_name = "NUMBER")]
    pub threads: Option<usize>,

    /// Name of this node. Overrides `id`.
    #[arg(long, env = "SEIKETSU_NODE_ID", value_name = "NAME")]
    pub node_id: Option<Id>,

    /// What to log: error, warn, info, debug, trace, or per module as in `info,seiketsu_gateway=debug`.
    /// `pingora_proxy=warn` adds what is otherwise left out: a line for each request in an outage.
    #[arg(long, env = "SEIKETSU_LOG", value_name = "LEVELS", default_value = "info")]
    pub log: String,

    /// Read and compile the configuration, say what is wrong with it, and end: 0 if it is good, else 1.
    #[arg(long)]
    pub check_config: bool,

    /// Take over the sockets of the running gateway: start this first, then send QUIT to that one.
    #[arg(long)]
    pub upgrade: bool,

    /// Print a new API key and what to write into the configuration for it, and end.
    #[arg(long, conflicts_with_all = ["check_config", "upgrade"])]
    pub new_api_key: bool,
}

impl Arguments {
    /// Puts what was given as flag or variable in place of what the file says.
    pub(super) fn apply(&self, node: &mut NodeConfig) {
        fn replace<T: Clone>(given: Option<&T>, setting: &mut T) {
            if let Some(given) = given {
                *setting = given.clone();
            }
        }
        if self.tenants.is_some() {
            node.tenants.clone_from(&self.tenants);
        }
        replace(self.http.as_ref(), &mut node.listeners.http);
        replace(self.https.as_ref(), &mut node.listeners.https);
        replace(self.operations.as_ref(), &mut node.listeners.operations);
        replace(self.state_dir.as_ref(), &mut node.state_dir);
        replace(self.threads.as_ref(), &mut node.threads);
        replace(self.node_id.as_ref(), &mut node.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn flags_override_the_file_and_leave_the_rest() {
        let arguments =
            Arguments::try_parse_from(["x", "--http", "127.0.0.1:1,127.0.0.1:2", "--threads", "3"]).unwrap();
        let mut node = NodeConfig::default();
        arguments.apply(&mut node);
        assert_eq!((node.listeners.http.len(), node.threads), (2, 3));
        assert_eq!(node.listeners.operations, NodeConfig::default().listeners.operations);
    }
}
