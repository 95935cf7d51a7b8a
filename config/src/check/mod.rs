//! What only shows when several values are seen together.
//!
//! [`tenant`] and [`head`] check one tenant file, [`node`] a node's file, [`across`] what several
//! tenant files may not both have. Each gives all that it finds.

mod forms;
mod node;
mod policies;
mod route;
mod rule;
mod tenant;
mod unique;
mod upstream;

pub use self::rule::Rule;
pub(crate) use self::unique::{Member, duplicates};
use crate::{
    error::{Cause, ConfigError, ConfigErrors, Position},
    load::ParsedTenants,
    node::NodeConfig,
    path::{At, ConfigPath},
    tenant::{Tenant, TenantHead},
};

/// A rule that is broken, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// From the root of the file, or of the tenant if only that was checked.
    pub path: ConfigPath,
    /// What stands there, if it is one value and cannot be a secret.
    pub value: Option<String>,
    pub rule: Rule,
}

/// Checks a node's configuration.
pub fn node(config: &NodeConfig) -> Vec<Problem> {
    let mut findings = Findings::default();
    node::check(config, &mut findings);
    findings.problems
}

/// Checks what stands beside the tenants of a file: defaults, plans, shared upstreams.
pub fn head(head: &TenantHead) -> Vec<Problem> {
    let mut findings = Findings::default();
    let root = At::ROOT;
    policies::check(root.key("defaults"), &head.defaults, policies::Place::Shared, &mut findings);
    let plans = root.key("plans");
    for (id, plan) in &head.plans {
        policies::check(plans.key(id.as_str()), plan, policies::Place::Shared, &mut findings);
    }
    let upstreams = root.key("upstreams");
    for (id, upstream) in &head.upstreams {
        upstream::check(upstreams.key(id.as_str()), upstream, &mut findings);
    }
    findings.problems
}

/// Checks one tenant, and that the plans, upstreams and versions exist that it refers to. Paths begin
/// at the tenant.
pub fn tenant(tenant: &Tenant, head: &TenantHead) -> Vec<Problem> {
    let mut findings = Findings::default();
    tenant::check(At::ROOT, tenant, head, &mut findings);
    findings.problems
}

/// Checks that no two tenants of several files have the same id or host, wildcards included.
pub fn across<'a>(files: impl IntoIterator<Item = &'a ParsedTenants>) -> Result<(), ConfigErrors> {
    let files: Vec<_> = files.into_iter().collect();
    let members = files.iter().enumerate().flat_map(|(file, parsed)| {
        parsed.tenants().iter().enumerate().map(move |(index, tenant)| Member { file, index, tenant: tenant.as_ref() })
    });
    let errors: Vec<_> = duplicates(members, |member| {
        format!("{}:{}", files[member.file].origin().display(), files[member.file].line(member.index))
    })
    .into_iter()
    .map(|(member, problem)| ConfigError {
        position: Some(Position { line: files[member.file].line(member.index), column: 1 }),
        path: problem.path,
        tenant: Some(member.tenant.id.to_string()),
        value: problem.value,
        ..ConfigError::of_file(files[member.file].origin(), Cause::Rule(problem.rule))
    })
    .collect();
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors::new(errors, 0)) }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    /// A broken rule at a place whose value may be shown.
    fn add(&mut self, at: At<'_>, value: impl ToString, rule: Rule) {
        self.problems.push(Problem { path: at.to_path(), value: Some(value.to_string()), rule });
    }

    /// A broken rule at a place that has no single value, or one that may be a secret.
    fn add_without_value(&mut self, at: At<'_>, rule: Rule) {
        self.problems.push(Problem { path: at.to_path(), value: None, rule });
    }

    /// Every item of a short list that stands in it before.
    fn duplicates<T: PartialEq + ToString>(&mut self, at: At<'_>, what: &'static str, items: &[T]) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.add(at.index(index), item.to_string(), Rule::Duplicate { what, name: item.to_string() });
            }
        }
    }
}
