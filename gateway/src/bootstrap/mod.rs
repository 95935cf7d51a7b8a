//! What a node reads once, at start: flags, environment, and the node file.

mod arguments;
mod log;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use seiketsu_config::{
    error::ConfigErrors,
    load,
    node::{NodeConfig, Redis},
};

pub use self::{arguments::Arguments, log::Log};

/// Why a node cannot start with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error(
        "cannot use the state folder {path}: {source}; create it, writable by the gateway's user, or name another with --state-dir"
    )]
    StateDir { path: PathBuf, source: io::Error },
}

/// Where limits are counted, for all nodes together. Overrides `limits.redis.url`.
const REDIS_URL: &str = "REDIS_URL";

/// The node's configuration: built-in values, then the file, then environment and flags.
pub fn node(arguments: &Arguments) -> Result<NodeConfig, BootstrapError> {
    let mut node = match &arguments.config {
        Some(path) => load::node_file(path)?,
        None => NodeConfig::default(),
    };
    arguments.apply(&mut node);
    // Not a flag: it may hold a password, and flags can be read by everybody on the machine.
    if std::env::var_os(REDIS_URL).is_some_and(|url| !url.is_empty())
        && let Ok(url) = format!("${{env:{REDIS_URL}}}").parse()
    {
        node.limits.redis = Some(Redis { url });
    }
    Ok(node)
}

/// Makes that folder as a start would, and leaves nothing behind.
pub fn try_state_dir(node: &NodeConfig) -> Result<(), BootstrapError> {
    let ancestors = node.state_dir.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    let missing: Vec<&Path> = ancestors.take_while(|folder| !folder.exists()).collect();
    let made = create_state_dir(node);
    for folder in missing {
        let _ = fs::remove_dir(folder);
    }
    made
}

/// Makes the folder for what must survive a restart.
pub fn create_state_dir(node: &NodeConfig) -> Result<(), BootstrapError> {
    fs::create_dir_all(&node.state_dir)
        .map_err(|source| BootstrapError::StateDir { path: node.state_dir.clone(), source })
}
