//! Reading configuration files.
//!
//! Text becomes checked values, or errors that name file, line, column, path, value and fix; never
//! anything between. A fault in the form ends the reading of the document (of the tenant, in a tenant
//! file of the plain form); what the form lets pass is then checked as a whole, and all that is wrong
//! is told at once.

mod files;
mod locate;
mod parsed;
mod split;
mod yaml;

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

pub use self::parsed::{ParsedTenants, tenants_with};
use self::{
    files::Resolver,
    locate::{Found, locate},
    yaml::{Anchors, Refusal},
};
use crate::{
    check::{self, Problem},
    error::{Cause, ConfigError, ConfigErrors},
    node::NodeConfig,
    path::{ConfigPath, PathStep},
    tenant::TenantFile,
};

/// The largest file that a node's configuration may be, in bytes.
const MOST_NODE_BYTES: u64 = 1 << 20;

/// The largest file of tenants, in bytes: room for half a million of them.
const MOST_TENANT_BYTES: u64 = 256 << 20;

/// Reads and checks a node's configuration. Relative paths in it begin at the folder of `origin`.
pub fn node(text: &str, origin: &Path) -> Result<NodeConfig, ConfigErrors> {
    let whole = Whole { text, origin };
    let mut config: NodeConfig = yaml::read(text, Anchors::Allowed).map_err(|refusal| whole.refused(*refusal))?;
    whole.accept(check::node(&config))?;
    Resolver::beside(origin).node(&mut config);
    Ok(config)
}

/// Reads and checks a node's configuration from a file of 1 MiB at most.
pub fn node_file(path: &Path) -> Result<NodeConfig, ConfigErrors> {
    node(&read_text(path, MOST_NODE_BYTES)?, path)
}

/// Reads and checks a file of tenants. Relative paths in it begin at the folder of `origin`.
pub fn tenants(text: &str, origin: &Path) -> Result<TenantFile, ConfigErrors> {
    tenants_with(None, text, origin).map(ParsedTenants::into_file)
}

/// Reads and checks a file of tenants of 256 MiB at most.
pub fn tenants_file(path: &Path) -> Result<TenantFile, ConfigErrors> {
    tenants_file_with(None, path).map(ParsedTenants::into_file)
}

/// As [`tenants_with`], from a file of 256 MiB at most.
pub fn tenants_file_with(previous: Option<&ParsedTenants>, path: &Path) -> Result<ParsedTenants, ConfigErrors> {
    tenants_with(previous, &read_text(path, MOST_TENANT_BYTES)?, path)
}

fn read_text(path: &Path, limit: u64) -> Result<String, ConfigErrors> {
    let refused = |cause| ConfigErrors::from(ConfigError::of_file(path, cause));
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::InvalidData => refused(Cause::NotText),
        _ => refused(Cause::Unreadable(error)),
    };
    let mut text = String::new();
    // One byte more than is allowed tells a file that is too large, even if it grows meanwhile.
    File::open(path).and_then(|file| file.take(limit + 1).read_to_string(&mut text)).map_err(unreadable)?;
    if text.len() as u64 > limit { Err(refused(Cause::TooLarge { limit })) } else { Ok(text) }
}

/// A fault of any kind before it is known where it stands.
struct Fault {
    path: ConfigPath,
    value: Option<String>,
    position: Option<crate::error::Position>,
    cause: Cause,
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self { path: problem.path, value: problem.value, position: None, cause: Cause::Rule(problem.rule) }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self { path: refusal.path, value: None, position: refusal.position, cause: refusal.cause }
    }
}

/// A document that is read in one go.
struct Whole<'a> {
    text: &'a str,
    origin: &'a Path,
}

impl Whole<'_> {
    fn accept(&self, problems: Vec<Problem>) -> Result<(), ConfigErrors> {
        if problems.is_empty() { Ok(()) } else { Err(self.errors(problems)) }
    }

    fn refused(&self, refusal: Refusal) -> ConfigErrors {
        self.errors([refusal])
    }

    fn errors<F: Into<Fault>>(&self, faults: impl IntoIterator<Item = F>) -> ConfigErrors {
        let faults = faults.into_iter().map(Into::into).collect();
        describe(faults, self.origin, |paths| locate(self.text, paths))
    }
}

/// Gives faults their place, their value and the names of tenant and route.
fn describe(
    mut faults: Vec<Fault>,
    origin: &Path,
    locate: impl FnOnce(&[ConfigPath]) -> Vec<Option<Found>>,
) -> ConfigErrors {
    let omitted = faults.len().saturating_sub(ConfigErrors::MOST);
    faults.truncate(ConfigErrors::MOST);
    // Three paths for each fault: its own, the id of its tenant, the id of its route.
    let paths: Vec<ConfigPath> =
        faults.iter().flat_map(|fault| [fault.path.clone(), tenant_id(&fault.path), route_id(&fault.path)]).collect();
    let mut found = locate(&paths).into_iter();
    let mut next = || found.next().flatten();
    let errors = faults
        .into_iter()
        .map(|fault| {
            let (place, tenant, route) = (next(), next(), next());
            let id = |place: Option<Found>| place.and_then(|place| place.text).filter(|id| id.len() <= 64);
            let text = place.as_ref().and_then(|place| place.text.clone());
            // A key that is missing has no place of its own; serde names the end of the map around it.
            let position = match fault.cause {
                Cause::MissingKey { .. } => None,
                _ => fault.position,
            };
            ConfigError {
                file: origin.to_owned(),
                position: position.or(place.map(|place| place.position)).or(fault.position),
                tenant: id(tenant),
                route: id(route),
                value: fault.value.or(text).filter(|value| may_be_shown(&fault.path, value)),
                path: fault.path,
                cause: fault.cause,
            }
        })
        .collect();
    ConfigErrors::new(errors, omitted)
}

fn tenant_id(path: &ConfigPath) -> ConfigPath {
    match path.steps() {
        [tenants @ PathStep::Key(key), index @ PathStep::Index(_), ..] if **key == *"tenants" => {
            ConfigPath::from_iter([tenants.clone(), index.clone()]).key("id")
        }
        _ => no_path(),
    }
}

fn route_id(path: &ConfigPath) -> ConfigPath {
    match path.steps() {
        [_, _, PathStep::Key(key), PathStep::Index(_), ..] if **key == *"routes" => {
            path.steps()[..4].iter().cloned().collect::<ConfigPath>().key("id")
        }
        _ => no_path(),
    }
}

/// A path that nothing stands at: configuration is a map, not a list.
fn no_path() -> ConfigPath {
    ConfigPath::from_iter([PathStep::Index(usize::MAX)])
}

/// Whether a value can go into messages and logs: short, and not at a place where a credential is
/// written, even by mistake.
fn may_be_shown(path: &ConfigPath, value: &str) -> bool {
    const SECRET: [&str; 9] =
        ["keys", "key", "hash", "headers", "security_headers", "header", "cookie", "url", "query"];
    value.len() <= 200
        && !path.steps().iter().any(|step| matches!(step, PathStep::Key(key) if SECRET.contains(&&**key)))
}
