//! Reading configuration files.
//!
//! Text becomes checked values, or errors that name file, line, column, path, value and fix; never
//! anything between. A fault in the form ends the reading of the document (of the tenant, in a tenant
//! file of the plain form); what the form lets pass is then checked as a whole, and all that is wrong
//! is told at once.

mod confined;
mod files;
mod locate;
pub mod parallel;
mod parsed;
mod pushed;
mod split;
mod yaml;

use std::{
    io::{ErrorKind, Read},
    path::Path,
};

use serde::de::DeserializeOwned;

pub use self::confined::{head_leads_out, tenant_leads_out};
pub use self::files::{files_of_head, files_of_tenant};
pub use self::parsed::{Difference, ParsedTenants, clashes, tenants_with};
pub use self::pushed::{CONTROL_PLANE, pushed_head, pushed_tenant, pushed_tenant_fits};
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
    regular,
    tenant::TenantFile,
};

/// The largest file that a node's configuration may be, in bytes.
const MOST_NODE_BYTES: u64 = 1 << 20;

/// The largest file of tenants, in bytes: room for half a million of them.
const MOST_TENANT_BYTES: u64 = 256 << 20;

/// Reads and checks a node's configuration. Relative paths in it begin at the folder of `origin`.
pub fn node(text: &str, origin: &Path) -> Result<NodeConfig, ConfigErrors> {
    let errors = |faults: Vec<Fault>| describe(faults, origin, |paths| locate(text, paths));
    let read = yaml::parse(text, Anchors::Allowed).and_then(|root| yaml::value(&root));
    let mut config: NodeConfig = read.map_err(|refusal| errors(vec![(*refusal).into()]))?;
    let problems = check::node(&config);
    if !problems.is_empty() {
        return Err(errors(problems.into_iter().map(Fault::from).collect()));
    }
    Resolver::beside(origin).node(&mut config);
    Ok(config)
}

/// Reads and checks a node's configuration from a file of 1 MiB at most.
pub fn node_file(path: &Path) -> Result<NodeConfig, ConfigErrors> {
    node(&read_text(path, MOST_NODE_BYTES)?, path)
}

/// Reads and checks a file of tenants. Relative paths in it begin at the folder of `origin`.
pub fn tenants(text: &str, origin: &Path) -> Result<TenantFile, ConfigErrors> {
    let parsed = tenants_with(None, text, origin)?;
    clashes(&parsed)?;
    Ok(parsed.into_file())
}

/// Reads and checks a file of tenants of 256 MiB at most.
pub fn tenants_file(path: &Path) -> Result<TenantFile, ConfigErrors> {
    tenants(&read_text(path, MOST_TENANT_BYTES)?, path)
}

/// As [`tenants_with`], from a file of 256 MiB at most.
pub fn tenants_file_with(previous: Option<&ParsedTenants>, path: &Path) -> Result<ParsedTenants, ConfigErrors> {
    tenants_with(previous, read_text(path, MOST_TENANT_BYTES)?, path)
}

/// Reads a value from text of its own, for whoever gets parts of a configuration from elsewhere than from files. It is not
/// checked beyond its form, and paths in it stay as they are.
pub fn value<T: DeserializeOwned>(text: &str, origin: &Path) -> Result<T, ConfigErrors> {
    let read = yaml::parse(text, Anchors::Refused).and_then(|root| yaml::value(&root));
    read.map_err(|refusal| describe(vec![(*refusal).into()], origin, |paths| locate(text, paths)))
}

/// Reads a JSON or YAML document that configuration refers to, such as a schema, of 16 MiB at most.
pub fn document(path: &Path) -> Result<serde_json::Value, ConfigErrors> {
    const MOST_DOCUMENT_BYTES: u64 = 16 << 20;
    let text = read_text(path, MOST_DOCUMENT_BYTES)?;
    let read = yaml::parse(&text, Anchors::Allowed).and_then(|root| yaml::value(&root));
    read.map_err(|refusal| describe(vec![(*refusal).into()], path, |paths| locate(&text, paths)))
}

fn read_text(path: &Path, limit: u64) -> Result<String, ConfigErrors> {
    let refused = |cause| ConfigErrors::from(ConfigError::of_file(path, cause));
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::InvalidData => refused(Cause::NotText),
        _ => refused(Cause::Unreadable(error)),
    };
    let mut text = String::new();
    let read = regular::open(path).and_then(|file| {
        // Room for all of it and the look at its end, so that it is not copied while it grows.
        let length = file.metadata()?.len().min(limit) + 1;
        text.reserve_exact(usize::try_from(length).unwrap_or_default());
        // One byte more than is allowed tells a file that is too large, even if it grows meanwhile.
        file.take(limit + 1).read_to_string(&mut text)
    });
    read.map_err(unreadable)?;
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
            ConfigError {
                file: origin.to_owned(),
                position: fault.position.or(place.map(|place| place.position)),
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

/// Whether a value can go into messages and logs: short, without what may be a user and password before an `@`, and not
/// at a place where a credential is written, even by mistake.
fn may_be_shown(path: &ConfigPath, value: &str) -> bool {
    const SECRET: [&str; 9] =
        ["keys", "key", "hash", "headers", "security_headers", "header", "cookie", "url", "query"];
    value.len() <= 200
        && !value.contains('@')
        && !path.steps().iter().any(|step| matches!(step, PathStep::Key(key) if SECRET.contains(&&**key)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fmt::Write as _, path::PathBuf};

    use super::*;
    use crate::{
        policy::JsonDocument,
        tenant::{Balance, HashKey, HeaderCondition, Probe, TextTest, VersionSource},
    };

    const GOOD: &str = r#"revision: 3
defaults:
  auth: {accept: [anonymous]}
upstreams:
  shared:
    endpoints: [{address: "10.0.0.1:80"}]
    balance: {consistent_hash: {header: x-user}}
    health: {probe: {http: {path: /healthz}}}
  plain:
    endpoints: [{address: "10.0.0.2:80"}]
    balance: round_robin
tenants:
  - id: acme
    hosts: [acme.example]
    versions: {by: {header: api-version}, default: v1, list: {v1: {}}}
    consumers:
      - id: app
        keys:
          - prefix: abcdefgh
            key: ${file:keys/app}
    routes:
      - id: users
        match:
          path: /users/{id}
          headers: [{name: X-A, equals: foo}]
        upstream: shared
        policies:
          timeouts:
            total: 5s
          request: {max_body: 512}
          validation: {openapi: {file: api.yaml}}
"#;

    fn refused(text: &str) -> Vec<ConfigError> {
        tenants(text, Path::new("conf/tenants.yaml")).unwrap_err().into_iter().collect()
    }

    /// The only error when this is written instead.
    fn fault(from: &str, to: &str) -> ConfigError {
        assert!(GOOD.contains(from), "{from}");
        let mut errors = refused(&GOOD.replacen(from, to, 1));
        assert_eq!(errors.len(), 1, "{errors:#?}");
        errors.remove(0)
    }

    #[test]
    fn choices_are_written_as_people_write_them() {
        let file = tenants(GOOD, Path::new("conf/tenants.yaml")).unwrap();
        let upstream = |name: &str| &file.upstreams[name];
        assert_eq!(upstream("shared").balance, Balance::ConsistentHash(HashKey::Header("x-user".parse().unwrap())));
        assert_eq!(upstream("plain").balance, Balance::RoundRobin);
        assert_eq!(upstream("shared").health.as_ref().unwrap().probe, Probe::Http { path: "/healthz".to_owned() });
        let tenant = &file.tenants[0];
        assert_eq!(tenant.versions.as_ref().unwrap().by, VersionSource::Header("api-version".parse().unwrap()));
        assert_eq!(
            tenant.routes[0].r#match.headers,
            [HeaderCondition { name: "x-a".parse().unwrap(), test: TextTest::Equals("foo".to_owned()) }]
        );
        let by = GOOD.replace("by: {header: api-version}", "by: path_prefix").replace("/users/{id}", "/v1/users");
        let file = tenants(&by, Path::new("t.yaml")).unwrap();
        assert_eq!(file.tenants[0].versions.as_ref().unwrap().by, VersionSource::PathPrefix);
    }

    #[test]
    fn paths_begin_at_the_folder_of_the_file() {
        let file = tenants(GOOD, Path::new("conf/tenants.yaml")).unwrap();
        let key = &file.tenants[0].consumers[0].keys[0].source;
        assert_eq!(format!("{key:?}"), r#"Key(File("conf/keys/app"))"#);
        let validation = file.tenants[0].routes[0].policies.validation.as_ref().unwrap();
        assert_eq!(validation.openapi, Some(JsonDocument::File(PathBuf::from("conf/api.yaml"))));

        let text = "tls: {certificates: [{certificate: a.pem, key: /abs/a.key}]}\naccess_log: {output: {file: log}}\nlimits: {redis: {url: '${file:redis-url}'}}\n";
        let node = node(text, Path::new("/etc/gateway/node.yaml")).unwrap();
        assert_eq!(node.tls.certificates[0].certificate, Path::new("/etc/gateway/a.pem"));
        assert_eq!(node.tls.certificates[0].key, Path::new("/abs/a.key"));
        assert_eq!((node.tenants, node.state_dir), (None, "/etc/gateway/var".into()));
        assert_eq!(node.access_log.output, crate::node::LogOutput::File("/etc/gateway/log".into()));
        assert_eq!(node.limits.redis.unwrap().url.to_string(), "${file:/etc/gateway/redis-url}");

        let text = "control_plane: {url: 'https://admin.example', token: '${file:token}', ca: ca.pem}\n";
        let node = super::node(text, Path::new("/etc/gateway/node.yaml")).unwrap();
        let settings = node.control_plane.unwrap();
        assert_eq!(settings.token.as_ref().unwrap().to_string(), "${file:/etc/gateway/token}");
        assert_eq!(settings.ca.unwrap(), Path::new("/etc/gateway/ca.pem"));
        assert_eq!(settings.files.unwrap(), Path::new("/etc/gateway"));
    }

    #[test]
    fn an_empty_node_file_is_all_defaults() {
        for text in ["{}", "id: gateway\n"] {
            assert_eq!(node(text, Path::new("node.yaml")).unwrap(), NodeConfig::default(), "{text:?}");
        }
    }

    #[test]
    fn each_fault_is_told_with_its_place() {
        for (from, to, line, column, path, code) in [
            ("upstream: shared\n", "upsteam: shared\n", 26, 9, "tenants[0].routes[0].upsteam", "unknown_key"),
            ("        upstream: shared\n", "", 22, 9, "tenants[0].routes[0]", "missing_key"),
            ("revision: 3\n", "", 1, 1, "", "missing_key"),
            ("id: users", "id: Users", 22, 13, "tenants[0].routes[0].id", "value"),
            ("path: /users/{id}", "path: users", 24, 17, "tenants[0].routes[0].match.path", "value"),
            ("total: 5s", "total: 5", 29, 20, "tenants[0].routes[0].policies.timeouts.total", "value"),
            ("hosts: [acme.example]", "hosts: acme.example", 14, 12, "tenants[0].hosts", "wrong_type"),
            ("max_body: 512", "max_body: -1", 30, 31, "tenants[0].routes[0].policies.request.max_body", "wrong_type"),
            ("revision: 3", "revision: three", 1, 11, "revision", "wrong_type"),
            ("balance: round_robin", "balance: round-robin", 11, 14, "upstreams.plain.balance", "unknown_choice"),
            ("accept: [anonymous]", "accept: [anon]", 3, 19, "defaults.auth.accept[0]", "unknown_choice"),
            ("equals: foo", "equals: foo, prefix: f", 25, 21, "tenants[0].routes[0].match.headers[0]", "value"),
            ("equals: foo", "equal: foo", 25, 33, "tenants[0].routes[0].match.headers[0].equal", "unknown_key"),
            (
                "probe: {http: {path: /healthz}}",
                "probe: {http: /healthz}",
                8,
                28,
                "upstreams.shared.health.probe.http",
                "wrong_type",
            ),
            ("id: acme\n", "id: acme\n    id: acme\n", 14, 5, "tenants[0].id", "duplicate_key"),
            ("key: ${file:keys/app}", "key: hunter2", 20, 18, "tenants[0].consumers[0].keys[0].key", "value"),
            ("upstream: shared\n", "upstream: shred\n", 26, 19, "tenants[0].routes[0].upstream", "unknown_reference"),
        ] {
            let error = fault(from, to);
            let place = error.position.map(|position| (position.line, position.column));
            assert_eq!(
                (place, error.path.to_string().as_str(), error.cause.code()),
                (Some((line, column)), path, code),
                "{to}: {error}"
            );
        }
    }

    #[test]
    fn impossible_limits_are_told_with_their_bounds() {
        const PLACE: &str = "request: {max_body: 512}";
        for (limits, path, message) in [
            (
                "rate: {requests: 0, per: 1m}",
                "rate.requests",
                "0 is out of bounds: write a whole number from 1 to 1000000000",
            ),
            (
                "rate: {requests: -5, per: 1m}",
                "rate.requests",
                "here stands the number -5, expected is a whole number from 1 to 1000000000",
            ),
            (
                "rate: {requests: 0.5, per: 1s}",
                "rate.requests",
                "here stands the number 0.5, expected is a whole number from 1 to 1000000000",
            ),
            (
                "rate: {requests: 99999999999999999999, per: 1s}",
                "rate.requests",
                "here stands a number beyond all bounds, expected is a whole number from 1 to 1000000000",
            ),
            (
                "rate: {requests: 1, per: 1d}",
                "rate.per",
                "1d is no possible period of a rate: write 1s to 1h; for longer ones there are quotas",
            ),
            (
                "rate: {requests: 1, per: 1m, burst: 0}",
                "rate.burst",
                "0 is out of bounds: write a whole number from 1 to 1000000",
            ),
            (
                "rate: none",
                "rate",
                "here stands a text, expected is a rate, as in {requests: 1000, per: 1m, burst: 100}, or unlimited",
            ),
            (
                "quotas: {daily: -1}",
                "quotas.daily",
                "here stands the number -1, expected is a whole number from 0 to 1125899906842624, or unlimited",
            ),
            (
                "quotas: {monthly: 1125899906842625}",
                "quotas.monthly",
                "1125899906842625 is too large: write a whole number from 0 to 1125899906842624, or unlimited",
            ),
            (
                "quotas: {monthly: .inf}",
                "quotas.monthly",
                "here stands a number beyond all bounds, expected is a whole number from 0 to 1125899906842624, or unlimited",
            ),
            (
                "concurrency: {requests: many}",
                "concurrency.requests",
                "here stands a text, expected is a whole number from 0 to 10000000, or unlimited",
            ),
            ("cost: 0", "cost", "0 is out of bounds: write a whole number from 1 to 10000"),
            (
                "calendar: {time_zone: Asia/Tokio}",
                "calendar.time_zone",
                "\"Asia/Tokio\" is not a time zone: did you mean Asia/Tokyo?",
            ),
            ("rate: {requests: 1, per: 1s, brust: 1}", "rate.brust", "the key \"brust\" is not known here"),
            ("rate: {requests: 1}", "rate", "the key \"per\" is missing"),
            ("keyed: [{id: a, by: ip}]", "keyed[0].by", "\"ip\" is none of the possible choices"),
        ] {
            let error = fault(PLACE, &format!("limits: {{{limits}}}"));
            let expected = format!("tenants[0].routes[0].policies.limits.{path}");
            assert_eq!((error.path.to_string(), error.cause.to_string()), (expected, message.to_owned()), "{limits}");
            assert_eq!(error.position.unwrap().line, 30, "{limits}");
        }
    }

    #[test]
    fn an_error_reads_as_a_sentence_with_its_fix() {
        assert_eq!(
            fault("upstream: shared\n", "upsteam: shared\n").to_string(),
            "conf/tenants.yaml:26:9: tenants[0].routes[0].upsteam (tenant acme, route users): the key \"upsteam\" is not known here\n    fix: did you mean upstream? the keys here are id, match, upstream, priority, canary, mirror, policies"
        );
        assert_eq!(
            fault("upstream: shared\n", "upstream: shred\n").to_string(),
            "conf/tenants.yaml:26:19: tenants[0].routes[0].upstream (tenant acme, route users): there is no upstream shred\n    fix: did you mean shared? defined are plain, shared"
        );
    }

    #[test]
    fn an_error_is_json_for_programs() {
        let json =
            serde_json::to_value(tenants(&GOOD.replace("total: 5s", "total: 0s"), Path::new("t.yaml")).unwrap_err())
                .unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "errors": [{
                    "file": "t.yaml",
                    "line": 29,
                    "column": 20,
                    "path": "tenants[0].routes[0].policies.timeouts.total",
                    "tenant": "acme",
                    "route": "users",
                    "code": "zero",
                    "value": "0ms",
                    "message": "the time for all attempts is zero",
                    "fix": "write at least 100ms",
                }],
                "omitted": 0,
            })
        );
    }

    #[test]
    fn all_that_breaks_rules_is_told_at_once() {
        let text = GOOD
            .replace("total: 5s", "total: 0s")
            .replace("upstream: shared", "upstream: none")
            .replace("hosts: [acme.example]", "hosts: []");
        let codes: Vec<_> = refused(&text).iter().map(|error| error.cause.code()).collect();
        assert_eq!(codes, ["empty", "unknown_reference", "zero"]);
    }

    #[test]
    fn secrets_are_in_no_error() {
        for (from, to) in [
            ("key: ${file:keys/app}", "key: hunter2"),
            ("key: ${file:keys/app}", "key: [hunter2]"),
            ("key: ${file:keys/app}", "key: {hunter2: 1}"),
            ("key: ${file:keys/app}", "hash: hunter2"),
            ("prefix: abcdefgh", "prefix: sk_abcdefgh_hunter2"),
            ("prefix: abcdefgh", "prefix: [hunter2]"),
            (
                "hosts: [acme.example]",
                "hosts: [acme.example]\n    jwt_issuers: [{issuer: a, audiences: [b], jwks: {url: 'https://u:hunter2@a.example/'}}]",
            ),
            (
                "hosts: [acme.example]",
                "hosts: [acme.example]\n    jwt_issuers: [{issuer: a, audiences: [b], jwks: {url: 'u:hunter2@a.example'}}]",
            ),
            ("address: \"10.0.0.1:80\"", "address: \"u:hunter2@10.0.0.1:80\""),
            ("timeouts:\n            total: 5s", "headers: {request: {set: {authorization: \"hunter2\\n\"}}}"),
            ("timeouts:\n            total: 5s", "headers: {request: {set: {host: hunter2}}}"),
            ("timeouts:\n            total: 5s", "security_headers: {authorization: [hunter2]}"),
            ("equals: foo", "equals: [hunter2]"),
        ] {
            for error in refused(&GOOD.replacen(from, to, 1)) {
                // The key of a map is not a value: who writes a secret there is shown it.
                let shown = format!("{error} {}", serde_json::to_string(&error).unwrap());
                assert!(!shown.contains("hunter2") || to.contains("{hunter2"), "{shown}");
            }
        }
    }

    #[test]
    fn a_small_text_cannot_grow_without_bound() {
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f")] {
            let ten = vec![format!("*{before}"); 10].join(", ");
            writeln!(laughs, "{name}: &{name} [{ten}]").unwrap();
        }
        let inline = "revision: 1\ndefaults: {validation: {body_schema: {inline: {\n".to_owned()
            + &laughs.replace('\n', ",\n")
            + "}}}}\n";
        let errors = refused(&inline);
        assert_eq!(errors[0].cause.code(), "excess", "{}", errors[0]);

        let deep = format!(
            "revision: 1\ndefaults: {{validation: {{body_schema: {{inline: {}{}}}}}}}\n",
            "[".repeat(200),
            "]".repeat(200)
        );
        assert_eq!(refused(&deep)[0].cause.code(), "excess");
        let very_deep = "[".repeat(1_000_000);
        assert!(["excess", "syntax", "wrong_type"].contains(&refused(&very_deep)[0].cause.code()));
    }

    #[test]
    fn a_file_is_bounded_and_must_be_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.yaml");
        let code = || node_file(&path).unwrap_err().iter().next().unwrap().cause.code();
        assert_eq!(code(), "unreadable");
        std::fs::write(&path, b"id: \xff").unwrap();
        assert_eq!(code(), "not_text");
        std::fs::write(&path, format!("id: a\n#{}", "x".repeat(1 << 20))).unwrap();
        assert_eq!(code(), "too_large");
        std::fs::write(&path, "id: a\n").unwrap();
        assert_eq!(node_file(&path).unwrap().id.as_str(), "a");
    }
}
