//! What a node reads once, at start: flags, environment, and the node file.

mod arguments;
mod log;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use seiketsu_config::{
    check,
    error::ConfigErrors,
    load,
    node::{ControlPlane, DEFAULT_TENANTS, NodeConfig, Redis},
    secret::SecretRef,
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
    #[error(
        "the control plane has no token to be asked with: add control_plane.token to the node file, or set {CONTROL_PLANE_TOKEN}"
    )]
    NoToken,
    #[error("the flags and variables together with the node file: {0}")]
    Together(String),
}

/// Where limits are counted, for all nodes together. Overrides `limits.redis.url`.
const REDIS_URL: &str = "REDIS_URL";

/// What the node shows to the control plane. Overrides `control_plane.token`.
const CONTROL_PLANE_TOKEN: &str = "SEIKETSU_CONTROL_PLANE_TOKEN";

/// What is kept of the control plane is sealed with. Overrides `control_plane.unseal_key`.
const UNSEAL_KEY: &str = "SEIKETSU_UNSEAL_KEY";

/// The node's configuration: built-in values, then the file, then environment and flags.
pub fn node(arguments: &Arguments) -> Result<NodeConfig, BootstrapError> {
    let mut node = match &arguments.config {
        Some(path) => load::node_file(path)?,
        None => NodeConfig::default(),
    };
    arguments.apply(&mut node);
    let folder = arguments.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    source(&mut node, arguments, folder)?;
    // Not a flag: it may hold a password, and flags can be read by everybody on the machine.
    if std::env::var_os(REDIS_URL).is_some_and(|url| !url.is_empty())
        && let Ok(url) = format!("${{env:{REDIS_URL}}}").parse()
    {
        node.limits.redis = Some(Redis { url });
    }
    Ok(node)
}

/// Where tenants come from: from one source.
fn source(node: &mut NodeConfig, arguments: &Arguments, folder: &Path) -> Result<(), BootstrapError> {
    let token = secret(CONTROL_PLANE_TOKEN);
    if let Some(url) = &arguments.control_plane {
        let url = url.clone();
        if let Some(settings) = &mut node.control_plane {
            settings.url = url;
        } else {
            let token = token.clone().ok_or(BootstrapError::NoToken)?;
            node.control_plane = Some(ControlPlane {
                url,
                token: Some(token),
                certificate: None,
                ca: None,
                files: Some(folder.to_owned()),
                unseal_key: None,
                insecure_plain_http: false,
            });
        }
    }
    if let Some(settings) = &mut node.control_plane {
        settings.token = token.or(settings.token.take());
        settings.unseal_key = secret(UNSEAL_KEY).or(settings.unseal_key.take());
    } else if node.tenants.is_none() {
        node.tenants = Some(folder.join(DEFAULT_TENANTS));
    }
    let told = |problem: &check::Problem| format!("{}: {}; {}", problem.path, problem.rule, problem.rule.fix());
    let problems =
        check::node(node).into_iter().filter(|problem| problem.path.to_string().starts_with("control_plane"));
    let problems: Vec<String> = problems.map(|problem| told(&problem)).collect();
    if problems.is_empty() { Ok(()) } else { Err(BootstrapError::Together(problems.join("\n"))) }
}

/// A secret in this variable, or where that says it is.
fn secret(variable: &str) -> Option<SecretRef> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
    value.parse().ok().or(Some(SecretRef::Env(variable.to_owned())))
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
